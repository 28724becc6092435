// SPDX-License-Identifier: Apache-2.0
#include "heirloom/data/batch_order.h"

#include <algorithm>
#include <bit>

#include "heirloom/core/error.h"
#include "heirloom/core/rng.h"

namespace heirloom {
namespace {

constexpr uint32_t kRounds = 8;
// Small domains have few Feistel permutations: below 64 the walk is longer and the permutations are
// better.
constexpr int kMinHalfBits = 3;

/// A balanced Feistel network on 2 * half_bits bits whose round function is Philox: a bijection for
/// every key.
uint64_t permute(uint64_t value, int half_bits, uint64_t key) {
  const uint32_t mask = static_cast<uint32_t>((uint64_t{1} << half_bits) - 1);
  auto left = static_cast<uint32_t>(value >> half_bits),
       right = static_cast<uint32_t>(value) & mask;
  for (uint32_t round = 0; round < kRounds; ++round) {
    const uint32_t mixed = left ^ (philox(key, {right, round, 0, 0})[0] & mask);
    left = right;
    right = mixed;
  }
  return uint64_t{left} << half_bits | right;
}

}  // namespace

BatchOrder::BatchOrder(int64_t sequences, int64_t batch_size, bool shuffle, uint64_t seed)
    : sequences_(sequences),
      batch_size_(batch_size),
      shuffle_(shuffle),
      key_(mix_key(seed, hash_name("batch_order"))),
      half_bits_(0) {
  HEIRLOOM_CHECK(sequences >= 1 && sequences <= int64_t{1} << 52 && batch_size >= 1,
                 "[data] expected 1 to 2^52 sequences and a batch of at least 1; got {} and {}",
                 sequences, batch_size);
  const auto bits = static_cast<int>(std::bit_width(static_cast<uint64_t>(sequences - 1)));
  half_bits_ = std::max(kMinHalfBits, (bits + 1) / 2);
}

int64_t BatchOrder::sequence(int64_t step, int64_t b) const {
  const int64_t sample = step * batch_size_ + b;
  const int64_t position = sample % sequences_;
  if (!shuffle_) return position;
  const uint64_t key = mix_key(key_, static_cast<uint64_t>(sample / sequences_));
  // The network permutes a power of four; walking along its cycle until a value lies below n
  // permutes [0, n).
  auto value = static_cast<uint64_t>(position);
  do {
    value = permute(value, half_bits_, key);
  } while (value >= static_cast<uint64_t>(sequences_));
  return static_cast<int64_t>(value);
}

}  // namespace heirloom
