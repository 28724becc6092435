// SPDX-License-Identifier: Apache-2.0
#include "heirloom/convert/convert.h"

#include <cstring>
#include <optional>

#include "heirloom/core/memory.h"
#include "heirloom/model/checkpoint.h"
#include "methods.h"

namespace heirloom {
namespace {

bool owns_everything(const KvPlan& plan) {
  for (int64_t l = 0; l < plan.layers; ++l) {
    const auto heads = static_cast<size_t>(plan.kv_heads);
    if (plan.own_key_heads(l).size() != heads || plan.own_value_heads(l).size() != heads) {
      return false;
    }
  }
  return true;
}

/// The source with another number of KV heads and another sharing, checked as a config is.
ModelConfig reshaped(const ModelConfig& from, const ConvertOptions& options) {
  Json json = model_config_json(with_model_type(from, "heirloom"));
  if (options.kv_heads > 0) json["num_key_value_heads"] = options.kv_heads;
  if (!options.kv_sharing.is_null()) json["kv_sharing"] = options.kv_sharing;
  const ModelConfig parsed = parse_model_config(json, "convert");
  ModelConfig to = from;
  to.num_key_value_heads = parsed.num_key_value_heads;
  to.kv_sharing = parsed.kv_sharing;
  return to;
}

/// The model_type asked for, or else the source's where it can say the result.
ModelConfig with_result_type(const ModelConfig& to, const std::string& model_type) {
  if (!model_type.empty()) {
    ModelConfig typed = with_model_type(to, model_type);
    // Families of the Hub rotate halves; the same rotation, its rows in another order.
    if (model_type != "heirloom") typed.rope_style = RopeStyle::kHalf;
    model_config_json(typed);  // says what cannot be said
    return typed;
  }
  try {
    model_config_json(to);
    return to;
  } catch (const ConfigError&) {
    return with_model_type(to, "heirloom");
  }
}

LayerRoutes routes_of(const ModelConfig& to, const KvPlan& plan, int64_t layer) {
  return {to.num_attention_heads, to.num_key_value_heads, to.head_dim, plan.own_value_heads(layer)};
}

std::string pooling_text(int64_t before, int64_t after) {
  return before == after ? "as they were"
         : after == 0    ? "dropped"
                         : fmt::format("mean of {}", before / after);
}

LayerChange plan_layer(int64_t layer, int64_t heads_before, const ConvertMethod& method,
                       const LayerRoutes& routes, int64_t own_keys) {
  LayerChange change;
  change.layer = layer;
  change.keys_before = change.values_before = heads_before;
  change.keys_after = own_keys;
  change.values_after = static_cast<int64_t>(routes.own_values.size());
  if (own_keys > 0 && routes.kv_heads % own_keys != 0) {
    throw_error<ConfigError>(
        "[convert] expected layer {} to keep a number of key heads that divides its {}, so that "
        "adjacent ones can be averaged; got {}",
        layer + 1, routes.kv_heads, own_keys);
  }
  change.keys = pooling_text(heads_before, own_keys);
  change.values = pooling_text(heads_before, routes.kv_heads);
  change.out = "as it was";
  if (change.values_after == 0) change.values = "dropped";
  if (change.values_after == 0 || change.values_after == routes.kv_heads) return change;
  if (const char* reason = method.refusal(routes)) {
    throw_error<ConfigError>(
        "[convert] method {}: expected a plan that it can serve; got {} own value heads of {} in "
        "layer {} ({} query heads): {}",
        method.name, change.values_after, routes.kv_heads, layer + 1, routes.query_heads, reason);
  }
  change.values = heads_before == routes.kv_heads
                      ? method.describe(routes)
                      : change.values + ", then " + method.describe(routes);
  if (method.changes_out) change.out = "with its values";
  return change;
}

/// The tensors are made one at a time: the largest must fit.
void check_memory(const std::vector<TensorToWrite>& tensors, const std::string& origin) {
  const int64_t available = available_memory();
  for (const TensorToWrite& tensor : tensors) {
    int64_t bytes = safetensors_dtype_size(tensor.dtype);
    for (const int64_t dim : tensor.shape) bytes *= dim;
    if (bytes <= available) continue;
    throw_error<OutOfMemoryError>(
        "[convert] expected tensors of at most {} bytes, which are available; got {} in {}; {}",
        available, bytes, tensor.name, origin);
  }
}

/// The tensors of the result, made one layer at a time from those of the source.
class Converter {
 public:
  Converter(const ImportedModel& from, ConversionPlan& plan, const ConvertOptions& options)
      : from_(from),
        plan_(plan),
        options_(options),
        method_(find_convert_method(options.method)),
        to_plan_(build_kv_plan(plan.config)) {}

  /// The widest dtype of the tensors that a file's tensor is made of, or the one asked for.
  std::string dtype_of(const FileTensor& tensor) const {
    if (!options_.dtype.empty()) return stored_dtype(options_.dtype);
    std::string widest;
    for (const FileTensor::Part& part : tensor.parts) {
      const std::string& dtype = from_.weights->entries().at(part.ours.name).dtype;
      // BF16 and F16 side by side need the exponents of one and the fraction of the other.
      widest = widest.empty() || widest == dtype   ? dtype
               : widest == "F64" || dtype == "F64" ? "F64"
                                                   : "F32";
    }
    return widest;
  }

