// SPDX-License-Identifier: Apache-2.0
#include "heirloom/kernels/cross_entropy.h"

#include <gtest/gtest.h>

#include "kernels/reference/cross_entropy.hpp"
#include "support/kernels.h"

namespace heirloom {
namespace {
using namespace test;

struct Result {
  Values nll, dlogits;
};

template <class T>
Result run(int64_t n, int64_t v, const Values& logits, const std::vector<int32_t>& targets,
           double scale, Kernel<CrossEntropyArgs> f, bool gradient = true) {
  const OnDevice scope(f.device);
  const FencedBuffer<int32_t> target_ids(targets);
  FencedBuffer<compute_t<T>> x(logits);
  FencedBuffer<T> dx(n * v);
  FencedBuffer<double> nll(n);
  CrossEntropyArgs args;
  args.logits = x.data();
  args.targets = target_ids.data();
  args.nll = nll.data();
  args.dlogits = gradient ? dx.data() : nullptr;
  args.n = n;
  args.v = v;
  args.scale = scale;
  f(args);
  return {nll.values(), gradient ? dx.values() : Values()};
}

std::vector<int32_t> make_targets(int64_t n, int64_t v) {
  std::vector<int32_t> targets;
  for (int64_t i = 0; i < n; ++i) {
    targets.push_back(i % 4 == 3 ? -1 : static_cast<int32_t>((i * 31 + 1) % v));
  }
  return targets;
}

void check(int64_t n, int64_t v, double scale) {
  SCOPED_TRACE(fmt::format("n {} v {} scale {}", n, v, scale));
  for_each_entry(cross_entropy_table(), [&]<class T>(const Device& device) {
    const Values x = rounded<compute_t<T>>(random_values(n * v, 1, scale));
    const auto targets = make_targets(n, v);
    const auto f = on(cross_entropy_table(), device, kDtypeOf<T>);
    const Result actual = run<T>(n, v, x, targets, 0.125, f);
    const Result naive = run<T>(n, v, x, targets, 0.125, reference::cross_entropy<T>);
    const Result exact = run<double>(n, v, x, targets, 0.125, reference::cross_entropy<double>);
    expect_as_good_as_naive<compute_t<T>>(actual.nll, naive.nll, exact.nll, "nll");
    expect_as_good_as_naive<T>(actual.dlogits, naive.dlogits, exact.dlogits, "dlogits");
    if (n > 3) {
      EXPECT_EQ(actual.nll[3], 0);
    }
    EXPECT_EQ(run<T>(n, v, x, targets, 0.125, f, false).nll, actual.nll);
  });
}

TEST(CrossEntropyTest, MatchesTheReference) {
  for (const int64_t v : {1, 3, 10, 12, 17, 24, 101, 1376, 5003}) {
    for (const double scale : {0.1, 5.0, 60.0}) check(6, v, scale);
  }
  check(4, 20000, 5);
  check(0, 8, 1);
}

TEST(CrossEntropyTest, AddressesNeedNoAlignment) {
  for (const int64_t skew : {1, 2, 4}) {
    const Skew scope(skew);
    check(4, 64, 5);
    check(4, 1001, 5);
  }
}

TEST(CrossEntropyTest, LargeLogitsAndAConfidentTarget) {
  const Values x = {1e4, -1e4, 0, 30, 0, 0};
  for_each_device([&](const Device& device) {
    const Result r =
        run<float>(2, 3, x, {0, 0}, 1, on(cross_entropy_table(), device, Dtype::kFloat32));
    EXPECT_EQ(r.nll[0], 0);
    EXPECT_EQ(r.dlogits[1], 0);
    const double p = 1 / (1 + 2 * std::exp(-30.0));
    EXPECT_NEAR(r.dlogits[3], p - 1, 1e-7);
  });
}

TEST(CrossEntropyTest, NanLogitsGiveANanLoss) {
  for_each_device([&](const Device& device) {
    const Result r = run<float>(1, 4, {0, std::nan(""), 1, 2}, {2}, 1,
                                on(cross_entropy_table(), device, Dtype::kFloat32));
    EXPECT_TRUE(std::isnan(r.nll[0]));
  });
}

/// dlogits may alias logits where T is A.
TEST(CrossEntropyTest, TheGradientMayReplaceTheLogits) {
  const int64_t n = 5, v = 1003;
  const Values logits = rounded<float>(random_values(n * v, 1, 5));
  for_each_device([&](const Device& device) {
    const auto f = on(cross_entropy_table(), device, Dtype::kFloat32);
    const Result apart = run<float>(n, v, logits, make_targets(n, v), 0.5, f);
    const OnDevice scope(device);
    const FencedBuffer<int32_t> targets(make_targets(n, v));
    FencedBuffer<float> x(logits);
    FencedBuffer<double> nll(n);
    CrossEntropyArgs args;
    args.logits = x.data();
    args.targets = targets.data();
    args.nll = nll.data();
    args.dlogits = x.data();
    args.n = n;
    args.v = v;
    args.scale = 0.5;
    f(args);
    EXPECT_EQ(x.values(), apart.dlogits);
    EXPECT_EQ(nll.values(), apart.nll);
  });
}

TEST(CrossEntropyTest, GradientIsCentralDifferences) {
  const int64_t n = 5, v = 11;
  const Values x = random_values(n * v, 1, 3);
  const auto targets = make_targets(n, v);
  const auto f = reference::cross_entropy<double>;
  expect_gradient(
      [&](const Values& at) {
        double sum = 0;
        for (const double nll : run<double>(n, v, at, targets, 0.5, f).nll) sum += 0.5 * nll;
        return sum;
      },
      x, run<double>(n, v, x, targets, 0.5, f).dlogits, "dlogits");
}

TEST(CrossEntropyTest, SameBitsEveryTime) {
  for_each_entry(cross_entropy_table(), [&]<class T>(const Device& device) {
    const int64_t n = 21, v = 3001;
    const Values x = rounded<compute_t<T>>(random_values(n * v, 1, 3));
    expect_reproducible(device, [&] {
      const Result r =
          run<T>(n, v, x, make_targets(n, v), 1, on(cross_entropy_table(), device, kDtypeOf<T>));
      return concatenated({r.nll, r.dlogits});
    });
  });
}

TEST(CrossEntropyTest, CostByHand) {
  float some = 0;
  CrossEntropyArgs args;
  args.n = 10;
  args.v = 100;
  EXPECT_EQ(cross_entropy_cost(args, Dtype::kBFloat16).bytes_read, 1000 * 4 + 40);
  EXPECT_EQ(cross_entropy_cost(args, Dtype::kBFloat16).bytes_written, 80);
  EXPECT_EQ(cross_entropy_cost(args, Dtype::kBFloat16).flops, 3000);
  args.dlogits = &some;
  EXPECT_EQ(cross_entropy_cost(args, Dtype::kBFloat16).bytes_written, 80 + 2000);
}

}  // namespace
}  // namespace heirloom
