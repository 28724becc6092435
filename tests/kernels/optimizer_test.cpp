// SPDX-License-Identifier: Apache-2.0
#include "heirloom/kernels/optimizer.h"

#include <gtest/gtest.h>

#include "kernels/reference/optimizer.hpp"
#include "support/kernels.h"

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

/// What the t-th step passes.
AdamwScalars scalars_of(int64_t t) {
  const AdamwArgs args;
  AdamwScalars s;
  s.lr = 3e-3;
  s.bias_correction1 = 1 - std::pow(args.beta1, t);
  s.bias_correction2 = 1 - std::pow(args.beta2, t);
  s.grad_scale = 0.37;
  return s;
}

/// What the kernels read of `segments`, numbered, and of `scalars`: both in the device's memory.
struct Table {
  Table(std::vector<OptimizerSegment> list, const AdamwScalars& scalars_now = {})
      : runs(number_runs(list.data(), static_cast<int64_t>(list.size()))),
        segments(list),
        scalars(std::vector<AdamwScalars>{scalars_now}) {}

  void fill(AdamwArgs& args) {
    args.segments = segments.data();
    args.segment_count = segments.size();
    args.runs = runs;
    args.scalars = scalars.data();
  }

  int64_t runs;
  FencedBuffer<OptimizerSegment> segments;
  FencedBuffer<AdamwScalars> scalars;
};

