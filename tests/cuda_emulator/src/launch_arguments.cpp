// SPDX-License-Identifier: Apache-2.0
//
// Where launches keep their arguments until they have run.
#include <sys/mman.h>

#include <mutex>
#include <vector>

#include "engine.h"

namespace heirloom::emulator {
namespace {

/// Pieces of powers of two from one mapping; freed ones are used again.
class ArgumentArena {
 public:
  ArgumentArena() {
    void* area = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED) throw KernelError("[emulator] expected memory for arguments; got none");
    begin_ = static_cast<unsigned char*>(area);
  }
  void* take(size_t bytes) {
    const std::lock_guard lock(mutex_);
    size_t size = kSmallest, order = 0;
    while (size < bytes + kHeader) size *= 2, ++order;
    if (order < free_.size() && !free_[order].empty()) {
      void* again = free_[order].back();
      free_[order].pop_back();
      return again;
    }
    if (used_ + size > kBytes) throw KernelError("[emulator] too many launches are waiting");
    unsigned char* piece = begin_ + used_;
    used_ += size;
    *reinterpret_cast<size_t*>(piece) = order;
    return piece + kHeader;
  }
  void give(void* data) {
    const std::lock_guard lock(mutex_);
    const size_t order = *reinterpret_cast<size_t*>(static_cast<unsigned char*>(data) - kHeader);
    if (free_.size() <= order) free_.resize(order + 1);
    free_[order].push_back(data);
  }
  ByteRange range() const {
    const auto begin = reinterpret_cast<uintptr_t>(begin_);
    return {begin, begin + kBytes};
  }

 private:
  static constexpr size_t kBytes = size_t{1} << 32, kSmallest = 256, kHeader = 128;
  std::mutex mutex_;
  unsigned char* begin_ = nullptr;
  size_t used_ = 0;
  std::vector<std::vector<void*>> free_;  // by order
};
ArgumentArena& arguments() {
  static auto* arena = new ArgumentArena;  // outlives every launch
  return *arena;
}

}  // namespace

void* allocate_launch_arguments(size_t bytes) { return arguments().take(bytes); }
void free_launch_arguments(void* data) { arguments().give(data); }
ByteRange argument_range() { return arguments().range(); }

}  // namespace heirloom::emulator
