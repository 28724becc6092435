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
StateBytes state_bytes(const ParameterStore& parameters, bool narrow_state);

/// AdamW over a model's parameters: owns master weights (where the model computes in less),
/// gradients and moments, in flat buffers laid out as the store's.
class Optimizer {
 public:
  Optimizer(ParameterStore& parameters, const OptimizerConfig& config);

  void zero_gradients();
  /// Hands the device what step `step` (from 1) needs to know; then `update` clips by the global
  /// norm and takes the step, all on the device. Where the norm is not finite nothing is changed.
  /// `update` may be captured and replayed after every `prepare`.
  void prepare(int64_t step, double lr, uint64_t seed);
  void update();
  /// Waits for the device: the global L2 norm of the gradients, before clipping, in the last update.
  double gradient_norm();

  /// The weights as trained, on the parameters' device: the master copy, or the model's own where
  /// there is none.
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
  bool narrow_;  // weights and moments in the model's dtype, without a master copy
  Dtype dtype_;  // of the weights as trained and of the moments
  DeviceMemory master_, gradients_, m_, v_;
  DeviceMemory device_block_;  // segments, scalars, norm: as the kernels read them
  PinnedMemory host_block_;    // scalars and norm
  DeviceMemory partial_sums_;
  int64_t segment_count_ = 0, runs_ = 0;
};

}  // namespace heirloom
