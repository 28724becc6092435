// SPDX-License-Identifier: Apache-2.0
//
// Text to token shards: documents are streamed from any number of files, tokenized on all threads,
// and written in order. Memory is bounded by a few megabytes of text per thread. The result depends
// neither on threads nor on timing.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "heirloom/data/text_reader.h"

namespace heirloom {

struct PrepareOptions {
  std::vector<fs::path> inputs;  ///< .txt, .jsonl, each also .gz or .zst
  TextReaderOptions text;
  fs::path out;
  /// 0: one file, `out` (beyond 2^31 - 1 tokens, more files numbered beside it). Else shards of
  /// this many tokens, the last one shorter: `out` with -00000, -00001, ... in front of its
  /// extension.
  int64_t shard_tokens = 0;

  int64_t vocab_size = 0;
  std::optional<int32_t> end_of_text;  ///< follows each document

  /// Document d goes to validation iff floor((d + 1) f) > floor(d f): evenly spread, the same in
  /// every run. A text file without a separator is divided into pieces of 64 KiB for this. 0 <= f <
  /// 1; `validation_out` is one more `out`.
  double validation_fraction = 0.0;
  fs::path validation_out;

  int threads = 0;        ///< 0: as many as OpenMP gives
  std::string tokenizer;  ///< path and content hash, for the manifest
  std::string tokenizer_hash;
};

struct PreparedShard {
  fs::path path;
  int64_t tokens = 0;
};

struct PreparedSplit {
  int64_t documents = 0;
  int64_t text_bytes = 0;
  int64_t tokens = 0;
  std::vector<PreparedShard> shards;
};

struct PrepareProgress {
  int64_t bytes_read = 0;  ///< of the stored (compressed) inputs
  int64_t bytes_total = 0;
  int64_t documents = 0;
  int64_t text_bytes = 0;
  int64_t tokens = 0;
};

struct PrepareResult {
  bool stopped = false;  ///< `stop` was heard: nothing has been written
  PreparedSplit train, validation;
  fs::path manifest;
};

/// Must be safe to call from many threads at once, and must not add special tokens.
using EncodeText = std::function<std::vector<int32_t>(std::string_view)>;

/// Writes the shards and, last, the manifest (`out` + ".json"): sources, token and byte counts,
/// tokenizer. All files appear together at the end; on an error or a stop none does. `progress` is
/// called after every few megabytes, `stop` as often. FormatError, IoError as the readers give
/// them; ArgumentError for options out of range; FormatError when a split is empty.
PrepareResult prepare_shards(const PrepareOptions& options, const EncodeText& encode,
                             const std::function<void(const PrepareProgress&)>& progress = {},
                             const std::function<bool()>& stop = {});

}  // namespace heirloom
