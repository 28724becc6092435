// SPDX-License-Identifier: Apache-2.0
//
// Computes     C = op(A) op(B) [+ bias] [+ C], for processors on which oneDNN's results depend on
// threads and row positions. Shapes       A (M,K), B (K,N), C (M,N), bias (N); each of A and B may
// be stored transposed. Layout       op(A) and op(B) are packed as float32 panels of kRows rows and
// kCols columns, padded with zeros. Saved        - Work         blocks of B columns and K one after
// the other; within them tiles of C in static partitions. A task packs its own
//              block of A.
// Bytes        read MK + KN (+ N bias) (+ MN accumulating), write MN
// FLOPs        2 MNK (+ MN bias)
// Precision    products and sums in float32; a bfloat16 C is summed in float32 scratch and rounded
// once. Determinism  an element of C is summed over K in blocks of kDepth, in order, by the same
// instructions wherever it stands: the
//              same bits for any number of threads, any M and N, and any position.
// Limits       one call at a time (they share scratch memory).
// Source       Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS
// 34(3), 2008.
#include "heirloom/kernels/gemm.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/vector_math.h"

namespace heirloom::cpu::HEIRLOOM_ISA {
namespace {

#ifdef __AVX512F__
constexpr int64_t kLanes = 16;
#else
constexpr int64_t kLanes = 8;
#endif
constexpr int64_t kRows = 6,
                  kCols = 2 * kLanes;       // 12 accumulators, 2 of B, 1 of A: within 16 registers
constexpr int64_t kDepth = 256;             // a B panel of 256 x 16 floats is half of a 32 KB L1
constexpr int64_t kBlockRows = 16 * kRows;  // an A block of 96 x 256 floats sits in L2
constexpr int64_t kBlockCols = 1024;        // a B block of 256 x 1024 floats sits in L3
constexpr int64_t kTaskPanels = 8;          // panels of B per task

using Vector = float __attribute__((vector_size(kLanes * sizeof(float))));
using UnalignedVector =
    float __attribute__((vector_size(kLanes * sizeof(float)), aligned(sizeof(float))));

int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

/// panel[k * width + c] = from(c, k) for c < count, 0 up to width.
template <class T>
void pack(const T* from, int64_t stride, int64_t depth_stride, int64_t count, int64_t width,
          int64_t depth, float* panel) {
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t c = 0; c < count; ++c) {
      panel[k * width + c] = to_float(from[c * stride + k * depth_stride]);
    }
    for (int64_t c = count; c < width; ++c) panel[k * width + c] = 0.0f;
  }
}

/// sums (kRows, kCols) = A panel times B panel.
[[gnu::always_inline]] inline void multiply_panels(const float* a, const float* b, int64_t depth,
                                                   Vector (&sums)[kRows][2]) {
  for (int64_t r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = Vector{};
  for (int64_t k = 0; k < depth; ++k) {
    const Vector b0 = *reinterpret_cast<const Vector*>(b + k * kCols);
    const Vector b1 = *reinterpret_cast<const Vector*>(b + k * kCols + kLanes);
#pragma GCC unroll 6
    for (int64_t r = 0; r < kRows; ++r) {
      const Vector x = Vector{} + a[k * kRows + r];
      sums[r][0] += x * b0;
      sums[r][1] += x * b1;
    }
  }
}

/// Where a block's sums go: float32 rows, with the base that the first block of K starts from.
struct Target {
  float* data;
  int64_t stride;
  bool add;
};

void compute_tile(const float* a, const float* b, int64_t depth, const Target& to, int64_t rows,
                  int64_t cols) {
  Vector sums[kRows][2];
  multiply_panels(a, b, depth, sums);
  if (rows == kRows && cols == kCols) {
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t h = 0; h < 2; ++h) {
        auto* c = reinterpret_cast<UnalignedVector*>(to.data + r * to.stride + h * kLanes);
        *c = to.add ? *c + sums[r][h] : sums[r][h];
      }
    }
    return;
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < cols; ++j) {
      float& c = to.data[r * to.stride + j];
      const float sum = sums[r][j / kLanes][j % kLanes];
      c = to.add ? c + sum : sum;
    }
  }
}

template <class T>
class PackedGemm {
 public:
  explicit PackedGemm(const GemmArgs& args)
      : args_(args),
        direct_(sizeof(T) == sizeof(float) || args.c_is_accumulate_dtype),
        block_(args.n < kBlockCols ? args.n : kBlockCols) {}

