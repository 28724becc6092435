// SPDX-License-Identifier: Apache-2.0
#include "heirloom/kernels/gemm.h"

#include <array>

namespace heirloom {

KernelCost gemm_cost(const GemmArgs& a, Dtype dtype) {
  const double m = static_cast<double>(a.m), n = static_cast<double>(a.n);
  const double k = static_cast<double>(a.k), size = static_cast<double>(dtype_size(dtype));
  const double out =
      a.c_is_accumulate_dtype ? static_cast<double>(dtype_size(accumulate_dtype(dtype))) : size;
  KernelCost cost;
  cost.bytes_read = (m * k + k * n + (a.bias ? n : 0)) * size + (a.accumulate ? m * n * out : 0);
  cost.bytes_written = m * n * out;
  cost.flops = 2 * m * n * k + (a.bias ? m * n : 0);
  return cost;
}

namespace {
std::array<GemmTuner, 3> tuners{};
}  // namespace

void register_gemm_tuner(DeviceKind device, GemmTuner tuner) {
  tuners[static_cast<size_t>(device)] = tuner;
}

void tune_gemms(const Device& device, const std::vector<GemmProblem>& problems,
                const std::string& cache_file) {
  if (const GemmTuner tuner = tuners[static_cast<size_t>(device.kind)]) {
    tuner(device.index, problems, cache_file);
  }
}

}  // namespace heirloom
