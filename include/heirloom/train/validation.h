// SPDX-License-Identifier: Apache-2.0
//
// The validation loss of a run: any model scored on the run's validation data exactly as the run
// scores its own, so that the figures can stand in one report.
#pragma once

#include <memory>
#include <optional>

#include "heirloom/train/step.h"

namespace heirloom {

class Validation {
 public:
  /// `run.model` is the model's config and `run.data.validation` is given; `plan` is the run's
  /// StepPlan::evaluation, and `block` its peak_bytes on the model's device, which may serve others
  /// between two calls.
  Validation(const RunConfig& run, Transformer& model, const MemoryPlan& plan, void* block);
  ~Validation();

  /// Mean nll in nats per token over the first eval_batches batches (0: all), summed in float64 in
  /// their order. Nothing when a signal has asked to stop.
  std::optional<double> loss();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// The same for a model beside the run, of any architecture with the run's vocabulary, in memory of
/// its own.
std::optional<double> validation_loss(const RunConfig& run, Transformer& model);

}  // namespace heirloom
