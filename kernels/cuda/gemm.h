// SPDX-License-Identifier: Apache-2.0
//
// gemm is host code (gemm_library.cpp) and two kernels (gemm.cu).
#pragma once

#include "heirloom/kernels/gemm.h"

namespace heirloom::cuda {

/// Makes the current device's library handle and workspace, which cannot be made during a capture.
void prepare_gemm();

/// Rows of C := the bias, or zero where there is none.
void fill_gemm_rows(const GemmArgs& args, Dtype dtype, Stream stream);
/// `count` values in (-1, 1).
void fill_gemm_scratch(void* data, Dtype dtype, int64_t count, Stream stream);

}  // namespace heirloom::cuda
