// SPDX-License-Identifier: Apache-2.0
//
// Computes     with P = exp(scale q k^T - lse) and delta_i = dout_i . o_i: dV += P^T dout, dS =
//              scale P (dout V^T - delta), dq = dS k, dK += dS^T q; each head's dK and dV go where
//              its KvHeadGrad says
// Shapes       as forward; dk[g] (S, D) and dv[g] (S, E) per KV head
// Layout       as forward; tiles of 64 queries x 64 keys
// Saved        q, K, V, o, lse of forward
// Work         one task per (sequence, set of KV heads that share a gradient address), heads in
//              order within it; query heads, query tiles, key tiles in order within a head; scratch
//              2 (D + E) S floats per thread and tiles
// Bytes        read q, o, dout, lse, K, V and what is added to; written dq and every gradient
//              address
// FLOPs        2 (3 D + 2 E) per visible (query, key) pair and head; none where the V head is zero
// Precision    products and sums in float32; dK and dV of a head are summed over all its queries
//              before they are stored
// Determinism  one thread per gradient address and per query head, fixed order: the same bits for
//              any number of threads
// Limits       as forward
// Source       Dao et al. (arXiv 2205.14135), algorithm 4; mean heads: both sources receive half
#include "kernels/cpu/attention_common.h"

namespace heirloom::cpu::HEIRLOOM_ISA {
namespace {

/// One address that receives the gradient of one KV head.
struct Target {
  void* data = nullptr;
  bool add = false;
};

/// Heads that one thread processes, and their targets with `add` resolved over the call.
struct HeadPlan {
  int64_t leader = 0;  ///< lowest KV head that shares an address with this one, through others too
  Target dk[2], dv[2];
};

void plan_heads(const AttentionBackwardArgs& a, HeadPlan* plans) {
  const int64_t heads = a.forward.kv_heads;
  const auto targets = [](HeadPlan& p, int i) -> Target& { return i < 2 ? p.dk[i] : p.dv[i - 2]; };
  for (int64_t g = 0; g < heads; ++g) {
    const KvHeadGrad &k = a.dk[g], &v = a.dv[g];
    plans[g] = {g,
                {{k.data, k.add}, {k.data == nullptr ? nullptr : k.second, k.add_second}},
                {{v.data, v.add}, {v.data == nullptr ? nullptr : v.second, v.add_second}}};
    for (int i = 0; i < 4; ++i) {
      Target& mine = targets(plans[g], i);
      if (mine.data == nullptr) continue;
      for (int64_t other = 0; other <= g; ++other) {
        for (int o = 0; o < (other == g ? i : 4); ++o) {
          if (targets(plans[other], o).data != mine.data) continue;
          mine.add = true;
          const int64_t from = plans[g].leader, to = plans[other].leader;
          for (int64_t h = 0; h <= g; ++h) {
            if (plans[h].leader == (from > to ? from : to)) plans[h].leader = from > to ? to : from;
          }
        }
      }
    }
  }
}

template <class S>
void store_gradient_row(S* dst, const float* src, int64_t dim, Vf factor, bool add) {
  for (int64_t d = 0; d < dim; d += kLanes) {
    const int64_t n = min64(kLanes, dim - d);
    Vf x = load(src + d) * factor;
    if (n == kLanes) {
      if (add) x += load(dst + d);
      store(dst + d, x);
    } else {
      if (add) x += load_n(dst + d, n);
      store_n(dst + d, x, n);
    }
  }
}

/// Adds or writes (keys, dim) sums to where a head's gradient goes.
template <class T>
void store_gradient(const KvHeadGrad& grad, const Target (&targets)[2], const AttentionSequence& s,
                    const float* sums, int64_t ld, int64_t dim) {
  const Vf factor = set(grad.second == nullptr ? 1.0f : 0.5f);
  for (const Target& target : targets) {
    if (target.data == nullptr) continue;
    for (int64_t j = 0; j < s.keys; ++j) {
      const int64_t at = stream_row(s, j) * grad.row_stride;
      if (grad.is_accumulate_dtype) {
        store_gradient_row(static_cast<float*>(target.data) + at, sums + j * ld, dim, factor,
                           target.add);
      } else {
        store_gradient_row(static_cast<T*>(target.data) + at, sums + j * ld, dim, factor,
                           target.add);
      }
    }
  }
}

/// Copies (rows, dim) to float32, row stride ld, zeros up to ld.
template <class T>
void load_rows(const T* src, int64_t stride, int64_t rows, int64_t dim, float* dst, int64_t ld) {
  for (int64_t r = 0; r < rows; ++r, src += stride, dst += ld) {
    for (int64_t d = 0; d < dim; d += kLanes) {
      const int64_t n = min64(kLanes, dim - d);
      store(dst + d, n == kLanes ? load(src + d) : load_n(src + d, n));
    }
  }
}

/// Views into one thread's scratch.
struct Workspace {
  int64_t ldk, ldv;
  float *k, *v, *dk, *dv;                     // (S, ldk or ldv)
  float *q, *q_t, *dout, *dout_t, *dq_t;      // a query tile, by rows and transposed
  float *p, *ds, *keep, *lse, *delta, *ones;  // keys x queries; per query

