// SPDX-License-Identifier: Apache-2.0
//
// What a model is, as data. Read from a model directory's config.json (model_type "heirloom": every
// field below under its JSON name; other model types: transformers' own fields) and written back in
// the form it came in.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "heirloom/core/dtype.h"
#include "heirloom/io/json.h"
#include "heirloom/kernels/activation.h"
#include "heirloom/kernels/head_split.h"
#include "heirloom/kernels/norm.h"

namespace heirloom {

enum class PositionKind : uint8_t { kRope, kLearned };

/// Rope frequency scaling, with transformers' fields and meaning (rope_type linear | llama3 |
/// yarn).
struct RopeScaling {
  std::string type;  ///< empty: none
  double factor = 1;
  double low_freq_factor = 1, high_freq_factor = 4;  ///< llama3
  double beta_fast = 32, beta_slow = 1,
         attention_factor = 0;            ///< yarn; attention_factor 0: derived from factor
  double mscale = 0, mscale_all_dim = 0;  ///< yarn
  bool truncate = true;                   ///< yarn: its ramp begins and ends at whole dims
  int64_t original_max_position_embeddings = 0;
};

/// Latent attention (DeepSeek-V2, arXiv 2405.04434). kv_lora_rank 0: softmax attention over plain
/// heads.
struct LatentAttentionConfig {
  int64_t kv_lora_rank = 0, qk_rope_head_dim = 0, qk_nope_head_dim = 0, v_head_dim = 0;
  int64_t q_lora_rank = 0;  ///< 0: uncompressed queries
};

/// Where keys and values come from; see variants in kv_plan.h. Only the fields of its scheme mean
/// anything.
struct KvSharingConfig {
  std::string scheme =
      "none";  ///< none skipv1 skipkv1 skipv1-yoco yoco yoco-v cla cla-v svformer split explicit
  double ratio = 0.5;        ///< share of inherited heads
  int64_t source_layer = 1;  ///< 1-based; 0: the routed heads are zero (SkipV0)
  std::string injection = "tail";
  int64_t start = 0;  ///< 1-based; 0: max(1, floor(L/2))
  int64_t group = 2;
  std::shared_ptr<const KvSharingConfig> keys, values;  ///< split
  Json explicit_keys, explicit_values;  ///< explicit: [[source per KV head] per layer]
};

struct ValueResidualConfig {
  std::string mode = "none";  ///< none identity constant sparse learnable learnable-plus
  double v1 = 0.5, own = 0.5;
  std::vector<int64_t> layers;  ///< 1-based; sparse
};

struct DepthWeightedAverageConfig {
  int64_t dilation = 1, period = 1;
};

struct ModelConfig {
  std::string model_type = "heirloom";
  int64_t vocab_size = 0, hidden_size = 0, intermediate_size = 0, num_hidden_layers = 0;
  int64_t num_attention_heads = 0, num_key_value_heads = 0, head_dim = 0;
  int64_t max_position_embeddings = 0;
  NormKind norm = NormKind::kRms;
  double norm_eps = 1e-6;
  bool norm_bias = false;
  ActivationKind mlp = ActivationKind::kSwiglu;
  bool mlp_bias = false, attention_bias = false, attention_out_bias = false;
  PositionKind position = PositionKind::kRope;
  double rope_theta = 10000;
  RopeStyle rope_style = RopeStyle::kHalf;
  double partial_rotary_factor = 1;
  RopeScaling rope_scaling;
  bool qk_norm = false, tie_word_embeddings = false, parallel_residual = false;
  int64_t sliding_window = 0;  ///< tokens; 0: none
  std::optional<int64_t> bos_token_id;
  std::vector<int64_t> eos_token_ids;
  std::string stored_dtype = "float32";
  LatentAttentionConfig latent;
  KvSharingConfig kv_sharing;
  ValueResidualConfig value_residual;
  double neutreno_lambda = 0;
  std::optional<DepthWeightedAverageConfig> depth_weighted_average;
  Json kept;  ///< transformers' bookkeeping keys (and, for other model types, unknown ones),
              ///< written back as they were

  int64_t rotary_dim() const;  ///< even number of dims per head that rotate; 0 without rope
};

/// Reads any supported config.json. All problems are collected and thrown as one ConfigError, one
/// per line, each naming the key, what was expected and what was found; an unknown key of a
/// heirloom config names the nearest known one. Sizes are bounded (a product that overflows or a
/// layer count in the millions is an error), so nothing allocates by them.
ModelConfig parse_model_config(const Json& json, const std::string& origin);
ModelConfig read_model_config(
    const std::string& path);  ///< a config.json, or a directory that holds one

/// The JSON of a config: every field of a heirloom config (parse_model_config of it gives the same
/// config); transformers' fields for other model types.
Json model_config_json(const ModelConfig& config);

/// The same model under another model_type. Kept keys that belong to the old one (architectures,
/// auto_map, unknown keys) are dropped. Whether the new type can express the model shows in
/// model_config_json.
ModelConfig with_model_type(const ModelConfig& config, const std::string& model_type);

/// A preset's config ("llama-60m", "gpt2-125m", "tinyllama-1.1b", ...), from configs/models;
/// ConfigError names the nearest.
ModelConfig preset_model_config(const std::string& name);
std::vector<std::string> preset_model_names();

/// What "model" of a run config holds: an inline object, a preset's name, or the path of a
/// config.json or of a model directory.
ModelConfig resolve_model_config(const Json& model, const std::string& origin);

/// Parameters of the model that a config describes, by kind (elements; a tied head counts once,
/// under embedding).
struct ParameterCount {
  int64_t embedding = 0;  ///< token and learned position embeddings
  int64_t attention =
      0;  ///< projections with biases, q/k norms, latent norms, value residual scalars
  int64_t mlp = 0, norm = 0, depth_average = 0;
  int64_t head = 0;  ///< lm_head; 0 when tied
  int64_t total() const { return embedding + attention + mlp + norm + depth_average + head; }
};
ParameterCount count_parameters(const ModelConfig& config);

/// Angle tables of rope for positions [0, positions): cosines and sines (positions, rotary_dim/2),
/// row-major, in double; scaling (and yarn's attention factor) included.
struct RopeTables {
  std::vector<double> cosines, sines;
  int64_t positions = 0, half_dim = 0;
};
RopeTables rope_tables(const ModelConfig& config, int64_t positions);

}  // namespace heirloom
