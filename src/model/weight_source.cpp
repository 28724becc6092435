// SPDX-License-Identifier: Apache-2.0
#include "heirloom/model/weight_source.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "heirloom/core/half.h"
#include "heirloom/model/families/family.h"
#include "heirloom/model/transformer.h"

namespace heirloom {
namespace {

std::string shape_text(const std::vector<int64_t>& shape) {
  return fmt::format("({})", fmt::join(shape, ", "));
}

bool is_weight_dtype(std::string_view dtype) {
  return dtype == "F32" || dtype == "F16" || dtype == "BF16" || dtype == "F64";
}

const ModelFamily& family_of(const ModelConfig& config) {
  const ModelFamily* family = find_model_family(config.model_type);
  HEIRLOOM_CHECK(family != nullptr, "[weights] expected a known model_type; got \"{}\"",
                 config.model_type);
  return *family;
}

TensorPlace place_of(const ModelFamily& family, const ModelConfig& config,
                     const TensorShape& ours) {
  return family.place ? family.place(config, ours) : TensorPlace{ours.name, {}, 0, false};
}

/// A model directory: its safetensors seen through its family's places.
class DirectorySource final : public WeightSource {
 public:
  DirectorySource(const fs::path& directory, const ModelConfig& config)
      : files_(directory), origin_(directory.string()) {
    const ModelFamily& family = family_of(config);
    tensors_ = file_tensors(config, tensor_shapes(config));
    std::set<std::string> seen;
    for (const FileTensor& tensor : tensors_) {
      const StoredTensor& stored = find(tensor, family.prefix, seen);
      for (const FileTensor::Part& part : tensor.parts) {
        entries_[part.ours.name] = {part.ours.shape, stored.dtype};
        places_[part.ours.name] = {&tensor, &part, &stored};
      }
    }
    reject_other(family, config, seen);
  }

  const std::map<std::string, Entry>& entries() const override { return entries_; }
  std::string origin() const override { return origin_; }

  std::span<const std::byte> read(const std::string& name,
                                  std::vector<std::byte>& buffer) const override {
    const Place& place = places_.at(name);
    if (place.tensor->plain()) return place.stored->data;
    const auto size = static_cast<size_t>(safetensors_dtype_size(place.stored->dtype));
    const FileTensor::Part& part = *place.part;
    const auto rows = static_cast<size_t>(part.ours.rows()),
               columns = static_cast<size_t>(part.ours.columns());
    const auto all_rows = static_cast<size_t>(place.tensor->shape[place.tensor->transposed]);
    buffer.resize(rows * columns * size);
    const std::byte* data = place.stored->data.data();
    for (size_t r = 0; r < rows; ++r) {
      const auto from = static_cast<size_t>(part.row(static_cast<int64_t>(r)));
      std::byte* to = buffer.data() + r * columns * size;
      if (!place.tensor->transposed) {
        std::memcpy(to, data + from * columns * size, columns * size);
      } else {
        for (size_t c = 0; c < columns; ++c) {
          std::memcpy(to + c * size, data + (c * all_rows + from) * size, size);
        }
      }
    }
    return buffer;
  }

 private:
  struct Place {
    const FileTensor* tensor;
    const FileTensor::Part* part;
    const StoredTensor* stored;
  };

  /// The stored tensor under its name, or without the prefix, checked.
  const StoredTensor& find(const FileTensor& tensor, const std::string& prefix,
                           std::set<std::string>& seen) const {
    const auto& stored = files_.tensors();
    auto it = stored.find(tensor.name);
    if (it == stored.end() && tensor.name.starts_with(prefix)) {
      it = stored.find(tensor.name.substr(prefix.size()));
    }
    // Our own name: a GPT-NeoX head is lm_head where it was saved from the module as it is.
    if (it == stored.end() && tensor.plain()) it = stored.find(tensor.parts[0].ours.name);
    if (it == stored.end()) {
      throw_error<FormatError>(
          "[weights] expected tensor {}; got {} tensors without it in {}; is config.json of the "
          "same model?",
          tensor.name, stored.size(), origin_);
    }
    seen.insert(it->first);
    if (it->second.shape != tensor.shape) {
      throw_error<FormatError>("[weights] expected tensor {} of shape {}; got {} in {}", it->first,
                               shape_text(tensor.shape), shape_text(it->second.shape), origin_);
    }
    if (!is_weight_dtype(it->second.dtype)) {
      throw_error<FormatError>(
          "[weights] expected F32, F16, BF16 or F64; got {} in tensor {} in {}", it->second.dtype,
          it->first, origin_);
    }
    tensor.check_rows();
    return it->second;
  }

