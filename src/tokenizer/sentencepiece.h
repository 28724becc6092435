// SPDX-License-Identifier: Apache-2.0
//
// SentencePiece models of type BPE: the protobuf file, its normalization, and merging by score.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "added_tokens.h"
#include "bpe_model.h"

namespace heirloom::tokenizer {

class SentencePieceModel {
 public:
  enum class PieceType { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

  /// FormatError for a damaged file, UnsupportedError for unigram, word and char models.
  SentencePieceModel(std::string_view file, const std::string& origin);

  /// Control symbols spelled in `text` are plain text.
  void encode(std::string_view text, std::vector<int32_t>& ids) const;

  const Vocabulary& vocabulary() const { return vocabulary_; }
  PieceType type(int32_t id) const { return types_[static_cast<size_t>(id)]; }
  bool add_dummy_prefix() const { return add_dummy_prefix_ || remove_extra_whitespaces_; }
  const std::string& unk_surface() const { return unk_surface_; }
  std::optional<int32_t> control_id(const std::string& piece) const;
  const std::string& bos_piece() const { return bos_piece_; }
  const std::string& eos_piece() const { return eos_piece_; }

 private:
  struct Fields;
  void read_trainer_spec(std::string_view message, const std::string& origin);
  void read_normalizer_spec(std::string_view message, const std::string& origin);
  std::string normalize(std::string_view text) const;
  /// What the front of `text` becomes, and how many bytes of it that covers.
  std::string_view normalize_prefix(std::string_view text, size_t& consumed) const;
  void encode_normal(std::string_view normal, std::vector<int32_t>& ids) const;
  /// `from`: where this text's ids start (unknown pieces next to each other are one).
  void emit(std::string_view piece, size_t from, std::vector<int32_t>& ids) const;

  Vocabulary vocabulary_;
  std::vector<float> scores_;
  std::vector<PieceType> types_;
  std::vector<int32_t> byte_ids_;
  PrefixTrie user_defined_;
  std::optional<int32_t> unk_;
  std::vector<uint32_t> charsmap_;  ///< double-array trie of the precompiled normalization rules
  std::string charsmap_strings_;
  std::string bos_piece_ = "<s>", eos_piece_ = "</s>", unk_surface_ = " \xE2\x81\x87 ";
  bool add_dummy_prefix_ = true;
  bool remove_extra_whitespaces_ = true;
  bool escape_whitespaces_ = true;
  bool byte_fallback_ = false;
  uint64_t stamp_ = 0;  ///< of the thread-local WordCache
  bool cut_at_spaces_ = false;
};

}  // namespace heirloom::tokenizer
