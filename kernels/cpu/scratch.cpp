// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/scratch.h"

#include <cstdlib>
#include <mutex>

#include "heirloom/core/error.h"

namespace heirloom::cpu {
namespace {

constexpr size_t kAlignment = 4096;

// Never freed: OpenMP's threads may outlive static destructors.
struct Block {
  std::mutex mutex;
  void* data = nullptr;
  size_t bytes = 0;
};

Block& block() {
  static Block* const the_block = new Block;
  return *the_block;
}

}  // namespace

ScratchLease::ScratchLease(size_t bytes) {
  Block& b = block();
  std::unique_lock lock(b.mutex);
  if (bytes > b.bytes) {
    std::free(b.data);
    b.bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    b.data = std::aligned_alloc(kAlignment, b.bytes);
    if (!b.data) {
      b.bytes = 0;
      throw_error<OutOfMemoryError>("[gemm] expected {} bytes of scratch memory; got none", bytes);
    }
  }
  data_ = b.data;
  lock.release();
}

ScratchLease::~ScratchLease() { block().mutex.unlock(); }

}  // namespace heirloom::cpu
