// SPDX-License-Identifier: Apache-2.0
#include "heirloom/io/gguf.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <utility>

#include "heirloom/core/error.h"
#include "heirloom/core/half.h"
#include "heirloom/io/utf8.h"

namespace heirloom {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr uint64_t kMaxKeyBytes = 65535;
constexpr uint64_t kMaxNameBytes = 64;
constexpr uint32_t kMaxDims = 4;
constexpr uint64_t kDefaultAlignment = 32;
constexpr uint64_t kMaxAlignment = 1 << 20;
constexpr const char* kAlignmentKey = "general.alignment";

struct TypeInfo {
  uint32_t id;
  const char* name;
  int64_t elements, bytes;  ///< of a block; 0: known by name only
};
constexpr TypeInfo kTypes[] = {
    {0, "F32", 1, 4},      {1, "F16", 1, 2},     {2, "Q4_0", 32, 18},   {3, "Q4_1", 32, 20},
    {6, "Q5_0", 0, 0},     {7, "Q5_1", 0, 0},    {8, "Q8_0", 32, 34},   {9, "Q8_1", 0, 0},
    {10, "Q2_K", 0, 0},    {11, "Q3_K", 0, 0},   {12, "Q4_K", 0, 0},    {13, "Q5_K", 0, 0},
    {14, "Q6_K", 0, 0},    {15, "Q8_K", 0, 0},   {16, "IQ2_XXS", 0, 0}, {17, "IQ2_XS", 0, 0},
    {18, "IQ3_XXS", 0, 0}, {19, "IQ1_S", 0, 0},  {20, "IQ4_NL", 0, 0},  {21, "IQ3_S", 0, 0},
    {22, "IQ2_S", 0, 0},   {23, "IQ4_XS", 0, 0}, {24, "I8", 0, 0},      {25, "I16", 0, 0},
    {26, "I32", 0, 0},     {27, "I64", 0, 0},    {28, "F64", 0, 0},     {29, "IQ1_M", 0, 0},
    {30, "BF16", 1, 2},    {34, "TQ1_0", 0, 0},  {35, "TQ2_0", 0, 0},   {39, "MXFP4", 0, 0},
};

const TypeInfo* find_type(uint32_t id) {
  for (const TypeInfo& type : kTypes) {
    if (type.id == id) return &type;
  }
  return nullptr;
}

const TypeInfo& type_info(GgufType type) {
  const TypeInfo* info = find_type(static_cast<uint32_t>(type));
  HEIRLOOM_ASSERT(info != nullptr && info->elements > 0);
  return *info;
}

struct KindInfo {
  const char* name;
  size_t bytes;  ///< of an element; 0 for strings and arrays
};
constexpr std::array<KindInfo, 13> kKinds{{{"uint8", 1},
                                           {"int8", 1},
                                           {"uint16", 2},
                                           {"int16", 2},
                                           {"uint32", 4},
                                           {"int32", 4},
                                           {"float32", 4},
                                           {"bool", 1},
                                           {"string", 0},
                                           {"array", 0},
                                           {"uint64", 8},
                                           {"int64", 8},
                                           {"float64", 8}}};

const KindInfo& kind_info(GgufValue::Kind kind) { return kKinds[static_cast<size_t>(kind)]; }

template <class T>
T load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

float load_half(const std::byte* from) { return half_to_float(load<uint16_t>(from)); }

}  // namespace

const char* gguf_type_name(GgufType type) { return type_info(type).name; }
GgufBlock gguf_block(GgufType type) {
  const TypeInfo& info = type_info(type);
  return {info.elements, info.bytes};
}
bool is_quantised(GgufType type) { return type_info(type).elements > 1; }

bool GgufValue::is_integer() const {
  switch (kind_) {
    case Kind::kFloat32:
    case Kind::kFloat64:
    case Kind::kBool:
    case Kind::kString:
    case Kind::kArray:
      return false;
    default:
      return true;
  }
}

