// SPDX-License-Identifier: Apache-2.0
//
// Byte-pair encoding of one word at a time: of all adjacent pairs the one with the lowest rank is
// merged, leftmost first, until no pair has a merge.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace heirloom::tokenizer {

/// Token strings by id, and back. Ids may have holes.
class Vocabulary {
 public:
  /// An id far beyond what `expected_tokens` explains, a negative one, or one that is taken is a
  /// FormatError.
  void add(std::string token, int64_t id, size_t expected_tokens, const std::string& origin);
  std::optional<int32_t> find(std::string_view token) const;
  bool has(int64_t id) const { return id >= 0 && id < size() && used_[static_cast<size_t>(id)]; }
  const std::string& text(int32_t id) const { return tokens_[static_cast<size_t>(id)]; }
  /// The largest id plus one.
  int64_t size() const { return static_cast<int64_t>(tokens_.size()); }
  /// True when the space symbol is a token and no token has it behind another character: then no
  /// merge reaches across the start of a word, and words can be encoded one by one.
  bool words_start_with_space() const;
  /// Gives `id` another spelling; the old one keeps finding it.
  void rename(int32_t id, std::string token);

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const;
  };
  std::vector<std::string> tokens_;
  std::vector<bool> used_;
  std::unordered_map<std::string, int32_t, Hash, std::equal_to<>> ids_;
};

struct BpeOptions {
  bool bytes =
      false;  ///< words are raw bytes, tokens are spelled in the byte alphabet; else both are UTF-8
  bool byte_fallback = false;
  bool fuse_unk = false;
  bool ignore_merges = false;  ///< a word that is a token is that token
  std::optional<int32_t> unk;
};

class BpeModel {
 public:
  BpeModel() = default;
  BpeModel(Vocabulary vocabulary, BpeOptions options);
  /// Adds the merge of rank merge_count(). FormatError when a token is not in the vocabulary.
  void add_merge(std::string_view left, std::string_view right, const std::string& origin);
  /// Call once, after the last add_merge.
  void finish();

  /// Appends the ids of `word`; a thread-local cache answers frequent short words. Thread-safe.
  void encode(std::string_view word, std::vector<int32_t>& ids) const;

  const Vocabulary& vocabulary() const { return vocabulary_; }
  const BpeOptions& options() const { return options_; }
  int64_t merge_count() const { return merge_count_; }

 private:
  struct Merge {
    uint64_t pair = kNoPair;
    uint32_t rank = 0;
    int32_t id = 0;
  };
  static constexpr uint64_t kNoPair = ~uint64_t{0};
  static uint64_t pair_of(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  const Merge* find_merge(int32_t left, int32_t right) const;
  void insert(const Merge& merge);
  void encode_uncached(std::string_view word, std::vector<int32_t>& ids) const;
  void split_characters(std::string_view word, std::vector<int32_t>& ids) const;
  void merge_short(std::vector<int32_t>& ids, size_t from) const;
  void merge_long(std::vector<int32_t>& ids, size_t from) const;

  Vocabulary vocabulary_;
  BpeOptions options_;
  std::vector<int32_t>
      byte_ids_;  ///< of the 256 bytes (byte mode) or of <0x00>..<0xFF> (fallback); -1: none
  std::vector<Merge> table_;  ///< open addressing, a power of two
  int64_t merge_count_ = 0;
  uint64_t stamp_ = 0;  ///< of the thread-local WordCache
  bool cut_at_spaces_ = false;
};

}  // namespace heirloom::tokenizer
