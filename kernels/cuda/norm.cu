// SPDX-License-Identifier: Apache-2.0
//
// Computes     norm: x = residual + delta and RMSNorm or LayerNorm of x; backward: dx and the parameters' gradients.
// Shapes       rows (N, C); weight, bias (C); mean, rstd (N).
// Layout       contiguous rows; 16-byte accesses where pointers and C allow, else 4 bytes or single elements.
// Saved        rstd, and mean for LayerNorm.
// Work         a row belongs to one warp (C up to 1024 bfloat16, 512 float32; in backward to two beyond half of that) or to
//              eight (C up to 8192, 4096) and stays in registers; longer rows are read again for every pass over them.
//              Backward: a block takes a chunk of rows, each
//              thread keeps the sums of its columns, the chunks are added in order by a second kernel.
// Bytes        forward reads NC (+ NC of delta) and the parameters, writes NC (+ NC of x) and the statistics; backward reads
//              2 NC (+ NC of dresidual) and the statistics, writes NC; the partial sums, reduction_chunks(n) x C (A), 2 C with
//              dbias, go both ways beside it.
// FLOPs        forward RMSNorm 4 NC, LayerNorm 7 NC, + NC with delta; backward 10 and 13 NC.
// Precision    float32; x is rounded to T before it is normalised; LayerNorm's variance is of differences from the mean.
// Determinism  sums over a row: lanes, then warps, in one order; over rows: chunks fixed by N, added in order.
// Limits       none.
// Source       Zhang and Sennrich, arXiv 1910.07467; Ba, Kiros and Hinton, arXiv 1607.06450.
#include "heirloom/kernels/norm.h"

#include "kernels/cuda/common/column_sums.cuh"
#include "kernels/cuda/common/reduce.cuh"

namespace heirloom::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kThreads = 256;  // of a block: eight warps

/// Sums of two values over the threads of a row: one warp, or kRowWarps of the block's eight, all of which take part.
/// `scratch` (2 x 8) is used by the latter.
template <int kRowWarps>
__device__ __forceinline__ float2 row_sums(float a, float b, float* scratch) {
  a = warp_sum(a);
  b = warp_sum(b);
  if constexpr (kRowWarps == 1) return make_float2(a, b);
  const int warp = static_cast<int>(threadIdx.x) / kWarp % kRowWarps;
  scratch += static_cast<int>(threadIdx.x) / (kWarp * kRowWarps) * 2 * kRowWarps;
  __syncthreads();  // the sums before these have been read
  if (threadIdx.x % kWarp == 0) {
    scratch[warp] = a;
    scratch[kRowWarps + warp] = b;
  }
  __syncthreads();
  float2 total = make_float2(scratch[0], scratch[kRowWarps]);
#pragma unroll
  for (int w = 1; w < kRowWarps; ++w) {
    total.x += scratch[w];
    total.y += scratch[kRowWarps + w];
  }
  return total;
}
constexpr size_t kScratchBytes = 2 * (kThreads / kWarp) * sizeof(float);

struct NormForwardParams {
  NormForwardArgs a;
};

