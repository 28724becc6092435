// SPDX-License-Identifier: Apache-2.0
//
// GGUF (ggml's model file), versions 2 and 3, little-endian:
//
//   "GGUF" | u32 version | u64 tensors | u64 pairs
//   pairs   | string key | u32 type | value |           a string is u64 bytes, then UTF-8
//   tensors | string name | u32 n | u64 dims[n] | u32 type | u64 offset |   dims: innermost first
//   zeros up to general.alignment (default 32), then the data, from which the offsets count
//
// The reader is strict: counts, lengths, dims and offsets that overflow or leave the file, repeated
// names, text that is no UTF-8, overlaps, gaps beyond the alignment and bytes behind the last
// tensor are FormatErrors; a quantisation that this code cannot read is an UnsupportedError that
// names it. Memory use is bounded by the file's size.
//
// Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
#pragma once

#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "heirloom/io/file.h"

namespace heirloom {

enum class GgufType : uint32_t { kF32 = 0, kF16 = 1, kQ4_0 = 2, kQ4_1 = 3, kQ8_0 = 8, kBf16 = 30 };

const char* gguf_type_name(GgufType type);  ///< "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"
bool is_quantised(GgufType type);
/// Elements of a block and its bytes: (1, 4) for F32, (32, 18) for Q4_0.
struct GgufBlock {
  int64_t elements, bytes;
};
GgufBlock gguf_block(GgufType type);

/// One tensor: bytes in the image, valid while it lives.
struct GgufTensor {
  GgufType type = GgufType::kF32;
  std::vector<int64_t> shape;       ///< outermost first: (rows, columns); every dim at least 1
  std::span<const std::byte> data;  ///< rows of whole blocks; not aligned for its type
};

/// A metadata value: one element, or an array of them.
class GgufValue {
 public:
  enum class Kind : uint32_t {
    kUint8,
    kInt8,
    kUint16,
    kInt16,
    kUint32,
    kInt32,
    kFloat32,
    kBool,
    kString,
    kArray,
    kUint64,
    kInt64,
    kFloat64
  };
  Kind kind() const { return kind_; }  ///< of the elements; never kArray
  bool is_array() const { return is_array_; }
  bool is_integer() const;
  size_t size() const { return kind_ == Kind::kString ? strings_.size() : count_; }
  /// Element i, of a value of that kind (InternalError else). An integer above 2^63 - 1 reads as
  /// that.
  int64_t integer(size_t i = 0) const;
  double number(size_t i = 0) const;  ///< integers too
  bool boolean(size_t i = 0) const;
  std::string_view text(size_t i = 0) const;
  const std::vector<std::string_view>& texts() const { return strings_; }
  std::string type_text() const;  ///< "array of string", for messages

 private:
  friend class GgufParser;
  Kind kind_ = Kind::kUint8;
  bool is_array_ = false;
  size_t count_ = 0;
  std::span<const std::byte> elements_;    ///< as they lie in the file
  std::vector<std::string_view> strings_;  ///< into the file
};

/// What a file says of itself. The getters throw a FormatError that names the key where the value
/// is of another type; `find...` give nothing where the key is absent, the others throw.
class GgufMetadata {
 public:
  const std::map<std::string, GgufValue, std::less<>>& values() const { return values_; }
  const std::string& origin() const { return origin_; }
  const GgufValue* find(std::string_view key) const;

  std::optional<int64_t> find_integer(std::string_view key) const;
  std::optional<double> find_number(std::string_view key) const;
  std::optional<bool> find_boolean(std::string_view key) const;
  std::optional<std::string> find_text(std::string_view key) const;
  /// An array of strings, of integers (booleans excluded), of numbers; nullptr when absent.
  const GgufValue* find_texts(std::string_view key) const;
  const GgufValue* find_integers(std::string_view key) const;
  const GgufValue* find_numbers(std::string_view key) const;

  int64_t integer(std::string_view key) const;
  double number(std::string_view key) const;
  std::string text(std::string_view key) const;

 private:
  friend class GgufParser;
  [[noreturn]] void fail(std::string_view key, const char* expected) const;
  std::map<std::string, GgufValue, std::less<>> values_;
  std::string origin_;
};

struct GgufImage {
  uint32_t version = 0;
  GgufMetadata metadata;
  std::map<std::string, GgufTensor> tensors;
};

/// Checks and lists an image in memory, which must outlive the result.
GgufImage parse_gguf(std::span<const std::byte> image, const std::string& origin);

class GgufFile {
 public:
  explicit GgufFile(const fs::path& path);
  const GgufMetadata& metadata() const { return image_.metadata; }
  const std::map<std::string, GgufTensor>& tensors() const { return image_.tensors; }
  const fs::path& path() const { return file_.path(); }

 private:
  MappedFile file_;
  GgufImage image_;
};

/// The values that blocks stand for, exactly as ggml defines them (float32; F32 keeps its bits).
/// `blocks` holds whole blocks; `out` takes their elements.
///
///   Q8_0  f16 d, int8 q[32]              d * q
///   Q4_0  f16 d, 16 bytes of nibbles     d * (q - 8)
///   Q4_1  f16 d, f16 m, 16 bytes         d * q + m
///   nibbles: byte i holds element i (low) and element i + 16 (high)
void dequantise(GgufType type, std::span<const std::byte> blocks, float* out);

}  // namespace heirloom
