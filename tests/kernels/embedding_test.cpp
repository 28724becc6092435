// SPDX-License-Identifier: Apache-2.0
#include "heirloom/kernels/embedding.h"

#include <gtest/gtest.h>

#include <numeric>

#include "kernels/reference/embedding.hpp"
#include "support/kernels.h"

namespace heirloom {
namespace {
using namespace test;

constexpr int64_t kVocabulary = 13, kPositions = 9;

struct Ids {
  std::vector<int32_t> tokens, positions;
};

/// Rows ordered by (id, row).
std::vector<int32_t> order_of(const std::vector<int32_t>& ids) {
  std::vector<int32_t> order(ids.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return ids[static_cast<size_t>(a)] < ids[static_cast<size_t>(b)];
  });
  return order;
}

Ids make_ids(int64_t n) {
  Ids ids;
  for (int64_t i = 0; i < n; ++i) {
    ids.tokens.push_back(static_cast<int32_t>(i * i % kVocabulary));
    ids.positions.push_back(static_cast<int32_t>(i % kPositions));
  }
  return ids;
}

template <class T>
Values forward(int64_t n, int64_t c, const Values& table, const Values& position_table,
               Kernel<EmbeddingForwardArgs> f) {
  const OnDevice scope(f.device);
  const Ids ids = make_ids(n);
  const FencedBuffer<int32_t> token_ids(ids.tokens), position_ids(ids.positions);
  FencedBuffer<T> tokens(table), positions(position_table), x(n * c);
  EmbeddingForwardArgs args;
  args.tokens = token_ids.data();
  args.positions = position_ids.data();
  args.table = tokens.data();
  args.position_table = position_table.empty() ? nullptr : positions.data();
  args.x = x.data();
  args.n = n;
  args.c = c;
  f(args);
  return x.values();
}

struct Backward {
  Values dtable, dposition_table;
};

template <class T>
Backward backward(int64_t n, int64_t c, const Values& cotangent, const Values& dtable,
                  const Values& dposition_table, Kernel<EmbeddingBackwardArgs> f) {
  const OnDevice scope(f.device);
  const Ids ids = make_ids(n);
  const FencedBuffer<int32_t> token_ids(ids.tokens), position_ids(ids.positions);
  const FencedBuffer<int32_t> token_order(order_of(ids.tokens)),
      position_order(order_of(ids.positions));
  FencedBuffer<T> dx(cotangent);
  FencedBuffer<compute_t<T>> tokens(dtable), positions(dposition_table);
  EmbeddingBackwardArgs args;
  args.tokens = token_ids.data();
  args.positions = position_ids.data();
  args.dx = dx.data();
  args.dtable = tokens.data();
  args.dposition_table = dposition_table.empty() ? nullptr : positions.data();
  args.token_order = token_order.data();
  args.position_order = position_order.data();
  args.n = n;
  args.c = c;
  f(args);
  return {tokens.values(), positions.values()};
}

void check(int64_t n, int64_t c, bool with_positions) {
  SCOPED_TRACE(fmt::format("n {} c {} positions {}", n, c, with_positions));
  for_each_entry(embedding_forward_table(), [&]<class T>(const Device& device) {
    using A = compute_t<T>;
    const Values table = rounded<T>(random_values(kVocabulary * c, 1));
    const Values positions =
        with_positions ? rounded<T>(random_values(kPositions * c, 2)) : Values();
    expect_as_good_as_naive<T>(
        forward<T>(n, c, table, positions, on(embedding_forward_table(), device, kDtypeOf<T>)),
        forward<T>(n, c, table, positions, reference::embedding_forward<T>),
        forward<double>(n, c, table, positions, reference::embedding_forward<double>), "x");

    const Values dx = rounded<T>(random_values(n * c, 3));
    const Values dtable = rounded<A>(random_values(kVocabulary * c, 4));
    const Values dpositions =
        with_positions ? rounded<A>(random_values(kPositions * c, 5)) : Values();
    const Backward b = backward<T>(n, c, dx, dtable, dpositions,
                                   on(embedding_backward_table(), device, kDtypeOf<T>));
    // Sums run in row order on every device: equal bits, not only close.
    const Backward naive =
        backward<T>(n, c, dx, dtable, dpositions, reference::embedding_backward<T>);
    EXPECT_EQ(b.dtable, naive.dtable);
    EXPECT_EQ(b.dposition_table, naive.dposition_table);
  });
}

TEST(EmbeddingTest, MatchesTheReference) {
  for (const auto& [n, c] : {std::pair<int64_t, int64_t>{1, 1},
                             {5, 3},
                             {20, 10},
                             {20, 12},
                             {40, 17},
                             {7, 101},
                             {33, 512},
                             {300, 24},
                             {0, 4}}) {
    for (const bool with_positions : {false, true}) check(n, c, with_positions);
  }
}

TEST(EmbeddingTest, AddressesNeedNoAlignment) {
  for (const int64_t skew : {1, 2, 4}) {
    const Skew scope(skew);
    check(20, 64, true);
  }
}

TEST(EmbeddingTest, GradientsAreCentralDifferences) {
  const int64_t n = 20, c = 3;
  const Values table = random_values(kVocabulary * c, 1),
               positions = random_values(kPositions * c, 2);
  const Values dx = random_values(n * c, 3);
  const Backward b =
      backward<double>(n, c, dx, Values(table.size(), 0), Values(positions.size(), 0),
                       reference::embedding_backward<double>);
  const auto f = reference::embedding_forward<double>;
  expect_gradient(
      [&](const Values& at) { return dot(forward<double>(n, c, at, positions, f), dx); }, table,
      b.dtable, "dtable");
  expect_gradient([&](const Values& at) { return dot(forward<double>(n, c, table, at, f), dx); },
                  positions, b.dposition_table, "dposition_table");
}

TEST(EmbeddingTest, SameBitsEveryTime) {
  for_each_entry(embedding_backward_table(), [&]<class T>(const Device& device) {
    const int64_t n = 200, c = 150;
    const Values dx = rounded<T>(random_values(n * c, 3));
    expect_reproducible(device, [&] {
      const Backward b =
          backward<T>(n, c, dx, random_values(kVocabulary * c, 4), random_values(kPositions * c, 5),
                      on(embedding_backward_table(), device, kDtypeOf<T>));
      return concatenated({b.dtable, b.dposition_table});
    });
  });
}

TEST(EmbeddingTest, CostByHand) {
  float some = 0;
  EmbeddingForwardArgs f;
  f.n = 10;
  f.c = 4;
  EXPECT_EQ(embedding_forward_cost(f, Dtype::kBFloat16).bytes_read, 40 * 2 + 40);
  f.position_table = &some;
  EXPECT_EQ(embedding_forward_cost(f, Dtype::kBFloat16).bytes_read, 2 * (40 * 2 + 40));
  EXPECT_EQ(embedding_forward_cost(f, Dtype::kBFloat16).flops, 40);
  EmbeddingBackwardArgs b;
  b.n = 10;
  b.c = 4;
  EXPECT_EQ(embedding_backward_cost(b, Dtype::kBFloat16).bytes_read, 40 * 2 + 40 * 4 + 40);
  EXPECT_EQ(embedding_backward_cost(b, Dtype::kBFloat16).bytes_written, 40 * 4);
}

}  // namespace
}  // namespace heirloom
