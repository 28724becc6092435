// SPDX-License-Identifier: Apache-2.0
#include "heirloom/kernels/gemm.h"

namespace heirloom {

KernelCost linear_rows_cost(const LinearRowsArgs& a, Dtype dtype) {
  const double size = static_cast<double>(dtype_size(dtype));
  const double y_size = static_cast<double>(
      a.y_is_accumulate_dtype ? dtype_size(accumulate_dtype(dtype)) : dtype_size(dtype));
  const double rows = static_cast<double>(a.rows), in = static_cast<double>(a.in),
               out = static_cast<double>(a.out);
  return {.bytes_read = (out * in + rows * in + (a.bias == nullptr ? 0 : out)) * size,
          .bytes_written = rows * out * y_size,
          .flops = 2 * rows * in * out};
}

}  // namespace heirloom
