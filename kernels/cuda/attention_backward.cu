// SPDX-License-Identifier: Apache-2.0
//
// Computes     with P = exp(scale q k^T - lse) and delta_i = dout_i . o_i: dV += P^T dout, dS =
//              scale P (dout V^T - delta), dq = dS k, dK += dS^T q; each head's dK and dV go where
//              its KvHeadGrad says; on tensor cores (bfloat16)
// Shapes       as forward; dk[g] (S, D) and dv[g] (S, E) per KV head
// Layout       as forward; workspace (H, N) floats: delta
// Saved        q, K, V, o, lse of forward
// Work         two kernels, both recompute P and dout V^T. queries: one CTA per (query tile, head,
//              sequence) writes delta and dq, walking along the keys. keys: one CTA per (key tile,
//              unit of KV heads that share a gradient address, sequence) walks along the queries of
//              all query heads of each KV head, in order; transposed, so that P^T and dS^T are left
//              sides as they lie in registers. Heads wider than 128 take one pass for dK and one for
//              dV
// Bytes        read q, o, dout, lse, K, V and what is added to; written dq and every gradient
//              address; delta written and read
// FLOPs        2 (3 D + 2 E) per visible (query, key) pair and head counted once; 2 (D + E) more are
//              recomputed; none where the V head is zero
// Precision    products of bfloat16 summed in float32; P, dS and the mean of a mean head rounded to
//              bfloat16; dK and dV of a head are summed over all its queries before they are stored
// Determinism  one CTA per gradient address and tile of keys, one per dq tile, fixed order, no
//              atomics
// Limits       as forward
// Source       Dao et al. (arXiv 2205.14135), algorithm 4; mean heads: both sources receive half
#include <cmath>
#include <type_traits>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/common/launch.cuh"

