// SPDX-License-Identifier: Apache-2.0
//
// Computes     C = op(A) op(B) [+ bias] [+ C], for processors on which oneDNN's results depend on
//              threads and row positions.
// Shapes       A (M,K), B (K,N), C (M,N), bias (N); each of A and B may be stored transposed.
// Layout       op(A) and op(B) are packed as float32 panels of kRows rows and kCols columns, padded
//              with zeros.
// Saved        -
// Work         blocks of B columns and K one after the other; within them tiles of C in static
//              partitions. A task packs its own block of A.
// Bytes        read MK + KN (+ N bias) (+ MN accumulating), write MN
// FLOPs        2 MNK (+ MN bias)
// Precision    products and sums in float32; a bfloat16 C is summed in float32 scratch and rounded
//              once.
// Determinism  an element of C is summed over K in blocks of kDepth, in order, by the same
//              instructions wherever it stands: the same bits for any number of threads, any M and
//              N, and any position.
// Limits       one call at a time (they share scratch memory).
// Source       Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS
//              34(3), 2008.
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
                  kCols = 2 * kLanes;      // 12 accumulators, 2 of B, 1 of A: within 16 registers
constexpr int64_t kDepth = 256;            // a B panel of 256 x 16 floats is half of a 32 KB L1
constexpr int64_t kTaskRows = 16 * kRows;  // 96 x 256 floats of A sit in L2
constexpr int64_t kTaskCols = 8 * kCols;
constexpr int64_t kBlockRows = 16 * kTaskRows;  // packed A and B blocks, 1.5 and 1 MB, sit in L3
constexpr int64_t kBlockCols = 1024;

using Vector = float __attribute__((vector_size(kLanes * sizeof(float))));
int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

/// panel[k * width + c] = from(c, k) for c < count, 0 up to width.
template <class T>
void pack(const T* from, int64_t stride, int64_t depth_stride, int64_t count, int64_t width,
          int64_t depth, float* panel) {
  if (depth_stride == 1) {
    for (int64_t c = 0; c < count; ++c) {
      for (int64_t k = 0; k < depth; ++k) panel[k * width + c] = to_float(from[c * stride + k]);
    }
    for (int64_t c = count; c < width; ++c) {
      for (int64_t k = 0; k < depth; ++k) panel[k * width + c] = 0.0f;
    }
    return;
  }
  for (int64_t k = 0; k < depth; ++k) {
    const T* row = from + k * depth_stride;
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) panel[k * width + c] = to_float(row[c]);
    for (int64_t c = count; c < width; ++c) panel[k * width + c] = 0.0f;
  }
}

