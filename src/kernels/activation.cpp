// SPDX-License-Identifier: Apache-2.0
#include "heirloom/kernels/activation.h"

namespace heirloom {

KernelCost activation_forward_cost(const ActivationForwardArgs& a, Dtype dtype) {
  const double nf = static_cast<double>(a.n) * static_cast<double>(a.f);
  const double size = static_cast<double>(dtype_size(dtype));
  const bool swiglu = a.kind == ActivationKind::kSwiglu;
  return {(swiglu ? 2 : 1) * nf * size, nf * size, (swiglu ? 5 : 10) * nf};
}

KernelCost activation_backward_cost(const ActivationBackwardArgs& a, Dtype dtype) {
  const double nf = static_cast<double>(a.n) * static_cast<double>(a.f);
  const double size = static_cast<double>(dtype_size(dtype));
  const bool swiglu = a.kind == ActivationKind::kSwiglu;
  return {(swiglu ? 3 : 2) * nf * size, (swiglu ? 2 : 1) * nf * size, (swiglu ? 12 : 16) * nf};
}

}  // namespace heirloom
