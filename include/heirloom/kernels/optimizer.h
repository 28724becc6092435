// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "heirloom/kernels/kernel_table.h"

namespace heirloom {

/// One contiguous run of parameters. All pointers are in the device's memory.
struct OptimizerSegment {
  void* master = nullptr;      ///< (n) A: the weights that are updated; null with narrow state
  void* weight = nullptr;      ///< (n) T: rounded copy for the model; null where T == A
  const void* grad = nullptr;  ///< (n) A
  void* m = nullptr;           ///< (n) A; T with narrow state
  void* v = nullptr;           ///< (n) A; T with narrow state
  int64_t n = 0;
  double weight_decay = 0;  ///< already zero where the tensor is exempt
  int64_t first_run = 0;    ///< number of its first run of kOptimizerRun elements (number_runs)
};

/// Elements that one block (CUDA) or one turn of a thread (CPU) updates or sums.
inline constexpr int64_t kOptimizerRun = 16384;
/// Numbers the runs of all segments in order; returns how many there are.
int64_t number_runs(OptimizerSegment* segments, int64_t count);

/// What changes from step to step, in the device's memory.
struct AdamwScalars {
  double lr = 0;
  double bias_correction1 = 1, bias_correction2 = 1;  ///< 1 - b^t
  double grad_scale = 1;      ///< clipping; NaN: the step is not taken, nothing is changed
  uint64_t rounding_key = 0;  ///< of (seed, step): stochastic rounding
};

/// AdamW, decoupled decay, bias-corrected (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2):
///   g = grad * grad_scale;  m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
///   w = w - lr * (m / (1-b1^t) / (sqrt(v / (1-b2^t)) + eps) + weight_decay * w)
/// With narrow state there is no master copy: w, m and v are T (bfloat16), read, updated in A and
/// rounded stochastically: upwards with the probability of the part cut off, so that steps smaller
/// than half a unit in the last place are not lost. Element e of segment k takes word 0 (w), 1 (m)
/// or 2 (v) of philox(rounding_key, {e low, e high, k, 0}) and adds its upper 16 bits to the bits
/// of the float before the lower 16 are cut.
struct AdamwArgs {
  const OptimizerSegment* segments = nullptr;  ///< in the device's memory
  int64_t segment_count = 0;
  int64_t runs = 0;  ///< number_runs of the segments
  const AdamwScalars* scalars = nullptr;
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
  bool narrow_state = false;
};
KernelTable<AdamwArgs>& adamw_table();
/// Reads the segments: host memory.
KernelCost adamw_cost(const AdamwArgs&, Dtype);

/// sum_squares: *result = sum over segments of grad^2, in float64, by fixed runs of elements: the
/// same bits for any number of threads.
struct SumSquaresArgs {
  const OptimizerSegment* segments = nullptr;  ///< in the device's memory
  int64_t segment_count = 0;
  int64_t runs = 0;             ///< number_runs of the segments
  double* workspace = nullptr;  ///< (runs)
  double* result = nullptr;
};
KernelTable<SumSquaresArgs>& sum_squares_table();
KernelCost sum_squares_cost(const SumSquaresArgs&, Dtype);

/// grad_scale: clipping by the global norm, without a look from the host.
///   norm = sqrt(sum_squares);  grad_scale = clip > 0 ? min(1, clip / (norm + 1e-6)) : 1
/// A norm that is not finite gives a grad_scale of NaN, which adamw does not follow.
struct GradScaleArgs {
  const double* sum_squares = nullptr;
  double clip = 0;
  double* norm = nullptr;
  double* grad_scale = nullptr;
};
KernelTable<GradScaleArgs>& grad_scale_table();
KernelCost grad_scale_cost(const GradScaleArgs&, Dtype);

}  // namespace heirloom
