// SPDX-License-Identifier: Apache-2.0
//
// Computes     attention of one query per sequence: the same values as attention_forward with
//              queries == 1
// Shapes       as forward, N == number of sequences' rows
// Layout       K and V rows are streamed as they lie, 64 keys at a time; the query heads of a KV
//              head share every row
// Saved        lse where asked
// Work         one task per (sequence, run of 256 keys), then one combination per (sequence, head)
// Bytes        read q + visible keys x (K + V) of every KV head, once; written o + lse
// FLOPs        2 (D + E) per visible key and head; 2 D where the V head is zero
// Precision    products, sums and softmax in float32, rounded once at the end
// Determinism  runs start at multiples of 256 positions: bits depend on the sequence alone, not on
//              batch or threads
// Limits       calls with dropout or with more than one query per sequence go to attention_forward
// Source       split keys as in Dao et al., Flash-Decoding (2023); the combination is exact
//              arithmetic on (maximum, sum, o)
#include "kernels/cpu/attention_common.h"

namespace heirloom::cpu::HEIRLOOM_ISA {
namespace {

constexpr int64_t kRun = 4 * kTile;

/// Keys that the query sees: [first, keys).
int64_t first_key(const AttentionForwardArgs& a, const AttentionSequence& s) {
  return a.window == 0 ? 0 : max64(0, s.keys - a.window);
}
int64_t first_run(const AttentionForwardArgs& a, const AttentionSequence& s) {
  return first_key(a, s) / kRun;
}
int64_t run_count(const AttentionForwardArgs& a, const AttentionSequence& s) {
  return (s.keys + kRun - 1) / kRun - first_run(a, s);
}

/// A partial result of one head: maximum, sum, then E unnormalised outputs.
int64_t partial_floats(const AttentionForwardArgs& a) { return kLanes + round_up(a.v_dim, kLanes); }

/// The rows of all heads of the next block, asked for (into L2) in the order of memory while this
/// block is worked on.
template <class T>
class Ahead {
 public:
  Ahead(const KvHead* heads, int64_t count, int64_t dim, int64_t first_row, int64_t rows)
      : heads_(heads),
        count_(count),
        bytes_(dim * static_cast<int64_t>(sizeof(T))),
        row_(first_row),
        end_(first_row + rows) {}
  /// One row of one head.
  void touch() {
    if (row_ >= end_) return;
    const KvHead& head = heads_[head_];
    if (head.data != nullptr) {
      const char* p =
          reinterpret_cast<const char*>(static_cast<const T*>(head.data) + row_ * head.row_stride);
      for (int64_t at = 0; at < bytes_; at += 64) __builtin_prefetch(p + at, 0, 1);
    }
    if (++head_ == count_) {
      head_ = 0;
      ++row_;
    }
  }

