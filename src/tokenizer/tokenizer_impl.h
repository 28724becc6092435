// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "added_tokens.h"
#include "bpe_model.h"
#include "heirloom/tokenizer/tokenizer.h"
#include "pipeline.h"
#include "sentencepiece.h"
#include "token_decoder.h"

namespace heirloom {

struct Tokenizer::Impl {
  std::string source;  ///< the file it came from, as it is
  std::string kind;
  tokenizer::AddedTokenFinder raw_tokens, normalized_tokens;
  tokenizer::Normalizer normalizer;
  tokenizer::PreTokenizer pre_tokenizer;
  tokenizer::BpeModel bpe;
  std::optional<tokenizer::SentencePieceModel> sentencepiece;  ///< then `bpe` is not used
  tokenizer::TokenDecoder decoder;
  std::vector<int32_t> prefix, suffix;  ///< what the post-processor adds
  std::map<int32_t, bool> added;        ///< added tokens: is it special?
  std::optional<int32_t> bos, eos;

  const tokenizer::Vocabulary& vocabulary() const {
    return sentencepiece ? sentencepiece->vocabulary() : bpe.vocabulary();
  }
  bool is_special(int32_t id) const {
    const auto it = added.find(id);
    return it != added.end() && it->second;
  }
};

namespace tokenizer {

/// Fills everything but `source` from a tokenizer.json. FormatError naming `origin` and the part
/// that is wrong.
void read_tokenizer_json(std::string_view text, const std::string& origin, Tokenizer::Impl& impl);

/// The tokenizer.json that stands for a directory's vocab.json and merges.txt, or encoder.json and
/// vocab.bpe; nullopt when it has neither pair.
std::optional<std::string> read_slow_files(const fs::path& directory);
bool has_slow_files(const fs::path& directory);

}  // namespace tokenizer
}  // namespace heirloom
