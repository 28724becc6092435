// SPDX-License-Identifier: Apache-2.0
//
// Which sequence is where in which batch: a pure function of the step, so there is no state to save
// and a resumed run sees what an uninterrupted one would.
#pragma once

#include <cstdint>

namespace heirloom {

/// Sample i = step * batch_size + b, both from 0. Unshuffled it is sequence i mod n. Shuffled,
/// samples [en, (e + 1)n) are a permutation of all n sequences drawn from (seed, e).
class BatchOrder {
 public:
  /// ArgumentError unless 1 <= sequences <= 2^52 and batch_size >= 1.
  BatchOrder(int64_t sequences, int64_t batch_size, bool shuffle, uint64_t seed);
  int64_t sequence(int64_t step, int64_t b) const;

 private:
  int64_t sequences_, batch_size_;
  bool shuffle_;
  uint64_t key_;
  int half_bits_;
};

}  // namespace heirloom
