// SPDX-License-Identifier: Apache-2.0
//
// A Tensor is a typed, shaped view on a buffer of a device. It owns nothing by itself: it keeps its
// buffer alive by counting references, so a buffer's lifetime is the span from its allocation to
// the death of the last view. No operation lives here.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>

#include "heirloom/core/device.h"
#include "heirloom/core/dtype.h"
#include "heirloom/core/error.h"

namespace heirloom {

/// Up to four dimensions, row-major.
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> dims);

  int rank() const { return rank_; }
  int64_t operator[](int axis) const { return dims_[static_cast<size_t>(axis)]; }
  int64_t numel() const;
  int64_t rows() const;     ///< product of all dimensions but the last
  int64_t cols() const;     ///< the last dimension
  std::string str() const;  ///< "(2, 3)"
  friend bool operator==(const Shape&, const Shape&) = default;

 private:
  std::array<int64_t, 4> dims_{};
  int rank_ = 0;
};

/// A run of bytes on a device, released to its owner when the last Tensor that views it goes away.
struct Buffer {
  void* data = nullptr;  ///< null on the meta device
  int64_t bytes = 0;
  Device device;
  int32_t references = 0;
  int32_t index = -1;  ///< position in its allocator's sequence
  void (*release)(Buffer*, void* owner) = nullptr;
  void* owner = nullptr;
};

class Tensor {
 public:
  Tensor() = default;
  /// A view on `buffer` from `offset_bytes` on; `row_stride` in elements, 0 for contiguous rows.
  Tensor(Buffer* buffer, int64_t offset_bytes, Shape shape, Dtype dtype, int64_t row_stride = 0);
  /// A view on memory that outlives it (parameters, fixtures): nothing is counted.
  Tensor(void* data, Shape shape, Dtype dtype, Device device = {}, int64_t row_stride = 0);
  Tensor(const Tensor& other);
  Tensor(Tensor&& other) noexcept;
  Tensor& operator=(Tensor other) noexcept;
  ~Tensor();

  bool defined() const { return dtype_set_; }
  const Shape& shape() const { return shape_; }
  int64_t dim(int axis) const { return shape_[axis]; }
  int64_t numel() const { return shape_.numel(); }
  int64_t bytes() const { return numel() * dtype_size(dtype_); }
  Dtype dtype() const { return dtype_; }
  const Device& device() const { return device_; }
  /// Elements between consecutive rows (rows = all axes but the last).
  int64_t row_stride() const { return row_stride_; }
  bool contiguous() const { return row_stride_ == shape_.cols(); }

  void* data() const { return data_; }
  template <class T>
  T* as() const {
    HEIRLOOM_CHECK(kDtypeOf<T> == dtype_, "[tensor] expected {}; got {}", dtype_name(kDtypeOf<T>),
                   dtype_name(dtype_));
    return static_cast<T*>(data_);
  }

  /// Same elements, another shape of the same count; contiguous tensors only.
  Tensor reshape(Shape shape) const;
  /// Rows [begin, end) of the first axis.
  Tensor rows(int64_t begin, int64_t end) const;
  /// Columns [begin, end) of the last axis of a two-dimensional tensor, as a strided view.
  Tensor columns(int64_t begin, int64_t end) const;
  /// True iff this is the only view on its buffer.
  bool unique() const { return buffer_ != nullptr && buffer_->references == 1; }
  Buffer* buffer() const { return buffer_; }

 private:
  void* data_ = nullptr;
  Buffer* buffer_ = nullptr;
  Shape shape_;
  int64_t row_stride_ = 0;
  Dtype dtype_ = Dtype::kFloat32;
  Device device_;
  bool dtype_set_ = false;
};

}  // namespace heirloom
