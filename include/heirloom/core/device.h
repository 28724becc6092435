// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

namespace heirloom {

/// `kMeta` computes nothing: a step run on it records sizes, lifetimes, FLOPs and bytes
/// (core/arena.h).
enum class DeviceKind : uint8_t { kCpu, kCuda, kMeta };

/// An opaque execution queue. The CPU has one, which is empty: work is done when the call returns.
struct Stream {
  void* handle = nullptr;
};

struct Device {
  DeviceKind kind = DeviceKind::kCpu;
  int index = 0;
  /// Meta only: whose step is recorded; workspaces and chunk sizes differ between devices.
  DeviceKind stands_for = DeviceKind::kCpu;
  friend bool operator==(const Device&, const Device&) = default;
};

/// The meta device that records what a step does on `device`.
constexpr Device meta_device(const Device& device) {
  return {DeviceKind::kMeta, device.index, device.kind};
}

/// "cpu", "cuda:0", "meta".
std::string device_name(const Device& device);

/// Parses "cpu", "cuda", "cuda:N"; throws ConfigError otherwise.
Device parse_device(const std::string& text);

}  // namespace heirloom