/// One step with gradients of seed t; the weight copy exists where T is not A.
template <class T>
State step(const State& before, int64_t t, Kernel<AdamwArgs> f, const AdamwScalars& scalars) {
  const OnDevice scope(f.device);
  using A = compute_t<T>;
  constexpr bool kHasCopy = !std::is_same_v<T, A>;
  std::vector<FencedBuffer<A>> master, grad, m, v;
  std::vector<FencedBuffer<T>> weight;
  std::vector<OptimizerSegment> segments;
  for (size_t k = 0; k < std::size(kSizes); ++k) {
    master.emplace_back(before.master[k]);
    m.emplace_back(before.m[k]);
    v.emplace_back(before.v[k]);
    weight.emplace_back(before.weight[k]);
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
  Table table(segments, scalars);
  AdamwArgs args;
  table.fill(args);
  f(args);
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
  for_each_entry(adamw_table(), [&]<class T>(const Device& device) {
    using A = compute_t<T>;
    const auto f = on(adamw_table(), device, kDtypeOf<T>);
    for (const int64_t t : {1, 7}) {
      const State start = initial_state();
      const AdamwScalars now = scalars_of(t);
      const State actual = step<T>(start, t, f, now);
      const State naive = step<T>(start, t, reference::adamw<T>, now);
      const State exact = step<double>(start, t, reference::adamw<double>, now);
      for (size_t k = 0; k < std::size(kSizes); ++k) {
        expect_as_good_as_naive<A>(actual.master[k], naive.master[k], exact.master[k], "master");
        expect_as_good_as_naive<A>(actual.m[k], naive.m[k], exact.m[k], "m");
        expect_as_good_as_naive<A>(actual.v[k], naive.v[k], exact.v[k], "v");
        if (!actual.weight[k].empty()) {
          EXPECT_EQ(actual.weight[k], rounded<T>(actual.master[k]));
        }
      }
    }
    expect_reproducible(device, [&] {
      const State s = step<T>(initial_state(), 2, f, scalars_of(2));
      return concatenated({s.master[4], s.weight[4], s.m[4], s.v[4], s.master[3]});
    });
  });
}

TEST(AdamwTest, AddressesNeedNoAlignment) {
  for_each_entry(adamw_table(), [&]<class T>(const Device& device) {
    const auto f = on(adamw_table(), device, kDtypeOf<T>);
    const State even = step<T>(initial_state(), 3, f, scalars_of(3));
    for (const int64_t skew : {1, 2}) {
      const Skew scope(skew);
      const State odd = step<T>(initial_state(), 3, f, scalars_of(3));
      EXPECT_EQ(odd.master, even.master);
      EXPECT_EQ(odd.weight, even.weight);
      EXPECT_EQ(odd.m, even.m);
      EXPECT_EQ(odd.v, even.v);
    }
  });
}

TEST(AdamwTest, AGradScaleOfNanChangesNothing) {
  for_each_entry(adamw_table(), [&]<class T>(const Device& device) {
    const State start = initial_state();
    AdamwScalars now = scalars_of(3);
    now.grad_scale = std::nan("");
    for (const Kernel<AdamwArgs>& f :
         {on(adamw_table(), device, kDtypeOf<T>), Kernel<AdamwArgs>(reference::adamw<T>)}) {
      const State after = step<T>(start, 3, f, now);
      EXPECT_EQ(after.master, start.master);
      EXPECT_EQ(after.m, start.m);
      EXPECT_EQ(after.v, start.v);
      if (std::is_same_v<T, bfloat16>) {
        EXPECT_EQ(after.weight, start.weight);
      }
    }
  });
}

TEST(AdamwTest, OneStepByHand) {
  // First step: m_hat = g, v_hat = g^2, so w moves by lr (sign(g) + decay w).
  for_each_device([&](const Device& device) {
    const OnDevice scope(device);
    FencedBuffer<float> w(Values{1.0, -2.0}), g(Values{0.5, -4.0}), m(Values{0, 0}),
        v(Values{0, 0});
    OptimizerSegment s;
    s.master = w.data();
    s.grad = g.data();
    s.m = m.data();
    s.v = v.data();
    s.n = 2;
    s.weight_decay = 0.5;
    AdamwScalars now;
    now.lr = 0.1;
    now.bias_correction1 = 0.1;
    now.bias_correction2 = 0.05;
    Table table({s}, now);
    AdamwArgs args;
    table.fill(args);
    on(adamw_table(), device, Dtype::kFloat32)(args);
    EXPECT_NEAR(w.values()[0], 1 - 0.1 * (1 + 0.5), 1e-6);
    EXPECT_NEAR(w.values()[1], -2 - 0.1 * (-1 - 1.0), 1e-6);
    EXPECT_NEAR(m.values()[1], -0.4, 1e-6);
    EXPECT_NEAR(v.values()[1], 0.8, 1e-6);
  });
}

/// Narrow state of two segments of which the first has more than one run.
struct Narrow {
  Values w, m, v;
};
constexpr int64_t kNarrowSizes[] = {20001, 77};

/// One step from fixed random weights, moments and gradients.
template <class T>
Narrow narrow_step(const AdamwArgs& options, const AdamwScalars& scalars, Kernel<AdamwArgs> f,
                   double weight_decay = 0.1) {
  const OnDevice scope(f.device);
  uint64_t seed = 1;
  std::vector<FencedBuffer<T>> w, m, v;
  std::vector<FencedBuffer<compute_t<T>>> grad;
  std::vector<OptimizerSegment> segments;
  for (const int64_t n : kNarrowSizes) {
    w.emplace_back(random_values(n, seed++));
    m.emplace_back(random_values(n, seed++, 0.1));
    Values squares = random_values(n, seed++, 0.01);
    for (double& x : squares) x = std::abs(x);
    v.emplace_back(squares);
    grad.emplace_back(rounded<float>(random_values(n, seed++)));
    OptimizerSegment s;
    s.weight = w.back().data();
    s.grad = grad.back().data();
    s.m = m.back().data();
    s.v = v.back().data();
    s.n = n;
    s.weight_decay = weight_decay;
    segments.push_back(s);
  }
  Table table(segments, scalars);
  AdamwArgs args = options;
  args.narrow_state = true;
  table.fill(args);
  f(args);
  return {concatenated({w[0].values(), w[1].values()}),
          concatenated({m[0].values(), m[1].values()}),
          concatenated({v[0].values(), v[1].values()})};
}

/// Scalars with which no step is taken.
AdamwScalars no_step() {
  AdamwScalars s;
  s.grad_scale = std::nan("");
  return s;
}

/// What narrow_step<bfloat16> rounds, in float64 from the same start.
Narrow before_rounding(const AdamwScalars& now) {
  const Narrow start = narrow_step<bfloat16>({}, no_step(), reference::adamw<bfloat16>);
  FencedBuffer<double> w(start.w), m(start.m), v(start.v);
  FencedBuffer<double> grad(concatenated({rounded<float>(random_values(kNarrowSizes[0], 4)),
                                          rounded<float>(random_values(kNarrowSizes[1], 8))}));
  OptimizerSegment s;
  s.weight = w.data();
  s.grad = grad.data();
  s.m = m.data();
  s.v = v.data();
  s.n = w.size();
  s.weight_decay = 0.1;
  Table table({s}, now);
  AdamwArgs args;
  args.narrow_state = true;
  table.fill(args);
  reference::adamw<double>(args, {});
  return {w.values(), m.values(), v.values()};
}

/// The two neighbours of x in bfloat16 are at most this far apart.
double bfloat16_gap(double x) { return std::ldexp(1.0, std::ilogb(x == 0 ? 1e-30 : x) - 7); }

/// What mean values over `keys` roundings may be off by, in units of the gap: an element's has a
/// deviation of at most 1/2 / sqrt(keys), the mean over all elements one of
/// 1/2 / sqrt(keys elements).
void expect_unbiased(const Values& mean, const Values& exact, double keys,
                     const std::string& what) {
  double bias = 0, worst = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double error = (mean[i] - exact[i]) / bfloat16_gap(exact[i]);
    bias += error / static_cast<double>(exact.size());
    worst = std::max(worst, std::abs(error));
  }
  EXPECT_LT(std::abs(bias), 5 * 0.5 / std::sqrt(keys * static_cast<double>(exact.size()))) << what;
  EXPECT_LT(worst, 6 * 0.5 / std::sqrt(keys)) << what;
}

