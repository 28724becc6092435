// SPDX-License-Identifier: Apache-2.0
//
// Computes     o = softmax(scale q k^T + mask) v over K and V heads with their own addresses, and
//              lse, in one pass over the keys, on tensor cores (bfloat16)
// Shapes       q (N, H, D); k[g] (S, D), v[g] (S, E) for g in G; o (N, H, E); lse (N, H); H a
//              multiple of G; D and E to 256, padded in shared memory to compiled widths
// Layout       rows by strides; keys contiguous from key_row or in blocks of kKvBlockTokens rows;
//              16-byte chunks of shared rows swizzled: no bank conflicts
// Saved        lse, where the caller wants it
// Work         one CTA per (query tile, head, sequence), long ones first; each warp owns 32 rows
//              (16 where a head is wider than 128, with dropout than 80) and walks along the keys in
//              tiles of 64, the next tile in flight. Tiles that the mask hides are skipped, only
//              those it cuts are masked
// Bytes        read q + visible keys x (K + V) of every KV head; written o + lse (4 bytes in a
//              sector of its own: rows of lse are heads apart)
// FLOPs        2 (D + E) per visible (query, key) pair and head; 2 D where the V head is zero
// Precision    products of bfloat16 summed in float32; softmax in float32 relative to the running
//              maximum; probabilities, and the mean of a mean head, rounded to bfloat16 for the
//              second product
// Determinism  key tiles start at multiples of 64 positions, every element is summed in the order of
//              the keys, and what a mask hides adds exact zeros: a query's bits depend on its
//              position and its keys alone, not on tiles, chunks, neighbours or pages
// Limits       D, E <= 256; 128 KV heads; scale > 0; positions below 2^30; K and V of the tiles that
//              a tile of queries sees must be finite
// Source       online softmax: Milakov and Gimelshein (arXiv 1805.02867); tiling: Dao (arXiv
//              2307.08691)
#include <cmath>
#include <type_traits>

#include "heirloom/core/error.h"
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/common/launch.cuh"

namespace heirloom::cuda {
namespace attention {

CommonParams common_params(const AttentionForwardArgs& a) {
  if (a.kv_heads > kMaxKvHeads) {
    throw_error<UnsupportedError>("[attention] expected at most {} KV heads on CUDA; got {}",
                                  kMaxKvHeads, a.kv_heads);
  }
  if (a.qk_dim > plan::kMaxHeadDim || a.v_dim > plan::kMaxHeadDim) {
    throw_error<UnsupportedError>("[attention] expected heads of at most {} on CUDA; got {} and {}",
                                  plan::kMaxHeadDim, a.qk_dim, a.v_dim);
  }
  if (!(a.scale > 0)) {
    throw_error<UnsupportedError>("[attention] expected a positive scale on CUDA; got {}", a.scale);
  }
  HEIRLOOM_CHECK(a.device_sequences != nullptr, "[attention] expected sequences on the device");
  constexpr int kSize = sizeof(bfloat16);
  CommonParams p{};
  p.q = static_cast<const bfloat16*>(a.q);
  p.sequences = a.device_sequences;
  p.sequence_count = static_cast<int>(a.sequence_count);
  p.heads = static_cast<int>(a.heads);
  p.per_group = static_cast<int>(a.heads / a.kv_heads);
  p.q_rows = {a.q_stride, static_cast<int>(a.qk_dim),
              plan::copy_bytes(a.q, a.q_stride * kSize, a.qk_dim * kSize)};
  p.o_rows = {a.o_stride, static_cast<int>(a.v_dim),
              plan::copy_bytes(a.o, a.o_stride * kSize, a.v_dim * kSize)};
  p.k_bytes = p.v_bytes = 16;
  for (int64_t g = 0; g < a.kv_heads; ++g) {
    const KvHead &k = a.k[g], &v = a.v[g];
    p.k[g] = k;
    p.v[g] = v;
    const auto narrow = [](int bytes, const void* data, int64_t stride, int64_t dim) {
      const int own = data == nullptr ? 16 : plan::copy_bytes(data, stride * kSize, dim * kSize);
      return own < bytes ? own : bytes;
    };
    p.k_bytes = narrow(p.k_bytes, k.data, k.row_stride, a.qk_dim);
    p.v_bytes = narrow(p.v_bytes, v.data, v.row_stride, a.v_dim);
    p.v_bytes = narrow(p.v_bytes, v.second, v.row_stride, a.v_dim);
  }
  p.window = a.window == 0 || a.window >= kNoWindow ? kNoWindow : static_cast<int>(a.window);
  p.scale = static_cast<float>(a.scale);
  p.scale_log2 = static_cast<float>(a.scale * 1.4426950408889634);
  p.dropout = {a.dropout, static_cast<uint32_t>(std::ceil(a.dropout.rate * 0x1p24)),
               static_cast<float>(1 / (1 - a.dropout.rate))};
  return p;
}

struct ForwardParams {
  CommonParams common;
  bfloat16* o;
  float* lse;
};

/// Running statistics and sums of a warp's rows.
template <int kM, int kE>
struct RowState {
  float maximum[kM][2], sum[kM][2];
  Accumulator o[kM][kE / 8];
};

/// Scores of a tile become probabilities relative to the new maxima; earlier sums are scaled.
template <int kM, int kN, int kE>
__device__ __forceinline__ void online_softmax(Accumulator (&scores)[kM][kN],
                                               RowState<kM, kE>& state, float scale_log2) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float before = state.maximum[m][half];
      float maximum = before;
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        maximum = fmaxf(maximum, fmaxf(scores[m][n].x[2 * half], scores[m][n].x[2 * half + 1]));
      }
      maximum = fmaxf(maximum, __shfl_xor_sync(0xffffffffu, maximum, 1));
      maximum = fmaxf(maximum, __shfl_xor_sync(0xffffffffu, maximum, 2));
      state.maximum[m][half] = maximum;
      // A row that sees nothing yet is -inf everywhere: its reference must not be.
      const float reference = maximum == -INFINITY ? 0.0f : maximum * scale_log2;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& x = scores[m][n].x[2 * half + c];
          x = exp2_approx(fmaf(x, scale_log2, -reference));
          sum += x;
        }
      }
      const float factor = exp2_approx(before * scale_log2 - reference);
      state.sum[m][half] = state.sum[m][half] * factor + sum;
