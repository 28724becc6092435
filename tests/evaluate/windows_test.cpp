// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <set>

#include "heirloom/evaluate/perplexity.h"

namespace heirloom {
namespace {

/// The definition, token by token: window k reads [kS, kS + C) and scores the targets of its inputs
/// that no earlier window scored.
std::vector<Window> by_definition(int64_t tokens, int64_t context, int64_t stride) {
  std::vector<Window> windows;
  std::set<int64_t> scored;
  for (int64_t k = 0; static_cast<int64_t>(scored.size()) < tokens - 1; ++k) {
    Window w{k * stride, 0, 0};
    for (int64_t i = w.begin; i < w.begin + context && i + 1 < tokens; ++i) {
      ++w.inputs;
      if (scored.insert(i + 1).second) ++w.scored;
    }
    windows.push_back(w);
  }
  return windows;
}

TEST(Windows, EqualTheDefinition) {
  for (int64_t tokens = 0; tokens <= 40; ++tokens) {
    for (int64_t context = 1; context <= 12; ++context) {
      for (int64_t stride = 1; stride <= context; ++stride) {
        EXPECT_EQ(plan_windows(tokens, context, stride), by_definition(tokens, context, stride))
            << tokens << " " << context << " " << stride;
      }
    }
  }
}

TEST(Windows, EveryTargetOnceWithTheLongestContextItsWindowGives) {
  const auto windows = plan_windows(1000, 64, 48);
  int64_t next = 1;
  for (const Window& w : windows) {
    EXPECT_EQ(w.begin + w.inputs - w.scored + 1, next);
    next += w.scored;
    EXPECT_GT(w.scored, 0);
    EXPECT_LE(w.begin + w.inputs, 999);
  }
  EXPECT_EQ(next, 1000);
  EXPECT_EQ(windows.front(), (Window{0, 64, 64}));
  EXPECT_EQ(windows[1], (Window{48, 64, 48}));
}

TEST(Windows, StridesThatSkipTokensAreRefused) {
  EXPECT_THROW(plan_windows(10, 4, 5), ArgumentError);
  EXPECT_THROW(plan_windows(10, 4, 0), ArgumentError);
  EXPECT_THROW(plan_windows(10, 0, 0), ArgumentError);
}

}  // namespace
}  // namespace heirloom
