// SPDX-License-Identifier: Apache-2.0
//
// Sums and maxima over a warp or a block, in one fixed order; every thread gets the result.
#pragma once

#include "kernels/cuda/common/ptx.cuh"

namespace heirloom::cuda {

inline constexpr unsigned kWholeWarp = 0xffffffffu;

template <class F>
__device__ __forceinline__ F warp_sum(F x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kWholeWarp, x, lanes);
  return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(kWholeWarp, x, lanes));
  return x;
}

/// Over all threads of a block of whole warps; `scratch` holds one F per warp and is free again when this
/// returns.
template <class F>
__device__ __forceinline__ F block_sum(F x, F* scratch) {
  const int warps = static_cast<int>(blockDim.x + 31) / 32;
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  F sum = scratch[0];
  for (int w = 1; w < warps; ++w) sum += scratch[w];
  __syncthreads();
  return sum;
}

__device__ __forceinline__ float block_max(float x, float* scratch) {
  const int warps = static_cast<int>(blockDim.x + 31) / 32;
  x = warp_max(x);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  float most = scratch[0];
  for (int w = 1; w < warps; ++w) most = fmaxf(most, scratch[w]);
  __syncthreads();
  return most;
}

}  // namespace heirloom::cuda
