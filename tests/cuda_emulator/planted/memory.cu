// SPDX-License-Identifier: Apache-2.0
//
// Kernels with one mistake in what they read or write each, or one way to waste memory traffic, and
// without it (kRight). The comments that begin with "found:" mark the line that the emulator must
// name.
#include "kernels/cuda/common/ptx.cuh"

namespace heirloom::cuda::planted {

/// Column sums of `keys` rows of 64 bf16, in tiles of 16 rows; rows past the end count as zero, but
/// must not be read either. (Values are right without the guard: the sum leaves them out.)
template <bool kRight>
__global__ void tile_past_end_kernel(const bfloat16* rows, int keys, float* out) {
  DYN_SMEM(memory);
  auto* tile = reinterpret_cast<bfloat16*>(memory);
  const int t = static_cast<int>(threadIdx.x);
  float sum = 0;
  for (int first = 0; first < keys; first += 16) {
    for (int chunk = t; chunk < 16 * 8; chunk += static_cast<int>(blockDim.x)) {
      const int row = first + chunk / 8;
      const bool valid = !kRight || row < keys;
      const bfloat16* from = rows + int64_t{row} * 64 + chunk % 8 * 8;
      cp_async<16>(tile + chunk * 8, from, valid);  // found: tile past the end
    }
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    for (int row = 0; row < 16 && first + row < keys; ++row) sum += to_float(tile[row * 64 + t]);
    __syncthreads();
  }
  out[t] = sum;
}

template <bool kRight>
__global__ void store_guard_kernel(const float* in, float* out, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const float x = i < n ? in[i] : 0.0f;
  if (!kRight || i < n) out[i] = x;  // found: store guard
}

/// A sum over warps whose last slot nobody writes when the block has fewer warps.
template <bool kRight>
__global__ void unwritten_slot_kernel(const float* in, float* out) {
  __shared__ float slots[4];
  const unsigned t = threadIdx.x, warps = blockDim.x / 32;
  if (t % 32 == 0) slots[t / 32] = in[t];
  __syncthreads();
  float sum = 0;
  for (unsigned w = 0; w < (kRight ? warps : 4); ++w) {
    sum += slots[w];  // found: unwritten slot
  }
  out[t] = sum;
}

template <bool kRight>
__global__ void unwritten_input_kernel(const float* in, float* out, int n) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < n) out[i] = in[kRight ? i : i + 1];  // found: unwritten input
}

/// Rows of 12 bytes' width in rows of 16: the last quarter is padding that moves along unread.
__global__ inline void padded_rows_kernel(const float* in, float* out) {
  const uint4 row = load_16(in + 4 * threadIdx.x);
  out[threadIdx.x] = __uint_as_float(row.x) + __uint_as_float(row.y) + __uint_as_float(row.z);
}

__global__ inline void shared_overrun_kernel(float* out) {
  DYN_SMEM(memory);
  auto* tile = reinterpret_cast<float*>(memory);
  tile[threadIdx.x] = 1.0f;  // found: shared overrun
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];
}

__global__ inline void read_one_kernel(const float* in, float* out) {
  if (threadIdx.x == 0) out[0] = in[0];  // found: host pointer
}

/// Copies n floats; kStride = 2: every thread two neighbours apart; 8: a sector of its own each.
template <int kStride>
__global__ void strided_kernel(const float* in, float* out) {
  const unsigned i = threadIdx.x;
  out[i] = in[kStride * i];  // found: strided
}

/// 16-byte loads of which the second half of each sector is read by nobody.
template <bool kRight>
__global__ void half_sector_kernel(const float* in, float* out) {
  const unsigned i = threadIdx.x;
  const uint4 x = load_16(in + (kRight ? 4 : 8) * i);  // found: half sector
  store_16(out + 4 * i, x);
}

/// 64 rows of 64 bf16 through ldmatrix; without the swizzle eight rows meet in the same banks.
template <bool kRight>
__global__ void swizzle_kernel(const bfloat16* in, uint32_t* out) {
  DYN_SMEM(memory);
  auto* tile = reinterpret_cast<bfloat16*>(memory);
  const auto place = [](unsigned row, unsigned chunk) {
    return row * 64 + (kRight ? chunk ^ (row & 7) : chunk) * 8;
  };
  const unsigned lane = threadIdx.x;
  for (unsigned chunk = lane; chunk < 64 * 8; chunk += 32) {
    cp_async<16>(tile + place(chunk / 8, chunk % 8), in + chunk * 8, true);
  }
  cp_async_commit();
  cp_async_wait<0>();
  __syncwarp();
  uint32_t mixed = 0;
  for (unsigned rows = 0; rows < 64; rows += 16) {
    for (unsigned chunk = 0; chunk < 8; chunk += 2) {
      const unsigned row = rows + lane % 16;
      const Fragment4 f = ldmatrix_x4(tile + place(row, chunk + lane / 16));  // found: swizzle
      mixed ^= f.x[0] + f.x[1] + f.x[2] + f.x[3];
    }
  }
  out[lane] = mixed;
}

/// A 32 x 32 transposition; without the pad all reads of a warp meet in one bank.
template <int kPad>
__global__ void transpose_kernel(const float* in, float* out) {
  DYN_SMEM(memory);
  auto* tile = reinterpret_cast<float*>(memory);
  const unsigned lane = threadIdx.x;
  for (unsigned row = 0; row < 32; ++row) tile[row * (32 + kPad) + lane] = in[row * 32 + lane];
  __syncwarp();
  for (unsigned row = 0; row < 32; ++row) {
    out[row * 32 + lane] = tile[lane * (32 + kPad) + row];  // found: transpose
  }
}

__global__ inline void double_kernel(float* x) { x[threadIdx.x] *= 2.0f; }

}  // namespace heirloom::cuda::planted
