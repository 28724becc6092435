// SPDX-License-Identifier: Apache-2.0
//
// Computes     SwiGLU, GELU (exact) and GELU (tanh form), forward and backward.
// Shapes       x (N, 2F) for SwiGLU (gate, then up), else (N, F); y (N, F).
// Layout       contiguous; dx may alias x: an element is read before its own position is written.
// Saved        x.
// Work         blocks of kBlock columns of a row, static partitions.
// Bytes        forward read X, write NF; backward read X + NF, write X; X = 2 NF or NF
// FLOPs        forward 5 NF (SwiGLU), 10 NF; backward 12 NF (SwiGLU), 16 NF; an exponential counts
//              as one
// Precision    float32 inside; exp and Phi within about 2 ulp (vector_math.h). The tanh form is x
//              sigmoid(2 u).
// Determinism  elementwise.
// Limits       none.
// Source       Shazeer, arXiv 2002.05202; Hendrycks and Gimpel, arXiv 1606.08415.
#include "heirloom/kernels/activation.h"

#include "kernels/cpu/vector_math.h"

namespace heirloom::cpu::HEIRLOOM_ISA {
namespace {

constexpr int64_t kBlock = 2048;
constexpr float kTanhScale = 0.797884561f;  // sqrt(2 / pi)
constexpr float kTanhCubic = 0.044715f;

/// Calls row(i, j0, j1) for every block of columns of every row.
template <class Body>
[[gnu::always_inline]] inline void for_blocks(int64_t n, int64_t f, const Body& body) {
  const int64_t blocks = (f + kBlock - 1) / kBlock;
#pragma omp parallel for schedule(static) if (n * f > kParallelElements)
  for (int64_t index = 0; index < n * blocks; ++index) {
    const int64_t i = index / blocks, j0 = index % blocks * kBlock;
    body(i, j0, j0 + kBlock < f ? j0 + kBlock : f);
  }
}

template <class T>
void activation_forward(const ActivationForwardArgs& a, Stream) {
  const int64_t f = a.f;
  const bool swiglu = a.kind == ActivationKind::kSwiglu;
  for_blocks(a.n, f, [&](int64_t i, int64_t j0, int64_t j1) {
    const T* x = ptr<T>(a.x) + i * (swiglu ? 2 * f : f);
    T* y = ptr<T>(a.y) + i * f;
    if (swiglu) {
#pragma omp simd
      for (int64_t j = j0; j < j1; ++j) {
        float complement;
        const float gate = to_float(x[j]), up = to_float(x[f + j]);
        y[j] = from_float<T>(gate * sigmoid(gate, complement) * up);
      }
    } else if (a.kind == ActivationKind::kGelu) {
#pragma omp simd
      for (int64_t j = j0; j < j1; ++j) {
        float density;
        const float v = to_float(x[j]);
        y[j] = from_float<T>(v * normal_cdf(v, density));
      }
    } else {
#pragma omp simd
      for (int64_t j = j0; j < j1; ++j) {
        float complement;
        const float v = to_float(x[j]), u = 2.0f * kTanhScale * (v + kTanhCubic * v * v * v);
        y[j] = from_float<T>(v * sigmoid(u, complement));
      }
    }
  });
}

template <class T>
void activation_backward(const ActivationBackwardArgs& a, Stream) {
  const int64_t f = a.f;
  const bool swiglu = a.kind == ActivationKind::kSwiglu;
  for_blocks(a.n, f, [&](int64_t i, int64_t j0, int64_t j1) {
    const int64_t width = swiglu ? 2 * f : f;
    const T* x = ptr<T>(a.x) + i * width;
    const T* dy = ptr<T>(a.dy) + i * f;
    T* dx = ptr<T>(a.dx) + i * width;
    if (swiglu) {
#pragma omp simd
      for (int64_t j = j0; j < j1; ++j) {
        const float gate = to_float(x[j]), up = to_float(x[f + j]), d = to_float(dy[j]);
        float complement;
        const float s = sigmoid(gate, complement), silu = gate * s;
        dx[j] = from_float<T>(d * up * (s + silu * complement));
        dx[f + j] = from_float<T>(d * silu);
      }
    } else if (a.kind == ActivationKind::kGelu) {
#pragma omp simd
      for (int64_t j = j0; j < j1; ++j) {
        float density;
        const float v = to_float(x[j]), cdf = normal_cdf(v, density);
        dx[j] = from_float<T>(to_float(dy[j]) * (cdf + v * density));
      }
    } else {
#pragma omp simd
      for (int64_t j = j0; j < j1; ++j) {
        const float v = to_float(x[j]), square = v * v;
        float complement;
        const float s = sigmoid(2.0f * kTanhScale * (v + kTanhCubic * square * v), complement);
        const float du = kTanhScale * (1.0f + 3.0f * kTanhCubic * square);
        dx[j] = from_float<T>(to_float(dy[j]) * (s + 2.0f * v * s * complement * du));
      }
    }
  });
}

}  // namespace

void register_activation() {
  activation_forward_table().set(DeviceKind::kCpu, Dtype::kFloat32, activation_forward<float>);
  activation_forward_table().set(DeviceKind::kCpu, Dtype::kBFloat16, activation_forward<bfloat16>);
  activation_backward_table().set(DeviceKind::kCpu, Dtype::kFloat32, activation_backward<float>);
  activation_backward_table().set(DeviceKind::kCpu, Dtype::kBFloat16,
                                  activation_backward<bfloat16>);
}

}  // namespace heirloom::cpu::HEIRLOOM_ISA
