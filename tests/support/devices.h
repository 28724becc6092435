// SPDX-License-Identifier: Apache-2.0
//
// Which devices the tests of whole steps run on.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "heirloom/core/device_runtime.h"
#include "heirloom/kernels/kernel_table.h"

namespace heirloom::test {

/// True iff this build has a CUDA device, real or emulated. With HEIRLOOM_REQUIRE_CUDA=1 a missing
/// one is a failure of the calling test.
inline bool cuda_is_here() {
  register_kernels();
  const bool here = has_device_runtime(DeviceKind::kCuda) &&
                    device_runtime(DeviceKind::kCuda).device_count() > 0;
  const char* required = std::getenv("HEIRLOOM_REQUIRE_CUDA");
  if (!here && required && std::string(required) == "1") {
    ADD_FAILURE() << "HEIRLOOM_REQUIRE_CUDA=1, and there is no CUDA device";
  }
  return here;
}

inline constexpr Device kCuda{DeviceKind::kCuda, 0};

}  // namespace heirloom::test

#define HEIRLOOM_SKIP_WITHOUT_CUDA() \
  if (!heirloom::test::cuda_is_here()) GTEST_SKIP() << "no CUDA device in this build"