namespace heirloom::cuda {
namespace attention {
namespace {

struct BackwardParams {
  CommonParams common;
  const bfloat16 *o, *dout;
  const float* lse;
  float* delta;  ///< (H, delta_rows)
  int64_t delta_rows;
  int dout_bytes;
};

struct QueryParams {
  BackwardParams backward;
  bfloat16* dq;
  int dq_bytes;
};

/// Where the gradients of one KV head go.
struct KeyTarget {
  void* data[2];
  int64_t stride;
  int dim;
  bool add[2];
  bool is_float;
  bool is_mean;
  uint8_t bytes;  ///< width of a copy of a row
};

struct KeyParams {
  BackwardParams backward;
  int units;
  uint8_t heads[kMaxKvHeads];                             ///< KV heads, unit by unit
  uint8_t first[kMaxKvHeads + 1];                         ///< where each unit starts in `heads`
  bool want_keys[kMaxKvHeads], want_values[kMaxKvHeads];  ///< of a KV head
  KeyTarget dk[kMaxKvHeads], dv[kMaxKvHeads];
};

/// dout_i . o_i of a tile, eight lanes per row; dout lies in shared memory.
template <int kRows, int kE, int kThreads>
__device__ __forceinline__ void row_products(const unsigned char* dout_tile, const bfloat16* o,
                                             int64_t stride, int rows, int dim, int bytes,
                                             float* delta) {
  using Layout = TileLayout<kE>;
  const int part = static_cast<int>(threadIdx.x) % 8;
#pragma unroll 1
  for (int row = static_cast<int>(threadIdx.x) / 8; row < kRows; row += kThreads / 8) {
    float sum = 0;
    const bfloat16* o_row = o + row * stride;
    if (row < rows && bytes == 16) {
      for (int chunk = part; chunk * 8 < dim; chunk += 8) {
        const uint4 x = load_16(o_row + chunk * 8);
        const uint4 y = *reinterpret_cast<const uint4*>(dout_tile + Layout::offset(row, chunk));
        const auto add = [&sum](uint32_t a, uint32_t b) {
          sum = fmaf(bf16_low(a), bf16_low(b), sum);
          sum = fmaf(bf16_high(a), bf16_high(b), sum);
        };
        add(x.x, y.x), add(x.y, y.y), add(x.z, y.z), add(x.w, y.w);
      }
    } else if (row < rows) {
      for (int e = part; e < dim; e += 8) {
        const bfloat16 y =
            *reinterpret_cast<const bfloat16*>(dout_tile + Layout::offset(row, e / 8) + e % 8 * 2);
        sum = fmaf(to_float(o_row[e]), to_float(y), sum);
      }
    }
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    sum += __shfl_xor_sync(0xffffffffu, sum, 4);
    if (part == 0) delta[row] = sum;
  }
}

template <int kD, int kE, bool kDropout>
__global__ void __launch_bounds__(plan::backward_query_tiles(kD, kE).threads(),
                                  plan::ctas_per_sm(kD, kE))
    attention_backward_queries_kernel(const __grid_constant__ QueryParams params) {
  constexpr plan::AttentionTiles kTiles = plan::backward_query_tiles(kD, kE);
  constexpr int kThreads = kTiles.threads(), kRows = kTiles.rows(), kM = kTiles.row_tiles;
  constexpr int kN = kKeyTile / 8, kStages = kTiles.stages;
  constexpr int kKeyBytes = kKeyTile * kD * 2, kValueBytes = kKeyTile * kE * 2;
  DYN_SMEM(shared);
  const BackwardParams& b = params.backward;
  const CommonParams& p = b.common;

  CtaState& state = *reinterpret_cast<CtaState*>(shared);
  if (!begin_query_tile<kRows, kDropout>(p, state)) return;
  const int head = static_cast<int>(blockIdx.x) % p.heads;

  unsigned char *q_tile = shared + plan::kCtaStateBytes, *dout_tile = q_tile + kRows * kD * 2,
                *stages = dout_tile + kRows * kE * 2;
  float* delta = reinterpret_cast<float*>(stages + kStages * (kKeyBytes + kValueBytes));
  float* lse_log2 = delta + kRows;
  const int warp_row = warp_id() * kM * 16, first = state.position + warp_row;
  const int last = first + kM * 16 - 1;
  const bool has_rows = warp_row < state.rows;
  unsigned char* warp_rows = q_tile + warp_row * kD * 2;
  Accumulator dq[kM][kD / 8];
  clear(dq);
  // Without values o is zero whatever the scores are, and so is dq.
  if (state.v.data != nullptr) {
    const int rows = state.rows;
    const int64_t row = state.row, o_at = row * p.o_rows.stride + head * p.o_rows.dim;
    copy_rows<kRows, kD, kThreads>(q_tile, p.q + row * p.q_rows.stride + head * p.q_rows.dim,
                                   p.q_rows.stride, rows, p.q_rows.dim, p.q_rows.bytes);
    copy_rows<kRows, kE, kThreads>(dout_tile, b.dout + o_at, p.o_rows.stride, rows, p.o_rows.dim,
                                   b.dout_bytes);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    row_products<kRows, kE, kThreads>(dout_tile, b.o + o_at, p.o_rows.stride, rows, p.o_rows.dim,
                                      p.o_rows.bytes, delta);
    for (int r = static_cast<int>(threadIdx.x); r < kRows; r += kThreads) {
      lse_log2[r] = r < rows ? b.lse[(row + r) * p.heads + head] * kLog2E : 0.0f;
    }
    __syncthreads();
    for (int r = static_cast<int>(threadIdx.x); r < rows; r += kThreads) {
      b.delta[head * b.delta_rows + row + r] = delta[r];
    }
    float row_delta[kM][2], row_lse[kM][2];
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = warp_row + m * 16 + half * 8 + lane_id() / 4;
        row_delta[m][half] = delta[r];
        row_lse[m][half] = lse_log2[r];
      }
    }
    // 16 rows leave room for their operands in registers, 32 do not.
    using Q = std::conditional_t<(kM == 1 && kD <= 96), LeftRows<kM, kD>, LeftRowsInShared<kM, kD>>;
    using Dout =
        std::conditional_t<(kM == 1 && kE <= 96), LeftRows<kM, kE>, LeftRowsInShared<kM, kE>>;
    Q q;
    Dout dout;
    q.load(warp_rows);
    dout.load(dout_tile + warp_row * kE * 2);

