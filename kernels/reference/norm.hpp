// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "heirloom/kernels/norm.h"
#include "kernels/reference/scalar.hpp"

namespace heirloom::reference {

template <class T>
void norm_forward(const NormForwardArgs& a, Stream) {
  using A = compute_t<T>;
  const A c = static_cast<A>(a.c);
  for (int64_t i = 0; i < a.n; ++i) {
    const int64_t row = i * a.c;
    const void* x = a.residual;
    if (a.delta) {
      for (int64_t j = 0; j < a.c; ++j) {
        store<T>(a.x_out, row + j, load<T>(a.residual, row + j) + load<T>(a.delta, row + j));
      }
      x = a.x_out;
    }
    A mean = 0, squares = 0;
    if (a.kind == NormKind::kLayer) {
      for (int64_t j = 0; j < a.c; ++j) mean += load<T>(x, row + j);
      mean /= c;
    }
    for (int64_t j = 0; j < a.c; ++j) {
      const A d = load<T>(x, row + j) - mean;
      squares += d * d;
    }
    const A rstd = A(1) / std::sqrt(squares / c + static_cast<A>(a.eps));
    for (int64_t j = 0; j < a.c; ++j) {
      const A y = (load<T>(x, row + j) - mean) * rstd * load<T>(a.weight, j);
      store<T>(a.y, row + j, a.bias ? y + load<T>(a.bias, j) : y);
    }
    if (a.mean && a.kind == NormKind::kLayer) static_cast<A*>(a.mean)[i] = mean;
    if (a.rstd) static_cast<A*>(a.rstd)[i] = rstd;
  }
}

template <class T>
void norm_backward(const NormBackwardArgs& a, Stream) {
  using A = compute_t<T>;
  const bool layer = a.kind == NormKind::kLayer;
  for (int64_t i = 0; i < a.n; ++i) {
    const int64_t row = i * a.c;
    const A rstd = static_cast<const A*>(a.rstd)[i];
    const A mean = layer ? static_cast<const A*>(a.mean)[i] : A(0);
    const auto normalised = [&](int64_t j) { return (load<T>(a.x, row + j) - mean) * rstd; };
    A sum_g = 0, sum_gx = 0;
    for (int64_t j = 0; j < a.c; ++j) {
      const A dy = load<T>(a.dy, row + j), g = dy * load<T>(a.weight, j);
      sum_g += g;
      sum_gx += g * normalised(j);
      static_cast<A*>(a.dweight)[j] += dy * normalised(j);
      if (a.dbias) static_cast<A*>(a.dbias)[j] += dy;
    }
    const A mean_g = layer ? sum_g / static_cast<A>(a.c) : A(0);
    const A mean_gx = sum_gx / static_cast<A>(a.c);
    for (int64_t j = 0; j < a.c; ++j) {
      const A g = load<T>(a.dy, row + j) * load<T>(a.weight, j);
      const A past = a.dresidual ? load<T>(a.dresidual, row + j) : A(0);
      store<T>(a.dx, row + j, past + rstd * (g - mean_g - normalised(j) * mean_gx));
    }
  }
}

}  // namespace heirloom::reference
