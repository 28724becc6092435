// SPDX-License-Identifier: Apache-2.0
#include "conversion.h"

#include <cstdio>

#include "heirloom/model/checkpoint.h"
#include "heirloom/model/kv_layout.h"
#include "heirloom/model/load.h"

namespace heirloom::cli {
namespace {

struct Size {
  int64_t parameters, elements, bytes;
  const char* dtype;
};

Size size_of(const ModelConfig& config) {
  const int64_t elements = build_kv_layout(config, build_kv_plan(config)).elements_per_token();
  const Dtype dtype = cache_dtype(config);
  return {count_parameters(config).total(), elements, elements * dtype_size(dtype),
          dtype_name(dtype)};
}

std::string heads(int64_t before, int64_t after) {
  return before == after ? fmt::format("{}", after) : fmt::format("{} -> {}", before, after);
}

bool same_change(const LayerChange& a, const LayerChange& b) {
  return a.keys_before == b.keys_before && a.keys_after == b.keys_after &&
         a.values_before == b.values_before && a.values_after == b.values_after &&
         a.keys == b.keys && a.values == b.values && a.out == b.out;
}

Json size_json(const ModelConfig& config) {
  const Size size = size_of(config);
  return {{"model_type", config.model_type},
          {"parameters", size.parameters},
          {"kv_elements_per_token", size.elements},
          {"kv_bytes_per_token", size.bytes},
          {"kv_dtype", size.dtype}};
}

}  // namespace

Json parse_kv_sharing(const std::string& text) {
  if (text.empty()) return {};
  if (text.find_first_of("{[\"") == std::string::npos) return {{"scheme", text}};
  try {
    return parse_json(text, "--kv-sharing");
  } catch (const FormatError& e) {
    throw_error<ConfigError>("{}", e.what());
  }
}

std::string convert_methods_help() {
  std::string text = "how own values are made where a layer keeps some:";
  for (const std::string& name : convert_method_names()) {
    text += fmt::format("\n  {}: {}", name, convert_method_summary(name));
  }
  return text;
}

void print_conversion(const ModelConfig& from, const ConversionPlan& plan) {
  const Size before = size_of(from), after = size_of(plan.config);
  std::printf("%-28s %16s %16s\n", "", "before", "after");
  std::printf("%-28s %16s %16s\n", "model_type", from.model_type.c_str(),
              plan.config.model_type.c_str());
  std::printf("%-28s %16lld %16lld\n", "parameters", static_cast<long long>(before.parameters),
              static_cast<long long>(after.parameters));
  std::printf("%-28s %16lld %16lld\n", fmt::format("KV bytes per token ({})", after.dtype).c_str(),
              static_cast<long long>(before.elements * after.bytes / after.elements),
              static_cast<long long>(after.bytes));
  std::printf("\n%-10s %-10s %-10s %-24s %-40s %s\n", "layers", "own K", "own V", "keys", "values",
              "out projection");
  for (size_t first = 0; first < plan.layers.size();) {
    size_t last = first;
    const LayerChange& c = plan.layers[first];
    while (last + 1 < plan.layers.size() && same_change(c, plan.layers[last + 1])) ++last;
    std::printf(
        "%-10s %-10s %-10s %-24s %-40s %s\n",
        (first == last ? fmt::format("{}", first + 1) : fmt::format("{}-{}", first + 1, last + 1))
            .c_str(),
        heads(c.keys_before, c.keys_after).c_str(), heads(c.values_before, c.values_after).c_str(),
        c.keys.c_str(), c.values.c_str(), c.out.c_str());
    first = last + 1;
  }
}

Json conversion_json(const ModelConfig& from, const ConversionPlan& plan,
                     const ConvertOptions& options) {
  Json layers = Json::array();
  for (const LayerChange& c : plan.layers) {
    layers.push_back({{"layer", c.layer + 1},
                      {"own_key_heads", {c.keys_before, c.keys_after}},
                      {"own_value_heads", {c.values_before, c.values_after}},
                      {"keys", c.keys},
                      {"values", c.values},
                      {"out", c.out}});
  }
  return {{"method", options.method},
          {"before", size_json(from)},
          {"after", size_json(plan.config)},
          {"layers", layers}};
}

void check_sources_stay(const fs::path& out, const std::vector<std::string>& sources,
                        const char* option, InPlace in_place) {
  if (out.empty() || !heirloom::exists(out)) return;
  const fs::path target = fs::weakly_canonical(out);
  for (const std::string& source : sources) {
    if (source.empty()) continue;
    const fs::path path = fs::weakly_canonical(source);
    if (in_place == InPlace::kAllowed && path == target && fs::is_directory(path)) continue;
    if (std::mismatch(target.begin(), target.end(), path.begin(), path.end()).first !=
        target.end()) {
      continue;
    }
    throw_error<ConfigError>(
        "[convert] expected an {} that does not hold its source; got {}, where "
        "{} is; name another",
        option, out.string(), source);
  }
}

std::unique_ptr<Transformer> load_imported(const ImportedModel& model, const Device& device,
                                           Dtype dtype) {
  return load_model(model.config, *model.weights, device, dtype);
}

}  // namespace heirloom::cli
