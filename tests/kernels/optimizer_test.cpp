// SPDX-License-Identifier: Apache-2.0
#include "heirloom/kernels/optimizer.h"

#include <gtest/gtest.h>

#include "kernels/reference/optimizer.hpp"
#include "support/numerics.h"

namespace heirloom {
namespace {
using namespace test;

constexpr int64_t kSizes[] = {1, 17, 0, 1376, 40000};

struct State {
  std::vector<Values> master, weight, m, v;
};

State initial_state() {
  State s;
  uint64_t seed = 1;
  for (const int64_t n : kSizes) {
    s.master.push_back(rounded<float>(random_values(n, seed++)));
    s.weight.push_back(Values(static_cast<size_t>(n), 0));
    s.m.push_back(rounded<float>(random_values(n, seed++, 0.1)));
    s.v.push_back(rounded<float>(random_values(n, seed++, 0.01)));
    for (double& v : s.v.back()) v = std::abs(v);
  }
  return s;
}

/// One step with gradients of `seed`; the weight copy exists where T is not A.
template <class T>
State step(const State& before, int64_t t, KernelTable<AdamwArgs>::Function f) {
  using A = compute_t<T>;
  constexpr bool kHasCopy = !std::is_same_v<T, A>;
  std::vector<FencedBuffer<A>> master, grad, m, v;
  std::vector<FencedBuffer<T>> weight;
  std::vector<OptimizerSegment> segments;
  for (size_t k = 0; k < std::size(kSizes); ++k) {
    master.emplace_back(before.master[k]);
    m.emplace_back(before.m[k]);
    v.emplace_back(before.v[k]);
    weight.emplace_back(kSizes[k]);
    grad.emplace_back(rounded<float>(random_values(kSizes[k], 100 * static_cast<uint64_t>(t) + k)));
    OptimizerSegment s;
    s.master = master.back().data();
    s.weight = kHasCopy ? weight.back().data() : nullptr;
    s.grad = grad.back().data();
    s.m = m.back().data();
    s.v = v.back().data();
    s.n = kSizes[k];
    s.weight_decay = k % 2 ? 0.1 : 0.0;
    segments.push_back(s);
  }
  AdamwArgs args;
  args.segments = segments.data();
  args.segment_count = static_cast<int64_t>(segments.size());
  args.lr = 3e-3;
  args.bias_correction1 = 1 - std::pow(args.beta1, t);
  args.bias_correction2 = 1 - std::pow(args.beta2, t);
  args.grad_scale = 0.37;
  f(args, {});
  State after;
  for (size_t k = 0; k < std::size(kSizes); ++k) {
    after.master.push_back(master[k].values());
    after.weight.push_back(kHasCopy ? weight[k].values() : Values());
    after.m.push_back(m[k].values());
    after.v.push_back(v[k].values());
  }
  return after;
}

TEST(AdamwTest, MatchesTheReference) {
  register_cpu_kernels();
  for_each_dtype(adamw_table(), [&]<class T>() {
    using A = compute_t<T>;
    const auto f = adamw_table().get(DeviceKind::kCpu, kDtypeOf<T>);
    for (const int64_t t : {1, 7}) {
      const State start = initial_state();
      const State actual = step<T>(start, t, f), naive = step<T>(start, t, reference::adamw<T>);
      const State exact = step<double>(start, t, reference::adamw<double>);
      for (size_t k = 0; k < std::size(kSizes); ++k) {
        expect_as_good_as_naive<A>(actual.master[k], naive.master[k], exact.master[k], "master");
        expect_as_good_as_naive<A>(actual.m[k], naive.m[k], exact.m[k], "m");
        expect_as_good_as_naive<A>(actual.v[k], naive.v[k], exact.v[k], "v");
        if (!actual.weight[k].empty()) {
          EXPECT_EQ(actual.weight[k], rounded<T>(actual.master[k]));
        }
      }
    }
    expect_same_for_any_threads([&] {
      const State s = step<T>(initial_state(), 2, f);
      return concatenated({s.master[4], s.weight[4], s.m[4], s.v[4], s.master[3]});
    });
  });
}

TEST(AdamwTest, OneStepByHand) {
  register_cpu_kernels();
  // First step: m_hat = g, v_hat = g^2, so w moves by lr (sign(g) + decay w).
  FencedBuffer<float> w(Values{1.0, -2.0}), g(Values{0.5, -4.0}), m(Values{0, 0}), v(Values{0, 0});
  OptimizerSegment s;
  s.master = w.data();
  s.grad = g.data();
  s.m = m.data();
  s.v = v.data();
  s.n = 2;
  s.weight_decay = 0.5;
  AdamwArgs args;
  args.segments = &s;
  args.segment_count = 1;
  args.lr = 0.1;
  args.bias_correction1 = 0.1;
  args.bias_correction2 = 0.05;
  adamw_table().get(DeviceKind::kCpu, Dtype::kFloat32)(args, {});
  EXPECT_NEAR(w.values()[0], 1 - 0.1 * (1 + 0.5), 1e-6);
  EXPECT_NEAR(w.values()[1], -2 - 0.1 * (-1 - 1.0), 1e-6);
  EXPECT_NEAR(m.values()[1], -0.4, 1e-6);
  EXPECT_NEAR(v.values()[1], 0.8, 1e-6);
}

template <class T>
double sum_squares(const std::vector<Values>& parts, KernelTable<SumSquaresArgs>::Function f) {
  std::vector<FencedBuffer<compute_t<T>>> buffers;
  std::vector<OptimizerSegment> segments;
  for (const Values& part : parts) {
    buffers.emplace_back(part);
    OptimizerSegment s;
    s.grad = buffers.back().data();
    s.n = buffers.back().size();
    segments.push_back(s);
  }
  double result = -1;
  SumSquaresArgs args;
  args.segments = segments.data();
  args.segment_count = static_cast<int64_t>(segments.size());
  args.result = &result;
  f(args, {});
  return result;
}

TEST(SumSquaresTest, MatchesTheReference) {
  register_cpu_kernels();
  for_each_dtype(sum_squares_table(), [&]<class T>() {
    const auto f = sum_squares_table().get(DeviceKind::kCpu, kDtypeOf<T>);
    EXPECT_EQ(sum_squares<T>({}, f), 0);
    const std::vector<Values> parts = {
        rounded<float>(random_values(3, 1)), {}, rounded<float>(random_values(100003, 2))};
    const double exact = sum_squares<double>(parts, reference::sum_squares<double>);
    EXPECT_NEAR(sum_squares<T>(parts, f), exact, 1e-13 * exact);
    expect_same_for_any_threads([&] { return Values{sum_squares<T>(parts, f)}; });
  });
  // More runs than are held at a time.
  const std::vector<Values> large = {Values(16384 * 1025 + 1, 2.0)};
  EXPECT_EQ(sum_squares<float>(large, sum_squares_table().get(DeviceKind::kCpu, Dtype::kFloat32)),
            4.0 * (16384 * 1025 + 1));
}

TEST(OptimizerTest, CostByHand) {
  float some = 0;
  OptimizerSegment s[2];
  s[0].n = 10;
  s[1].n = 5;
  s[0].weight = s[1].weight = &some;
  AdamwArgs a;
  a.segments = s;
  a.segment_count = 2;
  EXPECT_EQ(adamw_cost(a, Dtype::kBFloat16).bytes_read, 15 * 16);
  EXPECT_EQ(adamw_cost(a, Dtype::kBFloat16).bytes_written, 15 * 14);
  EXPECT_EQ(adamw_cost(a, Dtype::kBFloat16).flops, 15 * 14);
  SumSquaresArgs q;
  q.segments = s;
  q.segment_count = 2;
  EXPECT_EQ(sum_squares_cost(q, Dtype::kFloat32).bytes_read, 60);
}

}  // namespace
}  // namespace heirloom
