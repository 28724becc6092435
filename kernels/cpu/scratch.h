// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

namespace heirloom::cpu {

/// The process's one grow-only block of scratch memory, page aligned, for matrix products. A lease
/// holds it alone: concurrent callers wait, which costs nothing since each call uses all threads
/// anyway. Not to be leased twice by one thread.
class ScratchLease {
 public:
  explicit ScratchLease(size_t bytes);  ///< throws OutOfMemoryError
  ~ScratchLease();
  ScratchLease(const ScratchLease&) = delete;
  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

}  // namespace heirloom::cpu