    // What a round needs is asked for in one place: with two stages one round ahead, so that the
    // first round only loads.
    int stage = kStages - 1;
#pragma unroll 1
    for (int key0 = state.from - stage * kKeyTile; key0 < state.end; key0 += kKeyTile) {
      if constexpr (kStages == 2) cp_async_wait<0>();
      __syncthreads();
      const unsigned char* k_tile = stages + stage * (kKeyBytes + kValueBytes);
      if constexpr (kStages == 2) stage ^= 1;
      if (const int next = key0 + (kStages - 1) * kKeyTile; next < state.end) {
        unsigned char* to_tile = stages + stage * (kKeyBytes + kValueBytes);
        copy_head_rows<kKeyTile, kD, kThreads>(to_tile, state.k, state.sequence, next, p.q_rows.dim,
                                               p.k_bytes);
        copy_head_rows<kKeyTile, kE, kThreads>(to_tile + kKeyBytes, state.v, state.sequence, next,
                                               p.o_rows.dim, p.v_bytes);
        cp_async_commit();
      }
      if constexpr (kStages == 1) {
        cp_async_wait<0>();
        __syncthreads();
      }

      // Uniform over the warp: rows beyond the sequence, tiles that all of its rows do not see.
      if (key0 < state.from || !has_rows || key0 > last || key0 + kKeyTile - 1 <= first - p.window)
        continue;
      {
        [[maybe_unused]] uint32_t dropped[kM];
        if constexpr (kDropout) {
#pragma unroll
          for (int m = 0; m < kM; ++m) {
            dropped[m] = dropped_of_query_rows<kN>(
                state.dropout_key, key0, first + m * 16 + lane_id() / 4, head,
                state.sequence.dropout_sequence, p.dropout.threshold);
          }
        }
        Accumulator scores[kM][kN], ds[kM][kN];
        multiply_rows<kD>(scores, q, k_tile);
        multiply_rows<kE>(ds, dout, k_tile + kKeyBytes);
        const bool edge = key0 + kKeyTile - 1 > first || key0 <= last - p.window;
        if (edge) mask_query_rows(scores, first, key0, p.window);
#pragma unroll
        for (int m = 0; m < kM; ++m) {
#pragma unroll
          for (int n = 0; n < kN; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              const float weight =
                  exp2_approx(fmaf(scores[m][n].x[e], p.scale_log2, -row_lse[m][e / 2]));
              float& x = ds[m][n].x[e];
              if constexpr (kDropout) {
                x = (dropped[m] >> (4 * n + e)) & 1u ? 0.0f : x * p.dropout.scale;
              }
              x = weight * (x - row_delta[m][e / 2]);
            }
          }
        }
        multiply_columns<kD>(dq, ds, k_tile);
      }
    }
  }

  if (!has_rows) return;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int n = 0; n < kD / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) dq[m][n].x[e] *= p.scale;
    }
  }
  stage_rows<kD>(warp_rows, dq);
  store_rows<kM * 16, kD>(
      warp_rows, params.dq + (state.row + warp_row) * p.q_rows.stride + head * p.q_rows.dim,
      p.q_rows.stride, state.rows - warp_row, p.q_rows.dim, params.dq_bytes);
}

/// Adds or writes factor * sums of a warp's rows of keys to where they go. `staging`: a tile of the
/// warp's own rows to pass bfloat16 through.
template <int kDim, int kM>
__device__ __forceinline__ void store_key_sums(Accumulator (&sums)[kM][kDim / 8], float factor,
                                               const KeyTarget& target, int64_t row, int rows,
                                               unsigned char* staging) {
  if (target.data[0] == nullptr) return;
  if (target.is_mean) factor *= 0.5f;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[m][n].x[e] *= factor;
    }
  }
