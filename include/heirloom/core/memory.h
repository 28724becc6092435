// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace heirloom {

/// Bytes that this process may use: what the system has available, or less by a control group's limit.
int64_t available_memory();

}  // namespace heirloom
