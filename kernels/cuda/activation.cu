// SPDX-License-Identifier: Apache-2.0
//
// Computes     activation: SwiGLU, GELU (erf) and GELU (tanh), forward and backward.
// Shapes       x (N, 2F) or (N, F), y (N, F).
// Layout       contiguous rows; 16-byte accesses where pointers and F allow, else 4 bytes or single elements.
// Saved        nothing: backward computes the non-linearity again from x.
// Work         one thread per run of columns of a row.
// Bytes        forward (SwiGLU 2, GELU 1) NF read, NF written; backward 3 or 2 NF read, 2 or 1 NF written.
// FLOPs        SwiGLU 5 forward, 12 backward; GELU 10 and 16 per element of y.
// Precision    float32. GELU's distribution function is erfc of the negated argument: accurate relatively where it is small.
// Determinism  elementwise.
// Limits       N F below 2^32 runs of columns.
// Source       Shazeer, arXiv 2002.05202; Hendrycks and Gimpel, arXiv 1606.08415.
#include "heirloom/kernels/activation.h"

#include "heirloom/core/error.h"
#include "kernels/cuda/common/launch.cuh"
#include "kernels/cuda/common/vector.cuh"

namespace heirloom::cuda {
namespace {

constexpr int kThreads = 256;
constexpr float kTanhScale = 0.797884561f;  // sqrt(2 / pi)
constexpr float kTanhCubic = 0.044715f;
constexpr float kSqrtHalf = 0.707106781f;
constexpr float kInverseSqrtTwoPi = 0.398942280f;

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <ActivationKind kKind>
__device__ __forceinline__ float gelu(float x) {
  if constexpr (kKind == ActivationKind::kGelu) return x * (0.5f * erfcf(-x * kSqrtHalf));
  return x * sigmoid(2.0f * kTanhScale * (x + kTanhCubic * x * x * x));
}

template <ActivationKind kKind>
__device__ __forceinline__ float gelu_derivative(float x) {
  if constexpr (kKind == ActivationKind::kGelu) {
    const float density = kInverseSqrtTwoPi * expf(-0.5f * x * x);
    return 0.5f * erfcf(-x * kSqrtHalf) + x * density;
  }
  const float square = x * x, u = 2.0f * kTanhScale * (x + kTanhCubic * square * x);
  const float s = sigmoid(u), complement = 1.0f / (1.0f + expf(u));
  return s + 2.0f * x * s * complement * (kTanhScale * (1.0f + 3.0f * kTanhCubic * square));
}

struct ActivationParams {
  const void* x;
  const void* dy;  ///< backward
  void* out;       ///< y, or dx
  unsigned runs;   ///< of kWidth columns in all rows
  unsigned runs_per_row;
  int64_t f;
};

template <class T, int kWidth, ActivationKind kKind>
__global__ void __launch_bounds__(kThreads)
    activation_forward_runs_kernel(const __grid_constant__ ActivationParams p) {
  const unsigned run = blockIdx.x * kThreads + threadIdx.x;
  if (run >= p.runs) return;
  const T* x = static_cast<const T*>(p.x);
  T* y = static_cast<T*>(p.out);
  if constexpr (kKind == ActivationKind::kSwiglu) {
    const int64_t row = run / p.runs_per_row, column = int64_t{run % p.runs_per_row} * kWidth;
    const T* from = x + 2 * row * p.f + column;
    const Pack<T, kWidth> gate = load_pack<T, kWidth>(from);
    const Pack<T, kWidth> up = load_pack<T, kWidth>(from + p.f);
    Pack<T, kWidth> out;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) out.x[i] = gate.x[i] * sigmoid(gate.x[i]) * up.x[i];
    store_pack<T, kWidth>(y + row * p.f + column, out);
  } else {
    const int64_t at = int64_t{run} * kWidth;
    Pack<T, kWidth> v = load_pack<T, kWidth>(x + at);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) v.x[i] = gelu<kKind>(v.x[i]);
    store_pack<T, kWidth>(y + at, v);
  }
}

