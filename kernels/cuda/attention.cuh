// SPDX-License-Identifier: Apache-2.0
//
// What the attention kernels on mma.sync share: tiles of rows in shared memory, fragments of them,
// masks and dropout bits. A product takes fragments of 16 x 16 of its left side and pairs of 16 x 8
// of its right side; both lie as rows of head elements, padded with zeros to a compiled width.
#pragma once

#include "heirloom/core/dtype.h"
#include "heirloom/core/rng.h"
#include "heirloom/kernels/attention.h"
#include "kernels/cuda/common/dtype.cuh"
#include "kernels/cuda/common/ptx.cuh"
#include "kernels/cuda/plan/attention.h"

namespace heirloom::cuda::attention {

using plan::kKeyTile;
using plan::kMaxKvHeads;

inline constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
/// Positions stay below it, so that sums of two fit into an int.
inline constexpr int kNoWindow = 1 << 30;

/// Dropout as kernels see it: a word drops its element iff word >> 8 < threshold.
struct DropoutParams {
  AttentionDropout source;
  uint32_t threshold = 0;
  float scale = 1;  ///< 1 / (1 - rate)
};

/// Where rows of one operand lie: bytes is the width of a copy (plan::copy_bytes).
struct RowsParams {
  int64_t stride = 0;
  int dim = 0;
  int bytes = 2;
};

/// The call without its outputs.
struct CommonParams {
  const bfloat16* q;
  const AttentionSequence* sequences;
  int sequence_count;  ///< of the grid
  int heads, per_group;
  RowsParams q_rows, o_rows;
  int k_bytes, v_bytes;
  int window;        ///< kNoWindow: none
  float scale;       ///< of the scores
  float scale_log2;  ///< of the scores as exponents of 2
  DropoutParams dropout;
  KvHead k[kMaxKvHeads], v[kMaxKvHeads];
};

/// What a CTA looks up once per tile: shared memory keeps it out of the registers of its loops.
struct CtaState {
  AttentionSequence sequence;
  KvHead k, v;
  uint64_t dropout_key;
  int64_t row;    ///< of the first query
  int position;   ///< of the first query
  int rows;       ///< queries
  int from, end;  ///< what the CTA walks along: positions of keys, or queries
};
static_assert(sizeof(CtaState) <= plan::kCtaStateBytes);

__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x) & 31; }
__device__ __forceinline__ int warp_id() { return static_cast<int>(threadIdx.x) >> 5; }

/// A tile of rows of kDim elements in shared memory. A row is kDim / 8 chunks of 16 bytes; chunk c
/// of row r stands at c ^ key(r), so that the eight rows of an 8 x 8 matrix fall on different banks:
/// no bank conflicts for ldmatrix.
template <int kDim>
struct TileLayout {
  static constexpr int kChunks = kDim / 8;
  static constexpr int kRowBytes = kDim * 2;
  static constexpr int kSwizzle = kChunks % 8 == 0 ? 8 : kChunks % 4 == 0 ? 4 : 2;
  static __device__ __forceinline__ int key(int row) {
    return (row / (8 / kSwizzle)) & (kSwizzle - 1);
  }
  static __device__ __forceinline__ int offset(int row, int chunk) {
    return row * kRowBytes + ((chunk ^ key(row)) << 4);
  }
};

/// Copies chunks [kFirst, kFirst + kCount) of a tile's rows. A thread keeps its chunk and its row
/// modulo the swizzle: beside one offset everything is uniform or constant.
template <int kRows, int kDim, int kThreads, int kFirst, int kCount>
__device__ __forceinline__ void copy_chunks(unsigned char* tile, const bfloat16* source,
                                            int64_t stride, int rows, int dim) {
  using Layout = TileLayout<kDim>;
  constexpr int kStep = kThreads / kCount;
  static_assert(kStep % 8 == 0 && kRows % 8 == 0);
  const int first = static_cast<int>(threadIdx.x) / kCount;
  const int chunk = kFirst + static_cast<int>(threadIdx.x) % kCount;
  // Of rows after this thread's first; none in a column of padding.
  const int left = chunk * 8 < dim ? rows - first : 0;
  unsigned char* to = tile + Layout::offset(first, chunk);
  const bfloat16* from = source + first * stride + chunk * 8;
#pragma unroll
  for (int row = 0; row < kRows; row += kStep) {
    if (kRows % kStep != 0 && first + row >= kRows) break;
    const bool valid = row < left;
    cp_async<16>(to + row * Layout::kRowBytes, valid ? from + row * stride : source, valid);
  }
}

