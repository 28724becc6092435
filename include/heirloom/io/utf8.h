// SPDX-License-Identifier: Apache-2.0
//
// What is valid UTF-8 (RFC 3629): no overlong forms, no surrogates, nothing beyond U+10FFFF.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace heirloom {

/// Bytes of the character at the front of `text`; 0 when they are not valid UTF-8 (overlong,
/// surrogate, cut short).
size_t valid_char_length(std::string_view text);
/// True when `text` is a proper prefix of some valid character.
bool is_unfinished_char(std::string_view text);
/// The first position at or after `from` that does not start a valid character (text.size() when
/// all is valid).
size_t find_invalid_utf8(std::string_view text, size_t from = 0);
/// U+FFFD for each maximal invalid sequence.
std::string replace_invalid_utf8(std::string_view text);

}  // namespace heirloom