template <class T, int kWidth, ActivationKind kKind>
__global__ void __launch_bounds__(kThreads)
    activation_backward_runs_kernel(const __grid_constant__ ActivationParams p) {
  const unsigned run = blockIdx.x * kThreads + threadIdx.x;
  if (run >= p.runs) return;
  const T* x = static_cast<const T*>(p.x);
  const T* dy = static_cast<const T*>(p.dy);
  T* dx = static_cast<T*>(p.out);
  if constexpr (kKind == ActivationKind::kSwiglu) {
    const int64_t row = run / p.runs_per_row, column = int64_t{run % p.runs_per_row} * kWidth;
    const int64_t at = 2 * row * p.f + column;
    const Pack<T, kWidth> gate = load_pack<T, kWidth>(x + at);
    const Pack<T, kWidth> up = load_pack<T, kWidth>(x + at + p.f);
    const Pack<T, kWidth> d = load_pack<T, kWidth>(dy + row * p.f + column);
    Pack<T, kWidth> dgate, dup;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float g = gate.x[i], s = sigmoid(g), complement = 1.0f / (1.0f + expf(g));
      const float silu = g * s;
      dgate.x[i] = d.x[i] * up.x[i] * (s + silu * complement);
      dup.x[i] = d.x[i] * silu;
    }
    store_pack<T, kWidth>(dx + at, dgate);
    store_pack<T, kWidth>(dx + at + p.f, dup);
  } else {
    const int64_t at = int64_t{run} * kWidth;
    const Pack<T, kWidth> v = load_pack<T, kWidth>(x + at);
    Pack<T, kWidth> d = load_pack<T, kWidth>(dy + at);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) d.x[i] *= gelu_derivative<kKind>(v.x[i]);
    store_pack<T, kWidth>(dx + at, d);
  }
}

template <class T, int kWidth, ActivationKind kKind>
void launch_kind(ActivationParams p, int64_t n, bool backward, Stream stream) {
  const int64_t runs = n * (p.f / kWidth);
  if (runs >= int64_t{1} << 32) {
    throw_error<UnsupportedError>("[activation] expected fewer than 2^32 runs of columns; got {}",
                                  runs);
  }
  p.runs = static_cast<unsigned>(runs);
  p.runs_per_row = static_cast<unsigned>(p.f / kWidth);
  launch(backward ? activation_backward_runs_kernel<T, kWidth, kKind>
                  : activation_forward_runs_kernel<T, kWidth, kKind>,
         dim3(static_cast<unsigned>((runs + kThreads - 1) / kThreads)), dim3(kThreads), 0, stream,
         p);
}

template <class T, int kWidth>
void launch_width(const ActivationParams& p, int64_t n, ActivationKind kind, bool backward,
                  Stream stream) {
  switch (kind) {
    case ActivationKind::kSwiglu:
      return launch_kind<T, kWidth, ActivationKind::kSwiglu>(p, n, backward, stream);
    case ActivationKind::kGelu:
      return launch_kind<T, kWidth, ActivationKind::kGelu>(p, n, backward, stream);
    case ActivationKind::kGeluTanh:
      return launch_kind<T, kWidth, ActivationKind::kGeluTanh>(p, n, backward, stream);
  }
}

template <class T>
void run(ActivationParams p, int64_t n, ActivationKind kind, bool backward, Stream stream) {
  if (n == 0 || p.f == 0) return;
  constexpr int kWidest = 16 / static_cast<int>(sizeof(T));
  const int width = vector_width<T>({p.x, p.dy, p.out}, {p.f});
  if (width == kWidest) {
    launch_width<T, kWidest>(p, n, kind, backward, stream);
  } else if (width >= 2) {
    launch_width<T, 2>(p, n, kind, backward, stream);
  } else {
    launch_width<T, 1>(p, n, kind, backward, stream);
  }
}

template <class T>
void activation_forward(const ActivationForwardArgs& a, Stream stream) {
  ActivationParams p{};
  p.x = a.x;
  p.out = a.y;
  p.f = a.f;
  run<T>(p, a.n, a.kind, false, stream);
}

template <class T>
void activation_backward(const ActivationBackwardArgs& a, Stream stream) {
  ActivationParams p{};
  p.x = a.x;
  p.dy = a.dy;
  p.out = a.dx;
  p.f = a.f;
  run<T>(p, a.n, a.kind, true, stream);
}

}  // namespace

void register_activation() {
  constexpr DeviceKind kDevice = DeviceKind::kCuda;
  activation_forward_table().set(kDevice, Dtype::kFloat32, activation_forward<float>);
  activation_forward_table().set(kDevice, Dtype::kBFloat16, activation_forward<bfloat16>);
  activation_backward_table().set(kDevice, Dtype::kFloat32, activation_backward<float>);
  activation_backward_table().set(kDevice, Dtype::kBFloat16, activation_backward<bfloat16>);
}

}  // namespace heirloom::cuda
