// SPDX-License-Identifier: Apache-2.0
//
// Token shards: runs of token ids in a file. Three forms are read:
//   llm.c uint16    256 int32 of header (magic 20240520, version 1, token count), then uint16
//   tokens llm.c uint32    the same with magic 20240801, version 7, and uint32 tokens headerless
//   uint16 tokens and nothing else, in a file whose name ends with .bin (as nanoGPT writes)
// The first two are written, the second for vocabularies above 65,536.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "heirloom/io/file.h"

namespace heirloom {

enum class ShardForm { kUint16, kUint32, kHeaderless };

/// "llm.c uint16", "llm.c uint32", "headerless uint16".
const char* shard_form_name(ShardForm form);

/// Where the tokens of a shard lie.
struct ShardLayout {
  ShardForm form = ShardForm::kHeaderless;
  int64_t offset = 0;  ///< bytes in front of the first token
  int64_t tokens = 0;
  int token_bytes = 2;
};

/// Checks a shard's image; `origin` is its path, which decides whether a headerless file is one.
/// FormatError otherwise.
ShardLayout parse_shard(std::span<const std::byte> image, const std::string& origin);

/// A shard mapped into memory.
class TokenShard {
 public:
  explicit TokenShard(const fs::path& path);
  int64_t size() const { return layout_.tokens; }
  /// The token at position i of [0, size()); ArgumentError outside.
  uint32_t at(int64_t i) const;
  /// Tokens [begin, begin + out.size()); ids of 2^31 and more come out negative. ArgumentError past
  /// the end.
  void copy(int64_t begin, std::span<int32_t> out) const;
  int token_bytes() const { return layout_.token_bytes; }
  ShardForm form() const { return layout_.form; }
  const fs::path& path() const { return file_.path(); }

 private:
  MappedFile file_;
  ShardLayout layout_;
};

/// Writes one llm.c shard, complete or absent: uint16 when every id below `vocab_size` fits, else
/// uint32.
class TokenShardWriter {
 public:
  /// The header's count is an int32.
  static constexpr int64_t kMaxTokens = INT32_MAX;

  TokenShardWriter(const fs::path& path, int64_t vocab_size);
  /// ArgumentError for an id outside [0, vocab_size) and beyond kMaxTokens tokens.
  void append(std::span<const int32_t> tokens);
  /// Writes the header and fsyncs; the file appears at `commit`, which calls it where it was not.
  void finish();
  void commit();
  int64_t tokens() const { return tokens_; }
  int token_bytes() const { return token_bytes_; }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
  AtomicFile file_;
  int64_t vocab_size_;
  int token_bytes_;
  int64_t tokens_ = 0;
  bool finished_ = false;
  std::vector<uint16_t> narrow_;
};

}  // namespace heirloom
