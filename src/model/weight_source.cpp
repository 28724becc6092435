// SPDX-License-Identifier: Apache-2.0
#include "heirloom/model/weight_source.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "heirloom/model/families/family.h"
#include "heirloom/model/transformer.h"
#include "stored_elements.h"

namespace heirloom {
namespace {

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

/// Calls visit(file, ours, bytes) for every run of elements of `size` bytes that a part has in its
/// file's tensor: where it begins there, and among the part's own, in bytes.
template <class Visit>
void each_run(const FileTensor& tensor, const FileTensor::Part& part, size_t size, Visit visit) {
  const auto rows = static_cast<size_t>(part.ours.rows()),
             columns = static_cast<size_t>(part.ours.columns()),
             file_rows = static_cast<size_t>(tensor.shape[tensor.transposed]);
  for (size_t r = 0; r < rows; ++r) {
    const auto row = static_cast<size_t>(part.row(static_cast<int64_t>(r)));
    if (!tensor.transposed) {
      visit(row * columns * size, r * columns * size, columns * size);
    } else {
      for (size_t c = 0; c < columns; ++c) {
        visit((c * file_rows + row) * size, (r * columns + c) * size, size);
      }
    }
  }
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
    buffer.resize(static_cast<size_t>(part.ours.rows() * part.ours.columns()) * size);
    each_run(*place.tensor, part, size, [&](size_t file, size_t ours, size_t bytes) {
      std::memcpy(buffer.data() + ours, place.stored->data.data() + file, bytes);
    });
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
  size_t elements = 1;
  for (const int64_t dim : tensor.shape) elements *= static_cast<size_t>(dim);
  std::vector<std::byte> whole(elements * size), ours;
  for (const FileTensor::Part& p : tensor.parts) {
    ours.clear();
    part(p.ours.name, [&](const void* data, size_t bytes) {
      const auto* begin = static_cast<const std::byte*>(data);
      ours.insert(ours.end(), begin, begin + bytes);
    });
    each_run(tensor, p, size, [&](size_t to, size_t from, size_t bytes) {
      std::memcpy(whole.data() + to, ours.data() + from, bytes);
    });
  }
  out(whole.data(), whole.size());
}

namespace {
constexpr std::pair<const char*, const char*> kDtypeNames[] = {
    {"float32", "F32"}, {"bfloat16", "BF16"}, {"float16", "F16"}, {"float64", "F64"}};
}

const char* stored_dtype(std::string_view config) {
  for (const auto& [name, stored] : kDtypeNames) {
    if (config == name) return stored;
  }
  throw_error<InternalError>("[weights] expected a dtype of weights; got {}", config);
}

const char* config_dtype(std::string_view stored) {
  for (const auto& [name, in_file] : kDtypeNames) {
    if (stored == in_file) return name;
  }
  throw_error<InternalError>("[weights] expected F32, F16, BF16 or F64; got {}", stored);
}

std::unique_ptr<WeightSource> open_weights(const fs::path& directory, const ModelConfig& config) {
  return std::make_unique<DirectorySource>(directory, config);
}

namespace {

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
  const int64_t n =
      static_cast<int64_t>(elements.size()) / std::max<int64_t>(safetensors_dtype_size(dtype), 1);
  read_elements(dtype, elements.data(), n, [out](int64_t i, double x) { out[i] = x; });
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
