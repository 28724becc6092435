// SPDX-License-Identifier: Apache-2.0
//
// Computes     o = softmax(scale q k^T + mask) v over K and V heads with their own addresses, and
//              lse, in one pass over the keys
// Shapes       q (N, H, D); k[g] (S, D), v[g] (S, E) for g in G; o (N, H, E); lse (N, H); H a
//              multiple of G
// Layout       rows by strides; keys contiguous from key_row or in blocks of kKvBlockTokens rows;
//              tiles of 64 queries x 64 keys
// Saved        lse
// Work         one task per (sequence, head, query tile), long ones first; scratch (2 D + 2 E + 64)
//              x 64 floats per thread
// Bytes        read q + visible keys x (K + V) of every KV head; written o + lse
// FLOPs        2 (D + E) per visible (query, key) pair and head; 2 D where the V head is zero
// Precision    products, sums and softmax in float32, rounded once at the end
// Determinism  key tiles start at multiples of 64 positions, every element is summed in the order of
//              the keys, and what a mask hides adds exact zeros: a query's bits depend on its
//              position and its keys alone, not on tiles, chunks or threads
// Limits       a key that no mask hides from its tile of queries must be finite, also for the
//              queries that do not see it
// Source       online softmax: Milakov and Gimelshein (arXiv 1805.02867); tiling: Dao et al. (arXiv
//              2205.14135)
#include "kernels/cpu/attention_common.h"

