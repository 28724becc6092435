// SPDX-License-Identifier: Apache-2.0
//
// Computes     o = softmax(scale q k^T + mask) v over K and V heads with their own addresses, and
//              lse, in one pass over the keys
// Shapes       q (N, H, D); k[g] (S, D), v[g] (S, E) for g in G; o (N, H, E); lse (N, H); H a
//              multiple of G; D and E up to 256, any
// Layout       rows by strides; keys contiguous from key_row or in blocks of kKvBlockTokens rows;
//              tiles of 64 queries x 64 keys
// Saved        lse
// Work         one block of 128 threads per (sequence, head, query tile), long ones first; Q, K or
//              V, and P in shared memory, O in registers
// Bytes        read q + visible keys x (K + V) of every KV head, from cache after the first query
//              tile and head of a group; written o + lse
// FLOPs        2 (D + E) per visible (query, key) pair and head; 2 D where the V head is zero
// Precision    float32 FMA, no TF32; expf and logf; rounded once at the end
// Determinism  key tiles start at multiples of 64 positions, every element is summed in an order
//              that only the key's position decides, and what a mask hides adds exact zeros: a
//              query's bits depend on its position and its keys alone, not on tiles or chunks
// Limits       128 KV heads; (64 (D + max(D, E)) + 4608) x 4 bytes of shared memory; a key that no
//              mask hides from its tile of queries must be finite, also for the queries that do not
//              see it
// Source       online softmax: Milakov and Gimelshein (arXiv 1805.02867); tiling: Dao et al. (arXiv
//              2205.14135)
#include "kernels/cuda/attention_float32.cuh"

namespace heirloom::cuda {
namespace attention_float32 {
namespace {

inline constexpr int kQueries = 64;
inline constexpr int kRows = kQueries / kThreadRows;
inline constexpr int kColumns = kKeys / kThreadColumns;
inline constexpr int kPitch = weight_pitch(kKeys);

struct ForwardParams {
  Call call;
  int tiles;  ///< of the longest sequence
};

size_t shared_bytes(int d, int e) {
  const int rows = row_pitch(d) + std::max(row_pitch(d), row_pitch(e));
  return sizeof(float4) * static_cast<size_t>(kQueries * rows) +
         sizeof(float) * static_cast<size_t>(kQueries * kPitch);
}

struct RowState {
  float maximum[kRows], total[kRows];
};

/// Scores become probabilities relative to the rows' new maxima, sums so far are rescaled.
template <int V>
__device__ __forceinline__ void online_softmax(float (&scores)[kRows][kColumns], RowState& state,
                                               float4 (&sums)[kRows][V]) {
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    float maximum = scores[i][0];
#pragma unroll
    for (int j = 1; j < kColumns; ++j) maximum = fmaxf(maximum, scores[i][j]);
    maximum = fmaxf(state.maximum[i], row_max(maximum));
    const float reference = maximum == -INFINITY ? 0.0f : maximum;
    float total = 0;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      scores[i][j] = expf(scores[i][j] - reference);
      total += scores[i][j];
    }
    const float factor = expf(state.maximum[i] - reference);
    state.total[i] = state.total[i] * factor + row_sum(total);
    state.maximum[i] = maximum;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      sums[i][v].x *= factor;
      sums[i][v].y *= factor;
      sums[i][v].z *= factor;
      sums[i][v].w *= factor;
    }
  }
}

