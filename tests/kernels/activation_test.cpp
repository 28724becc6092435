// SPDX-License-Identifier: Apache-2.0
#include "heirloom/kernels/activation.h"

#include <gtest/gtest.h>

#include "kernels/reference/activation.hpp"
#include "support/numerics.h"

namespace heirloom {
namespace {
using namespace test;

constexpr ActivationKind kKinds[] = {ActivationKind::kSwiglu, ActivationKind::kGelu,
                                     ActivationKind::kGeluTanh};

/// libm's exp, erf and tanh are within half an ulp, ours within about two.
constexpr double kRoundings = 4;

int64_t width(ActivationKind kind, int64_t f) {
  return kind == ActivationKind::kSwiglu ? 2 * f : f;
}

template <class T>
Values forward(ActivationKind kind, int64_t n, int64_t f, const Values& in,
               KernelTable<ActivationForwardArgs>::Function kernel) {
  FencedBuffer<T> x(in), y(n * f);
  ActivationForwardArgs args;
  args.kind = kind;
  args.x = x.data();
  args.y = y.data();
  args.n = n;
  args.f = f;
  kernel(args, {});
  return y.values();
}

/// In place: dx aliases x.
template <class T>
Values backward(ActivationKind kind, int64_t n, int64_t f, const Values& in,
                const Values& cotangent, KernelTable<ActivationBackwardArgs>::Function kernel) {
  FencedBuffer<T> x(in), dy(cotangent);
  ActivationBackwardArgs args;
  args.kind = kind;
  args.x = x.data();
  args.dy = dy.data();
  args.dx = x.data();
  args.n = n;
  args.f = f;
  kernel(args, {});
  return x.values();
}

TEST(ActivationTest, MatchesTheReference) {
  register_cpu_kernels();
  for (const ActivationKind kind : kKinds) {
    for (const auto& [n, f] : {std::pair<int64_t, int64_t>{1, 1},
                               {3, 3},
                               {2, 17},
                               {5, 101},
                               {4, 1376},
                               {1, 5000},
                               {0, 8}}) {
      for (const double scale : {0.5, 6.0, 30.0}) {
        SCOPED_TRACE(
            fmt::format("kind {} n {} f {} scale {}", static_cast<int>(kind), n, f, scale));
        for_each_dtype(activation_forward_table(), [&, n = n, f = f]<class T>() {
          const Values x = rounded<T>(random_values(n * width(kind, f), 1, scale));
          const Values dy = rounded<T>(random_values(n * f, 2));
          const auto kernel = activation_forward_table().get(DeviceKind::kCpu, kDtypeOf<T>);
          expect_as_good_as_naive<T>(
              forward<T>(kind, n, f, x, kernel),
              forward<T>(kind, n, f, x, reference::activation_forward<T>),
              forward<double>(kind, n, f, x, reference::activation_forward<double>), "y",
              kRoundings);
          const auto back = activation_backward_table().get(DeviceKind::kCpu, kDtypeOf<T>);
          expect_as_good_as_naive<T>(
              backward<T>(kind, n, f, x, dy, back),
              backward<T>(kind, n, f, x, dy, reference::activation_backward<T>),
              backward<double>(kind, n, f, x, dy, reference::activation_backward<double>), "dx",
              kRoundings);
        });
      }
    }
  }
}

// Element by element, over the whole range: a max norm would hide the small values.
TEST(ActivationTest, Float32IsAccurateRelativelyWhereTheFunctionIsNotSmall) {
  register_cpu_kernels();
  if (cpu_kernel_isa() == "reference") GTEST_SKIP() << "naive code cancels in 1 + erf";
  Values x;
  for (double v = -4; v < 40; v += 0.00371) x.push_back(v);
  x = rounded<float>(x);
  const int64_t f = static_cast<int64_t>(x.size());
  for (const ActivationKind kind : {ActivationKind::kGelu, ActivationKind::kGeluTanh}) {
    const Values actual = forward<float>(
        kind, 1, f, x, activation_forward_table().get(DeviceKind::kCpu, Dtype::kFloat32));
    const Values exact = forward<double>(kind, 1, f, x, reference::activation_forward<double>);
    for (size_t i = 0; i < x.size(); ++i) {
      // exp(-x^2/2) carries the rounding of its argument: up to 8 ulp at -4.
      EXPECT_NEAR(actual[i], exact[i], 12 * 0x1p-24 * std::abs(exact[i]) + 1e-9) << x[i];
    }
  }
}

TEST(ActivationTest, ExtremeInputsStayFinite) {
  register_cpu_kernels();
  const Values x = {-1e30, -200, -100, 100, 200, 1e30};
  for (const ActivationKind kind : {ActivationKind::kGelu, ActivationKind::kGeluTanh}) {
    const Values y = forward<float>(
        kind, 1, 6, x, activation_forward_table().get(DeviceKind::kCpu, Dtype::kFloat32));
    for (size_t i = 1; i < 3; ++i) EXPECT_NEAR(y[i], 0, 1e-30);
    EXPECT_NEAR(y[0], 0, 1e-6);
    for (size_t i = 3; i < 6; ++i) EXPECT_EQ(y[i], static_cast<double>(static_cast<float>(x[i])));
  }
}

TEST(ActivationTest, NanPropagates) {
  register_cpu_kernels();
  for (const ActivationKind kind : kKinds) {
    const Values y =
        forward<float>(kind, 1, 1, Values(static_cast<size_t>(width(kind, 1)), std::nan("")),
                       activation_forward_table().get(DeviceKind::kCpu, Dtype::kFloat32));
    EXPECT_TRUE(std::isnan(y[0]));
  }
}

TEST(ActivationTest, GradientsAreCentralDifferences) {
  for (const ActivationKind kind : kKinds) {
    const int64_t n = 3, f = 11;
    const Values x = random_values(n * width(kind, f), 1, 3), dy = random_values(n * f, 2);
    expect_gradient(
        [&](const Values& at) {
          return dot(forward<double>(kind, n, f, at, reference::activation_forward<double>), dy);
        },
        x, backward<double>(kind, n, f, x, dy, reference::activation_backward<double>), "dx");
  }
}

TEST(ActivationTest, SameBitsForAnyNumberOfThreads) {
  register_cpu_kernels();
  for (const ActivationKind kind : kKinds) {
    for_each_dtype(activation_forward_table(), [&]<class T>() {
      const int64_t n = 23, f = 1376;
      const Values x = rounded<T>(random_values(n * width(kind, f), 1, 3));
      const Values dy = rounded<T>(random_values(n * f, 2));
      expect_same_for_any_threads([&] {
        return concatenated(
            {forward<T>(kind, n, f, x,
                        activation_forward_table().get(DeviceKind::kCpu, kDtypeOf<T>)),
             backward<T>(kind, n, f, x, dy,
                         activation_backward_table().get(DeviceKind::kCpu, kDtypeOf<T>))});
      });
    });
  }
}

TEST(ActivationTest, CostByHand) {
  ActivationForwardArgs f;
  f.n = 10;
  f.f = 20;
  EXPECT_EQ(activation_forward_cost(f, Dtype::kBFloat16).bytes(), 10 * 60 * 2);
  EXPECT_EQ(activation_forward_cost(f, Dtype::kFloat32).flops, 1000);
  ActivationBackwardArgs b;
  b.kind = ActivationKind::kGelu;
  b.n = 10;
  b.f = 20;
  EXPECT_EQ(activation_backward_cost(b, Dtype::kFloat32).bytes_read, 400 * 4);
  EXPECT_EQ(activation_backward_cost(b, Dtype::kFloat32).bytes_written, 200 * 4);
}

}  // namespace
}  // namespace heirloom
