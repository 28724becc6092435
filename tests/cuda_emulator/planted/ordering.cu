// SPDX-License-Identifier: Apache-2.0
//
// Kernels with one mistake of ordering each, and without it (kRight). The comments that begin with
// "found:" mark the line that the emulator must name.
#include "kernels/cuda/common/ptx.cuh"

namespace heirloom::cuda::planted {

/// out[i] = sum of the block's tile, turned by i: one tile, every thread reads all of it.
template <bool kRight>
__global__ void leading_barrier_kernel(const float* in, float* out) {
  DYN_SMEM(memory);
  auto* tile = reinterpret_cast<float*>(memory);
  const unsigned n = blockDim.x, t = threadIdx.x, base = blockIdx.x * n;
  tile[t] = in[base + t];
  if constexpr (kRight) __syncthreads();
  float sum = 0;
  for (unsigned i = 0; i < n; ++i) sum += tile[(t + i) % n];  // found: leading barrier
  out[base + t] = sum;
}

/// Two tiles one after the other in the same place.
template <bool kRight>
__global__ void trailing_barrier_kernel(const float* in, float* out) {
  DYN_SMEM(memory);
  auto* tile = reinterpret_cast<float*>(memory);
  const unsigned n = blockDim.x, t = threadIdx.x;
  float sum = 0;
  for (unsigned step = 0; step < 2; ++step) {
    tile[t] = in[step * n + t];  // found: trailing barrier
    __syncthreads();
    sum += tile[(t + 1) % n];
    if constexpr (kRight) __syncthreads();
  }
  out[t] = sum;
}

/// A transposition inside each warp.
template <bool kRight>
__global__ void warp_barrier_kernel(const float* in, float* out) {
  DYN_SMEM(memory);
  auto* tile = reinterpret_cast<float*>(memory);
  const unsigned t = threadIdx.x, first = t / 32 * 32;
  tile[t] = in[t];
  if constexpr (kRight) {
    __syncwarp();
  } else {
    static_cast<void>(__shfl_xor_sync(0xffffffffu, t, 1));  // together, but no order of memory
  }
  out[t] = tile[first + 31 - t % 32];  // found: warp barrier
}

/// A copy through shared memory that reads what other threads have copied.
template <bool kRight>
__global__ void async_copy_kernel(const float* in, float* out) {
  DYN_SMEM(memory);
  auto* tile = reinterpret_cast<float*>(memory);
  const unsigned t = threadIdx.x, n = blockDim.x;
  cp_async<16>(tile + 4 * t, in + 4 * t, true);
  cp_async_commit();
  if constexpr (kRight) cp_async_wait<0>();
  __syncthreads();
  for (unsigned i = 0; i < 4; ++i) out[i * n + t] = tile[i * n + t];  // found: async copy
  if constexpr (!kRight) cp_async_wait<0>();
}

/// A copy through shared memory in which every thread reads its own only: no barrier, but a wait.
template <bool kRight>
__global__ void own_async_copy_kernel(const float* in, float* out) {
  DYN_SMEM(memory);
  auto* tile = reinterpret_cast<float*>(memory);
  const unsigned t = threadIdx.x;
  cp_async<4>(tile + t, in + t, true);
  cp_async_commit();
  if constexpr (kRight) cp_async_wait<0>();
  out[t] = tile[t];  // found: own async copy
  if constexpr (!kRight) cp_async_wait<0>();
}

enum class Fences { kBoth, kNone, kWriterOnly };

/// Sums over blocks; the last block to take a ticket adds up what all have left, and resets the
/// tickets.
template <Fences kFences>
__global__ void ticket_kernel(const float* in, float* partial, unsigned* tickets, float* out) {
  __shared__ bool last;
  DYN_SMEM(memory);
  auto* tile = reinterpret_cast<float*>(memory);
  const unsigned t = threadIdx.x, n = blockDim.x;
  tile[t] = in[blockIdx.x * n + t];
  __syncthreads();
  if (t == 0) {
    float sum = 0;
    for (unsigned i = 0; i < n; ++i) sum += tile[i];
    partial[blockIdx.x] = sum;
    if constexpr (kFences != Fences::kNone) __threadfence();
    last = atomicAdd(tickets, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last) return;
  if constexpr (kFences == Fences::kBoth) __threadfence();
  if (t == 0) {
    float sum = 0;
    for (unsigned i = 0; i < gridDim.x; ++i) sum += partial[i];  // found: ticket
    *out = sum;
    *tickets = 0;
  }
}

/// All threads leave something; a barrier, then one thread fences for all.
__global__ inline void wide_ticket_kernel(const float* in, float* partial, unsigned* tickets,
                                          float* out) {
  __shared__ bool last;
  const unsigned t = threadIdx.x, n = blockDim.x;
  partial[blockIdx.x * n + t] = 2.0f * in[blockIdx.x * n + t];
  __syncthreads();
  if (t == 0) {
    __threadfence();
    last = atomicAdd(tickets, 1u) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (!last) return;
  float sum = 0;
  for (unsigned b = 0; b < gridDim.x; ++b) sum += partial[b * n + t];
  out[t] = sum;
}

/// Two blocks that write the same element.
template <bool kRight>
__global__ void shared_output_kernel(float* out) {
  if (threadIdx.x == 0) {
    out[kRight ? blockIdx.x : 0] = 1.0f;  // found: shared output
  }
}

/// Counts into shared and global memory with atomics only.
__global__ inline void histogram_kernel(const int* values, unsigned* counts) {
  DYN_SMEM(memory);
  auto* bins = reinterpret_cast<unsigned*>(memory);
  if (threadIdx.x < 8) bins[threadIdx.x] = 0;
  __syncthreads();
  atomicAdd(&bins[values[blockIdx.x * blockDim.x + threadIdx.x]], 1u);
  __syncthreads();
  if (threadIdx.x < 8) atomicAdd(&counts[threadIdx.x], bins[threadIdx.x]);
}

/// One half of the block never comes to the barrier.
template <bool kRight>
__global__ void divergent_barrier_kernel(float* out) {
  if (kRight || threadIdx.x < blockDim.x / 2) {
    __syncthreads();  // found: divergent barrier
  } else {
    static_cast<void>(__shfl_xor_sync(0xffffffffu, threadIdx.x, 1));
    __syncthreads();
  }
  out[threadIdx.x] = 1.0f;
}

/// One half of the warp never comes to the shuffle.
template <bool kRight>
__global__ void divergent_shuffle_kernel(float* out) {
  float x = static_cast<float>(threadIdx.x);
  if (kRight || threadIdx.x < 16) {
    x = __shfl_xor_sync(0xffffffffu, x, 1);  // found: divergent shuffle
  }
  out[threadIdx.x] = x;
}

}  // namespace heirloom::cuda::planted
