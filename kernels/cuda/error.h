// SPDX-License-Identifier: Apache-2.0
//
// Errors of the CUDA runtime as exceptions.
#pragma once

#include <cuda_runtime.h>

#include "heirloom/core/error.h"

namespace heirloom::cuda {

/// DeviceError "[cuda] what: the runtime's text" unless `error` is success. `what` is what was tried.
inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // it has been heard
  throw_error<DeviceError>("[cuda] expected {} to succeed; got {} ({})", what,
                           cudaGetErrorString(error), cudaGetErrorName(error));
}

}  // namespace heirloom::cuda
