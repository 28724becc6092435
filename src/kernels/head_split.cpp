// SPDX-License-Identifier: Apache-2.0
#include "heirloom/kernels/head_split.h"

#include "heirloom/kernels/norm.h"

namespace heirloom {

int64_t head_split_backward_workspace_bytes(int64_t n, int64_t routes, int64_t head_dim,
                                            Dtype dtype, DeviceKind device) {
  return reduction_chunks(n, device) * routes * head_dim * dtype_size(accumulate_dtype(dtype));
}

KernelCost head_split_forward_cost(const HeadSplitForwardArgs& a, Dtype dtype) {
  const double n = static_cast<double>(a.n), head = n * static_cast<double>(a.head_dim);
  const double rotary = n * static_cast<double>(a.rotary_dim);
  const double size = static_cast<double>(dtype_size(dtype));
  KernelCost cost;
  bool rotates = false;
  for (int64_t r = 0; r < a.route_count; ++r) {
    const HeadRoute& route = a.routes[r];
    cost.bytes_read += head * size;
    cost.bytes_written += head * size;
    cost.flops += (route.rotate ? 3 * rotary : 0) + (route.norm_weight ? 4 * head : 0);
    rotates |= route.rotate;
  }
  if (rotates) cost.bytes_read += rotary * static_cast<double>(dtype_size(accumulate_dtype(dtype)));
  return cost;
}

KernelCost head_split_backward_cost(const HeadSplitBackwardArgs& a, Dtype dtype) {
  const double n = static_cast<double>(a.n), head = n * static_cast<double>(a.head_dim);
  const double rotary = n * static_cast<double>(a.rotary_dim);
  const double size = static_cast<double>(dtype_size(dtype));
  const double slot = static_cast<double>(dtype_size(accumulate_dtype(dtype)));
  KernelCost cost;
  bool rotates = false;
  for (int64_t r = 0; r < a.route_count; ++r) {
    const HeadGradRoute& route = a.routes[r];
    cost.bytes_read += head * (route.is_accumulate_dtype ? slot : size);
    cost.bytes_read += route.norm_weight ? head * size : 0;
    cost.bytes_written += head * size;
    cost.flops += (route.rotate ? 3 * rotary : 0) + (route.norm_weight ? 10 * head : 0);
    rotates |= route.rotate;
  }
  if (rotates) cost.bytes_read += rotary * slot;
  return cost;
}

}  // namespace heirloom
