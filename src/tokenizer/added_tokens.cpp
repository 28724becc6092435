// SPDX-License-Identifier: Apache-2.0
#include "added_tokens.h"

#include <utf8proc.h>

#include <algorithm>
#include <tuple>

#include "unicode.h"

namespace heirloom::tokenizer {
namespace {

bool is_space(char32_t c) {
  return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

bool is_word(char32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return false;
  }
}

/// The character that ends at `end` (or starts at `begin`) and its length; length 0 when there is
/// none or it is invalid.
std::pair<char32_t, size_t> char_before(std::string_view text, size_t end) {
  for (size_t n = 1; n <= 4 && n <= end; ++n)
    if (valid_char_length(text.substr(end - n, n)) == n)
      return {decode_char(text.substr(end - n, n)), n};
  return {0, 0};
}

std::pair<char32_t, size_t> char_at(std::string_view text, size_t begin) {
  const size_t n = valid_char_length(text.substr(begin, 4));
  if (n == 0) return {0, 0};
  return {decode_char(text.substr(begin, n)), n};
}

}  // namespace

void PrefixTrie::insert(std::string_view key, int32_t value) {
  if (key.empty()) return;
  if (nodes_.empty()) nodes_.emplace_back();
  starts_[static_cast<uint8_t>(key[0])] = true;
  uint32_t node = 0;
  for (const char c : key) {
    auto& children = nodes_[node].children;
    const auto it = std::lower_bound(children.begin(), children.end(), std::pair(c, 0u));
    if (it != children.end() && it->first == c) {
      node = it->second;
    } else {
      const auto fresh = static_cast<uint32_t>(nodes_.size());
      children.insert(it, {c, fresh});
      nodes_.emplace_back();
      node = fresh;
    }
  }
  nodes_[node].value = value;
}

size_t PrefixTrie::longest(std::string_view text, int32_t& value) const {
  if (nodes_.empty() || text.empty() || !may_start(text[0])) return 0;
  size_t best = 0;
  uint32_t node = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto& children = nodes_[node].children;
    const auto it = std::lower_bound(children.begin(), children.end(), std::pair(text[i], 0u));
    if (it == children.end() || it->first != text[i]) break;
    node = it->second;
    if (nodes_[node].value >= 0) {
      best = i + 1;
      value = nodes_[node].value;
    }
  }
  return best;
}

void AddedTokenFinder::add(const AddedToken& token, std::string_view needle) {
  trie_.insert(needle, static_cast<int32_t>(tokens_.size()));
  tokens_.push_back(token);
}

bool AddedTokenFinder::next(std::string_view text, size_t from, size_t done, bool recognise_special,
                            Match& match) const {
  if (trie_.empty()) return false;
  size_t at = from;
  while (at < text.size()) {
    int32_t index = 0;
    const size_t length = trie_.longest(text.substr(at), index);
    if (length == 0) {
      ++at;
      continue;
    }
    const size_t end = at + length;
    const AddedToken& token = tokens_[static_cast<size_t>(index)];
    const bool touches_word = token.single_word && (is_word(char_before(text, at).first) ||
                                                    is_word(char_at(text, end).first));
    if ((token.special && !recognise_special) || touches_word || at < done) {
      at = end;
      continue;
    }
    match = {at, end, end, token.id};
    if (token.lstrip) {
      for (auto [c, n] = char_before(text, match.begin);
           n > 0 && is_space(c) && match.begin - n >= done;
           std::tie(c, n) = char_before(text, match.begin))
        match.begin -= n;
    }
    if (token.rstrip) {
      for (auto [c, n] = char_at(text, match.end); n > 0 && is_space(c);
           std::tie(c, n) = char_at(text, match.end))
        match.end += n;
    }
    match.resume = match.end;
    return true;
  }
  return false;
}

}  // namespace heirloom::tokenizer
