// SPDX-License-Identifier: Apache-2.0
//
// Computes     y = x W^T [+ bias] for few rows of x
// Shapes       x (R, K), W (M, K), y (R, M); bias (M)
// Layout       row-major; W contiguous
// Saved        nothing
// Work         one row of W at a time for one row of x, four for up to six rows of x in registers;
//              each thread a contiguous part of W
// Bytes        read W once, x, bias; written y
// FLOPs        2 R M K
// Precision    float32: fma in kLanes partial sums; bfloat16: the same after widening, or pairs by
//              vdpbf16ps with AVX-512 (sums in float32, subnormals are zero); one rounding at the
//              end
// Determinism  an element is summed in an order that depends on K alone: not on R, M, threads or
//              which rows stand beside it
// Limits       none
// Source       own
#include "heirloom/kernels/gemm.h"
#include "kernels/cpu/simd.h"

namespace heirloom::cpu::HEIRLOOM_ISA {
namespace {

constexpr int kWeightRows = 4;
constexpr int kInputRows = 6;
/// How many bytes ahead of its use a line of W is asked for: a little in a single stream; with four streams whole groups of
/// four rows, at least so far.
constexpr int64_t kStreamAhead = 2048, kGroupAhead = 16384;

template <class T>
struct Dot {
  static constexpr int64_t kStep = kLanes;
  using Vector = Vf;
  HEIRLOOM_INLINE Vector read(const T* p) { return load(p); }
  HEIRLOOM_INLINE Vector read_n(const T* p, int64_t n) { return load_n(p, n); }
  HEIRLOOM_INLINE Vf add(Vf sum, Vector a, Vector b) { return fma(a, b, sum); }
};
#if defined(__AVX512BF16__)
template <>
struct Dot<bfloat16> {
  static constexpr int64_t kStep = 2 * kLanes;
  using Vector = __m512i;
  HEIRLOOM_INLINE Vector read(const bfloat16* p) { return _mm512_loadu_si512(p); }
  HEIRLOOM_INLINE Vector read_n(const bfloat16* p, int64_t n) {
    return _mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << n) - 1), p);
  }
  HEIRLOOM_INLINE Vf add(Vf sum, Vector a, Vector b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
};
#endif

HEIRLOOM_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

HEIRLOOM_INLINE void put(float* y, Vf4 v, int64_t count) {
  if (count == kWeightRows) {
    std::memcpy(y, &v, sizeof v);
  } else {
    for (int64_t i = 0; i < count; ++i) y[i] = v[i];
  }
}
HEIRLOOM_INLINE void put(bfloat16* y, Vf4 v, int64_t count) {
  bfloat16 h[kWeightRows];
  for (int i = 0; i < kWeightRows; ++i) h[i] = bfloat16(v[i]);
  if (count == kWeightRows) {
    std::memcpy(y, h, sizeof h);
  } else {
    std::memcpy(y, h, static_cast<size_t>(count) * sizeof(bfloat16));
  }
}

/// Sums of R rows of x with W weight rows side by side, each in one chain over k: an element's bits do not depend on R or W.
template <class T, int R, int W>
void dot_products(const LinearRowsArgs& a, const T* x, const T* weight, int64_t ahead,
                  Vf (&sum)[R][W]) {
  using D = Dot<T>;
  const int64_t in = a.in, whole = in / D::kStep * D::kStep;
  for (int64_t k = 0; k < whole; k += D::kStep) {
    typename D::Vector wv[W];
    for (int i = 0; i < W; ++i) {
      wv[i] = D::read(weight + i * in + k);
      if (ahead > 0)
        __builtin_prefetch(reinterpret_cast<const char*>(weight + i * in + k) + ahead, 0, 2);
    }
    for (int r = 0; r < R; ++r) {
      const typename D::Vector xv = D::read(x + r * a.x_stride + k);
      for (int i = 0; i < W; ++i) sum[r][i] = D::add(sum[r][i], wv[i], xv);
    }
  }
  if (whole < in) {
    const int64_t n = in - whole;
    for (int i = 0; i < W; ++i) {
      const typename D::Vector wv = D::read_n(weight + i * in + whole, n);
      for (int r = 0; r < R; ++r)
        sum[r][i] = D::add(sum[r][i], wv, D::read_n(x + r * a.x_stride + whole, n));
    }
  }
}

