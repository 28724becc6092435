// SPDX-License-Identifier: Apache-2.0
#include "heirloom/decode/kv_cache.h"

namespace heirloom {

PagedKvCache::PagedKvCache(const KvLayout& layout, Dtype dtype, int64_t blocks) : blocks_(blocks) {
  const int64_t rows = (blocks + 1) * kKvBlockTokens;
  for (const KvStream& s : layout.streams) {
    HostMemory& memory = memory_.emplace_back(rows * s.width * dtype_size(dtype));
    streams_.emplace_back(memory.data(), Shape{rows, s.width}, dtype);
  }
  for (int64_t b = blocks; b >= 1; --b)
    free_.push_back(static_cast<int32_t>(b));  // block 0 takes padding
}

int64_t PagedKvCache::block_bytes(const KvLayout& layout, Dtype dtype) {
  return layout.elements_per_token() * dtype_size(dtype) * kKvBlockTokens;
}

std::vector<int32_t> PagedKvCache::take(int64_t count) {
  HEIRLOOM_ASSERT(count <= free_blocks());
  std::vector<int32_t> taken;
  for (int64_t i = 0; i < count; ++i) {
    taken.push_back(free_.back());
    free_.pop_back();
  }
  return taken;
}

void PagedKvCache::give_back(const std::vector<int32_t>& blocks) {
  free_.insert(free_.end(), blocks.rbegin(), blocks.rend());
}

}  // namespace heirloom
