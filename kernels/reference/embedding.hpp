// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "heirloom/kernels/embedding.h"
#include "kernels/reference/scalar.hpp"

namespace heirloom::reference {

template <class T>
void embedding_forward(const EmbeddingForwardArgs& a, Stream) {
  for (int64_t i = 0; i < a.n; ++i) {
    for (int64_t j = 0; j < a.c; ++j) {
      compute_t<T> x = load<T>(a.table, a.tokens[i] * a.c + j);
      if (a.position_table) x += load<T>(a.position_table, a.positions[i] * a.c + j);
      store<T>(a.x, i * a.c + j, x);
    }
  }
}

template <class T>
void embedding_backward(const EmbeddingBackwardArgs& a, Stream) {
  using A = compute_t<T>;
  for (int64_t i = 0; i < a.n; ++i) {
    for (int64_t j = 0; j < a.c; ++j) {
      const A dx = load<T>(a.dx, i * a.c + j);
      static_cast<A*>(a.dtable)[a.tokens[i] * a.c + j] += dx;
      if (a.dposition_table) static_cast<A*>(a.dposition_table)[a.positions[i] * a.c + j] += dx;
    }
  }
}

}  // namespace heirloom::reference
