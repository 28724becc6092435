// SPDX-License-Identifier: Apache-2.0
//
// Scalar building blocks that gcc vectorises inside `#pragma omp simd` loops: element conversion
// and branch-free float32 exponentials. Everything has internal linkage, so no code compiled for
// one instruction set can be linked into another.
#pragma once

#include <bit>
#include <cstdint>

#include "heirloom/core/dtype.h"

#ifndef HEIRLOOM_ISA
#error "kernels/cpu sources are compiled once per instruction set, with HEIRLOOM_ISA defined"
#endif

namespace heirloom::cpu::HEIRLOOM_ISA {
namespace {

/// Below this many elements a call is not worth waking the thread pool.
[[maybe_unused]] constexpr int64_t kParallelElements = 1 << 14;

[[gnu::always_inline]] inline float to_float(float x) { return x; }
[[gnu::always_inline]] inline float to_float(bfloat16 x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
}

template <class T>
[[gnu::always_inline]] inline T from_float(float x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else {
    const uint32_t u = std::bit_cast<uint32_t>(x);
    const uint32_t rounded = u + 0x7fffu + ((u >> 16) & 1u);
    const uint32_t kept = (u & 0x7fffffffu) > 0x7f800000u ? (u | 0x400000u) : rounded;
    T y;
    y.bits = static_cast<uint16_t>(kept >> 16);
    return y;
  }
}

/// e^x within about 1 ulp: x = n ln 2 + r, |r| <= ln 2 / 2, and a polynomial of degree 6 in r
/// (Chebyshev nodes). Results below the normal range are 0; x above 88.37 is taken as 88.37; NaN
/// stays NaN.
[[gnu::always_inline]] inline float exp_approx(float x) {
  const float c = x > 88.376259f ? 88.376259f : x;
  const float shifted =
      c * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the integer n ends up in the low mantissa bits
  const float n = shifted - 12582912.0f;
  float r = c - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float p = 0.001392625083f;
  p = p * r + 0.008363232884f;
  p = p * r + 0.04166655421f;
  p = p * r + 0.1666657667f;
  p = p * r + 0.5f;
  p = (p * r) * r + r;
  const float scale = std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) << 23) + 0x3f800000u);
  const float y = p * scale + scale;
  return x < -87.3365f ? 0.0f : y;
}

/// 1 / (1 + e^-x); `complement` gets 1 - that, without cancellation.
[[gnu::always_inline]] inline float sigmoid(float x, float& complement) {
  const float e = exp_approx(-x), s = 1.0f / (1.0f + e);
  complement = e * s;
  return s;
}

/// Phi(x), the standard normal distribution function; `density` gets exp(-x^2 / 2) / sqrt(2 pi).
/// Phi(-|x|) = erfc(z) / 2 with z = |x| / sqrt 2 and erfc(z) = exp(-z^2) t Q(t), t = 1 / (1 + 0.4
/// z): Q of degree 10 at Chebyshev nodes, relative error 1e-8.
[[gnu::always_inline]] inline float normal_cdf(float x, float& density) {
  const float magnitude = x < 0.0f ? -x : x;
  const float t = 1.0f / (1.0f + 0.282842712f * magnitude);
  float q = -0.02962701045f;
  q = q * t + 0.1426926894f;
  q = q * t - 0.2407626846f;
  q = q * t + 0.1443697702f;
  q = q * t - 0.05230123279f;
  q = q * t + 0.08661243355f;
  q = q * t + 0.1181714102f;
  q = q * t + 0.1718940621f;
  q = q * t + 0.207598159f;
  q = q * t + 0.2256765728f;
  q = q * t + 0.2256758249f;
  const float e = exp_approx(-0.5f * x * x);
  density = 0.398942280f * e;
  const float tail = 0.5f * e * t * q;
  return x < 0.0f ? tail : 1.0f - tail;
}

template <class T>
[[gnu::always_inline]] inline const T* ptr(const void* p) {
  return static_cast<const T*>(p);
}
template <class T>
[[gnu::always_inline]] inline T* ptr(void* p) {
  return static_cast<T*>(p);
}

}  // namespace
}  // namespace heirloom::cpu::HEIRLOOM_ISA
