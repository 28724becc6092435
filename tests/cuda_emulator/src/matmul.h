// SPDX-License-Identifier: Apache-2.0
//
// The arithmetic behind cublaslt.cpp: D = epilogue(alpha A B + beta C + bias), summed in float32.
#pragma once

#include <cstddef>
#include <cstdint>

namespace heirloom::emulator {

/// Element (i, j) of batch z: data[z * batch_stride + i * row_stride + j * column_stride].
struct MatmulOperand {
  void* data = nullptr;
  bool bfloat16 = false;
  int64_t row_stride = 0, column_stride = 0, batch_stride = 0;
  size_t bytes = 0;  ///< from the first to past the last element
};
enum class Epilogue { kNone, kRelu, kGelu, kGeluBackward };

struct MatmulProblem {
  int64_t m = 0, n = 0, k = 0;
  int batches = 1;
  MatmulOperand a, b, c, d;  ///< a and b as if not transposed: (m,k), (k,n)
  MatmulOperand bias;        ///< m elements
  MatmulOperand aux;         ///< written before the activation; read by kGeluBackward
  float alpha = 1, beta = 0;
  bool tf32 = false;
  Epilogue epilogue = Epilogue::kNone;
  int64_t chunk = 1;       ///< K is summed in pieces of this length, and these one after another
  bool backwards = false;  ///< the last piece first
  void* workspace = nullptr;
  size_t workspace_bytes = 0;
};
void run_matmul(const MatmulProblem& problem);

}  // namespace heirloom::emulator
