// SPDX-License-Identifier: Apache-2.0
//
// Files: whole reads, memory maps, and writes that are complete or absent.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "heirloom/core/error.h"

namespace heirloom {

namespace fs = std::filesystem;

/// The IoError of every failed write here, so that a caller can tell it from an unreadable input.
/// exit 1
struct WriteError : IoError {
  using IoError::IoError;
};

/// What is read whole: configs, indexes, tokenizers. Past it a file is something else.
inline constexpr int64_t kMaxWholeFile = int64_t{1} << 28;

/// All bytes of a file. IoError names the path and the system's reason, or says that there are more
/// than `max_bytes`.
std::string read_file(const fs::path& path, int64_t max_bytes = kMaxWholeFile);

/// std::filesystem's questions, links followed, with an IoError where the system cannot answer (a
/// loop of links, a name that is too long).
bool exists(const fs::path& path);
bool is_directory(const fs::path& path);
bool is_regular_file(const fs::path& path);

/// Writes to a temporary name in the same directory, fsyncs the file, renames it over `path`,
/// fsyncs the directory. On any failure (a full disk) the temporary is removed, `path` is
/// untouched, and IoError says what happened. A symbolic link is followed; a path that is no
/// regular file (/dev/stdout, a pipe) is written in place.
void write_file_atomically(const fs::path& path, std::string_view contents);

/// fsync of a directory, so that renames in it are durable.
void sync_directory(const fs::path& path);

/// A file mapped read-only. Movable; empty files map to an empty span.
class MappedFile {
 public:
  MappedFile() = default;
  explicit MappedFile(const fs::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  std::span<const std::byte> bytes() const { return {static_cast<const std::byte*>(data_), size_}; }
  const fs::path& path() const { return path_; }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
  fs::path path_;
};

/// A file being written front to back with buffering; `finish` fsyncs and closes. Every failure is
/// a WriteError naming the path.
class FileWriter {
 public:
  enum class Mode { kTruncate, kAppend, kCreate };  ///< kCreate fails where the file exists
  explicit FileWriter(const fs::path& path, Mode mode = Mode::kTruncate);
  ~FileWriter();  ///< closes without fsync; errors are lost, so call finish()
  FileWriter(FileWriter&&) = delete;
  void write(const void* data, size_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  /// Hands everything buffered to the operating system (a line-oriented log calls it per line).
  void flush();
  void finish();
  /// Overwrites bytes already written (a header whose counts are known at the end); not in append
  /// mode.
  void write_at(int64_t offset, const void* data, size_t bytes);
  /// Bytes handed to `write`, buffered ones included.
  int64_t bytes_written() const { return written_; }
  const fs::path& path() const { return path_; }

 private:
  void write_all(const void* data, size_t bytes);
  fs::path path_;
  int fd_ = -1;
  std::string buffer_;
  int64_t written_ = 0;
};

/// A streamed file that is complete or absent: bytes go to a temporary name beside `path`, `commit`
/// fsyncs it and renames it over `path`; destroyed without commit, the temporary is removed and
/// `path` is untouched. Links and paths that are no regular file: as in write_file_atomically.
class AtomicFile {
 public:
  explicit AtomicFile(const fs::path& path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  FileWriter& writer() { return *writer_; }
  /// fsyncs and closes the temporary; optional before `commit` (several files that shall appear
  /// together).
  void finish();
  void commit();

 private:
  fs::path target_, temporary_;  // temporary_ is empty when written in place or committed
  std::optional<FileWriter> writer_;
  bool finished_ = false;
};

/// A directory that is complete or absent: `fill` writes its files under a temporary name
/// (".writing-<name>" beside it), which is made durable and then takes the place of `path`, in one
/// step where that exists. On any failure `path` is untouched. Parents are created.
void write_directory_atomically(const fs::path& path,
                                const std::function<void(const fs::path& temporary)>& fill);

/// A content hash against damage, not malice: multiply and rotate over 8-byte words, streaming.
/// Equal bytes give equal hashes on every platform, however they are cut into calls.
class ContentHash {
 public:
  void update(const void* data, size_t bytes);
  std::string hex() const;  ///< 16 lower-case hex digits

 private:
  uint64_t state_ = 0xCBF29CE484222325ull;
  uint64_t pending_ = 0;
  unsigned pending_bytes_ = 0;
  uint64_t total_ = 0;
};

}  // namespace heirloom
