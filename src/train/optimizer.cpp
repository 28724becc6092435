// SPDX-License-Identifier: Apache-2.0
#include "heirloom/train/optimizer.h"

#include <cmath>

#include "heirloom/core/device_runtime.h"
#include "heirloom/core/rng.h"
#include "heirloom/kernels/elementwise.h"

namespace heirloom {
namespace {

/// What host and device tell each other of a step; it stands in front of the device's segments.
struct Exchange {
  AdamwScalars scalars;  // from the host, but for grad_scale
  double sum_squares = 0;
  double norm = 0;  // for the host
};

}  // namespace

StateBytes state_bytes(const ParameterStore& parameters, bool narrow_state) {
  const Dtype dtype = parameters.dtype(), accumulate = accumulate_dtype(dtype);
  const int64_t n = parameters.elements(), wide = n * dtype_size(accumulate);
  const int64_t own = n * dtype_size(dtype);
  return {own, dtype == accumulate || narrow_state ? 0 : wide, wide,
          2 * (narrow_state ? own : wide)};
}

Optimizer::Optimizer(ParameterStore& parameters, const OptimizerConfig& config)
    : parameters_(parameters),
      config_(config),
      narrow_(config.narrow_state && parameters.dtype() != accumulate_dtype(parameters.dtype())),
      dtype_(narrow_ ? parameters.dtype() : accumulate_dtype(parameters.dtype())) {
  const Device& device = parameters.device();
  const StateBytes bytes = state_bytes(parameters, narrow_);
  master_ = DeviceMemory(device, bytes.master);
  gradients_ = DeviceMemory(device, bytes.gradients);
  m_ = DeviceMemory(device, bytes.moments / 2);
  v_ = DeviceMemory(device, bytes.moments / 2);
  parameters.attach_gradients(gradients_.data());

  const int64_t size = dtype_size(dtype_);
  const int64_t gradient_size = dtype_size(accumulate_dtype(parameters.dtype()));
  std::vector<OptimizerSegment> segments;
  for (NamedParameter& p : parameters.all()) {
    OptimizerSegment s;
    if (!narrow_) s.master = static_cast<std::byte*>(weights()) + p.offset * size;
    s.weight = narrow_ || master_.data() ? p.value.data() : nullptr;
    s.grad = gradients_.data() + p.offset * gradient_size;
    s.m = m_.data() + p.offset * size;
    s.v = v_.data() + p.offset * size;
    s.n = p.numel();
    const bool decays = p.decays() && (config.decay_embeddings || !p.is_embedding);
    s.weight_decay = decays ? config.weight_decay : 0;
    segments.push_back(s);
  }
  segment_count_ = static_cast<int64_t>(segments.size());
  runs_ = number_runs(segments.data(), segment_count_);
  const int64_t segment_bytes = segment_count_ * static_cast<int64_t>(sizeof(OptimizerSegment));
  device_block_ = DeviceMemory(device, static_cast<int64_t>(sizeof(Exchange)) + segment_bytes);
  host_block_ = PinnedMemory(device.kind, static_cast<int64_t>(sizeof(Exchange)));
  partial_sums_ = DeviceMemory(device, runs_ * static_cast<int64_t>(sizeof(double)));
  device_runtime(device.kind)
      .copy_to_device(device_block_.data() + sizeof(Exchange), segments.data(), segment_bytes,
                      device_stream(device));
}

void Optimizer::zero_gradients() {
  const Device& device = parameters_.device();
  if (device.kind != DeviceKind::kCpu) {
    return device_runtime(device.kind)
        .fill_zero(gradients_.data(), gradients_.bytes(), device_stream(device));
  }
  constexpr int64_t kRun = 1 << 20;
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < gradients_.bytes(); i += kRun) {
    std::memset(gradients_.data() + i, 0,
                static_cast<size_t>(std::min(kRun, gradients_.bytes() - i)));
  }
}

void Optimizer::prepare(int64_t step, double lr, uint64_t seed) {
  AdamwScalars& scalars = reinterpret_cast<Exchange*>(host_block_.data())->scalars;
  scalars.lr = lr;
  scalars.bias_correction1 = 1 - std::pow(config_.beta1, static_cast<double>(step));
  scalars.bias_correction2 = 1 - std::pow(config_.beta2, static_cast<double>(step));
  scalars.rounding_key = mix_key(mix_key(seed, hash_name("rounding")), static_cast<uint64_t>(step));
  const Device& device = parameters_.device();
  device_runtime(device.kind)
      .copy_to_device(device_block_.data(), host_block_.data(),
                      static_cast<int64_t>(sizeof(AdamwScalars)), device_stream(device));
}

void Optimizer::update() {
  const DeviceKind kind = parameters_.device().kind;
  const Dtype dtype = parameters_.dtype();
  const Stream stream = device_stream(parameters_.device());
  Exchange* const exchange = reinterpret_cast<Exchange*>(device_block_.data());
  const auto* segments =
      reinterpret_cast<const OptimizerSegment*>(device_block_.data() + sizeof(Exchange));
  SumSquaresArgs squares;
  squares.segments = segments;
  squares.segment_count = segment_count_;
  squares.runs = runs_;
  squares.workspace = reinterpret_cast<double*>(partial_sums_.data());
  squares.result = &exchange->sum_squares;
  sum_squares_table().get(kind, dtype)(squares, stream);

  GradScaleArgs scale;
  scale.sum_squares = &exchange->sum_squares;
  scale.clip = config_.grad_clip;
  scale.norm = &exchange->norm;
  scale.grad_scale = &exchange->scalars.grad_scale;
  grad_scale_table().get(kind, dtype)(scale, stream);

  AdamwArgs args;
  args.segments = segments;
  args.segment_count = segment_count_;
  args.runs = runs_;
  args.scalars = &exchange->scalars;
  args.beta1 = config_.beta1;
  args.beta2 = config_.beta2;
  args.eps = config_.eps;
  args.narrow_state = narrow_;
  adamw_table().get(kind, dtype)(args, stream);
}

double Optimizer::gradient_norm() {
  const Device& device = parameters_.device();
  DeviceRuntime& runtime = device_runtime(device.kind);
  const Stream stream = device_stream(device);
  constexpr auto kAt = static_cast<int64_t>(offsetof(Exchange, norm));
  runtime.copy_to_host(host_block_.data() + kAt, device_block_.data() + kAt, sizeof(double),
                       stream);
  runtime.synchronize(stream);
  return reinterpret_cast<const Exchange*>(host_block_.data())->norm;
}

void Optimizer::publish_weights() {
  if (master_.data() == nullptr) return;
  AddArgs args;
  args.x = master_.data();
  args.y = parameters_.data();
  args.cols = args.x_stride = args.y_stride = 64;  // elements() is a multiple of it
  args.rows = parameters_.elements() / args.cols;
  args.x_is_accumulate_dtype = true;
  args.overwrite = true;
  add_table().get(parameters_.device().kind, parameters_.dtype())(
      args, device_stream(parameters_.device()));
}

std::vector<FlatTensors> Optimizer::moments() {
  return {{"m.", m_.data(), dtype_}, {"v.", v_.data(), dtype_}};
}

}  // namespace heirloom
