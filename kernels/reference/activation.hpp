// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "heirloom/kernels/activation.h"
#include "kernels/reference/scalar.hpp"

namespace heirloom::reference {

template <class A>
A gelu(A x) {
  return A(0.5) * x * (A(1) + std::erf(x / std::numbers::sqrt2_v<A>));
}

template <class A>
A gelu_derivative(A x) {
  const A density = std::exp(A(-0.5) * x * x) / std::sqrt(A(2) * std::numbers::pi_v<A>);
  return A(0.5) * (A(1) + std::erf(x / std::numbers::sqrt2_v<A>)) + x * density;
}

template <class A>
A gelu_tanh(A x) {
  const A scale = std::sqrt(A(2) / std::numbers::pi_v<A>);
  return A(0.5) * x * (A(1) + std::tanh(scale * (x + A(0.044715) * x * x * x)));
}

template <class A>
A gelu_tanh_derivative(A x) {
  const A scale = std::sqrt(A(2) / std::numbers::pi_v<A>);
  const A t = std::tanh(scale * (x + A(0.044715) * x * x * x));
  return A(0.5) * (A(1) + t) +
         A(0.5) * x * (A(1) - t * t) * scale * (A(1) + A(3) * A(0.044715) * x * x);
}

template <class T>
void activation_forward(const ActivationForwardArgs& a, Stream) {
  using A = compute_t<T>;
  for (int64_t i = 0; i < a.n; ++i) {
    for (int64_t j = 0; j < a.f; ++j) {
      const int64_t at = i * a.f + j;
      if (a.kind == ActivationKind::kSwiglu) {
        const A gate = load<T>(a.x, 2 * i * a.f + j), up = load<T>(a.x, (2 * i + 1) * a.f + j);
        store<T>(a.y, at, gate / (A(1) + std::exp(-gate)) * up);
      } else {
        const A x = load<T>(a.x, at);
        store<T>(a.y, at, a.kind == ActivationKind::kGelu ? gelu(x) : gelu_tanh(x));
      }
    }
  }
}

template <class T>
void activation_backward(const ActivationBackwardArgs& a, Stream) {
  using A = compute_t<T>;
  for (int64_t i = 0; i < a.n; ++i) {
    for (int64_t j = 0; j < a.f; ++j) {
      const int64_t at = i * a.f + j;
      const A dy = load<T>(a.dy, at);
      if (a.kind == ActivationKind::kSwiglu) {
        const int64_t g = 2 * i * a.f + j, u = g + a.f;
        const A gate = load<T>(a.x, g), up = load<T>(a.x, u), s = A(1) / (A(1) + std::exp(-gate));
        store<T>(a.dx, g, dy * up * s * (A(1) + gate * (A(1) - s)));
        store<T>(a.dx, u, dy * gate * s);
      } else {
        const A x = load<T>(a.x, at);
        store<T>(
            a.dx, at,
            dy * (a.kind == ActivationKind::kGelu ? gelu_derivative(x) : gelu_tanh_derivative(x)));
      }
    }
  }
}

}  // namespace heirloom::reference
