// SPDX-License-Identifier: Apache-2.0
//
// What is evaluated: token sequences read from text, JSONL or token shards, checked against the
// model's vocabulary, with the size of the text they came from where that is known.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "heirloom/io/file.h"
#include "heirloom/tokenizer/tokenizer.h"

namespace heirloom {

enum class SequenceFormat : uint8_t { kText, kJsonl, kShard };

/// By the name: .txt, .jsonl (either also .gz or .zst) or .bin. IoError for a missing file,
/// FormatError for another name.
SequenceFormat sequence_format(const fs::path& path);

/// Words of a text given piece by piece: runs between white space (Unicode's, as UTF-8).
class WordCount {
 public:
  void add(std::string_view piece);
  /// The next piece starts a new word.
  void end_text() { in_word_ = false; }
  int64_t words() const { return words_; }

 private:
  int64_t words_ = 0;
  bool in_word_ = false;
};

struct SequenceSet {
  std::vector<int32_t> tokens;        ///< all sequences, one behind the other
  std::vector<int64_t> begins = {0};  ///< of each sequence, then tokens.size()
  std::vector<int64_t> lines;    ///< of each sequence, from 1; empty when the file is one stream
  std::string name;              ///< of the file, for messages
  bool text_known = false;       ///< of all sequences; then:
  int64_t bytes = 0, words = 0;  ///< of the original text

  int64_t count() const { return static_cast<int64_t>(begins.size()) - 1; }
  std::span<const int32_t> sequence(int64_t i) const;
  /// Tokens that have one before them.
  int64_t scorable() const;
};

struct SequenceOptions {
  int64_t vocab_size = 0;  ///< the model's
  fs::path tokenizer;      ///< a file, or a directory that holds one; read when text is found
  std::optional<Tokenizer> loaded;  ///< in its place
  bool add_special = true;          ///< what the tokenizer's post-processor adds
  bool split_lines = false;         ///< text only: each line that is not blank is a sequence
};

/// Text is one sequence, a shard is one, each line of JSONL is one: its "tokens", else its "text".
/// Texts are encoded whole. FormatError, naming file and line or position: a torn line, a token
/// outside the vocabulary, nothing to score, text that is not UTF-8 (byte-level tokenizers take
/// it).
SequenceSet read_sequences(const fs::path& path, const SequenceOptions& options);

}  // namespace heirloom
