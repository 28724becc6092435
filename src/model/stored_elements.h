// SPDX-License-Identifier: Apache-2.0
//
// Elements of weights as files hold them: not aligned, in one of the dtypes that a weight may have.
#pragma once

#include <cstring>
#include <string_view>

#include "heirloom/core/dtype.h"
#include "heirloom/core/error.h"
#include "heirloom/core/half.h"

namespace heirloom {

/// Calls `store(i, value)` for each of n elements stored as `dtype`.
template <class Store>
void read_elements(std::string_view dtype, const std::byte* bytes, int64_t n, Store store) {
  const auto each = [&](auto zero, auto convert) {
    using Stored = decltype(zero);
    for (int64_t i = 0; i < n; ++i) {
      Stored raw;
      std::memcpy(&raw, bytes + i * static_cast<int64_t>(sizeof(Stored)), sizeof(Stored));
      store(i, convert(raw));
    }
  };
  if (dtype == "F32") return each(float{}, [](float x) { return static_cast<double>(x); });
  if (dtype == "F64") return each(double{}, [](double x) { return x; });
  if (dtype == "BF16") {
    return each(bfloat16{}, [](bfloat16 x) { return static_cast<double>(static_cast<float>(x)); });
  }
  if (dtype != "F16") {
    throw_error<InternalError>("[weights] expected F32, F16, BF16 or F64; got {}", dtype);
  }
  each(uint16_t{}, [](uint16_t x) { return static_cast<double>(half_to_float(x)); });
}

inline std::string shape_text(const std::vector<int64_t>& shape) {
  return fmt::format("({})", fmt::join(shape, ", "));
}

}  // namespace heirloom
