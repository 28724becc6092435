// SPDX-License-Identifier: Apache-2.0
//
// Computes     adamw: one AdamW step over a list of segments; sum_squares: the sum of grad^2 over
//              them; grad_scale: the factor that clips a gradient of that norm.
// Shapes       segments of n elements.
// Layout       contiguous runs.
// Saved        -
// Work         runs of kOptimizerRun elements, numbered through all segments, in static partitions.
// Bytes        adamw read 4 n (A), write 3 n (A) + n (T) where there is a weight copy; narrow
//              state: read n (A) + 3 n (T), write 3 n (T); sum_squares read n (A)
// FLOPs        adamw 14 n; sum_squares 2 n; grad_scale 4
// Precision    float32 arithmetic; narrow state is rounded stochastically; sum_squares in float64.
// Determinism  elementwise; runs are fixed by n and added in order.
// Limits       none.
// Source       Loshchilov and Hutter, arXiv 1711.05101, algorithm 2.
#include "heirloom/kernels/optimizer.h"

#include <cmath>

#include "kernels/cpu/philox.h"
#include "kernels/cpu/vector_math.h"

namespace heirloom::cpu::HEIRLOOM_ISA {
namespace {

/// The coefficients of one step in float32.
struct Coefficients {
  float b1, one_minus_b1, b2, one_minus_b2, c1, c2, eps, lr, decay, scale;

  Coefficients(const AdamwArgs& a, double weight_decay)
      : b1(static_cast<float>(a.beta1)),
        one_minus_b1(static_cast<float>(1.0 - a.beta1)),
        b2(static_cast<float>(a.beta2)),
        one_minus_b2(static_cast<float>(1.0 - a.beta2)),
        c1(static_cast<float>(1.0 / a.scalars->bias_correction1)),
        c2(static_cast<float>(1.0 / a.scalars->bias_correction2)),
        eps(static_cast<float>(a.eps)),
        lr(static_cast<float>(a.scalars->lr)),
        decay(static_cast<float>(a.scalars->lr * weight_decay)),
        scale(static_cast<float>(a.scalars->grad_scale)) {}

  [[gnu::always_inline]] void update(float grad, float& w, float& m, float& v) const {
    const float g = grad * scale;
    m = b1 * m + one_minus_b1 * g;
    v = b2 * v + one_minus_b2 * (g * g);
    w = w - (lr * (m * c1 / (std::sqrt(v * c2) + eps)) + decay * w);
  }
};

template <class T, bool kHasCopy>
void update_wide(const Coefficients& c, const OptimizerSegment& s, void* weights, int64_t begin,
                 int64_t end) {
  const Coefficients step = c;  // a local copy stays in registers
  float* __restrict__ w = ptr<float>(weights);
  float* __restrict__ m = ptr<float>(s.m);
  float* __restrict__ v = ptr<float>(s.v);
  const float* __restrict__ grad = ptr<float>(s.grad);
  T* __restrict__ copy = ptr<T>(s.weight);
#pragma omp simd
  for (int64_t i = begin; i < end; ++i) {
    float wi = w[i], mi = m[i], vi = v[i];
    step.update(grad[i], wi, mi, vi);
    m[i] = mi;
    v[i] = vi;
    w[i] = wi;
    if constexpr (kHasCopy) copy[i] = from_float<T>(wi);
  }
}

/// bfloat16 bits of x, upwards with the probability of the part cut off; NaN stays NaN.
[[gnu::always_inline]] inline uint16_t round_stochastically(float x, uint32_t word) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  const uint32_t kept = (u & 0x7fffffffu) > 0x7f800000u ? (u | 0x400000u) : u + (word >> 16);
  return static_cast<uint16_t>(kept >> 16);
}

void update_narrow(const Coefficients& c, const OptimizerSegment& s, uint64_t key, uint32_t segment,
                   int64_t begin, int64_t end) {
  const Coefficients step = c;
  bfloat16* __restrict__ w = ptr<bfloat16>(s.weight);
  bfloat16* __restrict__ m = ptr<bfloat16>(s.m);
  bfloat16* __restrict__ v = ptr<bfloat16>(s.v);
  const float* __restrict__ grad = ptr<float>(s.grad);
  for (int64_t i0 = begin; i0 < end; i0 += kPhiloxGroup) {
    uint32_t words[4][kPhiloxGroup];
    philox_group(key, static_cast<uint64_t>(i0), segment, words);
    const int64_t count = end - i0 < kPhiloxGroup ? end - i0 : kPhiloxGroup;
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) {
      const int64_t i = i0 + j;
      float wi = to_float(w[i]), mi = to_float(m[i]), vi = to_float(v[i]);
      step.update(grad[i], wi, mi, vi);
      w[i].bits = round_stochastically(wi, words[0][j]);
      m[i].bits = round_stochastically(mi, words[1][j]);
      v[i].bits = round_stochastically(vi, words[2][j]);
    }
  }
}

/// The segment that holds run `run`: the last that does not begin after it.
int64_t segment_of_run(const OptimizerSegment* segments, int64_t count, int64_t run) {
  int64_t low = 0, high = count;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (segments[middle].first_run <= run ? low : high) = middle;
  }
  return low;
}

struct Run {
  const OptimizerSegment& segment;
  int64_t number, begin, end;  // of the segment, of its elements

  Run(const OptimizerSegment* segments, int64_t count, int64_t run)
      : Run(segments, segment_of_run(segments, count, run), run, 0) {}

 private:
  Run(const OptimizerSegment* segments, int64_t k, int64_t run, int)
      : segment(segments[k]), number(k), begin((run - segment.first_run) * kOptimizerRun) {
    end = begin + kOptimizerRun < segment.n ? begin + kOptimizerRun : segment.n;
  }
};

template <class T>
void adamw(const AdamwArgs& a, Stream) {
  if (std::isnan(a.scalars->grad_scale)) return;
#pragma omp parallel for schedule(static) if (a.runs > 1)
  for (int64_t r = 0; r < a.runs; ++r) {
    const Run run(a.segments, a.segment_count, r);
    const OptimizerSegment& s = run.segment;
    const Coefficients c(a, s.weight_decay);
    if (a.narrow_state) {
      if constexpr (sizeof(T) == 4) {
        update_wide<T, false>(c, s, s.weight, run.begin, run.end);
      } else {
        update_narrow(c, s, a.scalars->rounding_key, static_cast<uint32_t>(run.number), run.begin,
                      run.end);
      }
    } else if (s.weight) {
      update_wide<T, true>(c, s, s.master, run.begin, run.end);
    } else {
      update_wide<T, false>(c, s, s.master, run.begin, run.end);
    }
  }
}

void sum_squares(const SumSquaresArgs& a, Stream) {
#pragma omp parallel for schedule(static) if (a.runs > 1)
  for (int64_t r = 0; r < a.runs; ++r) {
    const Run run(a.segments, a.segment_count, r);
    const float* grad = ptr<float>(run.segment.grad);
    double sum = 0.0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = run.begin; i < run.end; ++i) {
      sum += static_cast<double>(grad[i]) * static_cast<double>(grad[i]);
    }
    a.workspace[r] = sum;
  }
  double total = 0.0;
  for (int64_t r = 0; r < a.runs; ++r) total += a.workspace[r];
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
