// SPDX-License-Identifier: Apache-2.0
//
// Computes     add: y += x or y = x between T and A; column_sum: db += sum of rows; dropout by counters.
// Shapes       add (rows, cols) strided; column_sum dy (N, C), db (C); dropout (N, C).
// Layout       16-byte accesses where pointers, strides and widths allow; dropout may run in place.
// Saved        nothing; dropout's backward draws the same numbers again.
// Work         add, dropout: one thread per run of columns. column_sum: one block per chunk of rows and 32 runs of columns,
//              its eight warps taking rows in turn; the chunks are then added in order.
// Bytes        add read x (+ y unless overwriting), write y; column_sum read NC (T) + C (A), write C, and the partial sums,
//              reduction_chunks(n) x C (A), both ways; dropout read and write NC.
// FLOPs        add 1 per element (0 overwriting); column_sum NC; dropout NC.
// Precision    sums in float32.
// Determinism  chunks depend on N alone; every sum has one order.
// Limits       fewer than 2^32 runs of columns.
// Source       Salmon et al., SC 2011 (Philox4x32-10).
#include "heirloom/kernels/elementwise.h"

#include "heirloom/core/error.h"
#include "heirloom/kernels/norm.h"
#include "kernels/cuda/common/column_sums.cuh"
#include "kernels/cuda/common/reduce.cuh"

namespace heirloom::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

unsigned checked_runs(int64_t runs) {
  if (runs >= int64_t{1} << 32) {
    throw_error<UnsupportedError>("[elementwise] expected fewer than 2^32 runs of columns; got {}",
                                  runs);
  }
  return static_cast<unsigned>(runs);
}

unsigned blocks_of(unsigned runs) { return (runs - 1) / kThreads + 1; }

struct AddParams {
  const void* x;
  void* y;
  int64_t x_stride, y_stride;
  unsigned runs, runs_per_row;
};

template <class X, class Y, int kWidth, bool kOverwrite>
__global__ void __launch_bounds__(kThreads)
    add_forward_runs_kernel(const __grid_constant__ AddParams p) {
  const unsigned run = blockIdx.x * kThreads + threadIdx.x;
  if (run >= p.runs) return;
  const int64_t row = run / p.runs_per_row, column = int64_t{run % p.runs_per_row} * kWidth;
  const Pack<X, kWidth> x =
      load_pack<X, kWidth>(static_cast<const X*>(p.x) + row * p.x_stride + column);
  Y* y = static_cast<Y*>(p.y) + row * p.y_stride + column;
  Pack<Y, kWidth> sum;
  if constexpr (!kOverwrite) sum = load_pack<Y, kWidth>(y);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) sum.x[i] = kOverwrite ? x.x[i] : sum.x[i] + x.x[i];
  store_pack<Y, kWidth>(y, sum);
}

template <class X, class Y, int kWidth>
void launch_add(const AddArgs& a, Stream stream) {
  AddParams p{a.x, a.y, a.x_stride, a.y_stride, 0, static_cast<unsigned>(a.cols / kWidth)};
  p.runs = checked_runs(a.rows * (a.cols / kWidth));
  launch(a.overwrite ? add_forward_runs_kernel<X, Y, kWidth, true>
                     : add_forward_runs_kernel<X, Y, kWidth, false>,
         dim3(blocks_of(p.runs)), dim3(kThreads), 0, stream, p);
}

template <class X, class Y>
void add_typed(const AddArgs& a, Stream stream) {
  if (a.rows == 0 || a.cols == 0) return;
  // 16 bytes of the wider side: two accesses for one run would each use half of their sectors.
  constexpr int kWidest = 16 / static_cast<int>(sizeof(X) > sizeof(Y) ? sizeof(X) : sizeof(Y));
  const auto fits = [&](int width) {
    const auto side = [&](const void* data, int64_t size, int64_t stride) {
      const int64_t bytes = width * size < 16 ? width * size : 16;
      return reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(bytes) == 0 &&
             (a.rows == 1 || stride * size % bytes == 0);
    };
    return a.cols % width == 0 && side(a.x, sizeof(X), a.x_stride) &&
           side(a.y, sizeof(Y), a.y_stride);
  };
  if (fits(kWidest)) return launch_add<X, Y, kWidest>(a, stream);
  if (fits(2)) return launch_add<X, Y, 2>(a, stream);
  launch_add<X, Y, 1>(a, stream);
}

