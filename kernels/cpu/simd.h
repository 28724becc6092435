// SPDX-License-Identifier: Apache-2.0
//
// A thin vector layer over GCC vector extensions: Vf holds kLanes floats, 16 with AVX-512 and 8
// with AVX2. Everything is static and inside the namespace of the instruction set, so that no
// object file can lend its code to another.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "heirloom/core/dtype.h"

#define HEIRLOOM_INLINE [[maybe_unused]] static inline __attribute__((always_inline))

namespace heirloom::cpu::HEIRLOOM_ISA {

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
#else
inline constexpr int kLanes = 8;
#endif

typedef float Vf __attribute__((vector_size(4 * kLanes)));
typedef int32_t Vi
    __attribute__((vector_size(4 * kLanes)));  // also the type of comparisons: 0 or -1
typedef uint32_t Vu __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Vh __attribute__((vector_size(2 * kLanes)));
typedef float Vf4 __attribute__((vector_size(16)));
typedef float Vf8 __attribute__((vector_size(32)));

HEIRLOOM_INLINE constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

HEIRLOOM_INLINE Vf set(float x) { return x - Vf{}; }
HEIRLOOM_INLINE Vi set_int(int32_t x) { return x - Vi{}; }
HEIRLOOM_INLINE Vi lane_numbers() {
  return []<int... I>(std::integer_sequence<int, I...>) { return Vi{I...}; }
  (std::make_integer_sequence<int, kLanes>());
}

HEIRLOOM_INLINE Vf widen(Vh h) {
  return reinterpret_cast<Vf>(__builtin_convertvector(h, Vu) << 16);
}
/// The rounding of bfloat16(float), bit for bit.
HEIRLOOM_INLINE Vh narrow(Vf x) {
  const Vu u = reinterpret_cast<Vu>(x);
  const Vu rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const Vu quiet = (u >> 16) | 0x40u;
  return __builtin_convertvector((u & 0x7fffffffu) > 0x7f800000u ? quiet : rounded, Vh);
}

HEIRLOOM_INLINE Vf load(const float* p) {
  Vf v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
HEIRLOOM_INLINE Vf load(const bfloat16* p) {
  Vh h;
  std::memcpy(&h, p, sizeof h);
  return widen(h);
}
HEIRLOOM_INLINE void store(float* p, Vf v) { std::memcpy(p, &v, sizeof v); }
HEIRLOOM_INLINE void store(bfloat16* p, Vf v) {
  const Vh h = narrow(v);
  std::memcpy(p, &h, sizeof h);
}

/// The first n lanes, 0 <= n <= kLanes; the others read as zero and are not touched in memory.
HEIRLOOM_INLINE Vf load_n(const float* p, int64_t n) {
#if defined(__AVX512F__)
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), p);
#else
  return _mm256_maskload_ps(p, reinterpret_cast<__m256i>(lane_numbers() < static_cast<int32_t>(n)));
#endif
}
HEIRLOOM_INLINE Vf load_n(const bfloat16* p, int64_t n) {
#if defined(__AVX512F__)
  const __m256i h = _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1u), p);
  return widen(reinterpret_cast<Vh>(h));
#else
  Vh h{};
  for (int i = 0; i < n; ++i) h[i] = p[i].bits;
  return widen(h);
#endif
}
HEIRLOOM_INLINE void store_n(float* p, Vf v, int64_t n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1u), v);
#else
  _mm256_maskstore_ps(p, reinterpret_cast<__m256i>(lane_numbers() < static_cast<int32_t>(n)), v);
#endif
}
HEIRLOOM_INLINE void store_n(bfloat16* p, Vf v, int64_t n) {
  const Vh h = narrow(v);
#if defined(__AVX512F__)
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << n) - 1u), reinterpret_cast<__m256i>(h));
#else
  for (int i = 0; i < n; ++i) p[i].bits = h[i];
#endif
}

/// a * b + c, rounded once.
HEIRLOOM_INLINE Vf fma(Vf a, Vf b, Vf c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#else
  return _mm256_fmadd_ps(a, b, c);
#endif
}
/// Where either is NaN, the second argument.
HEIRLOOM_INLINE Vf max(Vf a, Vf b) { return a > b ? a : b; }
HEIRLOOM_INLINE Vf min(Vf a, Vf b) { return a < b ? a : b; }

HEIRLOOM_INLINE Vf8 low_half(Vf v) { return __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7); }
#if defined(__AVX512F__)
HEIRLOOM_INLINE Vf8 high_half(Vf v) {
  return __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
}
#endif

