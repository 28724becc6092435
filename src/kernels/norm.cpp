// SPDX-License-Identifier: Apache-2.0
#include "heirloom/kernels/norm.h"

#include <algorithm>

namespace heirloom {
namespace {
struct ChunkRule {
  int64_t rows, most;
};
constexpr ChunkRule chunk_rule(DeviceKind device) {
  return device == DeviceKind::kCuda ? ChunkRule{8, 256} : ChunkRule{32, 64};
}
}  // namespace

int64_t reduction_chunks(int64_t n, DeviceKind device) {
  const ChunkRule rule = chunk_rule(device);
  return std::clamp<int64_t>((n + rule.rows - 1) / rule.rows, 1, rule.most);
}

int64_t norm_backward_workspace_bytes(int64_t n, int64_t c, Dtype dtype, DeviceKind device) {
  return reduction_chunks(n, device) * 2 * c * dtype_size(accumulate_dtype(dtype));
}

KernelCost norm_forward_cost(const NormForwardArgs& a, Dtype dtype) {
  const double n = static_cast<double>(a.n), c = static_cast<double>(a.c), nc = n * c;
  const double size = static_cast<double>(dtype_size(dtype));
  const double statistic = static_cast<double>(dtype_size(accumulate_dtype(dtype)));
  const bool layer = a.kind == NormKind::kLayer;
  KernelCost cost;
  cost.bytes_read = (nc * (a.delta ? 2 : 1) + c * (a.bias ? 2 : 1)) * size;
  cost.bytes_written = nc * (a.delta ? 2 : 1) * size +
                       n * statistic * ((a.rstd ? 1 : 0) + (layer && a.mean ? 1 : 0));
  cost.flops = nc * ((layer ? 7 : 4) + (a.delta ? 1 : 0));
  return cost;
}

KernelCost norm_backward_cost(const NormBackwardArgs& a, Dtype dtype) {
  const double n = static_cast<double>(a.n), c = static_cast<double>(a.c), nc = n * c;
  const double size = static_cast<double>(dtype_size(dtype));
  const double statistic = static_cast<double>(dtype_size(accumulate_dtype(dtype)));
  const bool layer = a.kind == NormKind::kLayer;
  const double parameters = c * (a.dbias ? 2 : 1) * statistic;
  KernelCost cost;
  cost.bytes_read =
      (nc * (a.dresidual ? 3 : 2) + c) * size + n * statistic * (layer ? 2 : 1) + parameters;
  cost.bytes_written = nc * size + parameters;
  cost.flops = nc * (layer ? 13 : 10);
  return cost;
}

}  // namespace heirloom
