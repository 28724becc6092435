// SPDX-License-Identifier: Apache-2.0
#include "heirloom/model/config.h"

#include <filesystem>

#include "config_fields.h"
#include "heirloom/core/error.h"
#include "heirloom/model/families/family.h"

namespace heirloom {
namespace {

const ModelFamily& family_of(const std::string& model_type, const std::string& origin) {
  if (const ModelFamily* family = find_model_family(model_type)) return *family;
  const std::vector<std::string> names = model_family_names();
  const std::string near = model_type.size() > 60 ? "" : nearest_key(model_type, names);
  throw_error<ConfigError>("[config] {}: model_type: expected one of {}; got {}{}", origin,
                           fmt::join(names, ", "), quote_json(Json(model_type)),
                           near.empty() ? "" : fmt::format("; did you mean \"{}\"?", near));
}

}  // namespace

int64_t ModelConfig::rotary_dim() const {
  if (position != PositionKind::kRope) return 0;
  if (latent.kv_lora_rank > 0) return latent.qk_rope_head_dim;
  return static_cast<int64_t>(static_cast<double>(head_dim) * partial_rotary_factor);
}

ModelConfig parse_model_config(const Json& json, const std::string& origin) {
  Problems problems(origin);
  FieldReader fields(json, "", problems);
  problems.throw_if_any();
  const Json* type = fields.take("model_type");
  if (type == nullptr || !type->is_string()) {
    throw_error<ConfigError>("[config] {}: model_type: expected one of {}; {}", origin,
                             fmt::join(model_family_names(), ", "),
                             type == nullptr ? "it is missing" : "got " + quote_json(*type));
  }
  const ModelFamily& family = family_of(type->get<std::string>(), origin);
  ModelConfig config;
  config.model_type = family.model_type;
  config.kept = Json::object();
  family.read(fields, config);
  if (family.keeps_unknown_keys) fields.copy_unknown(config.kept);
  check_model_config(config, problems);
  problems.throw_if_any();
  return config;
}

ModelConfig read_model_config(const std::string& path) {
  if (heirloom::is_directory(path)) {
    const std::string file = (std::filesystem::path(path) / "config.json").string();
    return parse_model_config(read_json_file(file), file);
  }
  return parse_model_config(read_json_file(path, JsonComments::kAllowed), path);
}

ModelConfig with_model_type(const ModelConfig& config, const std::string& model_type) {
  if (config.model_type == model_type) return config;
  ModelConfig result = config;
  result.model_type = family_of(model_type, "model config").model_type;
  result.kept = Json::object();
  for (const char* key : {"use_cache", "initializer_range", "pad_token_id"}) {
    if (config.kept.is_object() && config.kept.contains(key)) result.kept[key] = config.kept[key];
  }
  return result;
}

Json model_config_json(const ModelConfig& config) {
  const ModelFamily& family = family_of(config.model_type, "model config");
  Json json = {{"model_type", config.model_type}};
  json.update(family.write(config));
  if (config.kept.is_object()) {
    for (const auto& [key, value] : config.kept.items()) {
      if (!json.contains(key)) json[key] = value;
    }
  }
  return json;
}

}  // namespace heirloom
