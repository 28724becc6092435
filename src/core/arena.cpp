// SPDX-License-Identifier: Apache-2.0
#include "heirloom/core/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "heirloom/core/device_runtime.h"

namespace heirloom {
namespace {

int64_t aligned(int64_t bytes) {
  return (bytes + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
}

void* map_pages(int64_t bytes) {
  if (bytes == 0) return nullptr;
  void* p = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) {
    throw_error<OutOfMemoryError>(
        "[memory] expected {:.2f} GiB of address space; the system refused",
        static_cast<double>(bytes) / (1 << 30));
  }
  if (bytes >= (4 << 20)) madvise(p, static_cast<size_t>(bytes), MADV_HUGEPAGE);
  return p;
}

}  // namespace

MemoryPlan plan_memory(const std::vector<BufferLifetime>& lifetimes) {
  const size_t n = lifetimes.size();
  MemoryPlan plan;
  plan.offsets.assign(n, 0);
  plan.bytes.resize(n);
  for (size_t i = 0; i < n; ++i) plan.bytes[i] = lifetimes[i].bytes;

  // The floor: sweep over begins and ends.
  std::vector<std::pair<int64_t, int64_t>> events;
  for (const BufferLifetime& b : lifetimes) {
    events.emplace_back(b.begin, b.bytes);
    events.emplace_back(b.end, -b.bytes);
  }
  std::sort(events.begin(), events.end());
  int64_t live = 0;
  for (const auto& [time, delta] : events)
    plan.floor_bytes = std::max(plan.floor_bytes, live += delta);

  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return lifetimes[a].bytes > lifetimes[b].bytes; });

  std::vector<size_t> placed;  // sorted by offset
  for (const size_t i : order) {
    const BufferLifetime& buffer = lifetimes[i];
    int64_t offset = 0;
    for (const size_t j : placed) {
      const BufferLifetime& other = lifetimes[j];
      if (other.begin >= buffer.end || buffer.begin >= other.end) continue;
      if (plan.offsets[j] >= offset + buffer.bytes) break;  // the gap before j is wide enough
      offset = std::max(offset, plan.offsets[j] + other.bytes);
    }
    plan.offsets[i] = offset;
    plan.peak_bytes = std::max(plan.peak_bytes, offset + buffer.bytes);
    placed.insert(
        std::upper_bound(placed.begin(), placed.end(), i,
                         [&](size_t a, size_t b) { return plan.offsets[a] < plan.offsets[b]; }),
        i);
  }
  return plan;
}

Arena::Arena(Device device)
    : mode_(device.kind == DeviceKind::kMeta ? Mode::kRecord : Mode::kDynamic), device_(device) {}

Arena::Arena(Device device, MemoryPlan plan, void* block)
    : mode_(Mode::kPlanned), device_(device), plan_(std::move(plan)), block_(block) {
  buffers_.resize(plan_.offsets.size());
}

Arena::~Arena() {
  if (mode_ != Mode::kDynamic) return;
  for (Buffer* b : free_list_) {
    if (device_.kind == DeviceKind::kCpu) {
      std::free(b->data);
    } else {
      device_runtime(device_.kind).release(device_.index, b->data);
    }
  }
}

void* Arena::new_buffer(int64_t bytes) const {
  if (device_.kind != DeviceKind::kCpu) {
    return device_runtime(device_.kind).allocate(device_.index, bytes);
  }
  void* data = std::aligned_alloc(static_cast<size_t>(kArenaAlignment), static_cast<size_t>(bytes));
  if (data == nullptr) {
    throw_error<OutOfMemoryError>("[memory] expected {} bytes; the system refused", bytes);
  }
  return data;
}

