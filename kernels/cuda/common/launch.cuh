// SPDX-License-Identifier: Apache-2.0
//
// The one way to start a kernel.
#pragma once

#include <cuda_runtime.h>

#include <utility>

#include "heirloom/core/device.h"
#include "kernels/cuda/error.h"

namespace heirloom::cuda {

inline cudaStream_t native(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }

/// Dynamic shared memory that needs no leave.
inline constexpr size_t kDefaultSharedBytes = 48 << 10;

/// Queues kernel(args...) on `stream`; DeviceError when the launch is refused.
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream,
            A&&... args) {
  if (shared_bytes > kDefaultSharedBytes) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          "dynamic shared memory");
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = native(stream);
  check(cudaLaunchKernelEx(&config, kernel, std::forward<A>(args)...), "kernel launch");
}

}  // namespace heirloom::cuda
