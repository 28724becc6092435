// SPDX-License-Identifier: Apache-2.0
//
// Computes     C = op(A) op(B) [+ bias] [+ C], by cuBLASLt.
// Shapes       A (M,K) or transposed (K,M); B (K,N) or transposed (N,K); bias (N); C (M,N).
// Layout       rows of any stride and alignment. The library is column-major and sees the transposed
//              problem C^T (N,M) = op(B)^T op(A)^T, in which the bias runs along a column as its
//              epilogue wants it.
// Saved        nothing.
// Work         the library's. A bias that the epilogue does not take (C in float32 for bfloat16
//              inputs, fewer than 16 bytes of alignment) and K = 0: first a kernel that fills C, a
//              block per row and 1024 columns, then C is added to.
// Bytes        read (MK + KN) T [+ N T] [+ MN of C]; write MN of C
// FLOPs        2 MNK [+ MN]
// Precision    products and sums in float32, never rounded in between: of a K cut in pieces the parts
//              are kept in float32. tf32 rounds float32 inputs to 10 bits.
// Determinism  one order of the sum per problem (shape, types, strides' alignment) and algorithm. The
//              algorithm is the pinned one of that problem (tune_gemms), else the library's first
//              proposal, the same within a version of it. Between different M nothing is promised.
// Limits       float32 and bfloat16.
// Source       cuBLASLt.
#include "heirloom/kernels/gemm.h"

#include <algorithm>

#include "kernels/cuda/common/dtype.cuh"
#include "kernels/cuda/common/launch.cuh"
#include "kernels/cuda/gemm.h"

namespace heirloom::cuda {
namespace {

constexpr int kFillColumns = 1024, kFillThreads = 256;

template <class T, class C>
__global__ void gemm_forward_fill_kernel(C* c, int64_t ldc, const T* bias, int64_t rows,
                                         int64_t columns) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kFillColumns;
  const int64_t end = begin + kFillColumns < columns ? begin + kFillColumns : columns;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    for (int64_t j = begin + threadIdx.x; j < end; j += blockDim.x) {
      store(c, row * ldc + j, bias == nullptr ? 0.0f : load(bias, j));
    }
  }
}

// Values in (-1, 1) to time products with: zeros would draw less power and run at a higher clock.
template <class T>
__global__ void gemm_forward_scratch_kernel(T* data, int64_t count, uint32_t seed) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    uint32_t x = static_cast<uint32_t>(i) * 0x9e3779b9u + seed;
    x = (x ^ (x >> 16)) * 0x85ebca6bu;
    x = (x ^ (x >> 13)) * 0xc2b2ae35u;
    store(data, i, static_cast<float>(static_cast<int32_t>(x ^ (x >> 16))) * 4.6566e-10f);
  }
}

template <class T>
void fill_rows(const GemmArgs& args, Stream stream) {
  const dim3 grid(static_cast<unsigned>((args.n + kFillColumns - 1) / kFillColumns),
                  static_cast<unsigned>(std::min<int64_t>(args.m, 65535)));
  if (args.c_is_accumulate_dtype) {
    launch(gemm_forward_fill_kernel<T, float>, grid, dim3(kFillThreads), 0, stream,
           static_cast<float*>(args.c), args.ldc, static_cast<const T*>(args.bias), args.m, args.n);
  } else {
    launch(gemm_forward_fill_kernel<T, T>, grid, dim3(kFillThreads), 0, stream,
           static_cast<T*>(args.c), args.ldc, static_cast<const T*>(args.bias), args.m, args.n);
  }
}

template <class T>
void fill_scratch(void* data, int64_t count, Stream stream) {
  const dim3 grid(
      static_cast<unsigned>(std::min<int64_t>(1024, (count + kFillThreads - 1) / kFillThreads)));
  launch(gemm_forward_scratch_kernel<T>, grid, dim3(kFillThreads), 0, stream, static_cast<T*>(data),
         count, 1u);
}

}  // namespace

void fill_gemm_rows(const GemmArgs& args, Dtype dtype, Stream stream) {
  dtype == Dtype::kBFloat16 ? fill_rows<bfloat16>(args, stream) : fill_rows<float>(args, stream);
}

void fill_gemm_scratch(void* data, Dtype dtype, int64_t count, Stream stream) {
  dtype == Dtype::kBFloat16 ? fill_scratch<bfloat16>(data, count, stream)
                            : fill_scratch<float>(data, count, stream);
}

}  // namespace heirloom::cuda
