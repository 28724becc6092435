// SPDX-License-Identifier: Apache-2.0
//
// A call of attention with all its buffers, for the tests of its kernels.
#pragma once

#include <array>
#include <cmath>
#include <span>
#include <string>
#include <vector>

#include "heirloom/core/rng.h"
#include "heirloom/kernels/attention.h"
#include "kernels/reference/attention.hpp"
#include "support/kernels.h"

namespace heirloom::testing_attention {

using test::FencedBuffer;
using test::from_double;
using test::Kernel;
using test::OnDevice;
using test::to_double;

enum class Slots {
  kWrite,    ///< every head its own slot of dtype T, written
  kAdd,      ///< every head its own slot of dtype A, added to
  kShared,   ///< heads 0 and 1 (and the second half of a mean) share slots; the first use writes
  kPartial,  ///< no gradient of keys of head 0 and of values of the last head
};

struct Case {
  std::string name;
  std::vector<std::array<int64_t, 2>> sequences;  ///< queries, keys
  int64_t heads = 2, kv_heads = 2, qk_dim = 64, v_dim = 64;
  int64_t window = 0;
  double dropout = 0;
  bool paged = false;
  bool mean = false;  ///< value head 0 is the mean of two
  bool zero = false;  ///< the last value head is zero
  Slots slots = Slots::kWrite;
  bool aligned = false;  ///< every row begins at a multiple of 8 elements
};

/// Arrays of the host, copied to a device for as long as it lives.
class Mirror {
 public:
  Mirror(const Device& device, const std::vector<std::span<std::byte>>& arrays) : arrays_(arrays) {
    const OnDevice scope(device);
    for (const auto array : arrays_) {
      const auto* bytes = reinterpret_cast<const unsigned char*>(array.data());
      copies_.emplace_back(std::vector<unsigned char>(bytes, bytes + array.size()));
    }
  }
  /// Where the device has what the host has at `address`; null stays null.
  template <class P>
  P* at(P* address) {
    if (address == nullptr) return nullptr;
    const auto* byte = reinterpret_cast<const std::byte*>(address);
    for (size_t i = 0; i < arrays_.size(); ++i) {
      const auto offset = byte - arrays_[i].data();
      if (offset >= 0 && offset < static_cast<std::ptrdiff_t>(arrays_[i].size()))
        return reinterpret_cast<P*>(reinterpret_cast<std::byte*>(copies_[i].data()) + offset);
    }
    ADD_FAILURE() << "an argument points into none of the problem's arrays";
    return nullptr;
  }
  void copy_back() {
    for (size_t i = 0; i < arrays_.size(); ++i) {
      const std::vector<unsigned char> bytes = copies_[i].contents();
      if (!bytes.empty()) std::memcpy(arrays_[i].data(), bytes.data(), bytes.size());
    }
  }

 private:
  std::vector<std::span<std::byte>> arrays_;
  std::vector<FencedBuffer<unsigned char>> copies_;
};

/// Standard normal number `at` of tensor `tensor`, rounded to `dtype`.
inline double random_value(uint64_t tensor, int64_t at, Dtype dtype) {
  const auto words = philox(tensor, {static_cast<uint32_t>(at), 0, 0, 0});
  const float x = static_cast<float>(normals_from_bits(words[0], words[1])[0]);
  return dtype == Dtype::kBFloat16 ? to_double(bfloat16(x)) : to_double(x);
}

/// A call with all its buffers, in storage type T, its values rounded to `rounding`. What is not an
/// input holds NaN: a kernel that reads too far spreads it, one that writes too far destroys it.
template <class T>
class Problem {
 public:
  using A = compute_t<T>;

