// SPDX-License-Identifier: Apache-2.0
#include "heirloom/core/tensor.h"

namespace heirloom {

Shape::Shape(std::initializer_list<int64_t> dims) : rank_(static_cast<int>(dims.size())) {
  HEIRLOOM_CHECK(dims.size() <= 4, "[shape] expected at most 4 dimensions; got {}", dims.size());
  size_t axis = 0;
  for (const int64_t d : dims) {
    HEIRLOOM_CHECK(d >= 0, "[shape] expected dimensions >= 0; got {}", d);
    dims_[axis++] = d;
  }
}

int64_t Shape::numel() const {
  int64_t n = 1;
  for (int axis = 0; axis < rank_; ++axis) n *= dims_[static_cast<size_t>(axis)];
  return n;
}

int64_t Shape::cols() const { return rank_ == 0 ? 1 : dims_[static_cast<size_t>(rank_ - 1)]; }

int64_t Shape::rows() const {
  int64_t n = 1;
  for (int axis = 0; axis + 1 < rank_; ++axis) n *= dims_[static_cast<size_t>(axis)];
  return n;
}

std::string Shape::str() const {
  std::string s = "(";
  for (int axis = 0; axis < rank_; ++axis) s += (axis ? ", " : "") + std::to_string((*this)[axis]);
  return s + ")";
}

Tensor::Tensor(Buffer* buffer, int64_t offset_bytes, Shape shape, Dtype dtype, int64_t row_stride)
    : data_(buffer->data == nullptr ? nullptr
                                    : static_cast<std::byte*>(buffer->data) + offset_bytes),
      buffer_(buffer),
      shape_(shape),
      row_stride_(row_stride ? row_stride : shape.cols()),
      dtype_(dtype),
      device_(buffer->device),
      dtype_set_(true) {
  ++buffer_->references;
}

Tensor::Tensor(void* data, Shape shape, Dtype dtype, Device device, int64_t row_stride)
    : data_(data),
      shape_(shape),
      row_stride_(row_stride ? row_stride : shape.cols()),
      dtype_(dtype),
      device_(device),
      dtype_set_(true) {}

Tensor::Tensor(const Tensor& other)
    : data_(other.data_),
      buffer_(other.buffer_),
      shape_(other.shape_),
      row_stride_(other.row_stride_),
      dtype_(other.dtype_),
      device_(other.device_),
      dtype_set_(other.dtype_set_) {
  if (buffer_) ++buffer_->references;
}

Tensor::Tensor(Tensor&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      buffer_(std::exchange(other.buffer_, nullptr)),
      shape_(other.shape_),
      row_stride_(other.row_stride_),
      dtype_(other.dtype_),
      device_(other.device_),
      dtype_set_(std::exchange(other.dtype_set_, false)) {}

Tensor& Tensor::operator=(Tensor other) noexcept {
  std::swap(data_, other.data_);
  std::swap(buffer_, other.buffer_);
  std::swap(shape_, other.shape_);
  std::swap(row_stride_, other.row_stride_);
  std::swap(dtype_, other.dtype_);
  std::swap(device_, other.device_);
  std::swap(dtype_set_, other.dtype_set_);
  return *this;
}

Tensor::~Tensor() {
  if (buffer_ && --buffer_->references == 0 && buffer_->release) {
    buffer_->release(buffer_, buffer_->owner);
  }
}

namespace {
Tensor view(const Tensor& base, int64_t offset_bytes, Shape shape, int64_t row_stride) {
  if (base.buffer() == nullptr) {
    void* data = base.data() ? static_cast<std::byte*>(base.data()) + offset_bytes : nullptr;
    return Tensor(data, shape, base.dtype(), base.device(), row_stride);
  }
  const int64_t start = base.data() ? static_cast<std::byte*>(base.data()) -
                                          static_cast<std::byte*>(base.buffer()->data)
                                    : 0;
  return Tensor(base.buffer(), start + offset_bytes, shape, base.dtype(), row_stride);
}
}  // namespace

Tensor Tensor::reshape(Shape shape) const {
  HEIRLOOM_CHECK(contiguous() && shape.numel() == numel(),
                 "[reshape] expected a contiguous tensor of {} elements; got {} with row stride {}",
                 shape.numel(), shape_.str(), row_stride_);
  return view(*this, 0, shape, 0);
}

Tensor Tensor::rows(int64_t begin, int64_t end) const {
  HEIRLOOM_CHECK(shape_.rank() == 2 && 0 <= begin && begin <= end && end <= dim(0),
                 "[rows] expected 0 <= {} <= {} <= rows of {}", begin, end, shape_.str());
  return view(*this, begin * row_stride_ * dtype_size(dtype_), {end - begin, dim(1)}, row_stride_);
}

Tensor Tensor::columns(int64_t begin, int64_t end) const {
  HEIRLOOM_CHECK(shape_.rank() == 2 && 0 <= begin && begin <= end && end <= dim(1),
                 "[columns] expected 0 <= {} <= {} <= columns of {}", begin, end, shape_.str());
  return view(*this, begin * dtype_size(dtype_), {dim(0), end - begin}, row_stride_);
}

}  // namespace heirloom