/// y[r, w] for R rows of x and the four rows of W at `weight`, of which `count` exist. One row of x is bound by memory, which
/// likes one stream best: row after row of W. Several rows of x are bound by loads: four rows of W share each.
template <class T, int R>
void dot_block(const LinearRowsArgs& a, const T* x, const T* weight, int64_t out, int64_t count,
               int64_t row, int64_t ahead) {
  Vf sum[R][kWeightRows] = {};
  if (R > 1 && count == kWeightRows) {
    dot_products<T, R, kWeightRows>(a, x, weight, ahead, sum);
  } else {
    for (int64_t i = 0; i < count; ++i) {
      Vf one[R][1] = {};
      dot_products<T, R, 1>(a, x, weight + i * a.in, kStreamAhead, one);
      for (int r = 0; r < R; ++r) sum[r][i] = one[r][0];
    }
  }
  Vf4 bias{};
  if (a.bias != nullptr) {
    for (int64_t i = 0; i < count; ++i) {
      bias[i] = static_cast<float>(static_cast<const T*>(a.bias)[out + i]);
    }
  }
  for (int r = 0; r < R; ++r) {
    const Vf4 y = reduce_add4(sum[r][0], sum[r][1], sum[r][2], sum[r][3]) + bias;
    const int64_t at = (row + r) * a.y_stride + out;
    if (a.y_is_accumulate_dtype) {
      put(static_cast<float*>(a.y) + at, y, count);
    } else {
      put(static_cast<T*>(a.y) + at, y, count);
    }
  }
}

template <class T>
void dot_rows(const LinearRowsArgs& a, int64_t row, int64_t rows, const T* weight, int64_t out,
              int64_t count, int64_t ahead) {
  const T* x = static_cast<const T*>(a.x) + row * a.x_stride;
  switch (rows) {
    case 1:
      return dot_block<T, 1>(a, x, weight, out, count, row, ahead);
    case 2:
      return dot_block<T, 2>(a, x, weight, out, count, row, ahead);
    case 3:
      return dot_block<T, 3>(a, x, weight, out, count, row, ahead);
    case 4:
      return dot_block<T, 4>(a, x, weight, out, count, row, ahead);
    case 5:
      return dot_block<T, 5>(a, x, weight, out, count, row, ahead);
    default:
      return dot_block<T, 6>(a, x, weight, out, count, row, ahead);
  }
}

template <class T>
void linear_rows(const LinearRowsArgs& a, Stream) {
  const int64_t groups = (a.out + kWeightRows - 1) / kWeightRows;
  const int64_t passes = (a.rows + kInputRows - 1) / kInputRows;
  const int64_t group_bytes = kWeightRows * a.in * static_cast<int64_t>(sizeof(T));
  const int64_t ahead = (kGroupAhead + group_bytes - 1) / group_bytes * group_bytes;
#pragma omp parallel for schedule(static) if (a.out * a.in * a.rows > 16384)
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t out = group * kWeightRows, count = smaller(kWeightRows, a.out - out);
    const T* weight = static_cast<const T*>(a.weight) + out * a.in;
    for (int64_t pass = 0; pass < passes; ++pass) {
      const int64_t row = pass * a.rows / passes, rows = (pass + 1) * a.rows / passes - row;
      dot_rows<T>(a, row, rows, weight, out, count, pass == 0 ? ahead : 0);
    }
  }
}

}  // namespace

void register_linear_rows() {
  linear_rows_table().set(DeviceKind::kCpu, Dtype::kFloat32, &linear_rows<float>);
  linear_rows_table().set(DeviceKind::kCpu, Dtype::kBFloat16, &linear_rows<bfloat16>);
}

}  // namespace heirloom::cpu::HEIRLOOM_ISA
