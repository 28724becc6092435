// SPDX-License-Identifier: Apache-2.0
#include "heirloom/kernels/cross_entropy.h"

#include <gtest/gtest.h>

#include "kernels/reference/cross_entropy.hpp"
#include "support/numerics.h"

namespace heirloom {
namespace {
using namespace test;

struct Result {
  Values nll, dlogits;
};

template <class T>
Result run(int64_t n, int64_t v, const Values& logits, const std::vector<int32_t>& targets,
           double scale, KernelTable<CrossEntropyArgs>::Function f, bool gradient = true) {
  FencedBuffer<compute_t<T>> x(logits);
  FencedBuffer<T> dx(n * v);
  FencedBuffer<double> nll(n);
  CrossEntropyArgs args;
  args.logits = x.data();
  args.targets = targets.data();
  args.nll = nll.data();
  args.dlogits = gradient ? dx.data() : nullptr;
  args.n = n;
  args.v = v;
  args.scale = scale;
  f(args, {});
  return {nll.values(), gradient ? dx.values() : Values()};
}

std::vector<int32_t> make_targets(int64_t n, int64_t v) {
  std::vector<int32_t> targets;
  for (int64_t i = 0; i < n; ++i) {
    targets.push_back(i % 4 == 3 ? -1 : static_cast<int32_t>((i * 31 + 1) % v));
  }
  return targets;
}

TEST(CrossEntropyTest, MatchesTheReference) {
  register_cpu_kernels();
  for (const int64_t v : {1, 3, 17, 101, 1376, 5003}) {
    for (const double scale : {0.1, 5.0, 60.0}) {
      SCOPED_TRACE(fmt::format("v {} scale {}", v, scale));
      for_each_dtype(cross_entropy_table(), [&]<class T>() {
        const int64_t n = 6;
        const Values x = rounded<compute_t<T>>(random_values(n * v, 1, scale));
        const auto targets = make_targets(n, v);
        const auto f = cross_entropy_table().get(DeviceKind::kCpu, kDtypeOf<T>);
        const Result actual = run<T>(n, v, x, targets, 0.125, f);
        const Result naive = run<T>(n, v, x, targets, 0.125, reference::cross_entropy<T>);
        const Result exact = run<double>(n, v, x, targets, 0.125, reference::cross_entropy<double>);
        expect_as_good_as_naive<compute_t<T>>(actual.nll, naive.nll, exact.nll, "nll");
        expect_as_good_as_naive<T>(actual.dlogits, naive.dlogits, exact.dlogits, "dlogits");
        EXPECT_EQ(actual.nll[3], 0);
        EXPECT_EQ(run<T>(n, v, x, targets, 0.125, f, false).nll, actual.nll);
      });
    }
  }
}

TEST(CrossEntropyTest, LargeLogitsAndAConfidentTarget) {
  register_cpu_kernels();
  const Values x = {1e4, -1e4, 0, 30, 0, 0};
  const Result r =
      run<float>(2, 3, x, {0, 0}, 1, cross_entropy_table().get(DeviceKind::kCpu, Dtype::kFloat32));
  EXPECT_EQ(r.nll[0], 0);
  EXPECT_EQ(r.dlogits[1], 0);
  const double p = 1 / (1 + 2 * std::exp(-30.0));
  EXPECT_NEAR(r.dlogits[3], p - 1, 1e-7);
}

TEST(CrossEntropyTest, NanLogitsGiveANanLoss) {
  register_cpu_kernels();
  const Result r = run<float>(1, 4, {0, std::nan(""), 1, 2}, {2}, 1,
                              cross_entropy_table().get(DeviceKind::kCpu, Dtype::kFloat32));
  EXPECT_TRUE(std::isnan(r.nll[0]));
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

TEST(CrossEntropyTest, SameBitsForAnyNumberOfThreads) {
  register_cpu_kernels();
  for_each_dtype(cross_entropy_table(), [&]<class T>() {
    const int64_t n = 21, v = 3001;
    const Values x = rounded<compute_t<T>>(random_values(n * v, 1, 3));
    expect_same_for_any_threads([&] {
      const Result r = run<T>(n, v, x, make_targets(n, v), 1,
                              cross_entropy_table().get(DeviceKind::kCpu, kDtypeOf<T>));
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
