// SPDX-License-Identifier: Apache-2.0
//
// Tokens that are found in the text before the model runs.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace heirloom::tokenizer {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;
  bool single_word = false;  ///< only where no word character touches it
  bool lstrip = false;       ///< takes the white space on its left with it
  bool rstrip = false;
  bool normalized = false;  ///< searched in the normalized text, not in the raw one
};

/// A set of byte strings, each with a number.
class PrefixTrie {
 public:
  void insert(std::string_view key, int32_t value);
  /// Length of the longest key at the front of `text`; 0 when there is none. Sets `value`.
  size_t longest(std::string_view text, int32_t& value) const;
  bool empty() const { return nodes_.empty(); }
  bool may_start(char c) const { return starts_[static_cast<uint8_t>(c)]; }

 private:
  struct Node {
    int32_t value = -1;
    std::vector<std::pair<char, uint32_t>> children;
  };
  std::vector<Node> nodes_;
  std::array<bool, 256> starts_{};
};

/// Finds added tokens: leftmost, longest, then the flags decide.
class AddedTokenFinder {
 public:
  /// `needle` is what stands in the text: the content, normalized where the token asks for it.
  void add(const AddedToken& token, std::string_view needle);
  bool empty() const { return trie_.empty(); }

  /// Cuts `text` into pieces and calls visit(piece, id): id -1 for the text between tokens. No
  /// piece is empty.
  template <class Visit>
  void split(std::string_view text, bool recognise_special, Visit&& visit) const {
    size_t done = 0;
    Match match;
    for (size_t at = 0; next(text, at, done, recognise_special, match); at = match.resume) {
      if (match.begin > done) visit(text.substr(done, match.begin - done), int32_t{-1});
      visit(text.substr(match.begin, match.end - match.begin), match.id);
      done = match.end;
    }
    if (done < text.size()) visit(text.substr(done), int32_t{-1});
  }

 private:
  struct Match {
    size_t begin, end, resume;
    int32_t id;
  };
  bool next(std::string_view text, size_t from, size_t done, bool recognise_special,
            Match& match) const;

  std::vector<AddedToken> tokens_;
  PrefixTrie trie_;
};

}  // namespace heirloom::tokenizer
