// SPDX-License-Identifier: Apache-2.0
//
// Computes     adamw: one AdamW step over a list of segments; sum_squares: the sum of grad^2 over
//              them; grad_scale: the factor that clips a gradient of that norm.
// Shapes       segments of n elements.
// Layout       contiguous runs; four elements at a time where all pointers of a segment allow.
// Saved        -
// Work         one launch for all segments: a block per run of kOptimizerRun elements, which finds
//              its segment by bisection of first_run. sum_squares: a float64 per run, and one block
//              that adds those.
// Bytes        adamw read 4 n (A), write 3 n (A) + n (T) where there is a weight copy; narrow
//              state: read n (A) + 3 n (T), write 3 n (T); sum_squares read n (A)
// FLOPs        adamw 14 n; sum_squares 2 n; grad_scale 4
// Precision    float32 arithmetic; narrow state is rounded stochastically; sum_squares in float64.
// Determinism  elementwise; runs are fixed by n, summed in a fixed order and added in one.
// Limits       2^31 - 1 runs.
// Source       Loshchilov and Hutter, arXiv 1711.05101, algorithm 2; Salmon et al., SC 2011.
#include "heirloom/kernels/optimizer.h"

#include <cfloat>
#include <type_traits>

#include "heirloom/core/rng.h"
#include "kernels/cuda/common/dtype.cuh"
#include "kernels/cuda/common/launch.cuh"
#include "kernels/cuda/common/ptx.cuh"
#include "kernels/cuda/common/reduce.cuh"
#include "kernels/cuda/common/vector.cuh"

namespace heirloom::cuda {
namespace {

constexpr int kWarp = 32, kThreads = 256, kTotalThreads = 1024;
constexpr int kWidth = 4;  // elements of one access: 16 bytes of float32, 8 of bfloat16

/// The elements of one run: [begin, end) of segment `number`.
struct Run {
  OptimizerSegment segment;
  int number;
  int64_t begin, end;
};

__device__ Run find_run(const OptimizerSegment* segments, int64_t count, int64_t run) {
  int low = 0, high = static_cast<int>(count);
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (segments[middle].first_run <= run ? low : high) = middle;
  }
  Run r;
  r.segment = segments[low];
  r.number = low;
  r.begin = (run - r.segment.first_run) * kOptimizerRun;
  r.end = r.begin + kOptimizerRun < r.segment.n ? r.begin + kOptimizerRun : r.segment.n;
  return r;
}

template <class T>
__device__ bool is_aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % (kWidth * sizeof(T)) == 0;
}

struct AdamwParams {
  const OptimizerSegment* segments;
  int64_t segment_count;
  const AdamwScalars* scalars;
  float b1, one_minus_b1, b2, one_minus_b2, eps;
};

/// One run's pointers and coefficients. State is W, of which `copy` (T) is a rounded copy.
template <class W, class T>
struct Update {
  static constexpr bool kStochastic = std::is_same_v<W, bfloat16>;

  W* w;
  W* m;
  W* v;
  const float* grad;
  T* copy;
  float b1, one_minus_b1, b2, one_minus_b2, c1, c2, eps, lr, decay, scale;
  uint64_t key;
  uint32_t number;

