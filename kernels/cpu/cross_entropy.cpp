// SPDX-License-Identifier: Apache-2.0
//
// Computes     nll[i] = logsumexp(logits[i]) - logits[i, target]; dlogits = scale (softmax -
//              onehot).
// Shapes       logits (N, V) A; targets (N); nll (N) float64; dlogits (N, V) T.
// Layout       contiguous rows; a row stays in the L2 cache between its passes. dlogits may be
//              logits where T is A.
// Saved        nothing.
// Work         rows in static partitions.
// Bytes        read NV (A) + 4 N; write 8 N + NV (T) with dlogits
// FLOPs        3 NV, + 3 NV with dlogits; an exponential counts as one
// Precision    exp in float32 of x - max; blocks of 1024 exponentials in float32, their sums and the
//              logarithm in float64.
// Determinism  each row alone.
// Limits       V >= 1.
// Source       -
#include "heirloom/kernels/cross_entropy.h"

#include <cmath>
#include <cstring>

#include "kernels/cpu/vector_math.h"

namespace heirloom::cpu::HEIRLOOM_ISA {
namespace {

template <class T>
void cross_entropy(const CrossEntropyArgs& a, Stream) {
  constexpr int64_t kBlock = 1024;
  const int64_t v = a.v;
#pragma omp parallel for schedule(static) if (a.n * v > kParallelElements)
  for (int64_t i = 0; i < a.n; ++i) {
    const float* x = ptr<float>(a.logits) + i * v;
    T* dx = a.dlogits ? ptr<T>(a.dlogits) + i * v : nullptr;
    const int64_t target = a.targets[i];
    if (target < 0) {
      a.nll[i] = 0.0;
      if (dx) std::memset(dx, 0, static_cast<size_t>(v) * sizeof(T));
      continue;
    }
    float largest = x[0];
#pragma omp simd reduction(max : largest)
    for (int64_t j = 0; j < v; ++j) largest = x[j] > largest ? x[j] : largest;
    double sum = 0.0;
    for (int64_t j0 = 0; j0 < v; j0 += kBlock) {
      const int64_t j1 = j0 + kBlock < v ? j0 + kBlock : v;
      float part = 0.0f;
#pragma omp simd reduction(+ : part)
      for (int64_t j = j0; j < j1; ++j) part += exp_approx(x[j] - largest);
      sum += static_cast<double>(part);
    }
    const float target_logit = x[target];
    a.nll[i] = std::log(sum) + (static_cast<double>(largest) - static_cast<double>(target_logit));
    if (!dx) continue;
    const float factor = static_cast<float>(a.scale / sum);
#pragma omp simd
    for (int64_t j = 0; j < v; ++j) dx[j] = from_float<T>(exp_approx(x[j] - largest) * factor);
    dx[target] =
        from_float<T>(exp_approx(target_logit - largest) * factor - static_cast<float>(a.scale));
  }
}

}  // namespace

void register_cross_entropy() {
  cross_entropy_table().set(DeviceKind::kCpu, Dtype::kFloat32, cross_entropy<float>);
  cross_entropy_table().set(DeviceKind::kCpu, Dtype::kBFloat16, cross_entropy<bfloat16>);
}

}  // namespace heirloom::cpu::HEIRLOOM_ISA
