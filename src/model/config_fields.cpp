// SPDX-License-Identifier: Apache-2.0
#include "config_fields.h"

namespace heirloom {
namespace {

constexpr int64_t kMaxEosTokens = 256;

bool is_token_id(const Json& value) {
  return value.is_number_integer() && value >= 0 && value <= kMaxCount;
}

}  // namespace

void derive_head_dim(ModelConfig& config, Problems& problems, const char* key) {
  config.head_dim = config.hidden_size / config.num_attention_heads;
  if (config.hidden_size % config.num_attention_heads != 0 || config.head_dim > kMaxHeadDim) {
    problems.add(key,
                 "expected hidden_size / num_attention_heads to be whole and at most {}; got {} / "
                 "{}; give head_dim",
                 kMaxHeadDim, config.hidden_size, config.num_attention_heads);
  }
}

void read_sizes(FieldReader& fields, ModelConfig& config, const SizeDefaults& defaults) {
  config.vocab_size = fields.integer("vocab_size", defaults.vocab_size, 1, kMaxCount);
  config.hidden_size = fields.integer("hidden_size", defaults.hidden_size, 1, kMaxWidth);
  config.intermediate_size =
      fields.integer("intermediate_size", defaults.intermediate_size, 1, kMaxMlpWidth);
  config.num_hidden_layers =
      fields.integer("num_hidden_layers", defaults.num_hidden_layers, 1, kMaxLayers);
  config.num_attention_heads =
      fields.integer("num_attention_heads", defaults.num_attention_heads, 1, kMaxHeads);
  const int64_t kv_heads = fields.has("num_key_value_heads")
                               ? config.num_attention_heads
                               : defaults.num_key_value_heads.value_or(config.num_attention_heads);
  config.num_key_value_heads = fields.integer("num_key_value_heads", kv_heads, 1, kMaxHeads);
  config.max_position_embeddings =
      fields.integer("max_position_embeddings", defaults.max_position_embeddings, 1, kMaxCount);
  config.head_dim = fields.integer("head_dim", defaults.head_dim, 1, kMaxHeadDim);
  Problems& problems = fields.problems();
  if (config.head_dim == 0 && problems.fine({"hidden_size", "num_attention_heads", "head_dim"})) {
    derive_head_dim(config, problems, "head_dim");
  }
}

void read_special_tokens(FieldReader& fields, ModelConfig& config, std::optional<int64_t> bos,
                         std::vector<int64_t> eos) {
  Problems& problems = fields.problems();
  config.bos_token_id = fields.has("bos_token_id") ? std::nullopt : bos;
  if (const Json* value = fields.take("bos_token_id")) {
    if (is_token_id(*value)) {
      config.bos_token_id = value->get<int64_t>();
    } else {
      problems.add(fields.path_of("bos_token_id"), "expected a token id or null; got {}",
                   quote_json(*value));
    }
  }
  config.eos_token_ids = fields.has("eos_token_id") ? std::vector<int64_t>{} : std::move(eos);
  if (const Json* value = fields.take("eos_token_id")) {
    const bool list = value->is_array();
    bool good = !list || static_cast<int64_t>(value->size()) <= kMaxEosTokens;
    if (list && good) {
      for (const Json& id : *value) good = good && is_token_id(id);
    } else {
      good = good && is_token_id(*value);
    }
    if (!good) {
      problems.add(fields.path_of("eos_token_id"),
                   "expected a token id, a list of at most {} of them, or null; got {}",
                   kMaxEosTokens, quote_json(*value));
    } else if (list) {
      config.eos_token_ids = value->get<std::vector<int64_t>>();
    } else {
      config.eos_token_ids = {value->get<int64_t>()};
    }
  }
}

Json bos_json(const ModelConfig& config) {
  return config.bos_token_id ? Json(*config.bos_token_id) : Json(nullptr);
}

Json eos_json(const ModelConfig& config) {
  if (config.eos_token_ids.empty()) return nullptr;
  if (config.eos_token_ids.size() == 1) return config.eos_token_ids[0];
  return config.eos_token_ids;
}

void read_stored_dtype(FieldReader& fields, ModelConfig& config) {
  static constexpr const char* kDtypes[] = {"float32", "float16", "bfloat16", "float64"};
  const std::string older = fields.choice("torch_dtype", "float32", kDtypes);
  config.stored_dtype = fields.choice("dtype", older, kDtypes);
}

void read_rope_scaling(const Json& object, const std::string& path, RopeForm form,
                       Problems& problems, RopeScaling& scaling) {
  static constexpr const char* kTypes[] = {"default", "linear", "llama3", "yarn"};
  constexpr NumberRange kFactor{1, 1e6};
  constexpr NumberRange kPositive{0, 1e6, true};
  constexpr NumberRange kFromZero{0, 1e6};
  FieldReader fields(object, path, problems);
  const char* type_key = fields.has("type") && !fields.has("rope_type") ? "type" : "rope_type";
  const std::optional<std::string> no_type =
      form == RopeForm::kParameters ? std::optional<std::string>("default") : std::nullopt;
  const std::string type = fields.choice(type_key, no_type, kTypes);
  fields.allow("rope_type");
  fields.allow("type");
  if (form == RopeForm::kParameters) {
    fields.allow("rope_theta");
    fields.allow("partial_rotary_factor");
  }
  if (!problems.fine({fields.path_of(type_key).c_str()})) return;
  if (type != "default") {
    scaling.type = type;
    scaling.factor = fields.number("factor", {}, kFactor);
  }
  if (type == "llama3") {
    scaling.low_freq_factor = fields.number("low_freq_factor", 1.0, kPositive);
    scaling.high_freq_factor = fields.number("high_freq_factor", 4.0, kPositive);
    scaling.original_max_position_embeddings =
        fields.integer("original_max_position_embeddings", {}, 1, kMaxCount);
    if (!(scaling.low_freq_factor < scaling.high_freq_factor)) {
      problems.add(fields.path_of("low_freq_factor"),
                   "expected a number below high_freq_factor ({}); got {}",
                   scaling.high_freq_factor, scaling.low_freq_factor);
    }
  } else if (type == "yarn") {
    scaling.beta_fast = fields.number("beta_fast", 32.0, kPositive);
    scaling.beta_slow = fields.number("beta_slow", 1.0, kPositive);
    scaling.attention_factor = fields.number("attention_factor", 0.0, kFromZero);
    scaling.mscale = fields.number("mscale", 0.0, kFromZero);
    scaling.mscale_all_dim = fields.number("mscale_all_dim", 0.0, kFromZero);
    scaling.original_max_position_embeddings =
        fields.integer("original_max_position_embeddings", 0, 1, kMaxCount);
    scaling.truncate = fields.boolean("truncate", true);
    if (scaling.beta_fast < scaling.beta_slow) {
      problems.add(fields.path_of("beta_fast"), "expected at least beta_slow ({}); got {}",
                   scaling.beta_slow, scaling.beta_fast);
    }
  }
  fields.reject_unknown();
}

Json rope_scaling_json(const RopeScaling& scaling) {
  if (scaling.type.empty()) return nullptr;
  Json json = {{"rope_type", scaling.type}, {"factor", scaling.factor}};
  if (scaling.type == "llama3") {
    json["low_freq_factor"] = scaling.low_freq_factor;
    json["high_freq_factor"] = scaling.high_freq_factor;
  } else if (scaling.type == "yarn") {
    json["beta_fast"] = scaling.beta_fast;
    json["beta_slow"] = scaling.beta_slow;
    if (scaling.attention_factor > 0) json["attention_factor"] = scaling.attention_factor;
    if (scaling.mscale > 0) json["mscale"] = scaling.mscale;
    if (scaling.mscale_all_dim > 0) json["mscale_all_dim"] = scaling.mscale_all_dim;
    if (!scaling.truncate) json["truncate"] = false;
  }
  if (scaling.original_max_position_embeddings > 0) {
    json["original_max_position_embeddings"] = scaling.original_max_position_embeddings;
  }
  return json;
}

}  // namespace heirloom