int64_t GgufValue::integer(size_t i) const {
  HEIRLOOM_ASSERT(is_integer() && i < count_);
  const std::byte* at = elements_.data() + i * kind_info(kind_).bytes;
  switch (kind_) {
    case Kind::kUint8:
      return load<uint8_t>(at);
    case Kind::kInt8:
      return load<int8_t>(at);
    case Kind::kUint16:
      return load<uint16_t>(at);
    case Kind::kInt16:
      return load<int16_t>(at);
    case Kind::kUint32:
      return load<uint32_t>(at);
    case Kind::kInt32:
      return load<int32_t>(at);
    case Kind::kUint64:
      return static_cast<int64_t>(
          std::min<uint64_t>(load<uint64_t>(at), std::numeric_limits<int64_t>::max()));
    default:
      return load<int64_t>(at);
  }
}

double GgufValue::number(size_t i) const {
  if (is_integer()) return static_cast<double>(integer(i));
  HEIRLOOM_ASSERT((kind_ == Kind::kFloat32 || kind_ == Kind::kFloat64) && i < count_);
  const std::byte* at = elements_.data() + i * kind_info(kind_).bytes;
  return kind_ == Kind::kFloat32 ? static_cast<double>(load<float>(at)) : load<double>(at);
}

bool GgufValue::boolean(size_t i) const {
  HEIRLOOM_ASSERT(kind_ == Kind::kBool && i < count_);
  return elements_[i] != std::byte{0};
}

std::string_view GgufValue::text(size_t i) const {
  HEIRLOOM_ASSERT(kind_ == Kind::kString && i < strings_.size());
  return strings_[i];
}

std::string GgufValue::type_text() const {
  return std::string(is_array_ ? "array of " : "") + kind_info(kind_).name;
}

const GgufValue* GgufMetadata::find(std::string_view key) const {
  const auto it = values_.find(key);
  return it == values_.end() ? nullptr : &it->second;
}

void GgufMetadata::fail(std::string_view key, const char* expected) const {
  const GgufValue* value = find(key);
  throw_error<FormatError>("[gguf] expected {} as {}; got {}; {}", expected, key,
                           value == nullptr ? "none" : value->type_text(), origin_);
}

std::optional<int64_t> GgufMetadata::find_integer(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_array() || !value->is_integer()) fail(key, "an integer");
  return value->integer();
}

std::optional<double> GgufMetadata::find_number(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  const GgufValue::Kind kind = value->kind();
  if (value->is_array() || kind == GgufValue::Kind::kString || kind == GgufValue::Kind::kBool) {
    fail(key, "a number");
  }
  return value->number();
}

std::optional<bool> GgufMetadata::find_boolean(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_array() || value->kind() != GgufValue::Kind::kBool) fail(key, "a bool");
  return value->boolean();
}

std::optional<std::string> GgufMetadata::find_text(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_array() || value->kind() != GgufValue::Kind::kString) fail(key, "a string");
  return std::string(value->text());
}

const GgufValue* GgufMetadata::find_texts(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value != nullptr && !(value->is_array() && value->kind() == GgufValue::Kind::kString)) {
    fail(key, "an array of strings");
  }
  return value;
}

const GgufValue* GgufMetadata::find_integers(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value != nullptr && !(value->is_array() && value->is_integer())) {
    fail(key, "an array of integers");
  }
  return value;
}

const GgufValue* GgufMetadata::find_numbers(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value != nullptr && (!value->is_array() || value->kind() == GgufValue::Kind::kString ||
                           value->kind() == GgufValue::Kind::kBool)) {
    fail(key, "an array of numbers");
  }
  return value;
}

int64_t GgufMetadata::integer(std::string_view key) const {
  const auto value = find_integer(key);
  if (!value) fail(key, "an integer");
  return *value;
}

double GgufMetadata::number(std::string_view key) const {
  const auto value = find_number(key);
  if (!value) fail(key, "a number");
  return *value;
}

std::string GgufMetadata::text(std::string_view key) const {
  auto value = find_text(key);
  if (!value) fail(key, "a string");
  return *std::move(value);
}

/// Reads an image front to back.
class GgufParser {
 public:
  GgufParser(std::span<const std::byte> image, const std::string& origin)
      : image_(image), origin_(origin) {}

  GgufImage run() {
    GgufImage out;
    out.metadata.origin_ = origin_;
    uint64_t tensors = 0, pairs = 0;
    read_header(out.version, tensors, pairs);
    for (uint64_t i = 0; i < pairs; ++i) read_pair(out.metadata);
    const uint64_t alignment = read_alignment(out.metadata);
    std::vector<Placed> placed;
    for (uint64_t i = 0; i < tensors; ++i) placed.push_back(read_tensor(alignment, out.tensors));
    place(std::move(placed), alignment);
    return out;
  }

