// SPDX-License-Identifier: Apache-2.0
//
// GPT-2: learned positions, LayerNorm, biases everywhere, a tied head. Its linear weights are stored
// (in, out), with q, k and v side by side in one of them.
#include "heirloom/core/error.h"
#include "transformers.h"

namespace heirloom {
namespace {

/// A size under GPT-2's own name, and under the general one that transformers maps to it.
struct SizeKey {
  const char* own;
  const char* general;
  int64_t ModelConfig::*size;
  int64_t fallback, limit;
};
constexpr SizeKey kSizes[] = {
    {"n_embd", "hidden_size", &ModelConfig::hidden_size, 768, kMaxWidth},
    {"n_layer", "num_hidden_layers", &ModelConfig::num_hidden_layers, 12, kMaxLayers},
    {"n_head", "num_attention_heads", &ModelConfig::num_attention_heads, 12, kMaxHeads},
    {"n_positions", "max_position_embeddings", &ModelConfig::max_position_embeddings, 1024,
     kMaxCount}};
constexpr const char* kSizeNames[] = {"vocab_size", "n_embd", "n_layer", "n_head", "n_positions"};
constexpr const char* kForeign[] = {"head_dim",     "num_key_value_heads", "rope_theta",
                                    "rope_scaling", "rope_parameters",     "sliding_window"};

void read_gpt2_sizes(FieldReader& fields, ModelConfig& config) {
  Problems& problems = fields.problems();
  config.vocab_size = fields.integer("vocab_size", 50257, 1, kMaxCount);
  for (const SizeKey& key : kSizes) {
    const bool positions = key.size == &ModelConfig::max_position_embeddings;
    // Old files repeat the positions as n_ctx.
    const char* also = positions && !fields.has(key.general) ? "n_ctx" : key.general;
    const int64_t other = fields.integer(also, key.fallback, 1, key.limit);
    config.*key.size = fields.integer(key.own, other, 1, key.limit);
    if (fields.has(also) && problems.fine({also, key.own}) && config.*key.size != other) {
      problems.add(also, "expected {} as {} says; got {}", config.*key.size, key.own, other);
    }
    keep_field(fields, config, key.general);
  }
  keep_field(fields, config, "n_ctx");
  config.num_key_value_heads = config.num_attention_heads;
  config.intermediate_size = fields.integer("n_inner", 4 * config.hidden_size, 1, kMaxMlpWidth);
  keep_field(fields, config, "n_inner");
  config.head_dim = 2;
  if (problems.fine({"n_embd", "n_head", "hidden_size", "num_attention_heads"})) {
    derive_head_dim(config, problems, "n_head");
  }
}

void read_gpt2(FieldReader& fields, ModelConfig& config) {
  constexpr ActivationKind kActivations[] = {ActivationKind::kGeluTanh, ActivationKind::kGelu};
  read_gpt2_sizes(fields, config);
  config.norm = NormKind::kLayer;
  config.norm_bias = config.mlp_bias = config.attention_bias = config.attention_out_bias = true;
  config.norm_eps = fields.number("layer_norm_epsilon", 1e-5, kEpsRange);
  config.mlp = read_activation(fields, config, "activation_function", ActivationKind::kGeluTanh,
                               kActivations);
  config.position = PositionKind::kLearned;
  config.tie_word_embeddings = fields.boolean("tie_word_embeddings", true);
  const std::pair<const char*, bool> only[] = {{"scale_attn_weights", true},
                                               {"scale_attn_by_inverse_layer_idx", false},
                                               {"add_cross_attention", false}};
  for (const auto& [key, value] : only) {
    if (fields.boolean(key, value) != value) {
      fields.problems().add(key, "expected {}, the only form supported", value);
    }
    keep_field(fields, config, key);
  }
  read_special_tokens(fields, config, 50256, {50256});
  read_dtype(fields, config);
  refuse_foreign(fields, config, "gpt2", kForeign);
  refuse_misspelt_sizes(fields, kSizeNames);
}

Json write_gpt2(const ModelConfig& c) {
  Expressible family(c);
  family.need_plain();
  family.need_full_heads();
  family.need_biased_layer_norm();
  family.need(c.position == PositionKind::kLearned, "position");
  family.need(c.attention_bias, "attention_bias");
  family.need(!c.parallel_residual, "parallel_residual");
  family.throw_if_any();

  Json json = Json::object();
  json["architectures"] = architectures_json(c, "GPT2LMHeadModel");
  json["vocab_size"] = c.vocab_size;
  for (const SizeKey& key : kSizes) {
    json[key.own] = c.*key.size;
    if (kept_field(c, key.general)) json[key.general] = c.*key.size;
  }
  if (kept_field(c, "n_ctx")) json["n_ctx"] = c.max_position_embeddings;
  const Json* inner = kept_field(c, "n_inner");
  const bool usual =
      c.intermediate_size == 4 * c.hidden_size && (inner == nullptr || inner->is_null());
  json["n_inner"] = usual ? Json(nullptr) : Json(c.intermediate_size);
  json["layer_norm_epsilon"] = c.norm_eps;
  json["activation_function"] = activation_json(c, "activation_function");
  json["tie_word_embeddings"] = c.tie_word_embeddings;
  json["bos_token_id"] = bos_json(c);
  json["eos_token_id"] = eos_json(c);
  write_dtype(c, json);
  return json;
}

constexpr ModuleName kOuter[] = {{"model.embed_tokens", "transformer.wte"},
                                 {"model.embed_positions", "transformer.wpe"},
                                 {"model.norm", "transformer.ln_f"},
                                 {"lm_head", "lm_head"}};
constexpr ModuleName kInner[] = {{"input_layernorm", "ln_1"},
                                 {"post_attention_layernorm", "ln_2"},
                                 {"self_attn.q_proj", "attn.c_attn", 0, true},
                                 {"self_attn.k_proj", "attn.c_attn", 1, true},
                                 {"self_attn.v_proj", "attn.c_attn", 2, true},
                                 {"self_attn.o_proj", "attn.c_proj", -1, true},
                                 {"mlp.up_proj", "mlp.c_fc", -1, true},
                                 {"mlp.down_proj", "mlp.c_proj", -1, true}};

TensorPlace place_gpt2(const ModelConfig& config, const TensorShape& ours) {
  auto [place, part] = place_by_module(ours, kOuter, kInner, "transformer.h.");
  if (part > 0) place.begin = part * config.hidden_size;
  return place;
}

}  // namespace

extern const ModelFamily kGpt2Family;
const ModelFamily kGpt2Family{"gpt2",
                              read_gpt2,
                              write_gpt2,
                              true,
                              place_gpt2,
                              "transformer.",
                              {".attn.bias", ".attn.masked_bias"}};

}  // namespace heirloom