/// kPacks runs of kWidth columns per thread hold the row; kPacks 0: the row is read again for every pass.
template <class T, int kWidth, int kPacks, int kRowWarps>
__global__ void __launch_bounds__(kThreads)
    norm_forward_row_kernel(const __grid_constant__ NormForwardParams params) {
  DYN_SMEM(memory);
  float* scratch = reinterpret_cast<float*>(memory);
  const NormForwardArgs& p = params.a;
  constexpr int kRows = kThreads / kWarp / kRowWarps, kRowThreads = kRowWarps * kWarp;
  const int thread = static_cast<int>(threadIdx.x) % kRowThreads;
  const int64_t i = int64_t{blockIdx.x} * kRows + static_cast<int>(threadIdx.x) / kRowThreads;
  if (i >= p.n) return;
  const bool layer = p.kind == NormKind::kLayer;
  const float width = static_cast<float>(p.c);
  const T* residual = static_cast<const T*>(p.residual) + i * p.c;
  const T* delta = p.delta ? static_cast<const T*>(p.delta) + i * p.c : nullptr;
  T* x_out = static_cast<T*>(p.x_out) + i * p.c;
  T* y = static_cast<T*>(p.y) + i * p.c;
  constexpr int64_t kStep = int64_t{kRowThreads} * kWidth;

  const auto load_x = [&](int64_t j) {
    Pack<T, kWidth> x = load_pack<T, kWidth>(residual + j);
    if (delta) {
      const Pack<T, kWidth> d = load_pack<T, kWidth>(delta + j);
#pragma unroll
      for (int e = 0; e < kWidth; ++e) x.x[e] = rounded<T>(x.x[e] + d.x[e]);
      store_pack<T, kWidth>(x_out + j, x);
    }
    return x;
  };
  const auto normalise = [&](int64_t j, const Pack<T, kWidth>& x, float mean, float rstd) {
    const Pack<T, kWidth> w = load_pack<T, kWidth>(static_cast<const T*>(p.weight) + j);
    Pack<T, kWidth> out;
#pragma unroll
    for (int e = 0; e < kWidth; ++e) out.x[e] = (x.x[e] - mean) * rstd * w.x[e];
    if (p.bias) {
      const Pack<T, kWidth> b = load_pack<T, kWidth>(static_cast<const T*>(p.bias) + j);
#pragma unroll
      for (int e = 0; e < kWidth; ++e) out.x[e] += b.x[e];
    }
    store_pack<T, kWidth>(y + j, out);
  };
  const auto finish = [&](float mean, float squares) {
    const float rstd = 1.0f / sqrtf(squares / width + static_cast<float>(p.eps));
    if (thread == 0) {
      if (layer && p.mean) static_cast<float*>(p.mean)[i] = mean;
      if (p.rstd) static_cast<float*>(p.rstd)[i] = rstd;
    }
    return rstd;
  };

  const int64_t first = int64_t{thread} * kWidth;
  if constexpr (kPacks > 0) {
    Pack<T, kWidth> x[kPacks] = {};
    float sum = 0;
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      if (first + k * kStep < p.c) {
        x[k] = load_x(first + k * kStep);
#pragma unroll
        for (int e = 0; e < kWidth; ++e) sum += x[k].x[e];
      }
    }
    const float mean = layer ? row_sums<kRowWarps>(sum, 0, scratch).x / width : 0.0f;
    float squares = 0;
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      if (first + k * kStep < p.c) {
#pragma unroll
        for (int e = 0; e < kWidth; ++e) squares += (x[k].x[e] - mean) * (x[k].x[e] - mean);
      }
    }
    const float rstd = finish(mean, row_sums<kRowWarps>(squares, 0, scratch).x);
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      if (first + k * kStep < p.c) normalise(first + k * kStep, x[k], mean, rstd);
    }
  } else {
    // Each thread reads back what it alone wrote.
    float sum = 0;
    for (int64_t j = first; j < p.c; j += kStep) {
      const Pack<T, kWidth> x = load_x(j);
#pragma unroll
      for (int e = 0; e < kWidth; ++e) sum += x.x[e];
    }
    const T* again = delta ? x_out : residual;
    const float mean = layer ? row_sums<kRowWarps>(sum, 0, scratch).x / width : 0.0f;
    float squares = 0;
    for (int64_t j = first; j < p.c; j += kStep) {
      const Pack<T, kWidth> x = load_pack<T, kWidth>(again + j);
#pragma unroll
      for (int e = 0; e < kWidth; ++e) squares += (x.x[e] - mean) * (x.x[e] - mean);
    }
    const float rstd = finish(mean, row_sums<kRowWarps>(squares, 0, scratch).x);
    for (int64_t j = first; j < p.c; j += kStep) {
      normalise(j, load_pack<T, kWidth>(again + j), mean, rstd);
    }
  }
}

struct NormBackwardParams {
  NormBackwardArgs a;
  int64_t rows_per_chunk;
};

/// Floats from one element of a thread to its next in the block's sums: 32 neighbouring columns, which are kWidth elements of
/// 32 / kWidth threads, have a bank each.
constexpr int sums_stride(int width, int row_threads) {
  return row_threads + (width > 1 ? 32 / width : 0);
}

