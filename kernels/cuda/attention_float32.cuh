// SPDX-License-Identifier: Apache-2.0
//
// What the float32 attention kernels share: how a call reaches them, tiles in shared memory, the
// two register-blocked products that all of their arithmetic goes through, dropout.
//
// A block has 128 threads: 16 rows x 8 columns. Thread (y, x) owns rows y + 16 i of a tile and of
// what is computed from it, columns x + 8 j of scores and groups of four columns x + 8 v of
// results. A row of scores therefore lies in eight neighbouring lanes of one warp: row maxima and
// sums are three shuffles, and weights come back from shared memory after a __syncwarp.
//
// Rows of a tile are float4 wide with an odd number of float4: eight neighbouring rows (scores) and
// eight neighbouring columns (results) both fill the 32 banks once.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "heirloom/core/error.h"
#include "heirloom/core/rng.h"
#include "heirloom/kernels/attention.h"
#include "kernels/cuda/common/launch.cuh"
#include "kernels/cuda/common/ptx.cuh"
#include "kernels/cuda/plan/attention.h"

namespace heirloom::cuda::attention_float32 {

inline constexpr int kThreads = 128;
inline constexpr int kThreadRows = 16;
inline constexpr int kThreadColumns = 8;
/// Keys per tile of the kernels whose rows are queries.
inline constexpr int kKeys = plan::kKeyTile;
/// "No window", and more than any position: sums of a few of these stay in range.
inline constexpr int kNoWindow = 1 << 29;

struct Head {
  const float *k, *v, *second;
  int64_t k_stride, v_stride;
};

struct Dropout {
  AttentionDropout counters;
  uint32_t threshold;  ///< an element is dropped iff the upper 24 bits of its word are below
  float kept;          ///< 1 / (1 - rate)
};

/// A call as kernels see it: AttentionForwardArgs with its heads by value.
struct Call {
  const float* q;
  float* o;
  float* lse;
  const AttentionSequence* sequences;
  int64_t q_stride, o_stride;
  int heads, kv_heads, qk_dim, v_dim, window;
  float scale;
  bool aligned_q, aligned_k, aligned_v, aligned_o;  ///< every row can be read 16 bytes at a time
  Dropout dropout;
  Head head[plan::kMaxKvHeads];
};

// Host: the call and the grid.

inline bool aligned_rows(const void* data, int64_t stride, int64_t dim) {
  return plan::copy_bytes(data, 4 * stride, 4 * dim) == 16;
}

inline Call make_call(const AttentionForwardArgs& a) {
  if (a.qk_dim > plan::kMaxHeadDim || a.v_dim > plan::kMaxHeadDim ||
      a.kv_heads > plan::kMaxKvHeads) {
    throw_error<UnsupportedError>(
        "[attention] CUDA takes head widths up to {} and up to {} KV heads; got {}, {} and {}",
        plan::kMaxHeadDim, plan::kMaxKvHeads, a.qk_dim, a.v_dim, a.kv_heads);
  }
  if (plan::longest_key_tiles(a, 1) >= kNoWindow) {
    throw_error<UnsupportedError>("[attention] CUDA takes less than {} keys per sequence",
                                  kNoWindow);
  }
  HEIRLOOM_CHECK(a.device_sequences != nullptr,
                 "[attention] expected the sequences in the device's memory; got none");
  Call c{};
  c.q = static_cast<const float*>(a.q);
  c.o = static_cast<float*>(a.o);
  c.lse = static_cast<float*>(a.lse);
  c.sequences = a.device_sequences;
  c.q_stride = a.q_stride;
  c.o_stride = a.o_stride;
  c.heads = static_cast<int>(a.heads);
  c.kv_heads = static_cast<int>(a.kv_heads);
  c.qk_dim = static_cast<int>(a.qk_dim);
  c.v_dim = static_cast<int>(a.v_dim);
  c.window = a.window == 0 ? kNoWindow : static_cast<int>(std::min<int64_t>(a.window, kNoWindow));
  c.scale = static_cast<float>(a.scale);
  c.aligned_q = aligned_rows(a.q, a.q_stride, a.qk_dim);
  c.aligned_o = aligned_rows(a.o, a.o_stride, a.v_dim);
  c.aligned_k = c.aligned_v = true;
  for (int64_t g = 0; g < a.kv_heads; ++g) {
    const KvHead &k = a.k[g], &v = a.v[g];
    c.head[g] = {static_cast<const float*>(k.data), static_cast<const float*>(v.data),
                 static_cast<const float*>(v.second), k.row_stride, v.row_stride};
    c.aligned_k = c.aligned_k && aligned_rows(k.data, k.row_stride, a.qk_dim);
    if (v.data == nullptr) continue;
    c.aligned_v = c.aligned_v && aligned_rows(v.data, v.row_stride, a.v_dim) &&
                  aligned_rows(v.second, v.row_stride, a.v_dim);
  }
  c.dropout = {a.dropout, static_cast<uint32_t>(std::ceil(a.dropout.rate * 0x1p24)),
               static_cast<float>(1.0 / (1.0 - a.dropout.rate))};
  return c;
}

/// Blocks for `per_sequence` tiles x `heads` x sequences.
inline dim3 grid(int64_t per_sequence, int64_t heads, int64_t sequences) {
  const int64_t blocks = per_sequence * heads * sequences;
  if (blocks > INT32_MAX) {
    throw_error<UnsupportedError>("[attention] a call of {} blocks is too large for CUDA", blocks);
  }
  return dim3(static_cast<unsigned>(blocks));
}

/// float4 per row of a tile.
constexpr int row_pitch(int dim) { return ((dim + 3) / 4) | 1; }
/// Floats per row of a tile of weights: 8 modulo 32, so that four rows x eight columns fill the
/// banks.
constexpr int weight_pitch(int columns) { return columns + 8; }

// Device: tiles.

/// Row of position j in the streams; the rows of a tile of up to 64 aligned positions follow.
__device__ __forceinline__ int64_t stream_row(const AttentionSequence& s, int j) {
  if (s.blocks == nullptr) return s.key_row + j;
  return static_cast<int64_t>(s.blocks[j / kKeys]) * kKeys + j % kKeys;
}

/// Four columns of a row; what lies past `dim` is zero and not read.
__device__ __forceinline__ float4 load_four(const float* row, int column, int dim, bool aligned) {
  if (aligned) return *reinterpret_cast<const float4*>(row + column);
  float4 x = make_float4(0, 0, 0, 0);
  x.x = row[column];
  if (column + 1 < dim) x.y = row[column + 1];
  if (column + 2 < dim) x.z = row[column + 2];
  if (column + 3 < dim) x.w = row[column + 3];
  return x;
}

/// Starts the copy of `valid` rows of width `dim` into a tile of kRows; its other rows, and columns
/// up to a multiple of four, become zero.
template <int kRows>
__device__ __forceinline__ void copy_tile(float4* tile, int pitch, const float* rows,
                                          int64_t stride, int valid, int dim, bool aligned) {
  const int thread = static_cast<int>(threadIdx.x), columns = (dim + 3) / 4;
  if (aligned) {
    for (int r = thread / kThreadColumns; r < kRows; r += kThreadRows) {
      const float* from = rows + r * stride;
      for (int c = thread % kThreadColumns; c < columns; c += kThreadColumns) {
        cp_async<16>(tile + r * pitch + c, from + 4 * c, r < valid);
      }
    }
    return;
  }
  for (int r = thread / 32; r < kRows; r += kThreads / 32) {
    const float* from = rows + r * stride;
    float* to = reinterpret_cast<float*>(tile + r * pitch);
    for (int c = thread % 32; c < 4 * columns; c += 32) {
      cp_async<4>(to + c, from + c, r < valid && c < dim);
    }
  }
}

/// The mean of two heads as a tile; complete at the next __syncthreads.
template <int kRows>
__device__ __forceinline__ void mean_tile(float4* tile, int pitch, const float* a, const float* b,
                                          int64_t stride, int valid, int dim, bool aligned) {
  const int thread = static_cast<int>(threadIdx.x), columns = (dim + 3) / 4;
  for (int r = thread / kThreadColumns; r < kRows; r += kThreadRows) {
    for (int c = thread % kThreadColumns; c < columns; c += kThreadColumns) {
      float4 m = make_float4(0, 0, 0, 0);
      if (r < valid) {
        const float4 x = load_four(a + r * stride, 4 * c, dim, aligned);
        const float4 y = load_four(b + r * stride, 4 * c, dim, aligned);
        m = make_float4((x.x + y.x) * 0.5f, (x.y + y.y) * 0.5f, (x.z + y.z) * 0.5f,
                        (x.w + y.w) * 0.5f);
      }
      tile[r * pitch + c] = m;
    }
  }
}

template <int kRows>
__device__ __forceinline__ void copy_keys(const Call& call, const Head& head,
                                          const AttentionSequence& s, int first, int valid,
                                          float4* tile) {
  copy_tile<kRows>(tile, row_pitch(call.qk_dim), head.k + stream_row(s, first) * head.k_stride,
                   head.k_stride, valid, call.qk_dim, call.aligned_k);
}

template <int kRows>
__device__ __forceinline__ void copy_values(const Call& call, const Head& head,
                                            const AttentionSequence& s, int first, int valid,
                                            float4* tile) {
  const int64_t at = stream_row(s, first) * head.v_stride;
  const int pitch = row_pitch(call.v_dim);
  if (head.second == nullptr) {
    copy_tile<kRows>(tile, pitch, head.v + at, head.v_stride, valid, call.v_dim, call.aligned_v);
  } else {
    mean_tile<kRows>(tile, pitch, head.v + at, head.second + at, head.v_stride, valid, call.v_dim,
                     call.aligned_v);
  }
}

// Device: products. Every element is summed in the order of the inner index.

/// sums[i][j] = row (y + 16 i) of a . row (x + 8 j) of b, over `columns` float4.
template <int R, int C>
__device__ __forceinline__ void multiply_rows(const float4* a, const float4* b, int pitch,
                                              int columns, float (&sums)[R][C]) {
  const int thread = static_cast<int>(threadIdx.x);
  a += thread / kThreadColumns * pitch;
  b += thread % kThreadColumns * pitch;
#pragma unroll
  for (int i = 0; i < R; ++i) {
#pragma unroll
    for (int j = 0; j < C; ++j) sums[i][j] = 0;
  }
#pragma unroll 1
  for (int d = 0; d < columns; ++d) {
    float4 x[R];
#pragma unroll
    for (int i = 0; i < R; ++i) x[i] = a[i * kThreadRows * pitch + d];
#pragma unroll
    for (int j = 0; j < C; ++j) {
      const float4 y = b[j * kThreadColumns * pitch + d];
#pragma unroll
      for (int i = 0; i < R; ++i) {
        float sum = sums[i][j];
        sum += x[i].x * y.x;
        sum += x[i].y * y.y;
        sum += x[i].z * y.z;
        sum += x[i].w * y.w;
        sums[i][j] = sum;
      }
    }
  }
}

__device__ __forceinline__ void add_scaled(float4& sum, float weight, const float4& row) {
  sum.x += weight * row.x;
  sum.y += weight * row.y;
  sum.z += weight * row.z;
  sum.w += weight * row.w;
}

/// sums[i][v] += sum over the first `count` (rounded up to 4) rows k of b: weight (y + 16 i, k) of
/// `weights` (pitch kPitch) x columns x + 8 v of b. Columns past the width of b repeat its last.
template <int kPitch, int R, int V>
__device__ __forceinline__ void add_products(const float* weights, const float4* b, int pitch,
                                             int width, int count, float4 (&sums)[R][V]) {
  const int thread = static_cast<int>(threadIdx.x), last = (width + 3) / 4 - 1;
  const float4* w = reinterpret_cast<const float4*>(weights + thread / kThreadColumns * kPitch);
  int column[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    column[v] = min(thread % kThreadColumns + v * kThreadColumns, last);
  }
#pragma unroll 1
  for (int k = 0; k < count; k += 4) {
    float4 x[R];
#pragma unroll
    for (int i = 0; i < R; ++i) x[i] = w[i * kThreadRows * (kPitch / 4) + k / 4];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const float4* at = b + k * pitch + column[v];
      const float4 y0 = at[0], y1 = at[pitch], y2 = at[2 * pitch], y3 = at[3 * pitch];
#pragma unroll
      for (int i = 0; i < R; ++i) {
        add_scaled(sums[i][v], x[i].x, y0);
        add_scaled(sums[i][v], x[i].y, y1);
        add_scaled(sums[i][v], x[i].z, y2);
        add_scaled(sums[i][v], x[i].w, y3);
      }
    }
  }
}

