// SPDX-License-Identifier: Apache-2.0
//
// Memory that kernel tests hand to kernels, on the device under test.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <type_traits>
#include <utility>
#include <vector>

#include "heirloom/core/device_runtime.h"
#include "heirloom/core/dtype.h"

namespace heirloom::test {

template <class T>
T from_double(double value) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    return bfloat16(static_cast<float>(value));
  } else {
    return static_cast<T>(value);
  }
}

template <class T>
double to_double(T value) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    return static_cast<double>(static_cast<float>(value));
  } else {
    return static_cast<double>(value);
  }
}

/// Sets `variable` for a scope.
template <class T>
class Scoped {
 public:
  Scoped(T& variable, T value) : variable_(variable), before_(std::exchange(variable, value)) {}
  Scoped(const Scoped&) = delete;
  ~Scoped() { variable_ = before_; }

 private:
  T& variable_;
  T before_;
};

/// The buffers of a scope are made in the memory of `device`; without one in the host's.
class OnDevice {
 public:
  explicit OnDevice(const Device& device) : scope_(current(), device) {}
  static Device& current() {
    thread_local Device device;
    return device;
  }

 private:
  Scoped<Device> scope_;
};

/// The floating-point buffers of a scope begin this many elements behind an address that is aligned
/// to everything; 0 without one.
class Skew {
 public:
  explicit Skew(int64_t elements) : scope_(current(), elements) {}
  static int64_t& current() {
    thread_local int64_t elements = 0;
    return elements;
  }

 private:
  Scoped<int64_t> scope_;
};

/// `size` elements between two fences. New memory is all ones: NaN in every float type, -1 in
/// integers. A write outside shows as a failure when the buffer dies. On an emulated device there are
/// no fences: the emulator guards the allocation itself, against reads too, and knows new memory.
template <class T>
class FencedBuffer {
 public:
  explicit FencedBuffer(int64_t size) { create(nullptr, size); }
  explicit FencedBuffer(const std::vector<T>& values) requires(!std::is_same_v<T, double>) {
    create(values.data(), static_cast<int64_t>(values.size()));
  }
  explicit FencedBuffer(const std::vector<double>& values) {
    std::vector<T> stored(values.size());
    for (size_t i = 0; i < values.size(); ++i) stored[i] = from_double<T>(values[i]);
    create(stored.data(), static_cast<int64_t>(values.size()));
  }
  FencedBuffer(FencedBuffer&& other) noexcept
      : device_(other.device_),
        size_(other.size_),
        memory_(std::exchange(other.memory_, nullptr)),
        data_(other.data_),
        fence_(other.fence_) {}
  ~FencedBuffer() {
    // After an error of the device there is nothing to be read or released.
    if (memory_ == nullptr || std::uncaught_exceptions() > 0) return;
    try {
      EXPECT_TRUE(intact()) << "a kernel wrote outside a buffer of " << size_;
      runtime().release(device_.index, memory_);
    } catch (const std::exception& e) {
      ADD_FAILURE() << e.what();
    }
  }

  /// In the device's memory.
  T* data() { return reinterpret_cast<T*>(data_); }
  const T* data() const { return reinterpret_cast<const T*>(data_); }
  int64_t size() const { return size_; }

  /// What the buffer holds once all work is done.
  std::vector<T> contents() const {
    std::vector<T> result(static_cast<size_t>(size_));
    download(result.data(), data_, bytes());
    return result;
  }
  std::vector<double> values() const {
    std::vector<double> result;
    for (const T& value : contents()) result.push_back(to_double(value));
    return result;
  }

  void assign(const std::vector<T>& values) {
    ASSERT_EQ(static_cast<int64_t>(values.size()), size_);
    upload(data_, values.data(), bytes());
  }
  /// Makes `count` elements as new.
  void poison(int64_t from, int64_t count) {
    const std::vector<unsigned char> ones(static_cast<size_t>(count) * sizeof(T), 0xff);
    upload(data_ + static_cast<size_t>(from) * sizeof(T), ones.data(), ones.size());
  }

 private:
  static_assert(std::is_trivially_copyable_v<T>);
  static constexpr size_t kFence = 256;
  static constexpr unsigned char kFenceByte = 0xa5;

  DeviceRuntime& runtime() const { return device_runtime(device_.kind); }
  size_t bytes() const { return static_cast<size_t>(size_) * sizeof(T); }

  void create(const T* values, int64_t size) {
    constexpr bool kFloats =
        std::is_same_v<T, float> || std::is_same_v<T, double> || std::is_same_v<T, bfloat16>;
    size_ = size;
    const size_t skew = kFloats ? static_cast<size_t>(Skew::current()) * sizeof(T) : 0;
    fence_ = runtime().emulated() ? 0 : kFence;
    std::vector<unsigned char> image(skew + bytes() + 2 * fence_, kFenceByte);
    unsigned char* inner = image.data() + skew + fence_;
    if (values == nullptr) {
      std::fill_n(inner, bytes(), static_cast<unsigned char>(0xff));
    } else if (size > 0) {
      std::memcpy(inner, values, bytes());
    }
    memory_ = static_cast<unsigned char*>(
        runtime().allocate(device_.index, std::max<int64_t>(1, std::ssize(image))));
    data_ = memory_ + skew + fence_;
    if (fence_ > 0) {
      upload(memory_, image.data(), image.size());
    } else if (values != nullptr && size > 0) {
      upload(data_, inner, bytes());
    }
  }

  void upload(void* to, const void* from, size_t count) {
    runtime().copy_to_device(to, from, static_cast<int64_t>(count), device_stream(device_));
    runtime().synchronize(device_stream(device_));
  }
  void download(void* to, const void* from, size_t count) const {
    runtime().copy_to_host(to, from, static_cast<int64_t>(count), device_stream(device_));
    runtime().synchronize(device_stream(device_));
  }

  bool intact() const {
    if (fence_ == 0) return true;
    unsigned char fences[2 * kFence];
    download(fences, data_ - kFence, kFence);
    download(fences + kFence, data_ + bytes(), kFence);
    for (const unsigned char byte : fences) {
      if (byte != kFenceByte) return false;
    }
    return true;
  }

  Device device_ = OnDevice::current();
  int64_t size_ = 0;
  unsigned char* memory_ = nullptr;
  unsigned char* data_ = nullptr;
  size_t fence_ = 0;
};

}  // namespace heirloom::test
