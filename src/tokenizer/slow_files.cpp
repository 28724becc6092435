// SPDX-License-Identifier: Apache-2.0
//
// GPT-2's tokenizer as it was first published: a vocabulary and a list of merges, in two files. What
// else a tokenizer.json says stands in the code of the class that reads them: GPT-2's, or Qwen2's.
#include <array>
#include <nlohmann/json.hpp>

#include "heirloom/core/error.h"
#include "heirloom/io/file.h"
#include "heirloom/tokenizer/patterns.h"
#include "tokenizer_impl.h"

namespace heirloom::tokenizer {
namespace {

using nlohmann::json;

constexpr std::array<std::pair<const char*, const char*>, 2> kNames{
    {{"vocab.json", "merges.txt"}, {"encoder.json", "vocab.bpe"}}};
json read_object(const fs::path& path) {
  constexpr int kMaxDepth = 8;
  const auto limit_depth = [&](int depth, json::parse_event_t, json&) {
    if (depth > kMaxDepth) {
      throw_error<FormatError>("[tokenizer] expected at most {} levels of nesting; got more; {}",
                               kMaxDepth, path.string());
    }
    return true;
  };
  json object;
  try {
    object = json::parse(read_file(path), limit_depth);
  } catch (const json::exception& e) {
    throw_error<FormatError>("[tokenizer] expected JSON; got: {}; {}", e.what(), path.string());
  }
  if (!object.is_object()) {
    throw_error<FormatError>("[tokenizer] expected a JSON object; got {}; {}", object.type_name(),
                             path.string());
  }
  return object;
}

json read_merge_lines(const fs::path& path) {
  const std::string text = read_file(path);
  json merges = json::array();
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    std::string line = text.substr(at, end - at);
    if (line.ends_with('\r')) line.pop_back();
    if (!line.empty() && !(at == 0 && line.starts_with("#version"))) merges.push_back(line);
    at = end + 1;
  }
  return merges;
}

json added_token(int64_t id, const std::string& content, bool special) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", special}};
}

/// added_tokens_decoder of tokenizer_config.json, else added_tokens.json; and the end of text.
json read_added(const fs::path& directory, const json& config, const json& vocabulary) {
  json added = json::array();
  const auto listed = config.find("added_tokens_decoder");
  if (listed != config.end() && listed->is_object()) {
    for (const auto& [id, token] : listed->items()) {
      json entry = token;
      const bool number =
          !id.empty() && id.size() < 10 && id.find_first_not_of("0123456789") == std::string::npos;
      if (!number || !entry.is_object()) {
        throw_error<FormatError>(
            "[tokenizer] expected ids and tokens in added_tokens_decoder; got "
            "{}; {}",
            id.substr(0, 60), (directory / "tokenizer_config.json").string());
      }
      entry["id"] = std::stoll(id);
      added.push_back(std::move(entry));
    }
  } else if (heirloom::exists(directory / "added_tokens.json")) {
    const json tokens = read_object(directory / "added_tokens.json");
    for (const auto& [content, id] : tokens.items()) {
      json entry = added_token(0, content, true);
      entry["id"] = id;
      added.push_back(std::move(entry));
    }
  }
  constexpr const char* kEnd = "<|endoftext|>";
  if (added.empty() && vocabulary.contains(kEnd)) {
    json entry = added_token(0, kEnd, true);
    entry["id"] = vocabulary[kEnd];
    added.push_back(std::move(entry));
  }
  return added;
}

}  // namespace

bool has_slow_files(const fs::path& directory) {
  return std::any_of(kNames.begin(), kNames.end(), [&](const auto& names) {
    return heirloom::exists(directory / names.first) && heirloom::exists(directory / names.second);
  });
}

std::optional<std::string> read_slow_files(const fs::path& directory) {
  for (const auto& [vocab, merges] : kNames) {
    if (!heirloom::exists(directory / vocab) || !heirloom::exists(directory / merges)) continue;
    json config = json::object();
    const fs::path config_file = directory / "tokenizer_config.json";
    if (heirloom::exists(config_file)) config = read_object(config_file);
    const auto named = config.find("tokenizer_class");
    std::string name = named != config.end() && named->is_string() ? named->get<std::string>() : "";
    if (name.ends_with("Fast")) name.resize(name.size() - 4);
    if (name.empty() && heirloom::exists(directory / "config.json")) {
      const json model = read_object(directory / "config.json");
      const auto type = model.find("model_type");
      if (type != model.end() && type->is_string() &&
          type->get_ref<const std::string&>().starts_with("qwen")) {
        name = "Qwen2Tokenizer";
      }
    }
    for (const char* key : {"add_bos_token", "add_eos_token"}) {
      const auto adds = config.find(key);
      if (adds == config.end() || *adds != true) continue;
      throw_error<UnsupportedError>(
          "[tokenizer] expected {} and {} whose tokenizer_config.json adds no special tokens; got "
          "{} true; {}; save it as tokenizer.json",
          vocab, merges, key, directory.string());
    }
    const bool qwen2 = name == "Qwen2Tokenizer";
    if (!qwen2 && !name.empty() && name != "GPT2Tokenizer") {
      throw_error<UnsupportedError>(
          "[tokenizer] expected {} and {} of a GPT2Tokenizer or Qwen2Tokenizer; got those of a {}; "
          "{}; save it as tokenizer.json",
          vocab, merges, name, directory.string());
    }
    const auto prefix = config.find("add_prefix_space");
    const bool prefixed = prefix != config.end() && *prefix == true;
    json file = json::object();
    file["version"] = "1.0";
    const json vocabulary = read_object(directory / vocab);
    file["added_tokens"] = read_added(directory, config, vocabulary);
    file["normalizer"] = nullptr;
    const json byte_level = {{"type", "ByteLevel"},
                             {"add_prefix_space", prefixed},
                             {"trim_offsets", true},
                             {"use_regex", !qwen2}};
    file["pre_tokenizer"] = byte_level;
    if (qwen2) {
      file["normalizer"] = {{"type", "NFC"}};
      const json split = {{"type", "Split"},
                          {"pattern", {{"Regex", kQwen2Pattern}}},
                          {"behavior", "Isolated"},
                          {"invert", false}};
      file["pre_tokenizer"] = {{"type", "Sequence"},
                               {"pretokenizers", json::array({split, byte_level})}};
    }
    file["post_processor"] = byte_level;
    file["decoder"] = byte_level;
    file["model"] = {
        {"type", "BPE"}, {"vocab", vocabulary}, {"merges", read_merge_lines(directory / merges)}};
    return file.dump(-1, ' ', false, json::error_handler_t::replace);
  }
  return std::nullopt;
}

}  // namespace heirloom::tokenizer
