// SPDX-License-Identifier: Apache-2.0
//
// Computes     nll[i] = logsumexp(logits[i]) - logits[i, target]; dlogits = scale (softmax -
//              onehot).
// Shapes       logits (N, V) A; targets (N); nll (N) float64; dlogits (N, V) T.
// Layout       contiguous rows of any length: 16-byte accesses from the first whole sector of a row
//              on. dlogits may be logits where T is A.
// Saved        nothing.
// Work         a block per row. The first pass keeps a running maximum and the sum of exponentials
//              below it, and leaves the first 24576 logits in shared memory (96 KB: two blocks on a
//              multiprocessor of sm_90, one on any other); the second writes the gradient. What a
//              longer row has beyond that is read again, from the L2 cache.
// Bytes        read NV (A) + 4 N; write 8 N + NV (T) with dlogits
// FLOPs        3 NV, + 3 NV with dlogits; an exponential counts as one
// Precision    exponentials of x - max in float32; a thread's sum in float32, the row's and the
//              logarithm in float64.
// Determinism  each row alone; the order of its sum is fixed by V and by i V modulo 16.
// Limits       V >= 1.
// Source       Milakov and Gimelshein, arXiv 1805.02867 (one pass for maximum and sum).
#include "heirloom/kernels/cross_entropy.h"

#include <algorithm>
#include <cfloat>

#include "kernels/cuda/common/dtype.cuh"
#include "kernels/cuda/common/launch.cuh"
#include "kernels/cuda/common/ptx.cuh"
#include "kernels/cuda/common/reduce.cuh"
#include "kernels/cuda/common/vector.cuh"

namespace heirloom::cuda {
namespace {

constexpr int kMaxThreads = 512;
constexpr float kLog2E = 1.44269504f;
constexpr int kSector = 16;           // elements: 32 bytes of bfloat16, 64 of float32
constexpr int kBatch = 4;             // accesses of a thread on their way at a time
constexpr int kKeptLogits = 96 << 8;  // 96 KB
constexpr int kScratchBytes = kMaxThreads / 32 * 8;

struct CrossEntropyParams {
  const float* logits;
  const int32_t* targets;
  double* nll;
  void* dlogits;
  int v;
  int kept;  ///< accesses of kWidth logits that stay in shared memory
  double scale;
};

/// Sum of e^(x - max) over what has been seen. NaN and +infinity make the sum NaN.
struct RunningSum {
  float max = -FLT_MAX, sum = 0;

