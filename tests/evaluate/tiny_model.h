// SPDX-License-Identifier: Apache-2.0
//
// Small models with random weights, and a byte-level tokenizer of 257 tokens, for the tests of
// commands.
#pragma once

#include <fstream>
#include <memory>

#include "heirloom/io/json.h"
#include "heirloom/model/checkpoint.h"
#include "heirloom/model/transformer.h"

namespace heirloom::test {

inline Json tiny_config_json() {
  return Json::parse(R"({
    "model_type": "heirloom", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 32,
    "kv_sharing": {"scheme": "skipv1"}})");
}

/// With weights of a wide spread, so that contexts matter; zero weights when std is 0.
inline std::unique_ptr<Transformer> tiny_model(const Json& config, double std, Dtype dtype) {
  auto model = std::make_unique<Transformer>(parse_model_config(config, "test"), Device{}, dtype);
  ParameterStore& parameters = model->parameters();
  if (std > 0) initialize(parameters, 7, {.std = std}, parameters.data(), dtype);
  return model;
}

/// Writes the model in float32.
inline void write_tiny_model(const fs::path& directory, const Json& config, double std,
                             const fs::path& tokenizer = {}) {
  fs::create_directories(directory);
  const auto model = tiny_model(config, std, Dtype::kFloat32);
  write_model(directory, model->config(), model->parameters(), model->parameters().data(),
              Dtype::kFloat32, Dtype::kFloat32, tokenizer);
}

/// The characters that byte-level tokenizers write bytes as.
inline std::string byte_spelling(int byte) {
  int code = byte;
  const auto printable = [](int b) {
    return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174 && b <= 255);
  };
  if (!printable(byte)) {
    code = 256;
    for (int b = 0; b < byte; ++b) code += printable(b) ? 0 : 1;
  }
  std::string text;
  if (code < 0x80) return text += static_cast<char>(code);
  text += static_cast<char>(0xC0 | code >> 6);
  return text += static_cast<char>(0x80 | (code & 0x3F));
}

/// A tokenizer.json whose tokens are the 256 bytes (ids 0 to 255) and <s> (256), which its
/// post-processor puts in front.
inline std::string byte_tokenizer_json() {
  Json vocab = Json::object();
  for (int b = 0; b < 256; ++b) vocab[byte_spelling(b)] = b;
  vocab["<s>"] = 256;
  Json json = Json::parse(R"({
    "version": "1.0",
    "added_tokens": [{"id": 256, "content": "<s>", "single_word": false, "lstrip": false,
                      "rstrip": false, "normalized": false, "special": true}],
    "normalizer": null,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                      "use_regex": true},
    "post_processor": {"type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                 {"Sequence": {"id": "A", "type_id": 0}}],
      "pair": [],
      "special_tokens": {"<s>": {"id": "<s>", "ids": [256], "tokens": ["<s>"]}}},
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "merges": []}})");
  json["model"]["vocab"] = vocab;
  return json.dump();
}

inline void write_text(const fs::path& path, std::string_view text) {
  std::ofstream(path, std::ios::binary) << text;
}

}  // namespace heirloom::test