template <class T>
void add(const AddArgs& a, Stream stream) {
  if (a.x_is_accumulate_dtype) {
    a.y_is_accumulate_dtype ? add_typed<float, float>(a, stream) : add_typed<float, T>(a, stream);
  } else {
    a.y_is_accumulate_dtype ? add_typed<T, float>(a, stream) : add_typed<T, T>(a, stream);
  }
}

struct ColumnSumParams {
  const void* dy;
  float* partial;
  int64_t n, c, rows_per_chunk;
};

/// Floats from one element of a lane to its next: 32 neighbouring columns, which are kWidth elements of 32 / kWidth lanes, have
/// a bank each.
constexpr int column_sum_stride(int width) { return 32 + (width > 1 ? 32 / width : 0); }

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    column_sum_forward_chunk_kernel(const __grid_constant__ ColumnSumParams p) {
  DYN_SMEM(memory);
  float* sums = reinterpret_cast<float*>(memory);  // [warp][element][column_sum_stride]
  constexpr int kStride = column_sum_stride(kWidth);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t column = (int64_t{blockIdx.x} * 32 + lane) * kWidth;
  const int64_t begin = int64_t{blockIdx.y} * p.rows_per_chunk;
  const int64_t end = begin + p.rows_per_chunk < p.n ? begin + p.rows_per_chunk : p.n;
  float sum[kWidth] = {};
  if (column < p.c) {
    const T* dy = static_cast<const T*>(p.dy) + column;
#pragma unroll 4
    for (int64_t i = begin + warp; i < end; i += kWarps) {
      const Pack<T, kWidth> row = load_pack<T, kWidth>(dy + i * p.c);
#pragma unroll
      for (int e = 0; e < kWidth; ++e) sum[e] += row.x[e];
    }
  }
#pragma unroll
  for (int e = 0; e < kWidth; ++e) sums[(warp * kWidth + e) * kStride + lane] = sum[e];
  __syncthreads();
  for (int j = static_cast<int>(threadIdx.x); j < 32 * kWidth; j += kThreads) {
    const int64_t to = int64_t{blockIdx.x} * 32 * kWidth + j;
    if (to >= p.c) continue;
    float total = 0;
    for (int w = 0; w < kWarps; ++w)
      total += sums[(w * kWidth + j % kWidth) * kStride + j / kWidth];
    p.partial[int64_t{blockIdx.y} * p.c + to] = total;
  }
}

struct ColumnSumEndParams {
  const float* partial;
  float* to;
  int64_t chunks, c;
};

__global__ void __launch_bounds__(kColumnSumColumns* kColumnSumSlices)
    column_sum_forward_end_kernel(const __grid_constant__ ColumnSumEndParams p) {
  add_column_sums(p.partial, p.c, p.chunks, p.c, p.to, [](int64_t i) { return i; });
}

template <class T, int kWidth>
void launch_column_sum(const ColumnSumParams& p, int64_t chunks, Stream stream) {
  const int64_t tile = 32 * kWidth;
  launch(column_sum_forward_chunk_kernel<T, kWidth>,
         dim3(static_cast<unsigned>((p.c + tile - 1) / tile), static_cast<unsigned>(chunks)),
         dim3(kThreads), size_t{kWarps} * kWidth * column_sum_stride(kWidth) * sizeof(float),
         stream, p);
}

template <class T>
void column_sum(const ColumnSumArgs& a, Stream stream) {
  if (a.n == 0 || a.c == 0) return;
  const int64_t chunks = reduction_chunks(a.n, DeviceKind::kCuda);
  const ColumnSumParams p{a.dy, static_cast<float*>(a.workspace), a.n, a.c,
                          (a.n + chunks - 1) / chunks};
  const int width = vector_width<T>({a.dy}, {a.c});
  constexpr int kWidest = 16 / static_cast<int>(sizeof(T));
  if (width == kWidest) {
    launch_column_sum<T, kWidest>(p, chunks, stream);
  } else if (width >= 2) {
    launch_column_sum<T, 2>(p, chunks, stream);
  } else {
    launch_column_sum<T, 1>(p, chunks, stream);
  }
  const ColumnSumEndParams end{p.partial, static_cast<float*>(a.db), chunks, a.c};
  launch(column_sum_forward_end_kernel, dim3(column_sum_blocks(a.c)), column_sum_block(),
         kColumnSumSharedBytes, stream, end);
}

