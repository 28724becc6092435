// SPDX-License-Identifier: Apache-2.0
//
// norm: residual addition and normalisation in one pass over rows of length C.
//   x = residual + delta (delta may be null: then x = residual and nothing is written to x_out)
//   RMSNorm    y = x * rstd * weight,             rstd = 1 / sqrt(mean(x^2) + eps)
//   LayerNorm  y = (x - mean) * rstd * weight + bias, rstd = 1 / sqrt(var(x) + eps)
// x is rounded to T before it is normalised, so that what backward reads is what forward used.
#pragma once

#include "heirloom/kernels/kernel_table.h"

namespace heirloom {

enum class NormKind : uint8_t { kRms, kLayer };

struct NormForwardArgs {
  NormKind kind = NormKind::kRms;
  const void* residual = nullptr;  ///< (N,C) T
  const void* delta = nullptr;     ///< (N,C) T or null
  void* x_out = nullptr;           ///< (N,C) T; required with delta; may alias residual or delta
  const void* weight = nullptr;    ///< (C) T
  const void* bias = nullptr;      ///< (C) T or null
  void* y = nullptr;               ///< (N,C) T
  void* mean = nullptr;            ///< (N) A, LayerNorm only; null in inference
  void* rstd = nullptr;            ///< (N) A; null in inference
  int64_t n = 0, c = 0;
  double eps = 1e-6;
};
KernelTable<NormForwardArgs>& norm_forward_table();
KernelCost norm_forward_cost(const NormForwardArgs&, Dtype);

/// dx = dresidual + (gradient of y through the norm); dweight += , dbias += .
struct NormBackwardArgs {
  NormKind kind = NormKind::kRms;
  const void* dy = nullptr;         ///< (N,C) T
  const void* dresidual = nullptr;  ///< (N,C) T or null: what flows past the norm
  const void* x = nullptr;          ///< (N,C) T as normalised
  const void* weight = nullptr;     ///< (C) T
  const void* mean = nullptr;       ///< (N) A
  const void* rstd = nullptr;       ///< (N) A
  void* dx = nullptr;               ///< (N,C) T; may alias dresidual or dy
  void* dweight = nullptr;          ///< (C) A, added to
  void* dbias = nullptr;            ///< (C) A, added to, or null
  void* workspace = nullptr;        ///< norm_backward_workspace_bytes(n, c, dtype, device)
  int64_t n = 0, c = 0;
};
KernelTable<NormBackwardArgs>& norm_backward_table();
KernelCost norm_backward_cost(const NormBackwardArgs&, Dtype);
int64_t norm_backward_workspace_bytes(int64_t n, int64_t c, Dtype dtype,
                                      DeviceKind device = DeviceKind::kCpu);
/// How many chunks of rows parameter-gradient reductions use: fixed by n and the kind of device, so
/// that the gradients do not depend on the number of threads. At most 64 on the CPU; on CUDA at most
/// 256, about two blocks for each of an H100's 132 multiprocessors.
int64_t reduction_chunks(int64_t n, DeviceKind device = DeviceKind::kCpu);

}  // namespace heirloom
