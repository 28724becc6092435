// SPDX-License-Identifier: Apache-2.0
//
// A training run as data: the JSON of `heirloom train`, with every field's meaning, unit, range and
// default.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "heirloom/model/config.h"
#include "heirloom/model/transformer.h"

namespace heirloom {

enum class DocumentMask : uint8_t { kNone, kCausal };
enum class ScheduleKind : uint8_t { kConstant, kCosine, kWsd, kLinear };

struct DataConfig {
  std::vector<std::string> train;  ///< token shards; required
  std::string validation;          ///< token shard; empty: nothing is evaluated
  bool shuffle = true;  ///< false: in order; true: every epoch a permutation drawn from train.seed
  std::string tokenizer;  ///< tokenizer.json, copied into checkpoints; empty: nothing is sampled
  DocumentMask document_mask =
      DocumentMask::kNone;  ///< causal: tokens see their own document only (ends at eos)
};

struct TrainConfig {
  int64_t steps = 0;             ///< optimizer steps; required
  int64_t batch_size = 0;        ///< sequences per step; required
  int64_t sequence_length = 0;   ///< tokens; required
  int64_t micro_batch_size = 0;  ///< sequences per forward pass, divides batch_size; 0: batch_size
  uint64_t seed = 0;
  Dtype dtype =
      Dtype::kFloat32;        ///< float32, or bfloat16 with float32 master weights (float64: tests)
  int64_t eval_every = 0;     ///< steps; 0: at the start and at the end only
  int64_t eval_batches = 32;  ///< batches of batch_size sequences, in order; 0: all
  int64_t save_every = 0;     ///< steps; 0: only when stopped
  int64_t keep = 2;           ///< newest checkpoints kept; 0: all
  int64_t sample_every = 0;   ///< steps; 0: at the end only
  std::string sample_prompt;  ///< empty: the end-of-text token
  int64_t sample_tokens = 64;
  Recompute recompute = Recompute::kNone;
  bool tf32 = false;    ///< CUDA: float32 matrix products may round their inputs to TF32
  bool capture = true;  ///< CUDA: a pass is captured once as a graph and replayed
  double init_std = 0.02;
  bool init_scale_residual = false;  ///< init.residual "1/sqrt(2L)"
  double dropout_embedding = 0, dropout_attention = 0,
         dropout_residual = 0;         ///< probabilities in [0, 1)
  Dtype save_dtype = Dtype::kFloat32;  ///< of final/
};

struct OptimizerConfig {
  double lr = 0;  ///< peak; required
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
  double grad_clip = 1.0;        ///< global L2 norm; 0: off
  bool decay_embeddings = true;  ///< false exempts embeddings and a tied head
  /// bfloat16 only: weights and moments in bfloat16 with stochastic rounding and no master copy:
  /// 10 bytes a parameter with its gradient instead of 18.
  bool narrow_state = false;
};

struct ScheduleConfig {
  ScheduleKind kind = ScheduleKind::kCosine;
  int64_t warmup_steps = 0;
  double min_lr_ratio = 0.1;  ///< of the peak, at the last step
  double decay_ratio = 0.2;   ///< wsd: share of the steps that decay, at the end
};

struct RunConfig {
  ModelConfig model;
  std::string init_from;  ///< a model directory; empty: random by train.seed
  DataConfig data;
  TrainConfig train;
  OptimizerConfig optimizer;
  ScheduleConfig schedule;
  std::string output;  ///< the run directory; required
  Json resolved;       ///< the whole tree with every default filled in
};

/// Reads the tree. All problems are reported at once as one ConfigError; an unknown key names the
/// nearest known one.
RunConfig parse_run_config(const Json& json, const std::string& origin);

/// Applies "path.to.key=value"; the value is JSON, or else a string.
void apply_setting(Json& json, const std::string& setting);

/// A preset run ("llama-60m", "gpt2-125m-skipv1", ...): the paper's recipe for that model, without
/// data and output.
Json preset_run(const std::string& name);

/// Learning rate of step `step` (from 1).
double learning_rate(const ScheduleConfig& schedule, double peak, int64_t step, int64_t steps);

}  // namespace heirloom