 private:
  struct Placed {
    uint64_t offset, bytes;
    const std::string* name;
    GgufTensor* tensor;
  };

  std::span<const std::byte> take(uint64_t bytes, const std::string& what) {
    if (bytes > image_.size() - at_) {
      throw_error<FormatError>(
          "[gguf] expected {} bytes of {} at byte {}; got {} to the end of the file; {}; the file "
          "is damaged or cut short",
          bytes, what, at_, image_.size() - at_, origin_);
    }
    const auto part = image_.subspan(at_, static_cast<size_t>(bytes));
    at_ += static_cast<size_t>(bytes);
    return part;
  }

  template <class T>
  T scalar(const std::string& what) {
    return load<T>(take(sizeof(T), what).data());
  }

  std::string_view string(const std::string& what, uint64_t max_bytes) {
    const size_t begin = at_;
    const auto length = scalar<uint64_t>("the length of " + what);
    if (length > max_bytes) {
      throw_error<FormatError>("[gguf] expected at most {} bytes as {}; got {} at byte {}; {}",
                               max_bytes, what, length, begin, origin_);
    }
    const auto bytes = take(length, what);
    const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    if (const size_t bad = find_invalid_utf8(text); bad != text.size()) {
      throw_error<FormatError>("[gguf] expected UTF-8 as {}; got the byte 0x{:02x} at byte {}; {}",
                               what, static_cast<uint8_t>(text[bad]), at_ - text.size() + bad,
                               origin_);
    }
    return text;
  }

  void read_header(uint32_t& version, uint64_t& tensors, uint64_t& pairs) {
    if (image_.size() < 4 || load<uint32_t>(image_.data()) != kMagic) {
      throw_error<FormatError>(
          "[gguf] expected a file that starts with \"GGUF\"; got {}; {}; this is no GGUF file",
          image_.size() < 4 ? fmt::format("{} bytes", image_.size())
                            : fmt::format("0x{:08x}", load<uint32_t>(image_.data())),
          origin_);
    }
    at_ = 4;
    version = scalar<uint32_t>("the version");
    if (version == 1 || version > 3) {
      const bool swapped = (version & 0xFFFF) == 0;
      throw_error<FormatError>(
          "[gguf] expected version 2 or 3, little-endian; got {}; {}; convert the model again with "
          "a current llama.cpp",
          swapped ? "a big-endian file" : fmt::format("version {}", version), origin_);
    }
    if (version == 0) {
      throw_error<FormatError>("[gguf] expected version 2 or 3; got 0; {}", origin_);
    }
    tensors = scalar<uint64_t>("the tensor count");
    pairs = scalar<uint64_t>("the metadata count");
    // A tensor takes at least 8 + 1 + 4 + 8 + 4 + 8 bytes here, a pair 8 + 1 + 4 + 1.
    const uint64_t rest = image_.size() - at_;
    if (tensors > rest / 33 || pairs > rest / 14) {
      throw_error<FormatError>(
          "[gguf] expected counts that fit a file of {} bytes; got {} tensors and {} metadata "
          "pairs; {}",
          image_.size(), tensors, pairs, origin_);
    }
  }

  GgufValue::Kind read_kind(const std::string& what) {
    const auto kind = scalar<uint32_t>("the type of " + what);
    if (kind >= kKinds.size()) {
      throw_error<FormatError>("[gguf] expected a value type from 0 to {}; got {}; {} of {}",
                               kKinds.size() - 1, kind, what, origin_);
    }
    return static_cast<GgufValue::Kind>(kind);
  }