  /// Elements [i, i + N).
  template <int N>
  __device__ void step(int64_t i) const {
    const Pack<float, N> g = load_pack<float, N>(grad + i);
    Pack<W, N> wi = load_pack<W, N>(w + i), mi = load_pack<W, N>(m + i),
               vi = load_pack<W, N>(v + i);
#pragma unroll
    for (int e = 0; e < N; ++e) {
      const float ge = g.x[e] * scale;
      const float me = fmaf(b1, mi.x[e], one_minus_b1 * ge);
      const float ve = fmaf(b2, vi.x[e], one_minus_b2 * (ge * ge));
      const float direction = me * c1 / (sqrtf(ve * c2) + eps);
      const float we = wi.x[e] - fmaf(lr, direction, decay * wi.x[e]);
      if constexpr (kStochastic) {
        const uint64_t element = static_cast<uint64_t>(i + e);
        const auto words = philox(
            key, {static_cast<uint32_t>(element), static_cast<uint32_t>(element >> 32), number, 0});
        wi.x[e] = cut(we, words[0]);
        mi.x[e] = cut(me, words[1]);
        vi.x[e] = cut(ve, words[2]);
      } else {
        wi.x[e] = we;
        mi.x[e] = me;
        vi.x[e] = ve;
      }
    }
    store_pack<W, N>(w + i, wi);
    store_pack<W, N>(m + i, mi);
    store_pack<W, N>(v + i, vi);
    if constexpr (!kStochastic && std::is_same_v<T, bfloat16>) {
      if (copy) {
        Pack<T, N> ci;
#pragma unroll
        for (int e = 0; e < N; ++e) ci.x[e] = wi.x[e];
        store_pack<T, N>(copy + i, ci);
      }
    }
  }

  /// x as a bfloat16 can hold it, away from zero with the probability of the part cut off. NaN
  /// stays NaN.
  static __device__ float cut(float x, uint32_t word) {
    const uint32_t u = __float_as_uint(x);
    const uint32_t kept = x != x ? u | 0x400000u : u + (word >> 16);
    return __uint_as_float(kept & 0xffff0000u);
  }
};

template <class T, bool kNarrow>
__global__ void __launch_bounds__(kThreads)
    adamw_step_kernel(const __grid_constant__ AdamwParams p) {
  using W = std::conditional_t<kNarrow, T, float>;
  const AdamwScalars now = *p.scalars;
  if (now.grad_scale != now.grad_scale) return;
  const Run run = find_run(p.segments, p.segment_count, blockIdx.x);
  Update<W, T> u;
  u.w = static_cast<W*>(kNarrow ? run.segment.weight : run.segment.master);
  u.m = static_cast<W*>(run.segment.m);
  u.v = static_cast<W*>(run.segment.v);
  u.grad = static_cast<const float*>(run.segment.grad);
  u.copy = kNarrow ? nullptr : static_cast<T*>(run.segment.weight);
  u.b1 = p.b1;
  u.one_minus_b1 = p.one_minus_b1;
  u.b2 = p.b2;
  u.one_minus_b2 = p.one_minus_b2;
  u.c1 = static_cast<float>(1.0 / now.bias_correction1);
  u.c2 = static_cast<float>(1.0 / now.bias_correction2);
  u.eps = p.eps;
  u.lr = static_cast<float>(now.lr);
  u.decay = static_cast<float>(now.lr * run.segment.weight_decay);
  u.scale = static_cast<float>(now.grad_scale);
  u.key = now.rounding_key;
  u.number = static_cast<uint32_t>(run.number);

  int64_t rest = run.begin;
  if (is_aligned(u.w) && is_aligned(u.m) && is_aligned(u.v) && is_aligned(u.grad) &&
      is_aligned(u.copy)) {
    rest = run.end - (run.end - run.begin) % kWidth;
    for (int64_t i = run.begin + int64_t{threadIdx.x} * kWidth; i < rest; i += kThreads * kWidth) {
      u.template step<kWidth>(i);
    }
  }
#pragma unroll 1
  for (int64_t i = rest + threadIdx.x; i < run.end; i += kThreads) u.template step<1>(i);
}

struct SumSquaresParams {
  const OptimizerSegment* segments;
  int64_t segment_count;
  double* runs;
};

__device__ double square(float x) { return static_cast<double>(x) * static_cast<double>(x); }

