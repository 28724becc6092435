// SPDX-License-Identifier: Apache-2.0
#include "heirloom/data/byte_source.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>
#include <vector>

#include "heirloom/core/error.h"

namespace heirloom {
namespace {

constexpr size_t kChunkBytes = size_t{1} << 18;

class FileSource final : public ByteSource {
 public:
  explicit FileSource(const fs::path& path) : path_(path) {
    fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd_ < 0) fail();
    struct stat info {};
    if (::fstat(fd_, &info) == 0 && S_ISREG(info.st_mode)) total_ = info.st_size;
  }
  ~FileSource() override {
    if (fd_ >= 0) ::close(fd_);
  }
  FileSource(const FileSource&) = delete;
  FileSource& operator=(const FileSource&) = delete;

  size_t read(char* out, size_t bytes) override {
    ssize_t got;
    do {
      got = ::read(fd_, out, bytes);
    } while (got < 0 && errno == EINTR);
    if (got < 0) fail();
    consumed_ += got;
    return static_cast<size_t>(got);
  }
  int64_t consumed() const override { return consumed_; }
  int64_t total() const override { return total_; }

 private:
  [[noreturn]] void fail() const {
    const std::string reason = std::generic_category().message(errno);
    throw_error<IoError>("[file] expected a readable file; got {}; {}", reason, path_.string());
  }

  fs::path path_;
  int fd_ = -1;
  int64_t consumed_ = 0, total_ = 0;
};

class MemorySource final : public ByteSource {
 public:
  explicit MemorySource(std::string contents) : contents_(std::move(contents)) {}
  size_t read(char* out, size_t bytes) override {
    const size_t count = std::min(bytes, contents_.size() - at_);
    std::memcpy(out, contents_.data() + at_, count);
    at_ += count;
    return count;
  }
  int64_t consumed() const override { return static_cast<int64_t>(at_); }
  int64_t total() const override { return static_cast<int64_t>(contents_.size()); }

 private:
  std::string contents_;
  size_t at_ = 0;
};

/// What the two decompressors share: a chunk of compressed input.
class CompressedSource : public ByteSource {
 public:
  CompressedSource(std::unique_ptr<ByteSource> inner, std::string name)
      : inner_(std::move(inner)), name_(std::move(name)), chunk_(kChunkBytes) {}
  int64_t consumed() const override { return inner_->consumed(); }
  int64_t total() const override { return inner_->total(); }

 protected:
  /// Refills the empty chunk; false at the end of the file.
  bool refill() {
    chunk_size_ = inner_->read(chunk_.data(), chunk_.size());
    chunk_at_ = 0;
    return chunk_size_ > 0;
  }
  bool chunk_empty() const { return chunk_at_ == chunk_size_; }
  [[noreturn]] void fail(const char* what, const char* problem) const {
    throw_error<FormatError>("[{}] expected a whole {} stream; got {}; {}", what, what, problem,
                             name_);
  }

  std::unique_ptr<ByteSource> inner_;
  std::string name_;
  std::vector<char> chunk_;
  size_t chunk_at_ = 0, chunk_size_ = 0;
};

class GzipSource final : public CompressedSource {
 public:
  GzipSource(std::unique_ptr<ByteSource> inner, std::string name)
      : CompressedSource(std::move(inner), std::move(name)) {
    if (inflateInit2(&stream_, 16 + MAX_WBITS) != Z_OK) throw std::bad_alloc();
  }
  ~GzipSource() override { inflateEnd(&stream_); }
  GzipSource(const GzipSource&) = delete;
  GzipSource& operator=(const GzipSource&) = delete;

  size_t read(char* out, size_t bytes) override {
    bytes = std::min(bytes, size_t{1} << 30);
    for (;;) {
      if (chunk_empty() && !refill()) {
        if (in_member_ || !any_member_) fail("gzip", "the end of the file inside it");
        return 0;
      }
      if (!in_member_) {
        if (any_member_ && chunk_[chunk_at_] == 0) {  // padding after the last member
          ++chunk_at_;
          continue;
        }
        if (any_member_ && inflateReset(&stream_) != Z_OK) fail("gzip", "a bad state");
        in_member_ = any_member_ = true;
      }
      stream_.next_in = reinterpret_cast<Bytef*>(chunk_.data() + chunk_at_);
      stream_.avail_in = static_cast<uInt>(chunk_size_ - chunk_at_);
      stream_.next_out = reinterpret_cast<Bytef*>(out);
      stream_.avail_out = static_cast<uInt>(bytes);
      const int code = inflate(&stream_, Z_NO_FLUSH);
      chunk_at_ = chunk_size_ - stream_.avail_in;
      if (code == Z_MEM_ERROR) throw std::bad_alloc();
      if (code == Z_STREAM_END) {
        in_member_ = false;
      } else if (code != Z_OK && code != Z_BUF_ERROR) {
        fail("gzip", stream_.msg != nullptr ? stream_.msg : "damaged data");
      }
      if (const size_t made = bytes - stream_.avail_out; made > 0) return made;
    }
  }

 private:
  z_stream stream_{};
  bool in_member_ = false, any_member_ = false;
};

class ZstdSource final : public CompressedSource {
 public:
  ZstdSource(std::unique_ptr<ByteSource> inner, std::string name)
      : CompressedSource(std::move(inner), std::move(name)), stream_(ZSTD_createDStream()) {
    if (!stream_) throw std::bad_alloc();
  }

  size_t read(char* out, size_t bytes) override {
    ZSTD_outBuffer output{out, bytes, 0};
    for (;;) {
      // A full output may leave decoded bytes inside: they come before more input is asked for.
      if (chunk_empty() && !flushing_ && !refill()) {
        if (pending_ != 0 || !any_frame_) fail("zstd", "the end of the file inside it");
        return 0;
      }
      any_frame_ = true;
      ZSTD_inBuffer input{chunk_.data(), chunk_size_, chunk_at_};
      pending_ = ZSTD_decompressStream(stream_.get(), &output, &input);
      if (ZSTD_isError(pending_)) fail("zstd", ZSTD_getErrorName(pending_));
      chunk_at_ = input.pos;
      flushing_ = pending_ != 0 && output.pos == output.size;
      if (output.pos > 0) return output.pos;
    }
  }

 private:
  struct Free {
    void operator()(ZSTD_DStream* stream) const { ZSTD_freeDStream(stream); }
  };
  std::unique_ptr<ZSTD_DStream, Free> stream_;
  size_t pending_ = 0;  // 0 between frames
  bool flushing_ = false, any_frame_ = false;
};

std::unique_ptr<ByteSource> decompress(std::unique_ptr<ByteSource> raw, const std::string& name) {
  if (name.ends_with(".gz")) return std::make_unique<GzipSource>(std::move(raw), name);
  if (name.ends_with(".zst")) return std::make_unique<ZstdSource>(std::move(raw), name);
  return raw;
}

}  // namespace

std::unique_ptr<ByteSource> open_bytes(const fs::path& path) {
  return decompress(std::make_unique<FileSource>(path), path.string());
}

std::unique_ptr<ByteSource> memory_bytes(std::string contents, const std::string& name) {
  return decompress(std::make_unique<MemorySource>(std::move(contents)), name);
}

}  // namespace heirloom
