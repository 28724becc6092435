// SPDX-License-Identifier: Apache-2.0
#include "heirloom/data/batch_order.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <vector>

#include "heirloom/core/error.h"

namespace heirloom {
namespace {

/// Epoch e of an order, read through batches of `batch`.
std::vector<int64_t> epoch(int64_t n, int64_t batch, uint64_t seed, int64_t e) {
  const BatchOrder order(n, batch, true, seed);
  std::vector<int64_t> out;
  for (int64_t i = e * n; i < (e + 1) * n; ++i) out.push_back(order.sequence(i / batch, i % batch));
  return out;
}

TEST(BatchOrder, UnshuffledCountsAround) {
  const BatchOrder order(10, 4, false, 7);
  EXPECT_EQ(order.sequence(0, 0), 0);
  EXPECT_EQ(order.sequence(1, 3), 7);
  EXPECT_EQ(order.sequence(2, 2), 0);  // sample 10
  EXPECT_EQ(order.sequence(1'000'000'000'000, 3), 3);
}

TEST(BatchOrder, EveryEpochIsAPermutation) {
  for (const int64_t n : {1, 2, 3, 7, 63, 64, 65, 100, 1000, 4097}) {
    std::vector<int64_t> all(static_cast<size_t>(n));
    std::iota(all.begin(), all.end(), 0);
    for (const int64_t e : {0, 1, 2, 1000}) {
      std::vector<int64_t> drawn = epoch(n, 3, 42, e);
      if (n >= 63) {
        EXPECT_NE(drawn, all);
      }
      std::sort(drawn.begin(), drawn.end());
      EXPECT_EQ(drawn, all) << n << " epoch " << e;
    }
  }
}

TEST(BatchOrder, EpochsAndSeedsDiffer) {
  std::set<std::vector<int64_t>> seen;
  for (int64_t e = 0; e < 20; ++e) EXPECT_TRUE(seen.insert(epoch(100, 8, 1, e)).second);
  for (uint64_t seed = 2; seed < 20; ++seed)
    EXPECT_TRUE(seen.insert(epoch(100, 8, seed, 0)).second);
}

TEST(BatchOrder, DependsOnTheSampleOnly) { EXPECT_EQ(epoch(1000, 1, 5, 3), epoch(1000, 64, 5, 3)); }

TEST(BatchOrder, EveryPlaceIsEquallyLikely) {
  // Where sequence 0 comes in 20,000 epochs of 10: chi-square with 9 degrees of freedom, 27.9 at p
  // = 0.001; and so for the sequence that follows it.
  const int64_t n = 10, epochs = 20'000;
  const BatchOrder order(n, 1, true, 3);
  std::vector<double> places(10, 0.0), followers(10, 0.0);
  for (int64_t e = 0; e < epochs; ++e) {
    for (int64_t i = 0; i < n; ++i) {
      if (order.sequence(e * n + i, 0) != 0) continue;
      ++places[static_cast<size_t>(i)];
      if (i + 1 < n) ++followers[static_cast<size_t>(order.sequence(e * n + i + 1, 0))];
    }
  }
  double chi_places = 0, chi_followers = 0;
  const double expected = static_cast<double>(epochs) / 10;
  for (size_t i = 0; i < 10; ++i)
    chi_places += (places[i] - expected) * (places[i] - expected) / expected;
  EXPECT_LT(chi_places, 27.9);
  EXPECT_EQ(followers[0], 0.0);
  for (size_t i = 1; i < 10; ++i) {
    chi_followers += (followers[i] - expected) * (followers[i] - expected) / expected;
  }
  EXPECT_LT(chi_followers, 27.9);
}

TEST(BatchOrder, ReachesLargeNumbersAndChecksArguments) {
  const int64_t n = (int64_t{1} << 52) - 1;
  const BatchOrder order(n, 1, true, 1);
  std::set<int64_t> seen;
  for (int64_t i = 0; i < 1000; ++i) {
    const int64_t k = order.sequence(n - 1 - i, 0);
    EXPECT_TRUE(k >= 0 && k < n && seen.insert(k).second);
  }
  EXPECT_THROW(BatchOrder(0, 1, true, 1), ArgumentError);
  EXPECT_THROW(BatchOrder(1, 0, true, 1), ArgumentError);
  EXPECT_THROW(BatchOrder((int64_t{1} << 52) + 1, 1, true, 1), ArgumentError);
}

}  // namespace
}  // namespace heirloom
