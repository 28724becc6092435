// SPDX-License-Identifier: Apache-2.0
//
// What a device offers beside kernels: memory, streams, copies, and steps captured as graphs. The
// CPU's is built in and trivial; CUDA's is registered by its kernels' registrar. Everything here
// throws DeviceError with the device's own message when the device refuses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "heirloom/core/device.h"

namespace heirloom {

/// A captured sequence of kernels and copies.
struct Graph {
  void* handle = nullptr;
};

class DeviceRuntime {
 public:
  virtual ~DeviceRuntime() = default;

  virtual int device_count() = 0;
  /// "NVIDIA H200", "emulated CUDA device".
  virtual std::string description(int index) = 0;
  /// True iff kernels are executed by the host in the device's stead: not chosen unless asked for.
  virtual bool emulated() const = 0;
  virtual int64_t available_bytes(int index) = 0;

  /// Aligned to 256 bytes, not zeroed. OutOfMemoryError when there is no room.
  virtual void* allocate(int index, int64_t bytes) = 0;
  virtual void release(int index, void* data) = 0;
  /// Host memory that copies without a detour.
  virtual void* allocate_pinned(int64_t bytes) = 0;
  virtual void release_pinned(void* data) = 0;

  /// The stream that all of the library's work on this device goes to, in order.
  virtual Stream stream(int index) = 0;
  /// Copies are ordered in the stream; pageable host memory may be reused when the call returns,
  /// pinned memory when the stream has come past it.
  virtual void copy_to_device(void* to, const void* from, int64_t bytes, Stream stream) = 0;
  virtual void copy_to_host(void* to, const void* from, int64_t bytes, Stream stream) = 0;
  virtual void copy_on_device(void* to, const void* from, int64_t bytes, Stream stream) = 0;
  virtual void fill_zero(void* data, int64_t bytes, Stream stream) = 0;
  /// Returns when all work of the stream is done; throws what that work failed with.
  virtual void synchronize(Stream stream) = 0;

  /// Between begin_capture and end_capture work on the stream is recorded, not run.
  virtual void begin_capture(Stream stream) = 0;
  virtual Graph end_capture(Stream stream) = 0;
  virtual void launch(Graph graph, Stream stream) = 0;
  virtual void destroy(Graph graph) = 0;
};

/// UnsupportedError where this build has no such device.
DeviceRuntime& device_runtime(DeviceKind kind);
bool has_device_runtime(DeviceKind kind);
/// `runtime` outlives the process's use of it.
void register_device_runtime(DeviceKind kind, DeviceRuntime* runtime);

/// The device's stream; empty for the CPU and the meta device.
Stream device_stream(const Device& device);

}  // namespace heirloom