  void read_pair(GgufMetadata& metadata) {
    const std::string key(string("a metadata key", kMaxKeyBytes));
    const std::string what = fmt::format("\"{}\"", std::string_view(key).substr(0, 200));
    if (key.empty()) {
      throw_error<FormatError>(
          "[gguf] expected a metadata key; got an empty one before byte {}; {}", at_, origin_);
    }
    const auto [it, added] = metadata.values_.try_emplace(key);
    if (!added) {
      throw_error<FormatError>("[gguf] expected each metadata key once; got {} again; {}", what,
                               origin_);
    }
    GgufValue& value = it->second;
    value.kind_ = read_kind(what);
    uint64_t count = 1;
    if (value.kind_ == GgufValue::Kind::kArray) {
      value.is_array_ = true;
      value.kind_ = read_kind(what);
      if (value.kind_ == GgufValue::Kind::kArray) {
        throw_error<FormatError>(
            "[gguf] expected an array of scalars or strings; got an array of "
            "arrays; {} of {}",
            what, origin_);
      }
      count = scalar<uint64_t>("the length of " + what);
    }
    const uint64_t least =
        value.kind_ == GgufValue::Kind::kString ? 8 : kind_info(value.kind_).bytes;
    if (count > (image_.size() - at_) / least) {
      throw_error<FormatError>(
          "[gguf] expected {} that fits the file; got {} elements with {} bytes "
          "to the end of the file; {}",
          what, count, image_.size() - at_, origin_);
    }
    value.count_ = static_cast<size_t>(count);
    if (value.kind_ == GgufValue::Kind::kString) {
      value.strings_.reserve(value.count_);
      for (uint64_t i = 0; i < count; ++i) {
        value.strings_.push_back(string(what, std::numeric_limits<int64_t>::max()));
      }
      return;
    }
    value.elements_ = take(count * least, what);
    if (value.kind_ != GgufValue::Kind::kBool) return;
    for (const std::byte b : value.elements_) {
      if (b > std::byte{1}) {
        throw_error<FormatError>("[gguf] expected a bool of 0 or 1; got {}; {} of {}",
                                 static_cast<int>(b), what, origin_);
      }
    }
  }

  static uint64_t read_alignment(const GgufMetadata& metadata) {
    const auto value = metadata.find_integer(kAlignmentKey);
    if (!value) return kDefaultAlignment;
    const auto alignment = static_cast<uint64_t>(*value);
    if (*value < 1 || alignment > kMaxAlignment || !std::has_single_bit(alignment)) {
      throw_error<FormatError>("[gguf] expected a power of two up to {} as {}; got {}; {}",
                               kMaxAlignment, kAlignmentKey, *value, metadata.origin());
    }
    return alignment;
  }

  Placed read_tensor(uint64_t alignment, std::map<std::string, GgufTensor>& tensors) {
    const std::string name(string("a tensor name", kMaxNameBytes));
    const std::string where = fmt::format("tensor \"{}\" of {}", name, origin_);
    const auto [it, added] = tensors.try_emplace(name);
    if (name.empty() || !added) {
      throw_error<FormatError>("[gguf] expected distinct tensor names; got \"{}\"{}; {}", name,
                               name.empty() ? "" : " again", origin_);
    }
    GgufTensor& tensor = it->second;
    const auto dims = scalar<uint32_t>("the dims of " + where);
    if (dims < 1 || dims > kMaxDims) {
      throw_error<FormatError>("[gguf] expected 1 to {} dims; got {}; {}", kMaxDims, dims, where);
    }
    int64_t elements = 1;
    for (uint32_t i = 0; i < dims; ++i) {
      const auto dim = scalar<uint64_t>("a dim of " + where);
      if (dim < 1 || dim > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) ||
          __builtin_mul_overflow(elements, static_cast<int64_t>(dim), &elements)) {
        throw_error<FormatError>(
            "[gguf] expected dims of at least 1 with a product below 2^63; got {} as dim {}; {}",
            dim, i, where);
      }
      tensor.shape.push_back(static_cast<int64_t>(dim));
    }
    const auto id = scalar<uint32_t>("the type of " + where);
    const TypeInfo* type = find_type(id);
    if (type == nullptr) {
      throw_error<FormatError>("[gguf] expected a known tensor type; got number {}; {}", id, where);
    }
    if (type->elements == 0) {
      throw_error<UnsupportedError>(
          "[gguf] expected F32, F16, BF16, Q8_0, Q4_0 or Q4_1; got {}; {}; quantise the model to "
          "Q8_0 or F16",
          type->name, where);
    }
    tensor.type = static_cast<GgufType>(id);
    const int64_t columns = tensor.shape[0];
    int64_t bytes = 0;
    if (columns % type->elements != 0 ||
        __builtin_mul_overflow(elements / type->elements, type->bytes, &bytes)) {
      throw_error<FormatError>(
          "[gguf] expected rows of whole {} blocks ({} elements) below 2^63 "
          "bytes; got {} columns; {}",
          type->name, type->elements, columns, where);
    }
    std::reverse(tensor.shape.begin(), tensor.shape.end());
    const auto offset = scalar<uint64_t>("the offset of " + where);
    if (offset % alignment != 0) {
      throw_error<FormatError>("[gguf] expected an offset that is a multiple of {}; got {}; {}",
                               alignment, offset, where);
    }
    return {offset, static_cast<uint64_t>(bytes), &it->first, &tensor};
  }

  /// Gives each tensor its bytes. They must follow one another, each from the next multiple of the
  /// alignment, up to the end of the file.
  void place(std::vector<Placed> placed, uint64_t alignment) {
    const auto align = [&](uint64_t n) { return (n + alignment - 1) / alignment * alignment; };
    const uint64_t start = align(at_);
    const uint64_t size = image_.size() > start ? image_.size() - start : 0;
    std::sort(placed.begin(), placed.end(),
              [](const Placed& a, const Placed& b) { return a.offset < b.offset; });
    uint64_t end = 0;
    for (const Placed& p : placed) {
      if (p.offset > size || p.bytes > size - p.offset) {
        throw_error<FormatError>(
            "[gguf] expected {} bytes from offset {} of the data; got {} bytes of data; tensor "
            "\"{}\" of {}; the file is damaged or cut short",
            p.bytes, p.offset, size, *p.name, origin_);
      }
      if (p.offset != align(end)) {
        throw_error<FormatError>("[gguf] expected tensor \"{}\" at offset {}; got {}, {}; {}",
                                 *p.name, align(end), p.offset,
                                 p.offset < end ? "an overlap" : "a gap", origin_);
      }
      p.tensor->data =
          image_.subspan(static_cast<size_t>(start + p.offset), static_cast<size_t>(p.bytes));
      end = p.offset + p.bytes;
    }
    if (size > align(end)) {
      throw_error<FormatError>(
          "[gguf] expected the file to end with its last tensor; got {} bytes "
          "behind it; {}",
          size - end, origin_);
    }
  }

  std::span<const std::byte> image_;
  const std::string& origin_;
  size_t at_ = 0;
};

