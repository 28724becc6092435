// SPDX-License-Identifier: Apache-2.0
#include "heirloom/train/optimizer.h"

#include <cmath>

#include "heirloom/kernels/elementwise.h"

namespace heirloom {

StateBytes state_bytes(const ParameterStore& parameters) {
  const Dtype dtype = parameters.dtype(), accumulate = accumulate_dtype(dtype);
  const int64_t n = parameters.elements(), wide = n * dtype_size(accumulate);
  return {n * dtype_size(dtype), dtype == accumulate ? 0 : wide, wide, 2 * wide};
}

Optimizer::Optimizer(ParameterStore& parameters, const OptimizerConfig& config)
    : parameters_(parameters), config_(config), dtype_(accumulate_dtype(parameters.dtype())) {
  const StateBytes bytes = state_bytes(parameters);
  master_ = HostMemory(bytes.master);
  gradients_ = HostMemory(bytes.gradients);
  m_ = HostMemory(bytes.moments / 2);
  v_ = HostMemory(bytes.moments / 2);
  parameters.attach_gradients(gradients_.data());
  const int64_t size = dtype_size(dtype_);
  for (NamedParameter& p : parameters.all()) {
    OptimizerSegment s;
    s.master = static_cast<std::byte*>(weights()) + p.offset * size;
    s.weight = master_.data() ? p.value.data() : nullptr;
    s.grad = gradients_.data() + p.offset * size;
    s.m = m_.data() + p.offset * size;
    s.v = v_.data() + p.offset * size;
    s.n = p.numel();
    const bool decays = p.decays() && (config.decay_embeddings || !p.is_embedding);
    s.weight_decay = decays ? config.weight_decay : 0;
    segments_.push_back(s);
  }
}

void Optimizer::zero_gradients() {
  constexpr int64_t kRun = 1 << 20;
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < gradients_.bytes(); i += kRun) {
    std::memset(gradients_.data() + i, 0,
                static_cast<size_t>(std::min(kRun, gradients_.bytes() - i)));
  }
}

double Optimizer::gradient_norm() {
  double squares = 0;
  SumSquaresArgs args;
  args.segments = segments_.data();
  args.segment_count = static_cast<int64_t>(segments_.size());
  args.result = &squares;
  sum_squares_table().get(parameters_.device().kind, parameters_.dtype())(args, {});
  return std::sqrt(squares);
}

void Optimizer::update(int64_t step, double lr, double grad_scale) {
  AdamwArgs args;
  args.segments = segments_.data();
  args.segment_count = static_cast<int64_t>(segments_.size());
  args.lr = lr;
  args.beta1 = config_.beta1;
  args.beta2 = config_.beta2;
  args.eps = config_.eps;
  args.bias_correction1 = 1 - std::pow(config_.beta1, static_cast<double>(step));
  args.bias_correction2 = 1 - std::pow(config_.beta2, static_cast<double>(step));
  args.grad_scale = grad_scale;
  adamw_table().get(parameters_.device().kind, parameters_.dtype())(args, {});
}

void Optimizer::publish_weights() {
  if (master_.data() == nullptr) return;
  AddArgs args;
  args.x = master_.data();
  args.y = parameters_.data();
  args.cols = args.x_stride = args.y_stride = 32;  // elements() is a multiple of it
  args.rows = parameters_.elements() / args.cols;
  args.x_is_accumulate_dtype = true;
  args.overwrite = true;
  add_table().get(parameters_.device().kind, parameters_.dtype())(args, {});
}

std::vector<FlatTensors> Optimizer::moments() {
  return {{"m.", m_.data(), dtype_}, {"v.", v_.data(), dtype_}};
}

}  // namespace heirloom
