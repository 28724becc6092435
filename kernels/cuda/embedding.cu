// SPDX-License-Identifier: Apache-2.0
//
// Computes     x[i] = table[token[i]] (+ position_table[position[i]]); backward adds dx rows into
//              the float32 gradients.
// Shapes       tokens, positions (N); tables (V, C), (P, C); x, dx (N, C).
// Layout       contiguous rows; 16-byte accesses where C and the pointers allow.
// Saved        tokens, positions, and the rows ordered by (token, row) and (position, row).
// Work         forward: a warp per row. Backward: rows of one token are neighbours in the order; the
//              warp of the first of them adds the whole run, 32 threads side by side along the
//              columns, and the warps of the others leave. Eight rows of a long run are on their
//              way at a time.
// Bytes        forward read NC (+ NC) + 4 N, write NC; backward read NC (T) + NC (A) + 4 N, write NC
//              (A), where no token repeats; twice with positions
// FLOPs        forward NC with positions, else 0; backward NC (2 NC with positions)
// Precision    sums in float32.
// Determinism  rows are added in row order, starting from the gradient that is there: the bits of
//              the reference. No atomics.
// Limits       tokens and positions are trusted.
// Source       -
#include "heirloom/kernels/embedding.h"

#include "kernels/cuda/common/dtype.cuh"
#include "kernels/cuda/common/launch.cuh"
#include "kernels/cuda/common/reduce.cuh"
#include "kernels/cuda/common/vector.cuh"

