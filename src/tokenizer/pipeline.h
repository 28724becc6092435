// SPDX-License-Identifier: Apache-2.0
//
// What happens to a text before the model: normalization, then cutting into words.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "regex.h"
#include "unicode.h"

namespace heirloom::tokenizer {

struct Prepend {
  std::string text;
};
struct ReplaceMatches {
  Regex pattern;
  std::string content;
};
struct ReplaceText {
  std::string from, to;
};
struct StripSpaces {
  bool left, right;
};

/// `text` with every occurrence of `from` replaced; `from` is not empty.
std::string replace_all(std::string_view text, std::string_view from, std::string_view to);
/// `text` with every match replaced; bytes that are not valid UTF-8 stay.
std::string replace_matches(std::string_view text, const ReplaceMatches& replace);

class Normalizer {
 public:
  using Step = std::variant<NormalForm, Prepend, ReplaceMatches, ReplaceText, StripSpaces>;
  void add(Step step) { steps_.push_back(std::move(step)); }
  bool empty() const { return steps_.empty(); }
  /// Bytes that are not valid UTF-8 pass through. FormatError when the steps blow the text up
  /// beyond reason.
  std::string run(std::string_view text) const;

 private:
  std::vector<Step> steps_;
};

enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

struct Split {
  Regex pattern;
  SplitBehavior behavior;
  bool invert;
};
/// A space in front of a piece that has none.
struct PrefixSpace {};
/// Bytes to the byte alphabet, for steps that follow ByteLevel. (As the last step the model does
/// it.)
struct SpellBytes {};
struct Metaspace {
  enum class PrependScheme { kAlways, kFirst, kNever };
  std::string replacement;
  PrependScheme prepend;
  std::optional<Regex> split;  ///< the replacement, when words are cut in front of it
};

class PreTokenizer {
 public:
  using Step = std::variant<Split, PrefixSpace, SpellBytes, Metaspace>;
  void add(Step step) { steps_.push_back(std::move(step)); }
  std::vector<Step>& steps() { return steps_; }

  /// Receives the words, left to right.
  class Sink {
   public:
    virtual void word(std::string_view word) = 0;

   protected:
    ~Sink() = default;
  };
  /// `first`: the text stands at the very beginning of what the user gave. Stray bytes become words
  /// of their own.
  void run(std::string_view text, bool first, Sink& sink) const;

 private:
  /// `may_prefix` is false for what follows a stray byte: a space added there would be a change
  /// inside the text.
  struct Piece {
    std::string_view text;
    bool first;
    bool may_prefix;
  };
  void run_step(size_t step, const Piece& piece, Sink& sink) const;
  void run_split(const Split& split, size_t step, const Piece& piece, Sink& sink) const;

  std::vector<Step> steps_;
};

}  // namespace heirloom::tokenizer