#pragma unroll 1
  for (int t = 0; t < 2; ++t) {
    if (target.data[t] == nullptr) continue;
    const bool add = target.add[t];
    if (!target.is_float && !add) {
      stage_rows<kDim>(staging, sums);
      store_rows<kM * 16, kDim>(staging,
                                static_cast<bfloat16*>(target.data[t]) + row * target.stride,
                                target.stride, rows, target.dim, target.bytes);
      continue;
    }
    const int64_t first = row * target.stride + lane_id() % 4 * 2;
    const int dim = target.dim - lane_id() % 4 * 2;  // from the lane's first column on
    const bool is_pairs = target.is_float && target.bytes >= 8;
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = m * 16 + half * 8 + lane_id() / 4;
        if (r >= rows) continue;
        const int64_t at = first + r * target.stride;
        if (is_pairs) {
          float* to = static_cast<float*>(target.data[t]) + at;
#pragma unroll
          for (int n = 0; n < kDim / 8; ++n) {
            if (n * 8 >= dim) continue;
            float x = sums[m][n].x[2 * half], y = sums[m][n].x[2 * half + 1];
            if (add) {
              const uint2 before = load_8(to + n * 8);
              x += __uint_as_float(before.x);
              y += __uint_as_float(before.y);
            }
            store_8(to + n * 8, make_uint2(__float_as_uint(x), __float_as_uint(y)));
          }
          continue;
        }
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            if (n * 8 + c >= dim) continue;
            const float x = sums[m][n].x[2 * half + c];
            if (target.is_float) {
              float* to = static_cast<float*>(target.data[t]);
              store(to, at + n * 8 + c, add ? load(to, at + n * 8 + c) + x : x);
            } else {
              bfloat16* to = static_cast<bfloat16*>(target.data[t]);
              store(to, at + n * 8 + c, load(to, at + n * 8 + c) + x);
            }
          }
        }
      }
    }
  }
}

/// Hides what no query may see, in scores of keys (rows) against queries. `key`: position of the
/// warp's first key, `query`: of the first query.
template <int kM, int kN>
__device__ __forceinline__ void mask_key_rows(Accumulator (&scores)[kM][kN], int key, int query,
                                              int window) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // Of the query's distance from the lane's first column: comparisons with constants.
      const int oldest = key + m * 16 + half * 8 + lane_id() / 4 - query - lane_id() % 4 * 2;
      const int hidden = oldest + window;
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int i = n * 8 + c;
          if (i < oldest || i >= hidden) scores[m][n].x[2 * half + c] = -INFINITY;
        }
      }
    }
  }
}

