// SPDX-License-Identifier: Apache-2.0
#include "heirloom/kernels/optimizer.h"

namespace heirloom {

KernelCost adamw_cost(const AdamwArgs& a, Dtype dtype) {
  const double size = static_cast<double>(dtype_size(dtype));
  const double wide = static_cast<double>(dtype_size(accumulate_dtype(dtype)));
  KernelCost cost;
  for (int64_t k = 0; k < a.segment_count; ++k) {
    const double n = static_cast<double>(a.segments[k].n);
    cost += {4 * n * wide, 3 * n * wide + (a.segments[k].weight ? n * size : 0), 14 * n};
  }
  return cost;
}

KernelCost sum_squares_cost(const SumSquaresArgs& a, Dtype dtype) {
  const double wide = static_cast<double>(dtype_size(accumulate_dtype(dtype)));
  KernelCost cost;
  for (int64_t k = 0; k < a.segment_count; ++k) {
    const double n = static_cast<double>(a.segments[k].n);
    cost += {n * wide, 0, 2 * n};
  }
  return cost;
}

}  // namespace heirloom
