// SPDX-License-Identifier: Apache-2.0
//
// GPT-NeoX (Pythia): LayerNorm, GELU, rotary positions over part of each head, attention and MLP
// side by side. One tensor holds q, k and v, head by head.
#include "heirloom/core/error.h"
#include "transformers.h"

namespace heirloom {
namespace {

constexpr RopeKeys kRope{"rotary_emb_base", "rotary_pct", 0.25};
constexpr const char* kSizes[] = {"vocab_size",          "hidden_size",
                                  "intermediate_size",   "num_hidden_layers",
                                  "num_attention_heads", "max_position_embeddings"};
constexpr const char* kForeign[] = {"mlp_bias", "sliding_window"};

void read_gpt_neox(FieldReader& fields, ModelConfig& config) {
  constexpr ActivationKind kActivations[] = {ActivationKind::kGelu, ActivationKind::kGeluTanh};
  Problems& problems = fields.problems();
  read_sizes(fields, config, {50432, 6144, 24576, 44, 64, 2048, {}, 0});
  if (config.num_key_value_heads != config.num_attention_heads) {
    problems.add("num_key_value_heads",
                 "expected none, or {} as num_attention_heads, in a {} config",
                 config.num_attention_heads, config.model_type);
  }
  if (problems.fine({"hidden_size", "num_attention_heads", "head_dim"}) &&
      config.head_dim * config.num_attention_heads != config.hidden_size) {
    problems.add("head_dim", "expected hidden_size / num_attention_heads in a {} config; got {}",
                 config.model_type, config.head_dim);
  }
  keep_field(fields, config, "num_key_value_heads");
  keep_field(fields, config, "head_dim");
  config.norm = NormKind::kLayer;
  config.norm_bias = config.mlp_bias = true;
  config.norm_eps = fields.number("layer_norm_eps", 1e-5, kEpsRange);
  config.mlp = read_activation(fields, config, "hidden_act", ActivationKind::kGelu, kActivations);
  config.attention_bias = config.attention_out_bias = fields.boolean("attention_bias", true);
  config.parallel_residual = fields.boolean("use_parallel_residual", true);
  config.tie_word_embeddings = fields.boolean("tie_word_embeddings", false);
  read_rope(fields, config, kRope);
  read_special_tokens(fields, config, 0, {2});
  read_dtype(fields, config);
  refuse_foreign(fields, config, "gpt_neox", kForeign);
  refuse_misspelt_sizes(fields, kSizes);
}

Json write_gpt_neox(const ModelConfig& c) {
  Expressible family(c);
  family.need_plain();
  family.need_full_heads();
  family.need_biased_layer_norm();
  family.need(c.position == PositionKind::kRope, "position");
  family.throw_if_any();

  Json json = Json::object();
  json["architectures"] = architectures_json(c, "GPTNeoXForCausalLM");
  json["vocab_size"] = c.vocab_size;
  json["hidden_size"] = c.hidden_size;
  json["intermediate_size"] = c.intermediate_size;
  json["num_hidden_layers"] = c.num_hidden_layers;
  json["num_attention_heads"] = c.num_attention_heads;
  json["max_position_embeddings"] = c.max_position_embeddings;
  if (kept_field(c, "num_key_value_heads")) json["num_key_value_heads"] = c.num_key_value_heads;
  if (kept_field(c, "head_dim")) json["head_dim"] = c.head_dim;
  json["layer_norm_eps"] = c.norm_eps;
  json["hidden_act"] = activation_json(c, "hidden_act");
  json["attention_bias"] = c.attention_bias;
  json["use_parallel_residual"] = c.parallel_residual;
  json["tie_word_embeddings"] = c.tie_word_embeddings;
  write_rope(c, kRope, json);
  json["bos_token_id"] = bos_json(c);
  json["eos_token_id"] = eos_json(c);
  write_dtype(c, json);
  return json;
}

constexpr ModuleName kOuter[] = {{"model.embed_tokens", "gpt_neox.embed_in"},
                                 {"model.norm", "gpt_neox.final_layer_norm"},
                                 {"lm_head", "embed_out"}};
constexpr ModuleName kInner[] = {{"input_layernorm", "input_layernorm"},
                                 {"post_attention_layernorm", "post_attention_layernorm"},
                                 {"self_attn.q_proj", "attention.query_key_value", 0},
                                 {"self_attn.k_proj", "attention.query_key_value", 1},
                                 {"self_attn.v_proj", "attention.query_key_value", 2},
                                 {"self_attn.o_proj", "attention.dense"},
                                 {"mlp.up_proj", "mlp.dense_h_to_4h"},
                                 {"mlp.down_proj", "mlp.dense_4h_to_h"}};

TensorPlace place_gpt_neox(const ModelConfig& config, const TensorShape& ours) {
  NamedPlace named = place_by_module(ours, kOuter, kInner, "gpt_neox.layers.");
  if (named.part >= 0) {
    named.place.row = [h = config.head_dim, part = named.part](int64_t row) {
      return (3 * (row / h) + part) * h + row % h;
    };
  }
  return named.place;
}

}  // namespace

extern const ModelFamily kGptNeoxFamily;
const ModelFamily kGptNeoxFamily{
    "gpt_neox",
    read_gpt_neox,
    write_gpt_neox,
    true,
    place_gpt_neox,
    "gpt_neox.",
    {".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq"}};

}  // namespace heirloom
