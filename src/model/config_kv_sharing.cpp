// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "config_fields.h"

namespace heirloom {
namespace {

constexpr int kMaxSplitDepth = 8;

/// Which fields a scheme has, besides its name.
struct SchemeFields {
  const char* name;
  bool ratio, injection, start, group;
};
constexpr SchemeFields kSchemes[] = {
    {"none", false, false, false, false},     {"skipv1", true, true, false, false},
    {"skipkv1", true, false, false, false},   {"skipv1-yoco", true, false, true, false},
    {"yoco", false, false, true, false},      {"yoco-v", false, false, true, false},
    {"cla", false, false, false, true},       {"cla-v", false, false, false, true},
    {"svformer", false, false, false, false}, {"split", false, false, false, false},
    {"explicit", false, false, false, false},
};
constexpr const char* kInjections[] = {"tail", "dynamic", "odd-even", "pooling"};

const SchemeFields* find_scheme(const std::string& name) {
  for (const SchemeFields& scheme : kSchemes) {
    if (name == scheme.name) return &scheme;
  }
  return nullptr;
}

std::shared_ptr<const KvSharingConfig> read_half(FieldReader& fields, const std::string& key,
                                                 int depth) {
  auto half = std::make_shared<KvSharingConfig>();
  if (const Json* object = fields.object(key)) {
    read_kv_sharing(*object, fields.path_of(key), fields.problems(), *half, depth + 1);
  } else if (!fields.has(key) || fields.json()[key].is_null()) {
    fields.problems().add(fields.path_of(key), "expected a scheme; it is missing");
  }
  return half;
}

Json read_table(FieldReader& fields, const std::string& key) {
  const Json* table = fields.take(key);
  if (table != nullptr && table->is_array()) return *table;
  fields.problems().add(fields.path_of(key), "expected [[source per KV head] per layer]; {}",
                        table == nullptr ? "it is missing" : "got " + quote_json(*table));
  return Json::array();
}

}  // namespace

void read_kv_sharing(const Json& object, const std::string& path, Problems& problems,
                     KvSharingConfig& sharing, int depth) {
  if (depth > kMaxSplitDepth) {
    problems.add(path, "expected at most {} splits inside each other", kMaxSplitDepth);
    return;
  }
  FieldReader fields(object, path, problems);
  std::vector<const char*> names;
  for (const SchemeFields& scheme : kSchemes) names.push_back(scheme.name);
  const std::string name = fields.choice("scheme", {}, names);
  if (!problems.fine({fields.path_of("scheme").c_str()})) return;
  const SchemeFields& scheme = *find_scheme(name);
  sharing.scheme = name;
  if (scheme.ratio) sharing.ratio = fields.number("ratio", 0.5, {0, 1});
  if (scheme.injection) {
    sharing.source_layer = fields.integer("source_layer", 1, 0, kMaxLayers);
    sharing.injection = fields.choice("injection", "tail", kInjections);
  }
  if (scheme.start) sharing.start = fields.integer("start", 0, 1, kMaxLayers);
  if (scheme.group) sharing.group = fields.integer("group", 2, 1, kMaxLayers);
  if (name == "split") {
    sharing.keys = read_half(fields, "keys", depth);
    sharing.values = read_half(fields, "values", depth);
  } else if (name == "explicit") {
    sharing.explicit_keys = read_table(fields, "keys");
    sharing.explicit_values = read_table(fields, "values");
  }
  fields.reject_unknown();
}

Json kv_sharing_json(const KvSharingConfig& sharing) {
  Json json = {{"scheme", sharing.scheme}};
  const SchemeFields* scheme = find_scheme(sharing.scheme);
  if (scheme == nullptr) return json;
  if (scheme->ratio) json["ratio"] = sharing.ratio;
  if (scheme->injection) {
    json["source_layer"] = sharing.source_layer;
    json["injection"] = sharing.injection;
  }
  if (scheme->start && sharing.start > 0) json["start"] = sharing.start;
  if (scheme->group) json["group"] = sharing.group;
  if (sharing.scheme == "split") {
    if (sharing.keys) json["keys"] = kv_sharing_json(*sharing.keys);
    if (sharing.values) json["values"] = kv_sharing_json(*sharing.values);
  } else if (sharing.scheme == "explicit") {
    json["keys"] = sharing.explicit_keys;
    json["values"] = sharing.explicit_values;
  }
  return json;
}

void check_kv_sharing(const ModelConfig& config, const KvSharingConfig& sharing,
                      const std::string& path, Problems& problems) {
  const SchemeFields* scheme = find_scheme(sharing.scheme);
  if (scheme == nullptr) {
    problems.add(path + ".scheme", "expected a known scheme; got \"{}\"", sharing.scheme);
    return;
  }
  const int64_t layers = config.num_hidden_layers, heads = config.num_key_value_heads;
  // The ratio cuts the latent where there is one, KV heads elsewhere.
  const bool latent = config.latent.kv_lora_rank > 0;
  const int64_t cut = latent ? config.latent.kv_lora_rank : heads;
  if (scheme->ratio &&
      problems.fine({"num_key_value_heads", "num_attention_heads", "attention.kv_lora_rank"})) {
    const double inherited = sharing.ratio * static_cast<double>(cut);
    if (!(sharing.ratio >= 0 && sharing.ratio <= 1) ||
        std::abs(inherited - std::round(inherited)) > 1e-6) {
      problems.add(path + ".ratio",
                   "expected a ratio from 0 to 1 that inherits a whole number of the {} {}; got {} "
                   "(= {})",
                   cut, latent ? "latent columns" : "KV heads", sharing.ratio, inherited);
    }
  }
  if (scheme->injection) {
    if (problems.fine({"num_hidden_layers"}) &&
        (sharing.source_layer < 0 || sharing.source_layer > layers)) {
      problems.add(path + ".source_layer", "expected a layer from 1 to {}, or 0 for none; got {}",
                   layers, sharing.source_layer);
    }
    if (std::find(std::begin(kInjections), std::end(kInjections), sharing.injection) ==
        std::end(kInjections)) {
      problems.add(path + ".injection", "expected one of {}; got \"{}\"",
                   fmt::join(kInjections, ", "), sharing.injection);
    }
    if (sharing.injection == "odd-even" && std::abs(sharing.ratio - 0.5) > 1e-6) {
      problems.add(path + ".injection", "expected ratio 0.5 with injection odd-even; got {}",
                   sharing.ratio);
    }
  }
  if (scheme->start && problems.fine({"num_hidden_layers"}) &&
      (sharing.start < 0 || sharing.start > layers)) {
    problems.add(path + ".start", "expected a layer from 1 to {}; got {}", layers, sharing.start);
  }
  if (scheme->group && sharing.group < 1) {
    problems.add(path + ".group", "expected at least 1; got {}", sharing.group);
  }
  if (sharing.scheme == "split") {
    if (!sharing.keys || !sharing.values) {
      problems.add(path, "expected split to name a scheme for keys and one for values");
      return;
    }
    check_kv_sharing(config, *sharing.keys, path + ".keys", problems);
    check_kv_sharing(config, *sharing.values, path + ".values", problems);
  }
}

}  // namespace heirloom