/// Copies up to kRows rows to a tile, zeros beyond `rows` and beyond the row's elements. Copies of
/// 16, 8 and 4 bytes are asynchronous (cp_async_commit is the caller's).
template <int kRows, int kDim, int kThreads>
__device__ __forceinline__ void copy_rows(unsigned char* tile, const bfloat16* source,
                                          int64_t stride, int rows, int dim, int bytes) {
  using Layout = TileLayout<kDim>;
  if (bytes == 16) {
    constexpr int kWhole = Layout::kChunks / 8 * 8, kRest = Layout::kChunks - kWhole;
    if constexpr (kWhole > 0) {
      copy_chunks<kRows, kDim, kThreads, 0, 8>(tile, source, stride, rows, dim);
    }
    if constexpr (kWhole > 8) {
      copy_chunks<kRows, kDim, kThreads, 8, 8>(tile, source, stride, rows, dim);
    }
    if constexpr (kWhole > 16) {
      copy_chunks<kRows, kDim, kThreads, 16, 8>(tile, source, stride, rows, dim);
    }
    if constexpr (kWhole > 24) {
      copy_chunks<kRows, kDim, kThreads, 24, 8>(tile, source, stride, rows, dim);
    }
    if constexpr (kRest > 0) {
      copy_chunks<kRows, kDim, kThreads, kWhole, kRest>(tile, source, stride, rows, dim);
    }
    return;
  }
  const int elements = bytes / 2, per_row = kDim / elements;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < kRows * per_row; i += kThreads) {
    const int row = i / per_row, at = i % per_row * elements;
    const bool valid = row < rows && at < dim;
    const bfloat16* from = valid ? source + row * stride + at : source;
    unsigned char* to = tile + Layout::offset(row, at / 8) + at % 8 * 2;
    if (bytes == 8) {
      cp_async<8>(to, from, valid);
    } else if (bytes == 4) {
      cp_async<4>(to, from, valid);
    } else {
      *reinterpret_cast<uint16_t*>(to) = valid ? from->bits : static_cast<uint16_t>(0);
    }
  }
}

__device__ __forceinline__ uint32_t mean_bf16x2(uint32_t a, uint32_t b) {
  return pack_bf16x2((bf16_low(a) + bf16_low(b)) * 0.5f, (bf16_high(a) + bf16_high(b)) * 0.5f);
}

/// The same for the mean of two sources, rounded to bfloat16; not asynchronous.
template <int kRows, int kDim, int kThreads>
__device__ inline void copy_mean_rows(unsigned char* tile, const bfloat16* source,
                                      const bfloat16* second, int64_t stride, int rows, int dim,
                                      int bytes) {
  using Layout = TileLayout<kDim>;
  const int elements = bytes == 16 ? 8 : 1, per_row = kDim / elements;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < kRows * per_row; i += kThreads) {
    const int row = i / per_row, at = i % per_row * elements;
    const bool valid = row < rows && at < dim;
    const int64_t from = row * stride + at;
    unsigned char* to = tile + Layout::offset(row, at / 8) + at % 8 * 2;
    if (bytes == 16) {
      uint4 mean = make_uint4(0, 0, 0, 0);
      if (valid) {
        const uint4 a = load_16(source + from), b = load_16(second + from);
        mean = make_uint4(mean_bf16x2(a.x, b.x), mean_bf16x2(a.y, b.y), mean_bf16x2(a.z, b.z),
                          mean_bf16x2(a.w, b.w));
      }
      *reinterpret_cast<uint4*>(to) = mean;
    } else {
      uint16_t mean = 0;
      if (valid) mean = to_bf16((to_float(source[from]) + to_float(second[from])) * 0.5f).bits;
      *reinterpret_cast<uint16_t*>(to) = mean;
    }
  }
}

/// Row of position `position`, a multiple of kKeyTile, and of the kKeyTile - 1 positions after it.
__device__ __forceinline__ int64_t stream_row(const AttentionSequence& s, int position) {
  if (s.blocks == nullptr) return s.key_row + position;
  return static_cast<int64_t>(__ldg(s.blocks + position / kKeyTile)) * kKeyTile;
}