template <int kD, int kE, plan::KeySums kSums, bool kDropout>
__global__ void __launch_bounds__(plan::backward_key_tiles(kD, kE).threads(),
                                  plan::ctas_per_sm(kD, kE))
    attention_backward_keys_kernel(const __grid_constant__ KeyParams params) {
  constexpr plan::AttentionTiles kTiles = plan::backward_key_tiles(kD, kE);
  constexpr int kThreads = kTiles.threads(), kRows = kTiles.rows(), kM = kTiles.row_tiles;
  constexpr int kStages = kTiles.stages, kQueries = kKeyTile;
  constexpr int kStep = plan::backward_key_step(kD, kE, kDropout), kN = kStep / 8;
  constexpr int kQueryBytes = kQueries * kD * 2, kDoutBytes = kQueries * kE * 2;
  constexpr int kStageBytes = kQueryBytes + kDoutBytes + 2 * kQueries * 4;
  constexpr bool kSumKeys = kSums != plan::KeySums::kValues;
  constexpr bool kSumValues = kSums != plan::KeySums::kKeys;
  DYN_SMEM(shared);
  const BackwardParams& b = params.backward;
  const CommonParams& p = b.common;

  const int unit = static_cast<int>(blockIdx.x) % params.units;
  const int key0 = static_cast<int>(blockIdx.y) * kRows;
  CtaState& state = *reinterpret_cast<CtaState*>(shared);
  {
    const AttentionSequence& s = p.sequences[static_cast<int>(blockIdx.x) / params.units];
    const int keys = static_cast<int>(s.keys), queries = static_cast<int>(s.queries);
    if (key0 >= keys) return;
    if (threadIdx.x == 0) {
      state.sequence = s;
      if constexpr (kDropout) state.dropout_key = p.dropout.source.philox_key();
      state.position = keys - queries;
      state.rows = queries;
      // The queries that see any of the keys: from a multiple of a tile on.
      state.from = key0 > state.position ? (key0 - state.position) / kQueries * kQueries : 0;
      const int end = (key0 + kRows < keys ? key0 + kRows : keys) - 1 - state.position + p.window;
      state.end = end < queries ? end : queries;
    }
    __syncthreads();
  }
  const int tiles = (state.end - state.from + kQueries - 1) / kQueries;

  unsigned char *k_tile = shared + plan::kCtaStateBytes, *v_tile = k_tile + kRows * kD * 2,
                *stages = v_tile + kRows * kE * 2;
  const int warp_row = warp_id() * kM * 16, key = key0 + warp_row, key_last = key + kM * 16 - 1;
  const bool has_keys = key < static_cast<int>(state.sequence.keys);
  unsigned char *warp_keys = k_tile + warp_row * kD * 2, *warp_values = v_tile + warp_row * kE * 2;

#pragma unroll 1
  for (int h = params.first[unit]; h < params.first[unit + 1]; ++h) {
    const int group = params.heads[h];
    const bool want_keys = kSumKeys && params.want_keys[group];
    const bool want_values = kSumValues && params.want_values[group];
    if (!want_keys && !want_values) continue;

    [[maybe_unused]] Accumulator dk[kM][kSumKeys ? kD / 8 : 1];
    [[maybe_unused]] Accumulator dv[kM][kSumValues ? kE / 8 : 1];
    clear(dk);
    clear(dv);
    // A zero head has no gradient of its own, and its scores no influence.
    const int steps = p.v[group].data == nullptr || tiles <= 0 ? 0 : p.per_group * tiles;
    if (steps > 0) {
      copy_head_rows<kRows, kD, kThreads>(k_tile, p.k[group], state.sequence, key0, p.q_rows.dim,
                                          p.k_bytes);
      if (want_keys) {
        copy_head_rows<kRows, kE, kThreads>(v_tile, p.v[group], state.sequence, key0, p.o_rows.dim,
                                            p.v_bytes);
      }
    }
    // What a round needs is asked for in one place: with two stages one round ahead, so that the
    // first round only loads.
    int head = group * p.per_group, tile0 = state.from - kQueries;
    const auto advance = [&state](int& of_head, int& tile) {
      tile += kQueries;
      if (tile >= state.end) {
        tile = state.from;
        ++of_head;
      }
    };
#pragma unroll 1
    for (int step = 1 - kStages; step < steps; ++step) {
      if constexpr (kStages == 2) cp_async_wait<0>();
      __syncthreads();
      if constexpr (kStages == 1) advance(head, tile0);
      if (step + kStages - 1 < steps) {
        int next_head = head, next = tile0;
        if constexpr (kStages == 2) advance(next_head, next);
        const int rows = state.rows - next;
        const int64_t row = state.sequence.query_row + next;
        unsigned char* to = stages + (step + kStages - 1) % kStages * kStageBytes;
        copy_rows<kQueries, kD, kThreads>(to,
                                          p.q + row * p.q_rows.stride + next_head * p.q_rows.dim,
                                          p.q_rows.stride, rows, p.q_rows.dim, p.q_rows.bytes);
        copy_rows<kQueries, kE, kThreads>(to + kQueryBytes,
                                          b.dout + row * p.o_rows.stride + next_head * p.o_rows.dim,
                                          p.o_rows.stride, rows, p.o_rows.dim, b.dout_bytes);
        // Zeros beyond the sequence: what they are multiplied with is zero too.
        const int i = static_cast<int>(threadIdx.x) % kQueries;
        const bool valid = i < rows, is_lse = static_cast<int>(threadIdx.x) < kQueries;
        const float* source = is_lse ? b.lse + (row + i) * p.heads + next_head
                                     : b.delta + next_head * b.delta_rows + row + i;
        static_assert(kThreads == 2 * kQueries);
        cp_async<4>(to + kQueryBytes + kDoutBytes + static_cast<int>(threadIdx.x) * 4,
                    valid ? source : b.lse, valid);
        cp_async_commit();
      }
      if constexpr (kStages == 1) {
        cp_async_wait<0>();
        __syncthreads();
      }
      const unsigned char* q_tile = stages + (step & (kStages - 1)) * kStageBytes;
      const unsigned char* dout_tile = q_tile + kQueryBytes;
      const float* lse = reinterpret_cast<const float*>(dout_tile + kDoutBytes);
      const float* delta = lse + kQueries;
#pragma unroll 1
      for (int at = 0; at < kQueries; at += kStep) {
        const int i0 = tile0 + at, query = state.position + i0;
        // Uniform over the warp: keys or queries beyond the sequence, or none that see each other.
        if (step < 0 || !has_keys || i0 >= state.rows || key > query + kStep - 1 ||
            key_last <= query - p.window)
          continue;
        [[maybe_unused]] uint32_t dropped[kM];
        if constexpr (kDropout) {
#pragma unroll
          for (int m = 0; m < kM; ++m) {
            dropped[m] =
                dropped_of_key_rows<kN>(state.dropout_key, key + m * 16, query, head,
                                        state.sequence.dropout_sequence, p.dropout.threshold);
          }
        }
        Accumulator scores[kM][kN], ds[kM][kN];
        LeftRowsInShared<kM, kD> k;
        k.load(warp_keys);
        multiply_rows<kD>(scores, k, q_tile + at * kD * 2);
        if (want_keys) {
          LeftRowsInShared<kM, kE> v;
          v.load(warp_values);
          multiply_rows<kE>(ds, v, dout_tile + at * kE * 2);
        }
        if (key_last > query || key <= query + kStep - 1 - p.window) {
          mask_key_rows(scores, key, query, p.window);
        }
#pragma unroll
        for (int n = 0; n < kN; ++n) {
          const int column = at + n * 8 + lane_id() % 4 * 2;
          const float2 column_lse = *reinterpret_cast<const float2*>(lse + column);
          const float2 column_delta = *reinterpret_cast<const float2*>(delta + column);
#pragma unroll
          for (int m = 0; m < kM; ++m) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              const float row_lse = e % 2 == 0 ? column_lse.x : column_lse.y;
              const float row_delta = e % 2 == 0 ? column_delta.x : column_delta.y;
              float& weight = scores[m][n].x[e];
              weight = exp2_approx(fmaf(weight, p.scale_log2, -row_lse * kLog2E));
              float& x = ds[m][n].x[e];
              if constexpr (kDropout) {
                const bool is_dropped = (dropped[m] >> (4 * n + e)) & 1u;
                x = weight * ((is_dropped ? 0.0f : x * p.dropout.scale) - row_delta);
                if (is_dropped) weight = 0;
              } else {
                x = weight * (x - row_delta);
              }
            }
          }
        }
        if constexpr (kSumValues) {
          if (want_values) multiply_columns<kE>(dv, scores, dout_tile + at * kE * 2);
        }
        if constexpr (kSumKeys) {
          if (want_keys) multiply_columns<kD>(dk, ds, q_tile + at * kD * 2);
        }
      }
      if constexpr (kStages == 2) advance(head, tile0);
    }
    if (has_keys) {
      const int rows = static_cast<int>(state.sequence.keys) - key;
      const int64_t row = stream_row(state.sequence, key / kKeyTile * kKeyTile) + key % kKeyTile;
      if constexpr (kSumKeys) {
        store_key_sums<kD>(dk, p.scale, params.dk[group], row, rows, warp_keys);
      }
      if constexpr (kSumValues) {
        store_key_sums<kE>(dv, kDropout ? p.dropout.scale : 1.0f, params.dv[group], row, rows,
                           warp_values);
      }
    }
    __syncthreads();  // the next head reuses the tiles, and may add to what was written
  }
}

