// SPDX-License-Identifier: Apache-2.0
//
// attention in plain loops (include/heirloom/kernels/attention.h). T: float, bfloat16 (arithmetic
// in float) or double. P: what probabilities, their gradients and means of two heads are rounded to
// before they are multiplied; T where products are those of tensor cores. Serial, O(S) memory; every
// feature of the contract. The oracle of the other kernels, and the float64 kernel.
#pragma once

#include <cmath>
#include <vector>

#include "heirloom/core/rng.h"
#include "heirloom/kernels/attention.h"

namespace heirloom::reference {
namespace attention_detail {

inline int64_t stream_row(const AttentionSequence& s, int64_t j) {
  if (s.blocks == nullptr) return s.key_row + j;
  return static_cast<int64_t>(s.blocks[j / kKvBlockTokens]) * kKvBlockTokens + j % kKvBlockTokens;
}

/// Element d of position j of a head; zero for a head of zeros.
template <class T, class P>
compute_t<T> element(const KvHead& head, const AttentionSequence& s, int64_t j, int64_t d) {
  using C = compute_t<T>;
  if (head.data == nullptr) return 0;
  const int64_t at = stream_row(s, j) * head.row_stride + d;
  const C x = static_cast<C>(static_cast<const T*>(head.data)[at]);
  if (head.second == nullptr) return x;
  return static_cast<C>(
      static_cast<P>((x + static_cast<C>(static_cast<const T*>(head.second)[at])) / 2));
}

/// 0 where dropped, else 1 / (1 - rate).
template <class C>
C dropout_factor(const AttentionDropout& dropout, uint32_t sequence, int64_t head, int64_t i,
                 int64_t j) {
  if (dropout.rate == 0) return 1;
  const auto words =
      philox(dropout.philox_key(), {static_cast<uint32_t>(j / 4), static_cast<uint32_t>(i),
                                    static_cast<uint32_t>(head), sequence});
  if (uniform_from_bits(words[static_cast<size_t>(j % 4)]) < dropout.rate) return 0;
  return static_cast<C>(1 / (1 - dropout.rate));
}

inline int64_t first_visible(const AttentionForwardArgs& a, int64_t position) {
  return a.window == 0 || position < a.window ? 0 : position - a.window + 1;
}

/// scale * q . k_j
template <class T>
compute_t<T> score(const AttentionForwardArgs& a, const AttentionSequence& s, const T* q,
                   int64_t group, int64_t j) {
  using C = compute_t<T>;
  C dot = 0;
  for (int64_t d = 0; d < a.qk_dim; ++d) {
    dot += static_cast<C>(q[d]) * element<T, C>(a.k[group], s, j, d);
  }
  return dot * static_cast<C>(a.scale);
}

/// Which addresses have been used in a sequence of the call: the first use obeys `add`, later ones
/// add.
class UsedAddresses {
 public:
  bool use(const void* address) {
    for (const void* known : known_) {
      if (known == address) return true;
    }
    known_.push_back(address);
    return false;
  }