template <int R, int V>
__device__ __forceinline__ void clear(float4 (&sums)[R][V]) {
#pragma unroll
  for (int i = 0; i < R; ++i) {
#pragma unroll
    for (int v = 0; v < V; ++v) sums[i][v] = make_float4(0, 0, 0, 0);
  }
}

/// Rows y + 16 i < valid of `to` = or += factor x sums.
template <int R, int V>
__device__ __forceinline__ void store_rows(float* to, int64_t stride, int valid, int dim,
                                           bool aligned, bool add, float factor,
                                           const float4 (&sums)[R][V]) {
  const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int i = 0; i < R; ++i) {
    const int r = thread / kThreadColumns + i * kThreadRows;
    if (r >= valid) continue;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int column = 4 * (thread % kThreadColumns + v * kThreadColumns);
      if (column >= dim) continue;
      float* at = to + r * stride + column;
      float4 x = make_float4(factor * sums[i][v].x, factor * sums[i][v].y, factor * sums[i][v].z,
                             factor * sums[i][v].w);
      if (add) {
        const float4 old = load_four(at, 0, dim - column, aligned);
        x = make_float4(old.x + x.x, old.y + x.y, old.z + x.z, old.w + x.w);
      }
      if (aligned) {
        *reinterpret_cast<float4*>(at) = x;
        continue;
      }
      at[0] = x.x;
      if (column + 1 < dim) at[1] = x.y;
      if (column + 2 < dim) at[2] = x.z;
      if (column + 3 < dim) at[3] = x.w;
    }
  }
}