  template <int kWidth>
  __device__ void add(const Pack<float, kWidth>& y) {
    float largest = y.x[0];
#pragma unroll
    for (int e = 1; e < kWidth; ++e) largest = fmaxf(largest, y.x[e]);
    if (largest > max) {
      sum *= exp2_approx((max - largest) * kLog2E);
      max = largest;
    }
    float part = 0;
#pragma unroll
    for (int e = 0; e < kWidth; ++e) part += exp2_approx((y.x[e] - max) * kLog2E);
    sum += part;
  }
};

/// A shared slot of one access.
template <int kWidth>
__device__ Pack<float, kWidth> read_kept(const float* row, int k) {
  if constexpr (kWidth == 4) {
    const float4 y = reinterpret_cast<const float4*>(row)[k];
    return {{y.x, y.y, y.z, y.w}};
  } else {
    return {{row[k]}};
  }
}
template <int kWidth>
__device__ void keep(float* row, int k, const Pack<float, kWidth>& y) {
  if constexpr (kWidth == 4) {
    reinterpret_cast<float4*>(row)[k] = make_float4(y.x[0], y.x[1], y.x[2], y.x[3]);
  } else {
    row[k] = y.x[0];
  }
}

/// Logits from `head` on are read kWidth at a time; the few before and behind have a thread each.
template <class T, int kWidth, bool kGradient>
__global__ void __launch_bounds__(kMaxThreads)
    cross_entropy_row_kernel(const __grid_constant__ CrossEntropyParams p) {
  DYN_SMEM(shared);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int64_t i = blockIdx.x, begin = i * p.v;
  const float* const x = p.logits + begin;
  T* const dx = kGradient ? static_cast<T*>(p.dlogits) + begin : nullptr;
  const int target = p.targets[i];
  const int ahead = kWidth == 1 ? 0 : static_cast<int>(-begin & (kSector - 1));
  const int head = ahead < p.v ? ahead : p.v;
  const int packs = (p.v - head) / kWidth, edges = p.v - packs * kWidth;
  const int edge = thread < head ? thread : packs * kWidth + thread;  // of threads below `edges`

  if (target < 0) {
    if (thread == 0) p.nll[i] = 0;
    if constexpr (kGradient) {
      for (int k = thread; k < packs; k += threads) {
        store_pack<T, kWidth>(dx + head + k * kWidth, Pack<T, kWidth>{});
      }
      if (thread < edges) store(dx, edge, 0.0f);
    }
    return;
  }

  float* const row = reinterpret_cast<float*>(shared + kScratchBytes);
  const float target_logit = thread == 0 ? x[target] : 0.0f;
  RunningSum own;
  for (int first = thread; first < packs; first += kBatch * threads) {
    Pack<float, kWidth> y[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int k = first + b * threads;
      if (k < packs) y[b] = load_pack<float, kWidth>(x + head + k * kWidth);
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int k = first + b * threads;
      if (k >= packs) continue;
      if (kGradient && k < p.kept) keep(row, k, y[b]);  // its own thread reads it again
      own.add(y[b]);
    }
  }
  Pack<float, 1> edge_logit{};
  if (thread < edges) {
    edge_logit.x[0] = x[edge];
    own.add(edge_logit);
  }

  const float max = block_max(own.max, reinterpret_cast<float*>(shared));
  const double sum = block_sum(static_cast<double>(own.sum * exp2_approx((own.max - max) * kLog2E)),
                               reinterpret_cast<double*>(shared));
  if (thread == 0) {
    p.nll[i] = log(sum) + (static_cast<double>(max) - static_cast<double>(target_logit));
  }
  if constexpr (kGradient) {
    const float factor = static_cast<float>(p.scale / sum), scale = static_cast<float>(p.scale);
    const auto gradient = [&](float logit, int j) {
      return exp2_approx((logit - max) * kLog2E) * factor - (j == target ? scale : 0.0f);
    };
    const auto write = [&](const Pack<float, kWidth>& y, int k) {
      Pack<T, kWidth> g;
#pragma unroll
      for (int e = 0; e < kWidth; ++e) g.x[e] = gradient(y.x[e], head + k * kWidth + e);
      store_pack<T, kWidth>(dx + head + k * kWidth, g);
    };
    const int kept = packs < p.kept ? packs : p.kept;
    int k = thread;
    for (; k < kept; k += threads) write(read_kept<kWidth>(row, k), k);
    for (; k < packs; k += kBatch * threads) {
      Pack<float, kWidth> y[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int at = k + b * threads;
        if (at < packs) y[b] = load_pack<float, kWidth>(x + head + at * kWidth);
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        if (k + b * threads < packs) write(y[b], k + b * threads);
      }
    }
    if (thread < edges) store(dx, edge, gradient(edge_logit.x[0], edge));
  }
}

template <class T>
void cross_entropy(const CrossEntropyArgs& a, Stream stream) {
  if (a.n == 0) return;
  const bool aligned = vector_width<float>({a.logits}, {}) == 4 &&
                       (!a.dlogits || vector_width<T>({a.dlogits}, {}) >= 4);
  const int width = aligned ? 4 : 1;
  CrossEntropyParams p;
  p.logits = static_cast<const float*>(a.logits);
  p.targets = a.targets;
  p.nll = a.nll;
  p.dlogits = a.dlogits;
  p.v = static_cast<int>(a.v);
  p.kept = a.dlogits ? std::min(p.v, kKeptLogits) / width : 0;
  p.scale = a.scale;
  const int threads = p.v >= 4096 ? kMaxThreads : p.v >= 1024 ? 256 : 128;
  const auto kernel =
      a.dlogits
          ? (aligned ? cross_entropy_row_kernel<T, 4, true> : cross_entropy_row_kernel<T, 1, true>)
          : (aligned ? cross_entropy_row_kernel<T, 4, false>
                     : cross_entropy_row_kernel<T, 1, false>);
  launch(kernel, dim3(static_cast<unsigned>(a.n)), dim3(static_cast<unsigned>(threads)),
         static_cast<size_t>(kScratchBytes + p.kept * width * 4), stream, p);
}

}  // namespace

void register_cross_entropy() {
  cross_entropy_table().set(DeviceKind::kCuda, Dtype::kFloat32, cross_entropy<float>);
  cross_entropy_table().set(DeviceKind::kCuda, Dtype::kBFloat16, cross_entropy<bfloat16>);
}

}  // namespace heirloom::cuda
