// SPDX-License-Identifier: Apache-2.0
//
// attention: causal softmax attention over K and V heads that each have their own address. Nothing
// is concatenated: head g of a layer may be the layer's own projection, a head of an earlier layer,
// the mean of two, or absent.
//
//   o[i, h, :] = sum_{j visible from i} p_ij v_g[j, :],  p_i = softmax_j(scale * q[i,h,:] .
//   k_g[j,:]),  g = h / (H/G) j is visible from i iff j <= i and (window == 0 or i - j < window), i
//   and j positions within the sequence.
//
// The result of a query row depends only on its own sequence: not on which other sequences or how
// many queries the call holds. Memory is O(T): no buffer grows with T x S.
#pragma once

#include "heirloom/core/rng.h"
#include "heirloom/kernels/kernel_table.h"

namespace heirloom {

/// Tokens per block of a paged cache; key tiles never straddle a block.
inline constexpr int64_t kKvBlockTokens = 64;

/// Where one K or V head lives. A view on activations in training and on the paged cache in
/// inference.
struct KvHead {
  const void* data = nullptr;  ///< element (row 0, dim 0), T; null: a head of zeros (values only)
  const void* second =
      nullptr;  ///< with it the head is the mean of the two (values only), same stride
  int64_t row_stride = 0;
};

/// One sequence of the call. Query i (0-based) stands at position keys - queries + i.
struct AttentionSequence {
  int64_t query_row = 0;  ///< row of its first query in q, o and lse
  int64_t queries = 0;
  int64_t keys = 0;                 ///< positions 0..keys-1 exist
  int64_t key_row = 0;              ///< row of position 0 in the streams (without blocks)
  const int32_t* blocks = nullptr;  ///< paged: position j is row blocks[j / kKvBlockTokens] *
                                    ///< kKvBlockTokens + j % kKvBlockTokens
  uint32_t dropout_sequence = 0;    ///< number of the sequence within the step (dropout key)
};

/// Attention dropout by counters: element (sequence, head, i, j) is dropped iff
/// uniform(philox(key, {j / 4, i, head, sequence})[j % 4]) < rate; kept ones are divided by 1 -
/// rate.
struct AttentionDropout {
  double rate = 0;
  uint64_t key = 0;                    ///< of (seed, step, layer); with step_key: of the layer
  const uint64_t* step_key = nullptr;  ///< the key of (seed, step) in the device's memory, or null

  constexpr uint64_t philox_key() const { return step_key ? mix_key(*step_key, key) : key; }
};

struct AttentionForwardArgs {
  const void* q = nullptr;  ///< (N, H, D) T, row stride q_stride
  void* o = nullptr;        ///< (N, H, E) T, row stride o_stride
  void* lse = nullptr;  ///< (N, H) A: natural log of the sum of exponentials of the scaled scores;
                        ///< null in inference
  const KvHead* k = nullptr;  ///< [G]
  const KvHead* v = nullptr;  ///< [G]
  const AttentionSequence* sequences = nullptr;
  int64_t sequence_count = 0;
  int64_t heads = 0, kv_heads = 0, qk_dim = 0, v_dim = 0;
  int64_t q_stride = 0, o_stride = 0;
  double scale = 1;
  int64_t window = 0;  ///< 0: none
  AttentionDropout dropout;
  /// The sequences once more, in the memory of the device (blocks too); the CPU reads `sequences`.
  /// Grids follow `sequences`, which every replay of a captured call shares.
  const AttentionSequence* device_sequences = nullptr;
};
KernelTable<AttentionForwardArgs>& attention_forward_table();
KernelCost attention_forward_cost(const AttentionForwardArgs&, Dtype);

/// Where the gradient of one K or V head goes. Several KV heads of a call may name the same address
/// (a plan may route one source to several heads): they are then processed in head order by one
/// thread; `add` is that of the call's first use of the address, later uses in the call add.
struct KvHeadGrad {
  void* data = nullptr;    ///< element (row 0, dim 0); null: no gradient wanted
  void* second = nullptr;  ///< of a mean head: both addresses receive half
  int64_t row_stride = 0;
  bool is_accumulate_dtype = false;  ///< slot dtype: A, else T (T only where one layer reads the
                                     ///< head once, with add false)
  bool add = false;                  ///< add to what is there, else write
  bool add_second = false;
};

struct AttentionBackwardArgs {
  AttentionForwardArgs forward;    ///< as it was called, o and lse filled
  const void* dout = nullptr;      ///< (N, H, E) T, row stride o_stride
  void* dq = nullptr;              ///< (N, H, D) T, row stride q_stride; written
  const KvHeadGrad* dk = nullptr;  ///< [G]; rows indexed as the streams (key_row + j)
  const KvHeadGrad* dv = nullptr;  ///< [G]
  void* workspace = nullptr;       ///< attention_backward_workspace_bytes; null where that is 0
};
KernelTable<AttentionBackwardArgs>& attention_backward_table();
KernelCost attention_backward_cost(const AttentionBackwardArgs&, Dtype);
/// Scratch for N query rows of H heads: on CUDA the row sums of dout * o, in A; none on the CPU.
int64_t attention_backward_workspace_bytes(int64_t n, int64_t heads, Dtype dtype,
                                           DeviceKind device);

/// One query per sequence over a long cache (decode). Same arguments and meaning as forward with
/// queries == 1; its own table because it is memory bound and shaped differently. Kernels are
/// chosen by phase, never by the batch.
KernelTable<AttentionForwardArgs>& attention_decode_table();

}  // namespace heirloom
