// SPDX-License-Identifier: Apache-2.0
//
// The text of a tokenizer.json from the parts that other formats hold.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "heirloom/io/json.h"

namespace heirloom {

struct TokenizerText {
  Json added_tokens = Json::array(), normalizer, pre_tokenizer, post_processor, decoder;
  Json model = Json::object();  ///< all of the model but vocab and merges
  std::vector<std::pair<std::string_view, int64_t>> vocabulary;
  std::vector<std::pair<std::string_view, std::string_view>> merges;

  void add_token(std::string_view content, int64_t id, bool special);
  std::string dump() const;
};

/// Which of a vocabulary's tokens stand around every text that is encoded with special tokens.
struct SpecialFrame {
  std::optional<int64_t> first, last;
};
/// A TemplateProcessing; null without either. FormatError where an id is none of the vocabulary's.
Json template_processor(const SpecialFrame& frame, const std::vector<std::string_view>& tokens,
                        const std::string& origin);

/// A SentencePiece model of type BPE as GGUF and llama2.c keep it.
struct ScoredPieces {
  enum class Type : uint8_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };
  std::vector<std::string_view> pieces;  ///< by id, with U+2581 for a space
  std::vector<double> scores;
  std::vector<Type> types;
  bool space_prefix = true;
  SpecialFrame frame;
};

/// Merges follow from the scores: a piece is made from every two pieces that join to it, those of
/// higher scores first (as transformers converts such models). FormatError for pieces that are
/// repeated, too long or have more ways to be joined than any real vocabulary.
std::string scored_pieces_json(const ScoredPieces& model, const std::string& origin);

}  // namespace heirloom
