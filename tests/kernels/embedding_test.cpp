// SPDX-License-Identifier: Apache-2.0
#include "heirloom/kernels/embedding.h"

#include <gtest/gtest.h>

#include "kernels/reference/embedding.hpp"
#include "support/numerics.h"

namespace heirloom {
namespace {
using namespace test;

constexpr int64_t kVocabulary = 13, kPositions = 9;

struct Ids {
  std::vector<int32_t> tokens, positions;
};

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
               KernelTable<EmbeddingForwardArgs>::Function f) {
  const Ids ids = make_ids(n);
  FencedBuffer<T> tokens(table), positions(position_table), x(n * c);
  EmbeddingForwardArgs args;
  args.tokens = ids.tokens.data();
  args.positions = ids.positions.data();
  args.table = tokens.data();
  args.position_table = position_table.empty() ? nullptr : positions.data();
  args.x = x.data();
  args.n = n;
  args.c = c;
  f(args, {});
  return x.values();
}

struct Backward {
  Values dtable, dposition_table;
};

template <class T>
Backward backward(int64_t n, int64_t c, const Values& cotangent, const Values& dtable,
                  const Values& dposition_table, KernelTable<EmbeddingBackwardArgs>::Function f) {
  const Ids ids = make_ids(n);
  FencedBuffer<T> dx(cotangent);
  FencedBuffer<compute_t<T>> tokens(dtable), positions(dposition_table);
  EmbeddingBackwardArgs args;
  args.tokens = ids.tokens.data();
  args.positions = ids.positions.data();
  args.dx = dx.data();
  args.dtable = tokens.data();
  args.dposition_table = dposition_table.empty() ? nullptr : positions.data();
  args.n = n;
  args.c = c;
  f(args, {});
  return {tokens.values(), positions.values()};
}

TEST(EmbeddingTest, MatchesTheReference) {
  register_cpu_kernels();
  for (const auto& [n, c] :
       {std::pair<int64_t, int64_t>{1, 1}, {5, 3}, {40, 17}, {7, 101}, {33, 512}, {0, 4}}) {
    for (const bool with_positions : {false, true}) {
      SCOPED_TRACE(fmt::format("n {} c {} positions {}", n, c, with_positions));
      for_each_dtype(embedding_forward_table(), [&, n = n, c = c]<class T>() {
        using A = compute_t<T>;
        const Values table = rounded<T>(random_values(kVocabulary * c, 1));
        const Values positions =
            with_positions ? rounded<T>(random_values(kPositions * c, 2)) : Values();
        expect_as_good_as_naive<T>(
            forward<T>(n, c, table, positions,
                       embedding_forward_table().get(DeviceKind::kCpu, kDtypeOf<T>)),
            forward<T>(n, c, table, positions, reference::embedding_forward<T>),
            forward<double>(n, c, table, positions, reference::embedding_forward<double>), "x");

        const Values dx = rounded<T>(random_values(n * c, 3));
        const Values dtable = rounded<A>(random_values(kVocabulary * c, 4));
        const Values dpositions =
            with_positions ? rounded<A>(random_values(kPositions * c, 5)) : Values();
        const Backward b =
            backward<T>(n, c, dx, dtable, dpositions,
                        embedding_backward_table().get(DeviceKind::kCpu, kDtypeOf<T>));
        // Sums run in token order: equal bits, not only close.
        const Backward naive =
            backward<T>(n, c, dx, dtable, dpositions, reference::embedding_backward<T>);
        EXPECT_EQ(b.dtable, naive.dtable);
        EXPECT_EQ(b.dposition_table, naive.dposition_table);
      });
    }
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

TEST(EmbeddingTest, SameBitsForAnyNumberOfThreads) {
  register_cpu_kernels();
  for_each_dtype(embedding_backward_table(), [&]<class T>() {
    const int64_t n = 200, c = 150;
    const Values dx = rounded<T>(random_values(n * c, 3));
    expect_same_for_any_threads([&] {
      const Backward b =
          backward<T>(n, c, dx, random_values(kVocabulary * c, 4), random_values(kPositions * c, 5),
                      embedding_backward_table().get(DeviceKind::kCpu, kDtypeOf<T>));
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
