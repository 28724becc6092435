// SPDX-License-Identifier: Apache-2.0
#include "heirloom/kernels/cross_entropy.h"

namespace heirloom {

KernelCost cross_entropy_cost(const CrossEntropyArgs& a, Dtype dtype) {
  const double n = static_cast<double>(a.n), nv = n * static_cast<double>(a.v);
  KernelCost cost;
  cost.bytes_read = nv * static_cast<double>(dtype_size(accumulate_dtype(dtype))) + 4 * n;
  cost.bytes_written = 8 * n + (a.dlogits ? nv * static_cast<double>(dtype_size(dtype)) : 0);
  cost.flops = nv * (a.dlogits ? 6 : 3);
  return cost;
}

}  // namespace heirloom