namespace heirloom::cuda {
namespace {

constexpr int kWarp = 32, kWarps = 8;  // warps of a block

struct EmbeddingForwardParams {
  const int32_t* tokens;
  const int32_t* positions;
  const void* table;
  const void* position_table;
  void* x;
  int64_t n, c;
};

template <class T, int kWidth>
__global__ void __launch_bounds__(kWarp* kWarps)
    embedding_forward_rows_kernel(const __grid_constant__ EmbeddingForwardParams p) {
  constexpr int kBatch = kWidth == 8 ? 2 : 4, kStep = kWarp * kWidth;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t i = int64_t{blockIdx.x} * kWarps + static_cast<int>(threadIdx.x) / kWarp;
  if (i >= p.n) return;
  const T* row = static_cast<const T*>(p.table) + p.tokens[i] * p.c;
  T* x = static_cast<T*>(p.x) + i * p.c;
  const T* position =
      p.position_table ? static_cast<const T*>(p.position_table) + p.positions[i] * p.c : nullptr;
  for (int64_t first = lane * kWidth; first < p.c; first += kBatch * kStep) {
    Pack<T, kWidth> sum[kBatch], other[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int64_t j = first + b * kStep;
      if (j < p.c) sum[b] = load_pack<T, kWidth>(row + j);
      if (j < p.c && position) other[b] = load_pack<T, kWidth>(position + j);
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int64_t j = first + b * kStep;
      if (j >= p.c) continue;
      if (position) {
#pragma unroll
        for (int e = 0; e < kWidth; ++e) sum[b].x[e] += other[b].x[e];
      }
      store_pack<T, kWidth>(x + j, sum[b]);
    }
  }
}

/// One table, by tokens or positions.
struct EmbeddingRuns {
  const int32_t* ids;    ///< (N) of the rows
  const int32_t* order;  ///< (N) rows by (id, row)
  float* gradient;
};

struct EmbeddingBackwardParams {
  EmbeddingRuns tokens, positions;
  const void* dx;
  int64_t n, c;
};

template <class T, int kWidth>
__global__ void __launch_bounds__(kWarp* kWarps)
    embedding_backward_runs_kernel(const __grid_constant__ EmbeddingBackwardParams p) {
  constexpr int kBatch = 8;
  const int32_t* const ids = blockIdx.z == 0 ? p.tokens.ids : p.positions.ids;
  const int32_t* const order = blockIdx.z == 0 ? p.tokens.order : p.positions.order;
  float* const gradient = blockIdx.z == 0 ? p.tokens.gradient : p.positions.gradient;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t first = int64_t{blockIdx.x} * kWarps + static_cast<int>(threadIdx.x) / kWarp;
  if (first >= p.n) return;
  const int32_t id = ids[order[first]];
  if (first > 0 && ids[order[first - 1]] == id) return;  // an earlier warp's run

  const int64_t column = (int64_t{blockIdx.y} * kWarp + lane) * kWidth;
  const bool active = column < p.c;
  const T* const dx = static_cast<const T*>(p.dx) + column;
  float* const to = gradient + id * p.c + column;
  Pack<float, kWidth> sum;
  if (active) sum = load_pack<float, kWidth>(to);

  // Each lane below `window` knows one of the next rows in the order, and whether it belongs to the
  // run. Most runs are short: the window begins with two rows and grows to 32.
  int window = 2;
  int64_t at = first + lane;
  bool belongs = lane < window && at < p.n;
  int32_t row = belongs ? order[at] : 0;
  belongs = belongs && ids[row] == id;
  for (;;) {
    const unsigned members = __ballot_sync(kWholeWarp, belongs);
    const int count = __popc(members);  // they come first
    // The next rows are on their way while these are added.
    const bool more = count == window;
    at += window;
    window = window < kWarp / 4 ? 8 : kWarp;
    bool next_belongs = more && lane < window && at < p.n;
    const int32_t next_row = next_belongs ? order[at] : 0;
    next_belongs = next_belongs && ids[next_row] == id;
    for (int start = 0; start < count; start += kBatch) {
      Pack<T, kWidth> rows[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int32_t r = __shfl_sync(kWholeWarp, row, start + b);
        if (active && start + b < count) rows[b] = load_pack<T, kWidth>(dx + r * p.c);
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        if (!active || start + b >= count) continue;
#pragma unroll
        for (int e = 0; e < kWidth; ++e) sum.x[e] += rows[b].x[e];
      }
    }
    if (!more) break;
    row = next_row;
    belongs = next_belongs;
  }
  if (active) store_pack<float, kWidth>(to, sum);
}

unsigned blocks(int64_t n, int per_block) {
  return static_cast<unsigned>((n + per_block - 1) / per_block);
}

template <class T>
void embedding_forward(const EmbeddingForwardArgs& a, Stream stream) {
  if (a.n == 0 || a.c == 0) return;
  const EmbeddingForwardParams p{a.tokens, a.positions, a.table, a.position_table, a.x, a.n, a.c};
  constexpr int kWidest = 16 / static_cast<int>(sizeof(T));
  const int width = vector_width<T>({a.table, a.position_table, a.x}, {a.c});
  launch(width == kWidest ? embedding_forward_rows_kernel<T, kWidest>
         : width >= 2     ? embedding_forward_rows_kernel<T, 2>
                          : embedding_forward_rows_kernel<T, 1>,
         dim3(blocks(a.n, kWarps)), dim3(kWarp * kWarps), 0, stream, p);
}

template <class T>
void embedding_backward(const EmbeddingBackwardArgs& a, Stream stream) {
  if (a.n == 0 || a.c == 0) return;
  EmbeddingBackwardParams p{};
  p.tokens = {a.tokens, a.token_order, static_cast<float*>(a.dtable)};
  p.positions = {a.positions, a.position_order, static_cast<float*>(a.dposition_table)};
  p.dx = a.dx;
  p.n = a.n;
  p.c = a.c;
  // Four columns: 16 bytes of the gradients.
  const bool wide = vector_width<float>({a.dtable, a.dposition_table}, {a.c}) == 4 &&
                    vector_width<T>({a.dx}, {a.c}) >= 4;
  launch(wide ? embedding_backward_runs_kernel<T, 4> : embedding_backward_runs_kernel<T, 1>,
         dim3(blocks(a.n, kWarps), blocks(a.c, kWarp * (wide ? 4 : 1)), a.dposition_table ? 2 : 1),
         dim3(kWarp * kWarps), 0, stream, p);
}

}  // namespace

void register_embedding() {
  embedding_forward_table().set(DeviceKind::kCuda, Dtype::kFloat32, embedding_forward<float>);
  embedding_forward_table().set(DeviceKind::kCuda, Dtype::kBFloat16, embedding_forward<bfloat16>);
  embedding_backward_table().set(DeviceKind::kCuda, Dtype::kFloat32, embedding_backward<float>);
  embedding_backward_table().set(DeviceKind::kCuda, Dtype::kBFloat16, embedding_backward<bfloat16>);
}

}  // namespace heirloom::cuda
