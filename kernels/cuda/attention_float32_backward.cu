// SPDX-License-Identifier: Apache-2.0
//
// Computes     with P = exp(scale q k^T - lse) and delta_i = dout_i . o_i: dV += P^T dout, dS =
//              scale P (dout V^T - delta), dq = dS k, dK += dS^T q; each head's dK and dV go where
//              its KvHeadGrad says
// Shapes       as forward; dk[g] (S, D) and dv[g] (S, E) per KV head
// Layout       as forward
// Saved        q, K, V, o, lse of forward; delta (N, H) passes from the first kernel to the second
//              in the workspace
// Work         two kernels of 128 threads. dq: a block per (sequence, head, tile of 64 or 32
//              queries), over the keys. dk and dv: a block per (sequence, unit, tile of 64 or 32
//              keys), over heads and tiles of 32 queries. A unit is the KV heads that share a
//              gradient address, in order
// Bytes        read q, o, dout, lse, K, V twice and what is added to; written dq, delta and every
//              gradient address
// FLOPs        2 (3 D + 2 E) per visible (query, key) pair and head, and 2 (D + E) that both kernels
//              compute; none where the V head is zero
// Precision    float32 FMA, no TF32; expf; dK and dV of a head are summed over all its queries
//              before they are stored
// Determinism  one block per tile of a gradient address, fixed order, no atomics
// Limits       as forward, with up to 142,336 bytes of shared memory (D = E = 256)
// Source       Dao et al. (arXiv 2205.14135), algorithm 4; mean heads: both sources receive half
#include "kernels/cuda/attention_float32.cuh"
#include "kernels/cuda/error.h"

