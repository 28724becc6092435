// SPDX-License-Identifier: Apache-2.0
#include "heirloom/data/token_shard.h"

#include <array>
#include <cstring>

#include "heirloom/core/error.h"

namespace heirloom {
namespace {

constexpr int64_t kHeaderBytes = 256 * 4;
constexpr int32_t kMagicUint16 = 20240520, kVersionUint16 = 1;
constexpr int32_t kMagicUint32 = 20240801, kVersionUint32 = 7;
constexpr int64_t kMaxUint16Vocab = 65536;

struct ForeignMagic {
  std::string_view bytes;
  const char* what;
};
/// Files that end with .bin, or are passed by mistake, and would otherwise be read as headerless
/// tokens.
constexpr ForeignMagic kForeign[] = {
    {"\xC6\xD7\x34\x01", "an llm.c model (magic 20240326)"},
    {"GGUF", "a GGUF model"},
    {"PK\x03\x04", "a zip archive"},
    {"\x1F\x8B\x08", "gzip data"},
    {"\x28\xB5\x2F\xFD", "zstd data"},
    {"\x93NUMPY", "a NumPy array"},
};

}  // namespace

const char* shard_form_name(ShardForm form) {
  switch (form) {
    case ShardForm::kUint16:
      return "llm.c uint16";
    case ShardForm::kUint32:
      return "llm.c uint32";
    case ShardForm::kHeaderless:
      return "headerless uint16";
  }
  return "?";
}

ShardLayout parse_shard(std::span<const std::byte> image, const std::string& origin) {
  const auto size = static_cast<int64_t>(image.size());
  std::array<int32_t, 3> header{};
  if (size >= 4) std::memcpy(header.data(), image.data(), std::min(image.size(), sizeof header));
  const bool wide = header[0] == kMagicUint32;
  if (wide || header[0] == kMagicUint16) {
    const int32_t version = wide ? kVersionUint32 : kVersionUint16;
    if (size < kHeaderBytes) {
      throw_error<FormatError>(
          "[shard] expected a header of {} bytes; got a file of {}; {}; it is truncated",
          kHeaderBytes, size, origin);
    }
    if (header[1] != version) {
      throw_error<FormatError>("[shard] expected version {} for magic {}; got {}; {}", version,
                               header[0], header[1], origin);
    }
    ShardLayout layout{wide ? ShardForm::kUint32 : ShardForm::kUint16, kHeaderBytes, header[2],
                       wide ? 4 : 2};
    const int64_t expected = kHeaderBytes + layout.tokens * layout.token_bytes;
    if (layout.tokens < 0 || size != expected) {
      throw_error<FormatError>(
          "[shard] expected {} bytes for the {} tokens of the header; got {}; {}; {}", expected,
          layout.tokens, size, origin,
          size < expected ? "it is truncated" : "its header is damaged");
    }
    return layout;
  }
  const std::string_view bytes(reinterpret_cast<const char*>(image.data()), image.size());
  for (const ForeignMagic& foreign : kForeign) {
    if (bytes.starts_with(foreign.bytes)) {
      throw_error<FormatError>("[shard] expected token ids; got {}; {}", foreign.what, origin);
    }
  }
  if (!origin.ends_with(".bin")) {
    throw_error<FormatError>(
        "[shard] expected magic {} or {}, or a headerless uint16 file named .bin; got magic {} and "
        "{} bytes; {}",
        kMagicUint16, kMagicUint32, header[0], size, origin);
  }
  if (size == 0 || size % 2 != 0) {
    throw_error<FormatError>("[shard] expected a whole number of uint16 tokens; got {} bytes; {}",
                             size, origin);
  }
  return {ShardForm::kHeaderless, 0, size / 2, 2};
}

TokenShard::TokenShard(const fs::path& path)
    : file_(path), layout_(parse_shard(file_.bytes(), path.string())) {}

uint32_t TokenShard::at(int64_t i) const {
  int32_t token = 0;
  copy(i, {&token, 1});
  return static_cast<uint32_t>(token);
}

void TokenShard::copy(int64_t begin, std::span<int32_t> out) const {
  const auto count = static_cast<int64_t>(out.size());
  HEIRLOOM_CHECK(begin >= 0 && count <= size() && begin <= size() - count,
                 "[shard] expected tokens within the {} of {}; got [{}, +{})", size(),
                 path().string(), begin, count);
  if (count == 0) return;
  const std::byte* data = file_.bytes().data() + layout_.offset + begin * layout_.token_bytes;
  if (layout_.token_bytes == 4) {
    std::memcpy(out.data(), data, out.size_bytes());
    return;
  }
  // Offsets are even and maps page-aligned.
  const auto* narrow = reinterpret_cast<const uint16_t*>(data);
  for (size_t i = 0; i < out.size(); ++i) out[i] = narrow[i];
}

TokenShardWriter::TokenShardWriter(const fs::path& path, int64_t vocab_size)
    : path_(path),
      file_(path),
      vocab_size_(vocab_size),
      token_bytes_(vocab_size <= kMaxUint16Vocab ? 2 : 4) {
  HEIRLOOM_CHECK(vocab_size > 0 && vocab_size <= INT32_MAX,
                 "[shard] expected a vocabulary of 1 to 2^31 - 1 tokens; got {}", vocab_size);
  const std::string blank(static_cast<size_t>(kHeaderBytes), '\0');
  file_.writer().write(blank);
}

void TokenShardWriter::append(std::span<const int32_t> tokens) {
  const auto count = static_cast<int64_t>(tokens.size());
  HEIRLOOM_CHECK(
      !finished_ && tokens_ <= kMaxTokens - count,
      "[shard] expected at most {} tokens in one shard; got {}; {}; write several shards",
      kMaxTokens, tokens_ + count, path_.string());
  for (const int32_t token : tokens) {
    HEIRLOOM_CHECK(token >= 0 && token < vocab_size_,
                   "[shard] expected token ids below {}; got {}; {}", vocab_size_, token,
                   path_.string());
  }
  if (token_bytes_ == 4) {
    file_.writer().write(tokens.data(), tokens.size_bytes());
  } else {
    narrow_.clear();
    for (const int32_t token : tokens) narrow_.push_back(static_cast<uint16_t>(token));
    file_.writer().write(narrow_.data(), 2 * narrow_.size());
  }
  tokens_ += count;
}

void TokenShardWriter::finish() {
  if (finished_) return;
  const bool wide = token_bytes_ == 4;
  const std::array<int32_t, 3> header = {wide ? kMagicUint32 : kMagicUint16,
                                         wide ? kVersionUint32 : kVersionUint16,
                                         static_cast<int32_t>(tokens_)};
  file_.writer().write_at(0, header.data(), sizeof header);
  file_.finish();
  finished_ = true;
}

void TokenShardWriter::commit() {
  finish();
  file_.commit();
}

}  // namespace heirloom
