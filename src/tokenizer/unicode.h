// SPDX-License-Identifier: Apache-2.0
//
// Characters and the byte alphabet of byte-level BPE.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "heirloom/io/utf8.h"

namespace heirloom::tokenizer {

inline bool is_valid_utf8(std::string_view text) { return find_invalid_utf8(text) == text.size(); }

char32_t decode_char(std::string_view valid_char);
void append_char(std::string& out, char32_t c);

/// Calls visit(span, valid) over `text`: valid spans as long as they go, stray bytes one by one.
template <class Visit>
void for_each_span(std::string_view text, Visit&& visit) {
  for (size_t at = 0; at < text.size();) {
    const size_t end = find_invalid_utf8(text, at);
    if (end > at) visit(text.substr(at, end - at), true);
    if (end < text.size()) visit(text.substr(end, 1), false);
    at = end + 1;
  }
}

/// GPT-2's printable stand-ins for the 256 bytes: UTF-8 of one character each.
const std::array<std::string, 256>& byte_alphabet();
/// Appends the bytes that `token` stands for; false (and `bytes` unchanged) when a character is not
/// in the alphabet.
bool append_alphabet_bytes(std::string_view token, std::string& bytes);

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };
/// `valid` must be valid UTF-8.
std::string normalize(std::string_view valid, NormalForm form);

/// Not for trust: hash tables over words.
inline uint64_t hash_bytes(std::string_view text) {
  constexpr uint64_t kMultiplier = 0x9E3779B97F4A7C15ull;
  uint64_t h = text.size() * kMultiplier;
  const char* p = text.data();
  size_t n = text.size();
  const auto mix = [&h](uint64_t word) {
    h = (h ^ word) * kMultiplier;
    h ^= h >> 32;
  };
  for (; n >= 8; p += 8, n -= 8) {
    uint64_t word;
    __builtin_memcpy(&word, p, 8);
    mix(word);
  }
  if (n > 0) {
    uint64_t word = 0;
    __builtin_memcpy(&word, p, n);
    mix(word);
  }
  return h;
}

}  // namespace heirloom::tokenizer