namespace heirloom::cuda::attention_float32 {
namespace {

/// Where the gradient of one K or V head goes, `add` resolved over the call.
struct Target {
  float *data, *second;
  int64_t stride;
  bool add, add_second;
};

struct BackwardParams {
  Call call;
  const float* dout;
  float* dq;
  float* delta;  ///< (N, H)
  bool aligned_dq, aligned_dout, aligned_dk, aligned_dv;
  int tiles;  ///< of the longest sequence, in queries or in keys
  int units;
  uint8_t unit_begin[plan::kMaxKvHeads + 1];  ///< in unit_heads
  uint8_t unit_heads[plan::kMaxKvHeads];
  Target dk[plan::kMaxKvHeads], dv[plan::kMaxKvHeads];
};

Target make_target(const KvHeadGrad& grad, const plan::GradientTarget (&to)[2]) {
  return {static_cast<float*>(to[0].data), static_cast<float*>(to[1].data), grad.row_stride,
          to[0].add, to[1].add};
}

bool aligned_target(const Target& t, int dim) {
  return t.data == nullptr ||
         (aligned_rows(t.data, t.stride, dim) && aligned_rows(t.second, t.stride, dim));
}

void set_targets(const AttentionBackwardArgs& b, BackwardParams& p) {
  const plan::HeadUnits units = plan::head_units(b, false);
  p.units = static_cast<int>(units.count());
  for (size_t i = 0; i < units.first.size(); ++i) {
    p.unit_begin[i] = static_cast<uint8_t>(units.first[i]);
  }
  for (size_t i = 0; i < units.heads.size(); ++i) {
    p.unit_heads[i] = static_cast<uint8_t>(units.heads[i]);
  }
  p.aligned_dk = p.aligned_dv = true;
  for (size_t g = 0; g < units.targets.size(); ++g) {
    p.dk[g] = make_target(b.dk[g], units.targets[g].dk);
    p.dv[g] = make_target(b.dv[g], units.targets[g].dv);
    p.aligned_dk = p.aligned_dk && aligned_target(p.dk[g], p.call.qk_dim);
    p.aligned_dv = p.aligned_dv && aligned_target(p.dv[g], p.call.v_dim);
  }
}

/// Blocks that share a multiprocessor: up to 64 columns shared memory has room for three.
template <int V>
inline constexpr int kBlocks = V <= 2 ? 3 : 1;

// dq: rows are queries, columns are keys.

inline constexpr int kKeyPitch = weight_pitch(kKeys);

size_t query_shared_bytes(int rows, int d, int e) {
  const int pitch = row_pitch(d) + row_pitch(e);
  return sizeof(float4) *
             static_cast<size_t>(rows * pitch + kKeys * std::max(row_pitch(d), row_pitch(e))) +
         sizeof(float) * static_cast<size_t>(rows * kKeyPitch);
}

template <int R, int V>
__global__ void __launch_bounds__(kThreads, kBlocks<V>)
    attention_backward_float32_query_kernel(const __grid_constant__ BackwardParams p) {
  DYN_SMEM(shared);
  constexpr int kQueries = R * kThreadRows, C = kKeys / kThreadColumns;
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
  const int d_columns = (call.qk_dim + 3) / 4, e_columns = (call.v_dim + 3) / 4;
  const int y = static_cast<int>(threadIdx.x) / kThreadColumns;
  const int x = static_cast<int>(threadIdx.x) % kThreadColumns;
  const int64_t q_at = row * call.q_stride + h * call.qk_dim;
  const int64_t o_at = row * call.o_stride + h * call.v_dim;

  float4 dq[R][V];
  clear(dq);
  if (head.v == nullptr) {  // the output is zero whatever the scores are
    store_rows(p.dq + q_at, call.q_stride, queries, call.qk_dim, p.aligned_dq, false, 1.0f, dq);
    return;
  }
  const bool dropout = call.dropout.counters.rate > 0;
  const uint64_t philox_key = dropout ? call.dropout.counters.philox_key() : 0;
  float4* q = reinterpret_cast<float4*>(shared);
  float4* dout = q + kQueries * d_pitch;
  float4* kv = dout + kQueries * e_pitch;
  float* weights = reinterpret_cast<float*>(kv + kKeys * max(d_pitch, e_pitch));

  copy_tile<kQueries>(q, d_pitch, call.q + q_at, call.q_stride, queries, call.qk_dim,
                      call.aligned_q);
  copy_tile<kQueries>(dout, e_pitch, p.dout + o_at, call.o_stride, queries, call.v_dim,
                      p.aligned_dout);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();

  float lse[R], delta[R];
#pragma unroll
  for (int i = 0; i < R; ++i) {
    const int r = y + i * kThreadRows;
    lse[i] = delta[i] = 0;
    if (r < queries) {
      lse[i] = call.lse[(row + r) * call.heads + h];
      for (int c = x; c < e_columns; c += kThreadColumns) {
        const float4 a = dout[r * e_pitch + c];
        const float4 b =
            load_four(call.o + o_at + r * call.o_stride, 4 * c, call.v_dim, call.aligned_o);
        delta[i] += a.x * b.x + a.y * b.y + (a.z * b.z + a.w * b.w);
      }
    }
    delta[i] = row_sum(delta[i]);
    if (x == 0 && r < queries) p.delta[(row + r) * call.heads + h] = delta[i];
  }

  for (int tile = max(0, first - call.window + 1) / kKeys * kKeys; tile < end; tile += kKeys) {
    const int keys = min(kKeys, end - tile);
    copy_values<kKeys>(call, head, s, tile, keys, kv);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    float dp[R][C];
    multiply_rows(dout, kv, e_pitch, e_columns, dp);
    __syncthreads();
    copy_keys<kKeys>(call, head, s, tile, keys, kv);
    cp_async_commit();
    if (dropout) {
      const uint32_t kept =
          kept_keys_in_columns<R, C>(call, philox_key, h, s.dropout_sequence, first, tile);
#pragma unroll
      for (int i = 0; i < R; ++i) {
#pragma unroll
        for (int j = 0; j < C; ++j) {
          dp[i][j] *= kept >> (i * C + j) & 1u ? call.dropout.kept : 0.0f;
        }
      }
    }
    cp_async_wait<0>();
    __syncthreads();
    float scores[R][C];
    multiply_rows(q, kv, d_pitch, d_columns, scores);

    const bool partial = tile + kKeys - 1 > first || end - 1 - tile >= call.window;
#pragma unroll
    for (int i = 0; i < R; ++i) {
#pragma unroll
      for (int j = 0; j < C; ++j) {
        float ds = expf(scores[i][j] * call.scale - lse[i]) * (dp[i][j] - delta[i]) * call.scale;
        if (partial) {
          const int distance = first + y + i * kThreadRows - (tile + x + j * kThreadColumns);
          if (distance < 0 || distance >= call.window) ds = 0;
        }
        weights[(y + i * kThreadRows) * kKeyPitch + x + j * kThreadColumns] = ds;
      }
    }
    __syncwarp();
    add_products<kKeyPitch>(weights, kv, d_pitch, call.qk_dim, keys, dq);
    __syncthreads();
  }
  store_rows(p.dq + q_at, call.q_stride, queries, call.qk_dim, p.aligned_dq, false, 1.0f, dq);
}

// dk and dv: rows are keys, columns are queries.

inline constexpr int kTileQueries = 32;
inline constexpr int kQueryPitch = weight_pitch(kTileQueries);

size_t key_shared_bytes(int rows, int d, int e) {
  return sizeof(float4) *
             static_cast<size_t>((rows + kTileQueries) * (row_pitch(d) + row_pitch(e))) +
         sizeof(float) * static_cast<size_t>(rows * kQueryPitch + 2 * kTileQueries);
}

/// What a block of the second kernel has in shared memory.
struct KeyTiles {
  float4 *k, *v, *q, *dout;
  float *weights, *lse, *delta;
};

/// Adds to dk and dv of a tile of keys what one tile of queries of head h contributes.
template <int R, int V>
__device__ __forceinline__ void add_query_tile(const BackwardParams& p, const AttentionSequence& s,
                                               int h, int tile, int from, uint64_t philox_key,
                                               bool want_dk, bool want_dv, const KeyTiles& t,
                                               float4 (&dk)[R][V], float4 (&dv)[R][V]) {
  constexpr int C = kTileQueries / kThreadColumns, kRows = R * kThreadRows;
  const Call& call = p.call;
  const int thread = static_cast<int>(threadIdx.x);
  const int y = thread / kThreadColumns, x = thread % kThreadColumns;
  const int queries = min(kTileQueries, static_cast<int>(s.queries) - from);
  const int first = static_cast<int>(s.keys - s.queries) + from;
  const int64_t row = s.query_row + from;
  const int d_pitch = row_pitch(call.qk_dim), e_pitch = row_pitch(call.v_dim);

  __syncthreads();
  copy_tile<kTileQueries>(t.q, d_pitch, call.q + row * call.q_stride + h * call.qk_dim,
                          call.q_stride, queries, call.qk_dim, call.aligned_q);
  copy_tile<kTileQueries>(t.dout, e_pitch, p.dout + row * call.o_stride + h * call.v_dim,
                          call.o_stride, queries, call.v_dim, p.aligned_dout);
  cp_async_commit();
  if (thread < 2 * kTileQueries) {
    const int i = thread % kTileQueries;
    const float* from_global = thread < kTileQueries ? call.lse : p.delta;
    t.lse[thread] = i < queries ? from_global[(row + i) * call.heads + h] : 0.0f;
  }
  cp_async_wait<0>();
  __syncthreads();

  // Queries past the last have q, dout, lse and delta zero: P = 1 times dout = 0, and dS = 0.
  float scores[R][C], dp[R][C];
  multiply_rows(t.k, t.q, d_pitch, (call.qk_dim + 3) / 4, scores);
  multiply_rows(t.v, t.dout, e_pitch, (call.v_dim + 3) / 4, dp);
  const bool dropout = call.dropout.counters.rate > 0;
  const uint32_t kept =
      dropout ? kept_keys_in_rows<R, C>(call, philox_key, h, s.dropout_sequence, first, tile) : 0;
  const bool partial = tile + kRows - 1 > first || first + kTileQueries - 1 - tile >= call.window;
#pragma unroll
  for (int i = 0; i < R; ++i) {
#pragma unroll
    for (int j = 0; j < C; ++j) {
      const int query = x + j * kThreadColumns;
      float prob = expf(scores[i][j] * call.scale - t.lse[query]);
      if (partial) {
        const int distance = first + query - (tile + y + i * kThreadRows);
        if (distance < 0 || distance >= call.window) prob = 0;
      }
      float weight = prob;
      if (dropout) {
        const float keep = kept >> (i * C + j) & 1u ? call.dropout.kept : 0.0f;
        weight *= keep;
        dp[i][j] *= keep;
      }
      t.weights[(y + i * kThreadRows) * kQueryPitch + query] = weight;
      scores[i][j] = prob * (dp[i][j] - t.delta[query]) * call.scale;
    }
  }
  if (want_dv) {
    __syncwarp();
    add_products<kQueryPitch>(t.weights, t.dout, e_pitch, call.v_dim, queries, dv);
    __syncwarp();
  }
  if (!want_dk) return;
#pragma unroll
  for (int i = 0; i < R; ++i) {
#pragma unroll
    for (int j = 0; j < C; ++j) {
      t.weights[(y + i * kThreadRows) * kQueryPitch + x + j * kThreadColumns] = scores[i][j];
    }
  }
  __syncwarp();
  add_products<kQueryPitch>(t.weights, t.q, d_pitch, call.qk_dim, queries, dk);
}

template <int R, int V>
__device__ __forceinline__ void store_gradient(const Target& to, int64_t row, int valid, int dim,
                                               bool aligned, const float4 (&sums)[R][V]) {
  if (to.data == nullptr) return;
  const float factor = to.second == nullptr ? 1.0f : 0.5f;
  store_rows(to.data + row * to.stride, to.stride, valid, dim, aligned, to.add, factor, sums);
  if (to.second == nullptr) return;
  store_rows(to.second + row * to.stride, to.stride, valid, dim, aligned, to.add_second, factor,
             sums);
}

template <int R, int V>
__global__ void __launch_bounds__(kThreads, kBlocks<V>)
    attention_backward_float32_key_kernel(const __grid_constant__ BackwardParams p) {
  DYN_SMEM(shared);
  constexpr int kRows = R * kThreadRows;
  const Call& call = p.call;
  const int block = static_cast<int>(blockIdx.x), unit = block / p.tiles % p.units;
  const AttentionSequence s = call.sequences[block / p.tiles / p.units];
  const int tile = block % p.tiles * kRows;
  if (tile >= s.keys) return;
  const int keys = min(kRows, static_cast<int>(s.keys) - tile);
  const int64_t row = stream_row(s, tile);
  const int first = static_cast<int>(s.keys - s.queries), group = call.heads / call.kv_heads;
  const int from = max(0, tile - first) / kTileQueries * kTileQueries;
  const int end = min(static_cast<int>(s.queries), tile + kRows - 1 + call.window - first);
  const int d_pitch = row_pitch(call.qk_dim), e_pitch = row_pitch(call.v_dim);
  const uint64_t philox_key =
      call.dropout.counters.rate > 0 ? call.dropout.counters.philox_key() : 0;
  KeyTiles t;
  t.k = reinterpret_cast<float4*>(shared);
  t.v = t.k + kRows * d_pitch;
  t.q = t.v + kRows * e_pitch;
  t.dout = t.q + kTileQueries * d_pitch;
  t.weights = reinterpret_cast<float*>(t.dout + kTileQueries * e_pitch);
  t.lse = t.weights + kRows * kQueryPitch;
  t.delta = t.lse + kTileQueries;

  for (int n = p.unit_begin[unit]; n < p.unit_begin[unit + 1]; ++n) {
    const int g = p.unit_heads[n];
    const Head& head = call.head[g];
    const bool want_dk = p.dk[g].data != nullptr, want_dv = p.dv[g].data != nullptr;
    float4 dk[R][V], dv[R][V];
    clear(dk);
    clear(dv);
    if (head.v != nullptr && from < end) {  // else the output does not depend on these keys
      __syncthreads();
      copy_keys<kRows>(call, head, s, tile, keys, t.k);
      copy_values<kRows>(call, head, s, tile, keys, t.v);
      for (int h = g * group; h < (g + 1) * group; ++h) {
#pragma unroll 1
        for (int query = from; query < end; query += kTileQueries) {
          add_query_tile<R, V>(p, s, h, tile, query, philox_key, want_dk, want_dv, t, dk, dv);
        }
      }
    }
    store_gradient(p.dk[g], row, keys, call.qk_dim, p.aligned_dk, dk);
    store_gradient(p.dv[g], row, keys, call.v_dim, p.aligned_dv, dv);
  }
}

using Kernel = void (*)(BackwardParams);

/// The instances for heads of up to `width` columns. Where a tile of 64 rows has no room in
/// registers or in the device's shared memory, tiles have 32.
struct Kernels {
  int query_rows, key_rows;
  Kernel query, key;
};

template <int R, int V>
constexpr Kernels kernels() {
  return {R * kThreadRows, R * kThreadRows, &attention_backward_float32_query_kernel<R, V>,
          &attention_backward_float32_key_kernel<R, V>};
}

Kernels choose_kernels(int d, int e) {
  const int width = std::max(d, e);
  if (width > 128) return kernels<2, 8>();
  int device = 0, room = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&room, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "cudaDeviceGetAttribute");
  if (std::max(query_shared_bytes(64, d, e), key_shared_bytes(64, d, e)) >
      static_cast<size_t>(room)) {
    return kernels<2, 4>();
  }
  return width <= 32   ? kernels<4, 1>()
         : width <= 64 ? kernels<4, 2>()
         : width <= 96 ? kernels<4, 3>()
                       : kernels<4, 4>();
}

}  // namespace