/// One CTA per (head, sequence) and tile of kRows queries, the last tiles, which see the most keys,
/// first. False where the sequence has no such tile.
template <int kRows, bool kDropout>
__device__ __forceinline__ bool begin_query_tile(const CommonParams& p, CtaState& state) {
  const AttentionSequence& s = p.sequences[static_cast<int>(blockIdx.x) / p.heads];
  const int queries = static_cast<int>(s.queries);
  const int tile = (queries + kRows - 1) / kRows - 1 - static_cast<int>(blockIdx.y);
  if (tile < 0) return false;
  if (threadIdx.x == 0) {
    const int group = static_cast<int>(blockIdx.x) % p.heads / p.per_group;
    const int first = tile * kRows, left = queries - first;
    state.sequence = s;
    state.k = p.k[group];
    state.v = p.v[group];
    if constexpr (kDropout) state.dropout_key = p.dropout.source.philox_key();
    state.row = s.query_row + first;
    state.position = static_cast<int>(s.keys) - queries + first;
    state.rows = left < kRows ? left : kRows;
    state.from =
        state.position < p.window ? 0 : (state.position - p.window + 1) / kKeyTile * kKeyTile;
    state.end = state.position + state.rows;
  }
  __syncthreads();
  return true;
}

/// Positions [position, position + kRows) of one head, kRows a multiple of kKeyTile.
template <int kRows, int kDim, int kThreads>
__device__ __forceinline__ void copy_head_rows(unsigned char* tile, const KvHead& head,
                                               const AttentionSequence& s, int position, int dim,
                                               int bytes) {
#pragma unroll
  for (int at = 0; at < kRows; at += kKeyTile) {
    const int left = static_cast<int>(s.keys) - position - at;
    unsigned char* to = tile + at * TileLayout<kDim>::kRowBytes;
    const int64_t from = left > 0 ? stream_row(s, position + at) * head.row_stride : 0;
    const bfloat16* source = static_cast<const bfloat16*>(head.data) + from;
    if (head.second == nullptr) {
      copy_rows<kKeyTile, kDim, kThreads>(to, source, head.row_stride, left, dim, bytes);
    } else {
      copy_mean_rows<kKeyTile, kDim, kThreads>(to, source,
                                               static_cast<const bfloat16*>(head.second) + from,
                                               head.row_stride, left, dim, bytes);
    }
  }
}

/// Writes `rows` rows of a tile to global memory, by one warp.
template <int kRows, int kDim>
__device__ __forceinline__ void store_rows(const unsigned char* tile, bfloat16* destination,
                                           int64_t stride, int rows, int dim, int bytes) {
  using Layout = TileLayout<kDim>;
  if (bytes == 16) {
    constexpr int kCopies = kRows * Layout::kChunks;
#pragma unroll 4
    for (int i = lane_id(); i < kCopies; i += 32) {
      const int row = i / Layout::kChunks, chunk = i % Layout::kChunks;
      if (row >= rows || chunk * 8 >= dim) continue;
      store_16(destination + row * stride + chunk * 8,
               *reinterpret_cast<const uint4*>(tile + Layout::offset(row, chunk)));
    }
    return;
  }
  const int elements = bytes / 2, per_row = kDim / elements;
  for (int i = lane_id(); i < kRows * per_row; i += 32) {
    const int row = i / per_row, at = i % per_row * elements;
    if (row >= rows || at >= dim) continue;
    const unsigned char* from = tile + Layout::offset(row, at / 8) + at % 8 * 2;
    bfloat16* to = destination + row * stride + at;
    if (bytes == 8) {
      store_8(to, *reinterpret_cast<const uint2*>(from));
    } else if (bytes == 4) {
      store_4(to, *reinterpret_cast<const uint32_t*>(from));
    } else {
      to->bits = *reinterpret_cast<const uint16_t*>(from);
    }
  }
}

/// A lane's part of ldmatrix addresses over a tile: pair p of chunks (2 p, 2 p + 1).
template <int kDim>
struct LaneRows {
  const unsigned char* base;
  int swizzled;

