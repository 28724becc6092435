// SPDX-License-Identifier: Apache-2.0
//
// Bytes of a file, decompressed on the way when its name ends with .gz (zlib, several members) or
// .zst (libzstd, several frames). Memory is bounded whatever the file's size; a damaged or
// truncated stream is a FormatError.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "heirloom/io/file.h"

namespace heirloom {

class ByteSource {
 public:
  virtual ~ByteSource() = default;
  /// Up to `bytes` > 0 bytes; 0 only at the end.
  virtual size_t read(char* out, size_t bytes) = 0;
  /// Bytes taken from the stored (compressed) file so far, and its size (0 where it has none: a
  /// pipe).
  virtual int64_t consumed() const = 0;
  virtual int64_t total() const = 0;
};

/// IoError when the file cannot be read.
std::unique_ptr<ByteSource> open_bytes(const fs::path& path);

/// The same over bytes in memory; `name` decides on the decompression and names the source in
/// messages.
std::unique_ptr<ByteSource> memory_bytes(std::string contents, const std::string& name);

}  // namespace heirloom
