// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace heirloom::emulator {

/// "kernels/cuda/norm.cu:88" for each return address: the innermost line that is not of a header
/// shared by all kernels (kernels/cuda/common, the emulator's own); of another header with what
/// inlines it ("kernels/cuda/attention.cuh:291 in kernels/cuda/attention_forward.cu:160"). Looked
/// up by addr2line in one go.
std::vector<std::string> source_lines(const std::vector<uintptr_t>& pcs);

/// Whether a return address lies in a function of the standard library or of another library of
/// templates: a program has one copy of those, which the compiler may have made for a kernel's file
/// and the emulator itself calls.
bool in_library_template(uintptr_t pc);

}  // namespace heirloom::emulator