// Device: rows over eight lanes, dropout.

__device__ __forceinline__ float row_sum(float x) {
#pragma unroll
  for (int lanes = 1; lanes < kThreadColumns; lanes *= 2) x += __shfl_xor_sync(~0u, x, lanes);
  return x;
}

__device__ __forceinline__ float row_max(float x) {
#pragma unroll
  for (int lanes = 1; lanes < kThreadColumns; lanes *= 2) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, lanes));
  }
  return x;
}

/// Which of a thread's R x C scores dropout keeps: bit i C + j. One Philox call gives the words of
/// four neighbouring keys, which the four lanes `lane` + m `step` hold, this thread being `member`
/// of them: each makes a quarter of the calls, and they exchange the bits. `counter(i, j)` is
/// {key / 4, query} of a score.
template <int R, int C, class Counter>
__device__ __forceinline__ uint32_t kept_scores(uint64_t key, uint32_t threshold, uint32_t head,
                                                uint32_t sequence, int member, int lane, int step,
                                                Counter counter) {
  constexpr int kOwn = R * C / 4;
  static_assert(R * C <= 32 && kOwn * 4 == R * C);
  uint32_t own = 0;
#pragma unroll 1
  for (int n = 0; n < kOwn; ++n) {
    const int at = member * kOwn + n;
    const uint2 c = counter(at / C, at % C);
    const auto words = philox(key, {c.x, c.y, head, sequence});
    uint32_t bits = 0;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      bits |= (words[static_cast<size_t>(w)] >> 8) >= threshold ? 1u << w : 0u;
    }
    own |= bits << (4 * n);
  }
  uint32_t kept = 0;
