// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "heirloom/kernels/head_split.h"
#include "kernels/reference/scalar.hpp"

namespace heirloom::reference {

/// Rotates head x (D) by +angles (direction 1) or -angles (-1); row `p` of the angle tables.
template <class A>
void rotate_head(std::vector<A>& x, const void* cosines, const void* sines, int64_t p,
                 int64_t rotary_dim, RopeStyle style, A direction) {
  const int64_t half = rotary_dim / 2;
  for (int64_t f = 0; f < half; ++f) {
    const size_t i = static_cast<size_t>(style == RopeStyle::kHalf ? f : 2 * f);
    const size_t j = static_cast<size_t>(style == RopeStyle::kHalf ? f + half : 2 * f + 1);
    const A c = static_cast<const A*>(cosines)[p * half + f];
    const A s = direction * static_cast<const A*>(sines)[p * half + f];
    const A a = x[i], b = x[j];
    x[i] = a * c - b * s;
    x[j] = a * s + b * c;
  }
}

template <class T>
compute_t<T> head_rstd(const void* merged, int64_t at, int64_t head_dim, double eps) {
  using A = compute_t<T>;
  A squares = 0;
  for (int64_t j = 0; j < head_dim; ++j)
    squares += load<T>(merged, at + j) * load<T>(merged, at + j);
  return A(1) / std::sqrt(squares / static_cast<A>(head_dim) + static_cast<A>(eps));
}

template <class T>
void head_split_forward(const HeadSplitForwardArgs& a, Stream) {
  using A = compute_t<T>;
  std::vector<A> x(static_cast<size_t>(a.head_dim));
  for (int64_t i = 0; i < a.n; ++i) {
    for (int64_t r = 0; r < a.route_count; ++r) {
      const HeadRoute& route = a.routes[r];
      const int64_t at = i * a.width + route.column;
      const A rstd = route.norm_weight ? head_rstd<T>(a.merged, at, a.head_dim, a.eps) : A(1);
      for (int64_t j = 0; j < a.head_dim; ++j) {
        const A value = load<T>(a.merged, at + j);
        x[static_cast<size_t>(j)] =
            route.norm_weight ? value * rstd * load<T>(route.norm_weight, j) : value;
      }
      if (route.rotate) {
        rotate_head(x, a.cosines, a.sines, a.positions[i], a.rotary_dim, a.style, A(1));
      }
      const int64_t row = route.to_slots ? a.slots[i] : i;
      for (int64_t j = 0; j < a.head_dim; ++j) {
        store<T>(route.data, row * route.row_stride + j, x[static_cast<size_t>(j)]);
      }
    }
  }
}

template <class T>
void head_split_backward(const HeadSplitBackwardArgs& a, Stream) {
  using A = compute_t<T>;
  std::vector<A> dy(static_cast<size_t>(a.head_dim));
  for (int64_t i = 0; i < a.n; ++i) {
    for (int64_t r = 0; r < a.route_count; ++r) {
      const HeadGradRoute& route = a.routes[r];
      const int64_t at = i * a.width + route.column;
      for (int64_t j = 0; j < a.head_dim; ++j) {
        const int64_t from = i * route.row_stride + j;
        dy[static_cast<size_t>(j)] = !route.data ? A(0)
                                     : route.is_accumulate_dtype
                                         ? static_cast<const A*>(route.data)[from]
                                         : load<T>(route.data, from);
      }
      if (route.rotate) {
        rotate_head(dy, a.cosines, a.sines, a.positions[i], a.rotary_dim, a.style, A(-1));
      }
      if (!route.norm_weight || !route.data) {
        for (int64_t j = 0; j < a.head_dim; ++j)
          store<T>(a.dmerged, at + j, dy[static_cast<size_t>(j)]);
        continue;
      }
      const A rstd = head_rstd<T>(a.merged, at, a.head_dim, a.eps);
      A sum = 0;
      for (int64_t j = 0; j < a.head_dim; ++j) {
        const A normalised = load<T>(a.merged, at + j) * rstd, d = dy[static_cast<size_t>(j)];
        static_cast<A*>(route.dnorm_weight)[j] += d * normalised;
        sum += d * load<T>(route.norm_weight, j) * normalised;
      }
      const A mean = sum / static_cast<A>(a.head_dim);
      for (int64_t j = 0; j < a.head_dim; ++j) {
        const A g = dy[static_cast<size_t>(j)] * load<T>(route.norm_weight, j);
        store<T>(a.dmerged, at + j, rstd * (g - load<T>(a.merged, at + j) * rstd * mean));
      }
    }
  }
}

}  // namespace heirloom::reference
