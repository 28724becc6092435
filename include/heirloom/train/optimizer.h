// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "heirloom/kernels/optimizer.h"
#include "heirloom/model/checkpoint.h"
#include "heirloom/nn/parameter_store.h"
#include "heirloom/train/run_config.h"

namespace heirloom {

/// Bytes of everything that lives as long as the run, per parameter store.
struct StateBytes {
  int64_t weights = 0, master = 0, gradients = 0, moments = 0;
};
StateBytes state_bytes(const ParameterStore& parameters);

/// AdamW over a model's parameters: owns master weights (where the model computes in less),
/// gradients and moments, in flat buffers laid out as the store's.
class Optimizer {
 public:
  Optimizer(ParameterStore& parameters, const OptimizerConfig& config);

  void zero_gradients();
  /// Global L2 norm of the gradients.
  double gradient_norm();
  /// Step `step` (from 1) at learning rate `lr`; gradients count `grad_scale` times.
  void update(int64_t step, double lr, double grad_scale);

  /// The weights as trained: the master copy, or the model's own where it computes in the
  /// accumulate dtype.
  void* weights() {
    return master_.data() ? master_.data() : static_cast<std::byte*>(parameters_.data());
  }
  Dtype weights_dtype() const { return dtype_; }
  /// Copies the master weights, rounded, into the model's; after they were loaded or initialised.
  void publish_weights();
  /// Moments as named tensors ("m.", "v.") for checkpoints.
  std::vector<FlatTensors> moments();

 private:
  ParameterStore& parameters_;
  OptimizerConfig config_;
  Dtype dtype_;  // of master weights, gradients and moments
  HostMemory master_, gradients_, m_, v_;
  std::vector<OptimizerSegment> segments_;
};

}  // namespace heirloom
