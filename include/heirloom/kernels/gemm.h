// SPDX-License-Identifier: Apache-2.0
//
// gemm: C (M,N) = op(A) (M,K) op(B) (K,N) [+ bias (N)] [+ C]. Inputs in T, sums in A, output in T
// or A. A linear layer with weight W (outputs, inputs) is: forward   y = x W^T    transpose_b
//                                                    dx        dx = dy W
//                                                    dW        dW += dy^T x transpose_a,
//                                                    c_is_accumulate_dtype, accumulate
#pragma once

#include "heirloom/kernels/kernel_table.h"

namespace heirloom {

struct GemmArgs {
  const void* a = nullptr;     ///< (M,K) row stride lda; with transpose_a stored as (K,M)
  const void* b = nullptr;     ///< (K,N) row stride ldb; with transpose_b stored as (N,K)
  void* c = nullptr;           ///< (M,N) row stride ldc, dtype T, or A when c_is_accumulate_dtype
  const void* bias = nullptr;  ///< (N) T, or null; only without accumulate
  int64_t m = 0, n = 0, k = 0;
  int64_t lda = 0, ldb = 0, ldc = 0;
  bool transpose_a = false, transpose_b = false;
  bool c_is_accumulate_dtype = false;
  bool accumulate = false;  ///< C += instead of C =
  bool tf32 = false;        ///< float32 products may round their inputs to TF32 (CUDA)
};
KernelTable<GemmArgs>& gemm_table();
KernelCost gemm_cost(const GemmArgs&, Dtype);

/// A product that a step will ask for; its pointers matter only by their alignment.
struct GemmProblem {
  GemmArgs args;
  Dtype dtype = Dtype::kFloat32;
};
/// Pins the algorithm of every problem: the one that `cache_file` names for it, else the fastest of
/// those the library proposes, timed now on scratch memory and added to the file. A product without
/// a pinned algorithm takes the library's first proposal. Nothing to do where the device's library
/// leaves no choice. Never called inside a step.
void tune_gemms(const Device& device, const std::vector<GemmProblem>& problems,
                const std::string& cache_file);
using GemmTuner = void (*)(int index, const std::vector<GemmProblem>& problems,
                           const std::string& cache_file);
void register_gemm_tuner(DeviceKind device, GemmTuner tuner);

/// linear_rows: y (N_rows, M_out) = x W^T [+ bias] for few rows (decode). Every output element is
/// one dot product summed in an order that depends on nothing but K: a row's result is the same
/// bits whatever rows stand beside it.
struct LinearRowsArgs {
  const void* x = nullptr;       ///< (rows, in) row stride x_stride, T
  const void* weight = nullptr;  ///< (out, in) row-major contiguous, T
  const void* bias = nullptr;    ///< (out) T or null
  void* y = nullptr;  ///< (rows, out) row stride y_stride; T, or A when y_is_accumulate_dtype
  int64_t rows = 0, in = 0, out = 0, x_stride = 0, y_stride = 0;
  bool y_is_accumulate_dtype = false;
};
KernelTable<LinearRowsArgs>& linear_rows_table();
KernelCost linear_rows_cost(const LinearRowsArgs&, Dtype);

}  // namespace heirloom
