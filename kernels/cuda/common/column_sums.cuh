// SPDX-License-Identifier: Apache-2.0
//
// The second half of a reduction over rows: partial sums per chunk of rows, added up in one fixed order.
#pragma once

#include "kernels/cuda/common/launch.cuh"
#include "kernels/cuda/common/vector.cuh"

namespace heirloom::cuda {

inline constexpr int kColumnSumColumns = 32, kColumnSumSlices = 16;

/// to[j] += sum over rows i of from[i * stride + j], rows as `row(i)` numbers them. A block owns 32 columns; slice s adds
/// rows s, s + 16, ...; then the slices are added in order.
template <class Row>
__device__ __forceinline__ void add_column_sums(const float* from, int64_t stride, int64_t rows,
                                                int64_t columns, float* to, const Row& row) {
  DYN_SMEM(memory);
  float* sums = reinterpret_cast<float*>(memory);  // [slice][column]
  const int column = static_cast<int>(threadIdx.x), slice = static_cast<int>(threadIdx.y);
  const int64_t j = int64_t{blockIdx.x} * kColumnSumColumns + column;
  float sum = 0;
  if (j < columns) {
    for (int64_t i = slice; i < rows; i += kColumnSumSlices) sum += from[row(i) * stride + j];
  }
  sums[slice * kColumnSumColumns + column] = sum;
  __syncthreads();
  if (slice != 0 || j >= columns) return;
  float total = to[j];
  for (int s = 0; s < kColumnSumSlices; ++s) total += sums[s * kColumnSumColumns + column];
  to[j] = total;
}

inline constexpr size_t kColumnSumSharedBytes =
    kColumnSumColumns * kColumnSumSlices * sizeof(float);
inline dim3 column_sum_block() { return dim3(kColumnSumColumns, kColumnSumSlices); }
inline unsigned column_sum_blocks(int64_t columns) {
  return static_cast<unsigned>((columns + kColumnSumColumns - 1) / kColumnSumColumns);
}

}  // namespace heirloom::cuda
