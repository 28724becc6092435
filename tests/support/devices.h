// SPDX-License-Identifier: Apache-2.0
//
// Which devices tests run on: the CPU, and CUDA where this build has it, real or emulated.
#pragma once

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "heirloom/core/device_runtime.h"
#include "heirloom/kernels/kernel_table.h"

namespace heirloom::test {

/// True iff this build has a CUDA device, real or emulated. With HEIRLOOM_REQUIRE_CUDA=1 a missing
/// one is a failure of the calling test.
inline bool cuda_is_here() {
  register_kernels();
  const bool here =
      has_device_runtime(DeviceKind::kCuda) && device_runtime(DeviceKind::kCuda).device_count() > 0;
  const char* required = std::getenv("HEIRLOOM_REQUIRE_CUDA");
  if (!here && required && std::string(required) == "1") {
    ADD_FAILURE() << "HEIRLOOM_REQUIRE_CUDA=1, and there is no CUDA device";
  }
  return here;
}

inline constexpr Device kCuda{DeviceKind::kCuda, 0};

/// HEIRLOOM_TEST_DEVICES=cpu or cuda restricts the tests of kernels to one device.
inline bool is_wanted(DeviceKind kind) {
  const char* only = std::getenv("HEIRLOOM_TEST_DEVICES");
  return only == nullptr || std::string(only) == (kind == DeviceKind::kCpu ? "cpu" : "cuda");
}

/// Tests of what is long on an emulated device take smaller shapes there.
inline bool is_emulated(const Device& device) { return device_runtime(device.kind).emulated(); }

/// The devices that kernels are tested on.
inline std::vector<Device> test_devices() {
  register_kernels();
  std::vector<Device> devices;
  if (is_wanted(DeviceKind::kCpu)) devices.push_back({});
  if (is_wanted(DeviceKind::kCuda)) {
    if (cuda_is_here()) {
      devices.push_back(kCuda);
    } else if (has_device_runtime(DeviceKind::kCuda)) {
      [[maybe_unused]] static const int once =
          std::fputs("CUDA kernels are not tested: there is no device\n", stderr);
    }
  }
  if (devices.empty()) {
    ADD_FAILURE() << "HEIRLOOM_TEST_DEVICES names no device of this build: "
                  << std::getenv("HEIRLOOM_TEST_DEVICES");
  }
  return devices;
}

/// Calls body(device) for each of them.
template <class Body>
void for_each_device(const Body& body) {
  for (const Device& device : test_devices()) {
    SCOPED_TRACE(device_name(device));
    body(device);
  }
}

}  // namespace heirloom::test

#define HEIRLOOM_SKIP_WITHOUT_CUDA() \
  if (!heirloom::test::cuda_is_here()) GTEST_SKIP() << "no CUDA device in this build"