  /// Hands the elements of a tensor of the result, as `dtype`, to `out`.
  void write(const std::string& name, const std::string& dtype, const ElementsOut& out) {
    if (const Matrix* made = converted(name)) {
      return write_values(std::span(made->data(), static_cast<size_t>(made->size())), dtype, out);
    }
    const WeightSource::Entry& entry = from_.weights->entries().at(name);
    std::vector<std::byte> buffer, reordered;
    const std::span<const std::byte> stored =
        in_rope_order(name, entry, from_.weights->read(name, buffer), reordered);
    if (entry.dtype == dtype) return out(stored.data(), stored.size());
    constexpr size_t kRun = 1 << 16;  // elements
    std::vector<double> values(kRun);
    const auto size = static_cast<size_t>(safetensors_dtype_size(entry.dtype));
    for (size_t at = 0; at < stored.size(); at += kRun * size) {
      const auto run = stored.subspan(at, std::min(kRun * size, stored.size() - at));
      to_doubles(entry.dtype, run, values.data());
      write_values(std::span(values.data(), run.size() / size), dtype, out);
    }
  }

 private:
  static void write_values(std::span<const double> values, const std::string& dtype,
                           const ElementsOut& out) {
    constexpr size_t kRun = 1 << 16;
    std::vector<std::byte> bytes;
    for (size_t at = 0; at < values.size(); at += kRun) {
      const auto run = values.subspan(at, std::min(kRun, values.size() - at));
      bytes.resize(run.size() * static_cast<size_t>(safetensors_dtype_size(dtype)));
      from_doubles(dtype, run, bytes.data());
      out(bytes.data(), bytes.size());
    }
  }

  Matrix read(const std::string& name) const {
    const WeightSource::Entry& entry = from_.weights->entries().at(name);
    std::vector<std::byte> buffer, reordered;
    const std::span<const std::byte> stored =
        in_rope_order(name, entry, from_.weights->read(name, buffer), reordered);
    Matrix m(entry.shape[0], entry.shape.size() == 2 ? entry.shape[1] : 1);
    to_doubles(entry.dtype, stored, m.data());
    if (!m.allFinite()) {
      throw_error<FormatError>("[convert] expected finite weights; got NaN or infinity in {} of {}",
                               name, from_.weights->origin());
    }
    return m;
  }

  /// Rows of rotating heads in the result's order: in `reordered` where that differs.
  std::span<const std::byte> in_rope_order(const std::string& name,
                                           const WeightSource::Entry& entry,
                                           std::span<const std::byte> stored,
                                           std::vector<std::byte>& reordered) const {
    const bool rotates =
        name.find(".q_proj.") != std::string::npos || name.find(".k_proj.") != std::string::npos ||
        name.find(".q_norm.") != std::string::npos || name.find(".k_norm.") != std::string::npos;
    if (!rotates || from_.config.rope_style == plan_.config.rope_style) return stored;
    HEIRLOOM_ASSERT(plan_.config.rope_style == RopeStyle::kHalf);
    reordered.resize(stored.size());
    const int64_t d = from_.config.head_dim, half = from_.config.rotary_dim() / 2;
    const auto row_bytes = stored.size() / static_cast<size_t>(entry.shape[0]);
    for (int64_t r = 0; r < entry.shape[0]; ++r) {
      const int64_t i = r % d;
      const int64_t source = i < half ? 2 * i : i < 2 * half ? 2 * (i - half) + 1 : i;
      std::memcpy(reordered.data() + static_cast<size_t>(r) * row_bytes,
                  stored.data() + static_cast<size_t>(r - i + source) * row_bytes, row_bytes);
    }
    return reordered;
  }

  /// The tensor where this conversion makes it anew; nullptr where it stays.
  const Matrix* converted(const std::string& name) {
    static const std::string kLayers = "model.layers.";
    if (!name.starts_with(kLayers)) return nullptr;
    const int64_t layer = std::stoll(name.substr(kLayers.size()));
    if (layer != layer_) {
      made_.clear();
      convert_layer(layer);
      layer_ = layer;
    }
    const auto it = made_.find(name);
    return it == made_.end() ? nullptr : &it->second;
  }

