// SPDX-License-Identifier: Apache-2.0
#include "heirloom/model/checkpoint.h"

#include <deque>
#include <set>

#include "config_fields.h"
#include "heirloom/core/device_runtime.h"
#include "stored_elements.h"

namespace heirloom {
namespace {

/// Rows of a slice in memory: `columns` elements of every `stride` are the tensor's.
struct SliceRows {
  int64_t rows = 0, columns = 0, stride = 0;
  int64_t count() const { return rows * columns; }
  int64_t at(int64_t i) const { return columns == stride ? i : i / columns * stride + i % columns; }
};

template <class T>
void read_into(std::string_view dtype, const std::byte* stored, const SliceRows& rows, T* to) {
  read_elements(dtype, stored, rows.count(), [to, &rows](int64_t i, double x) {
    if constexpr (std::is_same_v<T, bfloat16>) {
      to[rows.at(i)] = bfloat16(static_cast<float>(x));
    } else {
      to[rows.at(i)] = static_cast<T>(x);
    }
  });
}

void read_as(std::string_view from, const std::byte* stored, const SliceRows& rows, std::byte* to,
             Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat64:
      return read_into(from, stored, rows, reinterpret_cast<double*>(to));
    case Dtype::kBFloat16:
      return read_into(from, stored, rows, reinterpret_cast<bfloat16*>(to));
    default:
      return read_into(from, stored, rows, reinterpret_cast<float*>(to));
  }
}

/// The tensors of one safetensors file that this project wrote for itself.
class FlatFile final : public WeightSource {
 public:
  explicit FlatFile(const fs::path& path) : file_(path) {
    for (const auto& [name, tensor] : file_.tensors())
      entries_[name] = {tensor.shape, tensor.dtype};
  }
  const std::map<std::string, Entry>& entries() const override { return entries_; }
  std::span<const std::byte> read(const std::string& name, std::vector<std::byte>&) const override {
    return file_.tensors().at(name).data;
  }
  std::string origin() const override { return file_.path().string(); }

 private:
  SafetensorsFile file_;
  std::map<std::string, Entry> entries_;
};

/// Reads every slice of `parameters`.
void read_slices(const WeightSource& source, const ParameterStore& parameters,
                 const FlatTensors& flat) {
  const Device& device = parameters.device();
  const bool on_host = device.kind == DeviceKind::kCpu;
  DeviceRuntime& runtime = device_runtime(device.kind);
  std::vector<std::byte> stored, staging;
  for (const NamedParameter& p : parameters.all()) {
    for (const ParameterSlice& slice : p.slices) {
      const std::string name = flat.prefix + slice.name;
      const auto it = source.entries().find(name);
      if (it == source.entries().end()) {
        throw_error<FormatError>("[weights] expected tensor {}; got {} tensors without it in {}",
                                 name, source.entries().size(), source.origin());
      }
      const WeightSource::Entry& entry = it->second;
      const std::vector<int64_t> shape = p.stored_shape(slice);
      if (entry.shape != shape) {
        throw_error<FormatError>("[weights] expected tensor {} of shape {}; got {} in {}", name,
                                 shape_text(shape), shape_text(entry.shape), source.origin());
      }
      const int64_t first = p.offset + slice.begin * p.columns();
      const SliceRows rows{slice.end - slice.begin, p.own_columns(), p.columns()};
      std::byte* data = static_cast<std::byte*>(flat.data) + first * dtype_size(flat.dtype);
      const std::byte* elements = source.read(name, stored).data();
      if (on_host) {
        read_as(entry.dtype, elements, rows, data, flat.dtype);
      } else {
        staging.assign(static_cast<size_t>(rows.rows * rows.stride * dtype_size(flat.dtype)),
                       std::byte{0});
        read_as(entry.dtype, elements, rows, staging.data(), flat.dtype);
        runtime.copy_to_device(data, staging.data(), static_cast<int64_t>(staging.size()),
                               device_stream(device));
      }
    }
  }
}

/// One element as `stored` wants it.
float element_as_float(const std::byte* data, Dtype dtype, int64_t i) {
  switch (dtype) {
    case Dtype::kFloat64:
      return static_cast<float>(reinterpret_cast<const double*>(data)[i]);
    case Dtype::kBFloat16:
      return static_cast<float>(reinterpret_cast<const bfloat16*>(data)[i]);
    default:
      return reinterpret_cast<const float*>(data)[i];
  }
}

}  // namespace

