// SPDX-License-Identifier: Apache-2.0
//
// Computes     every head of the merged projection, normalised (qk_norm) and rotated (rope), to its
//              own destination; backward: inverse rope, backward of qk_norm, rounding to T, and
//              dnorm_weight added to.
// Shapes       merged (N, width); each route a head of D columns; R <= D rotated dims; angles
//              (positions, R/2).
// Layout       destinations strided by row, optionally indirect (slots).
// Saved        merged, only where a route has norm_weight (rstd is computed again).
// Work         tokens in static partitions; backward in reduction_chunks(n) chunks of tokens.
// Bytes        forward read and write N D per route, + angles N R; backward the same, + N D where
//              normalised
// FLOPs        3 N R per rotated route, + 4 N D where normalised (backward 10 N D)
// Precision    float32 inside, one rounding at the end.
// Determinism  elementwise; dnorm_weight by chunks in order, routes in order within a chunk's turn.
// Limits       none on D.
// Source       Su et al., arXiv 2104.09864, section 3.4.2; Henry et al., arXiv 2010.04245 (qk_norm).
#include "heirloom/kernels/head_split.h"

#include <cmath>
#include <cstring>

#include "heirloom/kernels/norm.h"
#include "kernels/cpu/vector_math.h"

namespace heirloom::cpu::HEIRLOOM_ISA {
namespace {

template <class T>
[[gnu::always_inline]] inline float rstd_of(const T* x, int64_t d, double eps) {
  float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
  for (int64_t j = 0; j < d; ++j) squares += to_float(x[j]) * to_float(x[j]);
  return 1.0f / std::sqrt(squares / static_cast<float>(d) + static_cast<float>(eps));
}

/// to[j] = value(j), rotated where the route asks for it.
template <class T, class Value>
[[gnu::always_inline]] inline void store_rotated(T* to, int64_t d, int64_t rotary, RopeStyle style,
                                                 const float* cosine, const float* sine,
                                                 const Value& value) {
  const int64_t half = rotary / 2;
  if (style == RopeStyle::kHalf) {
#pragma omp simd
    for (int64_t f = 0; f < half; ++f) {
      const float a = value(f), b = value(f + half);
      to[f] = from_float<T>(a * cosine[f] - b * sine[f]);
      to[f + half] = from_float<T>(a * sine[f] + b * cosine[f]);
    }
  } else {
#pragma omp simd
    for (int64_t f = 0; f < half; ++f) {
      const float a = value(2 * f), b = value(2 * f + 1);
      to[2 * f] = from_float<T>(a * cosine[f] - b * sine[f]);
      to[2 * f + 1] = from_float<T>(a * sine[f] + b * cosine[f]);
    }
  }
#pragma omp simd
  for (int64_t j = rotary; j < d; ++j) to[j] = from_float<T>(value(j));
}

template <class T>
void head_split_forward(const HeadSplitForwardArgs& a, Stream) {
  const int64_t d = a.head_dim, half = a.rotary_dim / 2;
#pragma omp parallel for schedule(static) if (a.n * a.route_count * d > kParallelElements)
  for (int64_t i = 0; i < a.n; ++i) {
    for (int64_t r = 0; r < a.route_count; ++r) {
      const HeadRoute& route = a.routes[r];
      const T* x = ptr<T>(a.merged) + i * a.width + route.column;
      T* to = ptr<T>(route.data) + (route.to_slots ? a.slots[i] : i) * route.row_stride;
      const int64_t rotary = route.rotate ? a.rotary_dim : 0;
      if (rotary == 0 && !route.norm_weight) {
        std::memcpy(to, x, static_cast<size_t>(d) * sizeof(T));
        continue;
      }
      const int64_t angle = rotary ? a.positions[i] * half : 0;
      const float* cosine = ptr<float>(a.cosines) + angle;
      const float* sine = ptr<float>(a.sines) + angle;
      if (route.norm_weight) {
        const float rstd = rstd_of(x, d, a.eps);
        const T* w = ptr<T>(route.norm_weight);
        store_rotated(to, d, rotary, a.style, cosine, sine,
                      [=](int64_t j) { return to_float(x[j]) * rstd * to_float(w[j]); });
      } else {
        store_rotated(to, d, rotary, a.style, cosine, sine,
                      [=](int64_t j) { return to_float(x[j]); });
      }
    }
  }
}

/// Rotates back; with norm_weight the result dy (D floats) goes on through the norm.
template <class T, class S>
void backward_head(const HeadSplitBackwardArgs& a, const HeadGradRoute& route, int64_t i, float* dy,
                   float* dweight) {
  const int64_t d = a.head_dim, half = a.rotary_dim / 2, rotary = route.rotate ? a.rotary_dim : 0;
  const S* grad = ptr<S>(route.data) + i * route.row_stride;
  T* to = ptr<T>(a.dmerged) + i * a.width + route.column;
  const int64_t angle = rotary ? a.positions[i] * half : 0;
  const float* cosine = ptr<float>(a.cosines) + angle;
  const float* sine = ptr<float>(a.sines) + angle;
  // The inverse of the rotation by an angle is the rotation of the swapped pair: (b, a) by the same
  // angle.
  if (a.style == RopeStyle::kHalf) {
#pragma omp simd
    for (int64_t f = 0; f < rotary / 2; ++f) {
      const float u = to_float(grad[f]), v = to_float(grad[f + half]);
      dy[f] = u * cosine[f] + v * sine[f];
      dy[f + half] = v * cosine[f] - u * sine[f];
    }
  } else {
#pragma omp simd
    for (int64_t f = 0; f < rotary / 2; ++f) {
      const float u = to_float(grad[2 * f]), v = to_float(grad[2 * f + 1]);
      dy[2 * f] = u * cosine[f] + v * sine[f];
      dy[2 * f + 1] = v * cosine[f] - u * sine[f];
    }
  }
#pragma omp simd
  for (int64_t j = rotary; j < d; ++j) dy[j] = to_float(grad[j]);
  if (!route.norm_weight) {
#pragma omp simd
    for (int64_t j = 0; j < d; ++j) to[j] = from_float<T>(dy[j]);
    return;
  }
  const T* x = ptr<T>(a.merged) + i * a.width + route.column;
  const T* w = ptr<T>(route.norm_weight);
  const float rstd = rstd_of(x, d, a.eps);
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < d; ++j) {
    const float normalised = to_float(x[j]) * rstd;
    dweight[j] += dy[j] * normalised;
    sum += dy[j] * to_float(w[j]) * normalised;
  }
  const float mean = sum / static_cast<float>(d);
#pragma omp simd
  for (int64_t j = 0; j < d; ++j) {
    to[j] = from_float<T>(rstd * (dy[j] * to_float(w[j]) - to_float(x[j]) * rstd * mean));
  }
}

template <class T>
void head_split_backward(const HeadSplitBackwardArgs& a, Stream) {
  const int64_t d = a.head_dim, routes = a.route_count;
  const int64_t chunks = reduction_chunks(a.n), rows = (a.n + chunks - 1) / chunks;
  bool normalised = false;
  for (int64_t r = 0; r < routes; ++r) {
    normalised |= a.routes[r].norm_weight != nullptr && a.routes[r].data != nullptr;
  }
  float* partial = ptr<float>(a.workspace);  // per chunk and route: dnorm_weight (D)
#pragma omp parallel if (a.n * routes * d > kParallelElements)
  {
    float* dy = static_cast<float*>(__builtin_alloca(static_cast<size_t>(d) * sizeof(float)));
#pragma omp for schedule(static)
    for (int64_t k = 0; k < chunks; ++k) {
      float* dweights = normalised ? partial + k * routes * d : nullptr;
      if (normalised) std::memset(dweights, 0, static_cast<size_t>(routes * d) * sizeof(float));
      const int64_t end = (k + 1) * rows < a.n ? (k + 1) * rows : a.n;
      for (int64_t i = k * rows; i < end; ++i) {
        for (int64_t r = 0; r < routes; ++r) {
          const HeadGradRoute& route = a.routes[r];
          float* dweight = normalised ? dweights + r * d : nullptr;
          if (!route.data) {
            std::memset(ptr<T>(a.dmerged) + i * a.width + route.column, 0,
                        static_cast<size_t>(d) * sizeof(T));
          } else if (route.is_accumulate_dtype) {
            backward_head<T, float>(a, route, i, dy, dweight);
          } else {
            backward_head<T, T>(a, route, i, dy, dweight);
          }
        }
      }
    }
  }
  if (!normalised) return;
  for (int64_t r = 0; r < routes; ++r) {
    if (!a.routes[r].norm_weight || !a.routes[r].data) continue;
    float* dnorm_weight = ptr<float>(a.routes[r].dnorm_weight);
    for (int64_t k = 0; k < chunks; ++k) {
      const float* from = partial + (k * routes + r) * d;
#pragma omp simd
      for (int64_t j = 0; j < d; ++j) dnorm_weight[j] += from[j];
    }
  }
}

}  // namespace

void register_head_split() {
  head_split_forward_table().set(DeviceKind::kCpu, Dtype::kFloat32, head_split_forward<float>);
  head_split_forward_table().set(DeviceKind::kCpu, Dtype::kBFloat16, head_split_forward<bfloat16>);
  head_split_backward_table().set(DeviceKind::kCpu, Dtype::kFloat32, head_split_backward<float>);
  head_split_backward_table().set(DeviceKind::kCpu, Dtype::kBFloat16,
                                  head_split_backward<bfloat16>);
}

}  // namespace heirloom::cpu::HEIRLOOM_ISA