  Problem(const Case& test_case, Dtype rounding) : c_(test_case), rounding_(rounding) {
    int64_t query_row = 1, key_row = 2, block = 0, block_total = 0;
    for (const auto& [queries, keys] : c_.sequences)
      block_total += (keys + kKvBlockTokens - 1) / kKvBlockTokens;
    blocks_.resize(c_.sequences.size());
    for (size_t i = 0; i < c_.sequences.size(); ++i) {
      const auto [queries, keys] = c_.sequences[i];
      AttentionSequence s{query_row, queries, keys,
                          key_row,   nullptr, static_cast<uint32_t>(10 + i)};
      if (c_.paged) {
        for (int64_t j = 0; j < keys; j += kKvBlockTokens, ++block) {
          blocks_[i].push_back(static_cast<int32_t>((block * 7 + 3) % (block_total * 7 + 1)));
        }
        s.blocks = blocks_[i].data();
      }
      sequences_.push_back(s);
      query_row += queries + 1;
      key_row += keys + 3;
    }
    query_rows_ = query_row;
    key_rows_ = c_.paged ? (block_total * 7 + 1) * kKvBlockTokens : key_row;

    const auto stride = [&](int64_t width, int64_t gap) {
      return c_.aligned ? (width + 15) / 8 * 8 : width + gap;
    };
    q_stride_ = stride(c_.heads * c_.qk_dim, 5);
    o_stride_ = stride(c_.heads * c_.v_dim, 3);
    k_stride_ = stride(c_.kv_heads * c_.qk_dim, 1);
    v_stride_ = stride(c_.kv_heads * c_.v_dim, 2);
    resize(q, query_rows_ * q_stride_);
    resize(dq, query_rows_ * q_stride_);
    resize(dout, query_rows_ * o_stride_);
    resize(o, query_rows_ * o_stride_);
    lse.assign(static_cast<size_t>(query_rows_ * c_.heads), static_cast<A>(NAN));
    resize(k, key_rows_ * k_stride_);
    resize(v, key_rows_ * v_stride_);
    resize(second, key_rows_ * v_stride_);
    for (const AttentionSequence& s : sequences_) {
      for (int64_t i = 0; i < s.queries; ++i) {
        fill(q, s.query_row + i, q_stride_, c_.heads * c_.qk_dim, 1, 5);
        fill(dout, s.query_row + i, o_stride_, c_.heads * c_.v_dim, 2, 3);
      }
      for (int64_t j = 0; j < s.keys; ++j) {
        const int64_t row = reference::attention_detail::stream_row(s, j);
        fill(k, row, k_stride_, c_.kv_heads * c_.qk_dim, 3, 1);
        fill(v, row, v_stride_, c_.kv_heads * c_.v_dim, 4, 2);
        fill(second, row, v_stride_, c_.kv_heads * c_.v_dim, 5, 2);
      }
    }
    make_args();
  }
  Problem(const Problem&) = delete;

  /// Calls `f` on a copy of all buffers on its device and copies them back.
  void forward(const Kernel<AttentionForwardArgs>& f) { forward(f, {args.forward}); }
  /// Likewise, several calls one after another.
  void forward(const Kernel<AttentionForwardArgs>& f,
               const std::vector<AttentionForwardArgs>& calls) {
    Mirror mirror(f.device, arrays());
    for (const AttentionForwardArgs& call : calls) DeviceCall(mirror, call, f.device).run(f);
    mirror.copy_back();
  }
  void backward(const Kernel<AttentionBackwardArgs>& f) {
    Mirror mirror(f.device, arrays());
    DeviceCall call(mirror, args.forward, f.device);
    AttentionBackwardArgs moved = args;
    moved.forward = call.args();
    moved.dout = mirror.at(args.dout);
    moved.dq = mirror.at(args.dq);
    const auto move = [&](std::vector<KvHeadGrad> heads) {
      for (KvHeadGrad& head : heads) {
        head.data = mirror.at(head.data);
        head.second = mirror.at(head.second);
      }
      return heads;
    };
    const std::vector<KvHeadGrad> moved_dk = move(dk_heads_), moved_dv = move(dv_heads_);
    moved.dk = moved_dk.data();
    moved.dv = moved_dv.data();
    const int64_t bytes =
        attention_backward_workspace_bytes(query_rows_, c_.heads, kDtypeOf<T>, f.device.kind);
    const OnDevice scope(f.device);
    FencedBuffer<unsigned char> workspace(bytes);
    moved.workspace = bytes > 0 ? workspace.data() : nullptr;
    f(moved);
    mirror.copy_back();
  }

