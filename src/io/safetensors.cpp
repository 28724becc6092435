// SPDX-License-Identifier: Apache-2.0
#include "heirloom/io/safetensors.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <set>
#include <tuple>
#include <utility>

#include "heirloom/core/error.h"

namespace heirloom {
namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kDataAlignment = 64;
constexpr const char* kMetadataKey = "__metadata__";
constexpr const char* kIndexName = "model.safetensors.index.json";

constexpr std::pair<std::string_view, int64_t> kDtypeSizes[] = {
    {"F64", 8}, {"F32", 4}, {"F16", 2},  {"BF16", 2},    {"I64", 8},
    {"I32", 4}, {"I16", 2}, {"I8", 1},   {"U64", 8},     {"U32", 4},
    {"U16", 2}, {"U8", 1},  {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1},
};

/// Bytes of a tensor, or -1 when they do not fit an int64.
int64_t tensor_bytes(std::string_view dtype, const std::vector<int64_t>& shape) {
  // A zero dimension makes the tensor empty, whatever the others are: overflow is still refused.
  int64_t bytes = safetensors_dtype_size(dtype);
  bool empty = false;
  for (const int64_t dim : shape) {
    if (dim == 0) {
      empty = true;
    } else if (__builtin_mul_overflow(bytes, dim, &bytes)) {
      return -1;
    }
  }
  return empty ? 0 : bytes;
}

int64_t to_count(const Json& value, const std::string& what, const std::string& origin) {
  if (value.is_number_unsigned()) {
    const auto count = value.get<uint64_t>();
    if (count <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return static_cast<int64_t>(count);
    }
  }
  throw_error<FormatError>("[safetensors] expected a whole number below 2^63 as {}; got {}; {}",
                           what, dump_json(value).substr(0, 100), origin);
}

struct Entry {
  int64_t begin, end;
  std::string name;
};

/// One entry of the header, with its claims checked against each other and the size of the data.
Entry parse_entry(const std::string& name, const Json& value, std::span<const std::byte> data,
                  const std::string& origin, StoredTensor& tensor) {
  const std::string where = fmt::format("tensor \"{}\" of {}", name.substr(0, 200), origin);
  if (!value.is_object() || value.size() != 3 || !value.contains("dtype") ||
      !value.contains("shape") || !value.contains("data_offsets")) {
    throw_error<FormatError>(
        "[safetensors] expected an object of dtype, shape and data_offsets; got {}; {}",
        dump_json(value).substr(0, 200), where);
  }
  const Json& dtype = value["dtype"];
  if (!dtype.is_string() || safetensors_dtype_size(dtype.get_ref<const std::string&>()) == 0) {
    throw_error<FormatError>("[safetensors] expected a known dtype; got {}; {}",
                             dump_json(dtype).substr(0, 100), where);
  }
  const Json &shape = value["shape"], &offsets = value["data_offsets"];
  if (!shape.is_array() || !offsets.is_array() || offsets.size() != 2) {
    throw_error<FormatError>(
        "[safetensors] expected a shape list and two data_offsets; got {} and {}; {}",
        dump_json(shape).substr(0, 100), dump_json(offsets).substr(0, 100), where);
  }
  tensor.dtype = dtype.get<std::string>();
  for (const Json& dim : shape) tensor.shape.push_back(to_count(dim, "a dimension", where));
  const int64_t begin = to_count(offsets[0], "an offset", where);
  const int64_t end = to_count(offsets[1], "an offset", where);
  const int64_t bytes = tensor_bytes(tensor.dtype, tensor.shape);
  if (bytes < 0) {
    throw_error<FormatError>("[safetensors] expected a shape below 2^63 bytes; got {}; {}",
                             dump_json(shape).substr(0, 200), where);
  }
  if (begin > end || end > static_cast<int64_t>(data.size()) || end - begin != bytes) {
    throw_error<FormatError>(
        "[safetensors] expected offsets that hold {} bytes within {} bytes of data; got [{}, {}]; "
        "{}",
        bytes, data.size(), begin, end, where);
  }
  tensor.data = data.subspan(static_cast<size_t>(begin), static_cast<size_t>(bytes));
  return {begin, end, name};
}

}  // namespace

