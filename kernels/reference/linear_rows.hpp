// SPDX-License-Identifier: Apache-2.0
//
// linear_rows in plain loops (include/heirloom/kernels/gemm.h). T: float, bfloat16 (sums in float)
// or double.
#pragma once

#include "heirloom/kernels/gemm.h"

namespace heirloom::reference {

template <class T>
void linear_rows(const LinearRowsArgs& a, Stream) {
  using C = compute_t<T>;
  const T *x = static_cast<const T*>(a.x), *weight = static_cast<const T*>(a.weight);
  const T* bias = static_cast<const T*>(a.bias);
  for (int64_t r = 0; r < a.rows; ++r) {
    for (int64_t o = 0; o < a.out; ++o) {
      C sum = 0;
      for (int64_t k = 0; k < a.in; ++k) {
        sum += static_cast<C>(x[r * a.x_stride + k]) * static_cast<C>(weight[o * a.in + k]);
      }
      if (bias != nullptr) sum += static_cast<C>(bias[o]);
      const int64_t at = r * a.y_stride + o;
      if (a.y_is_accumulate_dtype) {
        static_cast<C*>(a.y)[at] = sum;
      } else {
        static_cast<T*>(a.y)[at] = static_cast<T>(sum);
      }
    }
  }
}

}  // namespace heirloom::reference
