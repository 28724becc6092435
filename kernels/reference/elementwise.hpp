// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "heirloom/core/rng.h"
#include "heirloom/kernels/elementwise.h"
#include "kernels/reference/scalar.hpp"

namespace heirloom::reference {

template <class T>
void add(const AddArgs& a, Stream) {
  using A = compute_t<T>;
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t j = 0; j < a.cols; ++j) {
      const int64_t from = i * a.x_stride + j, to = i * a.y_stride + j;
      const A x = a.x_is_accumulate_dtype ? load<A>(a.x, from) : load<T>(a.x, from);
      if (a.y_is_accumulate_dtype) {
        store<A>(a.y, to, a.overwrite ? x : load<A>(a.y, to) + x);
      } else {
        store<T>(a.y, to, a.overwrite ? x : load<T>(a.y, to) + x);
      }
    }
  }
}

template <class T>
void column_sum(const ColumnSumArgs& a, Stream) {
  for (int64_t i = 0; i < a.n; ++i) {
    for (int64_t j = 0; j < a.c; ++j) {
      static_cast<compute_t<T>*>(a.db)[j] += load<T>(a.dy, i * a.c + j);
    }
  }
}

template <class T>
void dropout(const DropoutArgs& a, Stream) {
  using A = compute_t<T>;
  const int64_t groups = (a.c + 3) / 4;
  for (int64_t i = 0; i < a.n; ++i) {
    const uint32_t sequence =
        a.step_first_sequence() + static_cast<uint32_t>(i / a.sequence_length);
    for (int64_t j = 0; j < a.c; ++j) {
      const auto e = static_cast<uint64_t>(i % a.sequence_length * groups + j / 4);
      const auto words = philox(
          a.philox_key(), {static_cast<uint32_t>(e), static_cast<uint32_t>(e >> 32), sequence, 0});
      const bool drop =
          static_cast<double>(uniform_from_bits(words[static_cast<size_t>(j % 4)])) < a.rate;
      const A x = load<T>(a.x, i * a.c + j);
      store<T>(a.y, i * a.c + j, drop ? A(0) : x * static_cast<A>(1.0 / (1.0 - a.rate)));
    }
  }
}

}  // namespace heirloom::reference
