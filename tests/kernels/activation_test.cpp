// SPDX-License-Identifier: Apache-2.0
#include "heirloom/kernels/activation.h"

#include <gtest/gtest.h>

#include "kernels/reference/activation.hpp"
#include "support/kernels.h"

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
               Kernel<ActivationForwardArgs> kernel) {
  const OnDevice scope(kernel.device);
  FencedBuffer<T> x(in), y(n * f);
  ActivationForwardArgs args;
  args.kind = kind;
  args.x = x.data();
  args.y = y.data();
  args.n = n;
  args.f = f;
  kernel(args);
  return y.values();
}

/// In place: dx aliases x.
template <class T>
Values backward(ActivationKind kind, int64_t n, int64_t f, const Values& in,
                const Values& cotangent, Kernel<ActivationBackwardArgs> kernel) {
  const OnDevice scope(kernel.device);
  FencedBuffer<T> x(in), dy(cotangent);
  ActivationBackwardArgs args;
  args.kind = kind;
  args.x = x.data();
  args.dy = dy.data();
  args.dx = x.data();
  args.n = n;
  args.f = f;
  kernel(args);
  return x.values();
}

void check(ActivationKind kind, int64_t n, int64_t f, double scale) {
  SCOPED_TRACE(fmt::format("kind {} n {} f {} scale {}", static_cast<int>(kind), n, f, scale));
  for_each_entry(activation_forward_table(), [&]<class T>(const Device& device) {
    const Values x = rounded<T>(random_values(n * width(kind, f), 1, scale));
    const Values dy = rounded<T>(random_values(n * f, 2));
    expect_as_good_as_naive<T>(
        forward<T>(kind, n, f, x, on(activation_forward_table(), device, kDtypeOf<T>)),
        forward<T>(kind, n, f, x, reference::activation_forward<T>),
        forward<double>(kind, n, f, x, reference::activation_forward<double>), "y", kRoundings);
    expect_as_good_as_naive<T>(
        backward<T>(kind, n, f, x, dy, on(activation_backward_table(), device, kDtypeOf<T>)),
        backward<T>(kind, n, f, x, dy, reference::activation_backward<T>),
        backward<double>(kind, n, f, x, dy, reference::activation_backward<double>), "dx",
        kRoundings);
  });
}

TEST(ActivationTest, MatchesTheReference) {
  for (const ActivationKind kind : kKinds) {
    for (const auto& [n, f] : {std::pair<int64_t, int64_t>{1, 1},
                               {3, 3},
                               {3, 10},
                               {3, 12},
                               {2, 17},
                               {3, 24},
                               {5, 101},
                               {4, 1376},
                               {1, 5000},
                               {0, 8}}) {
      for (const double scale : {0.5, 6.0, 30.0}) check(kind, n, f, scale);
    }
  }
}

TEST(ActivationTest, AddressesNeedNoAlignment) {
  for (const int64_t skew : {1, 2, 4}) {
    const Skew scope(skew);
    for (const ActivationKind kind : kKinds) check(kind, 3, 64, 3);
  }
}

// Element by element, over the whole range: a max norm would hide the small values.
TEST(ActivationTest, Float32IsAccurateRelativelyWhereTheFunctionIsNotSmall) {
  Values x;
  for (double v = -4; v < 40; v += 0.00371) x.push_back(v);
  x = rounded<float>(x);
  const int64_t f = static_cast<int64_t>(x.size());
  for_each_device([&](const Device& device) {
    // Naive code cancels in 1 + erf.
    if (device.kind == DeviceKind::kCpu && cpu_kernel_isa() == "reference") return;
    for (const ActivationKind kind : {ActivationKind::kGelu, ActivationKind::kGeluTanh}) {
      const Values actual =
          forward<float>(kind, 1, f, x, on(activation_forward_table(), device, Dtype::kFloat32));
      const Values exact = forward<double>(kind, 1, f, x, reference::activation_forward<double>);
      for (size_t i = 0; i < x.size(); ++i) {
        // exp(-x^2/2) carries the rounding of its argument: up to 8 ulp at -4.
        ASSERT_NEAR(actual[i], exact[i], 12 * 0x1p-24 * std::abs(exact[i]) + 1e-9)
            << "kind " << static_cast<int>(kind) << " x " << x[i];
      }
    }
  });
}

TEST(ActivationTest, ExtremeInputsStayFinite) {
  const Values x = {-1e30, -200, -100, 100, 200, 1e30};
  for_each_device([&](const Device& device) {
    for (const ActivationKind kind : {ActivationKind::kGelu, ActivationKind::kGeluTanh}) {
      const Values y =
          forward<float>(kind, 1, 6, x, on(activation_forward_table(), device, Dtype::kFloat32));
      for (size_t i = 1; i < 3; ++i) EXPECT_NEAR(y[i], 0, 1e-30);
      EXPECT_NEAR(y[0], 0, 1e-6);
      for (size_t i = 3; i < 6; ++i) EXPECT_EQ(y[i], static_cast<double>(static_cast<float>(x[i])));
    }
  });
}

TEST(ActivationTest, NanPropagates) {
  for_each_device([&](const Device& device) {
    for (const ActivationKind kind : kKinds) {
      const Values y =
          forward<float>(kind, 1, 1, Values(static_cast<size_t>(width(kind, 1)), std::nan("")),
                         on(activation_forward_table(), device, Dtype::kFloat32));
      EXPECT_TRUE(std::isnan(y[0]));
    }
  });
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

TEST(ActivationTest, SameBitsEveryTime) {
  for (const ActivationKind kind : kKinds) {
    for_each_entry(activation_forward_table(), [&]<class T>(const Device& device) {
      const int64_t n = 23, f = 1376;
      const Values x = rounded<T>(random_values(n * width(kind, f), 1, 3));
      const Values dy = rounded<T>(random_values(n * f, 2));
      expect_reproducible(device, [&] {
        return concatenated(
            {forward<T>(kind, n, f, x, on(activation_forward_table(), device, kDtypeOf<T>)),
             backward<T>(kind, n, f, x, dy, on(activation_backward_table(), device, kDtypeOf<T>))});
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
