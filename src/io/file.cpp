// SPDX-License-Identifier: Apache-2.0
#include "heirloom/io/file.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

namespace heirloom {
namespace {

constexpr size_t kBufferBytes = size_t{1} << 18;

std::string reason(int error) { return std::generic_category().message(error); }

/// Owns a descriptor for the length of a scope.
struct Descriptor {
  explicit Descriptor(int value) : fd(value) {}
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int fd;
};

int open_for_reading(const fs::path& path, int more_flags = 0) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | more_flags);
  if (fd < 0) {
    throw_error<IoError>("[file] expected a readable file; got {}; {}", reason(errno),
                         path.string());
  }
  return fd;
}

[[noreturn]] void throw_write_error(const fs::path& path, int error) {
  const bool full = error == ENOSPC || error == EDQUOT || error == EFBIG;
  throw_error<WriteError>(
      "[file] expected to write {}; got {}; {}", path.string(), reason(error),
      full ? "free space or choose another place" : "check the path and its permissions");
}

/// fsync where the file supports it: pipes and devices do not.
void sync_descriptor(int fd, const fs::path& path) {
  if (::fsync(fd) != 0 && errno != EINVAL && errno != EROFS && errno != ENOTSUP) {
    throw_write_error(path, errno);
  }
}

fs::file_status status_of(const fs::path& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (status.type() == fs::file_type::none) {
    throw_error<IoError>("[file] expected a path that can be followed; got {}; {}", error.message(),
                         path.string());
  }
  return status;
}

[[noreturn]] void throw_too_large(const fs::path& path, int64_t max_bytes, const std::string& got) {
  throw_error<IoError>("[file] expected at most {} bytes; got {}; {}; is it the right file?",
                       max_bytes, got, path.string());
}

}  // namespace

bool exists(const fs::path& path) { return fs::exists(status_of(path)); }
bool is_directory(const fs::path& path) { return fs::is_directory(status_of(path)); }
bool is_regular_file(const fs::path& path) { return fs::is_regular_file(status_of(path)); }

std::string read_file(const fs::path& path, int64_t max_bytes) {
  const Descriptor file(open_for_reading(path));
  struct stat info {};
  std::string contents;
  if (::fstat(file.fd, &info) == 0 && S_ISREG(info.st_mode)) {
    if (info.st_size > max_bytes) {
      throw_too_large(path, max_bytes, fmt::format("{}", info.st_size));
    }
    contents.resize(static_cast<size_t>(info.st_size) + 1);
  } else {
    contents.resize(kBufferBytes);
  }
  size_t size = 0;
  for (;;) {
    if (size == contents.size()) contents.resize(2 * size);
    const ssize_t got = ::read(file.fd, contents.data() + size, contents.size() - size);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      throw_error<IoError>("[file] expected a readable file; got {}; {}", reason(errno),
                           path.string());
    }
    if (got == 0) break;
    size += static_cast<size_t>(got);
    if (static_cast<int64_t>(size) > max_bytes) throw_too_large(path, max_bytes, "more");
  }
  contents.resize(size);
  return contents;
}

void write_file_atomically(const fs::path& path, std::string_view contents) {
  AtomicFile file(path);
  file.writer().write(contents);
  file.commit();
}

void sync_directory(const fs::path& path) {
  const fs::path name = path.empty() ? fs::path(".") : path;
  const Descriptor directory(::open(name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (directory.fd < 0) throw_write_error(name, errno);
  sync_descriptor(directory.fd, name);
}

MappedFile::MappedFile(const fs::path& path) : path_(path) {
  const Descriptor file(open_for_reading(path, O_NONBLOCK));  // a pipe is refused, not waited for
  struct stat info {};
  if (::fstat(file.fd, &info) != 0) {
    throw_error<IoError>("[file] expected a readable file; got {}; {}", reason(errno),
                         path.string());
  }
  if (!S_ISREG(info.st_mode)) {
    throw_error<IoError>("[file] expected a regular file; got a {}; {}",
                         S_ISDIR(info.st_mode) ? "directory" : "pipe or device", path.string());
  }
  size_ = static_cast<size_t>(info.st_size);
  if (size_ == 0) return;
  void* data = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.fd, 0);
  if (data == MAP_FAILED) {
    throw_error<IoError>("[file] expected to map {} bytes; got {}; {}", size_, reason(errno),
                         path.string());
  }
  data_ = data;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      path_(std::move(other.path_)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(path_, other.path_);
  return *this;
}

FileWriter::FileWriter(const fs::path& path, Mode mode) : path_(path) {
  int flags = O_WRONLY | O_CREAT | O_CLOEXEC;
  switch (mode) {
    case Mode::kTruncate:
      flags |= O_TRUNC;
      break;
    case Mode::kAppend:
      flags |= O_APPEND;
      break;
    case Mode::kCreate:
      flags |= O_EXCL;
      break;
  }
  fd_ = ::open(path.c_str(), flags, 0666);
  if (fd_ < 0) throw_write_error(path_, errno);
}

FileWriter::~FileWriter() {
  if (fd_ < 0) return;
  try {
    flush();
  } catch (const WriteError&) {
  }
  ::close(fd_);
}

void FileWriter::write_all(const void* data, size_t bytes) {
  const char* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t done = ::write(fd_, at, bytes);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) throw_write_error(path_, done < 0 ? errno : EIO);
    at += done;
    bytes -= static_cast<size_t>(done);
  }
}