int64_t StoredTensor::numel() const {
  int64_t count = 1;
  for (const int64_t dim : shape) {
    if (dim == 0) return 0;
  }
  for (const int64_t dim : shape) count *= dim;
  return count;
}

int64_t safetensors_dtype_size(std::string_view dtype) {
  for (const auto& [name, bytes] : kDtypeSizes) {
    if (name == dtype) return bytes;
  }
  return 0;
}

void parse_safetensors(std::span<const std::byte> image, const std::string& origin,
                       std::map<std::string, StoredTensor>& tensors,
                       std::map<std::string, std::string>& metadata) {
  uint64_t header_bytes = 0;
  if (image.size() < 8) {
    throw_error<FormatError>(
        "[safetensors] expected 8 bytes of header length; got a file of {}; {}", image.size(),
        origin);
  }
  std::memcpy(&header_bytes, image.data(), 8);
  if (header_bytes > kMaxHeaderBytes || header_bytes > image.size() - 8) {
    throw_error<FormatError>(
        "[safetensors] expected a header of at most {} bytes; got a length of {}; {}; the file is "
        "truncated or no safetensors file",
        std::min<uint64_t>(kMaxHeaderBytes, image.size() - 8), header_bytes, origin);
  }
  const std::string_view text(reinterpret_cast<const char*>(image.data()) + 8, header_bytes);
  const std::span<const std::byte> data = image.subspan(8 + header_bytes);
  const Json header = parse_json(text, origin);
  if (!header.is_object() || text[0] != '{') {
    throw_error<FormatError>("[safetensors] expected a JSON object as header; got {}; {}",
                             header.type_name(), origin);
  }
  std::vector<Entry> entries;
  for (const auto& [name, value] : header.items()) {
    if (name == kMetadataKey) {
      if (!value.is_object()) {
        throw_error<FormatError>("[safetensors] expected an object as __metadata__; got {}; {}",
                                 value.type_name(), origin);
      }
      for (const auto& [key, item] : value.items()) {
        if (!item.is_string()) {
          throw_error<FormatError>(
              "[safetensors] expected strings in __metadata__; got {} for {}; {}", item.type_name(),
              key, origin);
        }
        metadata[key] = item.get<std::string>();
      }
      continue;
    }
    StoredTensor tensor;
    entries.push_back(parse_entry(name, value, data, origin, tensor));
    tensors.emplace(name, std::move(tensor));
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
  });
  int64_t covered = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != covered) {
      throw_error<FormatError>(
          "[safetensors] expected tensor \"{}\" to start at byte {}; got {}, {}; {}",
          entry.name.substr(0, 200), covered, entry.begin,
          entry.begin < covered ? "an overlap" : "a hole", origin);
    }
    covered = entry.end;
  }
  if (covered != static_cast<int64_t>(data.size())) {
    throw_error<FormatError>("[safetensors] expected {} bytes of data; got {}; {}", covered,
                             data.size(), origin);
  }
}

SafetensorsFile::SafetensorsFile(const fs::path& path) : file_(path) {
  parse_safetensors(file_.bytes(), path.string(), tensors_, metadata_);
}