  void convert_layer(int64_t layer) {
    LayerChange& change = plan_.layers[static_cast<size_t>(layer)];
    const LayerRoutes routes = routes_of(plan_.config, to_plan_, layer);
    const std::string base = fmt::format("model.layers.{}.self_attn.", layer);
    const bool biased = plan_.config.attention_bias;
    const auto pool = [&](const std::string& name, int64_t heads) {
      return pool_heads(read(base + name), heads, routes.head_dim);
    };
    if (change.keys_after > 0 && change.keys_after != change.keys_before) {
      for (const char* name : {"k_proj.weight", "k_proj.bias"}) {
        if (name == std::string("k_proj.bias") && !biased) continue;
        made_[base + name] = pool(name, change.keys_after);
      }
    }
    if (change.values_after == 0 || change.values_after == change.values_before) return;
    LayerWeights weights;
    weights.value = pool("v_proj.weight", routes.kv_heads);
    if (biased) weights.value_bias = pool("v_proj.bias", routes.kv_heads);
    if (change.values_after < routes.kv_heads) {
      if (method_.changes_out) weights.out = read(base + "o_proj.weight");
      LayerStatistics statistics;
      for (int64_t h = 0; h < routes.kv_heads; ++h) {
        statistics.value_norms.push_back(
            weights.value.middleRows(h * routes.head_dim, routes.head_dim).norm());
      }
      const std::string done = method_.apply(routes, statistics, weights);
      change.values = change.values_before == routes.kv_heads
                          ? done
                          : pooling_text(change.values_before, routes.kv_heads) + ", then " + done;
      if (method_.changes_out) made_[base + "o_proj.weight"] = std::move(weights.out);
    }
    made_[base + "v_proj.weight"] = std::move(weights.value);
    if (biased) made_[base + "v_proj.bias"] = weights.value_bias;
  }

  const ImportedModel& from_;
  ConversionPlan& plan_;
  const ConvertOptions& options_;
  const ConvertMethod& method_;
  KvPlan to_plan_;
  int64_t layer_ = -1;
  std::map<std::string, Matrix> made_;  // of layer_
};

}  // namespace

ConversionPlan plan_conversion(const ModelConfig& from, const ConvertOptions& options) {
  const ConvertMethod& method = find_convert_method(options.method);
  const KvPlan before = build_kv_plan(from);
  if (options.kv_heads > 0 && from.num_key_value_heads % options.kv_heads != 0) {
    throw_error<ConfigError>(
        "[convert] kv_heads: expected a divisor of the model's {} KV heads, so that adjacent ones "
        "can be averaged; got {}",
        from.num_key_value_heads, options.kv_heads);
  }
  ConversionPlan result;
  result.config = with_result_type(reshaped(from, options), options.model_type);
  if (!options.dtype.empty()) result.config.stored_dtype = options.dtype;
  const KvPlan after = build_kv_plan(result.config);
  const bool same = before.keys == after.keys && before.values == after.values;
  if (!same && !owns_everything(before)) {
    throw_error<ConfigError>(
        "[convert] expected a source whose layers project all their own keys and values; got "
        "kv_sharing {}; convert the model that it came from",
        from.kv_sharing.scheme);
  }
  tensor_shapes(result.config);  // UnsupportedError for a model that cannot be built
  for (int64_t l = 0; l < after.layers; ++l) {
    const auto own_keys = static_cast<int64_t>(after.own_key_heads(l).size());
    if (same) {
      const auto own_values = static_cast<int64_t>(after.own_value_heads(l).size());
      result.layers.push_back({l, own_keys, own_keys, own_values, own_values, "as they were",
                               "as they were", "as it was"});
    } else {
      result.layers.push_back(
          plan_layer(l, before.kv_heads, method, routes_of(result.config, after, l), own_keys));
    }
  }
  return result;
}

void convert_model(const ImportedModel& from, ConversionPlan& plan, const ConvertOptions& options,
                   const fs::path& directory) {
  Converter converter(from, plan, options);
  const std::vector<FileTensor> layout = file_tensors(plan.config, tensor_shapes(plan.config));
  std::vector<TensorToWrite> tensors;
  std::map<std::string, int64_t> elements_by_dtype;
  for (const FileTensor& tensor : layout) {
    const std::string dtype = converter.dtype_of(tensor);
    for (const FileTensor::Part& part : tensor.parts) {
      elements_by_dtype[dtype] += part.ours.rows() * part.ours.columns();
    }
    tensors.push_back(
        {tensor.name, dtype, tensor.shape, [&converter, &tensor, dtype](const ElementsOut& out) {
           const auto write = [&](const std::string& name, const ElementsOut& to) {
             converter.write(name, dtype, to);
           };
           if (tensor.plain()) return write(tensor.parts[0].ours.name, out);
           write_assembled(tensor, static_cast<size_t>(safetensors_dtype_size(dtype)), write, out);
         }});
  }
  check_memory(tensors, from.weights->origin());
  plan.config.stored_dtype = config_dtype(
      std::max_element(elements_by_dtype.begin(), elements_by_dtype.end(),
                       [](const auto& a, const auto& b) { return a.second < b.second; })
          ->first);
  write_directory_atomically(directory, [&](const fs::path& temporary) {
    write_model_files(temporary, plan.config, from.tokenizer_json);
    for (const auto& [name, file] : from.files) {
      write_file_atomically(temporary / name, read_file(file));
    }
    write_safetensors(temporary / "model.safetensors", tensors);
  });
}

std::vector<std::string> convert_method_names() {
  std::vector<std::string> names;
  for (const ConvertMethod& method : convert_methods()) names.emplace_back(method.name);
  return names;
}

std::string convert_method_summary(const std::string& name) {
  return find_convert_method(name).summary;
}

}  // namespace heirloom