  __device__ __forceinline__ LaneRows(const unsigned char* tile, int row, int chunk)
      : base(tile + row * TileLayout<kDim>::kRowBytes),
        swizzled((chunk ^ TileLayout<kDim>::key(row)) << 4) {}
  /// `row` a multiple of 8.
  __device__ __forceinline__ const unsigned char* at(int row, int pair) const {
    constexpr int kPairs = TileLayout<kDim>::kSwizzle / 2;
    return base + row * TileLayout<kDim>::kRowBytes + pair / kPairs * kPairs * 32 +
           ((pair % kPairs * 32) ^ swizzled);
  }
};
/// 16 x 16 of rows: the left side of a product, or (transposed) two 16 x 8 of its right side.
template <int kDim>
__device__ __forceinline__ LaneRows<kDim> square_rows(const unsigned char* tile) {
  return {tile, lane_id() & 15, lane_id() >> 4};
}
/// Two 8 x 16 of rows: the right side of a product whose columns are the rows.
template <int kDim>
__device__ __forceinline__ LaneRows<kDim> paired_rows(const unsigned char* tile) {
  return {tile, (lane_id() & 7) + (lane_id() >> 4) * 8, (lane_id() >> 3) & 1};
}

template <int kM, int kN>
__device__ __forceinline__ void clear(Accumulator (&sums)[kM][kN]) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int n = 0; n < kN; ++n) sums[m][n] = Accumulator{{0, 0, 0, 0}};
  }
}

/// The left side of a product of row tiles in registers.
template <int kM, int kDim>
struct LeftRows {
  Fragment4 x[kM][kDim / 16];
  __device__ __forceinline__ void load(const unsigned char* rows) {
    const LaneRows<kDim> lane = square_rows<kDim>(rows);
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
#pragma unroll
      for (int m = 0; m < kM; ++m) x[m][k] = ldmatrix_x4(lane.at(m * 16, k));
    }
  }
  __device__ __forceinline__ Fragment4 get(int m, int k) const { return x[m][k]; }
};
/// The same, read from shared memory where it is used.
template <int kM, int kDim>
struct LeftRowsInShared {
  const unsigned char* rows;
  __device__ __forceinline__ void load(const unsigned char* from) { rows = from; }
  __device__ __forceinline__ Fragment4 get(int m, int k) const {
    return ldmatrix_x4(square_rows<kDim>(rows).at(m * 16, k));
  }
};

/// sums (16 kM, 8 kN) = left right^T over kDim elements; `right` are 8 kN rows.
template <int kDim, int kM, int kN, class Left>
__device__ __forceinline__ void multiply_rows(Accumulator (&sums)[kM][kN], const Left& left,
                                              const unsigned char* right) {
  const LaneRows<kDim> lane = paired_rows<kDim>(right);
  clear(sums);
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
    Fragment4 a[kM];
#pragma unroll
    for (int m = 0; m < kM; ++m) a[m] = left.get(m, k);
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      const Fragment4 b = ldmatrix_x4(lane.at(n * 8, k));
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        sums[m][n] = mma_m16n8k16(a[m], Fragment2{{b.x[0], b.x[1]}}, sums[m][n]);
        sums[m][n + 1] = mma_m16n8k16(a[m], Fragment2{{b.x[2], b.x[3]}}, sums[m][n + 1]);
      }
    }
  }
}

/// Columns [16 k, 16 k + 16) of a tile of sums as the left side of the next product.
template <int kN>
__device__ __forceinline__ Fragment4 to_left(const Accumulator (&sums)[kN], int k) {
  const Accumulator &low = sums[2 * k], &high = sums[2 * k + 1];
  return Fragment4{{pack_bf16x2(low.x[0], low.x[1]), pack_bf16x2(low.x[2], low.x[3]),
                    pack_bf16x2(high.x[0], high.x[1]), pack_bf16x2(high.x[2], high.x[3])}};
}

/// sums (16 kM, kDim) += left (16 kM, 8 kN) right (8 kN, kDim).
template <int kDim, int kM, int kN>
__device__ __forceinline__ void multiply_columns(Accumulator (&sums)[kM][kDim / 8],
                                                 const Accumulator (&left)[kM][kN],
                                                 const unsigned char* right) {
  const LaneRows<kDim> lane = square_rows<kDim>(right);
#pragma unroll
  for (int k = 0; k < kN / 2; ++k) {
    Fragment4 a[kM];
#pragma unroll
    for (int m = 0; m < kM; ++m) a[m] = to_left(left[m], k);
#pragma unroll
    for (int n = 0; n < kDim / 8; n += 2) {
      const Fragment4 b = ldmatrix_x4_trans(lane.at(k * 16, n / 2));
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        sums[m][n] = mma_m16n8k16(a[m], Fragment2{{b.x[0], b.x[1]}}, sums[m][n]);
        sums[m][n + 1] = mma_m16n8k16(a[m], Fragment2{{b.x[2], b.x[3]}}, sums[m][n + 1]);
      }
    }
  }
}

