// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "heirloom/kernels/kernel_table.h"

namespace heirloom {

/// One contiguous run of parameters.
struct OptimizerSegment {
  void* master = nullptr;  ///< (n) A: the weights that are updated
  void* weight =
      nullptr;  ///< (n) T: rounded copy for the model; null where T == A (master is the weight)
  const void* grad = nullptr;  ///< (n) A
  void* m = nullptr;           ///< (n) A
  void* v = nullptr;           ///< (n) A
  int64_t n = 0;
  double weight_decay = 0;  ///< already zero where the tensor is exempt
};

/// AdamW, decoupled decay, bias-corrected (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2):
///   g = grad * grad_scale;  m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
///   w = w - lr * (m / (1-b1^t) / (sqrt(v / (1-b2^t)) + eps) + weight_decay * w)
struct AdamwArgs {
  const OptimizerSegment* segments = nullptr;
  int64_t segment_count = 0;
  double lr = 0, beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
  double bias_correction1 = 1, bias_correction2 = 1;  ///< 1 - b^t
  double grad_scale = 1;                              ///< clipping
};
KernelTable<AdamwArgs>& adamw_table();
KernelCost adamw_cost(const AdamwArgs&, Dtype);

/// sum_squares: *result = sum over segments of grad^2, in float64, by fixed runs of elements: the
/// same bits for any number of threads.
struct SumSquaresArgs {
  const OptimizerSegment* segments = nullptr;
  int64_t segment_count = 0;
  double* result = nullptr;
};
KernelTable<SumSquaresArgs>& sum_squares_table();
KernelCost sum_squares_cost(const SumSquaresArgs&, Dtype);

}  // namespace heirloom