/// Sums of four vectors, (a0 + .. , b0 + .. , c0 + .. , d0 + ..): the same order of additions for
/// each of them.
HEIRLOOM_INLINE Vf4 reduce_add4(Vf a, Vf b, Vf c, Vf d) {
#if defined(__AVX512F__)
  const Vf ab = _mm512_maskz_unpacklo_ps(0xffff, a, b) + _mm512_maskz_unpackhi_ps(0xffff, a, b);
  const Vf cd = _mm512_maskz_unpacklo_ps(0xffff, c, d) + _mm512_maskz_unpackhi_ps(0xffff, c, d);
  const Vf abcd =
      _mm512_maskz_shuffle_ps(0xffff, ab, cd, 0x44) + _mm512_maskz_shuffle_ps(0xffff, ab, cd, 0xee);
  const __m256 half = low_half(abcd) + high_half(abcd);
#else
  const __m256 ab = _mm256_unpacklo_ps(a, b) + _mm256_unpackhi_ps(a, b);
  const __m256 cd = _mm256_unpacklo_ps(c, d) + _mm256_unpackhi_ps(c, d);
  const __m256 half = _mm256_shuffle_ps(ab, cd, 0x44) + _mm256_shuffle_ps(ab, cd, 0xee);
#endif
  return _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
}
/// Sum of the lanes, halves onto halves.
HEIRLOOM_INLINE float reduce_add(Vf v) {
#if defined(__AVX512F__)
  const __m256 half = low_half(v) + high_half(v);
#else
  const __m256 half = v;
#endif
  const Vf4 q = _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
  return (q[0] + q[2]) + (q[1] + q[3]);
}
HEIRLOOM_INLINE float reduce_max(Vf v) {
#if defined(__AVX512F__)
  const __m256 half = _mm256_max_ps(low_half(v), high_half(v));
#else
  const __m256 half = v;
#endif
  const Vf4 q = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  const float a = q[0] > q[2] ? q[0] : q[2], b = q[1] > q[3] ? q[1] : q[3];
  return a > b ? a : b;
}

/// e^x within 2 ulp; 0 for -inf, inf past the range, NaN for NaN; exp(0) is exactly 1.
/// x = n ln 2 + r, |r| <= ln 2 / 2; e^r = 1 + r + r^2 q(r), q of degree 4 through the Chebyshev
/// nodes (relative error 1e-8).
HEIRLOOM_INLINE Vf exp(Vf x) {
  x = min(set(89.0f), max(set(-104.0f), x));
#if defined(__AVX512F__)
  const Vf n = _mm512_maskz_roundscale_ps(0xffff, x * 1.44269504f, _MM_FROUND_TO_NEAREST_INT);
#else
  const Vf n = _mm256_round_ps(x * 1.44269504f, _MM_FROUND_TO_NEAREST_INT);
#endif
  // ln 2 in two parts; the first has 9 significant bits, so n times it is exact.
  Vf r = fma(n, set(-0.693359375f), x);
  r = fma(n, set(2.12194440e-4f), r);
  Vf q = set(0.00139262508f);
  q = fma(q, r, set(0.00836323288f));
  q = fma(q, r, set(0.0416665542f));
  q = fma(q, r, set(0.166665767f));
  q = fma(q, r, set(0.5f));
  q = fma(q, r, set(1.0f));
  q = fma(q, r, set(1.0f));
#if defined(__AVX512F__)
  return _mm512_maskz_scalef_ps(0xffff, q, n);
#else
  const Vi whole = reinterpret_cast<Vi>(_mm256_cvtps_epi32(n));
  const Vi first = whole >> 1, second = whole - first;  // in two steps: 2^n may be out of range
  return q * reinterpret_cast<Vf>((first + 127) << 23) * reinterpret_cast<Vf>((second + 127) << 23);
#endif
}

/// A kLanes x kLanes matrix, transposed in registers.
template <int kHalf>
HEIRLOOM_INLINE void transpose_stage(Vf (&v)[kLanes]) {
  for (int i = 0; i < kLanes; ++i) {
    if (i & kHalf) continue;
    const Vf a = v[i], b = v[i + kHalf];
    []<int... I>(Vf & low, Vf & high, Vf x, Vf y, std::integer_sequence<int, I...>) {
      low = __builtin_shufflevector(x, y, ((I & kHalf) ? kLanes + I - kHalf : I)...);
      high = __builtin_shufflevector(x, y, ((I & kHalf) ? kLanes + I : I + kHalf)...);
    }
    (v[i], v[i + kHalf], a, b, std::make_integer_sequence<int, kLanes>());
  }
}
HEIRLOOM_INLINE void transpose(Vf (&v)[kLanes]) {
  if constexpr (kLanes == 16) transpose_stage<kLanes / 2>(v);
  transpose_stage<4>(v);
  transpose_stage<2>(v);
  transpose_stage<1>(v);
}

/// A buffer that only grows; its contents are lost when it does. Aligned to a cache line. Meant as
/// `static thread_local`.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }
  float* floats(int64_t count) {
    if (count > capacity_) {
      std::free(data_);
      capacity_ = round_up(count, 1024);
      data_ = static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>(capacity_) * 4));
      if (data_ == nullptr) std::abort();
    }
    return data_;
  }

 private:
  float* data_ = nullptr;
  int64_t capacity_ = 0;
};

}  // namespace heirloom::cpu::HEIRLOOM_ISA
