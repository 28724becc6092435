// SPDX-License-Identifier: Apache-2.0
//
// activation: the non-linearity of the MLP.
//   kSwiglu    x (N, 2F): gate = x[:, :F], up = x[:, F:];  y = gate * sigmoid(gate) * up
//   kGelu      x (N, F): y = x * Phi(x), exact (erf)
//   kGeluTanh  x (N, F): y = 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
#pragma once

#include "heirloom/kernels/kernel_table.h"

namespace heirloom {

enum class ActivationKind : uint8_t { kSwiglu, kGelu, kGeluTanh };

struct ActivationForwardArgs {
  ActivationKind kind = ActivationKind::kSwiglu;
  const void* x = nullptr;  ///< (N, 2F) or (N, F) T, contiguous
  void* y = nullptr;        ///< (N, F) T
  int64_t n = 0, f = 0;
};
KernelTable<ActivationForwardArgs>& activation_forward_table();
KernelCost activation_forward_cost(const ActivationForwardArgs&, Dtype);

struct ActivationBackwardArgs {
  ActivationKind kind = ActivationKind::kSwiglu;
  const void* x = nullptr;   ///< as forward
  const void* dy = nullptr;  ///< (N, F) T
  void* dx = nullptr;        ///< shape of x, T; may alias x
  int64_t n = 0, f = 0;
};
KernelTable<ActivationBackwardArgs>& activation_backward_table();
KernelCost activation_backward_cost(const ActivationBackwardArgs&, Dtype);

}  // namespace heirloom