#pragma unroll
  for (int m = 0; m < 4; ++m) {
    const uint32_t theirs = __shfl_sync(~0u, own, lane + m * step) >> member;
#pragma unroll
    for (int n = 0; n < kOwn; ++n) kept |= (theirs >> (4 * n) & 1u) << (m * kOwn + n);
  }
  return kept;
}

/// kept_scores where rows are queries (the first at position `query`) and columns are keys (the
/// first at position `key`).
template <int R, int C>
__device__ __forceinline__ uint32_t kept_keys_in_columns(const Call& call, uint64_t philox_key,
                                                         int head, uint32_t sequence, int query,
                                                         int key) {
  const int thread = static_cast<int>(threadIdx.x);
  const int y = thread / kThreadColumns, x = thread % kThreadColumns;
  return kept_scores<R, C>(philox_key, call.dropout.threshold, static_cast<uint32_t>(head),
                           sequence, x % 4, thread % 32 / 4 * 4, 1, [=](int i, int j) {
                             return make_uint2(
                                 static_cast<uint32_t>((key + x + j * kThreadColumns) / 4),
                                 static_cast<uint32_t>(query + y + i * kThreadRows));
                           });
}

/// kept_scores where rows are keys and columns are queries.
template <int R, int C>
__device__ __forceinline__ uint32_t kept_keys_in_rows(const Call& call, uint64_t philox_key,
                                                      int head, uint32_t sequence, int query,
                                                      int key) {
  const int thread = static_cast<int>(threadIdx.x);
  const int y = thread / kThreadColumns, x = thread % kThreadColumns;
  return kept_scores<R, C>(
      philox_key, call.dropout.threshold, static_cast<uint32_t>(head), sequence, y % 4,
      thread % kThreadColumns, kThreadColumns, [=](int i, int j) {
        return make_uint2(static_cast<uint32_t>((key + y + i * kThreadRows) / 4),
                          static_cast<uint32_t>(query + x + j * kThreadColumns));
      });
}

/// Defined beside the kernels.
void attention_forward(const AttentionForwardArgs&, Stream);
void attention_backward(const AttentionBackwardArgs&, Stream);

}  // namespace heirloom::cuda::attention_float32
