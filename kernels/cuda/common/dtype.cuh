// SPDX-License-Identifier: Apache-2.0
//
// Elements of float or bfloat16 as floats.
#pragma once

#include "kernels/cuda/common/ptx.cuh"

namespace heirloom::cuda {

__device__ __forceinline__ float load(const float* p, int64_t i) { return p[i]; }
__device__ __forceinline__ float load(const bfloat16* p, int64_t i) { return to_float(p[i]); }
__device__ __forceinline__ void store(float* p, int64_t i, float x) { p[i] = x; }
__device__ __forceinline__ void store(bfloat16* p, int64_t i, float x) { p[i] = to_bf16(x); }

/// x as it will be read again after storage in T.
template <class T>
__device__ __forceinline__ float rounded(float x);
template <>
__device__ __forceinline__ float rounded<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ float rounded<bfloat16>(float x) {
  return to_float(to_bf16(x));
}

}  // namespace heirloom::cuda
