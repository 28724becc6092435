// SPDX-License-Identifier: Apache-2.0
//
// Text to token ids and back. Reads Hugging Face tokenizer.json files with a BPE model (normalizer,
// pre-tokenizer, model, added tokens, post-processor, decoder) and SentencePiece .model files of
// type BPE. What a file asks for and this code does not know is a FormatError that names it; a
// SentencePiece unigram model is an UnsupportedError.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "heirloom/io/file.h"

namespace heirloom {

struct EncodeOptions {
  /// Special tokens spelled in the text become their ids (false: they are plain text). Added tokens
  /// that are not special are always recognised. A SentencePiece model never recognises control
  /// symbols in text.
  bool recognise_special = true;
  /// Adds what the post-processor adds (a SentencePiece model: BOS in front).
  bool add_special = false;
};

struct DecodeOptions {
  bool skip_special = false;
};

/// Immutable once loaded; copies share one state, and every const member may be called from many
/// threads at once.
class Tokenizer {
 public:
  /// `path` is a tokenizer.json, a SentencePiece .model, or a directory holding tokenizer.json,
  /// tokenizer.model, or vocab.json and merges.txt as GPT-2's and Qwen2's slow tokenizers write them
  /// (the first wins; tokenizer_config.json, where present, names bos and eos). IoError, FormatError
  /// or UnsupportedError.
  static Tokenizer load(const fs::path& path);
  /// Whether a directory holds any of these.
  static bool is_in(const fs::path& directory);
  /// The same from memory; `origin` names the source in messages.
  static Tokenizer from_json(std::string text, const std::string& origin);
  static Tokenizer from_sentencepiece(std::string model, const std::string& origin);

  /// Any bytes are accepted. A byte-level or byte-fallback tokenizer without a normalizer returns
  /// them from decode.
  std::vector<int32_t> encode(std::string_view text, EncodeOptions options = {}) const;
  /// Appends to `ids`; never adds special tokens.
  void encode_append(std::string_view text, std::vector<int32_t>& ids,
                     bool recognise_special = true) const;
  /// The raw bytes, which need not be valid UTF-8. Ids without a token decode to nothing (see
  /// has_token).
  std::string decode(std::span<const int32_t> ids, DecodeOptions options = {}) const;

  /// The largest id plus one.
  int64_t vocab_size() const;
  bool has_token(int64_t id) const;
  /// The id of a token as the file spells it ("Ġthe", "▁the", "<|endoftext|>").
  std::optional<int32_t> token_id(std::string_view text) const;
  /// The token as the file spells it, and the bytes it decodes to inside a text; "" where has_token
  /// is false.
  const std::string& token_text(int32_t id) const;
  const std::string& token_bytes(int32_t id) const;
  bool is_special(int32_t id) const;
  /// From tokenizer_config.json or the SentencePiece model, else by the usual names; empty when not
  /// known.
  std::optional<int32_t> bos_id() const;
  std::optional<int32_t> eos_id() const;
  /// All added tokens (SentencePiece: control symbols), by id.
  std::vector<int32_t> added_tokens() const;
  /// Number of BPE merges (SentencePiece: 0, its merges are implied by the scores).
  int64_t merge_count() const;
  /// "byte-level BPE", "BPE with byte fallback", "BPE" or "SentencePiece BPE".
  std::string kind() const;

  /// The tokenizer.json this came from, byte for byte. UnsupportedError for a SentencePiece model.
  const std::string& to_json() const;
  /// Writes what it was loaded from: into a directory as tokenizer.json (or tokenizer.model), else
  /// to `path` itself.
  void save(const fs::path& path) const;

  struct Impl;

 private:
  friend class StreamDecoder;
  explicit Tokenizer(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<const Impl> impl_;
};

/// Decodes token by token. What push and flush return, joined, is decode() of all ids with U+FFFD
/// for each invalid sequence.
class StreamDecoder {
 public:
  explicit StreamDecoder(Tokenizer tokenizer, DecodeOptions options = {})
      : tokenizer_(std::move(tokenizer)), options_(options) {}
  /// Valid UTF-8; a character whose bytes are not all there yet is held back.
  std::string push(int32_t id);
  /// U+FFFD if a character was left unfinished, else "". The decoder then starts anew.
  std::string flush();

 private:
  Tokenizer tokenizer_;
  DecodeOptions options_;
  std::string pending_;
  bool first_ = true;
  size_t stripped_ = 0;
};

}  // namespace heirloom
