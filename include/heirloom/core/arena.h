// SPDX-License-Identifier: Apache-2.0
//
// Where the buffers of a step live.
//
// A training step performs the same allocations in the same order every time. So it is run once on
// the meta device, where nothing is computed and each buffer's size and lifetime are recorded;
// `plan_memory` packs those intervals into one block; and in every real step the n-th allocation
// takes the n-th offset of that plan. Nothing allocates inside a step, addresses repeat, and the
// peak is known before the run starts.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "heirloom/core/tensor.h"

namespace heirloom {

/// One recorded allocation: bytes (rounded up to kArenaAlignment) alive for times [begin, end).
struct BufferLifetime {
  int64_t bytes = 0;
  int64_t begin = 0;
  int64_t end = 0;
};

/// Offsets that let all lifetimes coexist; two buffers whose lifetimes overlap never share a byte.
struct MemoryPlan {
  std::vector<int64_t> offsets;  ///< one per allocation, in bytes
  std::vector<int64_t> bytes;
  int64_t peak_bytes = 0;   ///< size of the block
  int64_t floor_bytes = 0;  ///< largest sum of simultaneously live bytes: no packing can be smaller
};

/// A CUDA allocation's alignment: every buffer starts on a 128-byte line.
inline constexpr int64_t kArenaAlignment = 256;

/// Greedy by size, first fit: largest buffers first, each at the lowest offset free over its
/// lifetime.
MemoryPlan plan_memory(const std::vector<BufferLifetime>& lifetimes);

class Arena {
 public:
  enum class Mode {
    kDynamic,  ///< every allocation is its own; for inference set-up and tests
    kRecord,   ///< the meta device: no memory, lifetimes are recorded
    kPlanned,  ///< the n-th allocation since `begin_step` takes the plan's n-th offset
  };

  /// A dynamic arena on `device`, or a recording one when the device is meta.
  explicit Arena(Device device);
  /// A planned arena on `block`, at least plan.peak_bytes that outlive it. Arenas that are never in
  /// use at the same time (training steps, evaluation) may share one block.
  Arena(Device device, MemoryPlan plan, void* block);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  /// Uninitialised memory for `shape` elements. In planned mode an allocation that differs from the
  /// plan's is an InternalError.
  Tensor allocate(Shape shape, Dtype dtype);

  /// Planned mode: restarts at the first offset. All tensors of the step before must be gone.
  void begin_step();

  Mode mode() const { return mode_; }
  const Device& device() const { return device_; }
  const std::vector<BufferLifetime>& lifetimes() const { return lifetimes_; }
  int64_t live_bytes() const { return live_bytes_; }
  int64_t peak_bytes() const { return peak_bytes_; }
  int64_t allocations() const { return next_; }

  /// Dynamic mode, tests: fill every new buffer with a NaN pattern so that a read before a write
  /// shows.
  void poison(bool on) { poison_ = on; }

 private:
  static void release(Buffer* buffer, void* owner);
  void* new_buffer(int64_t bytes) const;

  Mode mode_;
  Device device_;
  MemoryPlan plan_;
  void* block_ = nullptr;
  std::deque<Buffer>
      buffers_;  // stable addresses; planned and record mode index it by allocation number
  std::vector<Buffer*> free_list_;  // dynamic mode: handles to reuse
  std::vector<BufferLifetime> lifetimes_;
  int64_t next_ = 0, clock_ = 0, live_ = 0, live_bytes_ = 0, peak_bytes_ = 0;
  bool poison_ = false;
};

/// Pages for long-lived data (parameters, caches): aligned, zeroed, huge where possible; freed with
/// the object.
class HostMemory {
 public:
  HostMemory() = default;
  explicit HostMemory(int64_t bytes);
  ~HostMemory();
  HostMemory(HostMemory&& other) noexcept;
  HostMemory& operator=(HostMemory&& other) noexcept;
  std::byte* data() const { return static_cast<std::byte*>(data_); }
  int64_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

/// The same on any device: zeroed, freed with the object. On the meta device there is nothing.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(const Device& device, int64_t bytes);
  ~DeviceMemory();
  DeviceMemory(DeviceMemory&& other) noexcept;
  DeviceMemory& operator=(DeviceMemory&& other) noexcept;
  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  const Device& device() const { return device_; }

 private:
  HostMemory host_;
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
  Device device_;
};

/// Host memory that the device copies from and to without a detour. Zeroed.
class PinnedMemory {
 public:
  PinnedMemory() = default;
  PinnedMemory(DeviceKind device, int64_t bytes);
  ~PinnedMemory();
  PinnedMemory(PinnedMemory&& other) noexcept;
  PinnedMemory& operator=(PinnedMemory&& other) noexcept;
  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
  DeviceKind device_ = DeviceKind::kCpu;
};

}  // namespace heirloom