SafetensorsModel::SafetensorsModel(const fs::path& directory) {
  if (const fs::path single = directory / "model.safetensors"; heirloom::exists(single)) {
    files_.emplace_back(single);
    tensors_ = files_[0].tensors();
    return;
  }
  const fs::path index_path = directory / kIndexName;
  if (!heirloom::exists(index_path)) {
    throw_error<IoError>("[safetensors] expected model.safetensors or {}; got neither; {}",
                         kIndexName, directory.string());
  }
  const Json index = read_json_file(index_path.string());
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  if (map == index.end() || !map->is_object()) {
    throw_error<FormatError>("[safetensors] expected an object weight_map; got none; {}",
                             index_path.string());
  }
  std::map<std::string, std::set<std::string>>
      shards;  // file -> the tensors the index places there
  for (const auto& [name, file] : map->items()) {
    const std::string shard = file.is_string() ? file.get<std::string>() : "";
    if (shard.empty() || shard == "." || shard == ".." || shard.find('/') != std::string::npos ||
        shard.find('\0') != std::string::npos) {
      throw_error<FormatError>("[safetensors] expected a plain file name for \"{}\"; got {}; {}",
                               name, dump_json(file).substr(0, 200), index_path.string());
    }
    shards[shard].insert(name);
  }
  for (const auto& [shard, names] : shards) {
    const fs::path path = directory / shard;
    if (!heirloom::exists(path)) {
      throw_error<FormatError>("[safetensors] expected the shard {}; got no such file; {}", shard,
                               index_path.string());
    }
    const SafetensorsFile& file = files_.emplace_back(path);
    for (const auto& [name, tensor] : file.tensors()) {
      if (!names.contains(name)) {
        throw_error<FormatError>(
            "[safetensors] expected only tensors that the index places in {}; got \"{}\"; {}",
            shard, name, index_path.string());
      }
      tensors_.emplace(name, tensor);
    }
    for (const std::string& name : names) {
      if (!file.tensors().contains(name)) {
        throw_error<FormatError>("[safetensors] expected \"{}\" in {}; got a shard without it; {}",
                                 name, shard, index_path.string());
      }
    }
  }
}

std::string write_safetensors(const fs::path& path, const std::vector<TensorToWrite>& tensors,
                              std::map<std::string, std::string> metadata) {
  metadata.emplace("format", "pt");
  Json header = Json::object();
  auto& entries = header.get_ref<Json::object_t&>();
  entries.reserve(tensors.size() + 1);
  entries.emplace_back(kMetadataKey, Json(metadata));
  std::set<std::string_view> names{kMetadataKey};
  int64_t offset = 0;
  for (const TensorToWrite& tensor : tensors) {
    const bool negative =
        std::any_of(tensor.shape.begin(), tensor.shape.end(), [](int64_t d) { return d < 0; });
    const int64_t bytes = negative ? -1 : tensor_bytes(tensor.dtype, tensor.shape);
    HEIRLOOM_CHECK(names.insert(tensor.name).second,
                   "[safetensors] expected distinct tensor names; got \"{}\" twice", tensor.name);
    HEIRLOOM_CHECK(
        safetensors_dtype_size(tensor.dtype) != 0 && bytes >= 0,
        "[safetensors] expected a known dtype and a shape below 2^63 bytes; got {} for \"{}\"",
        tensor.dtype, tensor.name);
    entries.emplace_back(tensor.name, Json{{"dtype", tensor.dtype},
                                           {"shape", tensor.shape},
                                           {"data_offsets", {offset, offset + bytes}}});
    offset += bytes;
  }
  std::string text = dump_json(header);
  text.append((kDataAlignment - (8 + text.size()) % kDataAlignment) % kDataAlignment, ' ');

  AtomicFile file(path);
  ContentHash hash;
  const auto put = [&](const void* data, size_t bytes) {
    hash.update(data, bytes);
    file.writer().write(data, bytes);
  };
  const uint64_t length = text.size();
  put(&length, sizeof length);
  put(text.data(), text.size());
  for (const TensorToWrite& tensor : tensors) {
    const int64_t expected = tensor_bytes(tensor.dtype, tensor.shape);
    const int64_t before = file.writer().bytes_written();
    tensor.fill(put);
    const int64_t given = file.writer().bytes_written() - before;
    HEIRLOOM_CHECK(given == expected, "[safetensors] expected {} bytes for \"{}\"; got {}",
                   expected, tensor.name, given);
  }
  file.commit();
  return hash.hex();
}

}  // namespace heirloom
