// SPDX-License-Identifier: Apache-2.0
//
// The KV cache of inference: one pool of blocks per stream of the KV layout. A sequence owns the
// same block numbers in every stream (streams grow in lock-step), so it has one block table.
// Nothing is ever copied or concatenated: layers read heads where their source layer wrote them.
#pragma once

#include <vector>

#include "heirloom/core/arena.h"
#include "heirloom/model/kv_layout.h"
#include "heirloom/ops/kv_store.h"

namespace heirloom {

class PagedKvCache {
 public:
  /// Room for `blocks` blocks of kKvBlockTokens tokens, plus one that padding rows write to.
  PagedKvCache(const KvLayout& layout, Dtype dtype, int64_t blocks);

  static int64_t blocks_for(int64_t tokens) {
    return (tokens + kKvBlockTokens - 1) / kKvBlockTokens;
  }
  /// Bytes of one block over all streams.
  static int64_t block_bytes(const KvLayout& layout, Dtype dtype);

  int64_t free_blocks() const { return static_cast<int64_t>(free_.size()); }
  int64_t blocks() const { return blocks_; }
  /// Takes `count` blocks; InternalError when fewer are free.
  std::vector<int32_t> take(int64_t count);
  void give_back(const std::vector<int32_t>& blocks);

  /// Row that padding tokens are written to.
  int64_t padding_slot() const { return 0; }
  /// Stream s as a matrix: row = block * kKvBlockTokens + token within the block.
  const Tensor& stream(int32_t s) const { return streams_[static_cast<size_t>(s)]; }
  size_t stream_count() const { return streams_.size(); }
  int64_t allocated_bytes(size_t s) const { return memory_[s].bytes(); }

 private:
  int64_t blocks_;
  std::vector<HostMemory> memory_;
  std::vector<Tensor> streams_;
  std::vector<int32_t> free_;
};

/// The cache as one forward pass sees it: where each row is written, and what each sequence may
/// read.
class CacheKvStore final : public KvStore {
 public:
  CacheKvStore(PagedKvCache& cache, std::vector<int64_t> slots,
               std::vector<AttentionSequence> sequences)
      : cache_(cache), slots_(std::move(slots)), sequences_(std::move(sequences)) {}
  Tensor stream(Context&, int32_t index) override { return cache_.stream(index); }
  const int64_t* slots() const override { return slots_.data(); }
  std::span<const AttentionSequence> sequences() const override { return sequences_; }

 private:
  PagedKvCache& cache_;
  std::vector<int64_t> slots_;
  std::vector<AttentionSequence> sequences_;
};

}  // namespace heirloom