__global__ void __launch_bounds__(kThreads)
    sum_squares_runs_kernel(const __grid_constant__ SumSquaresParams p) {
  DYN_SMEM(shared);
  constexpr int kBatch = 4;
  const Run run = find_run(p.segments, p.segment_count, blockIdx.x);
  const float* const grad = static_cast<const float*>(run.segment.grad);
  const int64_t packs = is_aligned(grad) ? (run.end - run.begin) / kWidth : 0;
  double sum = 0;
  for (int64_t first = threadIdx.x; first < packs; first += kBatch * kThreads) {
    Pack<float, kWidth> g[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int64_t k = first + b * kThreads;
      if (k < packs) g[b] = load_pack<float, kWidth>(grad + run.begin + k * kWidth);
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (first + b * kThreads >= packs) continue;
      sum += (square(g[b].x[0]) + square(g[b].x[1])) + (square(g[b].x[2]) + square(g[b].x[3]));
    }
  }
  for (int64_t i = run.begin + packs * kWidth + threadIdx.x; i < run.end; i += kThreads) {
    sum += square(grad[i]);
  }
  const double total = block_sum(sum, reinterpret_cast<double*>(shared));
  if (threadIdx.x == 0) p.runs[blockIdx.x] = total;
}

__global__ void __launch_bounds__(kTotalThreads)
    sum_squares_total_kernel(const double* runs, int64_t count, double* result) {
  DYN_SMEM(shared);
  double sum = 0;
#pragma unroll 4
  for (int64_t r = threadIdx.x; r < count; r += kTotalThreads) sum += runs[r];
  const double total = block_sum(sum, reinterpret_cast<double*>(shared));
  if (threadIdx.x == 0) *result = total;
}

__global__ void grad_scale_kernel(const __grid_constant__ GradScaleArgs a) {
  const double norm = sqrt(*a.sum_squares);
  *a.norm = norm;
  double scale = 1;
  if (a.clip > 0 && a.clip < norm + 1e-6) scale = a.clip / (norm + 1e-6);
  *a.grad_scale = norm <= DBL_MAX ? scale : norm - norm;  // inf - inf and NaN - NaN are NaN
}

template <class T>
void adamw(const AdamwArgs& a, Stream stream) {
  if (a.runs == 0) return;
  AdamwParams p;
  p.segments = a.segments;
  p.segment_count = a.segment_count;
  p.scalars = a.scalars;
  p.b1 = static_cast<float>(a.beta1);
  p.one_minus_b1 = static_cast<float>(1.0 - a.beta1);
  p.b2 = static_cast<float>(a.beta2);
  p.one_minus_b2 = static_cast<float>(1.0 - a.beta2);
  p.eps = static_cast<float>(a.eps);
  launch(a.narrow_state ? adamw_step_kernel<T, true> : adamw_step_kernel<T, false>,
         dim3(static_cast<unsigned>(a.runs)), dim3(kThreads), 0, stream, p);
}

void sum_squares(const SumSquaresArgs& a, Stream stream) {
  if (a.runs > 0) {
    const SumSquaresParams p{a.segments, a.segment_count, a.workspace};
    launch(sum_squares_runs_kernel, dim3(static_cast<unsigned>(a.runs)), dim3(kThreads),
           kThreads / kWarp * sizeof(double), stream, p);
  }
  launch(sum_squares_total_kernel, dim3(1), dim3(kTotalThreads),
         kTotalThreads / kWarp * sizeof(double), stream, a.workspace, a.runs, a.result);
}

void grad_scale(const GradScaleArgs& a, Stream stream) {
  launch(grad_scale_kernel, dim3(1), dim3(1), 0, stream, a);
}

}  // namespace

void register_optimizer() {
  adamw_table().set(DeviceKind::kCuda, Dtype::kFloat32, adamw<float>);
  adamw_table().set(DeviceKind::kCuda, Dtype::kBFloat16, adamw<bfloat16>);
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16}) {
    sum_squares_table().set(DeviceKind::kCuda, dtype, sum_squares);
    grad_scale_table().set(DeviceKind::kCuda, dtype, grad_scale);
  }
}

}  // namespace heirloom::cuda
