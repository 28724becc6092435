// SPDX-License-Identifier: Apache-2.0
//
// Shared by the reference kernels: plain loops over a scalar type T that sum in compute_t<T>.
// Instantiated for double they are the tests' oracle and the float64 kernels; instantiated for
// float and bfloat16 they are the naive code whose error bounds ours.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

#include "heirloom/core/dtype.h"

namespace heirloom::reference {

template <class T>
compute_t<T> load(const void* p, int64_t i) {
  return static_cast<compute_t<T>>(static_cast<const T*>(p)[i]);
}
template <class T>
void store(void* p, int64_t i, compute_t<T> value) {
  static_cast<T*>(p)[i] = static_cast<T>(value);
}

}  // namespace heirloom::reference
