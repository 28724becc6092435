// SPDX-License-Identifier: Apache-2.0
#include "transformers.h"

#include <algorithm>

#include "heirloom/core/error.h"

namespace heirloom {
namespace {

constexpr const char* kForeign[] = {"kv_sharing",
                                    "value_residual",
                                    "neutreno",
                                    "attention",
                                    "depth_weighted_average",
                                    "norm",
                                    "norm_eps",
                                    "norm_bias",
                                    "mlp",
                                    "attention_out_bias",
                                    "position",
                                    "rope_style",
                                    "qk_norm",
                                    "parallel_residual",
                                    "quantization_config"};

struct ActivationName {
  const char* name;
  ActivationKind kind;
};
/// The first name of a kind is the one that is written.
constexpr ActivationName kActivations[] = {{"silu", ActivationKind::kSwiglu},
                                           {"swish", ActivationKind::kSwiglu},
                                           {"gelu_new", ActivationKind::kGeluTanh},
                                           {"gelu_pytorch_tanh", ActivationKind::kGeluTanh},
                                           {"gelu_python_tanh", ActivationKind::kGeluTanh},
                                           {"gelu_fast", ActivationKind::kGeluTanh},
                                           {"gelu", ActivationKind::kGelu},
                                           {"gelu_python", ActivationKind::kGelu}};

constexpr double kDefaultTheta = 10000;

/// What an object says, of rope_scaling or of rope_parameters.
struct Rope {
  double theta = 0, partial = 0;
  RopeScaling scaling;
  bool same_as(const ModelConfig& config) const {
    return theta == config.rope_theta && partial == config.partial_rotary_factor &&
           rope_scaling_json(scaling) == rope_scaling_json(config.rope_scaling);
  }
};

/// `outside`: theta and partial of the fields beside the object. Version 5 also reads a
/// rope_scaling that holds what its rope_parameters do.
Rope read_rope_object(const Json& given, const char* path, const Rope& outside,
                      int64_t max_positions, Problems& problems) {
  Json object = given;
  const bool scaling = std::string_view(path) == "rope_scaling";
  const bool parameters =
      !scaling || object.contains("rope_theta") || object.contains("partial_rotary_factor");
  const auto type = object.find("rope_type");
  if (type != object.end() && *type == "llama3" &&
      !object.contains("original_max_position_embeddings")) {
    object["original_max_position_embeddings"] = max_positions;
  }
  Rope rope;
  FieldReader fields(object, path, problems);
  rope.theta = fields.number("rope_theta", outside.theta, kThetaRange);
  rope.partial = fields.number("partial_rotary_factor", outside.partial, kPartialRange);
  read_rope_scaling(object, path, parameters ? RopeForm::kParameters : RopeForm::kScaling, problems,
                    rope.scaling);
  return rope;
}

/// Of the fields beside the objects.
Rope read_outside(FieldReader& fields, const RopeKeys& keys) {
  Rope rope;
  rope.theta = fields.number(keys.theta, kDefaultTheta, kThetaRange);
  rope.partial = keys.partial == nullptr
                     ? 1
                     : fields.number(keys.partial, keys.default_partial, kPartialRange);
  return rope;
}

/// The kept object where it still says what the config does, else one made anew.
Json rope_object(const ModelConfig& config, const RopeKeys& keys, const char* path) {
  const Json* kept = kept_field(config, path);
  if (kept != nullptr && kept->is_object()) {
    Problems problems("rope");
    const bool theta = kept_field(config, keys.theta) != nullptr;
    const bool partial = keys.partial != nullptr && kept_field(config, keys.partial) != nullptr;
    const Rope outside{theta ? config.rope_theta : kDefaultTheta,
                       partial ? config.partial_rotary_factor : keys.default_partial,
                       {}};
    const Rope says =
        read_rope_object(*kept, path, outside, config.max_position_embeddings, problems);
    if (problems.empty() && says.same_as(config)) return *kept;
  }
  Json object = rope_scaling_json(config.rope_scaling);
  if (std::string_view(path) == "rope_scaling") return object;
  if (object.is_null()) object = {{"rope_type", "default"}};
  object["rope_theta"] = config.rope_theta;
  if (keys.partial != nullptr) object["partial_rotary_factor"] = config.partial_rotary_factor;
  return object;
}

}  // namespace

const Json* kept_field(const ModelConfig& config, const char* key) {
  if (!config.kept.is_object()) return nullptr;
  const auto it = config.kept.find(key);
  return it == config.kept.end() ? nullptr : &*it;
}

void keep_field(FieldReader& fields, ModelConfig& config, const char* key) {
  if (fields.has(key)) config.kept[key] = fields.json()[key];
}

void refuse_foreign(FieldReader& fields, ModelConfig& config, const char* model_type,
                    std::span<const char* const> extra) {
  const auto refuse = [&](const char* key, bool false_is_fine) {
    if (!fields.has(key)) return;
    const Json& value = fields.json()[key];
    if (value.is_null() || (false_is_fine && value == false)) return;
    fields.problems().add(key, "expected no such field in a {} config; got {}", model_type,
                          quote_json(value));
  };
  for (const char* key : kForeign) refuse(key, false);
  if (!fields.boolean("is_causal", true)) {
    fields.problems().add("is_causal", "expected true, the only form that predicts; got false");
  }
  keep_field(fields, config, "is_causal");
  for (const char* key : extra) refuse(key, true);
}

void refuse_misspelt_sizes(FieldReader& fields, std::span<const char* const> sizes) {
  std::vector<std::string> absent;
  for (const char* size : sizes) {
    if (!fields.has(size)) absent.emplace_back(size);
  }
  Json unknown = Json::object();
  fields.copy_unknown(unknown);
  constexpr size_t kLongKey = 60;
  for (const auto& [key, value] : unknown.items()) {
    const std::string near = key.size() > kLongKey ? "" : nearest_key(key, absent);
    if (!near.empty()) {
      fields.problems().add(near, "it is missing; did you mean it by {}?", quote_json(Json(key)));
    }
  }
}

void read_rope(FieldReader& fields, ModelConfig& config, const RopeKeys& keys) {
  Problems& problems = fields.problems();
  const Rope outside = read_outside(fields, keys);
  const Json* scaling = fields.object("rope_scaling");
  const Json* parameters = fields.object("rope_parameters");
  const auto read = [&](const Json& object, const char* path) {
    return read_rope_object(object, path, outside, config.max_position_embeddings, problems);
  };
  const Rope rope = scaling      ? read(*scaling, "rope_scaling")
                    : parameters ? read(*parameters, "rope_parameters")
                                 : outside;
  config.rope_theta = rope.theta;
  config.partial_rotary_factor = rope.partial;
  config.rope_scaling = rope.scaling;
  if (scaling && parameters && !read(*parameters, "rope_parameters").same_as(config)) {
    problems.add("rope_parameters", "expected what rope_scaling says, or only one of them; got {}",
                 quote_json(*parameters));
  }
  // Version 5 lets it override what the object says.
  const char* original = "original_max_position_embeddings";
  const int64_t stated = rope.scaling.original_max_position_embeddings;
  if (fields.has(original) && !rope.scaling.type.empty() &&
      fields.integer(original, stated, 0, kMaxCount) != stated) {
    problems.add(original, "expected {}, as the rope scaling says; got {}", stated,
                 quote_json(fields.json()[original]));
  }
  keep_field(fields, config, original);
  if (keys.partial == nullptr && rope.partial != 1) {
    problems.add(
        scaling ? "rope_scaling.partial_rotary_factor" : "rope_parameters.partial_rotary_factor",
        "expected 1.0 in a {} config; got {}; use model_type heirloom", config.model_type,
        rope.partial);
  }
  // Fields that transformers has written beside the family's own names, and never reads.
  const std::pair<const char*, double> copies[] = {
      {"rope_theta", config.rope_theta}, {"partial_rotary_factor", config.partial_rotary_factor}};
  for (const auto& [key, value] : copies) {
    if (std::string_view(keys.theta) == key) continue;
    if (fields.number(key, value, {0, kThetaRange.high, true}) != value) {
      problems.add(key, "expected {} in this {} config; got {}", value, config.model_type,
                   quote_json(fields.json()[key]));
    }
    keep_field(fields, config, key);
  }
  keep_field(fields, config, keys.theta);
  if (keys.partial != nullptr) keep_field(fields, config, keys.partial);
  keep_field(fields, config, "rope_scaling");
  keep_field(fields, config, "rope_parameters");
}

void write_rope(const ModelConfig& config, const RopeKeys& keys, Json& json) {
  const bool version_5 = kept_field(config, "rope_parameters") != nullptr;
  const Json* scaling = kept_field(config, "rope_scaling");
  const bool both = version_5 && scaling != nullptr && !scaling->is_null();
  const auto wanted = [&](const char* key) {
    return !version_5 || both || kept_field(config, key) != nullptr;
  };
  if (version_5) json["rope_parameters"] = rope_object(config, keys, "rope_parameters");
  if (!version_5 || both) json["rope_scaling"] = rope_object(config, keys, "rope_scaling");
  if (wanted(keys.theta)) json[keys.theta] = config.rope_theta;
  if (keys.partial != nullptr && wanted(keys.partial)) {
    json[keys.partial] = config.partial_rotary_factor;
  }
  if (kept_field(config, "rope_theta")) json["rope_theta"] = config.rope_theta;
  if (kept_field(config, "partial_rotary_factor")) {
    json["partial_rotary_factor"] = config.partial_rotary_factor;
  }
}

void read_dtype(FieldReader& fields, ModelConfig& config) {
  read_stored_dtype(fields, config);
  keep_field(fields, config, "dtype");
  keep_field(fields, config, "torch_dtype");
}

void write_dtype(const ModelConfig& config, Json& json) {
  const bool newer = kept_field(config, "dtype") != nullptr,
             older = kept_field(config, "torch_dtype") != nullptr;
  const bool version_5 = newer || kept_field(config, "rope_parameters") != nullptr;
  if (newer || (version_5 && !older)) json["dtype"] = config.stored_dtype;
  if (older || !version_5) json["torch_dtype"] = config.stored_dtype;
}

ActivationKind read_activation(FieldReader& fields, ModelConfig& config, const char* key,
                               ActivationKind fallback, std::span<const ActivationKind> allowed) {
  std::vector<const char*> names;
  for (const ActivationName& known : kActivations) {
    if (std::find(allowed.begin(), allowed.end(), known.kind) != allowed.end()) {
      names.push_back(known.name);
    }
  }
  keep_field(fields, config, key);
  if (fields.take(key) == nullptr) return fallback;
  const std::string name = fields.choice(key, {}, names);
  for (const ActivationName& known : kActivations) {
    if (name == known.name) return known.kind;
  }
  return fallback;
}

Json activation_json(const ModelConfig& config, const char* key) {
  const Json* kept = kept_field(config, key);
  const char* first = nullptr;
  for (const ActivationName& known : kActivations) {
    if (known.kind != config.mlp) continue;
    if (first == nullptr) first = known.name;
    if (kept != nullptr && *kept == known.name) return *kept;
  }
  return first;
}

Json architectures_json(const ModelConfig& config, const char* architecture) {
  const Json* kept = kept_field(config, "architectures");
  return kept != nullptr ? *kept : Json::array({architecture});
}

Expressible::Expressible(const ModelConfig& config)
    : config_(config), problems_("model config as model_type " + config.model_type) {}

void Expressible::need(bool fits, const char* key) {
  if (!fits) {
    problems_.add(key, "expected what a {} config can say; use model_type heirloom",
                  config_.model_type);
  }
}

void Expressible::need_plain() {
  const ModelConfig& c = config_;
  need(c.rope_style == RopeStyle::kHalf || c.position != PositionKind::kRope, "rope_style");
  need(c.latent.kv_lora_rank == 0, "attention");
  need(c.kv_sharing.scheme == "none", "kv_sharing");
  need(c.value_residual.mode == "none", "value_residual");
  need(c.neutreno_lambda == 0, "neutreno");
  need(!c.depth_weighted_average, "depth_weighted_average");
}

void Expressible::need_full_heads() {
  const ModelConfig& c = config_;
  need(c.num_key_value_heads == c.num_attention_heads, "num_key_value_heads");
  need(c.head_dim * c.num_attention_heads == c.hidden_size, "head_dim");
}

void Expressible::need_biased_layer_norm() {
  const ModelConfig& c = config_;
  need(c.norm == NormKind::kLayer && c.norm_bias, "norm");
  need(c.mlp == ActivationKind::kGelu || c.mlp == ActivationKind::kGeluTanh, "mlp");
  need(c.mlp_bias, "mlp_bias");
  need(c.attention_out_bias == c.attention_bias, "attention_out_bias");
  need(!c.qk_norm, "qk_norm");
  need(c.sliding_window == 0, "sliding_window");
}

TensorName split_tensor_name(const std::string& name) {
  constexpr std::string_view kLayers = "model.layers.";
  TensorName parts;
  parts.rest = name;
  if (name.starts_with(kLayers)) {
    const size_t dot = name.find('.', kLayers.size());
    parts.layer = name.substr(kLayers.size(), dot - kLayers.size());
    parts.rest = name.substr(dot + 1);
  }
  const size_t dot = parts.rest.rfind('.');
  parts.module = parts.rest.substr(0, dot);
  parts.kind = parts.rest.substr(dot + 1);
  return parts;
}

NamedPlace place_by_module(const TensorShape& ours, std::span<const ModuleName> outer,
                           std::span<const ModuleName> inner, const char* blocks) {
  const TensorName name = split_tensor_name(ours.name);
  const std::string at = name.layer.empty() ? "" : blocks + name.layer + ".";
  for (const ModuleName& module : name.layer.empty() ? outer : inner) {
    if (name.module != module.ours) continue;
    return {{.tensor = at + module.theirs + "." + name.kind,
             .row = {},
             .begin = 0,
             .transposed = module.transposed && name.kind == "weight"},
            module.part};
  }
  throw_error<InternalError>("[weights] expected a tensor of a model with {}; got {}", blocks,
                             ours.name);
}

}  // namespace heirloom