TEST(NarrowAdamwTest, RoundsToANeighbourWithoutBias) {
  const AdamwScalars now = scalars_of(5);
  const Narrow exact = before_rounding(now);
  for_each_device([&](const Device& device) {
    const auto f = on(adamw_table(), device, Dtype::kBFloat16);
    const uint64_t keys = is_emulated(device) ? 16 : 64;
    const Values zeros(exact.w.size());
    Narrow mean{zeros, zeros, zeros};
    const auto add = [&](Values& sum, const Values& x, const Values& want) {
      for (size_t i = 0; i < x.size(); ++i) {
        ASSERT_LE(std::abs(x[i] - want[i]), 1.01 * bfloat16_gap(want[i])) << i;
        sum[i] += x[i] / static_cast<double>(keys);
      }
    };
    for (uint64_t key = 0; key < keys; ++key) {
      AdamwScalars with_key = now;
      with_key.rounding_key = mix_key(17, key);
      const Narrow r = narrow_step<bfloat16>({}, with_key, f);
      add(mean.w, r.w, exact.w);
      add(mean.m, r.m, exact.m);
      add(mean.v, r.v, exact.v);
    }
    expect_unbiased(mean.w, exact.w, static_cast<double>(keys), "w");
    expect_unbiased(mean.m, exact.m, static_cast<double>(keys), "m");
    expect_unbiased(mean.v, exact.v, static_cast<double>(keys), "v");
  });
}

TEST(NarrowAdamwTest, ExactValuesStayExact) {
  // Without a step nothing is cut off: with lr 0 and b1 = b2 = 1 every value is a bfloat16 already.
  AdamwArgs args;
  args.beta1 = args.beta2 = 1;
  AdamwScalars now;
  now.rounding_key = 99;
  const Narrow start = narrow_step<bfloat16>(args, no_step(), reference::adamw<bfloat16>);
  const auto check = [&](const Kernel<AdamwArgs>& f) {
    const Narrow after = narrow_step<bfloat16>(args, now, f);
    EXPECT_EQ(after.w, start.w);
    EXPECT_EQ(after.m, start.m);
    EXPECT_EQ(after.v, start.v);
  };
  check(reference::adamw<bfloat16>);
  for_each_device(
      [&](const Device& device) { check(on(adamw_table(), device, Dtype::kBFloat16)); });
}

/// Coefficients with which every float32 operation but the last is exact, so that all code rounds
/// the same values: b1 = b2 = 0 and eps 0 give m = g, v = g^2 and a step of lr sign(g).
AdamwArgs sign_descent() {
  AdamwArgs args;
  args.beta1 = args.beta2 = args.eps = 0;
  return args;
}

