// SPDX-License-Identifier: Apache-2.0
//
// JSON as this project reads and writes it: strict (duplicate keys, trailing text, depth over 256
// and invalid UTF-8 are errors), comments allowed only where a person writes the file (configs),
// object order kept.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace heirloom {

using Json = nlohmann::ordered_json;

enum class JsonComments { kForbidden, kAllowed };

/// Parses all of `text`. Throws FormatError naming `origin` (a path, or "--set x"), line and
/// column; lines count from `first_line` (the line's number in a JSONL file). Finding a key in a
/// Json object is linear: iterate over big ones.
Json parse_json(std::string_view text, const std::string& origin,
                JsonComments comments = JsonComments::kForbidden, int64_t first_line = 1);
/// The same from a file; a missing or unreadable file is an IoError.
Json read_json_file(const std::string& path, JsonComments comments = JsonComments::kForbidden);

/// Serialises; strings that are not valid UTF-8 get U+FFFD, non-finite numbers are written as null.
/// indent < 0: one line.
std::string dump_json(const Json& value, int indent = -1);

/// The candidate with the smallest edit distance to `key`, or "" when none is near (more than
/// max(2, size/3) edits).
std::string nearest_key(std::string_view key, std::span<const std::string> candidates);

}  // namespace heirloom