  /// Every output buffer, whole.
  std::vector<std::vector<double>> outputs() const {
    std::vector<std::vector<double>> all;
    const auto take = [&](const auto& buffer) {
      std::vector<double>& to = all.emplace_back();
      for (const auto& x : buffer) to.push_back(to_double(x));
    };
    take(o), take(lse), take(dq), take(dk), take(dv), take(dsecond), take(dk_slot), take(dv_slot),
        take(dsecond_slot);
    return all;
  }

  std::vector<T> q, k, v, second, dout, o, dq, dk, dv, dsecond;
  std::vector<A> lse, dk_slot, dv_slot, dsecond_slot;
  AttentionBackwardArgs args;

 private:
  /// A forward call whose pointers lead to a mirror.
  class DeviceCall {
   public:
    DeviceCall(Mirror& mirror, const AttentionForwardArgs& host, const Device& device)
        : args_(host),
          k_(move(mirror, host.k, host.kv_heads)),
          v_(move(mirror, host.v, host.kv_heads)),
          sequences_(move(mirror, host, device)),
          step_key_(copy_of_key(host.dropout.step_key, device)) {
      args_.q = mirror.at(host.q);
      args_.o = mirror.at(host.o);
      args_.lse = mirror.at(host.lse);
      args_.k = k_.data();
      args_.v = v_.data();
      args_.device_sequences = sequences_.data();
      if (host.dropout.step_key) args_.dropout.step_key = step_key_.data();
    }
    const AttentionForwardArgs& args() const { return args_; }
    void run(const Kernel<AttentionForwardArgs>& f) { f(args_); }

   private:
    static std::vector<KvHead> move(Mirror& mirror, const KvHead* heads, int64_t count) {
      std::vector<KvHead> moved(heads, heads + count);
      for (KvHead& head : moved) {
        head.data = mirror.at(head.data);
        head.second = mirror.at(head.second);
      }
      return moved;
    }
    static FencedBuffer<AttentionSequence> move(Mirror& mirror, const AttentionForwardArgs& host,
                                                const Device& device) {
      std::vector<AttentionSequence> moved(host.sequences, host.sequences + host.sequence_count);
      for (AttentionSequence& s : moved) s.blocks = mirror.at(s.blocks);
      const OnDevice scope(device);
      return FencedBuffer<AttentionSequence>(moved);
    }
    static FencedBuffer<uint64_t> copy_of_key(const uint64_t* key, const Device& device) {
      const OnDevice scope(device);
      return FencedBuffer<uint64_t>(std::vector<uint64_t>{key ? *key : 0});
    }

    AttentionForwardArgs args_;
    std::vector<KvHead> k_, v_;
    FencedBuffer<AttentionSequence> sequences_;
    FencedBuffer<uint64_t> step_key_;
  };

  std::vector<std::span<std::byte>> arrays() {
    std::vector<std::span<std::byte>> all;
    const auto add = [&](auto& buffer) {
      all.push_back(std::as_writable_bytes(std::span(buffer)));
    };
    for (auto* buffer : {&q, &k, &v, &second, &dout, &o, &dq, &dk, &dv, &dsecond}) add(*buffer);
    for (auto* buffer : {&lse, &dk_slot, &dv_slot, &dsecond_slot}) add(*buffer);
    for (auto& blocks : blocks_) add(blocks);
    return all;
  }

  static void resize(std::vector<T>& buffer, int64_t n) {
    buffer.assign(static_cast<size_t>(n), from_double<T>(NAN));
  }
  /// `width` values of a row, the same whether rows are aligned or have a `gap` between them.
  void fill(std::vector<T>& buffer, int64_t row, int64_t stride, int64_t width, uint64_t tensor,
            int64_t gap) {
    for (int64_t x = 0; x < width; ++x) {
      buffer[static_cast<size_t>(row * stride + x)] =
          from_double<T>(random_value(tensor, row * (width + gap) + x, rounding_));
    }
  }