  static int64_t floats(int64_t keys, int64_t ldk, int64_t ldv) {
    return 2 * keys * (ldk + ldv) + kTile * (3 * ldk + 2 * ldv + 3 * kTile + 3);
  }
  Workspace(float* base, int64_t keys, int64_t k_width, int64_t v_width)
      : ldk(k_width), ldv(v_width) {
    const auto take = [&base](int64_t count) {
      float* at = base;
      base += count;
      return at;
    };
    q = take(kTile * ldk), q_t = take(kTile * ldk), dq_t = take(kTile * ldk);
    dout = take(kTile * ldv), dout_t = take(kTile * ldv);
    p = take(kTile * kTile), ds = take(kTile * kTile), keep = take(kTile * kTile);
    lse = take(kTile), delta = take(kTile), ones = take(kTile);
    k = take(keys * ldk), dk = take(keys * ldk);
    v = take(keys * ldv), dv = take(keys * ldv);
  }
};

/// Scores in w.p become P (with dropout), dout V^T in w.ds becomes dS. Rows that masked_scores
/// skipped stay as they are.
void softmax_gradient_tile(const TileMask& mask, float scale, bool dropout, const Workspace& w) {
  const bool partial = mask.partial();
  for (int64_t c = 0; c * kLanes < mask.queries; ++c) {
    const int64_t keys = min64(mask.keys, round_up(mask.keys_of_column(c), kLanes)),
                  at = c * kLanes;
    const Vf lse = load(w.lse + at), delta = load(w.delta + at);
    for (int64_t j = 0; j < keys; ++j) {
      float *p_at = w.p + j * kTile + at, *ds_at = w.ds + j * kTile + at;
      Vf p = exp(load(p_at) * scale - lse), dp = load(ds_at);
      if (partial) p = mask.visible(c, j) ? p : Vf{};
      if (dropout) {
        const Vf keep = load(w.keep + j * kTile + at);
        store(p_at, p * keep);
        dp *= keep;
      } else {
        store(p_at, p);
      }
      store(ds_at, p * ((dp - delta) * scale));
    }
  }
}

/// sums (keys, columns) += weights (keys, queries) rows (queries, columns)
void add_key_products(const TileMask& mask, const float* weights, const float* rows, float* sums,
                      int64_t ld) {
  if (!mask.causal_edge) {
    return product<Left::kRowMajor>({mask.queries, weights, kTile, rows, ld, sums, ld}, Start::kAdd,
                                    mask.keys, ld);
  }
  for (int64_t j = 0; j < mask.keys; j += kLanes) {
    const int64_t from = mask.first_column(j) * kLanes;
    product<Left::kRowMajor>({mask.queries - from, weights + j * kTile + from, kTile,
                              rows + from * ld, ld, sums + j * ld, ld},
                             Start::kAdd, min64(kLanes, mask.keys - j), ld);
  }
}

/// Everything that one tile of queries of one head contributes: its dq, and its share of w.dk and
/// w.dv.
template <class T>
void backward_tile(const AttentionBackwardArgs& b, const AttentionSequence& s, int64_t head,
                   int64_t first_query, bool want_dk, bool want_dv, const Workspace& w) {
  const AttentionForwardArgs& a = b.forward;
  const int64_t d = a.qk_dim, e = a.v_dim, queries = min64(kTile, s.queries - first_query);
  const int64_t first = s.keys - s.queries + first_query, row = s.query_row + first_query;
  const int64_t q_at = row * a.q_stride + head * d, o_at = row * a.o_stride + head * e;
  const int64_t columns = round_up(queries, kLanes);
  const bool dropout = a.dropout.rate > 0;

  load_rows(static_cast<const T*>(a.q) + q_at, a.q_stride, queries, d, w.q, w.ldk);
  load_transposed(w.q, w.ldk, queries, d, w.q_t);
  load_rows(static_cast<const T*>(b.dout) + o_at, a.o_stride, queries, e, w.dout, w.ldv);
  load_transposed(w.dout, w.ldv, queries, e, w.dout_t);
  std::memset(w.dq_t, 0, static_cast<size_t>(kTile * w.ldk) * sizeof(float));
  for (int64_t i = 0; i < kTile; ++i) {
    w.lse[i] = 0;
    w.delta[i] = 0;
  }
  for (int64_t i = 0; i < queries; ++i) {
    w.lse[i] = static_cast<const float*>(a.lse)[(row + i) * a.heads + head];
    const T* o = static_cast<const T*>(a.o) + o_at + i * a.o_stride;
    Vf sum{};
    for (int64_t x = 0; x < e; x += kLanes) {
      const int64_t n = min64(kLanes, e - x);
      sum = fma(n == kLanes ? load(o + x) : load_n(o + x, n), load(w.dout + i * w.ldv + x), sum);
    }
    w.delta[i] = reduce_add(sum);
  }

  const int64_t oldest = a.window == 0 ? 0 : max64(0, first - a.window + 1);
  for (int64_t tile = oldest / kTile * kTile; tile < first + queries; tile += kTile) {
    const TileMask mask(tile, first, queries, a.window);
    const float* k = w.k + tile * w.ldk;
    masked_scores(mask, k, w.ldk, d, w.q_t, w.p);
    masked_scores(mask, w.v + tile * w.ldv, w.ldv, e, w.dout_t, w.ds);
    if (dropout) {
      dropout_tile(a.dropout, s.dropout_sequence, head, tile, mask.keys, first, queries, w.keep);
    }
    softmax_gradient_tile(mask, static_cast<float>(a.scale), dropout, w);
    if (want_dv) add_key_products(mask, w.p, w.dout, w.dv + tile * w.ldv, w.ldv);
    if (want_dk) add_key_products(mask, w.ds, w.q, w.dk + tile * w.ldk, w.ldk);
    if (!mask.causal_edge) {
      product<Left::kColumnMajor>({mask.keys, k, w.ldk, w.ds, kTile, w.dq_t, kTile}, Start::kAdd, d,
                                  columns);
      continue;
    }
    for (int64_t c = 0; c * kLanes < queries; ++c) {
      product<Left::kColumnMajor>(
          {mask.keys_of_column(c), k, w.ldk, w.ds + c * kLanes, kTile, w.dq_t + c * kLanes, kTile},
          Start::kAdd, d, kLanes);
    }
  }
  store_transposed(w.dq_t, w.ones, queries, d, static_cast<T*>(b.dq) + q_at, a.q_stride);
}

template <class T>
void backward_head(const AttentionBackwardArgs& b, const AttentionSequence& s, int64_t group,
                   const HeadPlan& plan) {
  const AttentionForwardArgs& a = b.forward;
  const int64_t d = a.qk_dim, e = a.v_dim, ldk = round_up(d, kLanes), ldv = round_up(e, kLanes);
  const int64_t per_group = a.heads / a.kv_heads;
  static thread_local Scratch scratch;
  const Workspace w(scratch.floats(Workspace::floats(s.keys, ldk, ldv)), s.keys, ldk, ldv);
  std::memset(w.dk, 0, static_cast<size_t>(s.keys * ldk) * sizeof(float));
  std::memset(w.dv, 0, static_cast<size_t>(s.keys * ldv) * sizeof(float));
  const bool zero_value = a.v[group].data == nullptr;
  const bool want_dk = plan.dk[0].data != nullptr, want_dv = plan.dv[0].data != nullptr;
  for (int64_t i = 0; i < kTile; ++i) w.ones[i] = 1;

  if (!zero_value) {
    for (int64_t tile = 0; tile < s.keys; tile += kTile) {
      const int64_t keys = min64(kTile, s.keys - tile);
      load_head_rows<T>(a.k[group], s, tile, keys, d, w.k + tile * ldk, ldk);
      load_head_rows<T>(a.v[group], s, tile, keys, e, w.v + tile * ldv, ldv);
    }
  }
  for (int64_t head = group * per_group; head < (group + 1) * per_group; ++head) {
    if (zero_value) {  // the output is zero whatever the scores are
      T* dq = static_cast<T*>(b.dq) + s.query_row * a.q_stride + head * d;
      for (int64_t i = 0; i < s.queries; ++i, dq += a.q_stride) {
        std::memset(dq, 0, static_cast<size_t>(d) * sizeof(T));
      }
      continue;
    }
    for (int64_t first = 0; first < s.queries; first += kTile) {
      backward_tile<T>(b, s, head, first, want_dk, want_dv, w);
    }
  }
  store_gradient<T>(b.dk[group], plan.dk, s, w.dk, ldk, d);
  store_gradient<T>(b.dv[group], plan.dv, s, w.dv, ldv, e);
}

template <class T>
void attention_backward(const AttentionBackwardArgs& args, Stream) {
  const int64_t heads = args.forward.kv_heads;
  auto* plans = static_cast<HeadPlan*>(std::malloc(static_cast<size_t>(heads) * sizeof(HeadPlan)));
  if (plans == nullptr) std::abort();
  plan_heads(args, plans);
  const int64_t tasks = args.forward.sequence_count * heads;
#pragma omp parallel for schedule(dynamic, 1) if (tasks > 1)
  for (int64_t task = 0; task < tasks; ++task) {
    const int64_t leader = task % heads;
    if (plans[leader].leader != leader) continue;
    for (int64_t g = leader; g < heads; ++g) {
      if (plans[g].leader == leader) {
        backward_head<T>(args, args.forward.sequences[task / heads], g, plans[g]);
      }
    }
  }
  std::free(plans);
}

}  // namespace

void register_attention_backward() {
  attention_backward_table().set(DeviceKind::kCpu, Dtype::kFloat32, &attention_backward<float>);
  attention_backward_table().set(DeviceKind::kCpu, Dtype::kBFloat16, &attention_backward<bfloat16>);
}

}  // namespace heirloom::cpu::HEIRLOOM_ISA