 private:
  const KvHead* heads_;
  int64_t count_, bytes_, row_, end_, head_ = 0;
};

/// scores[j] = scale q . k_j for `keys` rows, four at a time.
template <class T>
void score_rows(const float* q, const T* k, int64_t stride, int64_t keys, int64_t d, float scale,
                Ahead<T>& ahead, float* scores) {
  const int64_t whole = d / kLanes * kLanes, tail = d - whole;
  for (int64_t j = 0; j < keys; j += 4) {
    const T* rows[4];
    for (int i = 0; i < 4; ++i) rows[i] = k + min64(j + i, keys - 1) * stride;
    for (int i = 0; i < 4; ++i) ahead.touch();
    Vf sum[4] = {};
    for (int64_t x = 0; x < whole; x += kLanes) {
      const Vf qv = load(q + x);
      for (int i = 0; i < 4; ++i) sum[i] = fma(load(rows[i] + x), qv, sum[i]);
    }
    if (tail != 0) {
      const Vf qv = load(q + whole);
      for (int i = 0; i < 4; ++i) sum[i] = fma(load_n(rows[i] + whole, tail), qv, sum[i]);
    }
    const Vf4 s = reduce_add4(sum[0], sum[1], sum[2], sum[3]) * scale;
    std::memcpy(scores + j, &s, sizeof s);
  }
}

/// o = o * factor + sum_j p[j] v_j
template <class T, class U>
void add_values(const float* p, const T* v, int64_t stride, int64_t keys, int64_t e, float factor,
                Ahead<U>& ahead, float* o) {
  constexpr int kGroup = 64 / kLanes;
  int64_t x = 0;
  for (; x + kGroup * kLanes <= e; x += kGroup * kLanes) {
    Vf sum[kGroup];
    for (int i = 0; i < kGroup; ++i) sum[i] = load(o + x + i * kLanes) * factor;
    for (int64_t j = 0; j < keys; ++j) {
      const Vf weight = set(p[j]);
      if (x == 0) ahead.touch();
      for (int i = 0; i < kGroup; ++i)
        sum[i] = fma(load(v + j * stride + x + i * kLanes), weight, sum[i]);
    }
    for (int i = 0; i < kGroup; ++i) store(o + x + i * kLanes, sum[i]);
  }
  for (; x < e; x += kLanes) {
    const int64_t n = min64(kLanes, e - x);
    Vf sum = load(o + x) * factor;
    for (int64_t j = 0; j < keys; ++j) sum = fma(load_n(v + j * stride + x, n), set(p[j]), sum);
    store(o + x, sum);
  }
}

/// Turns scores into exp(score - new maximum), updates maximum and sum, returns the factor for what
/// was summed before.
float softmax_block(float* scores, int64_t keys, float& maximum, float& sum) {
  for (int64_t j = keys; j < round_up(keys, kLanes); ++j) scores[j] = -INFINITY;
  Vf top = set(maximum);
  for (int64_t j = 0; j < keys; j += kLanes) top = max(load(scores + j), top);
  const float reference = reduce_max(top);
  Vf total{};
  for (int64_t j = 0; j < keys; j += kLanes) {
    const Vf p = exp(load(scores + j) - reference);
    store(scores + j, p);
    total += p;
  }
  const float factor = exp(set(maximum - reference))[0];
  sum = sum * factor + reduce_add(total);
  maximum = reference;
  return factor;
}

/// All heads of one run, block by block: the heads' rows lie side by side, and each page of the
/// cache is visited once.
template <class T>
void decode_run(const AttentionForwardArgs& a, const AttentionSequence& s, int64_t run,
                float* partials) {
  const int64_t d = a.qk_dim, e = a.v_dim, per_group = a.heads / a.kv_heads;
  static thread_local Scratch scratch;
  const int64_t ldk = round_up(d, kLanes), ldv = round_up(e, kLanes), width = partial_floats(a);
  float* q = scratch.floats(a.heads * ldk + kTile + kTile * ldv);
  float* scores = q + a.heads * ldk;
  float* mean = scores + kTile;
  for (int64_t h = 0; h < a.heads; ++h) {
    const T* from = static_cast<const T*>(a.q) + s.query_row * a.q_stride + h * d;
    for (int64_t x = 0; x < d; x += kLanes) {
      store(q + h * ldk + x, load_n(from + x, min64(kLanes, d - x)));
    }
    float* partial = partials + h * width;
    for (int64_t x = 0; x < width; ++x) partial[x] = 0;
    partial[0] = -INFINITY;
  }
  const auto block_end = [&s](int64_t j) { return min64((j / kTile + 1) * kTile, s.keys); };
  const int64_t end = min64(s.keys, (run + 1) * kRun);
  for (int64_t j = max64(first_key(a, s), run * kRun); j < end; j = block_end(j)) {
    const int64_t next = block_end(j), keys = next - j, row = stream_row(s, j);
    const int64_t next_keys = next < s.keys ? block_end(next) - next : 0;
    const int64_t next_row = next_keys == 0 ? 0 : stream_row(s, next);
    Ahead<T> k_ahead(a.k, a.kv_heads, d, next_row, next_keys),
        v_ahead(a.v, a.kv_heads, e, next_row, next_keys);
    for (int64_t h = 0; h < a.heads; ++h) {
      const KvHead &key = a.k[h / per_group], &value = a.v[h / per_group];
      float* partial = partials + h * width;
      score_rows(q + h * ldk, static_cast<const T*>(key.data) + row * key.row_stride,
                 key.row_stride, keys, d, static_cast<float>(a.scale), k_ahead, scores);
      const float factor = softmax_block(scores, keys, partial[0], partial[1]);
      if (value.data == nullptr) continue;
      if (value.second == nullptr) {
        add_values(scores, static_cast<const T*>(value.data) + row * value.row_stride,
                   value.row_stride, keys, e, factor, v_ahead, partial + kLanes);
      } else {
        if (h % per_group == 0) load_head_rows<T>(value, s, j, keys, e, mean, ldv);
        add_values(scores, mean, ldv, keys, e, factor, v_ahead, partial + kLanes);
      }
    }
  }
}

template <class T>
void combine_runs(const AttentionForwardArgs& a, const AttentionSequence& s, int64_t head,
                  const float* partials, int64_t run_stride) {
  const int64_t runs = run_count(a, s), e = a.v_dim;
  float maximum = -INFINITY, sum = 0;
  for (int64_t r = 0; r < runs; ++r) {
    const float m = partials[r * run_stride];
    maximum = m > maximum ? m : maximum;
  }
  for (int64_t r = 0; r < runs; ++r) {
    const float* partial = partials + r * run_stride;
    sum += partial[1] * exp(set(partial[0] - maximum))[0];
  }
  T* o = static_cast<T*>(a.o) + s.query_row * a.o_stride + head * e;
  for (int64_t x = 0; x < e; x += kLanes) {
    Vf total{};
    for (int64_t r = 0; r < runs; ++r) {
      const float* partial = partials + r * run_stride;
      total = fma(load(partial + kLanes + x), exp(set(partial[0] - maximum)), total);
    }
    store_n(o + x, total / sum, min64(kLanes, e - x));
  }
  if (a.lse != nullptr) {
    static_cast<float*>(a.lse)[s.query_row * a.heads + head] = maximum + std::log(sum);
  }
}

template <class T>
void attention_decode(const AttentionForwardArgs& args, Stream stream) {
  int64_t runs = 0;
  bool one_query_each = true;
  for (int64_t i = 0; i < args.sequence_count; ++i) {
    runs += run_count(args, args.sequences[i]);
    one_query_each = one_query_each && args.sequences[i].queries == 1;
  }
  if (args.dropout.rate > 0 || !one_query_each) return attention_forward<T>(args, stream);

  // Partials: (run of the call, head).
  static thread_local Scratch scratch;
  const int64_t width = partial_floats(args), run_stride = args.heads * width;
  float* partials = scratch.floats(runs * run_stride);
  const int64_t outputs = args.sequence_count * args.heads;
#pragma omp parallel if (runs > 1)
  {
#pragma omp for schedule(static)
    for (int64_t run = 0; run < runs; ++run) {
      const AttentionSequence* s = args.sequences;
      int64_t local = run;
      for (; local >= run_count(args, *s); ++s) local -= run_count(args, *s);
      decode_run<T>(args, *s, first_run(args, *s) + local, partials + run * run_stride);
    }
#pragma omp for schedule(static)
    for (int64_t output = 0; output < outputs; ++output) {
      const int64_t number = output / args.heads, head = output % args.heads;
      int64_t run = 0;
      for (int64_t i = 0; i < number; ++i) run += run_count(args, args.sequences[i]);
      combine_runs<T>(args, args.sequences[number], head,
                      partials + run * run_stride + head * width, run_stride);
    }
  }
}

}  // namespace

void register_attention_decode() {
  attention_decode_table().set(DeviceKind::kCpu, Dtype::kFloat32, &attention_decode<float>);
  attention_decode_table().set(DeviceKind::kCpu, Dtype::kBFloat16, &attention_decode<bfloat16>);
}

}  // namespace heirloom::cpu::HEIRLOOM_ISA
