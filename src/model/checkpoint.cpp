// SPDX-License-Identifier: Apache-2.0
#include "heirloom/model/checkpoint.h"

#include <set>

#include "heirloom/core/device_runtime.h"

namespace heirloom {
namespace {

float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  uint32_t exponent = (h >> 10) & 0x1Fu, mantissa = h & 0x3FFu;
  if (exponent == 0x1F) return std::bit_cast<float>(sign | 0x7F800000u | (mantissa << 13));
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

/// Calls `store(i, value)` for each of n elements of a stored tensor.
template <class Store>
void read_elements(const StoredTensor& tensor, int64_t n, const std::string& name, Store store) {
  const std::byte* bytes = tensor.data.data();
  const auto each = [&](auto zero, auto convert) {
    using Stored = decltype(zero);
    for (int64_t i = 0; i < n; ++i) {
      Stored raw;
      std::memcpy(&raw, bytes + i * static_cast<int64_t>(sizeof(Stored)), sizeof(Stored));
      store(i, convert(raw));
    }
  };
  if (tensor.dtype == "F32") return each(float{}, [](float x) { return static_cast<double>(x); });
  if (tensor.dtype == "F64") return each(double{}, [](double x) { return x; });
  if (tensor.dtype == "BF16") {
    return each(bfloat16{}, [](bfloat16 x) { return static_cast<double>(static_cast<float>(x)); });
  }
  if (tensor.dtype == "F16")
    return each(uint16_t{}, [](uint16_t x) { return static_cast<double>(half_to_float(x)); });
  throw_error<FormatError>("[weights] expected F32, F16, BF16 or F64; got {} in tensor {}",
                           tensor.dtype, name);
}

std::string shape_text(const std::vector<int64_t>& shape) {
  return fmt::format("({})", fmt::join(shape, ", "));
}

const char* stored_name(Dtype dtype) {
  return dtype == Dtype::kBFloat16 ? "BF16" : dtype == Dtype::kFloat64 ? "F64" : "F32";
}

/// Rows of a slice in memory: `columns` elements of every `stride` are the tensor's.
struct SliceRows {
  int64_t rows = 0, columns = 0, stride = 0;
  int64_t count() const { return rows * columns; }
  int64_t at(int64_t i) const { return columns == stride ? i : i / columns * stride + i % columns; }
};

template <class T>
void read_into(const StoredTensor& stored, const SliceRows& rows, const std::string& name, T* to) {
  read_elements(stored, rows.count(), name, [to, &rows](int64_t i, double x) {
    if constexpr (std::is_same_v<T, bfloat16>) {
      to[rows.at(i)] = bfloat16(static_cast<float>(x));
    } else {
      to[rows.at(i)] = static_cast<T>(x);
    }
  });
}

void read_as(const StoredTensor& stored, const SliceRows& rows, const std::string& name,
             std::byte* to, Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat64:
      return read_into(stored, rows, name, reinterpret_cast<double*>(to));
    case Dtype::kBFloat16:
      return read_into(stored, rows, name, reinterpret_cast<bfloat16*>(to));
    default:
      return read_into(stored, rows, name, reinterpret_cast<float*>(to));
  }
}

using TensorMap = std::map<std::string, StoredTensor>;

/// Reads every slice of `parameters` from `tensors` and notes the names in `seen`.
void read_slices(const TensorMap& tensors, const std::string& origin,
                 const ParameterStore& parameters, const FlatTensors& flat,
                 std::set<std::string>& seen) {
  const Device& device = parameters.device();
  const bool on_host = device.kind == DeviceKind::kCpu;
  DeviceRuntime& runtime = device_runtime(device.kind);
  std::vector<std::byte> staging;
  for (const NamedParameter& p : parameters.all()) {
    for (const ParameterSlice& slice : p.slices) {
      const std::string name = flat.prefix + slice.name;
      seen.insert(name);
      const auto it = tensors.find(name);
      if (it == tensors.end()) {
        throw_error<FormatError>(
            "[weights] expected tensor {}; got {} tensors without it in {}; is config.json of the "
            "same model?",
            name, tensors.size(), origin);
      }
      const std::vector<int64_t> shape = p.stored_shape(slice);
      if (it->second.shape != shape) {
        throw_error<FormatError>("[weights] expected tensor {} of shape {}; got {} in {}", name,
                                 shape_text(shape), shape_text(it->second.shape), origin);
      }
      const int64_t first = p.offset + slice.begin * p.columns();
      const SliceRows rows{slice.end - slice.begin, p.own_columns(), p.columns()};
      std::byte* data = static_cast<std::byte*>(flat.data) + first * dtype_size(flat.dtype);
      if (on_host) {
        read_as(it->second, rows, name, data, flat.dtype);
      } else {
        staging.assign(static_cast<size_t>(rows.rows * rows.stride * dtype_size(flat.dtype)),
                       std::byte{0});
        read_as(it->second, rows, name, staging.data(), flat.dtype);
        runtime.copy_to_device(data, staging.data(), static_cast<int64_t>(staging.size()),
                               device_stream(device));
      }
    }
  }
}

void reject_other(const TensorMap& tensors, const std::string& origin,
                  const std::set<std::string>& seen) {
  for (const auto& [name, tensor] : tensors) {
    if (!seen.contains(name)) {
      throw_error<FormatError>(
          "[weights] expected only the model's tensors; got {} {} in {}; is config.json of the "
          "same model?",
          name, shape_text(tensor.shape), origin);
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

void load_weights(const fs::path& directory, const ModelConfig& config,
                  const ParameterStore& parameters, void* flat, Dtype dtype) {
  const SafetensorsModel model(directory);
  std::set<std::string> seen;
  read_slices(model.tensors(), directory.string(), parameters, {"", flat, dtype}, seen);
  for (const auto& [name, tensor] : model.tensors()) {
    // A tied head may be stored all the same, and old LLaMA checkpoints carry their rope table;
    // neither is a weight.
    if (name.ends_with("rotary_emb.inv_freq")) seen.insert(name);
  }
  if (config.tie_word_embeddings) seen.insert("lm_head.weight");
  reject_other(model.tensors(), directory.string(), seen);
}

void load_flat(const fs::path& file, const ParameterStore& parameters,
               const std::vector<FlatTensors>& flats) {
  const SafetensorsFile stored(file);
  std::set<std::string> seen;
  for (const FlatTensors& flat : flats)
    read_slices(stored.tensors(), file.string(), parameters, flat, seen);
  reject_other(stored.tensors(), file.string(), seen);
}

std::string save_flat(const fs::path& file, const ParameterStore& parameters,
                      const std::vector<FlatTensors>& flats, Dtype stored) {
  std::vector<TensorToWrite> tensors;
  const Device device = parameters.device();
  std::vector<std::byte> staging;  // a slice of device memory, while it is written
  for (const FlatTensors& flat : flats) {
    for (const NamedParameter& p : parameters.all()) {
      for (const ParameterSlice& slice : p.slices) {
        const int64_t first = p.offset + slice.begin * p.columns();
        const SliceRows rows{slice.end - slice.begin, p.own_columns(), p.columns()};
        const std::byte* source =
            static_cast<const std::byte*>(flat.data) + first * dtype_size(flat.dtype);
        const auto fill = [source, rows, dtype = flat.dtype, stored, device,
                           &staging](const std::function<void(const void*, size_t)>& out) {
          const std::byte* data = source;
          if (device.kind != DeviceKind::kCpu) {
            const int64_t bytes = rows.rows * rows.stride * dtype_size(dtype);
            staging.resize(static_cast<size_t>(bytes));
            DeviceRuntime& runtime = device_runtime(device.kind);
            runtime.copy_to_host(staging.data(), source, bytes, device_stream(device));
            runtime.synchronize(device_stream(device));
            data = staging.data();
          }
          if (dtype == stored) {
            const int64_t row_bytes = rows.columns * dtype_size(dtype);
            if (rows.columns == rows.stride) {
              return out(data, static_cast<size_t>(rows.rows * row_bytes));
            }
            for (int64_t r = 0; r < rows.rows; ++r) {
              out(data + r * rows.stride * dtype_size(dtype), static_cast<size_t>(row_bytes));
            }
            return;
          }
          HEIRLOOM_ASSERT(stored != Dtype::kFloat64);
          std::array<float, 4096> run;
          std::array<bfloat16, 4096> half;
          const int64_t run_length = static_cast<int64_t>(run.size());
          const int64_t n = rows.count();
          for (int64_t i = 0; i < n; i += run_length) {
            const int64_t m = std::min(run_length, n - i);
            for (int64_t j = 0; j < m; ++j) {
              run[static_cast<size_t>(j)] = element_as_float(data, dtype, rows.at(i + j));
              half[static_cast<size_t>(j)] = bfloat16(run[static_cast<size_t>(j)]);
            }
            const void* converted =
                stored == Dtype::kBFloat16 ? static_cast<const void*>(half.data()) : run.data();
            out(converted, static_cast<size_t>(m * dtype_size(stored)));
          }
        };
        tensors.push_back(
            {flat.prefix + slice.name, stored_name(stored), p.stored_shape(slice), fill});
      }
    }
  }
  return write_safetensors(file, tensors);
}

std::string write_model(const fs::path& directory, ModelConfig config,
                        const ParameterStore& parameters, const void* flat, Dtype dtype,
                        Dtype stored, const fs::path& tokenizer) {
  config.stored_dtype = dtype_name(stored);
  write_file_atomically(directory / "config.json", dump_json(model_config_json(config), 2) + "\n");
  Json generation = Json::object();
  if (config.bos_token_id) generation["bos_token_id"] = *config.bos_token_id;
  if (config.eos_token_ids.size() == 1) generation["eos_token_id"] = config.eos_token_ids[0];
  if (config.eos_token_ids.size() > 1) generation["eos_token_id"] = config.eos_token_ids;
  write_file_atomically(directory / "generation_config.json", dump_json(generation, 2) + "\n");
  if (!tokenizer.empty()) write_file_atomically(directory / "tokenizer.json", read_file(tokenizer));
  return save_flat(directory / "model.safetensors", parameters,
                   {{"", const_cast<void*>(flat), dtype}}, stored);
}

}  // namespace heirloom