  void make_args() {
    const bool slots = c_.slots == Slots::kAdd || c_.slots == Slots::kShared;
    const bool add = c_.slots == Slots::kAdd;
    for (auto* buffer : {&dk, &dv, &dsecond}) {
      buffer->assign(slots ? 0 : buffer == &dk ? k.size() : v.size(), from_double<T>(NAN));
    }
    for (auto* buffer : {&dk_slot, &dv_slot, &dsecond_slot}) {
      buffer->assign(!slots ? 0 : buffer == &dk_slot ? k.size() : v.size(), static_cast<A>(NAN));
      for (size_t i = 0; add && i < buffer->size(); ++i) {
        (*buffer)[i] = static_cast<A>(random_value(6, static_cast<int64_t>(i), Dtype::kFloat32));
      }
    }
    for (int64_t g = 0; g < c_.kv_heads; ++g) {
      const bool mean = c_.mean && g == 0, zero = c_.zero && g == c_.kv_heads - 1;
      k_heads_.push_back({k.data() + g * c_.qk_dim, nullptr, k_stride_});
      v_heads_.push_back({zero ? nullptr : v.data() + g * c_.v_dim,
                          mean ? second.data() + g * c_.v_dim : nullptr, v_stride_});
      // Shared: heads 0 and 1 add to the slots of head 0; the mean's second half goes to head 1's
      // own slot of V.
      const int64_t to = c_.slots == Slots::kShared && g == 1 ? 0 : g;
      KvHeadGrad grad_k{
          slots ? static_cast<void*>(dk_slot.data() + to * c_.qk_dim) : dk.data() + to * c_.qk_dim,
          nullptr,
          k_stride_,
          slots,
          add,
          false};
      KvHeadGrad grad_v{
          slots ? static_cast<void*>(dv_slot.data() + to * c_.v_dim) : dv.data() + to * c_.v_dim,
          nullptr,
          v_stride_,
          slots,
          add,
          add};
      if (mean) {
        if (c_.slots == Slots::kShared)
          grad_v.second = dv_slot.data() + (c_.kv_heads - 1) * c_.v_dim;
        else if (slots)
          grad_v.second = dsecond_slot.data();
        else
          grad_v.second = dsecond.data();
      }
      if (c_.slots == Slots::kPartial && g == 0) grad_k = {};
      if (c_.slots == Slots::kPartial && g == c_.kv_heads - 1) grad_v = {};
      dk_heads_.push_back(grad_k);
      dv_heads_.push_back(grad_v);
    }
    args.forward = {q.data(),
                    o.data(),
                    lse.data(),
                    k_heads_.data(),
                    v_heads_.data(),
                    sequences_.data(),
                    static_cast<int64_t>(sequences_.size()),
                    c_.heads,
                    c_.kv_heads,
                    c_.qk_dim,
                    c_.v_dim,
                    q_stride_,
                    o_stride_,
                    1 / std::sqrt(static_cast<double>(c_.qk_dim)),
                    c_.window,
                    {c_.dropout, 0x1234567890abcdefull}};
    args.dout = dout.data();
    args.dq = dq.data();
    args.dk = dk_heads_.data();
    args.dv = dv_heads_.data();
  }

  Case c_;
  Dtype rounding_;
  int64_t query_rows_ = 0, key_rows_ = 0, q_stride_ = 0, o_stride_ = 0, k_stride_ = 0,
          v_stride_ = 0;
  std::vector<std::vector<int32_t>> blocks_;
  std::vector<AttentionSequence> sequences_;
  std::vector<KvHead> k_heads_, v_heads_;
  std::vector<KvHeadGrad> dk_heads_, dv_heads_;
};

}  // namespace heirloom::testing_attention