#pragma unroll
      for (int e = 0; e < kE / 8; ++e) {
        state.o[m][e].x[2 * half] *= factor;
        state.o[m][e].x[2 * half + 1] *= factor;
      }
    }
  }
}

template <int kD, int kE, bool kDropout>
__global__ void __launch_bounds__(plan::forward_tiles(kD, kE, kDropout).threads(),
                                  plan::ctas_per_sm(kD, kE))
    attention_forward_tiles_kernel(const __grid_constant__ ForwardParams params) {
  constexpr plan::AttentionTiles kTiles = plan::forward_tiles(kD, kE, kDropout);
  constexpr int kThreads = kTiles.threads(), kRows = kTiles.rows(), kM = kTiles.row_tiles;
  constexpr int kN = kKeyTile / 8, kStages = kTiles.stages;
  constexpr int kKeyBytes = kKeyTile * kD * 2, kValueBytes = kKeyTile * kE * 2;
  DYN_SMEM(shared);
  const CommonParams& p = params.common;

  CtaState& state = *reinterpret_cast<CtaState*>(shared);
  if (!begin_query_tile<kRows, kDropout>(p, state)) return;
  const int head = static_cast<int>(blockIdx.x) % p.heads;
  const bool has_value = state.v.data != nullptr;

  unsigned char *q_tile = shared + plan::kCtaStateBytes, *stages = q_tile + kRows * kD * 2;
  copy_rows<kRows, kD, kThreads>(q_tile, p.q + state.row * p.q_rows.stride + head * p.q_rows.dim,
                                 p.q_rows.stride, state.rows, p.q_rows.dim, p.q_rows.bytes);

  const int warp_row = warp_id() * kM * 16, first = state.position + warp_row;
  const int last = first + kM * 16 - 1;
  const bool has_rows = warp_row < state.rows;
  unsigned char* warp_rows = q_tile + warp_row * kD * 2;
  std::conditional_t<(kD <= 64), LeftRows<kM, kD>, LeftRowsInShared<kM, kD>> q;
  RowState<kM, kE> row_state;
  clear(row_state.o);
#pragma unroll
  for (int m = 0; m < kM; ++m) {
    row_state.maximum[m][0] = row_state.maximum[m][1] = -INFINITY;
    row_state.sum[m][0] = row_state.sum[m][1] = 0;
  }

  // The first round only loads: what a tile needs is asked for in one place, one round ahead.
  int stage = 1;
#pragma unroll 1
  for (int key0 = state.from - kKeyTile; key0 < state.end; key0 += kKeyTile) {
    cp_async_wait<0>();
    __syncthreads();
    if (key0 == state.from) q.load(warp_rows);
    const unsigned char* k_tile = stages + stage * (kKeyBytes + kValueBytes);
    stage ^= 1;
    if (const int next = key0 + kKeyTile; next < state.end) {
      unsigned char* to_tile = stages + stage * (kKeyBytes + kValueBytes);
      copy_head_rows<kKeyTile, kD, kThreads>(to_tile, state.k, state.sequence, next, p.q_rows.dim,
                                             p.k_bytes);
      if (has_value) {
        copy_head_rows<kKeyTile, kE, kThreads>(to_tile + kKeyBytes, state.v, state.sequence, next,
                                               p.o_rows.dim, p.v_bytes);
      }
      cp_async_commit();
    }
    // Uniform over the warp: rows beyond the sequence, tiles that all of its rows do not see.
    if (key0 < state.from || !has_rows || key0 > last || key0 + kKeyTile - 1 <= first - p.window)
      continue;
    [[maybe_unused]] uint32_t dropped[kM];
    if constexpr (kDropout) {
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        dropped[m] =
            dropped_of_query_rows<kN>(state.dropout_key, key0, first + m * 16 + lane_id() / 4, head,
                                      state.sequence.dropout_sequence, p.dropout.threshold);
      }
    }
    Accumulator scores[kM][kN];
    multiply_rows<kD>(scores, q, k_tile);
    if (key0 + kKeyTile - 1 > first || key0 <= last - p.window) {
      mask_query_rows(scores, first, key0, p.window);
    }
    online_softmax(scores, row_state, p.scale_log2);
    if (!has_value) continue;
    if constexpr (kDropout) {
#pragma unroll
      for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int n = 0; n < kN; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            if ((dropped[m] >> (4 * n + e)) & 1u) scores[m][n].x[e] = 0;
          }
        }
      }
    }
    multiply_columns<kE>(row_state.o, scores, k_tile + kKeyBytes);
  }
  static_assert(kStages == 2);

  if (!has_rows) return;
  const int64_t row = state.row + warp_row;
  const int rows = state.rows - warp_row;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = row_state.sum[m][half];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      const float factor = (kDropout ? p.dropout.scale : 1.0f) / sum;
