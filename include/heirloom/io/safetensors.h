// SPDX-License-Identifier: Apache-2.0
//
// safetensors (Hugging Face): u64 little-endian header length, a JSON header, then the tensors'
// bytes. The reader is strict: duplicate names, overlaps, holes, offsets past the end, unknown
// dtypes, headers over 100 MB and shapes that overflow are FormatErrors. A model may be one file,
// or several with an index (model.safetensors.index.json).
#pragma once

#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "heirloom/io/file.h"
#include "heirloom/io/json.h"

namespace heirloom {

/// One stored tensor: bytes in the mapped file, valid while its SafetensorsFile lives.
struct StoredTensor {
  std::string dtype;  ///< "F32", "F16", "BF16", "F64", "I32", ... as spelled in the file
  std::vector<int64_t> shape;
  std::span<const std::byte> data;  ///< not necessarily aligned for its dtype: copy, do not cast
  int64_t numel() const;
};

/// Bytes of one element of a safetensors dtype; 0 when unknown.
int64_t safetensors_dtype_size(std::string_view dtype);

class SafetensorsFile {
 public:
  explicit SafetensorsFile(const fs::path& path);
  const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const fs::path& path() const { return file_.path(); }

 private:
  MappedFile file_;
  std::map<std::string, StoredTensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

/// Checks and lists a safetensors image in memory (what SafetensorsFile and the fuzz target call).
void parse_safetensors(std::span<const std::byte> image, const std::string& origin,
                       std::map<std::string, StoredTensor>& tensors,
                       std::map<std::string, std::string>& metadata);

/// All weights of a model directory: model.safetensors, or the shards that
/// model.safetensors.index.json names. A missing shard, a tensor that the index places elsewhere,
/// or one that two shards hold is a FormatError.
class SafetensorsModel {
 public:
  explicit SafetensorsModel(const fs::path& directory);
  const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }

 private:
  std::vector<SafetensorsFile> files_;
  std::map<std::string, StoredTensor> tensors_;
};

/// What to write: `fill(out)` is called once, front to back, and must call out(pointer, bytes) for
/// exactly the tensor's bytes.
struct TensorToWrite {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  std::function<void(const std::function<void(const void*, size_t)>& out)> fill;
};

/// Streams a safetensors file (data 64-byte aligned, "format": "pt" in the metadata), complete or
/// absent like AtomicFile, and returns its content hash. Memory use is the header only. A repeated
/// name, an unknown dtype or a `fill` that gives another number of bytes is an ArgumentError.
std::string write_safetensors(const fs::path& path, const std::vector<TensorToWrite>& tensors,
                              std::map<std::string, std::string> metadata = {});

}  // namespace heirloom