TEST(NarrowAdamwTest, SameBitsAsTheReference) {
  for_each_device([&](const Device& device) {
    const auto f = on(adamw_table(), device, Dtype::kBFloat16);
    AdamwScalars now;
    now.rounding_key = 0x123456789abcdef0;
    for (const double lr : {0x1p-11, 0x1p-14}) {
      now.lr = lr;
      const Narrow naive =
          narrow_step<bfloat16>(sign_descent(), now, reference::adamw<bfloat16>, 0);
      for (const int64_t skew : {0, 1}) {
        const Skew scope(skew);
        const Narrow r = narrow_step<bfloat16>(sign_descent(), now, f, 0);
        EXPECT_EQ(r.w, naive.w);
        EXPECT_EQ(r.m, naive.m);
        EXPECT_EQ(r.v, naive.v);
      }
    }
    expect_reproducible(device, [&] {
      const Narrow r = narrow_step<bfloat16>({}, scalars_of(3), f);
      return concatenated({r.w, r.m, r.v});
    });
  });
}

TEST(NarrowAdamwTest, StepsSmallerThanHalfAUnitAreNotLost) {
  // 400 steps of -2^-12 from 1: rounding to nearest never leaves 1, where the gap is 2^-8 below.
  constexpr int64_t kCount = 512;
  for_each_device([&](const Device& device) {
    const OnDevice scope(device);
    FencedBuffer<bfloat16> w(Values(kCount, 1.0)), m(Values(kCount, 0.0)), v(Values(kCount, 0.0));
    FencedBuffer<float> grad(Values(kCount, 1.0));
    OptimizerSegment s;
    s.weight = w.data();
    s.grad = grad.data();
    s.m = m.data();
    s.v = v.data();
    s.n = kCount;
    AdamwScalars now;
    now.lr = 0x1p-12;
    Table table({s}, now);
    AdamwArgs args = sign_descent();
    args.narrow_state = true;
    table.fill(args);
    const auto f = on(adamw_table(), device, Dtype::kBFloat16);
    for (uint64_t t = 0; t < 400; ++t) {
      now.rounding_key = mix_key(3, t);
      table.scalars.assign({now});
      f(args);
    }
    double mean = 0;
    for (const double x : w.values()) mean += x / kCount;
    EXPECT_NEAR(mean, 1 - 400 * 0x1p-12, 0.003);
  });
}

TEST(NarrowAdamwTest, NanAndInfinityStayWhatTheyAre) {
  const double infinity = std::numeric_limits<double>::infinity();
  const auto check = [&](const Kernel<AdamwArgs>& f) {
    const OnDevice scope(f.device);
    FencedBuffer<bfloat16> w(Values{1, 1}), m(Values{0, infinity}), v(Values{0, 1});
    FencedBuffer<float> grad(Values{std::nan(""), 0});
    OptimizerSegment s;
    s.weight = w.data();
    s.grad = grad.data();
    s.m = m.data();
    s.v = v.data();
    s.n = 2;
    AdamwScalars now;
    now.rounding_key = 5;
    Table table({s}, now);
    AdamwArgs args;
    args.narrow_state = true;
    table.fill(args);
    f(args);
    EXPECT_TRUE(std::isnan(m.values()[0]));
    EXPECT_TRUE(std::isnan(v.values()[0]));
    EXPECT_EQ(m.values()[1], infinity);
  };
  check(reference::adamw<bfloat16>);
  for_each_device(
      [&](const Device& device) { check(on(adamw_table(), device, Dtype::kBFloat16)); });
}

TEST(NarrowAdamwTest, WhereTIsANothingIsRounded) {
  for_each_entry(adamw_table(), [&]<class T>(const Device& device) {
    if constexpr (!std::is_same_v<T, bfloat16>) {
      const AdamwScalars now = scalars_of(4);
      const Narrow actual = narrow_step<T>({}, now, on(adamw_table(), device, kDtypeOf<T>));
      const Narrow naive = narrow_step<T>({}, now, reference::adamw<T>);
      EXPECT_LT(max_error(actual.w, naive.w), 1e-6);
      EXPECT_LT(max_error(actual.m, naive.m), 1e-6);
      EXPECT_LT(max_error(actual.v, naive.v), 1e-6);
    }
  });
}