template <int V>
__global__ void __launch_bounds__(kThreads)
    attention_forward_float32_kernel(const __grid_constant__ ForwardParams p) {
  DYN_SMEM(shared);
  const Call& call = p.call;
  const int block = static_cast<int>(blockIdx.x), h = block / p.tiles % call.heads;
  const AttentionSequence s = call.sequences[block / p.tiles / call.heads];
  const int from = (p.tiles - 1 - block % p.tiles) * kQueries;
  if (from >= s.queries) return;
  const int queries = min(kQueries, static_cast<int>(s.queries) - from);
  const int first = static_cast<int>(s.keys - s.queries) + from, end = first + queries;
  const int64_t row = s.query_row + from;
  const Head& head = call.head[h / (call.heads / call.kv_heads)];
  const int d_pitch = row_pitch(call.qk_dim), e_pitch = row_pitch(call.v_dim);
  const int d_columns = (call.qk_dim + 3) / 4;
  const int y = static_cast<int>(threadIdx.x) / kThreadColumns;
  const int x = static_cast<int>(threadIdx.x) % kThreadColumns;
  const bool dropout = call.dropout.counters.rate > 0;
  const uint64_t philox_key = dropout ? call.dropout.counters.philox_key() : 0;

  float4* q = reinterpret_cast<float4*>(shared);
  float4* kv = q + kQueries * d_pitch;
  float* weights = reinterpret_cast<float*>(kv + kKeys * max(d_pitch, e_pitch));

  copy_tile<kQueries>(q, d_pitch, call.q + row * call.q_stride + h * call.qk_dim, call.q_stride,
                      queries, call.qk_dim, call.aligned_q);
  RowState state;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    state.maximum[i] = -INFINITY;
    state.total[i] = 0;
  }
  float4 sums[kRows][V];
  clear(sums);

  for (int tile = max(0, first - call.window + 1) / kKeys * kKeys; tile < end; tile += kKeys) {
    const int keys = min(kKeys, end - tile);
    copy_keys<kKeys>(call, head, s, tile, keys, kv);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    float scores[kRows][kColumns];
    multiply_rows(q, kv, d_pitch, d_columns, scores);
    __syncthreads();
    if (head.v != nullptr) {
      copy_values<kKeys>(call, head, s, tile, keys, kv);
      cp_async_commit();
    }

    const bool partial = tile + kKeys - 1 > first || end - 1 - tile >= call.window;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        scores[i][j] *= call.scale;
        if (!partial) continue;
        const int distance = first + y + i * kThreadRows - (tile + x + j * kThreadColumns);
        if (distance < 0 || distance >= call.window) scores[i][j] = -INFINITY;
      }
    }
    online_softmax(scores, state, sums);
    if (head.v == nullptr) continue;

    if (dropout) {
      const uint32_t kept = kept_keys_in_columns<kRows, kColumns>(call, philox_key, h,
                                                                  s.dropout_sequence, first, tile);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          scores[i][j] *= kept >> (i * kColumns + j) & 1u ? call.dropout.kept : 0.0f;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        weights[(y + i * kThreadRows) * kPitch + x + j * kThreadColumns] = scores[i][j];
      }
    }
    cp_async_wait<0>();
    __syncthreads();
    add_products<kPitch>(weights, kv, e_pitch, call.v_dim, keys, sums);
    __syncthreads();
  }

#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const float total = state.total[i];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      sums[i][v].x /= total;
      sums[i][v].y /= total;
      sums[i][v].z /= total;
      sums[i][v].w /= total;
    }
    const int r = y + i * kThreadRows;
    if (call.lse != nullptr && x == 0 && r < queries) {
      call.lse[(row + r) * call.heads + h] = state.maximum[i] + logf(total);
    }
  }
  store_rows(call.o + row * call.o_stride + h * call.v_dim, call.o_stride, queries, call.v_dim,
             call.aligned_o, false, 1.0f, sums);
}

}  // namespace

void attention_forward(const AttentionForwardArgs& args, Stream stream) {
  const int64_t tiles = plan::longest_query_tiles(args, kQueries);
  if (tiles == 0) return;
  const ForwardParams params{make_call(args), static_cast<int>(tiles)};
  const int v_dim = params.call.v_dim;
  const auto kernel = v_dim <= 32    ? &attention_forward_float32_kernel<1>
                      : v_dim <= 64  ? &attention_forward_float32_kernel<2>
                      : v_dim <= 96  ? &attention_forward_float32_kernel<3>
                      : v_dim <= 128 ? &attention_forward_float32_kernel<4>
                                     : &attention_forward_float32_kernel<8>;
  launch(kernel, grid(params.tiles, args.heads, args.sequence_count), dim3(kThreads),
         shared_bytes(params.call.qk_dim, v_dim), stream, params);
}

}  // namespace attention_float32

void register_attention_float32() {
  attention_forward_table().set(DeviceKind::kCuda, Dtype::kFloat32,
                                &attention_float32::attention_forward);
  attention_backward_table().set(DeviceKind::kCuda, Dtype::kFloat32,
                                 &attention_float32::attention_backward);
}

}  // namespace heirloom::cuda
