// SPDX-License-Identifier: Apache-2.0
#include "token_decoder.h"

#include <charconv>

namespace heirloom::tokenizer {
namespace {

bool parse_fallback(std::string_view token, char& byte) {
  if (token.size() != 6 || token.substr(0, 3) != "<0x" || token[5] != '>') return false;
  unsigned value = 0;
  const auto [end, error] = std::from_chars(token.data() + 3, token.data() + 5, value, 16);
  byte = static_cast<char>(value);
  return error == std::errc{} && end == token.data() + 5;
}

std::string strip(std::string_view token, const StripToken& step) {
  const std::string_view c = step.character;
  for (size_t i = 0; i < step.start && token.substr(0, c.size()) == c; ++i)
    token.remove_prefix(c.size());
  for (size_t i = 0;
       i < step.stop && token.size() >= c.size() && token.substr(token.size() - c.size()) == c; ++i)
    token.remove_suffix(c.size());
  return std::string(token);
}

}  // namespace

void TokenDecoder::strip_front(std::string character, size_t count, bool past_special) {
  strip_character_ = std::move(character);
  strip_count_ = count;
  strip_past_special_ = past_special;
}

std::string TokenDecoder::apply(std::string token, bool first, bool raw) const {
  for (const Step& step : steps_) {
    if (std::holds_alternative<UnspellBytes>(step)) {
      std::string bytes;
      if (!raw && append_alphabet_bytes(token, bytes)) token = std::move(bytes);
    } else if (std::holds_alternative<UnspellFallback>(step)) {
      char byte;
      if (parse_fallback(token, byte)) token.assign(1, byte);
    } else if (const auto* replace = std::get_if<ReplaceText>(&step)) {
      token = replace_all(token, replace->from, replace->to);
    } else if (const auto* matches = std::get_if<ReplaceMatches>(&step)) {
      token = replace_matches(token, *matches);
    } else if (const auto* ends = std::get_if<StripToken>(&step)) {
      token = strip(token, *ends);
    } else if (const auto* meta = std::get_if<UnMetaspace>(&step)) {
      token = replace_all(token, meta->replacement, first && meta->prepended ? "" : " ");
    }
  }
  return token;
}

void TokenDecoder::finish(const Vocabulary& vocabulary, const std::vector<bool>& raw) {
  raw_ = raw;
  raw_.resize(static_cast<size_t>(vocabulary.size()));
  bytes_.resize(static_cast<size_t>(vocabulary.size()));
  for (int32_t id = 0; id < vocabulary.size(); ++id)
    if (vocabulary.has(id))
      bytes_[static_cast<size_t>(id)] =
          apply(vocabulary.text(id), false, raw_[static_cast<size_t>(id)]);
  for (const Step& step : steps_)
    if (const auto* meta = std::get_if<UnMetaspace>(&step)) first_differs_ |= meta->prepended;
}

void TokenDecoder::append(const Vocabulary& vocabulary, int32_t id, bool special, State& state,
                          std::string& out) const {
  std::string first_bytes;
  std::string_view bytes = bytes_[static_cast<size_t>(id)];
  if (state.first && first_differs_) {
    first_bytes = apply(vocabulary.text(id), true, raw_[static_cast<size_t>(id)]);
    bytes = first_bytes;
  }
  if (!state.first) out += separator_;
  state.first = false;
  if (state.stripped < strip_count_ && !(special && strip_past_special_)) {
    const std::string_view c = strip_character_;
    while (state.stripped < strip_count_ && bytes.substr(0, c.size()) == c && !bytes.empty()) {
      bytes.remove_prefix(c.size());
      ++state.stripped;
    }
    if (!bytes.empty()) state.stripped = strip_count_;
  }
  out += bytes;
}

}  // namespace heirloom::tokenizer