 private:
  std::vector<const void*> known_;
};

template <class T>
void store_gradient(const KvHeadGrad& grad, const AttentionSequence& s, int64_t dim,
                    const std::vector<compute_t<T>>& sums, UsedAddresses& used) {
  using C = compute_t<T>;
  if (grad.data == nullptr) return;
  const C factor = grad.second == nullptr ? C(1) : C(0.5);
  const auto store = [&](void* data, bool add) {
    add = used.use(data) || add;
    for (int64_t j = 0; j < s.keys; ++j) {
      for (int64_t d = 0; d < dim; ++d) {
        const int64_t at = stream_row(s, j) * grad.row_stride + d;
        const C x = factor * sums[static_cast<size_t>(j * dim + d)];
        if (grad.is_accumulate_dtype) {
          C* slot = static_cast<C*>(data) + at;
          *slot = add ? *slot + x : x;
        } else {
          T* slot = static_cast<T*>(data) + at;
          *slot = static_cast<T>(add ? static_cast<C>(*slot) + x : x);
        }
      }
    }
  };
  store(grad.data, grad.add);
  if (grad.second != nullptr) store(grad.second, grad.add_second);
}

}  // namespace attention_detail

template <class T, class P = compute_t<T>>
void attention_forward(const AttentionForwardArgs& a, Stream) {
  using C = compute_t<T>;
  namespace detail = attention_detail;
  std::vector<C> p, sum(static_cast<size_t>(a.v_dim));
  for (int64_t n = 0; n < a.sequence_count; ++n) {
    const AttentionSequence& s = a.sequences[n];
    p.resize(static_cast<size_t>(s.keys));
    for (int64_t query = 0; query < s.queries; ++query) {
      const int64_t i = s.keys - s.queries + query, row = s.query_row + query;
      for (int64_t h = 0; h < a.heads; ++h) {
        const int64_t group = h / (a.heads / a.kv_heads), first = detail::first_visible(a, i);
        const T* q = static_cast<const T*>(a.q) + row * a.q_stride + h * a.qk_dim;
        C maximum = -INFINITY, total = 0;
        for (int64_t j = first; j <= i; ++j) {
          C& x = p[static_cast<size_t>(j)] = detail::score<T>(a, s, q, group, j);
          maximum = x > maximum ? x : maximum;
        }
        for (int64_t j = first; j <= i; ++j) {
          C& x = p[static_cast<size_t>(j)];
          total += x = std::exp(x - maximum);
        }
        sum.assign(sum.size(), C(0));
        for (int64_t j = first; j <= i; ++j) {
          const C weight = static_cast<C>(
              static_cast<P>(p[static_cast<size_t>(j)] / total *
                             detail::dropout_factor<C>(a.dropout, s.dropout_sequence, h, i, j)));
          for (int64_t e = 0; e < a.v_dim; ++e) {
            sum[static_cast<size_t>(e)] += weight * detail::element<T, P>(a.v[group], s, j, e);
          }
        }
        T* o = static_cast<T*>(a.o) + row * a.o_stride + h * a.v_dim;
        for (int64_t e = 0; e < a.v_dim; ++e) o[e] = static_cast<T>(sum[static_cast<size_t>(e)]);
        if (a.lse != nullptr) static_cast<C*>(a.lse)[row * a.heads + h] = maximum + std::log(total);
      }
    }
  }
}

template <class T, class P = compute_t<T>>
void attention_backward(const AttentionBackwardArgs& b, Stream) {
  using C = compute_t<T>;
  namespace detail = attention_detail;
  const AttentionForwardArgs& a = b.forward;
  std::vector<C> dk, dv, dq(static_cast<size_t>(a.qk_dim));
  for (int64_t n = 0; n < a.sequence_count; ++n) {
    const AttentionSequence& s = a.sequences[n];
    detail::UsedAddresses used;
    for (int64_t group = 0; group < a.kv_heads; ++group) {
      const int64_t per_group = a.heads / a.kv_heads;
      dk.assign(static_cast<size_t>(s.keys * a.qk_dim), C(0));
      dv.assign(static_cast<size_t>(s.keys * a.v_dim), C(0));
      for (int64_t h = group * per_group; h < (group + 1) * per_group; ++h) {
        for (int64_t query = 0; query < s.queries; ++query) {
          const int64_t i = s.keys - s.queries + query, row = s.query_row + query;
          const T* q = static_cast<const T*>(a.q) + row * a.q_stride + h * a.qk_dim;
          const T* o = static_cast<const T*>(a.o) + row * a.o_stride + h * a.v_dim;
          const T* dout = static_cast<const T*>(b.dout) + row * a.o_stride + h * a.v_dim;
          const C lse = static_cast<const C*>(a.lse)[row * a.heads + h];
          C delta = 0;
          for (int64_t e = 0; e < a.v_dim; ++e)
            delta += static_cast<C>(dout[e]) * static_cast<C>(o[e]);
          dq.assign(dq.size(), C(0));
          for (int64_t j = detail::first_visible(a, i); j <= i; ++j) {
            const C p = std::exp(detail::score<T>(a, s, q, group, j) - lse);
            const C keep = detail::dropout_factor<C>(a.dropout, s.dropout_sequence, h, i, j);
            const C kept = static_cast<C>(static_cast<P>(p * keep));
            C dp = 0;
            for (int64_t e = 0; e < a.v_dim; ++e) {
              dp += static_cast<C>(dout[e]) * detail::element<T, P>(a.v[group], s, j, e);
              if (a.v[group].data == nullptr) continue;  // a constant: no gradient
              dv[static_cast<size_t>(j * a.v_dim + e)] += kept * static_cast<C>(dout[e]);
            }
            const C ds =
                static_cast<C>(static_cast<P>(p * (dp * keep - delta) * static_cast<C>(a.scale)));
            for (int64_t d = 0; d < a.qk_dim; ++d) {
              dq[static_cast<size_t>(d)] += ds * detail::element<T, C>(a.k[group], s, j, d);
              dk[static_cast<size_t>(j * a.qk_dim + d)] += ds * static_cast<C>(q[d]);
            }
          }
          T* to = static_cast<T*>(b.dq) + row * a.q_stride + h * a.qk_dim;
          for (int64_t d = 0; d < a.qk_dim; ++d) to[d] = static_cast<T>(dq[static_cast<size_t>(d)]);
        }
      }
      detail::store_gradient<T>(b.dk[group], s, a.qk_dim, dk, used);
      detail::store_gradient<T>(b.dv[group], s, a.v_dim, dv, used);
    }
  }
}

}  // namespace heirloom::reference