/// Partial sums of a chunk: [chunk][dweight, dbias][C].
template <class T, int kWidth, int kPacks, int kRowWarps>
__global__ void __launch_bounds__(kThreads)
    norm_backward_chunk_kernel(const __grid_constant__ NormBackwardParams params) {
  DYN_SMEM(memory);
  float* scratch = reinterpret_cast<float*>(memory);
  const NormBackwardArgs& p = params.a;
  constexpr int kRows = kThreads / kWarp / kRowWarps, kRowThreads = kRowWarps * kWarp;
  constexpr int64_t kStep = int64_t{kRowThreads} * kWidth;
  const int thread = static_cast<int>(threadIdx.x) % kRowThreads;
  const int group = static_cast<int>(threadIdx.x) / kRowThreads;
  const int64_t first = int64_t{thread} * kWidth;
  const int64_t begin = int64_t{blockIdx.x} * params.rows_per_chunk;
  const int64_t end = begin + params.rows_per_chunk < p.n ? begin + params.rows_per_chunk : p.n;
  const bool layer = p.kind == NormKind::kLayer;
  const float width = static_cast<float>(p.c);

  float dweight[kPacks][kWidth] = {}, dbias[kPacks][kWidth] = {};
  // Read for every row, from the L1 cache: registers are for the row and its sums.
  const auto weight = [&](int k) {
    return load_pack<T, kWidth>(static_cast<const T*>(p.weight) + first + k * kStep);
  };
  for (int64_t base = begin; base < end; base += kRows) {
    const bool valid = base + group < end;
    const int64_t i = valid ? base + group : begin, columns = valid ? p.c : 0;
    const T* dy_row = static_cast<const T*>(p.dy) + i * p.c;
    const T* x_row = static_cast<const T*>(p.x) + i * p.c;
    const T* past_row = p.dresidual ? static_cast<const T*>(p.dresidual) + i * p.c : nullptr;
    T* dx_row = static_cast<T*>(p.dx) + i * p.c;
    const float rstd = static_cast<const float*>(p.rstd)[i];
    const float mean = layer ? static_cast<const float*>(p.mean)[i] : 0.0f;
    Pack<T, kWidth> dy[kPacks], x[kPacks], past[kPacks];
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      const int64_t j = first + k * kStep;
      if (j < columns) {
        dy[k] = load_pack<T, kWidth>(dy_row + j);
        x[k] = load_pack<T, kWidth>(x_row + j);
        if (past_row) past[k] = load_pack<T, kWidth>(past_row + j);
      }
    }
    float sum_g = 0, sum_gx = 0;
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      if (first + k * kStep < columns) {
        const Pack<T, kWidth> w = weight(k);
#pragma unroll
        for (int e = 0; e < kWidth; ++e) {
          const float normalised = (x[k].x[e] - mean) * rstd, g = dy[k].x[e] * w.x[e];
          x[k].x[e] = normalised;
          sum_g += g;
          sum_gx += g * normalised;
          dweight[k][e] += dy[k].x[e] * normalised;
          dbias[k][e] += dy[k].x[e];
        }
      }
    }
    const float2 sums = row_sums<kRowWarps>(sum_g, sum_gx, scratch);
    const float mean_g = layer ? sums.x / width : 0.0f, mean_gx = sums.y / width;
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      const int64_t j = first + k * kStep;
      if (j < columns) {
        const Pack<T, kWidth> w = weight(k);
        Pack<T, kWidth> dx;
#pragma unroll
        for (int e = 0; e < kWidth; ++e) {
          const float g = dy[k].x[e] * w.x[e];
          dx.x[e] = (past_row ? past[k].x[e] : 0.0f) + rstd * (g - mean_g - x[k].x[e] * mean_gx);
        }
        store_pack<T, kWidth>(dx_row + j, dx);
      }
    }
  }
  // The groups' sums, added in their order: [group][column] of one parameter at a time.
  float* partial = static_cast<float*>(p.workspace) + int64_t{blockIdx.x} * 2 * p.c;
  // Element e of pack k of a thread stands at (k kWidth + e) kStride + thread: neighbours in neighbouring banks, and
  // neighbouring columns in different ones.
  constexpr int kColumns = kPacks * kWidth * sums_stride(kWidth, kRowThreads);
  constexpr int kStride = sums_stride(kWidth, kRowThreads);
  for (int which = 0; which < (p.dbias ? 2 : 1); ++which) {
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        scratch[group * kColumns + (k * kWidth + e) * kStride + thread] =
            which == 0 ? dweight[k][e] : dbias[k][e];
      }
    }
    __syncthreads();
    for (int j = static_cast<int>(threadIdx.x); j < p.c; j += kThreads) {
      const int run = j / kWidth, e = j % kWidth, k = run / kRowThreads, t = run % kRowThreads;
      const int at = (k * kWidth + e) * kStride + t;
      float sum = 0;
      for (int g = 0; g < kRows; ++g) sum += scratch[g * kColumns + at];
      partial[which * p.c + j] = sum;
    }
  }
}