void load_weights(const WeightSource& source, const ParameterStore& parameters, void* flat,
                  Dtype dtype) {
  read_slices(source, parameters, {"", flat, dtype});
}

void load_weights(const fs::path& directory, const ModelConfig& config,
                  const ParameterStore& parameters, void* flat, Dtype dtype) {
  load_weights(*open_weights(directory, config), parameters, flat, dtype);
}

void load_flat(const fs::path& file, const ParameterStore& parameters,
               const std::vector<FlatTensors>& flats) {
  const FlatFile stored(file);
  std::set<std::string> expected;
  for (const FlatTensors& flat : flats) {
    read_slices(stored, parameters, flat);
    for (const TensorShape& tensor : tensor_shapes(parameters)) {
      expected.insert(flat.prefix + tensor.name);
    }
  }
  for (const auto& [name, entry] : stored.entries()) {
    if (!expected.contains(name)) {
      throw_error<FormatError>("[weights] expected only the run's tensors; got {} {} in {}", name,
                               shape_text(entry.shape), file.string());
    }
  }
}

namespace {

/// Hands the elements of one slice of `flat`, as `stored`, to `out`, run by run.
class SliceWriter {
 public:
  using Out = std::function<void(const void*, size_t)>;
  SliceWriter(const ParameterStore& parameters, const FlatTensors& flat, Dtype stored)
      : device_(parameters.device()), flat_(flat), stored_(stored) {
    HEIRLOOM_ASSERT(stored != Dtype::kFloat64 || flat.dtype == stored);
  }

  void write(const NamedParameter& p, const ParameterSlice& slice, const Out& out) {
    const int64_t first = p.offset + slice.begin * p.columns();
    const SliceRows rows{slice.end - slice.begin, p.own_columns(), p.columns()};
    const std::byte* data =
        on_host(static_cast<const std::byte*>(flat_.data) + first * dtype_size(flat_.dtype),
                rows.rows * rows.stride * dtype_size(flat_.dtype));
    if (flat_.dtype != stored_) return write_converted(data, rows, out);
    const int64_t row_bytes = rows.columns * dtype_size(stored_);
    if (rows.columns == rows.stride) return out(data, static_cast<size_t>(rows.rows * row_bytes));
    for (int64_t r = 0; r < rows.rows; ++r) {
      out(data + r * rows.stride * dtype_size(stored_), static_cast<size_t>(row_bytes));
    }
  }

 private:
  const std::byte* on_host(const std::byte* data, int64_t bytes) {
    if (device_.kind == DeviceKind::kCpu) return data;
    staging_.resize(static_cast<size_t>(bytes));
    DeviceRuntime& runtime = device_runtime(device_.kind);
    runtime.copy_to_host(staging_.data(), data, bytes, device_stream(device_));
    runtime.synchronize(device_stream(device_));
    return staging_.data();
  }

  void write_converted(const std::byte* data, const SliceRows& rows, const Out& out) const {
    std::array<float, 4096> run;
    std::array<bfloat16, 4096> half;
    const int64_t run_length = static_cast<int64_t>(run.size());
    const int64_t n = rows.count();
    for (int64_t i = 0; i < n; i += run_length) {
      const int64_t m = std::min(run_length, n - i);
      for (int64_t j = 0; j < m; ++j) {
        run[static_cast<size_t>(j)] = element_as_float(data, flat_.dtype, rows.at(i + j));
        half[static_cast<size_t>(j)] = bfloat16(run[static_cast<size_t>(j)]);
      }
      const void* converted =
          stored_ == Dtype::kBFloat16 ? static_cast<const void*>(half.data()) : run.data();
      out(converted, static_cast<size_t>(m * dtype_size(stored_)));
    }
  }