KeyTarget key_target(const KvHeadGrad& grad, const plan::GradientTarget (&targets)[2],
                     int64_t dim) {
  KeyTarget to{};
  const int64_t size = grad.is_accumulate_dtype ? 4 : 2;
  int bytes = 16;
  for (int i = 0; i < 2; ++i) {
    to.data[i] = targets[i].data;
    to.add[i] = targets[i].add;
    if (targets[i].data == nullptr) continue;
    const int own = plan::copy_bytes(targets[i].data, grad.row_stride * size, dim * size);
    bytes = own < bytes ? own : bytes;
  }
  to.stride = grad.row_stride;
  to.dim = static_cast<int>(dim);
  to.is_float = grad.is_accumulate_dtype;
  to.is_mean = grad.second != nullptr;
  to.bytes = static_cast<uint8_t>(bytes);
  return to;
}

template <int kD, int kE, plan::KeySums kSums>
void launch_keys(const AttentionBackwardArgs& a, const KeyParams& params, Stream stream) {
  constexpr plan::AttentionTiles kTiles = plan::backward_key_tiles(kD, kE);
  const int64_t tiles = plan::longest_key_tiles(a.forward, kTiles.rows());
  if (tiles == 0 || params.units == 0) return;
  const dim3 grid(static_cast<unsigned>(params.units * a.forward.sequence_count),
                  static_cast<unsigned>(tiles));
  launch(a.forward.dropout.rate > 0 ? &attention_backward_keys_kernel<kD, kE, kSums, true>
                                    : &attention_backward_keys_kernel<kD, kE, kSums, false>,
         grid, dim3(kTiles.threads()), static_cast<size_t>(kTiles.shared_bytes), stream, params);
}

