// SPDX-License-Identifier: Apache-2.0
//
// The model: one forward pass for training, evaluation, prefill and decode. It is built from a
// config by way of the KV plan and layout; it never asks for a variant by name.
#pragma once

#include <memory>
#include <span>

#include "heirloom/model/config.h"
#include "heirloom/model/kv_layout.h"
#include "heirloom/nn/block.h"
#include "heirloom/nn/parameter_store.h"
#include "heirloom/ops/embedding.h"

namespace heirloom {

/// The rows whose hidden state is wanted (sampled or scored), when not all are: row indices
/// ascending, and one single-query sequence per row (query_row counted within the subset).
struct WantedRows {
  std::span<const int32_t> rows;
  std::span<const int32_t> positions;
  std::span<const AttentionSequence> sequences;
};

enum class Recompute : uint8_t { kNone, kBlock };

class Transformer {
 public:
  /// Builds plan, layout and modules; allocates (zeroed) weights in `dtype` on `device`. On the
  /// meta device nothing is allocated.
  Transformer(ModelConfig config, const Device& device, Dtype dtype);

  const ModelConfig& config() const { return config_; }
  const KvPlan& plan() const { return plan_; }
  const KvLayout& layout() const { return layout_; }
  ParameterStore& parameters() { return parameters_; }
  const ParameterStore& parameters() const { return parameters_; }
  Dtype dtype() const { return parameters_.dtype(); }
  const Device& device() const { return parameters_.device(); }

  /// What KvStore implementations need to know of the layout.
  std::vector<KvStreamSpec> stream_specs() const;

  /// Grows the rope tables to `positions` rows. Learned positions: ConfigError past
  /// max_position_embeddings.
  void ensure_positions(int64_t positions);
  int64_t rope_table_bytes() const;

  /// Final-normed hidden states (N, C). With `wanted`, layers past the last one that owns a stream
  /// run for the wanted rows only, and the result is (wanted, C); undefined when no row is wanted.
  Variable hidden(Context& context, const TokenBatch& batch, KvStore& store,
                  Recompute recompute = Recompute::kNone, const WantedRows* wanted = nullptr);

  /// nll (N, float64) of `targets`, < 0 not scored, both in the memory of the device; when recording, backward gives gradients
  /// of scale * sum(nll).
  void loss(Context& context, const TokenBatch& batch, KvStore& store, const int32_t* targets,
            double scale, double* nll, Recompute recompute = Recompute::kNone);

  /// Logits (N, V) of hidden states, in the accumulate dtype.
  Tensor logits(Context& context, const Tensor& hidden);

 private:
  void build();

  ModelConfig config_;
  KvPlan plan_;
  KvLayout layout_;
  ParameterStore parameters_;
  const NamedParameter* embedding_ = nullptr;
  const NamedParameter* position_embedding_ = nullptr;
  const NamedParameter* head_ = nullptr;
  std::vector<BlockModule> blocks_;
  NormModule final_norm_;
  DeviceMemory rope_memory_;
  RopeAngles rope_;
  int64_t rope_positions_ = 0;
};

}  // namespace heirloom