/// Rows too long for registers: the whole block on one row, which is read twice.
template <class T>
__global__ void __launch_bounds__(kThreads)
    norm_backward_long_kernel(const __grid_constant__ NormBackwardParams params) {
  DYN_SMEM(memory);
  float* scratch = reinterpret_cast<float*>(memory);
  const NormBackwardArgs& p = params.a;
  const int64_t begin = int64_t{blockIdx.x} * params.rows_per_chunk;
  const int64_t end = begin + params.rows_per_chunk < p.n ? begin + params.rows_per_chunk : p.n;
  const bool layer = p.kind == NormKind::kLayer;
  const float width = static_cast<float>(p.c);
  const T* weight = static_cast<const T*>(p.weight);
  float* partial = static_cast<float*>(p.workspace) + int64_t{blockIdx.x} * 2 * p.c;
  for (int64_t j = threadIdx.x; j < p.c; j += kThreads) {
    partial[j] = 0;
    if (p.dbias) partial[p.c + j] = 0;
  }
  for (int64_t i = begin; i < end; ++i) {
    const T* dy = static_cast<const T*>(p.dy) + i * p.c;
    const T* x = static_cast<const T*>(p.x) + i * p.c;
    const T* past = p.dresidual ? static_cast<const T*>(p.dresidual) + i * p.c : nullptr;
    T* dx = static_cast<T*>(p.dx) + i * p.c;
    const float rstd = static_cast<const float*>(p.rstd)[i];
    const float mean = layer ? static_cast<const float*>(p.mean)[i] : 0.0f;
    float sum_g = 0, sum_gx = 0;
    for (int64_t j = threadIdx.x; j < p.c; j += kThreads) {
      const float d = load(dy, j), normalised = (load(x, j) - mean) * rstd, g = d * load(weight, j);
      sum_g += g;
      sum_gx += g * normalised;
      partial[j] += d * normalised;
      if (p.dbias) partial[p.c + j] += d;
    }
    const float2 sums = row_sums<kThreads / kWarp>(sum_g, sum_gx, scratch);
    const float mean_g = layer ? sums.x / width : 0.0f, mean_gx = sums.y / width;
    for (int64_t j = threadIdx.x; j < p.c; j += kThreads) {
      const float g = load(dy, j) * load(weight, j), normalised = (load(x, j) - mean) * rstd;
      store(dx, j, (past ? load(past, j) : 0.0f) + rstd * (g - mean_g - normalised * mean_gx));
    }
  }
}

struct NormEndParams {
  const float* partial;  ///< (chunks, 2, C)
  float* dweight;
  float* dbias;
  int64_t chunks, c;
};

__global__ void __launch_bounds__(kColumnSumColumns* kColumnSumSlices)
    norm_backward_end_kernel(const __grid_constant__ NormEndParams p) {
  const bool bias = blockIdx.y == 1;
  add_column_sums(p.partial + (bias ? p.c : 0), 2 * p.c, p.chunks, p.c, bias ? p.dbias : p.dweight,
                  [](int64_t i) { return i; });
}

template <class T, int kWidth, int kPacks, int kRowWarps>
void launch_forward(const NormForwardArgs& a, Stream stream) {
  constexpr int kRows = kThreads / kWarp / kRowWarps;
  launch(norm_forward_row_kernel<T, kWidth, kPacks, kRowWarps>,
         dim3(static_cast<unsigned>((a.n + kRows - 1) / kRows)), dim3(kThreads), kScratchBytes,
         stream, NormForwardParams{a});
}

