// SPDX-License-Identifier: Apache-2.0
//
// What the attention kernels share: tiles, the register-blocked product that all of their matrix
// work goes through, masks.
//
// Keys stand in rows and queries in lanes: S^T (keys x queries) = K Q^T. So a tile of K or V is
// read as it lies in memory, one broadcast element at a time, only a tile of queries is ever
// transposed, and the softmax over keys needs no horizontal sums.
#pragma once

#include <cmath>

#include "heirloom/core/rng.h"
#include "heirloom/kernels/attention.h"
#include "kernels/cpu/simd.h"

namespace heirloom::cpu::HEIRLOOM_ISA {

/// Keys per tile and queries per tile. Key tiles start at multiples of it, counted from position 0
/// of the sequence.
inline constexpr int64_t kTile = kKvBlockTokens;
/// Vectors of columns that the product keeps in registers, beside kRows rows.
inline constexpr int kMaxColumns = kLanes == 16 ? 4 : 2;
inline constexpr int kRows = 6;

template <class T>
void attention_forward(const AttentionForwardArgs& args, Stream stream);

HEIRLOOM_INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
HEIRLOOM_INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

/// Row of position j in the streams. The rows of a key tile are consecutive.
HEIRLOOM_INLINE int64_t stream_row(const AttentionSequence& s, int64_t j) {
  if (s.blocks == nullptr) return s.key_row + j;
  return static_cast<int64_t>(s.blocks[j / kKvBlockTokens]) * kKvBlockTokens + j % kKvBlockTokens;
}

/// dst (count, ld) float32 = positions [j0, j0 + count) of one key tile of a head; ld >= dim.
template <class T>
static void load_head_rows(const KvHead& head, const AttentionSequence& s, int64_t j0,
                           int64_t count, int64_t dim, float* dst, int64_t ld) {
  const int64_t first = stream_row(s, j0) * head.row_stride, whole = dim / kLanes * kLanes;
  const T* a = static_cast<const T*>(head.data) + first;
  const T* b = head.second == nullptr ? nullptr : static_cast<const T*>(head.second) + first;
  for (int64_t j = 0; j < count; ++j, a += head.row_stride, dst += ld) {
    for (int64_t d = 0; d < whole; d += kLanes) {
      store(dst + d, b == nullptr ? load(a + d) : (load(a + d) + load(b + d)) * 0.5f);
    }
    if (whole < dim) {
      const int64_t n = dim - whole;
      const Vf x = load_n(a + whole, n);
      store_n(dst + whole, b == nullptr ? x : (x + load_n(b + whole, n)) * 0.5f, n);
    }
    if (b != nullptr) b += head.row_stride;
  }
}

/// dst (dim, kTile) = src (rows, dim)^T; columns past `rows` up to the next whole vector are zero.
template <class T>
static void load_transposed(const T* src, int64_t stride, int64_t rows, int64_t dim, float* dst) {
  for (int64_t r = 0; r < rows; r += kLanes) {
    for (int64_t d = 0; d < dim; d += kLanes) {
      const int64_t n = min64(kLanes, dim - d);
      Vf v[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        const T* p = src + (r + i) * stride + d;
        v[i] = r + i >= rows ? Vf{} : n == kLanes ? load(p) : load_n(p, n);
      }
      transpose(v);
      for (int i = 0; i < n; ++i) store(dst + (d + i) * kTile + r, v[i]);
    }
  }
}

/// dst (rows, dim) = (src (dim, kTile) * column factors)^T
template <class T>
static void store_transposed(const float* src, const float* factors, int64_t rows, int64_t dim,
                             T* dst, int64_t stride) {
  for (int64_t r = 0; r < rows; r += kLanes) {
    const Vf factor = load(factors + r);
    for (int64_t d = 0; d < dim; d += kLanes) {
      const int64_t n = min64(kLanes, dim - d), m = min64(kLanes, rows - r);
      Vf v[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i)
        v[i] = i < n ? load(src + (d + i) * kTile + r) * factor : Vf{};
      transpose(v);
      for (int i = 0; i < m; ++i) {
        T* p = dst + (r + i) * stride + d;
        if (n == kLanes) {
          store(p, v[i]);
        } else {
          store_n(p, v[i], n);
        }
      }
    }
  }
}

enum class Start { kZero, kAdd, kScale };

/// How element (row, k) of the left factor is addressed.
enum class Left { kRowMajor, kColumnMajor };

struct Product {
  int64_t k = 0;
  const float* a = nullptr;
  int64_t lda = 0;
  const float* b = nullptr;
  int64_t ldb = 0;
  float* c = nullptr;
  int64_t ldc = 0;
  const float* column_factors = nullptr;  ///< with kScale: c = c * factor + a b
};

template <Left kLeft, int R, int C>
static __attribute__((noinline)) void product_block(const Product& p, Start start, const float* a,
                                                    const float* b, float* c,
                                                    const float* column_factors) {
  Vf acc[R][C];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < C; ++v) acc[r][v] = Vf{};
  }
  if (start == Start::kAdd) {
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < C; ++v) acc[r][v] = load(c + r * p.ldc + v * kLanes);
    }
  } else if (start == Start::kScale) {
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < C; ++v) {
        acc[r][v] = load(c + r * p.ldc + v * kLanes) * load(column_factors + v * kLanes);
      }
    }
  }
  const int64_t k_end = p.k, lda = p.lda, ldb = p.ldb;
  for (int64_t k = 0; k < k_end; ++k) {
    Vf bv[C];
    for (int v = 0; v < C; ++v) bv[v] = load(b + v * kLanes);
    for (int r = 0; r < R; ++r) {
      const Vf x = set(kLeft == Left::kRowMajor ? a[r * lda] : a[r]);
      for (int v = 0; v < C; ++v) acc[r][v] = fma(x, bv[v], acc[r][v]);
    }
    a += kLeft == Left::kRowMajor ? 1 : lda;
    b += ldb;
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < C; ++v) store(c + r * p.ldc + v * kLanes, acc[r][v]);
  }
}