namespace heirloom::cpu::HEIRLOOM_ISA {
namespace {

struct QueryState {
  alignas(64) float maximum[kTile];
  alignas(64) float sum[kTile];
  alignas(64) float factor[kTile];  ///< what the tile scales earlier sums by
};

/// One tile of keys: scores become probabilities relative to the new maxima.
void softmax_tile(const TileMask& mask, float scale, const float* keep, float* scores,
                  QueryState& state) {
  const int64_t columns = round_up(mask.queries, kLanes) / kLanes;
  const bool partial = mask.partial();
  const Vf hidden = set(-INFINITY);
  for (int64_t c = 0; c < columns; ++c) {
    const int64_t keys = mask.keys_of_column(c), at = c * kLanes;
    float* column = scores + at;
    const Vf old_maximum = load(state.maximum + at);
    Vf maximum = old_maximum;
    for (int64_t j = 0; j < keys; ++j) {
      Vf s = load(column + j * kTile) * scale;
      if (partial) s = mask.visible(c, j) ? s : hidden;
      store(column + j * kTile, s);
      maximum = max(s, maximum);
    }
    const Vf reference = maximum == hidden ? Vf{} : maximum;
    Vf sum[4] = {};
    int64_t j = 0;
    for (; j + 4 <= keys; j += 4) {
      for (int i = 0; i < 4; ++i) {
        const Vf p = exp(load(column + (j + i) * kTile) - reference);
        store(column + (j + i) * kTile, p);
        sum[i] += p;
      }
    }
    for (int i = 0; i < 3; ++i) {
      if (j + i >= keys) break;
      const Vf p = exp(load(column + (j + i) * kTile) - reference);
      store(column + (j + i) * kTile, p);
      sum[i] += p;
    }
    const Vf factor = exp(old_maximum - reference);
    store(state.factor + at, factor);
    store(state.sum + at, fma(load(state.sum + at), factor, (sum[0] + sum[1]) + (sum[2] + sum[3])));
    store(state.maximum + at, maximum);
    if (keep == nullptr) continue;
    for (j = 0; j < keys; ++j) {
      store(column + j * kTile, load(column + j * kTile) * load(keep + at + j * kTile));
    }
  }
}

template <class T>
void forward_tile(const AttentionForwardArgs& a, const AttentionSequence& s, int64_t head,
                  int64_t first_query) {
  const int64_t group = head / (a.heads / a.kv_heads), d = a.qk_dim, e = a.v_dim;
  const int64_t queries = min64(kTile, s.queries - first_query);
  const int64_t first = s.keys - s.queries + first_query, row = s.query_row + first_query;
  const KvHead& value = a.v[group];

  static thread_local Scratch scratch;
  const int64_t ldk = round_up(d, kLanes), ldv = round_up(e, kLanes);
  float* q_t = scratch.floats(kTile * (2 * ldk + 2 * ldv + 2 * kTile));
  float* k = q_t + kTile * ldk;
  float* v = k + kTile * ldk;
  float* o_t = v + kTile * ldv;
  float* scores = o_t + kTile * ldv;
  float* keep = a.dropout.rate > 0 ? scores + kTile * kTile : nullptr;

  QueryState state;
  for (int64_t i = 0; i < kTile; ++i) {
    state.maximum[i] = -INFINITY;
    state.sum[i] = 0;
  }
  load_transposed(static_cast<const T*>(a.q) + row * a.q_stride + head * d, a.q_stride, queries, d,
                  q_t);
  std::memset(o_t, 0, static_cast<size_t>(kTile * ldv) * sizeof(float));

  const int64_t oldest = a.window == 0 ? 0 : max64(0, first - a.window + 1);
  for (int64_t tile = oldest / kTile * kTile; tile < first + queries; tile += kTile) {
    const TileMask mask(tile, first, queries, a.window);
    load_head_rows<T>(a.k[group], s, tile, mask.keys, d, k, ldk);
    masked_scores(mask, k, ldk, d, q_t, scores);
    if (keep != nullptr) {
      dropout_tile(a.dropout, s.dropout_sequence, head, tile, mask.keys, first, queries, keep);
    }
    softmax_tile(mask, static_cast<float>(a.scale), keep, scores, state);
    if (value.data == nullptr) continue;
    load_head_rows<T>(value, s, tile, mask.keys, e, v, ldv);
    if (!mask.causal_edge) {
      product<Left::kColumnMajor>({mask.keys, v, ldv, scores, kTile, o_t, kTile, state.factor},
                                  Start::kScale, e, round_up(queries, kLanes));
      continue;
    }
    for (int64_t c = 0; c * kLanes < queries; ++c) {
      const int64_t at = c * kLanes;
      product<Left::kColumnMajor>(
          {mask.keys_of_column(c), v, ldv, scores + at, kTile, o_t + at, kTile, state.factor + at},
          Start::kScale, e, kLanes);
    }
  }

  for (int64_t i = 0; i < kTile; ++i) state.factor[i] = i < queries ? 1.0f / state.sum[i] : 0.0f;
  store_transposed(o_t, state.factor, queries, e,
                   static_cast<T*>(a.o) + row * a.o_stride + head * e, a.o_stride);
  if (a.lse == nullptr) return;
  float* lse = static_cast<float*>(a.lse) + row * a.heads + head;
  for (int64_t i = 0; i < queries; ++i) {
    lse[i * a.heads] = state.maximum[i] + std::log(state.sum[i]);
  }
}

}  // namespace

template <class T>
void attention_forward(const AttentionForwardArgs& args, Stream) {
  int64_t tasks = 0;
  for (int64_t s = 0; s < args.sequence_count; ++s) {
    tasks += (args.sequences[s].queries + kTile - 1) / kTile * args.heads;
  }
#pragma omp parallel for schedule(dynamic, 1) if (tasks > 1)
  for (int64_t task = 0; task < tasks; ++task) {
    int64_t rest = task;
    const AttentionSequence* s = args.sequences;
    int64_t tiles = (s->queries + kTile - 1) / kTile;
    while (rest >= tiles * args.heads) {
      rest -= tiles * args.heads;
      ++s;
      tiles = (s->queries + kTile - 1) / kTile;
    }
    forward_tile<T>(args, *s, rest % args.heads, (tiles - 1 - rest / args.heads) * kTile);
  }
}

template void attention_forward<float>(const AttentionForwardArgs&, Stream);
template void attention_forward<bfloat16>(const AttentionForwardArgs&, Stream);

void register_attention_forward() {
  attention_forward_table().set(DeviceKind::kCpu, Dtype::kFloat32, &attention_forward<float>);
  attention_forward_table().set(DeviceKind::kCpu, Dtype::kBFloat16, &attention_forward<bfloat16>);
}

}  // namespace heirloom::cpu::HEIRLOOM_ISA