template <class T>
double sum_squares(const std::vector<Values>& parts, Kernel<SumSquaresArgs> f) {
  const OnDevice scope(f.device);
  std::vector<FencedBuffer<compute_t<T>>> buffers;
  std::vector<OptimizerSegment> segments;
  for (const Values& part : parts) {
    buffers.emplace_back(part);
    OptimizerSegment s;
    s.grad = buffers.back().data();
    s.n = buffers.back().size();
    segments.push_back(s);
  }
  Table table(segments);
  FencedBuffer<double> workspace(table.runs), result(1);
  SumSquaresArgs args;
  args.segments = table.segments.data();
  args.segment_count = table.segments.size();
  args.runs = table.runs;
  args.workspace = workspace.data();
  args.result = result.data();
  f(args);
  return result.values()[0];
}

TEST(SumSquaresTest, MatchesTheReference) {
  for_each_entry(sum_squares_table(), [&]<class T>(const Device& device) {
    const auto f = on(sum_squares_table(), device, kDtypeOf<T>);
    EXPECT_EQ(sum_squares<T>({}, f), 0);
    const std::vector<Values> parts = {rounded<float>(random_values(3, 1)),
                                       {},
                                       rounded<float>(random_values(100003, 2)),
                                       rounded<float>(random_values(kOptimizerRun, 3)),
                                       {}};
    const double exact = sum_squares<double>(parts, reference::sum_squares<double>);
    EXPECT_NEAR(sum_squares<T>(parts, f), exact, 1e-13 * exact);
    {
      const Skew scope(1);
      EXPECT_NEAR(sum_squares<T>(parts, f), exact, 1e-13 * exact);
    }
    expect_reproducible(device, [&] { return Values{sum_squares<T>(parts, f)}; });
  });
}

TEST(SumSquaresTest, RunsAreNumberedThroughAllSegments) {
  OptimizerSegment s[5];
  const int64_t sizes[] = {1, 0, kOptimizerRun, kOptimizerRun + 1, 0};
  for (size_t k = 0; k < 5; ++k) s[k].n = sizes[k];
  EXPECT_EQ(number_runs(s, 5), 4);
  EXPECT_EQ(s[0].first_run, 0);
  EXPECT_EQ(s[1].first_run, 1);
  EXPECT_EQ(s[2].first_run, 1);
  EXPECT_EQ(s[3].first_run, 2);
  EXPECT_EQ(s[4].first_run, 4);
  EXPECT_EQ(number_runs(nullptr, 0), 0);
}

TEST(GradScaleTest, ByHand) {
  const auto run = [](const Kernel<GradScaleArgs>& f, double squares, double clip) {
    const OnDevice scope(f.device);
    FencedBuffer<double> sum(Values{squares}), norm(1), scale(1);
    GradScaleArgs args;
    args.sum_squares = sum.data();
    args.clip = clip;
    args.norm = norm.data();
    args.grad_scale = scale.data();
    f(args);
    return std::pair(norm.values()[0], scale.values()[0]);
  };
  for_each_entry(grad_scale_table(), [&]<class T>(const Device& device) {
    const auto f = on(grad_scale_table(), device, kDtypeOf<T>);
    EXPECT_EQ(run(f, 16, 0), std::pair(4.0, 1.0));
    EXPECT_EQ(run(f, 16, 1), std::pair(4.0, 1 / (4 + 1e-6)));
    EXPECT_EQ(run(f, 16, 5), std::pair(4.0, 1.0));
    EXPECT_EQ(run(f, 0, 1), std::pair(0.0, 1.0));
    for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity()}) {
      for (const double clip : {0.0, 1.0}) {
        const auto [norm, scale] = run(f, bad, clip);
        EXPECT_FALSE(std::isfinite(norm));
        EXPECT_TRUE(std::isnan(scale)) << bad << " " << clip;
      }
    }
  });
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
  a.narrow_state = true;
  EXPECT_EQ(adamw_cost(a, Dtype::kBFloat16).bytes_read, 15 * (4 + 6));
  EXPECT_EQ(adamw_cost(a, Dtype::kBFloat16).bytes_written, 15 * 6);
  SumSquaresArgs q;
  q.segments = s;
  q.segment_count = 2;
  EXPECT_EQ(sum_squares_cost(q, Dtype::kFloat32).bytes_read, 60);
  EXPECT_EQ(grad_scale_cost({}, Dtype::kFloat32).bytes(), 24);
}

}  // namespace
}  // namespace heirloom
