// SPDX-License-Identifier: Apache-2.0
//
// LLaMA and its kin: RMSNorm, SwiGLU, rotary positions, and this project's own tensor names. They
// differ in what their configs can say and in transformers' defaults, which is the table below.
#include "transformers.h"

namespace heirloom {
namespace {

enum class BiasRule : uint8_t {
  kNone,
  kOption,        ///< attention_bias: q, k, v and o alike
  kQueryKeyValue  ///< always q, k and v, never o
};

enum class WindowRule : uint8_t {
  kNone,
  kPlain,    ///< sliding_window, a number or null
  kByLayer,  ///< use_sliding_window, sliding_window, max_window_layers, layer_types
};

struct LlamaKin {
  const char* model_type;
  const char* architecture;
  BiasRule attention_bias;
  bool mlp_bias_option;
  bool qk_norm;
  WindowRule window;
  SizeDefaults sizes;
  std::optional<int64_t> bos, eos;
};

constexpr const char* kSizes[] = {
    "vocab_size",          "hidden_size",         "intermediate_size",       "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "max_position_embeddings", "head_dim"};

constexpr LlamaKin kLlama{"llama",
                          "LlamaForCausalLM",
                          BiasRule::kOption,
                          true,
                          false,
                          WindowRule::kNone,
                          {32000, 4096, 11008, 32, 32, 2048, {}, 0},
                          1,
                          2};
constexpr LlamaKin kMistral{"mistral",
                            "MistralForCausalLM",
                            BiasRule::kNone,
                            false,
                            false,
                            WindowRule::kPlain,
                            {32000, 4096, 14336, 32, 32, 131072, 8, 0},
                            1,
                            2};
constexpr LlamaKin kQwen2{"qwen2",
                          "Qwen2ForCausalLM",
                          BiasRule::kQueryKeyValue,
                          false,
                          false,
                          WindowRule::kByLayer,
                          {151936, 4096, 22016, 32, 32, 32768, 32, 0},
                          {},
                          {}};
constexpr LlamaKin kQwen3{"qwen3",
                          "Qwen3ForCausalLM",
                          BiasRule::kOption,
                          false,
                          true,
                          WindowRule::kByLayer,
                          {151936, 4096, 22016, 32, 32, 32768, 32, 128},
                          {},
                          {}};

constexpr int64_t kDefaultWindow = 4096, kDefaultMaxWindowLayers = 28;
constexpr const char *kFull = "full_attention", *kSliding = "sliding_attention";

/// Of layer_types: the layers that slide; nullopt when it is absent. Problems are noted.
std::optional<int64_t> sliding_layers(FieldReader& fields, int64_t layers) {
  const Json* types = fields.take("layer_types");
  if (types == nullptr) return {};
  int64_t sliding = 0;
  bool good = types->is_array() && static_cast<int64_t>(types->size()) == layers;
  if (good) {
    for (const Json& type : *types) {
      good = good && (type == kFull || type == kSliding);
      sliding += type == kSliding;
    }
  }
  if (!good && fields.problems().fine({"num_hidden_layers"})) {
    fields.problems().add("layer_types", "expected a list of {} times {} or {}; got {}", layers,
                          kFull, kSliding, quote_json(*types));
  }
  return good ? sliding : 0;
}

/// The window of all layers; 0: none.
int64_t read_window(FieldReader& fields, WindowRule rule, int64_t layers) {
  Problems& problems = fields.problems();
  const int64_t absent = fields.has("sliding_window") ? 0 : kDefaultWindow;
  const int64_t window = fields.integer("sliding_window", absent, 1, kMaxCount);
  const std::optional<int64_t> listed = sliding_layers(fields, layers);
  if (rule == WindowRule::kPlain) {
    if (listed && *listed != (window > 0 ? layers : 0)) {
      problems.add("layer_types", "expected {} in every layer with sliding_window {}; got {} of {}",
                   window > 0 ? kSliding : kFull, window > 0 ? Json(window).dump() : "null",
                   *listed, layers);
    }
    return window;
  }
  const bool used = fields.boolean("use_sliding_window", false) && window > 0;
  const int64_t from = fields.integer("max_window_layers", kDefaultMaxWindowLayers, 0, kMaxCount);
  const int64_t sliding = listed ? *listed : used ? std::max<int64_t>(layers - from, 0) : 0;
  if (sliding != 0 && sliding != layers && problems.fine({"layer_types", "num_hidden_layers"})) {
    problems.add(listed ? "layer_types" : "max_window_layers",
                 "expected a window in all layers or in none; got it in {} of {}", sliding, layers);
  }
  if (sliding != 0 && !used) {
    problems.add("use_sliding_window",
                 "expected true, and a number as sliding_window, with layer_types of {}; got {}",
                 kSliding, window > 0 ? "false" : "no window");
  }
  return sliding != 0 ? window : 0;
}

constexpr const char* kWindowKeys[] = {"sliding_window", "use_sliding_window", "max_window_layers",
                                       "layer_types"};

void write_window(const ModelConfig& c, WindowRule rule, Json& json) {
  if (rule == WindowRule::kNone) return;
  const int64_t layers = c.num_hidden_layers, window = c.sliding_window;
  Json kept = Json::object();
  for (const char* key : kWindowKeys) {
    if (const Json* field = kept_field(c, key)) kept[key] = *field;
  }
  if (!kept.empty()) {
    // As they came, where they still say the same.
    Problems problems("window");
    FieldReader fields(kept, "", problems);
    if (read_window(fields, rule, layers) == window && problems.empty()) {
      json.update(kept);
      return;
    }
  }
  json["sliding_window"] = window > 0 ? Json(window) : Json(nullptr);
  if (rule == WindowRule::kByLayer) {
    json["use_sliding_window"] = window > 0;
    json["max_window_layers"] = window > 0 ? 0 : layers;
  }
  if (kept.contains("layer_types")) {
    json["layer_types"] =
        std::vector<std::string>(static_cast<size_t>(layers), window > 0 ? kSliding : kFull);
  }
}

template <const LlamaKin& kKin>
void read(FieldReader& fields, ModelConfig& config) {
  constexpr ActivationKind kActivations[] = {ActivationKind::kSwiglu};
  read_sizes(fields, config, kKin.sizes);
  config.norm = NormKind::kRms;
  config.norm_eps = fields.number("rms_norm_eps", 1e-6, kEpsRange);
  config.mlp = read_activation(fields, config, "hidden_act", ActivationKind::kSwiglu, kActivations);
  std::vector<const char*> foreign;
  if (kKin.mlp_bias_option) {
    config.mlp_bias = fields.boolean("mlp_bias", false);
  } else {
    foreign.push_back("mlp_bias");
  }
  switch (kKin.attention_bias) {
    case BiasRule::kNone:
      foreign.push_back("attention_bias");
      break;
    case BiasRule::kOption:
      config.attention_bias = config.attention_out_bias = fields.boolean("attention_bias", false);
      break;
    case BiasRule::kQueryKeyValue:
      config.attention_bias = true;
      if (fields.has("attention_bias") && fields.json()["attention_bias"] == false) {
        fields.problems().add("attention_bias",
                              "expected none: a {} model always has biases of q, k and v",
                              kKin.model_type);
      }
      break;
  }
  config.qk_norm = kKin.qk_norm;
  config.tie_word_embeddings = fields.boolean("tie_word_embeddings", false);
  read_rope(fields, config, {});
  if (kKin.window == WindowRule::kNone) {
    foreign.insert(foreign.end(), {"sliding_window", "use_sliding_window"});
  } else {
    config.sliding_window = read_window(fields, kKin.window, config.num_hidden_layers);
    for (const char* key : kWindowKeys) keep_field(fields, config, key);
  }
  read_special_tokens(fields, config, kKin.bos,
                      kKin.eos ? std::vector<int64_t>{*kKin.eos} : std::vector<int64_t>{});
  read_dtype(fields, config);
  refuse_foreign(fields, config, kKin.model_type, foreign);
  refuse_misspelt_sizes(fields, kSizes);
}

template <const LlamaKin& kKin>
Json write(const ModelConfig& c) {
  Expressible family(c);
  family.need_plain();
  family.need(c.norm == NormKind::kRms && !c.norm_bias, "norm");
  family.need(c.mlp == ActivationKind::kSwiglu, "mlp");
  family.need(c.position == PositionKind::kRope, "position");
  family.need(c.partial_rotary_factor == 1, "partial_rotary_factor");
  family.need(!c.parallel_residual, "parallel_residual");
  family.need(c.qk_norm == kKin.qk_norm, "qk_norm");
  family.need(kKin.mlp_bias_option || !c.mlp_bias, "mlp_bias");
  family.need(kKin.window != WindowRule::kNone || c.sliding_window == 0, "sliding_window");
  switch (kKin.attention_bias) {
    case BiasRule::kNone:
      family.need(!c.attention_bias, "attention_bias");
      family.need(!c.attention_out_bias, "attention_out_bias");
      break;
    case BiasRule::kOption:
      family.need(c.attention_out_bias == c.attention_bias, "attention_out_bias");
      break;
    case BiasRule::kQueryKeyValue:
      family.need(c.attention_bias, "attention_bias");
      family.need(!c.attention_out_bias, "attention_out_bias");
      break;
  }
  family.throw_if_any();

  Json json = Json::object();
  json["architectures"] = architectures_json(c, kKin.architecture);
  json["vocab_size"] = c.vocab_size;
  json["hidden_size"] = c.hidden_size;
  json["intermediate_size"] = c.intermediate_size;
  json["num_hidden_layers"] = c.num_hidden_layers;
  json["num_attention_heads"] = c.num_attention_heads;
  json["num_key_value_heads"] = c.num_key_value_heads;
  json["head_dim"] = c.head_dim;
  json["max_position_embeddings"] = c.max_position_embeddings;
  json["hidden_act"] = activation_json(c, "hidden_act");
  json["rms_norm_eps"] = c.norm_eps;
  if (kKin.mlp_bias_option) json["mlp_bias"] = c.mlp_bias;
  if (kKin.attention_bias == BiasRule::kOption) json["attention_bias"] = c.attention_bias;
  json["tie_word_embeddings"] = c.tie_word_embeddings;
  write_rope(c, {}, json);
  write_window(c, kKin.window, json);
  json["bos_token_id"] = bos_json(c);
  json["eos_token_id"] = eos_json(c);
  write_dtype(c, json);
  return json;
}

}  // namespace

extern const ModelFamily kLlamaFamily, kMistralFamily, kQwen2Family, kQwen3Family;
const ModelFamily kLlamaFamily{kLlama.model_type, read<kLlama>, write<kLlama>, true};
const ModelFamily kMistralFamily{kMistral.model_type, read<kMistral>, write<kMistral>, true};
const ModelFamily kQwen2Family{kQwen2.model_type, read<kQwen2>, write<kQwen2>, true};
const ModelFamily kQwen3Family{kQwen3.model_type, read<kQwen3>, write<kQwen3>, true};

}  // namespace heirloom
