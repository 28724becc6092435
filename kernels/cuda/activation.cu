// SPDX-License-Identifier: Apache-2.0
//
// Computes     activation: SwiGLU, GELU (erf) and GELU (tanh), forward and backward.
// Shapes       x (N, 2F) or (N, F), y (N, F).
// Layout       contiguous rows; 16-byte accesses where pointers and F allow, else 4 bytes or single elements.
// Saved        nothing: backward computes the non-linearity again from x.
// Work         one thread per run of columns of a row.
// Bytes        forward (SwiGLU 2, GELU 1) NF read, NF written; backward 3 or 2 NF read, 2 or 1 NF written.
// FLOPs        SwiGLU 5 forward, 12 backward; GELU 10 and 16 per element of y.
// Precision    float32. GELU's distribution function is accurate relatively where it is small too. float32: expf, division,
//              erfcf; bfloat16: hardware approximations (2^-21) and an erfc within 2^-14, relatively.
// Determinism  elementwise.
// Limits       N F below 2^32 runs of columns.
// Source       Shazeer, arXiv 2002.05202; Hendrycks and Gimpel, arXiv 1606.08415.
#include "heirloom/kernels/activation.h"

#include <type_traits>

#include "heirloom/core/error.h"
#include "kernels/cuda/common/launch.cuh"
#include "kernels/cuda/common/vector.cuh"

namespace heirloom::cuda {
namespace {

constexpr int kThreads = 256;
constexpr float kLog2E = 1.44269504f;
constexpr float kTanhScale = 0.797884561f;  // sqrt(2 / pi)
constexpr float kTanhCubic = 0.044715f;
constexpr float kSqrtHalf = 0.707106781f;
constexpr float kInverseSqrtTwoPi = 0.398942280f;

/// e^x for x <= 0.
template <class T>
__device__ __forceinline__ float exponential(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return expf(x);
  } else {
    return exp2_approx(x * kLog2E);
  }
}
/// 1 / x for x >= 1.
template <class T>
__device__ __forceinline__ float reciprocal(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return 1.0f / x;
  } else {
    return __fdividef(1.0f, x);
  }
}

/// 1 / (1 + e^-x), and 1 minus that: neither cancels, and no exponential overflows.
struct Sigmoid {
  float value, complement;
};
template <class T>
__device__ __forceinline__ Sigmoid sigmoid(float x) {
  const float e = exponential<T>(-fabsf(x));
  const float large = reciprocal<T>(1.0f + e), small = e * large;
  return x < 0.0f ? Sigmoid{small, large} : Sigmoid{large, small};
}

/// The standard normal distribution function and its density.
struct Normal {
  float cdf, density;
};
template <class T>
__device__ __forceinline__ Normal normal(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return {0.5f * erfcf(-x * kSqrtHalf), kInverseSqrtTwoPi * expf(-0.5f * x * x)};
  } else {
    // Phi(-|x|) = erfc(z) / 2, z = |x| / sqrt 2; erfc(z) = exp(-z^2) t Q(t), t = 1 / (1 + 0.35 z): Q of degree 4 by
    // Remez' exchange, relative error 4.5e-5.
    const float e = exp2_approx(-0.5f * kLog2E * x * x);
    const float t = reciprocal<T>(fmaf(0.247487373f, fabsf(x), 1.0f));
    float q = 0.5285614585f;
    q = fmaf(q, t, -0.2844108892f);
    q = fmaf(q, t, 0.4092792817f);
    q = fmaf(q, t, 0.1442166019f);
    q = fmaf(q, t, 0.2023086594f);
    const float tail = 0.5f * e * t * q;
    return {x < 0.0f ? tail : 1.0f - tail, kInverseSqrtTwoPi * e};
  }
}

template <class T, ActivationKind kKind>
__device__ __forceinline__ float gelu(float x) {
  if constexpr (kKind == ActivationKind::kGelu) return x * normal<T>(x).cdf;
  return x * sigmoid<T>(2.0f * kTanhScale * (x + kTanhCubic * x * x * x)).value;
}

template <class T, ActivationKind kKind>
__device__ __forceinline__ float gelu_derivative(float x) {
  if constexpr (kKind == ActivationKind::kGelu) {
    const Normal n = normal<T>(x);
    return n.cdf + x * n.density;
  }
  const float m = fminf(fmaxf(x, -30.0f), 30.0f), square = m * m;  // the sigmoid is 0 or 1 there
  const Sigmoid s = sigmoid<T>(2.0f * kTanhScale * (m + kTanhCubic * square * m));
  return s.value +
         2.0f * x * s.value * s.complement * (kTanhScale * (1.0f + 3.0f * kTanhCubic * square));
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
    for (int i = 0; i < kWidth; ++i) {
      out.x[i] = gate.x[i] * sigmoid<T>(gate.x[i]).value * up.x[i];
    }
    store_pack<T, kWidth>(y + row * p.f + column, out);
  } else {
    const int64_t at = int64_t{run} * kWidth;
    Pack<T, kWidth> v = load_pack<T, kWidth>(x + at);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) v.x[i] = gelu<T, kKind>(v.x[i]);
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
      const Sigmoid s = sigmoid<T>(gate.x[i]);
      const float silu = gate.x[i] * s.value;
      dgate.x[i] = d.x[i] * up.x[i] * (s.value + silu * s.complement);
      dup.x[i] = d.x[i] * silu;
    }
    store_pack<T, kWidth>(dx + at, dgate);
    store_pack<T, kWidth>(dx + at + p.f, dup);
  } else {
    const int64_t at = int64_t{run} * kWidth;
    const Pack<T, kWidth> v = load_pack<T, kWidth>(x + at);
    Pack<T, kWidth> d = load_pack<T, kWidth>(dy + at);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) d.x[i] *= gelu_derivative<T, kKind>(v.x[i]);
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
