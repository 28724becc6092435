// SPDX-License-Identifier: Apache-2.0
//
// Element types. This header is all of `core` that CPU kernels include (with kernels/*.h): no
// allocation, no exceptions.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace heirloom {

enum class Dtype : uint8_t { kFloat32, kBFloat16, kFloat64, kInt32 };

/// bfloat16 storage: the upper half of a float32. Arithmetic happens in float32.
struct bfloat16 {
  uint16_t bits;

  bfloat16() = default;
  /// Rounds to nearest, ties to even; NaN stays NaN (quiet).
  explicit bfloat16(float value) {
    const uint32_t u = std::bit_cast<uint32_t>(value);
    const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    const uint32_t quiet = (u >> 16) | 0x40u;
    bits = static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
  }
  explicit operator float() const {
    return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  }
};
static_assert(sizeof(bfloat16) == 2);

/// The type that sums and products of T are computed in.
template <class T>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};
template <class T>
using compute_t = typename ComputeType<T>::type;

template <class T>
inline constexpr Dtype kDtypeOf = Dtype::kFloat32;
template <>
inline constexpr Dtype kDtypeOf<bfloat16> = Dtype::kBFloat16;
template <>
inline constexpr Dtype kDtypeOf<double> = Dtype::kFloat64;
template <>
inline constexpr Dtype kDtypeOf<int32_t> = Dtype::kInt32;

/// Bytes of one element.
constexpr int64_t dtype_size(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32:
    case Dtype::kInt32:
      return 4;
    case Dtype::kBFloat16:
      return 2;
    case Dtype::kFloat64:
      return 8;
  }
  return 0;
}

/// "float32", "bfloat16", "float64", "int32".
constexpr const char* dtype_name(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32:
      return "float32";
    case Dtype::kBFloat16:
      return "bfloat16";
    case Dtype::kFloat64:
      return "float64";
    case Dtype::kInt32:
      return "int32";
  }
  return "?";
}

/// The dtype that gradients of parameters, gradient slots shared by several layers, and softmax
/// statistics are kept in.
constexpr Dtype accumulate_dtype(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? Dtype::kFloat64 : Dtype::kFloat32;
}

}  // namespace heirloom
