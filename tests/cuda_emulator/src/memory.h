// SPDX-License-Identifier: Apache-2.0
//
// Device and pinned memory: every allocation lies alone between inaccessible pages, its last byte
// (rounded up to 256) against them, filled with 0xff (NaN in every float type), what is left of its
// pages with a canary. Freed memory is never used again. Device memory can be touched only while
// queued work executes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace heirloom::emulator {

enum class MemoryKind : uint8_t { kDevice, kPinned };

struct Allocation {
  uintptr_t base = 0;
  size_t size = 0;  ///< as asked for
  MemoryKind kind = MemoryKind::kDevice;
  bool alive = true;
  uint32_t id = 0;  ///< 1, 2, ... in the order of allocation
  uintptr_t pages = 0;
  size_t page_bytes = 0;  ///< [pages, pages + page_bytes) is mapped; around it nothing is
};

/// Null when there is no room.
void* allocate_memory(MemoryKind kind, size_t bytes);
/// False when `data` is not the beginning of living memory of this kind. `*damage` says what was
/// written over around it, empty otherwise.
bool free_memory(MemoryKind kind, const void* data, std::string* damage);

/// Whose guarded range `address` lies in: alive or not, inside the allocation or beside it; null
/// for memory that the emulator did not give out. Constant time.
const Allocation* find_allocation(const void* address);
/// True iff [data, data + bytes) lies in one living allocation.
bool in_allocation(const void* data, size_t bytes);
/// "16 bytes past the end of device allocation #3 (1024 bytes)".
std::string describe_address(const void* address);

/// The range that all device addresses come from.
uintptr_t device_range_begin();
uintptr_t device_range_end();
size_t allocated_bytes(MemoryKind kind);
size_t device_capacity();

/// Empty, or which canary was overwritten first. `whole` looks at all slack, else at 256 bytes.
std::string check_canaries(bool whole);
/// Writes the canaries anew, so that damage is reported once.
void restore_canaries();

/// While one exists, device memory is accessible.
class DeviceMemoryOpen {
 public:
  DeviceMemoryOpen();
  ~DeviceMemoryOpen();
  DeviceMemoryOpen(const DeviceMemoryOpen&) = delete;
};
bool device_memory_is_open();

/// Turns memory faults of this thread into messages. Cheap when done before.
void install_fault_handler();

}  // namespace heirloom::emulator
