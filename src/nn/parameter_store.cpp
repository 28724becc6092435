// SPDX-License-Identifier: Apache-2.0
#include "heirloom/nn/parameter_store.h"

#include "heirloom/core/device_runtime.h"
#include "heirloom/core/rng.h"

namespace heirloom {

std::vector<int64_t> NamedParameter::stored_shape(const ParameterSlice& slice) const {
  if (shape.rank() == 1) return {slice.end - slice.begin};
  return {slice.end - slice.begin, own_columns()};
}

NamedParameter& ParameterStore::add(Shape shape, std::vector<ParameterSlice> slices) {
  NamedParameter& p = parameters_.emplace_back();
  p.shape = shape;
  p.slices = std::move(slices);
  p.offset = elements_;
  HEIRLOOM_ASSERT(!p.slices.empty() && p.slices.front().begin == 0 &&
                  p.slices.back().end <= shape[0]);
  constexpr int64_t kAlign = 64;  // elements: a 128-byte line in the narrowest dtype
  elements_ += (p.numel() + kAlign - 1) / kAlign * kAlign;
  return p;
}

void ParameterStore::allocate(const Device& device, Dtype dtype) {
  device_ = device;
  dtype_ = dtype;
  memory_ = DeviceMemory(device, elements_ * dtype_size(dtype));
  for (NamedParameter& p : parameters_) {
    void* data = memory_.data() ? memory_.data() + p.offset * dtype_size(dtype) : nullptr;
    p.value = Tensor(data, p.shape, dtype, device);
  }
}

void ParameterStore::attach_gradients(void* base) {
  const Dtype dtype = accumulate_dtype(dtype_);
  for (NamedParameter& p : parameters_) {
    void* data = base ? static_cast<std::byte*>(base) + p.offset * dtype_size(dtype) : nullptr;
    p.grad = Tensor(data, p.shape, dtype, device_);
  }
}

int64_t ParameterStore::count() const {
  int64_t n = 0;
  for (const NamedParameter& p : parameters_) {
    for (const ParameterSlice& s : p.slices) n += (s.end - s.begin) * p.own_columns();
  }
  return n;
}

namespace {

/// Normal values of one row of a slice.
void normal_row(const ParameterSlice& slice, uint64_t key, double std, int64_t row, int64_t columns,
                double* out) {
  const int64_t local = row - slice.begin;
  const int64_t head =
      slice.rows_per_head ? slice.heads[static_cast<size_t>(local / slice.rows_per_head)] : 0;
  const int64_t row_in_head = slice.rows_per_head ? local % slice.rows_per_head : local;
  std::array<double, 4> four{};
  int64_t have = -1;  // the group of four elements that `four` holds
  for (int64_t c = 0; c < columns; ++c) {
    const int64_t element = row_in_head * columns + c;
    if (element / 4 != have) {
      have = element / 4;
      const auto bits = philox(key, {static_cast<uint32_t>(have), static_cast<uint32_t>(have >> 32),
                                     static_cast<uint32_t>(head), 0});
      const auto ab = normals_from_bits(bits[0], bits[1]), cd = normals_from_bits(bits[2], bits[3]);
      four = {ab[0], ab[1], cd[0], cd[1]};
    }
    out[c] = std * four[static_cast<size_t>(element % 4)];
  }
}

template <class T>
void initialize_as(const ParameterStore& parameters, uint64_t seed, const InitOptions& options,
                   T* flat) {
  for (const NamedParameter& p : parameters.all()) {
    const int64_t columns = p.own_columns(), stride = p.columns();
    for (const ParameterSlice& s : p.slices) {
      T* base = flat + p.offset;
      if (s.init != InitKind::kNormal) {
        std::fill(base + s.begin * stride, base + s.end * stride,
                  T(s.init == InitKind::kOnes ? 1.0f : 0.0f));
        continue;
      }
      const uint64_t key = mix_key(seed, hash_name(s.name));
      const double std = options.std * (s.writes_residual ? options.residual_factor : 1.0);
#pragma omp parallel
      {
        std::vector<double> values(static_cast<size_t>(columns));
#pragma omp for schedule(static)
        for (int64_t row = s.begin; row < s.end; ++row) {
          normal_row(s, key, std, row, columns, values.data());
          for (int64_t c = 0; c < columns; ++c) {
            base[row * stride + c] =
                static_cast<T>(static_cast<compute_t<T>>(values[static_cast<size_t>(c)]));
          }
        }
      }
    }
  }
}

}  // namespace

void initialize(const ParameterStore& parameters, uint64_t seed, const InitOptions& options,
                void* flat, Dtype dtype) {
  const Device& device = parameters.device();
  const bool on_host = device.kind == DeviceKind::kCpu;
  const int64_t bytes = parameters.elements() * dtype_size(dtype);
  const HostMemory staging(on_host ? 0 : bytes);
  void* host = on_host ? flat : staging.data();
  switch (dtype) {
    case Dtype::kFloat64:
      initialize_as(parameters, seed, options, static_cast<double*>(host));
      break;
    case Dtype::kBFloat16:
      initialize_as(parameters, seed, options, static_cast<bfloat16*>(host));
      break;
    default:
      initialize_as(parameters, seed, options, static_cast<float*>(host));
  }
  if (on_host) return;
  DeviceRuntime& runtime = device_runtime(device.kind);
  runtime.copy_to_device(flat, host, bytes, device_stream(device));
  runtime.synchronize(device_stream(device));
}

}  // namespace heirloom
