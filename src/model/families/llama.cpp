// SPDX-License-Identifier: Apache-2.0
//
// model_type "llama" as transformers writes it: version 4 (rope_theta, rope_scaling, torch_dtype)
// and version 5 (rope_parameters, dtype). A config is written back in the form it came in, version
// 4's when it came from elsewhere (both versions read that one). attention_bias stands for q, k, v
// and o alike, mlp_bias for all three projections.
#include "../config_fields.h"
#include "heirloom/core/error.h"
#include "heirloom/model/families/family.h"

namespace heirloom {
namespace {

/// Fields of heirloom configs that would change the model if they were obeyed, and mislead if they
/// were kept.
constexpr const char* kForeign[] = {
    "kv_sharing", "value_residual",         "neutreno",          "attention",
    "qk_norm",    "depth_weighted_average", "parallel_residual", "quantization_config"};

void read_rope(FieldReader& fields, ModelConfig& config) {
  Problems& problems = fields.problems();
  config.rope_theta = fields.number("rope_theta", 10000.0, kThetaRange);
  const Json* scaling = fields.object("rope_scaling");
  const Json* parameters = fields.object("rope_parameters");
  if (parameters != nullptr) {
    FieldReader rope(*parameters, "rope_parameters", problems);
    config.rope_theta = rope.number("rope_theta", config.rope_theta, kThetaRange);
    if (rope.number("partial_rotary_factor", 1.0, kPartialRange) != 1) {
      problems.add("rope_parameters.partial_rotary_factor", "expected 1.0 in a llama config");
    }
    read_rope_scaling(*parameters, "rope_parameters", RopeForm::kParameters, problems,
                      config.rope_scaling);
    config.kept["rope_parameters"] = *parameters;
  } else if (scaling != nullptr) {
    read_rope_scaling(*scaling, "rope_scaling", RopeForm::kScaling, problems, config.rope_scaling);
  }
  if (fields.number("partial_rotary_factor", 1.0, kPartialRange) != 1) {
    problems.add("partial_rotary_factor",
                 "expected 1.0 in a llama config; use model_type heirloom");
  }
}

void read_llama(FieldReader& fields, ModelConfig& config) {
  static constexpr const char* kActivations[] = {"silu"};
  read_sizes(fields, config, 2048);
  fields.choice("hidden_act", "silu", kActivations);
  config.norm = NormKind::kRms;
  config.norm_eps = fields.number("rms_norm_eps", 1e-6, kEpsRange);
  config.mlp = ActivationKind::kSwiglu;
  config.mlp_bias = fields.boolean("mlp_bias", false);
  config.attention_bias = fields.boolean("attention_bias", false);
  config.attention_out_bias = config.attention_bias;
  config.tie_word_embeddings = fields.boolean("tie_word_embeddings", false);
  read_rope(fields, config);
  read_special_tokens(fields, config, 1, {2});
  if (fields.has("dtype")) config.kept["dtype"] = fields.json()["dtype"];
  read_stored_dtype(fields, config);
  for (const char* key : kForeign) {
    if (fields.take(key) != nullptr) {
      fields.problems().add(key,
                            "expected no such field in a llama config; use model_type heirloom");
    }
  }
}

void check_expressible(const ModelConfig& c) {
  Problems problems("model config as model_type llama");
  const auto need = [&](bool fits, const char* key) {
    if (!fits) problems.add(key, "expected what a llama config can say; use model_type heirloom");
  };
  need(c.norm == NormKind::kRms && !c.norm_bias, "norm");
  need(c.mlp == ActivationKind::kSwiglu, "mlp");
  need(c.position == PositionKind::kRope, "position");
  need(c.rope_style == RopeStyle::kHalf, "rope_style");
  need(c.partial_rotary_factor == 1, "partial_rotary_factor");
  need(c.attention_out_bias == c.attention_bias, "attention_out_bias");
  need(!c.qk_norm, "qk_norm");
  need(!c.parallel_residual, "parallel_residual");
  need(c.sliding_window == 0, "sliding_window");
  need(c.latent.kv_lora_rank == 0, "attention");
  need(c.kv_sharing.scheme == "none", "kv_sharing");
  need(c.value_residual.mode == "none", "value_residual");
  need(c.neutreno_lambda == 0, "neutreno");
  need(!c.depth_weighted_average, "depth_weighted_average");
  problems.throw_if_any();
}

Json write_llama(const ModelConfig& c) {
  check_expressible(c);
  const auto keeps = [&](const char* key) { return c.kept.is_object() && c.kept.contains(key); };
  Json json = Json::object();
  json["architectures"] =
      keeps("architectures") ? c.kept["architectures"] : Json::array({"LlamaForCausalLM"});
  json["vocab_size"] = c.vocab_size;
  json["hidden_size"] = c.hidden_size;
  json["intermediate_size"] = c.intermediate_size;
  json["num_hidden_layers"] = c.num_hidden_layers;
  json["num_attention_heads"] = c.num_attention_heads;
  json["num_key_value_heads"] = c.num_key_value_heads;
  json["head_dim"] = c.head_dim;
  json["max_position_embeddings"] = c.max_position_embeddings;
  json["hidden_act"] = "silu";
  json["rms_norm_eps"] = c.norm_eps;
  json["mlp_bias"] = c.mlp_bias;
  json["attention_bias"] = c.attention_bias;
  json["tie_word_embeddings"] = c.tie_word_embeddings;
  const Json scaling = rope_scaling_json(c.rope_scaling);
  if (keeps("rope_parameters")) {
    json["rope_parameters"] = scaling.is_null() ? Json{{"rope_type", "default"}} : scaling;
    json["rope_parameters"]["rope_theta"] = c.rope_theta;
  } else {
    json["rope_theta"] = c.rope_theta;
    json["rope_scaling"] = scaling;
  }
  json["bos_token_id"] = bos_json(c);
  json["eos_token_id"] = eos_json(c);
  json[keeps("dtype") ? "dtype" : "torch_dtype"] = c.stored_dtype;
  return json;
}

}  // namespace

extern const ModelFamily kLlamaFamily;
const ModelFamily kLlamaFamily{"llama", read_llama, write_llama, true};

}  // namespace heirloom
