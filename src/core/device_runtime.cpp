// SPDX-License-Identifier: Apache-2.0
#include "heirloom/core/device_runtime.h"

#include <array>
#include <cstdlib>
#include <cstring>

#include "heirloom/core/error.h"
#include "heirloom/core/memory.h"

namespace heirloom {
namespace {

/// The host itself: its one stream is empty, work is done when a call returns.
class CpuRuntime final : public DeviceRuntime {
 public:
  int device_count() override { return 1; }
  std::string description(int) override { return "CPU"; }
  bool emulated() const override { return false; }
  int64_t available_bytes(int) override { return available_memory(); }
  void* allocate(int, int64_t bytes) override { return allocate_pinned(bytes); }
  void release(int, void* data) override { std::free(data); }
  void* allocate_pinned(int64_t bytes) override {
    constexpr int64_t kAlignment = 256;
    void* data = std::aligned_alloc(
        kAlignment, static_cast<size_t>((bytes + kAlignment - 1) / kAlignment * kAlignment));
    if (data == nullptr) {
      throw_error<OutOfMemoryError>("[memory] expected {} bytes; the system refused", bytes);
    }
    return data;
  }
  void release_pinned(void* data) override { std::free(data); }
  Stream stream(int) override { return {}; }
  void copy_to_device(void* to, const void* from, int64_t bytes, Stream) override {
    if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
  }
  void copy_to_host(void* to, const void* from, int64_t bytes, Stream stream) override {
    copy_to_device(to, from, bytes, stream);
  }
  void copy_on_device(void* to, const void* from, int64_t bytes, Stream stream) override {
    copy_to_device(to, from, bytes, stream);
  }
  void fill_zero(void* data, int64_t bytes, Stream) override {
    if (bytes > 0) std::memset(data, 0, static_cast<size_t>(bytes));
  }
  void synchronize(Stream) override {}
  void begin_capture(Stream) override { no_graphs(); }
  Graph end_capture(Stream) override { no_graphs(); }
  void launch(Graph, Stream) override { no_graphs(); }
  void destroy(Graph) override {}

 private:
  [[noreturn]] static void no_graphs() {
    throw_error<UnsupportedError>("[graph] expected a device that captures graphs; got the CPU");
  }
};

std::array<DeviceRuntime*, 3>& runtimes() {
  static CpuRuntime cpu;
  static std::array<DeviceRuntime*, 3> all{&cpu, nullptr, nullptr};
  return all;
}

}  // namespace

DeviceRuntime& device_runtime(DeviceKind kind) {
  DeviceRuntime* runtime = runtimes()[static_cast<size_t>(kind)];
  if (runtime == nullptr) {
    throw_error<UnsupportedError>("[device] expected a device of this build: cpu; got {}",
                                  device_name({kind, 0}));
  }
  return *runtime;
}

bool has_device_runtime(DeviceKind kind) {
  return runtimes()[static_cast<size_t>(kind)] != nullptr;
}

void register_device_runtime(DeviceKind kind, DeviceRuntime* runtime) {
  runtimes()[static_cast<size_t>(kind)] = runtime;
}

Stream device_stream(const Device& device) {
  if (device.kind != DeviceKind::kCuda) return {};
  return device_runtime(device.kind).stream(device.index);
}

}  // namespace heirloom
