// SPDX-License-Identifier: Apache-2.0
//
// Trains a byte-level BPE tokenizer: counts the words of a text in parallel, then merges the most
// frequent pair again and again.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "heirloom/tokenizer/tokenizer.h"

namespace heirloom {

enum class SplitPattern { kGpt2, kLlama3 };

struct BpeTrainerOptions {
  /// Tokens in all: special tokens, then the 256 bytes, then merges. Fewer when the text has too
  /// few pairs.
  int64_t vocab_size = 32'000;
  SplitPattern pattern = SplitPattern::kGpt2;
  std::vector<std::string> special_tokens = {"<|endoftext|>"};
  /// A pair seen less often is never merged.
  int64_t min_frequency = 2;
};

struct BpeTrainerProgress {
  enum class Phase { kReading, kMerging };
  Phase phase;
  int64_t done;   ///< bytes read, or tokens made
  int64_t total;  ///< 0 while reading
};

/// Puts the next document into its argument; false at the end.
using DocumentSource = std::function<bool(std::string& document)>;

/// The same text gives the same tokenizer whatever the number of threads and however it is cut into
/// documents at places where words end: pairs are merged by count, ties by the lower ids. Special
/// tokens spelled in the text are counted as text. Empty when `stop` became true. ArgumentError for
/// options that do not fit together, FormatError for a text without words.
std::optional<Tokenizer> train_bpe(
    const BpeTrainerOptions& options, const DocumentSource& next_document,
    const std::atomic<bool>* stop = nullptr,
    const std::function<void(const BpeTrainerProgress&)>& progress = {});

}  // namespace heirloom
