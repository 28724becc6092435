// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "heirloom/kernels/optimizer.h"
#include "kernels/reference/scalar.hpp"

namespace heirloom::reference {

template <class T>
void adamw(const AdamwArgs& a, Stream) {
  using A = compute_t<T>;
  const A b1 = static_cast<A>(a.beta1), b2 = static_cast<A>(a.beta2), lr = static_cast<A>(a.lr);
  for (int64_t k = 0; k < a.segment_count; ++k) {
    const OptimizerSegment& s = a.segments[k];
    A* w = static_cast<A*>(s.master);
    A* m = static_cast<A*>(s.m);
    A* v = static_cast<A*>(s.v);
    for (int64_t i = 0; i < s.n; ++i) {
      const A g = static_cast<const A*>(s.grad)[i] * static_cast<A>(a.grad_scale);
      m[i] = b1 * m[i] + static_cast<A>(1.0 - a.beta1) * g;
      v[i] = b2 * v[i] + static_cast<A>(1.0 - a.beta2) * g * g;
      const A m_hat = m[i] / static_cast<A>(a.bias_correction1);
      const A v_hat = v[i] / static_cast<A>(a.bias_correction2);
      const A step = m_hat / (std::sqrt(v_hat) + static_cast<A>(a.eps));
      w[i] -= lr * (step + static_cast<A>(s.weight_decay) * w[i]);
      if (s.weight) store<T>(s.weight, i, w[i]);
    }
  }
}

template <class T>
void sum_squares(const SumSquaresArgs& a, Stream) {
  double total = 0;
  for (int64_t k = 0; k < a.segment_count; ++k) {
    for (int64_t i = 0; i < a.segments[k].n; ++i) {
      const auto g = static_cast<double>(static_cast<const compute_t<T>*>(a.segments[k].grad)[i]);
      total += g * g;
    }
  }
  *a.result = total;
}

}  // namespace heirloom::reference
