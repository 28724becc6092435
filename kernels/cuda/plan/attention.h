// SPDX-License-Identifier: Apache-2.0
//
// How the attention kernels of CUDA cut a call into tiles: pure functions of sizes and addresses,
// without a device. The kernels use the constexpr ones as template arguments, the host the rest.
//
// Worked example: bfloat16, 2 sequences of 1000 queries over 1000 keys, H = 20, G = 20, D = E = 60,
// rows of 1200 elements (GPT-2 550M).
//   padded_head_dims(60, 60)  -> 64, 64: products of 16 x 8 x 16 over rows padded with zeros in
//                                shared memory
//   copy_bytes(q, 2400, 120)  -> 8: a head's 120 bytes are no multiple of 16
//   forward_tiles(64, 64, 0)  -> 128 queries in 4 warps of 2 x 16 rows, 64 keys, 2 stages;
//                                128 + 128 x 128 + 2 x 64 x (128 + 128) = 49280 shared bytes
//   forward grid              -> x = 20 heads x 2 sequences, y = ceil(1000 / 128) = 8 query tiles
//   head_units                -> 20 units of one head where every head has its own gradient
//                                address; where heads 10..19 share theirs with heads 0..9 in pairs,
//                                10 units of two heads
#pragma once

#include <cstdint>
#include <initializer_list>
#include <vector>

#include "heirloom/kernels/attention.h"

namespace heirloom::cuda::plan {

/// KV heads of one call: their addresses travel as kernel parameters.
inline constexpr int64_t kMaxKvHeads = 128;
inline constexpr int64_t kMaxHeadDim = 256;
/// Key tiles start at multiples of this many positions, which is also a block of a paged cache.
inline constexpr int kKeyTile = static_cast<int>(kKvBlockTokens);

/// Widths that kernels are compiled for.
struct HeadDims {
  int qk = 0, v = 0;
  friend constexpr bool operator==(const HeadDims&, const HeadDims&) = default;
};
/// 16, 32, 64, 80, 96, 128, 192 or 256, the least that holds `dim`; 0 beyond.
constexpr int padded_head_dim(int64_t dim) {
  for (const int padded : {16, 32, 64, 80, 96, 128, 192, 256}) {
    if (dim <= padded) return padded;
  }
  return 0;
}
/// Equal widths, (96, 64) or (192, 128).
constexpr HeadDims padded_head_dims(int64_t qk_dim, int64_t v_dim) {
  const int qk = padded_head_dim(qk_dim), v = padded_head_dim(v_dim);
  if (qk == 0 || v == 0) return {};
  if ((qk == 96 && v <= 64) || (qk == 192 && v <= 128)) return {qk, qk == 96 ? 64 : 128};
  return qk > v ? HeadDims{qk, qk} : HeadDims{v, v};
}

/// A kernel's cut: each warp owns row_tiles x 16 rows of the CTA's tile and walks along the other
/// axis in tiles of 64, `stages` of which are in shared memory.
struct AttentionTiles {
  int warps = 4;
  int row_tiles = 1;
  int stages = 2;
  int shared_bytes = 0;
  constexpr int threads() const { return warps * 32; }
  constexpr int rows() const { return warps * row_tiles * 16; }
};

/// What registers are limited for.
constexpr int ctas_per_sm(int qk, int v) { return qk > 128 || v > 128 ? 1 : 2; }

/// Shared memory for what a CTA looks up once per tile.
inline constexpr int kCtaStateBytes = 128;

/// Rows of queries; stages of K and V. 32 rows per warp read each fragment of K and V half as often
/// as 16; where heads are wide their sums do not fit into registers.
constexpr AttentionTiles forward_tiles(int qk, int v, bool dropout) {
  AttentionTiles t;
  const int widest = qk > v ? qk : v;
  t.row_tiles = widest <= (dropout ? 80 : 128) ? 2 : 1;
  t.warps = widest == 192 ? 8 : 4;
  t.shared_bytes = kCtaStateBytes + 2 * (t.rows() * qk + t.stages * kKeyTile * (qk + v));
  return t;
}

/// Rows of queries with q and dout; stages of K and V; lse and delta per row.
constexpr AttentionTiles backward_query_tiles(int qk, int v) {
  AttentionTiles t;
  const int widest = qk > v ? qk : v;
  t.row_tiles = widest <= 64 ? 2 : 1;
  t.stages = widest <= 192 ? 2 : 1;
  t.shared_bytes =
      kCtaStateBytes + 2 * (t.rows() + t.stages * kKeyTile) * (qk + v) + 2 * 4 * t.rows();
  return t;
}

/// Gradients that one launch over keys sums: both where their registers suffice.
enum class KeySums { kBoth, kKeys, kValues };
constexpr bool needs_two_passes(int qk, int v) { return qk + v > 256; }

/// Rows of keys with K and V; stages of q and dout with lse and delta.
constexpr AttentionTiles backward_key_tiles(int qk, int v) {
  AttentionTiles t;
  const int widest = qk > v ? qk : v;
  t.row_tiles = widest <= 64 ? 2 : 1;
  t.stages = widest <= 192 ? 2 : 1;
  t.shared_bytes = kCtaStateBytes + 2 * (t.rows() + t.stages * kKeyTile) * (qk + v) +
                   t.stages * 2 * 4 * kKeyTile;
  return t;
}
/// Queries of a stage that are multiplied at once: registers hold their scores beside the sums, and
/// with dropout its counters.
constexpr int backward_key_step(int qk, int v, bool dropout) {
  return ((qk > v ? qk : v) <= 64 ? 32 : 64) / (dropout ? 2 : 1);
}

/// Bytes of one copy: the largest of 16, 8, 4, 2 that divides address, row stride and row.
int copy_bytes(const void* address, int64_t stride_bytes, int64_t row_bytes);

/// Tiles of `rows` that the longest sequence needs.
int64_t longest_query_tiles(const AttentionForwardArgs& a, int rows);
int64_t longest_key_tiles(const AttentionForwardArgs& a, int rows);

/// One address that receives the gradient of one KV head, `add` resolved over the call.
struct GradientTarget {
  void* data = nullptr;
  bool add = false;
};
struct HeadTargets {
  GradientTarget dk[2], dv[2];
};
/// KV heads by units: heads that share an address, through others too, form one, and one CTA
/// processes them in order. Heads without any target are in none.
struct HeadUnits {
  std::vector<HeadTargets> targets;  ///< [G]
  std::vector<int> heads;            ///< unit by unit, ascending within
  std::vector<int> first;            ///< [units + 1]: where each unit starts in `heads`
  int64_t count() const { return static_cast<int64_t>(first.size()) - 1; }
};
/// kBoth: head by head, keys before values; else one pass over the keys of all heads, then one over
/// the values.
HeadUnits head_units(const AttentionBackwardArgs& b, bool two_passes);

}  // namespace heirloom::cuda::plan