struct DropoutParams {
  const void* x;
  void* y;
  unsigned runs, runs_per_row, sequence_length;
  int64_t c;
  DropoutArgs draw;
  uint32_t threshold;
  float factor;
};

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    dropout_forward_runs_kernel(const __grid_constant__ DropoutParams p) {
  const unsigned run = blockIdx.x * kThreads + threadIdx.x;
  if (run >= p.runs) return;
  const unsigned number = run / p.runs_per_row;  // of the row; 32 bits, for the divisions
  const int64_t row = number, column = int64_t{run % p.runs_per_row} * kWidth;
  const uint64_t key = p.draw.philox_key();
  const uint32_t sequence = p.draw.step_first_sequence() + number / p.sequence_length;
  const int64_t groups = (p.c + 3) / 4;
  const auto first = static_cast<uint64_t>(number % p.sequence_length * groups + column / 4);
  Pack<T, kWidth> v = load_pack<T, kWidth>(static_cast<const T*>(p.x) + row * p.c + column);
#pragma unroll
  for (int g = 0; g < (kWidth + 3) / 4; ++g) {
    const uint64_t e = first + static_cast<uint64_t>(g);
    const auto words =
        philox(key, {static_cast<uint32_t>(e), static_cast<uint32_t>(e >> 32), sequence, 0});
    if constexpr (kWidth == 1) {
      const int64_t which = column % 4;
      const uint32_t bits = which == 0   ? words[0]
                            : which == 1 ? words[1]
                            : which == 2 ? words[2]
                                         : words[3];
      v.x[0] = bits >> 8 < p.threshold ? 0.0f : v.x[0] * p.factor;
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // A dropped element is 0 whatever x holds.
        v.x[4 * g + i] =
            words[static_cast<size_t>(i)] >> 8 < p.threshold ? 0.0f : v.x[4 * g + i] * p.factor;
      }
    }
  }
  store_pack<T, kWidth>(static_cast<T*>(p.y) + row * p.c + column, v);
}

template <class T, int kWidth>
void launch_dropout(DropoutParams p, int64_t n, Stream stream) {
  p.runs_per_row = static_cast<unsigned>(p.c / kWidth);
  p.runs = checked_runs(n * (p.c / kWidth));
  launch(dropout_forward_runs_kernel<T, kWidth>, dim3(blocks_of(p.runs)), dim3(kThreads), 0, stream,
         p);
}

template <class T>
void dropout(const DropoutArgs& a, Stream stream) {
  if (a.n == 0 || a.c == 0) return;
  // (bits >> 8) 2^-24 < rate  <=>  bits >> 8 < ceil(rate 2^24)
  const double scaled = a.rate * 16777216.0;
  const auto floor = static_cast<uint32_t>(scaled);
  DropoutParams p{};
  p.x = a.x;
  p.y = a.y;
  p.c = a.c;
  // Beyond the number of rows, which are fewer than 2^32, it makes no difference.
  p.sequence_length = static_cast<unsigned>(a.sequence_length < a.n ? a.sequence_length : a.n);
  p.draw = a;
  p.threshold = floor + (static_cast<double>(floor) < scaled ? 1u : 0u);
  p.factor = static_cast<float>(1.0 / (1.0 - a.rate));
  constexpr int kWidest = 16 / static_cast<int>(sizeof(T));
  const int width = vector_width<T>({a.x, a.y}, {a.c});
  if (width == kWidest) {
    launch_dropout<T, kWidest>(p, a.n, stream);
  } else if (width >= 4) {
    launch_dropout<T, 4>(p, a.n, stream);
  } else {
    launch_dropout<T, 1>(p, a.n, stream);
  }
}

}  // namespace

void register_elementwise() {
  constexpr DeviceKind kDevice = DeviceKind::kCuda;
  add_table().set(kDevice, Dtype::kFloat32, add<float>);
  add_table().set(kDevice, Dtype::kBFloat16, add<bfloat16>);
  column_sum_table().set(kDevice, Dtype::kFloat32, column_sum<float>);
  column_sum_table().set(kDevice, Dtype::kBFloat16, column_sum<bfloat16>);
  dropout_table().set(kDevice, Dtype::kFloat32, dropout<float>);
  dropout_table().set(kDevice, Dtype::kBFloat16, dropout<bfloat16>);
}

}  // namespace heirloom::cuda