Tensor Arena::allocate(Shape shape, Dtype dtype) {
  const int64_t bytes = aligned(shape.numel() * dtype_size(dtype));
  Buffer* buffer = nullptr;
  switch (mode_) {
    case Mode::kDynamic: {
      // Reuse the smallest free buffer that is large enough and not more than twice too large.
      auto best = free_list_.end();
      for (auto it = free_list_.begin(); it != free_list_.end(); ++it) {
        if ((*it)->bytes >= bytes && (*it)->bytes <= 2 * bytes &&
            (best == free_list_.end() || (*it)->bytes < (*best)->bytes)) {
          best = it;
        }
      }
      if (best != free_list_.end()) {
        buffer = *best;
        free_list_.erase(best);
      } else {
        buffer = &buffers_.emplace_back();
        buffer->bytes = bytes;
        buffer->data = new_buffer(std::max(bytes, kArenaAlignment));
      }
      if (poison_ && device_.kind == DeviceKind::kCpu) {
        std::memset(buffer->data, 0xFF, static_cast<size_t>(buffer->bytes));
      }
      break;
    }
    case Mode::kRecord:
      buffer = &buffers_.emplace_back();
      buffer->bytes = bytes;
      lifetimes_.push_back({bytes, clock_++, -1});
      break;
    case Mode::kPlanned: {
      const size_t n = static_cast<size_t>(next_);
      if (n >= plan_.bytes.size() || plan_.bytes[n] != bytes) {
        throw_error<InternalError>(
            "[memory plan] expected allocation {} of {} bytes; got {} bytes of {}: the step "
            "differs from the recorded one",
            n, n < plan_.bytes.size() ? plan_.bytes[n] : -1, bytes, shape.str());
      }
      buffer = &buffers_[n];
      buffer->bytes = bytes;
      buffer->data = static_cast<std::byte*>(block_) + plan_.offsets[n];
      break;
    }
  }
  buffer->device = device_;
  buffer->index = static_cast<int32_t>(next_++);
  if (mode_ == Mode::kRecord) HEIRLOOM_ASSERT(next_ == static_cast<int64_t>(lifetimes_.size()));
  buffer->release = &Arena::release;
  buffer->owner = this;
  ++live_;
  peak_bytes_ = std::max(peak_bytes_, live_bytes_ += buffer->bytes);
  return Tensor(buffer, 0, shape, dtype);
}

void Arena::release(Buffer* buffer, void* owner) {
  Arena* arena = static_cast<Arena*>(owner);
  --arena->live_;
  arena->live_bytes_ -= buffer->bytes;
  if (arena->mode_ == Mode::kDynamic) arena->free_list_.push_back(buffer);
  if (arena->mode_ == Mode::kRecord) {
    arena->lifetimes_[static_cast<size_t>(buffer->index)].end = arena->clock_++;
  }
}

void Arena::begin_step() {
  HEIRLOOM_ASSERT(live_ == 0);
  next_ = 0;
}

HostMemory::HostMemory(int64_t bytes) : data_(map_pages(bytes)), bytes_(bytes) {}
HostMemory::~HostMemory() {
  if (data_) munmap(data_, static_cast<size_t>(bytes_));
}
HostMemory::HostMemory(HostMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
HostMemory& HostMemory::operator=(HostMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

DeviceMemory::DeviceMemory(const Device& device, int64_t bytes) : device_(device) {
  if (device.kind == DeviceKind::kMeta || bytes == 0) return;
  bytes_ = bytes;
  if (device.kind == DeviceKind::kCpu) {
    host_ = HostMemory(bytes);
    data_ = host_.data();
    return;
  }
  DeviceRuntime& runtime = device_runtime(device.kind);
  data_ = static_cast<std::byte*>(runtime.allocate(device.index, bytes));
  runtime.fill_zero(data_, bytes, device_stream(device));
}
DeviceMemory::~DeviceMemory() {
  if (data_ && device_.kind != DeviceKind::kCpu) {
    device_runtime(device_.kind).release(device_.index, data_);
  }
}
DeviceMemory::DeviceMemory(DeviceMemory&& other) noexcept { *this = std::move(other); }
DeviceMemory& DeviceMemory::operator=(DeviceMemory&& other) noexcept {
  std::swap(host_, other.host_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(device_, other.device_);
  return *this;
}

PinnedMemory::PinnedMemory(DeviceKind device, int64_t bytes) : bytes_(bytes), device_(device) {
  if (bytes == 0) return;
  data_ = static_cast<std::byte*>(device_runtime(device).allocate_pinned(bytes));
  std::memset(data_, 0, static_cast<size_t>(bytes));
}
PinnedMemory::~PinnedMemory() {
  if (data_) device_runtime(device_).release_pinned(data_);
}
PinnedMemory::PinnedMemory(PinnedMemory&& other) noexcept { *this = std::move(other); }
PinnedMemory& PinnedMemory::operator=(PinnedMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(device_, other.device_);
  return *this;
}

}  // namespace heirloom
