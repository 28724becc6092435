// SPDX-License-Identifier: Apache-2.0
//
// Computes     adamw: one AdamW step over a list of segments; sum_squares: the sum of grad^2 over
//              them.
// Shapes       segments of n elements.
// Layout       contiguous runs.
// Saved        -
// Work         static partitions of each segment; sum_squares in runs of 16384 elements.
// Bytes        adamw read 4 n (A), write 3 n (A) + n (T) where there is a weight copy; sum_squares
//              read n (A)
// FLOPs        adamw 14 n; sum_squares 2 n
// Precision    float32 state; sum_squares in float64.
// Determinism  elementwise; runs are fixed by n and added in order.
// Limits       none.
// Source       Loshchilov and Hutter, arXiv 1711.05101, algorithm 2.
#include "heirloom/kernels/optimizer.h"

#include <cmath>

#include "kernels/cpu/vector_math.h"

namespace heirloom::cpu::HEIRLOOM_ISA {
namespace {

constexpr int64_t kRun = 16384;

template <class T, bool kHasCopy>
void adamw_run(const AdamwArgs& a, const OptimizerSegment& s, int64_t begin, int64_t end) {
  const float b1 = static_cast<float>(a.beta1), one_minus_b1 = static_cast<float>(1.0 - a.beta1);
  const float b2 = static_cast<float>(a.beta2), one_minus_b2 = static_cast<float>(1.0 - a.beta2);
  const float c1 = static_cast<float>(1.0 / a.bias_correction1);
  const float c2 = static_cast<float>(1.0 / a.bias_correction2);
  const float eps = static_cast<float>(a.eps), lr = static_cast<float>(a.lr);
  const float decay = static_cast<float>(a.lr * s.weight_decay);
  const float scale = static_cast<float>(a.grad_scale);
  float* __restrict__ w = ptr<float>(s.master);
  float* __restrict__ m = ptr<float>(s.m);
  float* __restrict__ v = ptr<float>(s.v);
  const float* __restrict__ grad = ptr<float>(s.grad);
  T* __restrict__ copy = ptr<T>(s.weight);
#pragma omp simd
  for (int64_t i = begin; i < end; ++i) {
    const float g = grad[i] * scale;
    const float mi = b1 * m[i] + one_minus_b1 * g;
    const float vi = b2 * v[i] + one_minus_b2 * (g * g);
    const float updated = w[i] - (lr * (mi * c1 / (std::sqrt(vi * c2) + eps)) + decay * w[i]);
    m[i] = mi;
    v[i] = vi;
    w[i] = updated;
    if constexpr (kHasCopy) copy[i] = from_float<T>(updated);
  }
}

template <class T>
void adamw(const AdamwArgs& a, Stream) {
#pragma omp parallel
  for (int64_t k = 0; k < a.segment_count; ++k) {
    const OptimizerSegment& s = a.segments[k];
#pragma omp for schedule(static) nowait
    for (int64_t begin = 0; begin < s.n; begin += kRun) {
      const int64_t end = begin + kRun < s.n ? begin + kRun : s.n;
      s.weight ? adamw_run<T, true>(a, s, begin, end) : adamw_run<T, false>(a, s, begin, end);
    }
  }
}

void sum_squares(const SumSquaresArgs& a, Stream) {
  constexpr int64_t kGroup = 1024;  // runs whose sums are held at a time
  double total = 0.0;
  for (int64_t k = 0; k < a.segment_count; ++k) {
    const int64_t n = a.segments[k].n, runs = (n + kRun - 1) / kRun;
    const float* grad = ptr<float>(a.segments[k].grad);
    for (int64_t first = 0; first < runs; first += kGroup) {
      double sums[kGroup];
      const int64_t count = runs - first < kGroup ? runs - first : kGroup;
#pragma omp parallel for schedule(static) if (count > 1)
      for (int64_t r = 0; r < count; ++r) {
        const int64_t begin = (first + r) * kRun, end = begin + kRun < n ? begin + kRun : n;
        double sum = 0.0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = begin; i < end; ++i) {
          sum += static_cast<double>(grad[i]) * static_cast<double>(grad[i]);
        }
        sums[r] = sum;
      }
      for (int64_t r = 0; r < count; ++r) total += sums[r];
    }
  }
  *a.result = total;
}

}  // namespace

void register_optimizer() {
  adamw_table().set(DeviceKind::kCpu, Dtype::kFloat32, adamw<float>);
  adamw_table().set(DeviceKind::kCpu, Dtype::kBFloat16, adamw<bfloat16>);
  sum_squares_table().set(DeviceKind::kCpu, Dtype::kFloat32, sum_squares);
  sum_squares_table().set(DeviceKind::kCpu, Dtype::kBFloat16, sum_squares);
}

}  // namespace heirloom::cpu::HEIRLOOM_ISA
