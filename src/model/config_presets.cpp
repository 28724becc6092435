// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <filesystem>

#include "config_fields.h"
#include "heirloom/core/error.h"
#include "heirloom/io/embedded.h"

namespace heirloom {
namespace {

constexpr std::string_view kFolder = "models/";
constexpr std::string_view kSkipSuffix = "-skipv1";

std::vector<std::string> base_names() {
  std::vector<std::string> names;
  for (const auto& [key, text] : embedded_configs()) {
    if (key.starts_with(kFolder)) names.push_back(key.substr(kFolder.size()));
  }
  return names;
}

}  // namespace

std::vector<std::string> preset_model_names() {
  std::vector<std::string> names = base_names();
  const size_t bases = names.size();
  for (size_t i = 0; i < bases; ++i) names.push_back(names[i] + std::string(kSkipSuffix));
  std::sort(names.begin(), names.end());
  return names;
}

ModelConfig preset_model_config(const std::string& name) {
  const auto& files = embedded_configs();
  const bool skip = name.ends_with(kSkipSuffix);
  const std::string base = skip ? name.substr(0, name.size() - kSkipSuffix.size()) : name;
  const auto file = files.find(std::string(kFolder) + base);
  if (file == files.end()) {
    const std::vector<std::string> names = preset_model_names();
    const std::string near = name.size() > 60 ? "" : nearest_key(name, names);
    throw_error<ConfigError>(
        "[preset] expected a model preset; got {}{}; there are {}, each also with -skipv1 at its "
        "end",
        quote_json(Json(name)), near.empty() ? "" : fmt::format(" (did you mean \"{}\"?)", near),
        fmt::join(base_names(), ", "));
  }
  const std::string origin = "preset " + base;
  const ModelConfig plain =
      parse_model_config(parse_json(file->second, origin, JsonComments::kAllowed), origin);
  if (!skip) return plain;
  ModelConfig shared = with_model_type(plain, "heirloom");
  shared.kv_sharing = KvSharingConfig{};
  shared.kv_sharing.scheme = "skipv1";
  return shared;
}

ModelConfig resolve_model_config(const Json& model, const std::string& origin) {
  if (model.is_object()) return parse_model_config(model, origin);
  if (!model.is_string()) {
    throw_error<ConfigError>("[config] {}: expected an object, a preset's name or a path; got {}",
                             origin, quote_json(model));
  }
  const std::string text = model.get<std::string>();
  const std::vector<std::string> names = preset_model_names();
  const bool preset = std::find(names.begin(), names.end(), text) != names.end();
  std::error_code ignored;
  if (preset || !std::filesystem::exists(text, ignored)) {
    const bool path = text.find('/') != std::string::npos || text.ends_with(".json");
    if (preset || !path) return preset_model_config(text);
  }
  return read_model_config(text);
}

}  // namespace heirloom