GgufImage parse_gguf(std::span<const std::byte> image, const std::string& origin) {
  return GgufParser(image, origin).run();
}

GgufFile::GgufFile(const fs::path& path)
    : file_(path), image_(parse_gguf(file_.bytes(), path.string())) {}

void dequantise(GgufType type, std::span<const std::byte> blocks, float* out) {
  const GgufBlock block = gguf_block(type);
  const size_t count = blocks.size() / static_cast<size_t>(block.bytes);
  HEIRLOOM_ASSERT(count * static_cast<size_t>(block.bytes) == blocks.size());
  const auto nibble = [](std::byte b, bool high) {
    return static_cast<float>(static_cast<uint8_t>(b) >> (high ? 4 : 0) & 0xF);
  };
  for (size_t i = 0; i < count; ++i, out += block.elements) {
    const std::byte* at = blocks.data() + i * static_cast<size_t>(block.bytes);
    switch (type) {
      case GgufType::kF32:
        std::memcpy(out, at, sizeof(float));
        break;
      case GgufType::kF16:
        *out = load_half(at);
        break;
      case GgufType::kBf16:
        *out = std::bit_cast<float>(static_cast<uint32_t>(load<uint16_t>(at)) << 16);
        break;
      case GgufType::kQ8_0: {
        const float d = load_half(at);
        for (size_t j = 0; j < 32; ++j) out[j] = d * static_cast<float>(load<int8_t>(at + 2 + j));
        break;
      }
      case GgufType::kQ4_0: {
        const float d = load_half(at);
        for (size_t j = 0; j < 16; ++j) {
          out[j] = d * (nibble(at[2 + j], false) - 8);
          out[j + 16] = d * (nibble(at[2 + j], true) - 8);
        }
        break;
      }
      case GgufType::kQ4_1: {
        const float d = load_half(at), m = load_half(at + 2);
        for (size_t j = 0; j < 16; ++j) {
          out[j] = d * nibble(at[4 + j], false) + m;
          out[j + 16] = d * nibble(at[4 + j], true) + m;
        }
        break;
      }
    }
  }
}

}  // namespace heirloom