/// tile (kRows, kCols) = A panel times B panel. The loops over r must unroll, or the sums leave
/// their registers.
[[gnu::noinline]] void multiply_panels(const float* a, const float* b, int64_t depth, float* tile) {
  Vector sums[kRows][2];
#pragma GCC unroll 6
  for (int64_t r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = Vector{};
  for (int64_t k = 0; k < depth; ++k) {
    const Vector b0 = *reinterpret_cast<const Vector*>(b + k * kCols);
    const Vector b1 = *reinterpret_cast<const Vector*>(b + k * kCols + kLanes);
#pragma GCC unroll 6
    for (int64_t r = 0; r < kRows; ++r) {
      const float x = a[k * kRows + r];
      sums[r][0] += x * b0;
      sums[r][1] += x * b1;
    }
  }
#pragma GCC unroll 6
  for (int64_t r = 0; r < kRows; ++r) {
    *reinterpret_cast<Vector*>(tile + r * kCols) = sums[r][0];
    *reinterpret_cast<Vector*>(tile + r * kCols + kLanes) = sums[r][1];
  }
}

template <class T>
class PackedGemm {
 public:
  explicit PackedGemm(const GemmArgs& args)
      : args_(args),
        direct_(sizeof(T) == sizeof(float) || args.c_is_accumulate_dtype),
        block_rows_(args.m < kBlockRows ? args.m : kBlockRows),
        block_cols_(args.n < kBlockCols ? args.n : kBlockCols) {}

  void run() {
    const int64_t a_size = kDepth * round_up(block_rows_, kRows);
    const int64_t b_size = kDepth * round_up(block_cols_, kCols);
    const int64_t c_size = direct_ ? 0 : block_rows_ * block_cols_;
    const int64_t aligned = round_up(a_size, kLanes);
    const ScratchLease scratch(static_cast<size_t>(aligned + b_size + c_size) * sizeof(float));
    a_panels_ = static_cast<float*>(scratch.data());
    b_panels_ = a_panels_ + aligned;
    sums_ = b_panels_ + b_size;
#pragma omp parallel if (args_.m * args_.n * args_.k > kParallelElements)
    for (int64_t i0 = 0; i0 < args_.m; i0 += block_rows_) {
      for (int64_t j0 = 0; j0 < args_.n; j0 += block_cols_) {
        const Block block{i0, j0, i0 + block_rows_ < args_.m ? block_rows_ : args_.m - i0,
                          j0 + block_cols_ < args_.n ? block_cols_ : args_.n - j0};
        start(block);
        for (int64_t k0 = 0; k0 < args_.k; k0 += kDepth) {
          const int64_t depth = k0 + kDepth < args_.k ? kDepth : args_.k - k0;
          pack_panels(block, k0, depth);
          multiply(block, k0, depth);
        }
        if (!direct_) finish(block);
      }
    }
  }

 private:
  struct Block {
    int64_t i0, j0, rows, cols;
  };

  /// Row i of the block's float32 sums: C itself where it can hold them.
  float* sums(const Block& block, int64_t i) const {
    return direct_ ? ptr<float>(args_.c) + (block.i0 + i) * args_.ldc + block.j0
                   : sums_ + i * block_cols_;
  }
  /// Whether sums start from something that `start` put there.
  bool has_base() const { return args_.bias || args_.accumulate || args_.k == 0; }

  // Each of the following is shared out over the threads of the team and ends with a barrier.

  void start(const Block& block) {
    if (!has_base() || (direct_ && args_.accumulate)) return;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < block.rows; ++i) {
      float* to = sums(block, i);
      const int64_t at = (block.i0 + i) * args_.ldc + block.j0;
      for (int64_t j = 0; j < block.cols; ++j) {
        to[j] = args_.accumulate ? to_float(ptr<T>(args_.c)[at + j])
                : args_.bias     ? to_float(ptr<T>(args_.bias)[block.j0 + j])
                                 : 0.0f;
      }
    }
  }

  void pack_panels(const Block& block, int64_t k0, int64_t depth) {
    const int64_t a_stride = args_.transpose_a ? 1 : args_.lda;
    const int64_t a_depth = args_.transpose_a ? args_.lda : 1;
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < block.rows; i += kRows) {
      const int64_t count = i + kRows < block.rows ? kRows : block.rows - i;
      pack(ptr<T>(args_.a) + (block.i0 + i) * a_stride + k0 * a_depth, a_stride, a_depth, count,
           kRows, depth, a_panels_ + i * kDepth);
    }
    const int64_t b_stride = args_.transpose_b ? args_.ldb : 1;
    const int64_t b_depth = args_.transpose_b ? 1 : args_.ldb;
#pragma omp for schedule(static)
    for (int64_t j = 0; j < block.cols; j += kCols) {
      const int64_t count = j + kCols < block.cols ? kCols : block.cols - j;
      pack(ptr<T>(args_.b) + (block.j0 + j) * b_stride + k0 * b_depth, b_stride, b_depth, count,
           kCols, depth, b_panels_ + j * kDepth);
    }
  }

  void multiply(const Block& block, int64_t k0, int64_t depth) {
    const int64_t row_tasks = (block.rows + kTaskRows - 1) / kTaskRows;
    const int64_t col_tasks = (block.cols + kTaskCols - 1) / kTaskCols;
    const bool add = k0 > 0 || has_base();
#pragma omp for schedule(static)
    for (int64_t task = 0; task < row_tasks * col_tasks; ++task) {
      const int64_t i0 = task / col_tasks * kTaskRows, j0 = task % col_tasks * kTaskCols;
      const int64_t i1 = i0 + kTaskRows < block.rows ? i0 + kTaskRows : block.rows;
      const int64_t j1 = j0 + kTaskCols < block.cols ? j0 + kTaskCols : block.cols;
      for (int64_t j = j0; j < j1; j += kCols) {
        const int64_t cols = j + kCols < j1 ? kCols : j1 - j;
        for (int64_t i = i0; i < i1; i += kRows) {
          alignas(64) float tile[kRows * kCols];
          multiply_panels(a_panels_ + i * kDepth, b_panels_ + j * kDepth, depth, tile);
          const int64_t rows = i + kRows < i1 ? kRows : i1 - i;
          for (int64_t r = 0; r < rows; ++r) {
            float* c = sums(block, i + r) + j;
            const float* from = tile + r * kCols;
            if (add) {
#pragma omp simd
              for (int64_t n = 0; n < cols; ++n) c[n] += from[n];
            } else {
#pragma omp simd
              for (int64_t n = 0; n < cols; ++n) c[n] = from[n];
            }
          }
        }
      }
    }
  }

  void finish(const Block& block) {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < block.rows; ++i) {
      const float* from = sums(block, i);
      T* to = ptr<T>(args_.c) + (block.i0 + i) * args_.ldc + block.j0;
#pragma omp simd
      for (int64_t j = 0; j < block.cols; ++j) to[j] = from_float<T>(from[j]);
    }
  }

  const GemmArgs& args_;
  const bool direct_;
  const int64_t block_rows_, block_cols_;
  float* a_panels_ = nullptr;
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