#pragma unroll
      for (int e = 0; e < kE / 8; ++e) {
        row_state.o[m][e].x[2 * half] *= factor;
        row_state.o[m][e].x[2 * half + 1] *= factor;
      }
      const int r = m * 16 + half * 8 + lane_id() / 4;
      if (params.lse != nullptr && lane_id() % 4 == 0 && r < rows) {
        params.lse[(row + r) * p.heads + head] =
            row_state.maximum[m][half] * p.scale_log2 * kLn2 + logf(sum);
      }
    }
  }
  stage_rows<kE>(warp_rows, row_state.o);
  store_rows<kM * 16, kE>(warp_rows, params.o + row * p.o_rows.stride + head * p.o_rows.dim,
                          p.o_rows.stride, rows, p.o_rows.dim, p.o_rows.bytes);
}

template <int kD, int kE, bool kDropout>
void launch_forward(const AttentionForwardArgs& a, Stream stream) {
  constexpr plan::AttentionTiles kTiles = plan::forward_tiles(kD, kE, kDropout);
  const int64_t tiles = plan::longest_query_tiles(a, kTiles.rows());
  if (tiles == 0) return;
  const ForwardParams params{common_params(a), static_cast<bfloat16*>(a.o),
                             static_cast<float*>(a.lse)};
  const dim3 grid(static_cast<unsigned>(a.heads * a.sequence_count), static_cast<unsigned>(tiles));
  launch(&attention_forward_tiles_kernel<kD, kE, kDropout>, grid, dim3(kTiles.threads()),
         static_cast<size_t>(kTiles.shared_bytes), stream, params);
}

template <int kD, int kE>
bool launch_forward(plan::HeadDims dims, const AttentionForwardArgs& a, Stream stream) {
  if (dims != plan::HeadDims{kD, kE}) return false;
  a.dropout.rate > 0 ? launch_forward<kD, kE, true>(a, stream)
                     : launch_forward<kD, kE, false>(a, stream);
  return true;
}

}  // namespace attention

static void attention_forward(const AttentionForwardArgs& a, Stream stream) {
  using attention::launch_forward;
  const plan::HeadDims dims = plan::padded_head_dims(a.qk_dim, a.v_dim);
  if (launch_forward<16, 16>(dims, a, stream) || launch_forward<32, 32>(dims, a, stream) ||
      launch_forward<64, 64>(dims, a, stream) || launch_forward<80, 80>(dims, a, stream) ||
      launch_forward<96, 64>(dims, a, stream) || launch_forward<96, 96>(dims, a, stream) ||
      launch_forward<128, 128>(dims, a, stream) || launch_forward<192, 128>(dims, a, stream) ||
      launch_forward<192, 192>(dims, a, stream) || launch_forward<256, 256>(dims, a, stream)) {
    return;
  }
  throw_error<UnsupportedError>("[attention] expected heads of at most {} on CUDA; got {} and {}",
                                plan::kMaxHeadDim, a.qk_dim, a.v_dim);
}

void register_attention_forward() {
  attention_forward_table().set(DeviceKind::kCuda, Dtype::kBFloat16, &attention_forward);
}

}  // namespace heirloom::cuda