void attention_backward(const AttentionBackwardArgs& args, Stream stream) {
  const AttentionForwardArgs& forward = args.forward;
  if (plan::longest_key_tiles(forward, 1) == 0) return;
  BackwardParams p{};
  p.call = make_call(forward);
  const int d = p.call.qk_dim, e = p.call.v_dim;
  p.dout = static_cast<const float*>(args.dout);
  p.dq = static_cast<float*>(args.dq);
  p.delta = static_cast<float*>(args.workspace);
  p.aligned_dq = aligned_rows(args.dq, forward.q_stride, d);
  p.aligned_dout = aligned_rows(args.dout, forward.o_stride, e);
  set_targets(args, p);

  const Kernels k = choose_kernels(d, e);
  p.tiles = static_cast<int>(plan::longest_query_tiles(forward, k.query_rows));
  if (p.tiles > 0) {
    HEIRLOOM_CHECK(args.workspace != nullptr, "[attention] expected a workspace; got none");
    launch(k.query, grid(p.tiles, forward.heads, forward.sequence_count), dim3(kThreads),
           query_shared_bytes(k.query_rows, d, e), stream, p);
  }
  p.tiles = static_cast<int>(plan::longest_key_tiles(forward, k.key_rows));
  if (p.units > 0) {
    launch(k.key, grid(p.tiles, p.units, forward.sequence_count), dim3(kThreads),
           key_shared_bytes(k.key_rows, d, e), stream, p);
  }
}

}  // namespace heirloom::cuda::attention_float32
