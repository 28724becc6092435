// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "heirloom/core/dtype.h"

namespace heirloom::test {

/// `size` elements between two fences. New memory is all ones: NaN in every float type, -1 in
/// integers. A write outside shows as a failure when the buffer dies.
template <class T>
class FencedBuffer {
 public:
  explicit FencedBuffer(int64_t size) : size_(size), bytes_(bytes(size) + 2 * kFence, kFenceByte) {
    std::memset(bytes_.data() + kFence, 0xff, bytes(size));
  }
  explicit FencedBuffer(const std::vector<double>& values)
      : FencedBuffer(static_cast<int64_t>(values.size())) {
    for (size_t i = 0; i < values.size(); ++i) data()[i] = convert(values[i]);
  }
  FencedBuffer(FencedBuffer&&) = default;
  ~FencedBuffer() { EXPECT_TRUE(intact()) << "a kernel wrote outside a buffer of " << size_; }

  T* data() { return reinterpret_cast<T*>(bytes_.data() + kFence); }
  const T* data() const { return reinterpret_cast<const T*>(bytes_.data() + kFence); }
  int64_t size() const { return size_; }

  std::vector<double> values() const {
    std::vector<double> result;
    for (int64_t i = 0; i < size_; ++i) {
      if constexpr (std::is_same_v<T, bfloat16>) {
        result.push_back(static_cast<double>(static_cast<float>(data()[i])));
      } else {
        result.push_back(static_cast<double>(data()[i]));
      }
    }
    return result;
  }

 private:
  static constexpr size_t kFence = 256;
  static constexpr unsigned char kFenceByte = 0xa5;

  static size_t bytes(int64_t size) { return static_cast<size_t>(size) * sizeof(T); }
  static T convert(double value) {
    if constexpr (std::is_same_v<T, bfloat16>) {
      return bfloat16(static_cast<float>(value));
    } else {
      return static_cast<T>(value);
    }
  }
  bool intact() const {
    if (bytes_.empty()) return true;  // moved from
    for (size_t i = 0; i < kFence; ++i) {
      if (bytes_[i] != kFenceByte || bytes_[bytes_.size() - 1 - i] != kFenceByte) return false;
    }
    return true;
  }

  int64_t size_;
  std::vector<unsigned char> bytes_;
};

}  // namespace heirloom::test