  void run() {
    const int64_t b_size = kDepth * round_up(block_, kCols);
    const int64_t c_size = direct_ ? 0 : args_.m * block_;
    const ScratchLease scratch(static_cast<size_t>(b_size + c_size) * sizeof(float));
    b_panels_ = static_cast<float*>(scratch.data());
    sums_ = b_panels_ + b_size;
#pragma omp parallel if (args_.m * args_.n * args_.k > kParallelElements)
    for (int64_t j0 = 0; j0 < args_.n; j0 += block_) {
      const int64_t cols = j0 + block_ < args_.n ? block_ : args_.n - j0;
      start(j0, cols);
      for (int64_t k0 = 0; k0 < args_.k; k0 += kDepth) {
        const int64_t depth = k0 + kDepth < args_.k ? kDepth : args_.k - k0;
        pack_b(j0, cols, k0, depth);
        multiply(j0, cols, k0, depth);
      }
      if (!direct_) finish(j0, cols);
    }
  }

 private:
  float* sums(int64_t i, int64_t j0) const {
    return direct_ ? ptr<float>(args_.c) + i * args_.ldc + j0 : sums_ + i * block_;
  }
  /// Whether sums start from something that `start` put there.
  bool has_base() const { return args_.bias || args_.accumulate || args_.k == 0; }

  // Each of the following is shared out over the threads of the team and ends with a barrier.

  void start(int64_t j0, int64_t cols) {
    if (!has_base() || (direct_ && args_.accumulate)) return;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < args_.m; ++i) {
      float* to = sums(i, j0);
      for (int64_t j = 0; j < cols; ++j) {
        to[j] = args_.accumulate ? to_float(ptr<T>(args_.c)[i * args_.ldc + j0 + j])
                : args_.bias     ? to_float(ptr<T>(args_.bias)[j0 + j])
                                 : 0.0f;
      }
    }
  }

  void pack_b(int64_t j0, int64_t cols, int64_t k0, int64_t depth) {
    const int64_t stride = args_.transpose_b ? args_.ldb : 1;
    const int64_t depth_stride = args_.transpose_b ? 1 : args_.ldb;
#pragma omp for schedule(static)
    for (int64_t j = 0; j < cols; j += kCols) {
      const int64_t count = j + kCols < cols ? kCols : cols - j;
      pack(ptr<T>(args_.b) + (j0 + j) * stride + k0 * depth_stride, stride, depth_stride, count,
           kCols, depth, b_panels_ + j * kDepth);
    }
  }

  void multiply(int64_t j0, int64_t cols, int64_t k0, int64_t depth) {
    const int64_t stride = args_.transpose_a ? 1 : args_.lda;
    const int64_t depth_stride = args_.transpose_a ? args_.lda : 1;
    const int64_t task_cols = kTaskPanels * kCols;
    const int64_t row_blocks = (args_.m + kBlockRows - 1) / kBlockRows;
    const int64_t col_blocks = (cols + task_cols - 1) / task_cols;
    alignas(64) float a_panels[kBlockRows * kDepth];
    int64_t packed = -1;
#pragma omp for schedule(static)
    for (int64_t task = 0; task < row_blocks * col_blocks; ++task) {
      const int64_t i0 = task / col_blocks * kBlockRows, first = task % col_blocks * task_cols;
      const int64_t rows = i0 + kBlockRows < args_.m ? kBlockRows : args_.m - i0;
      if (packed != i0) {
        for (int64_t i = 0; i < rows; i += kRows) {
          const int64_t count = i + kRows < rows ? kRows : rows - i;
          pack(ptr<T>(args_.a) + (i0 + i) * stride + k0 * depth_stride, stride, depth_stride, count,
               kRows, depth, a_panels + i * kDepth);
        }
        packed = i0;
      }
      const int64_t last = first + task_cols < cols ? first + task_cols : cols;
      for (int64_t j = first; j < last; j += kCols) {
        for (int64_t i = 0; i < rows; i += kRows) {
          const Target to{sums(i0 + i, j0) + j, direct_ ? args_.ldc : block_, k0 > 0 || has_base()};
          compute_tile(a_panels + i * kDepth, b_panels_ + j * kDepth, depth, to,
                       i + kRows < rows ? kRows : rows - i, j + kCols < cols ? kCols : cols - j);
        }
      }
    }
  }

  void finish(int64_t j0, int64_t cols) {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < args_.m; ++i) {
      const float* from = sums(i, j0);
      T* to = ptr<T>(args_.c) + i * args_.ldc + j0;
#pragma omp simd
      for (int64_t j = 0; j < cols; ++j) to[j] = from_float<T>(from[j]);
    }
  }

  const GemmArgs& args_;
  const bool direct_;    // sums go to C itself
  const int64_t block_;  // columns per pass
  float* b_panels_ = nullptr;
  float* sums_ = nullptr;
};

template <class T>
void gemm_packed(const GemmArgs& args, Stream) {
  if (args.m > 0 && args.n > 0) PackedGemm<T>(args).run();
}

}  // namespace

void register_gemm_packed() {
  gemm_table().set(DeviceKind::kCpu, Dtype::kFloat32, gemm_packed<float>);
  gemm_table().set(DeviceKind::kCpu, Dtype::kBFloat16, gemm_packed<bfloat16>);
}

}  // namespace heirloom::cpu::HEIRLOOM_ISA
