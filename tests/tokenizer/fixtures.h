// SPDX-License-Identifier: Apache-2.0
//
// Small tokenizers written out as files would have them.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "heirloom/tokenizer/tokenizer.h"
#include "src/tokenizer/unicode.h"

namespace heirloom::testing {

using nlohmann::json;

/// The 256 bytes as ids 0..255 in byte order, then one token per merge "a b".
inline json byte_level_file(const std::vector<std::string>& merges) {
  json vocab = json::object();
  int id = 0;
  for (const std::string& c : tokenizer::byte_alphabet()) vocab[c] = id++;
  for (const std::string& merge : merges) {
    const size_t space = merge.find(' ');
    const std::string token = merge.substr(0, space) + merge.substr(space + 1);
    if (!vocab.contains(token)) vocab[token] = id++;
  }
  const json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
  return {{"version", "1.0"},
          {"added_tokens", json::array()},
          {"normalizer", nullptr},
          {"pre_tokenizer", byte_level},
          {"post_processor", byte_level},
          {"decoder", byte_level},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}}}};
}

/// Characters of `alphabet` as ids from 0, then one token per merge; words are spelled in UTF-8.
inline json character_file(const std::vector<std::string>& alphabet,
                           const std::vector<std::string>& merges) {
  json vocab = json::object();
  int id = 0;
  for (const std::string& c : alphabet) vocab[c] = id++;
  for (const std::string& merge : merges) {
    const size_t space = merge.find(' ');
    vocab[merge.substr(0, space) + merge.substr(space + 1)] = id++;
  }
  return {{"version", "1.0"},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}}},
          {"decoder", {{"type", "Fuse"}}}};
}

inline json added_token(int id, const std::string& content, bool special = true) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", special}};
}

inline Tokenizer load(const json& file) { return Tokenizer::from_json(file.dump(), "test"); }

/// The tokens of `text` as the file spells them.
inline std::vector<std::string> tokens_of(const Tokenizer& tokenizer, std::string_view text,
                                          EncodeOptions options = {}) {
  std::vector<std::string> out;
  for (const int32_t id : tokenizer.encode(text, options)) out.push_back(tokenizer.token_text(id));
  return out;
}

}  // namespace heirloom::testing
