// SPDX-License-Identifier: Apache-2.0
#include "heirloom/io/utf8.h"

#include <algorithm>
#include <cstdint>
#include <utility>

namespace heirloom {
namespace {

/// Length the first byte promises (0: it cannot start a character) and the range its second byte
/// must be in.
struct Lead {
  size_t length;
  uint8_t low, high;
};

Lead lead_of(uint8_t c) {
  if (c < 0x80) return {1, 0, 0};
  if (c < 0xC2) return {0, 0, 0};
  if (c < 0xE0) return {2, 0x80, 0xBF};
  if (c < 0xF0)
    return {3, static_cast<uint8_t>(c == 0xE0 ? 0xA0 : 0x80),
            static_cast<uint8_t>(c == 0xED ? 0x9F : 0xBF)};
  if (c < 0xF5)
    return {4, static_cast<uint8_t>(c == 0xF0 ? 0x90 : 0x80),
            static_cast<uint8_t>(c == 0xF4 ? 0x8F : 0xBF)};
  return {0, 0, 0};
}

/// How many of the leading bytes fit one character, and how many it needs.
std::pair<size_t, size_t> match_char(std::string_view text) {
  if (text.empty()) return {0, 0};
  const Lead lead = lead_of(static_cast<uint8_t>(text[0]));
  if (lead.length == 0) return {0, 0};
  size_t n = 1;
  for (; n < lead.length && n < text.size(); ++n) {
    const auto c = static_cast<uint8_t>(text[n]);
    const uint8_t low = n == 1 ? lead.low : 0x80;
    const uint8_t high = n == 1 ? lead.high : 0xBF;
    if (c < low || c > high) break;
  }
  return {n, lead.length};
}

}  // namespace

size_t valid_char_length(std::string_view text) {
  const auto [matched, needed] = match_char(text);
  return matched == needed ? needed : 0;
}

bool is_unfinished_char(std::string_view text) {
  const auto [matched, needed] = match_char(text);
  return matched > 0 && matched < needed && matched == text.size();
}

size_t find_invalid_utf8(std::string_view text, size_t from) {
  constexpr uint64_t kHighBits = 0x8080808080808080ull;
  size_t at = from;
  while (at < text.size()) {
    uint64_t word;
    if (at + 8 <= text.size()) {
      __builtin_memcpy(&word, text.data() + at, 8);
      if ((word & kHighBits) == 0) {
        at += 8;
        continue;
      }
    }
    if (static_cast<uint8_t>(text[at]) < 0x80) {
      ++at;
      continue;
    }
    const size_t n = valid_char_length(text.substr(at, 4));
    if (n == 0) return at;
    at += n;
  }
  return text.size();
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const size_t end = find_invalid_utf8(text, at);
    out.append(text, at, end - at);
    if (end == text.size()) break;
    out += "\xEF\xBF\xBD";
    at = end + std::max<size_t>(1, match_char(text.substr(end, 4)).first);
  }
  return out;
}

}  // namespace heirloom