template <Left kLeft, int C>
static void product_rows(const Product& p, Start start, int64_t rows, int64_t column) {
  const int64_t step = kLeft == Left::kRowMajor ? p.lda : 1;
  const float* factors = p.column_factors + (start == Start::kScale ? column : 0);
  const float* b = p.b + column;
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) {
    product_block<kLeft, kRows, C>(p, start, p.a + r * step, b, p.c + r * p.ldc + column, factors);
  }
  if (r + 4 <= rows) {
    product_block<kLeft, 4, C>(p, start, p.a + r * step, b, p.c + r * p.ldc + column, factors);
    r += 4;
  }
  if (r + 2 <= rows) {
    product_block<kLeft, 2, C>(p, start, p.a + r * step, b, p.c + r * p.ldc + column, factors);
    r += 2;
  }
  if (r < rows) {
    product_block<kLeft, 1, C>(p, start, p.a + r * step, b, p.c + r * p.ldc + column, factors);
  }
}

/// c (rows, columns) = start + a (rows, k) b (k, columns); columns is a multiple of kLanes. Every
/// element is one chain of fma in the order of k, whatever the blocking: results do not depend on
/// which rows and columns are computed together.
template <Left kLeft>
static void product(const Product& p, Start start, int64_t rows, int64_t columns) {
  int64_t column = 0;
  for (; column + kMaxColumns * kLanes <= columns; column += kMaxColumns * kLanes) {
    product_rows<kLeft, kMaxColumns>(p, start, rows, column);
  }
  const int64_t left = (columns - column) / kLanes;
  if constexpr (kMaxColumns == 4) {
    if (left == 3) return product_rows<kLeft, 3>(p, start, rows, column);
    if (left == 2) return product_rows<kLeft, 2>(p, start, rows, column);
  }
  if (left == 1) product_rows<kLeft, 1>(p, start, rows, column);
}

