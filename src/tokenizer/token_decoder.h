// SPDX-License-Identifier: Apache-2.0
//
// Ids back to bytes. Every decoder chain this project reads is a concatenation of per-token bytes,
// except that the first token may differ (Metaspace) and that the beginning of the whole text may
// lose some characters (Strip after Fuse).
#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "bpe_model.h"
#include "pipeline.h"

namespace heirloom::tokenizer {

struct UnspellBytes {};     ///< ByteLevel
struct UnspellFallback {};  ///< "<0x0A>" is one byte
struct StripToken {
  std::string character;
  size_t start, stop;
};
/// The first token loses its replacement characters, in later ones they are spaces.
struct UnMetaspace {
  std::string replacement;
  bool prepended;
};

class TokenDecoder {
 public:
  using Step = std::variant<UnspellBytes, UnspellFallback, ReplaceText, ReplaceMatches, StripToken,
                            UnMetaspace>;
  void add(Step step) { steps_.push_back(std::move(step)); }
  /// Up to `count` of `character` leave the front of the text; `past_special`: special tokens in
  /// front do not count.
  void strip_front(std::string character, size_t count, bool past_special);
  /// Between tokens; tokenizer.json files without a decoder join with a space.
  void set_separator(std::string separator) { separator_ = std::move(separator); }

  /// Fills the table of bytes per id. `raw` ids (added tokens) skip UnspellBytes.
  void finish(const Vocabulary& vocabulary, const std::vector<bool>& raw);
  const std::string& bytes(int32_t id) const { return bytes_[static_cast<size_t>(id)]; }
  void set_bytes(int32_t id, std::string bytes) {
    bytes_[static_cast<size_t>(id)] = std::move(bytes);
  }

  /// Where a text being decoded stands.
  struct State {
    bool first = true;
    size_t stripped = 0;
  };
  /// Appends what `id` contributes.
  void append(const Vocabulary& vocabulary, int32_t id, bool special, State& state,
              std::string& out) const;

 private:
  std::string apply(std::string token, bool first, bool raw) const;
  std::vector<Step> steps_;
  std::vector<std::string> bytes_;
  std::vector<bool> raw_;
  std::string separator_, strip_character_;
  size_t strip_count_ = 0;
  bool strip_past_special_ = false;
  bool first_differs_ = false;
};

}  // namespace heirloom::tokenizer
