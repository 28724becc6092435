// SPDX-License-Identifier: Apache-2.0
#include "heirloom/data/token_dataset.h"

#include <algorithm>

#include "heirloom/core/error.h"

namespace heirloom {

TokenDataset::TokenDataset(const std::vector<fs::path>& shards, int64_t sequence_length,
                           int64_t vocab_size)
    : first_{0}, sequence_length_(sequence_length), vocab_size_(vocab_size) {
  HEIRLOOM_CHECK(!shards.empty(), "[data] expected at least one token shard; got none");
  HEIRLOOM_CHECK(sequence_length > 0 && sequence_length < INT32_MAX && vocab_size > 0,
                 "[data] expected a sequence length and a vocabulary above 0; got {} and {}",
                 sequence_length, vocab_size);
  shards_.reserve(shards.size());
  for (const fs::path& path : shards) {
    const TokenShard& shard = shards_.emplace_back(path);
    const int64_t count = (shard.size() - 1) / sequence_length;
    if (count < 1) {
      throw_error<FormatError>(
          "[data] expected at least {} tokens for a sequence of {}; got {}; {}; use a shorter "
          "train.sequence_length or more text",
          sequence_length + 1, sequence_length, shard.size(), path.string());
    }
    first_.push_back(first_.back() + count);
  }
}

int64_t TokenDataset::tokens() const {
  int64_t total = 0;
  for (const TokenShard& shard : shards_) total += shard.size();
  return total;
}

void TokenDataset::fetch(int64_t k, std::span<int32_t> out) const {
  HEIRLOOM_CHECK(k >= 0 && k < sequences(), "[data] expected a sequence below {}; got {}",
                 sequences(), k);
  HEIRLOOM_CHECK(static_cast<int64_t>(out.size()) == sequence_length_ + 1,
                 "[data] expected room for {} tokens; got {}", sequence_length_ + 1, out.size());
  const auto next = std::upper_bound(first_.begin(), first_.end(), k);
  const auto index = static_cast<size_t>(next - first_.begin()) - 1;
  const int64_t begin = (k - first_[index]) * sequence_length_;
  shards_[index].copy(begin, out);
  for (size_t i = 0; i < out.size(); ++i) {
    if (out[i] < 0 || out[i] >= vocab_size_) {
      throw_error<FormatError>(
          "[data] expected token ids below the model's vocabulary of {}; got {} at position {}; "
          "{}; the shard "
          "was made with another tokenizer",
          vocab_size_, static_cast<uint32_t>(out[i]), begin + static_cast<int64_t>(i),
          shards_[index].path().string());
    }
  }
}

}  // namespace heirloom
