// SPDX-License-Identifier: Apache-2.0
#include "word_cache.h"

#include <atomic>

namespace heirloom::tokenizer {

uint64_t new_cache_stamp() {
  static std::atomic<uint64_t> models{0};
  return ++models;
}

WordCache& WordCache::of_thread(uint64_t stamp) {
  thread_local WordCache cache;
  if (cache.stamp_ != stamp) {
    cache.slots_.assign(kSlots, {});
    cache.stamp_ = stamp;
  }
  return cache;
}

}  // namespace heirloom::tokenizer
