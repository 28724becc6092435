// SPDX-License-Identifier: Apache-2.0
#include "heirloom/kernels/norm.h"

#include <gtest/gtest.h>

#include "kernels/reference/norm.hpp"
#include "support/kernels.h"

namespace heirloom {
namespace {
using namespace test;

struct Case {
  NormKind kind;
  int64_t n, c;
  bool delta, bias, dresidual;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const NormKind kind : {NormKind::kRms, NormKind::kLayer}) {
    for (const int64_t c : {1, 3, 10, 12, 17, 24, 101, 512, 1376, 5000}) {
      if (c == 1 && kind == NormKind::kLayer) continue;  // y is the bias, dx is rounding noise
      all.push_back({kind, 5, c, true, kind == NormKind::kLayer, true});
    }
    all.push_back({kind, 1, 64, false, false, false});
    all.push_back({kind, 101, 48, true, true, true});
    all.push_back({kind, 0, 16, true, false, false});
  }
  return all;
}

struct Inputs {
  Values residual, delta, weight, bias, dy, dresidual, dweight, dbias;
};

Inputs make_inputs(const Case& k) {
  return {random_values(k.n * k.c, 1, 3), random_values(k.n * k.c, 2), random_values(k.c, 3, 2),
          random_values(k.c, 4),          random_values(k.n * k.c, 5), random_values(k.n * k.c, 6),
          random_values(k.c, 7),          random_values(k.c, 8)};
}

template <class T>
Inputs rounded_inputs(Inputs in) {
  for (Values* v : {&in.residual, &in.delta, &in.weight, &in.bias, &in.dy, &in.dresidual}) {
    *v = rounded<T>(*v);
  }
  // The parameter gradients are kept in the accumulate dtype.
  in.dweight = rounded<compute_t<T>>(in.dweight);
  in.dbias = rounded<compute_t<T>>(in.dbias);
  return in;
}

struct Forward {
  Values x, y, mean, rstd;
};

template <class T>
Forward forward(const Case& k, const Inputs& in, Kernel<NormForwardArgs> f) {
  using A = compute_t<T>;
  const OnDevice scope(f.device);
  FencedBuffer<T> residual(in.residual), delta(in.delta), weight(in.weight), bias(in.bias);
  FencedBuffer<T> x(k.n * k.c), y(k.n * k.c);
  FencedBuffer<A> mean(k.n), rstd(k.n);
  NormForwardArgs args;
  args.kind = k.kind;
  args.residual = residual.data();
  args.delta = k.delta ? delta.data() : nullptr;
  args.x_out = k.delta ? x.data() : nullptr;
  args.weight = weight.data();
  args.bias = k.bias ? bias.data() : nullptr;
  args.y = y.data();
  args.mean = k.kind == NormKind::kLayer ? mean.data() : nullptr;
  args.rstd = rstd.data();
  args.n = k.n;
  args.c = k.c;
  args.eps = 1e-5;
  f(args);
  return {k.delta ? x.values() : residual.values(), y.values(),
          k.kind == NormKind::kLayer ? mean.values() : Values(), rstd.values()};
}

struct Backward {
  Values dx, dweight, dbias;
};

/// `stats` are those of the forward pass under test; dx aliases dresidual where there is one.
template <class T>
Backward backward(const Case& k, const Inputs& in, const Forward& stats,
                  Kernel<NormBackwardArgs> f) {
  using A = compute_t<T>;
  const OnDevice scope(f.device);
  FencedBuffer<T> dy(in.dy), dresidual(in.dresidual), x(stats.x), weight(in.weight);
  FencedBuffer<T> own_dx(k.n * k.c);
  FencedBuffer<A> mean(stats.mean), rstd(stats.rstd), dweight(in.dweight), dbias(in.dbias);
  FencedBuffer<unsigned char> workspace(
      norm_backward_workspace_bytes(k.n, k.c, kDtypeOf<T>, f.device.kind));
  FencedBuffer<T>& dx = k.dresidual ? dresidual : own_dx;
  NormBackwardArgs args;
  args.kind = k.kind;
  args.dy = dy.data();
  args.dresidual = k.dresidual ? dresidual.data() : nullptr;
  args.x = x.data();
  args.weight = weight.data();
  args.mean = mean.data();
  args.rstd = rstd.data();
  args.dx = dx.data();
  args.dweight = dweight.data();
  args.dbias = k.bias ? dbias.data() : nullptr;
  args.workspace = workspace.data();
  args.n = k.n;
  args.c = k.c;
  f(args);
  return {dx.values(), dweight.values(), k.bias ? dbias.values() : Values()};
}

void check(const Case& k) {
  SCOPED_TRACE(fmt::format("kind {} n {} c {}", static_cast<int>(k.kind), k.n, k.c));
  for_each_entry(norm_forward_table(), [&]<class T>(const Device& device) {
    using A = compute_t<T>;
    const Inputs in = rounded_inputs<T>(make_inputs(k));
    const Forward actual = forward<T>(k, in, on(norm_forward_table(), device, kDtypeOf<T>));
    const Forward naive = forward<T>(k, in, reference::norm_forward<T>);
    const Forward exact = forward<double>(k, in, reference::norm_forward<double>);
    expect_as_good_as_naive<T>(actual.x, naive.x, exact.x, "x");
    expect_as_good_as_naive<T>(actual.y, naive.y, exact.y, "y");
    expect_as_good_as_naive<A>(actual.mean, naive.mean, exact.mean, "mean");
    expect_as_good_as_naive<A>(actual.rstd, naive.rstd, exact.rstd, "rstd");

    // Backward on equal inputs: x and statistics as T and A hold them.
    const Forward& saved = naive;
    const Backward b = backward<T>(k, in, saved, on(norm_backward_table(), device, kDtypeOf<T>));
    const Backward nb = backward<T>(k, in, saved, reference::norm_backward<T>);
    const Backward eb = backward<double>(k, in, saved, reference::norm_backward<double>);
    expect_as_good_as_naive<T>(b.dx, nb.dx, eb.dx, "dx");
    expect_as_good_as_naive<A>(b.dweight, nb.dweight, eb.dweight, "dweight");
    expect_as_good_as_naive<A>(b.dbias, nb.dbias, eb.dbias, "dbias");
  });
}

TEST(NormTest, MatchesTheReference) {
  for (const Case& k : cases()) check(k);
}

TEST(NormTest, AddressesNeedNoAlignment) {
  for (const int64_t skew : {1, 2, 4}) {
    const Skew scope(skew);
    for (const NormKind kind : {NormKind::kRms, NormKind::kLayer}) {
      check({kind, 3, 64, true, kind == NormKind::kLayer, true});
      check({kind, 3, 1000, true, kind == NormKind::kLayer, false});
    }
  }
}

void check_aliased_outputs(const Device& device) {
  const Case k{NormKind::kRms, 7, 37, true, false, false};
  const Inputs in = rounded_inputs<float>(make_inputs(k));
  const Forward expected = forward<float>(k, in, reference::norm_forward<float>);
  for (const bool alias_delta : {false, true}) {
    const OnDevice scope(device);
    FencedBuffer<float> residual(in.residual), delta(in.delta), weight(in.weight), y(k.n * k.c);
    NormForwardArgs args;
    args.residual = residual.data();
    args.delta = delta.data();
    args.x_out = alias_delta ? delta.data() : residual.data();
    args.weight = weight.data();
    args.y = y.data();
    args.n = k.n;
    args.c = k.c;
    args.eps = 1e-5;
    on(norm_forward_table(), device, Dtype::kFloat32)(args);
    EXPECT_EQ((alias_delta ? delta : residual).values(), expected.x);
    EXPECT_LT(max_error(y.values(), expected.y), 1e-5);
  }
}

TEST(NormTest, XOutMayAliasItsInputs) { for_each_device(check_aliased_outputs); }

TEST(NormTest, GradientsAreCentralDifferences) {
  for (const NormKind kind : {NormKind::kRms, NormKind::kLayer}) {
    const Case k{kind, 3, 17, false, true, true};
    const Inputs in = make_inputs(k);
    const Forward at = forward<double>(k, in, reference::norm_forward<double>);
    Inputs zeroed = in;
    zeroed.dweight.assign(in.dweight.size(), 0);
    zeroed.dbias.assign(in.dbias.size(), 0);
    const Backward b = backward<double>(k, zeroed, at, reference::norm_backward<double>);
    // The loss sees y with cotangent dy, and x itself with cotangent dresidual.
    const auto loss = [&](Values Inputs::*which) {
      return [&, which](const Values& x) {
        Inputs moved = in;
        moved.*which = x;
        const Forward out = forward<double>(k, moved, reference::norm_forward<double>);
        return dot(out.y, in.dy) + dot(out.x, in.dresidual);
      };
    };
    expect_gradient(loss(&Inputs::residual), in.residual, b.dx, "dx");
    expect_gradient(loss(&Inputs::weight), in.weight, b.dweight, "dweight");
    expect_gradient(loss(&Inputs::bias), in.bias, b.dbias, "dbias");
  }
}

TEST(NormTest, SameBitsEveryTime) {
  const Case k{NormKind::kLayer, 131, 512, true, true, true};
  for_each_entry(norm_backward_table(), [&]<class T>(const Device& device) {
    const Inputs in = rounded_inputs<T>(make_inputs(k));
    expect_reproducible(device, [&] {
      const Forward f = forward<T>(k, in, on(norm_forward_table(), device, kDtypeOf<T>));
      const Backward b = backward<T>(k, in, f, on(norm_backward_table(), device, kDtypeOf<T>));
      return concatenated({f.x, f.y, f.mean, f.rstd, b.dx, b.dweight, b.dbias});
    });
  });
}

TEST(NormTest, CostByHand) {
  float some = 0;
  NormForwardArgs f;
  f.n = 10;
  f.c = 100;
  f.delta = f.x_out = &some;
  f.rstd = &some;
  // bfloat16: reads 2 x 1000 and the weight, writes x and y, and 10 float32 statistics.
  EXPECT_EQ(norm_forward_cost(f, Dtype::kBFloat16).bytes_read, 2100 * 2);
  EXPECT_EQ(norm_forward_cost(f, Dtype::kBFloat16).bytes_written, 2000 * 2 + 40);
  EXPECT_EQ(norm_forward_cost(f, Dtype::kFloat32).flops, 5000);
  NormBackwardArgs b;
  b.kind = NormKind::kLayer;
  b.n = 10;
  b.c = 100;
  b.dbias = &some;
  EXPECT_EQ(norm_backward_cost(b, Dtype::kFloat32).bytes_read, (2100 + 20 + 200) * 4);
  EXPECT_EQ(norm_backward_cost(b, Dtype::kFloat32).bytes_written, (1000 + 200) * 4);
  EXPECT_EQ(norm_backward_cost(b, Dtype::kFloat32).flops, 13000);
  EXPECT_EQ(norm_backward_workspace_bytes(33, 100, Dtype::kBFloat16), 2 * 2 * 100 * 4);
  EXPECT_EQ(reduction_chunks(0), 1);
  EXPECT_EQ(reduction_chunks(1 << 20), 64);
}

}  // namespace
}  // namespace heirloom
