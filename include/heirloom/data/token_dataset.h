// SPDX-License-Identifier: Apache-2.0
//
// Fixed-length training sequences over token shards. A shard of N tokens holds n = floor((N - 1) /
// T) sequences; sequence k is tokens [kT, kT + T]: T inputs and T targets, which share all but
// their ends. With several shards, each shard's sequences follow those of the shard before; no
// sequence crosses from one to the next.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "heirloom/data/token_shard.h"

namespace heirloom {

class TokenDataset {
 public:
  /// ArgumentError for no shards or a sequence length below 1; FormatError for a shard shorter than
  /// one sequence.
  TokenDataset(const std::vector<fs::path>& shards, int64_t sequence_length, int64_t vocab_size);

  int64_t sequences() const { return first_.back(); }
  int64_t sequence_length() const { return sequence_length_; }
  int64_t tokens() const;  ///< in all shards, those past the last whole sequence included

  /// The T + 1 tokens of sequence k in [0, sequences()). A token outside the vocabulary is a
  /// FormatError that names the file, the position and the value. Safe from several threads.
  void fetch(int64_t k, std::span<int32_t> out) const;

 private:
  std::vector<TokenShard> shards_;
  std::vector<int64_t> first_;  // first_[i]: number of shard i's first sequence; then the total
  int64_t sequence_length_, vocab_size_;
};

}  // namespace heirloom
