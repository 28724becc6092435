// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "heirloom/kernels/gemm.h"
#include "kernels/reference/scalar.hpp"

namespace heirloom::reference {

/// Sums over k in order, in blocks of columns so that the inner loop runs over contiguous C. Rows
/// in parallel.
template <class T>
void gemm(const GemmArgs& a, Stream) {
  using A = compute_t<T>;
  constexpr int64_t kBlock = 32;
  const int64_t a_row = a.transpose_a ? 1 : a.lda, a_col = a.transpose_a ? a.lda : 1;
  const int64_t b_row = a.transpose_b ? 1 : a.ldb, b_col = a.transpose_b ? a.ldb : 1;
#pragma omp parallel for schedule(static) if (a.m * a.n * a.k > 16384)
  for (int64_t i = 0; i < a.m; ++i) {
    for (int64_t j0 = 0; j0 < a.n; j0 += kBlock) {
      const int64_t width = j0 + kBlock < a.n ? kBlock : a.n - j0;
      A sums[kBlock] = {};
      for (int64_t k = 0; k < a.k; ++k) {
        const A x = load<T>(a.a, i * a_row + k * a_col);
        for (int64_t j = 0; j < width; ++j) {
          sums[j] += x * load<T>(a.b, k * b_row + (j0 + j) * b_col);
        }
      }
      for (int64_t j = 0; j < width; ++j) {
        const int64_t at = i * a.ldc + j0 + j;
        A sum = sums[j];
        if (a.bias) sum += load<T>(a.bias, j0 + j);
        if (a.c_is_accumulate_dtype) {
          store<A>(a.c, at, a.accumulate ? load<A>(a.c, at) + sum : sum);
        } else {
          store<T>(a.c, at, a.accumulate ? load<T>(a.c, at) + sum : sum);
        }
      }
    }
  }
}

}  // namespace heirloom::reference