/// Writes sums of a warp's rows, as bfloat16, over a tile that this warp alone has read and will read.
template <int kDim, int kM>
__device__ __forceinline__ void stage_rows(unsigned char* rows,
                                           const Accumulator (&sums)[kM][kDim / 8]) {
  using Layout = TileLayout<kDim>;
  __syncwarp();  // the rows held operands that other lanes of the warp have read
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = m * 16 + half * 8 + lane_id() / 4;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        *reinterpret_cast<uint32_t*>(rows + Layout::offset(row, n) + lane_id() % 4 * 4) =
            pack_bf16x2(sums[m][n].x[2 * half], sums[m][n].x[2 * half + 1]);
      }
    }
  }
  __syncwarp();
}

/// Hides what no query may see. `first`: position of the warp's first row.
template <int kM, int kN>
__device__ __forceinline__ void mask_query_rows(Accumulator (&scores)[kM][kN], int first, int key0,
                                                int window) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // Of the key's distance from the lane's first column: comparisons with constants.
      const int newest = first + m * 16 + half * 8 + lane_id() / 4 - key0 - lane_id() % 4 * 2;
      const int hidden = newest - window;
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int j = n * 8 + c;
          if (j > newest || j <= hidden) scores[m][n].x[2 * half + c] = -INFINITY;
        }
      }
    }
  }
}

/// Bit b: key 4 block + b of query `i` is dropped.
__device__ __forceinline__ uint32_t dropped_keys(uint64_t key, int block, int i, int head,
                                                 uint32_t sequence, uint32_t threshold) {
  const auto words = philox(key, {static_cast<uint32_t>(block), static_cast<uint32_t>(i),
                                  static_cast<uint32_t>(head), sequence});
  uint32_t bits = 0;
#pragma unroll
  for (int b = 0; b < 4; ++b) {
    bits |= (words[static_cast<size_t>(b)] >> 8) < threshold ? 1u << b : 0u;
  }
  return bits;
}

/// Dropout of 16 queries (rows) against 8 kN keys: bit 4 n + e for element e of tile n. Lane pairs
/// share counters: each computes one of the rows `i`, the lane's first, and i + 8.
template <int kN>
__device__ __forceinline__ uint32_t dropped_of_query_rows(uint64_t key, int key0, int i, int head,
                                                          uint32_t sequence, uint32_t threshold) {
  static_assert(kN <= 8);
  const int odd = lane_id() & 1;
  uint32_t bits = 0;
#pragma unroll 1
  for (int n = 0; n < kN; ++n) {
    const int block = (key0 + n * 8) / 4 + ((lane_id() & 3) >> 1);
    const uint32_t mine = dropped_keys(key, block, i + odd * 8, head, sequence, threshold);
    const uint32_t other = __shfl_xor_sync(0xffffffffu, mine, 1);
    const uint32_t low = odd ? other : mine, high = odd ? mine : other;
    bits |= (((low >> (2 * odd)) & 3u) | (((high >> (2 * odd)) & 3u) << 2)) << (4 * n);
  }
  return bits;
}

/// Dropout of 16 keys (rows) against 8 kN queries, likewise. Four lanes share counters: each
/// computes one of (2 blocks of keys) x (2 queries).
template <int kN>
__device__ __forceinline__ uint32_t dropped_of_key_rows(uint64_t key, int key0, int i0, int head,
                                                        uint32_t sequence, uint32_t threshold) {
  static_assert(kN <= 8);
  const int row = lane_id() >> 2, part = row & 3;
  const int block = (key0 + (part >> 1) * 8) / 4 + (row >> 2);
  uint32_t bits = 0;
#pragma unroll 1
  for (int n = 0; n < kN; ++n) {
    const int i = i0 + n * 8 + (lane_id() & 3) * 2 + (part & 1);
    uint32_t four = dropped_keys(key, block, i, head, sequence, threshold) << (4 * part);
    four |= __shfl_xor_sync(0xffffffffu, four, 4);
    four |= __shfl_xor_sync(0xffffffffu, four, 8);
    four >>= part;
    bits |= ((four & 1u) | ((four >> 3) & 2u) | ((four >> 6) & 4u) | ((four >> 9) & 8u)) << (4 * n);
  }
  return bits;
}

/// Host: the part of the parameters that forward and backward share; throws UnsupportedError.
CommonParams common_params(const AttentionForwardArgs& a);

}  // namespace heirloom::cuda::attention