  Device device_;
  FlatTensors flat_;
  Dtype stored_;
  std::vector<std::byte> staging_;  // a slice of device memory, while it is written
};

/// The weights as the family of `config` keeps them.
std::string save_weights(const fs::path& file, const ModelConfig& config,
                         const ParameterStore& parameters, const void* flat, Dtype dtype,
                         Dtype stored) {
  struct Slice {
    const NamedParameter* parameter;
    const ParameterSlice* slice;
  };
  std::map<std::string, Slice> slices;
  for (const NamedParameter& p : parameters.all()) {
    for (const ParameterSlice& slice : p.slices) slices[slice.name] = {&p, &slice};
  }
  SliceWriter writer(parameters, {"", const_cast<void*>(flat), dtype}, stored);
  const std::vector<FileTensor> layout = file_tensors(config, tensor_shapes(parameters));
  std::vector<TensorToWrite> tensors;
  for (const FileTensor& tensor : layout) {
    tensors.push_back(
        {tensor.name, stored_dtype(dtype_name(stored)), tensor.shape,
         [&](const SliceWriter::Out& out) {
           const auto write = [&](const std::string& name, const SliceWriter::Out& to) {
             const Slice& s = slices.at(name);
             writer.write(*s.parameter, *s.slice, to);
           };
           if (tensor.plain()) return write(tensor.parts[0].ours.name, out);
           write_assembled(tensor, static_cast<size_t>(dtype_size(stored)), write, out);
         }});
  }
  return write_safetensors(file, tensors);
}

}  // namespace

std::string save_flat(const fs::path& file, const ParameterStore& parameters,
                      const std::vector<FlatTensors>& flats, Dtype stored) {
  std::vector<TensorToWrite> tensors;
  std::deque<SliceWriter> writers;
  for (const FlatTensors& flat : flats) {
    SliceWriter& writer = writers.emplace_back(parameters, flat, stored);
    for (const NamedParameter& p : parameters.all()) {
      for (const ParameterSlice& slice : p.slices) {
        tensors.push_back({flat.prefix + slice.name, stored_dtype(dtype_name(stored)),
                           p.stored_shape(slice),
                           [&](const SliceWriter::Out& out) { writer.write(p, slice, out); }});
      }
    }
  }
  return write_safetensors(file, tensors);
}

std::map<std::string, fs::path> tokenizer_files(const fs::path& path) {
  static constexpr const char* kNames[] = {"tokenizer.json",
                                           "tokenizer.model",
                                           "tokenizer_config.json",
                                           "special_tokens_map.json",
                                           "added_tokens.json",
                                           "vocab.json",
                                           "merges.txt",
                                           "encoder.json",
                                           "vocab.bpe",
                                           "chat_template.jinja"};
  if (path.empty()) return {};
  if (!heirloom::is_directory(path)) {
    return {{path.extension() == ".model" ? "tokenizer.model" : "tokenizer.json", path}};
  }
  std::map<std::string, fs::path> files;
  for (const char* name : kNames) {
    if (heirloom::is_regular_file(path / name)) files[name] = path / name;
  }
  return files;
}

void write_model_files(const fs::path& directory, const ModelConfig& config,
                       const std::string& tokenizer_json) {
  write_file_atomically(directory / "config.json", dump_json(model_config_json(config), 2) + "\n");
  Json generation = Json::object();
  if (config.bos_token_id) generation["bos_token_id"] = *config.bos_token_id;
  if (!config.eos_token_ids.empty()) generation["eos_token_id"] = eos_json(config);
  write_file_atomically(directory / "generation_config.json", dump_json(generation, 2) + "\n");
  if (!tokenizer_json.empty()) write_file_atomically(directory / "tokenizer.json", tokenizer_json);
}

std::string write_model(const fs::path& directory, ModelConfig config,
                        const ParameterStore& parameters, const void* flat, Dtype dtype,
                        Dtype stored, const fs::path& tokenizer) {
  config.stored_dtype = dtype_name(stored);
  write_model_files(directory, config, {});
  for (const auto& [name, file] : tokenizer_files(tokenizer)) {
    write_file_atomically(directory / name, read_file(file));
  }
  return save_weights(directory / "model.safetensors", config, parameters, flat, dtype, stored);
}

}  // namespace heirloom