template <class T, int kWidth>
void forward_width(const NormForwardArgs& a, Stream stream) {
  const int64_t packs = (a.c + kWarp * kWidth - 1) / (kWarp * kWidth);  // per lane of one warp
  if (packs <= 1) return launch_forward<T, kWidth, 1, 1>(a, stream);
  if (packs <= 2) return launch_forward<T, kWidth, 2, 1>(a, stream);
  if (packs <= 4) return launch_forward<T, kWidth, 4, 1>(a, stream);
  if (packs <= 8) return launch_forward<T, kWidth, 1, 8>(a, stream);
  if (packs <= 16) return launch_forward<T, kWidth, 2, 8>(a, stream);
  if (packs <= 32) return launch_forward<T, kWidth, 4, 8>(a, stream);
  launch_forward<T, kWidth, 0, 8>(a, stream);
}

template <class T>
void norm_forward(const NormForwardArgs& a, Stream stream) {
  if (a.n == 0 || a.c == 0) return;
  constexpr int kWidest = 16 / static_cast<int>(sizeof(T));
  const int width = vector_width<T>({a.residual, a.delta, a.x_out, a.weight, a.bias, a.y}, {a.c});
  if (width == kWidest) return forward_width<T, kWidest>(a, stream);
  if (width >= 2) return forward_width<T, 2>(a, stream);
  forward_width<T, 1>(a, stream);
}

template <class T, int kWidth, int kPacks, int kRowWarps>
void launch_backward(const NormBackwardParams& p, unsigned chunks, Stream stream) {
  constexpr size_t kSums = size_t{kThreads / kWarp / kRowWarps} * kPacks * kWidth *
                           sums_stride(kWidth, kRowWarps * kWarp) * sizeof(float);
  launch(norm_backward_chunk_kernel<T, kWidth, kPacks, kRowWarps>, dim3(chunks), dim3(kThreads),
         kSums > kScratchBytes ? kSums : kScratchBytes, stream, p);
}

template <class T, int kWidth>
void backward_width(const NormBackwardParams& p, unsigned chunks, Stream stream) {
  const int64_t packs = (p.a.c + kWarp * kWidth - 1) / (kWarp * kWidth);
  if (packs <= 1) return launch_backward<T, kWidth, 1, 1>(p, chunks, stream);
  if (packs <= 2) return launch_backward<T, kWidth, 2, 1>(p, chunks, stream);
  if (packs <= 4) return launch_backward<T, kWidth, 2, 2>(p, chunks, stream);
  if (packs <= 8) return launch_backward<T, kWidth, 1, 8>(p, chunks, stream);
  if (packs <= 16) return launch_backward<T, kWidth, 2, 8>(p, chunks, stream);
  if (packs <= 32) return launch_backward<T, kWidth, 4, 8>(p, chunks, stream);
  launch(norm_backward_long_kernel<T>, dim3(chunks), dim3(kThreads), kScratchBytes, stream, p);
}

template <class T>
void norm_backward(const NormBackwardArgs& a, Stream stream) {
  if (a.n == 0 || a.c == 0) return;
  const int64_t chunks = reduction_chunks(a.n, DeviceKind::kCuda);
  const NormBackwardParams p{a, (a.n + chunks - 1) / chunks};
  constexpr int kWidest = 16 / static_cast<int>(sizeof(T));
  const int width = vector_width<T>({a.dy, a.dresidual, a.x, a.weight, a.dx}, {a.c});
  const auto blocks = static_cast<unsigned>(chunks);
  if (width == kWidest) {
    backward_width<T, kWidest>(p, blocks, stream);
  } else if (width >= 2) {
    backward_width<T, 2>(p, blocks, stream);
  } else {
    backward_width<T, 1>(p, blocks, stream);
  }
  const NormEndParams end{static_cast<const float*>(a.workspace), static_cast<float*>(a.dweight),
                          static_cast<float*>(a.dbias), chunks, a.c};
  launch(norm_backward_end_kernel, dim3(column_sum_blocks(a.c), a.dbias ? 2 : 1),
         column_sum_block(), kColumnSumSharedBytes, stream, end);
}

}  // namespace

void register_norm() {
  constexpr DeviceKind kDevice = DeviceKind::kCuda;
  norm_forward_table().set(kDevice, Dtype::kFloat32, norm_forward<float>);
  norm_forward_table().set(kDevice, Dtype::kBFloat16, norm_forward<bfloat16>);
  norm_backward_table().set(kDevice, Dtype::kFloat32, norm_backward<float>);
  norm_backward_table().set(kDevice, Dtype::kBFloat16, norm_backward<bfloat16>);
}

}  // namespace heirloom::cuda