/// Which keys of a tile which queries of a tile see. Positions are counted from the first key of
/// the tile.
struct TileMask {
  int64_t keys = 0;  ///< keys of the tile that any query sees, from its first
  int64_t queries = 0;
  int64_t first = 0;   ///< position of query 0; negative where the tile starts behind it
  int64_t window = 0;  ///< 0: none
  bool causal_edge = false, window_edge = false;

  TileMask(int64_t tile, int64_t first_position, int64_t query_count, int64_t sequence_window)
      : keys(min64(kTile, first_position + query_count - tile)),
        queries(query_count),
        first(first_position - tile),
        window(sequence_window),
        causal_edge(first_position - tile < keys - 1),
        window_edge(sequence_window != 0 &&
                    first_position - tile + query_count - 1 >= sequence_window) {}

  bool partial() const { return causal_edge || window_edge; }
  /// First vector column with a query that sees key j.
  int64_t first_column(int64_t j) const { return j <= first ? 0 : (j - first) / kLanes; }
  /// Keys 0 .. n-1 are all that vector column c sees; n may be 0.
  int64_t keys_of_column(int64_t c) const {
    return max64(0, min64(keys, first + (c + 1) * kLanes));
  }
  /// Lanes of column c that see key j: -1, else 0.
  Vi visible(int64_t c, int64_t j) const {
    const Vi distance = lane_numbers() + static_cast<int32_t>(first + c * kLanes - j);
    const Vi causal = distance >= 0;
    return window == 0 ? causal : causal & (distance < static_cast<int32_t>(window));
  }
};

/// out (keys, queries) = a (keys, dim) b (dim, queries), where some query of the vector column sees
/// the key: strips of kLanes keys past the diagonal are left as they were.
[[maybe_unused]] static void masked_scores(const TileMask& mask, const float* a, int64_t lda,
                                           int64_t dim, const float* b, float* out) {
  const int64_t columns = round_up(mask.queries, kLanes);
  if (!mask.causal_edge) {
    return product<Left::kRowMajor>({dim, a, lda, b, kTile, out, kTile}, Start::kZero, mask.keys,
                                    columns);
  }
  for (int64_t j = 0; j < mask.keys; j += kLanes) {
    const int64_t from = mask.first_column(j) * kLanes;
    product<Left::kRowMajor>(
        {dim, a + j * lda, lda, b + from, kTile, out + j * kTile + from, kTile}, Start::kZero,
        min64(kLanes, mask.keys - j), columns - from);
  }
}

/// keep (kTile, kTile) = 0 where attention dropout drops (key, query), else 1 / (1 - rate); whole
/// groups of 4 keys.
[[maybe_unused]] static void dropout_tile(const AttentionDropout& dropout, uint32_t sequence,
                                          int64_t head, int64_t tile, int64_t keys,
                                          int64_t first_query, int64_t queries, float* keep) {
  const float kept = static_cast<float>(1.0 / (1.0 - dropout.rate));
  // uniform < rate, in the 24 bits that uniform_from_bits keeps.
  const uint32_t threshold = static_cast<uint32_t>(std::ceil(dropout.rate * 0x1p24));
  for (int64_t j = 0; j < keys; j += 4) {
    for (int64_t i = 0; i < queries; ++i) {
      const auto words = philox(dropout.philox_key(), {static_cast<uint32_t>((tile + j) / 4),
                                                       static_cast<uint32_t>(first_query + i),
                                                       static_cast<uint32_t>(head), sequence});
      for (int64_t w = 0; w < 4; ++w) {
        keep[(j + w) * kTile + i] = (words[static_cast<size_t>(w)] >> 8) < threshold ? 0.0f : kept;
      }
    }
  }
}

}  // namespace heirloom::cpu::HEIRLOOM_ISA