template <int kD, int kE>
bool launch_backward(plan::HeadDims dims, const AttentionBackwardArgs& a, Stream stream) {
  if (dims != plan::HeadDims{kD, kE}) return false;
  constexpr plan::AttentionTiles kTiles = plan::backward_query_tiles(kD, kE);
  constexpr bool kTwoPasses = plan::needs_two_passes(kD, kE);
  const AttentionForwardArgs& f = a.forward;

  KeyParams keys{};
  BackwardParams& b = keys.backward;
  b.common = common_params(f);
  b.o = static_cast<const bfloat16*>(f.o);
  b.dout = static_cast<const bfloat16*>(a.dout);
  b.lse = static_cast<const float*>(f.lse);
  b.delta = static_cast<float*>(a.workspace);
  for (int64_t i = 0; i < f.sequence_count; ++i) {
    const int64_t rows = f.sequences[i].query_row + f.sequences[i].queries;
    b.delta_rows = rows > b.delta_rows ? rows : b.delta_rows;
  }
  b.dout_bytes = plan::copy_bytes(a.dout, f.o_stride * 2, f.v_dim * 2);
  const plan::HeadUnits units = plan::head_units(a, kTwoPasses);
  keys.units = static_cast<int>(units.count());
  for (size_t i = 0; i < units.heads.size(); ++i) {
    keys.heads[i] = static_cast<uint8_t>(units.heads[i]);
  }
  for (size_t i = 0; i < units.first.size(); ++i) {
    keys.first[i] = static_cast<uint8_t>(units.first[i]);
  }
  for (int64_t g = 0; g < f.kv_heads; ++g) {
    const plan::HeadTargets& targets = units.targets[static_cast<size_t>(g)];
    keys.dk[g] = key_target(a.dk[g], targets.dk, f.qk_dim);
    keys.dv[g] = key_target(a.dv[g], targets.dv, f.v_dim);
    keys.want_keys[g] = a.dk[g].data != nullptr;
    keys.want_values[g] = a.dv[g].data != nullptr;
  }

  if (const int64_t tiles = plan::longest_query_tiles(f, kTiles.rows())) {
    const QueryParams params{b, static_cast<bfloat16*>(a.dq),
                             plan::copy_bytes(a.dq, f.q_stride * 2, f.qk_dim * 2)};
    const dim3 grid(static_cast<unsigned>(f.heads * f.sequence_count),
                    static_cast<unsigned>(tiles));
    launch(f.dropout.rate > 0 ? &attention_backward_queries_kernel<kD, kE, true>
                              : &attention_backward_queries_kernel<kD, kE, false>,
           grid, dim3(kTiles.threads()), static_cast<size_t>(kTiles.shared_bytes), stream, params);
  }
  if constexpr (kTwoPasses) {
    launch_keys<kD, kE, plan::KeySums::kKeys>(a, keys, stream);
    launch_keys<kD, kE, plan::KeySums::kValues>(a, keys, stream);
  } else {
    launch_keys<kD, kE, plan::KeySums::kBoth>(a, keys, stream);
  }
  return true;
}

}  // namespace
}  // namespace attention

static void attention_backward(const AttentionBackwardArgs& a, Stream stream) {
  using attention::launch_backward;
  const plan::HeadDims dims = plan::padded_head_dims(a.forward.qk_dim, a.forward.v_dim);
  static_cast<void>(
      launch_backward<16, 16>(dims, a, stream) || launch_backward<32, 32>(dims, a, stream) ||
      launch_backward<64, 64>(dims, a, stream) || launch_backward<80, 80>(dims, a, stream) ||
      launch_backward<96, 64>(dims, a, stream) || launch_backward<96, 96>(dims, a, stream) ||
      launch_backward<128, 128>(dims, a, stream) || launch_backward<192, 128>(dims, a, stream) ||
      launch_backward<192, 192>(dims, a, stream) || launch_backward<256, 256>(dims, a, stream));
}

void register_attention_backward() {
  attention_backward_table().set(DeviceKind::kCuda, Dtype::kBFloat16, &attention_backward);
}

}  // namespace heirloom::cuda
