// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "heirloom/kernels/cross_entropy.h"
#include "kernels/reference/scalar.hpp"

namespace heirloom::reference {

template <class T>
void cross_entropy(const CrossEntropyArgs& a, Stream) {
  using A = compute_t<T>;
  for (int64_t i = 0; i < a.n; ++i) {
    const A* x = static_cast<const A*>(a.logits) + i * a.v;
    const int64_t target = a.targets[i];
    A largest = x[0], sum = 0;
    for (int64_t j = 1; j < a.v; ++j) largest = x[j] > largest ? x[j] : largest;
    for (int64_t j = 0; j < a.v; ++j) sum += std::exp(x[j] - largest);
    a.nll[i] = target < 0 ? 0.0 : static_cast<double>(std::log(sum) + largest - x[target]);
    if (!a.dlogits) continue;
    for (int64_t j = 0; j < a.v; ++j) {
      const A p = std::exp(x[j] - largest) / sum;
      const A onehot = j == target ? A(1) : A(0);
      store<T>(a.dlogits, i * a.v + j, target < 0 ? A(0) : static_cast<A>(a.scale) * (p - onehot));
    }
  }
}

}  // namespace heirloom::reference