void FileWriter::write(const void* data, size_t bytes) {
  if (fd_ < 0) throw_write_error(path_, EBADF);
  written_ += static_cast<int64_t>(bytes);
  if (buffer_.size() + bytes > kBufferBytes) flush();
  if (bytes >= kBufferBytes) {
    write_all(data, bytes);
  } else {
    buffer_.append(static_cast<const char*>(data), bytes);
  }
}

void FileWriter::flush() {
  try {
    write_all(buffer_.data(), buffer_.size());
  } catch (const WriteError&) {
    buffer_.clear();  // the destructor must not try again
    throw;
  }
  buffer_.clear();
}

void FileWriter::write_at(int64_t offset, const void* data, size_t bytes) {
  flush();
  const char* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t done = ::pwrite(fd_, at, bytes, offset);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) throw_write_error(path_, done < 0 ? errno : EIO);
    at += done;
    offset += done;
    bytes -= static_cast<size_t>(done);
  }
}

void FileWriter::finish() {
  if (fd_ < 0) return;
  flush();
  sync_descriptor(fd_, path_);
  if (::close(std::exchange(fd_, -1)) != 0) throw_write_error(path_, errno);
}

AtomicFile::AtomicFile(const fs::path& path) : target_(path) {
  std::error_code ignored;
  if (fs::is_symlink(fs::symlink_status(path, ignored))) {
    const fs::path resolved = fs::canonical(path, ignored);
    if (!resolved.empty()) target_ = resolved;
  }
  const fs::file_status status = fs::status(target_, ignored);
  if (fs::is_directory(status)) throw_write_error(target_, EISDIR);
  const std::string name = path.string();
  const bool device = name.starts_with("/dev/") && !name.starts_with("/dev/shm/");
  if (device || (fs::exists(status) && !fs::is_regular_file(status))) {
    writer_.emplace(path);
    return;
  }
  static std::atomic<int> counter{0};
  fs::path temporary = target_;
  temporary.replace_filename(fmt::format(
      ".{}.{}.{}.tmp", target_.filename().string().substr(0, 200), ::getpid(), ++counter));
  // A leftover of a killed process that had the same id is nobody's.
  ::unlink(temporary.c_str());
  writer_.emplace(temporary, FileWriter::Mode::kCreate);
  temporary_ = temporary;
}

AtomicFile::~AtomicFile() {
  if (temporary_.empty()) return;
  ::unlink(temporary_.c_str());
}

void AtomicFile::finish() {
  writer_->finish();
  finished_ = true;
}

void AtomicFile::commit() {
  if (!finished_) finish();
  if (temporary_.empty()) return;
  if (::rename(temporary_.c_str(), target_.c_str()) != 0) throw_write_error(target_, errno);
  temporary_.clear();
  sync_directory(target_.parent_path());
}

namespace {
static_assert(std::endian::native == std::endian::little);

// The rotation brings the high bits, which a product alone never carries down, back into play.
uint64_t hash_word(uint64_t state, uint64_t word) {
  return std::rotl(state + word * 0x9E3779B97F4A7C15ull, 31) * 0xBF58476D1CE4E5B9ull;
}
}  // namespace

void ContentHash::update(const void* data, size_t bytes) {
  const auto* at = static_cast<const unsigned char*>(data);
  total_ += bytes;
  while (bytes > 0 && pending_bytes_ != 0) {
    pending_ |= uint64_t{*at} << (8 * pending_bytes_);
    ++at;
    --bytes;
    if (++pending_bytes_ == 8) {
      state_ = hash_word(state_, pending_);
      pending_ = 0;
      pending_bytes_ = 0;
    }
  }
  for (; bytes >= 8; at += 8, bytes -= 8) {
    uint64_t word;
    std::memcpy(&word, at, 8);
    state_ = hash_word(state_, word);
  }
  for (; bytes > 0; ++at, --bytes) pending_ |= uint64_t{*at} << (8 * pending_bytes_++);
}

std::string ContentHash::hex() const {
  return fmt::format("{:016x}", hash_word(hash_word(state_, pending_), total_));
}

void write_directory_atomically(const fs::path& path,
                                const std::function<void(const fs::path& temporary)>& fill) {
  const fs::path target = path.filename().empty() ? path.parent_path() : path;  // "out/"
  const fs::path parent = target.parent_path().empty() ? "." : target.parent_path();
  std::error_code error;
  fs::create_directories(parent, error);
  if (error) throw_write_error(parent, error.value());
  const fs::path temporary = parent / (".writing-" + target.filename().string());
  fs::remove_all(temporary, error);
  try {
    if (!fs::create_directory(temporary, error)) {
      throw_write_error(temporary, error ? error.value() : EEXIST);
    }
    fill(temporary);
    sync_directory(temporary);
    // A directory cannot be renamed over one that holds something; the two change places in one
    // step instead.
    if (!fs::exists(target) || (fs::is_directory(target) && fs::is_empty(target))) {
      fs::rename(temporary, target);
    } else if (renameat2(AT_FDCWD, temporary.c_str(), AT_FDCWD, target.c_str(), RENAME_EXCHANGE) !=
               0) {
      throw_write_error(target, errno);
    }
    sync_directory(parent);
    fs::remove_all(temporary, error);
  } catch (const fs::filesystem_error& e) {
    fs::remove_all(temporary, error);
    throw_write_error(target, e.code().value());
  } catch (...) {
    fs::remove_all(temporary, error);
    throw;
  }
}

}  // namespace heirloom