  void reject_other(const ModelFamily& family, const ModelConfig& config,
                    const std::set<std::string>& seen) const {
    // A tied head may be stored all the same.
    const std::string head =
        place_of(family, config, {"lm_head.weight", {config.vocab_size, config.hidden_size}})
            .tensor;
    for (const auto& [name, tensor] : files_.tensors()) {
      const bool buffer =
          std::any_of(family.buffers.begin(), family.buffers.end(),
                      [&name = name](const char* end) { return name.ends_with(end); });
      if (seen.contains(name) || buffer || (config.tie_word_embeddings && name == head)) continue;
      throw_error<FormatError>(
          "[weights] expected only the model's tensors; got {} {} in {}; is config.json of the "
          "same model?",
          name, shape_text(tensor.shape), origin_);
    }
  }

  SafetensorsModel files_;
  std::string origin_;
  std::vector<FileTensor> tensors_;
  std::map<std::string, Entry> entries_;
  std::map<std::string, Place> places_;
};

}  // namespace

std::vector<TensorShape> tensor_shapes(const ParameterStore& parameters) {
  std::vector<TensorShape> shapes;
  for (const NamedParameter& p : parameters.all()) {
    for (const ParameterSlice& slice : p.slices) {
      shapes.push_back({slice.name, p.stored_shape(slice)});
    }
  }
  return shapes;
}

std::vector<TensorShape> tensor_shapes(const ModelConfig& config) {
  return tensor_shapes(Transformer(config, meta_device({}), Dtype::kFloat32).parameters());
}

bool FileTensor::plain() const {
  return parts.size() == 1 && !transposed && !parts[0].place.row && parts[0].place.begin == 0;
}

std::vector<FileTensor> file_tensors(const std::vector<TensorShape>& ours,
                                     const PlaceFunction& place) {
  std::vector<FileTensor> tensors;
  std::map<std::string, size_t> index;
  for (const TensorShape& shape : ours) {
    TensorPlace p = place(shape);
    const auto [it, added] = index.emplace(p.tensor, tensors.size());
    if (added) tensors.push_back({p.tensor, {}, p.transposed, {}});
    tensors[it->second].parts.push_back({shape, std::move(p)});
  }
  for (FileTensor& tensor : tensors) {
    int64_t rows = 0;
    for (const FileTensor::Part& part : tensor.parts) rows += part.ours.rows();
    tensor.shape = tensor.parts[0].ours.shape;
    tensor.shape[0] = rows;
    if (tensor.transposed) std::swap(tensor.shape[0], tensor.shape.at(1));
  }
  return tensors;
}

void FileTensor::check_rows() const {
  if (plain()) return;
  const auto rows = static_cast<size_t>(shape[transposed]);
  std::vector<bool> taken(rows);
  for (const Part& part : parts) {
    HEIRLOOM_ASSERT(part.ours.columns() == parts[0].ours.columns() &&
                    part.place.transposed == transposed);
    for (int64_t r = 0; r < part.ours.rows(); ++r) {
      const auto row = static_cast<size_t>(part.row(r));
      HEIRLOOM_ASSERT(row < rows && !taken[row]);
      taken[row] = true;
    }
  }
}

std::vector<FileTensor> file_tensors(const ModelConfig& config,
                                     const std::vector<TensorShape>& ours) {
  const ModelFamily& family = family_of(config);
  return file_tensors(ours,
                      [&](const TensorShape& shape) { return place_of(family, config, shape); });
}

void write_assembled(const FileTensor& tensor, size_t size,
                     const std::function<void(const std::string& name, const ElementsOut&)>& part,
                     const ElementsOut& out) {
  tensor.check_rows();
  const auto all_rows = static_cast<size_t>(tensor.shape[tensor.transposed]),
             columns = static_cast<size_t>(tensor.parts[0].ours.columns());
  std::vector<std::byte> whole(all_rows * columns * size), ours;
  for (const FileTensor::Part& p : tensor.parts) {
    ours.clear();
    part(p.ours.name, [&](const void* data, size_t bytes) {
      const auto* begin = static_cast<const std::byte*>(data);
      ours.insert(ours.end(), begin, begin + bytes);
    });
    for (size_t r = 0; r < static_cast<size_t>(p.ours.rows()); ++r) {
      const auto to = static_cast<size_t>(p.row(static_cast<int64_t>(r)));
      const std::byte* from = ours.data() + r * columns * size;
      if (!tensor.transposed) {
        std::memcpy(whole.data() + to * columns * size, from, columns * size);
      } else {
        for (size_t c = 0; c < columns; ++c) {
          std::memcpy(whole.data() + (c * all_rows + to) * size, from + c * size, size);
        }
      }
    }
  }
  out(whole.data(), whole.size());
}

std::unique_ptr<WeightSource> open_weights(const fs::path& directory, const ModelConfig& config) {
  return std::make_unique<DirectorySource>(directory, config);
}

namespace {

/// visit(value of the stored type, its float64 value as a function, and back).
template <class Stored, class Convert>
void convert_each(std::span<const std::byte> from, double* out, Convert convert) {
  for (size_t i = 0; i < from.size() / sizeof(Stored); ++i) {
    Stored raw;
    std::memcpy(&raw, from.data() + i * sizeof(Stored), sizeof(Stored));
    out[i] = convert(raw);
  }
}

template <class Stored, class Convert>
void store_each(std::span<const double> values, std::byte* out, Convert convert) {
  for (size_t i = 0; i < values.size(); ++i) {
    const Stored raw = convert(values[i]);
    std::memcpy(out + i * sizeof(Stored), &raw, sizeof(Stored));
  }
}

/// float64 to float32 rounded to odd, so that rounding that once more gives the nearest.
float round_to_odd(double x) {
  const auto nearest = static_cast<float>(x);
  if (static_cast<double>(nearest) == x || !std::isfinite(nearest)) return nearest;
  const uint32_t bits = std::bit_cast<uint32_t>(nearest);
  if (bits & 1u) return nearest;
  const bool too_far = std::abs(static_cast<double>(nearest)) > std::abs(x);
  return std::bit_cast<float>(too_far ? bits - 1 : bits + 1);
}

}  // namespace

void to_doubles(std::string_view dtype, std::span<const std::byte> elements, double* out) {
  if (dtype == "F32") {
    convert_each<float>(elements, out, [](float x) { return static_cast<double>(x); });
  } else if (dtype == "BF16") {
    convert_each<bfloat16>(elements, out,
                           [](bfloat16 x) { return static_cast<double>(static_cast<float>(x)); });
  } else if (dtype == "F16") {
    convert_each<uint16_t>(elements, out,
                           [](uint16_t x) { return static_cast<double>(half_to_float(x)); });
  } else if (dtype == "F64") {
    convert_each<double>(elements, out, [](double x) { return x; });
  } else {
    throw_error<InternalError>("[weights] expected F32, F16, BF16 or F64; got {}", dtype);
  }
}

void from_doubles(std::string_view dtype, std::span<const double> values, std::byte* out) {
  if (dtype == "F32") {
    store_each<float>(values, out, [](double x) { return static_cast<float>(x); });
  } else if (dtype == "BF16") {
    store_each<bfloat16>(values, out, [](double x) { return bfloat16(round_to_odd(x)); });
  } else if (dtype == "F16") {
    store_each<uint16_t>(values, out, [](double x) { return float_to_half(round_to_odd(x)); });
  } else if (dtype == "F64") {
    store_each<double>(values, out, [](double x) { return x; });
  } else {
    throw_error<InternalError>("[weights] expected F32, F16, BF16 or F64; got {}", dtype);
  }
}

}  // namespace heirloom
