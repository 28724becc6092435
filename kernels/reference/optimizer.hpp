// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>

#include "heirloom/core/rng.h"
#include "heirloom/kernels/optimizer.h"
#include "kernels/reference/scalar.hpp"

namespace heirloom::reference {

/// x in T: rounded up with the probability of the part cut off, which the upper half of `word`
/// decides. Where T is A nothing is cut off.
template <class T>
T round_stochastically(compute_t<T> x, uint32_t word) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    if (std::isnan(x)) return bfloat16(x);
    const uint32_t bits = (std::bit_cast<uint32_t>(x) + (word >> 16)) & 0xffff0000u;
    return bfloat16(std::bit_cast<float>(bits));
  } else {
    return x;
  }
}

template <class T>
void adamw(const AdamwArgs& a, Stream) {
  using A = compute_t<T>;
  const AdamwScalars& now = *a.scalars;
  if (std::isnan(now.grad_scale)) return;
  const A b1 = static_cast<A>(a.beta1), b2 = static_cast<A>(a.beta2), lr = static_cast<A>(now.lr);
  for (int64_t k = 0; k < a.segment_count; ++k) {
    const OptimizerSegment& s = a.segments[k];
    for (int64_t i = 0; i < s.n; ++i) {
      A w = a.narrow_state ? load<T>(s.weight, i) : load<A>(s.master, i);
      A m = a.narrow_state ? load<T>(s.m, i) : load<A>(s.m, i);
      A v = a.narrow_state ? load<T>(s.v, i) : load<A>(s.v, i);
      const A g = load<A>(s.grad, i) * static_cast<A>(now.grad_scale);
      m = b1 * m + static_cast<A>(1.0 - a.beta1) * g;
      v = b2 * v + static_cast<A>(1.0 - a.beta2) * g * g;
      const A m_hat = m / static_cast<A>(now.bias_correction1);
      const A v_hat = v / static_cast<A>(now.bias_correction2);
      const A step = m_hat / (std::sqrt(v_hat) + static_cast<A>(a.eps));
      w -= lr * (step + static_cast<A>(s.weight_decay) * w);
      if (a.narrow_state) {
        const auto e = static_cast<uint64_t>(i);
        const auto words =
            philox(now.rounding_key, {static_cast<uint32_t>(e), static_cast<uint32_t>(e >> 32),
                                      static_cast<uint32_t>(k), 0});
        static_cast<T*>(s.weight)[i] = round_stochastically<T>(w, words[0]);
        static_cast<T*>(s.m)[i] = round_stochastically<T>(m, words[1]);
        static_cast<T*>(s.v)[i] = round_stochastically<T>(v, words[2]);
      } else {
        store<A>(s.master, i, w);
        store<A>(s.m, i, m);
        store<A>(s.v, i, v);
        if (s.weight) store<T>(s.weight, i, w);
      }
    }
  }
}

template <class T>
void sum_squares(const SumSquaresArgs& a, Stream) {
  double total = 0;
  for (int64_t k = 0; k < a.segment_count; ++k) {
    for (int64_t i = 0; i < a.segments[k].n; ++i) {
      const auto g = static_cast<double>(load<compute_t<T>>(a.segments[k].grad, i));
      total += g * g;
    }
  }
  *a.result = total;
}

inline void grad_scale(const GradScaleArgs& a, Stream) {
  const double norm = std::sqrt(*a.sum_squares);
  *a.norm = norm;
  if (!std::isfinite(norm)) {
    *a.grad_scale = std::nan("");
  } else {
    *a.grad_scale = a.clip > 0 ? std::fmin(1.0, a.clip / (norm + 1e-6)) : 1.0;
  }
}

}  // namespace heirloom::reference
