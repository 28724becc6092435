// SPDX-License-Identifier: Apache-2.0
//
// Parts of a config.json that several families share, and the bounds of every size. With these
// bounds each product of sizes that the library forms (parameters, elements per token, bytes) stays
// below 2^63.
#pragma once

#include "heirloom/io/field_reader.h"
#include "heirloom/model/config.h"
#include "heirloom/model/kv_plan.h"

namespace heirloom {

inline constexpr int64_t kMaxLayers = 4096;
inline constexpr int64_t kMaxHeads = 4096;
inline constexpr int64_t kMaxHeadDim = 4096;
inline constexpr int64_t kMaxWidth = int64_t{1} << 20;
inline constexpr int64_t kMaxMlpWidth = int64_t{1} << 22;
inline constexpr int64_t kMaxCount = INT32_MAX;             ///< vocabulary, positions, token ids
inline constexpr int64_t kMaxPlanHeads = int64_t{1} << 20;  ///< layers x KV heads

/// What a family's absent sizes are; nullopt: they must be there.
struct SizeDefaults {
  std::optional<int64_t> vocab_size, hidden_size, intermediate_size, num_hidden_layers,
      num_attention_heads, max_position_embeddings;
  std::optional<int64_t>
      num_key_value_heads;  ///< nullopt, or null in the file: num_attention_heads
  int64_t head_dim = 0;     ///< 0: hidden_size / num_attention_heads
};

/// vocab_size ... head_dim: names and meaning are the same in all families but GPT-2's.
void read_sizes(FieldReader& fields, ModelConfig& config, const SizeDefaults& defaults);

/// Notes a hidden_size / num_attention_heads that is no head size; `key` is what the problem names.
void derive_head_dim(ModelConfig& config, Problems& problems, const char* key);

/// An absent key takes the default; null is none.
void read_special_tokens(FieldReader& fields, ModelConfig& config, std::optional<int64_t> bos,
                         std::vector<int64_t> eos);
Json eos_json(const ModelConfig& config);
Json bos_json(const ModelConfig& config);

/// "dtype", else "torch_dtype".
void read_stored_dtype(FieldReader& fields, ModelConfig& config);

/// null | {"rope_type" or "type", ...}; `default` is none. In `rope_parameters` form, rope_theta
/// and partial_rotary_factor stand in the same object and are read by the caller.
enum class RopeForm { kScaling, kParameters };
void read_rope_scaling(const Json& object, const std::string& path, RopeForm form,
                       Problems& problems, RopeScaling& scaling);
Json rope_scaling_json(const RopeScaling& scaling);

inline constexpr NumberRange kThetaRange{1, 1e15, true};
inline constexpr NumberRange kEpsRange{0, 1, true};
inline constexpr NumberRange kPartialRange{0, 1, true};
inline constexpr NumberRange kWeightRange{-1e6, 1e6};

void read_kv_sharing(const Json& object, const std::string& path, Problems& problems,
                     KvSharingConfig& sharing, int depth = 0);
Json kv_sharing_json(const KvSharingConfig& sharing);

/// What a scheme asks of the layers and KV heads of its model. Explicit tables are checked where
/// they are read (kv_plan.cpp).
void check_kv_sharing(const ModelConfig& config, const KvSharingConfig& sharing,
                      const std::string& path, Problems& problems);

/// The plan of a config that passed check_kv_sharing; problems of explicit tables and of sources
/// are noted, at their layer.
KvPlan make_kv_plan(const ModelConfig& config, Problems& problems);

/// Everything that concerns more than one field. Fields that `problems` already names are left out.
void check_model_config(const ModelConfig& config, Problems& problems);

}  // namespace heirloom
