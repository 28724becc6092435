// SPDX-License-Identifier: Apache-2.0
//
// Regular expressions as tokenizer.json files mean them (Oniguruma with Unicode), run by PCRE2's
// JIT.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "heirloom/tokenizer/patterns.h"

namespace heirloom::tokenizer {

class Regex {
 public:
  enum class Kind { kPattern, kLiteral };
  /// FormatError when the pattern does not compile or uses what PCRE2 reads differently.
  explicit Regex(std::string_view pattern, Kind kind = Kind::kPattern);
  /// The first match at or after `from`, as [begin, end). `subject` must be valid UTF-8, `from` a
  /// character's start. FormatError when matching needs absurd effort. Thread-safe.
  bool find(std::string_view subject, size_t from, size_t& begin, size_t& end) const;

 private:
  struct Code;
  std::shared_ptr<const Code> code_;
};

}  // namespace heirloom::tokenizer
