// SPDX-License-Identifier: Apache-2.0
#include "heirloom/kernels/elementwise.h"

namespace heirloom {

KernelCost add_cost(const AddArgs& a, Dtype dtype) {
  const double count = static_cast<double>(a.rows) * static_cast<double>(a.cols);
  const double size = static_cast<double>(dtype_size(dtype));
  const double wide = static_cast<double>(dtype_size(accumulate_dtype(dtype)));
  const double x = a.x_is_accumulate_dtype ? wide : size;
  const double y = a.y_is_accumulate_dtype ? wide : size;
  return {count * (x + (a.overwrite ? 0 : y)), count * y, a.overwrite ? 0 : count};
}

KernelCost column_sum_cost(const ColumnSumArgs& a, Dtype dtype) {
  const double c = static_cast<double>(a.c), nc = static_cast<double>(a.n) * c;
  const double wide = static_cast<double>(dtype_size(accumulate_dtype(dtype)));
  return {nc * static_cast<double>(dtype_size(dtype)) + c * wide, c * wide, nc};
}

KernelCost dropout_cost(const DropoutArgs& a, Dtype dtype) {
  const double nc = static_cast<double>(a.n) * static_cast<double>(a.c);
  const double bytes = nc * static_cast<double>(dtype_size(dtype));
  return {bytes, bytes, nc};
}

}  // namespace heirloom
