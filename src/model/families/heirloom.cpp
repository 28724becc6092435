// SPDX-License-Identifier: Apache-2.0
//
// model_type "heirloom": every field of ModelConfig under its own name; unknown keys are errors.
#include "../config_fields.h"
#include "heirloom/model/families/family.h"

namespace heirloom {
namespace {

/// What transformers' PretrainedConfig writes into every config.json; kept and written back, never
/// interpreted.
constexpr const char* kBookkeeping[] = {"architectures",
                                        "auto_map",
                                        "use_cache",
                                        "transformers_version",
                                        "initializer_range",
                                        "torch_dtype",
                                        "pad_token_id",
                                        "sep_token_id",
                                        "unk_token_id",
                                        "mask_token_id",
                                        "decoder_start_token_id",
                                        "_name_or_path",
                                        "name_or_path",
                                        "_commit_hash",
                                        "_attn_implementation",
                                        "_attn_implementation_autoset",
                                        "attn_implementation",
                                        "return_dict",
                                        "output_hidden_states",
                                        "output_attentions",
                                        "torchscript",
                                        "is_decoder",
                                        "is_encoder_decoder",
                                        "add_cross_attention",
                                        "cross_attention_hidden_size",
                                        "tie_encoder_decoder",
                                        "pruned_heads",
                                        "chunk_size_feed_forward",
                                        "id2label",
                                        "label2id",
                                        "num_labels",
                                        "problem_type",
                                        "finetuning_task",
                                        "task_specific_params",
                                        "tokenizer_class",
                                        "prefix",
                                        "pretraining_tp",
                                        "tf_legacy_loss",
                                        "use_bfloat16",
                                        "license"};

constexpr const char* kNorms[] = {"rmsnorm", "layernorm"};
constexpr const char* kMlps[] = {"swiglu", "gelu", "gelu_tanh"};
constexpr const char* kPositions[] = {"rope", "learned"};
constexpr const char* kRopeStyles[] = {"half", "interleaved"};

/// The enum value of a name in one of the lists above, which stand in the enums' order.
template <class Enum>
Enum enum_choice(FieldReader& fields, const char* key, std::span<const char* const> names) {
  const std::string name = fields.choice(key, names[0], names);
  for (size_t i = 0; i < names.size(); ++i) {
    if (name == names[i]) return static_cast<Enum>(i);
  }
  return Enum{};
}

void read_attention(FieldReader& fields, ModelConfig& config) {
  static constexpr const char* kKinds[] = {"softmax", "mla"};
  const Json* object = fields.object("attention");
  if (object == nullptr) return;
  FieldReader attention(*object, "attention", fields.problems());
  if (attention.choice("kind", {}, kKinds) == "mla") {
    LatentAttentionConfig& latent = config.latent;
    latent.kv_lora_rank = attention.integer("kv_lora_rank", {}, 1, kMaxWidth);
    latent.qk_rope_head_dim = attention.integer("qk_rope_head_dim", {}, 2, kMaxHeadDim);
    latent.qk_nope_head_dim = attention.integer("qk_nope_head_dim", {}, 1, kMaxHeadDim);
    latent.v_head_dim = attention.integer("v_head_dim", {}, 1, kMaxHeadDim);
    latent.q_lora_rank = attention.integer("q_lora_rank", 0, 1, kMaxWidth);
    if (latent.qk_rope_head_dim % 2 != 0) {
      fields.problems().add("attention.qk_rope_head_dim", "expected an even number; got {}",
                            latent.qk_rope_head_dim);
    }
  }
  if (fields.problems().fine({"attention.kind"})) attention.reject_unknown();
}

void read_value_residual(FieldReader& fields, ModelConfig& config) {
  static constexpr const char* kModes[] = {"none",   "identity",  "constant",
                                           "sparse", "learnable", "learnable-plus"};
  const Json* object = fields.object("value_residual");
  if (object == nullptr) return;
  Problems& problems = fields.problems();
  FieldReader residual(*object, "value_residual", problems);
  ValueResidualConfig& to = config.value_residual;
  to.mode = residual.choice("mode", {}, kModes);
  if (!problems.fine({"value_residual.mode"})) return;
  const auto weights = [&](double v1, double own) {
    to.v1 = residual.number("v1", v1, kWeightRange);
    to.own = residual.number("own", own, kWeightRange);
  };
  if (to.mode == "identity") weights(0.5, 0.5);
  if (to.mode == "constant") weights(2, 1);
  if (to.mode == "sparse") {
    weights(5, 1);
    const Json* layers = residual.take("layers");
    bool good = layers != nullptr && layers->is_array() && !layers->empty() &&
                layers->size() <= static_cast<size_t>(kMaxLayers);
    if (good) {
      for (const Json& layer : *layers) {
        good = good && layer.is_number_integer() && layer >= 1 && layer <= kMaxLayers;
      }
    }
    if (good) {
      to.layers = layers->get<std::vector<int64_t>>();
    } else {
      problems.add("value_residual.layers", "expected a list of layers, from 2 on; {}",
                   layers == nullptr ? "it is missing" : "got " + quote_json(*layers));
    }
  }
  residual.reject_unknown();
}

void read_heirloom(FieldReader& fields, ModelConfig& config) {
  Problems& problems = fields.problems();
  read_sizes(fields, config, {});
  config.norm = enum_choice<NormKind>(fields, "norm", kNorms);
  config.norm_eps = fields.number("norm_eps", 1e-6, kEpsRange);
  config.norm_bias = fields.boolean("norm_bias", false);
  config.mlp = enum_choice<ActivationKind>(fields, "mlp", kMlps);
  config.mlp_bias = fields.boolean("mlp_bias", false);
  config.attention_bias = fields.boolean("attention_bias", false);
  config.attention_out_bias = fields.boolean("attention_out_bias", config.attention_bias);
  config.position = enum_choice<PositionKind>(fields, "position", kPositions);
  config.rope_theta = fields.number("rope_theta", 10000.0, kThetaRange);
  config.rope_style = enum_choice<RopeStyle>(fields, "rope_style", kRopeStyles);
  config.partial_rotary_factor = fields.number("partial_rotary_factor", 1.0, kPartialRange);
  if (const Json* scaling = fields.object("rope_scaling")) {
    read_rope_scaling(*scaling, "rope_scaling", RopeForm::kScaling, problems, config.rope_scaling);
  }
  config.qk_norm = fields.boolean("qk_norm", false);
  config.tie_word_embeddings = fields.boolean("tie_word_embeddings", false);
  config.parallel_residual = fields.boolean("parallel_residual", false);
  config.sliding_window = fields.integer("sliding_window", 0, 1, kMaxCount);
  read_special_tokens(fields, config, {}, {});
  read_stored_dtype(fields, config);
  read_attention(fields, config);
  if (const Json* object = fields.object("kv_sharing")) {
    read_kv_sharing(*object, "kv_sharing", problems, config.kv_sharing);
  }
  read_value_residual(fields, config);
  if (const Json* object = fields.object("neutreno")) {
    FieldReader neutreno(*object, "neutreno", problems);
    config.neutreno_lambda = neutreno.number("lambda", 0.0, kWeightRange);
    neutreno.reject_unknown();
  }
  if (const Json* object = fields.object("depth_weighted_average")) {
    FieldReader average(*object, "depth_weighted_average", problems);
    DepthWeightedAverageConfig to;
    to.dilation = average.integer("dilation", 1, 1, kMaxLayers);
    to.period = average.integer("period", 1, 1, kMaxLayers);
    average.reject_unknown();
    config.depth_weighted_average = to;
  }
  for (const char* key : kBookkeeping) {
    if (fields.has(key)) config.kept[key] = fields.json()[key];
    fields.allow(key);
  }
  fields.reject_unknown();
}

Json attention_json(const LatentAttentionConfig& latent) {
  if (latent.kv_lora_rank == 0) return {{"kind", "softmax"}};
  Json json = {{"kind", "mla"},
               {"kv_lora_rank", latent.kv_lora_rank},
               {"qk_rope_head_dim", latent.qk_rope_head_dim},
               {"qk_nope_head_dim", latent.qk_nope_head_dim},
               {"v_head_dim", latent.v_head_dim},
               {"q_lora_rank", nullptr}};
  if (latent.q_lora_rank > 0) json["q_lora_rank"] = latent.q_lora_rank;
  return json;
}

Json value_residual_json(const ValueResidualConfig& residual) {
  Json json = {{"mode", residual.mode}};
  if (residual.mode == "sparse") json["layers"] = residual.layers;
  if (residual.mode == "identity" || residual.mode == "constant" || residual.mode == "sparse") {
    json["v1"] = residual.v1;
    json["own"] = residual.own;
  }
  return json;
}

Json write_heirloom(const ModelConfig& c) {
  Json json = Json::object();
  json["vocab_size"] = c.vocab_size;
  json["hidden_size"] = c.hidden_size;
  json["intermediate_size"] = c.intermediate_size;
  json["num_hidden_layers"] = c.num_hidden_layers;
  json["num_attention_heads"] = c.num_attention_heads;
  json["num_key_value_heads"] = c.num_key_value_heads;
  json["head_dim"] = c.head_dim;
  json["max_position_embeddings"] = c.max_position_embeddings;
  json["norm"] = kNorms[static_cast<size_t>(c.norm)];
  json["norm_eps"] = c.norm_eps;
  json["norm_bias"] = c.norm_bias;
  json["mlp"] = kMlps[static_cast<size_t>(c.mlp)];
  json["mlp_bias"] = c.mlp_bias;
  json["attention_bias"] = c.attention_bias;
  json["attention_out_bias"] = c.attention_out_bias;
  json["position"] = kPositions[static_cast<size_t>(c.position)];
  json["rope_theta"] = c.rope_theta;
  json["rope_style"] = kRopeStyles[static_cast<size_t>(c.rope_style)];
  json["partial_rotary_factor"] = c.partial_rotary_factor;
  json["rope_scaling"] = rope_scaling_json(c.rope_scaling);
  json["qk_norm"] = c.qk_norm;
  json["tie_word_embeddings"] = c.tie_word_embeddings;
  json["parallel_residual"] = c.parallel_residual;
  json["sliding_window"] = c.sliding_window > 0 ? Json(c.sliding_window) : Json(nullptr);
  json["bos_token_id"] = bos_json(c);
  json["eos_token_id"] = eos_json(c);
  json["dtype"] = c.stored_dtype;
  if (c.kept.is_object() && c.kept.contains("torch_dtype")) json["torch_dtype"] = c.stored_dtype;
  json["attention"] = attention_json(c.latent);
  json["kv_sharing"] = kv_sharing_json(c.kv_sharing);
  json["value_residual"] = value_residual_json(c.value_residual);
  json["neutreno"] = {{"lambda", c.neutreno_lambda}};
  json["depth_weighted_average"] = nullptr;
  if (c.depth_weighted_average) {
    json["depth_weighted_average"] = {{"dilation", c.depth_weighted_average->dilation},
                                      {"period", c.depth_weighted_average->period}};
  }
  return json;
}

}  // namespace

extern const ModelFamily kHeirloomFamily;
const ModelFamily kHeirloomFamily{"heirloom", read_heirloom, write_heirloom, false};

}  // namespace heirloom
