// SPDX-License-Identifier: Apache-2.0
//
// Computes     x = residual + delta; y = RMSNorm(x) or LayerNorm(x). Backward: dx, and dweight,
//              dbias added to.
// Shapes       rows (N, C); weight, bias (C).
// Layout       contiguous rows; a row stays in the L1 cache between its passes.
// Saved        x (rounded to T), rstd, and for LayerNorm mean.
// Work         rows in static partitions; parameter gradients in reduction_chunks(n) chunks of rows,
//              added up in chunk order.
// Bytes        forward read NC (+ NC delta) + C; write NC (+ NC x_out) + statistics backward read 2
//              NC (+ NC dresidual) + C + statistics; write NC; parameter gradients 2 C
// FLOPs        forward 4 NC (RMS), 7 NC (layer), + NC with delta; backward 10 NC (RMS), 13 NC
//              (layer)
// Precision    float32 inside; x is rounded to T before it is normalised.
// Determinism  same bits for any number of threads.
// Limits       none on C.
// Source       Zhang and Sennrich, arXiv 1910.07467; Ba, Kiros, Hinton, arXiv 1607.06450.
#include "heirloom/kernels/norm.h"

#include <cmath>

#include "kernels/cpu/vector_math.h"

namespace heirloom::cpu::HEIRLOOM_ISA {
namespace {

template <class T>
void norm_forward(const NormForwardArgs& a, Stream) {
  const int64_t c = a.c;
  const float inverse_c = 1.0f / static_cast<float>(c);
  const bool layer = a.kind == NormKind::kLayer;
  const T* weight = ptr<T>(a.weight);
  const T* bias = ptr<T>(a.bias);
#pragma omp parallel for schedule(static) if (a.n * c > kParallelElements)
  for (int64_t i = 0; i < a.n; ++i) {
    const T* x = ptr<T>(a.residual) + i * c;
    if (a.delta) {
      const T* delta = ptr<T>(a.delta) + i * c;
      T* x_out = ptr<T>(a.x_out) + i * c;
#pragma omp simd
      for (int64_t j = 0; j < c; ++j) x_out[j] = from_float<T>(to_float(x[j]) + to_float(delta[j]));
      x = x_out;
    }
    float mean = 0.0f;
    if (layer) {
#pragma omp simd reduction(+ : mean)
      for (int64_t j = 0; j < c; ++j) mean += to_float(x[j]);
      mean *= inverse_c;
    }
    float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
    for (int64_t j = 0; j < c; ++j) {
      const float d = to_float(x[j]) - mean;
      squares += d * d;
    }
    const float rstd = 1.0f / std::sqrt(squares * inverse_c + static_cast<float>(a.eps));
    T* y = ptr<T>(a.y) + i * c;
    if (bias) {
#pragma omp simd
      for (int64_t j = 0; j < c; ++j) {
        y[j] =
            from_float<T>((to_float(x[j]) - mean) * rstd * to_float(weight[j]) + to_float(bias[j]));
      }
    } else {
#pragma omp simd
      for (int64_t j = 0; j < c; ++j) {
        y[j] = from_float<T>((to_float(x[j]) - mean) * rstd * to_float(weight[j]));
      }
    }
    if (a.mean && layer) ptr<float>(a.mean)[i] = mean;
    if (a.rstd) ptr<float>(a.rstd)[i] = rstd;
  }
}

/// One row: adds to the chunk's dweight (and dbias), writes dx.
template <class T>
void backward_row(const NormBackwardArgs& a, int64_t i, float* __restrict__ dweight,
                  float* __restrict__ dbias) {
  const int64_t c = a.c;
  const T* x = ptr<T>(a.x) + i * c;
  const T* dy = ptr<T>(a.dy) + i * c;
  const T* weight = ptr<T>(a.weight);
  T* dx = ptr<T>(a.dx) + i * c;
  const float rstd = ptr<float>(a.rstd)[i];
  const bool layer = a.kind == NormKind::kLayer;
  const float mean = layer ? ptr<float>(a.mean)[i] : 0.0f;
  float sum_g = 0.0f, sum_gx = 0.0f;  // g = weight * dy is the gradient of the normalised x
#pragma omp simd reduction(+ : sum_g, sum_gx)
  for (int64_t j = 0; j < c; ++j) {
    const float d = to_float(dy[j]), normalised = (to_float(x[j]) - mean) * rstd;
    const float g = d * to_float(weight[j]);
    sum_g += g;
    sum_gx += g * normalised;
    dweight[j] += d * normalised;
  }
  if (dbias) {
#pragma omp simd
    for (int64_t j = 0; j < c; ++j) dbias[j] += to_float(dy[j]);
  }
  const float inverse_c = 1.0f / static_cast<float>(c);
  const float mean_g = layer ? sum_g * inverse_c : 0.0f, mean_gx = sum_gx * inverse_c;
  if (a.dresidual) {
    const T* dresidual = ptr<T>(a.dresidual) + i * c;
#pragma omp simd
    for (int64_t j = 0; j < c; ++j) {
      const float normalised = (to_float(x[j]) - mean) * rstd;
      const float g = to_float(dy[j]) * to_float(weight[j]);
      dx[j] = from_float<T>(to_float(dresidual[j]) + rstd * (g - mean_g - normalised * mean_gx));
    }
  } else {
#pragma omp simd
    for (int64_t j = 0; j < c; ++j) {
      const float normalised = (to_float(x[j]) - mean) * rstd;
      const float g = to_float(dy[j]) * to_float(weight[j]);
      dx[j] = from_float<T>(rstd * (g - mean_g - normalised * mean_gx));
    }
  }
}

template <class T>
void norm_backward(const NormBackwardArgs& a, Stream) {
  const int64_t c = a.c, chunks = reduction_chunks(a.n), rows = (a.n + chunks - 1) / chunks;
  float* partial = ptr<float>(a.workspace);  // per chunk: dweight (C), dbias (C)
  const bool parallel = a.n * c > kParallelElements;
#pragma omp parallel for schedule(static) if (parallel)
  for (int64_t k = 0; k < chunks; ++k) {
    float* dweight = partial + k * 2 * c;
    float* dbias = a.dbias ? dweight + c : nullptr;
#pragma omp simd
    for (int64_t j = 0; j < 2 * c; ++j) dweight[j] = 0.0f;
    const int64_t end = (k + 1) * rows < a.n ? (k + 1) * rows : a.n;
    for (int64_t i = k * rows; i < end; ++i) backward_row<T>(a, i, dweight, dbias);
  }
  float* dweight = ptr<float>(a.dweight);
  float* dbias = ptr<float>(a.dbias);
  constexpr int64_t kBlock = 64;
#pragma omp parallel for schedule(static) if (parallel)
  for (int64_t j0 = 0; j0 < c; j0 += kBlock) {
    const int64_t j1 = j0 + kBlock < c ? j0 + kBlock : c;
    for (int64_t k = 0; k < chunks; ++k) {
      const float* from = partial + k * 2 * c;
#pragma omp simd
      for (int64_t j = j0; j < j1; ++j) dweight[j] += from[j];
      if (!dbias) continue;
#pragma omp simd
      for (int64_t j = j0; j < j1; ++j) dbias[j] += from[c + j];
    }
  }
}

}  // namespace

void register_norm() {
  norm_forward_table().set(DeviceKind::kCpu, Dtype::kFloat32, norm_forward<float>);
  norm_forward_table().set(DeviceKind::kCpu, Dtype::kBFloat16, norm_forward<bfloat16>);
  norm_backward_table().set(DeviceKind::kCpu, Dtype::kFloat32, norm_backward<float>);
  norm_backward_table().set(DeviceKind::kCpu, Dtype::kBFloat16, norm_backward<bfloat16>);
}

}  // namespace heirloom::cpu::HEIRLOOM_ISA
