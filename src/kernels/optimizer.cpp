// SPDX-License-Identifier: Apache-2.0
#include "heirloom/kernels/optimizer.h"

namespace heirloom {

int64_t number_runs(OptimizerSegment* segments, int64_t count) {
  int64_t runs = 0;
  for (int64_t k = 0; k < count; ++k) {
    segments[k].first_run = runs;
    runs += (segments[k].n + kOptimizerRun - 1) / kOptimizerRun;
  }
  return runs;
}

KernelCost adamw_cost(const AdamwArgs& a, Dtype dtype) {
  const double size = static_cast<double>(dtype_size(dtype));
  const double wide = static_cast<double>(dtype_size(accumulate_dtype(dtype)));
  KernelCost cost;
  for (int64_t k = 0; k < a.segment_count; ++k) {
    const double n = static_cast<double>(a.segments[k].n);
    if (a.narrow_state) {
      cost += {n * wide + 3 * n * size, 3 * n * size, 14 * n};
    } else {
      cost += {4 * n * wide, 3 * n * wide + (a.segments[k].weight ? n * size : 0), 14 * n};
    }
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

KernelTable<GradScaleArgs>& grad_scale_table() {
  static KernelTable<GradScaleArgs> table("grad_scale");
  return table;
}

KernelCost grad_scale_cost(const GradScaleArgs&, Dtype) { return {8, 16, 4}; }

}  // namespace heirloom
