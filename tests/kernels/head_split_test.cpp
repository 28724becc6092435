// SPDX-License-Identifier: Apache-2.0
#include "heirloom/kernels/head_split.h"

#include <gtest/gtest.h>

#include "kernels/reference/head_split.hpp"
#include "support/kernels.h"

namespace heirloom {
namespace {
using namespace test;

struct Case {
  int64_t n, head_dim, rotary_dim;
  RopeStyle style;
  bool norm, slots;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const RopeStyle style : {RopeStyle::kHalf, RopeStyle::kInterleaved}) {
    for (const bool norm : {false, true}) {
      all.push_back({3, 2, 2, style, norm, false});
      all.push_back({17, 10, 6, style, norm, true});
      all.push_back({9, 12, 8, style, norm, false});
      all.push_back({5, 64, 64, style, norm, true});
      all.push_back({70, 80, 20, style, norm, false});
      all.push_back({4, 33, 0, style, norm, false});
      all.push_back({3, 128, 128, style, norm, true});
      all.push_back({3, 256, 64, style, norm, false});
      all.push_back({0, 16, 16, style, norm, false});
    }
  }
  return all;
}

/// Merged row: q0 q1 k0 v0, heads of head_dim. Queries and keys rotate; q0 and q1 share a norm
/// weight, k0 has its own. Streams: q (N, 2D), k and v with a wider row and, where the case says
/// so, indirect rows.
constexpr int64_t kRoutes = 4;
constexpr int64_t kPositions = 50;

struct Inputs {
  Values merged, q_norm, k_norm, cosines, sines, grads[kRoutes], dq_norm, dk_norm;
  std::vector<int32_t> positions;
  std::vector<int64_t> slots;
};

template <class T>
Inputs make_inputs(const Case& c) {
  using A = compute_t<T>;
  Inputs in;
  in.merged = rounded<T>(random_values(c.n * kRoutes * c.head_dim, 1, 2));
  in.q_norm = rounded<T>(random_values(c.head_dim, 2, 2));
  in.k_norm = rounded<T>(random_values(c.head_dim, 3, 2));
  for (int64_t i = 0; i < kPositions * c.rotary_dim / 2; ++i) {
    in.cosines.push_back(std::cos(0.37 * static_cast<double>(i)));
    in.sines.push_back(std::sin(0.37 * static_cast<double>(i)));
  }
  in.cosines = rounded<A>(in.cosines);
  in.sines = rounded<A>(in.sines);
  // The last route's gradient stands in a slot of T, the others' in slots of A.
  for (int64_t r = 0; r < kRoutes; ++r) {
    in.grads[r] = random_values(c.n * (c.head_dim + r), 10 + static_cast<uint64_t>(r));
    in.grads[r] = r == kRoutes - 1 ? rounded<T>(in.grads[r]) : rounded<A>(in.grads[r]);
  }
  in.dq_norm = rounded<A>(random_values(c.head_dim, 4));
  in.dk_norm = rounded<A>(random_values(c.head_dim, 5));
  for (int64_t i = 0; i < c.n; ++i) {
    in.positions.push_back(static_cast<int32_t>((7 * i + 3) % kPositions));
    in.slots.push_back((c.n - 1 - i) * 2 + 1);
  }
  return in;
}

struct Forward {
  Values q, k, v;
};

template <class T>
Forward forward(const Case& c, const Inputs& in, Kernel<HeadSplitForwardArgs> f) {
  using A = compute_t<T>;
  const OnDevice scope(f.device);
  const FencedBuffer<int32_t> positions(in.positions);
  const FencedBuffer<int64_t> slots(in.slots);
  const int64_t d = c.head_dim, rows = c.slots ? 2 * c.n : c.n;
  FencedBuffer<T> merged(in.merged), q_norm(in.q_norm), k_norm(in.k_norm);
  FencedBuffer<A> cosines(in.cosines), sines(in.sines);
  // Poisoned rows that no slot names must stay untouched; zeros, so that they compare equal.
  FencedBuffer<T> q(Values(static_cast<size_t>(c.n * 2 * d), 7)),
      k(Values(static_cast<size_t>(rows * (d + 3)), 7)),
      v(Values(static_cast<size_t>(rows * (d + 1)), 7));
  HeadRoute routes[kRoutes];
  for (int64_t r = 0; r < kRoutes; ++r) {
    routes[r].column = r * d;
    routes[r].rotate = r < 3 && c.rotary_dim > 0;
    routes[r].to_slots = r >= 2 && c.slots;
  }
  routes[0].data = q.data();
  routes[1].data = q.data() + d;
  routes[0].row_stride = routes[1].row_stride = 2 * d;
  routes[2].data = k.data();
  routes[2].row_stride = d + 3;
  routes[3].data = v.data();
  routes[3].row_stride = d + 1;
  if (c.norm) {
    routes[0].norm_weight = routes[1].norm_weight = q_norm.data();
    routes[2].norm_weight = k_norm.data();
  }
  HeadSplitForwardArgs args;
  args.merged = merged.data();
  args.routes = routes;
  args.route_count = kRoutes;
  args.n = c.n;
  args.width = kRoutes * d;
  args.head_dim = d;
  args.positions = positions.data();
  args.slots = c.slots ? slots.data() : nullptr;
  args.cosines = cosines.data();
  args.sines = sines.data();
  args.rotary_dim = c.rotary_dim;
  args.style = c.style;
  f(args);
  return {q.values(), k.values(), v.values()};
}

struct Backward {
  Values dmerged, dq_norm, dk_norm;
};

template <class T>
Backward backward(const Case& c, const Inputs& in, Kernel<HeadSplitBackwardArgs> f,
                  bool drop_k = false) {
  using A = compute_t<T>;
  const OnDevice scope(f.device);
  const FencedBuffer<int32_t> positions(in.positions);
  const int64_t d = c.head_dim;
  FencedBuffer<T> merged(in.merged), q_norm(in.q_norm), k_norm(in.k_norm), v_grad(in.grads[3]);
  FencedBuffer<A> cosines(in.cosines), sines(in.sines), dq_norm(in.dq_norm), dk_norm(in.dk_norm);
  FencedBuffer<A> q0(in.grads[0]), q1(in.grads[1]), k0(in.grads[2]);
  const void* data[kRoutes] = {q0.data(), q1.data(), drop_k ? nullptr : k0.data(), v_grad.data()};
  HeadGradRoute routes[kRoutes];
  for (int64_t r = 0; r < kRoutes; ++r) {
    routes[r].column = r * d;
    routes[r].data = data[r];
    routes[r].row_stride = d + r;
    routes[r].is_accumulate_dtype = r < 3;
    routes[r].rotate = r < 3 && c.rotary_dim > 0;
    if (c.norm && r < 3) {
      routes[r].norm_weight = r < 2 ? q_norm.data() : k_norm.data();
      routes[r].dnorm_weight = r < 2 ? dq_norm.data() : dk_norm.data();
    }
  }
  FencedBuffer<unsigned char> workspace(
      head_split_backward_workspace_bytes(c.n, kRoutes, d, kDtypeOf<T>, f.device.kind));
  HeadSplitBackwardArgs args;
  args.merged = merged.data();
  args.dmerged = merged.data();  // in place
  args.routes = routes;
  args.route_count = kRoutes;
  args.n = c.n;
  args.width = kRoutes * d;
  args.head_dim = d;
  args.positions = positions.data();
  args.cosines = cosines.data();
  args.sines = sines.data();
  args.rotary_dim = c.rotary_dim;
  args.style = c.style;
  args.workspace = c.norm ? workspace.data() : nullptr;
  f(args);
  return {merged.values(), dq_norm.values(), dk_norm.values()};
}

void check(const Case& c) {
  SCOPED_TRACE(fmt::format("n {} D {} R {} style {} norm {} slots {}", c.n, c.head_dim,
                           c.rotary_dim, static_cast<int>(c.style), c.norm, c.slots));
  for_each_entry(head_split_forward_table(), [&]<class T>(const Device& device) {
    using A = compute_t<T>;
    const Inputs in = make_inputs<T>(c);
    const Forward actual = forward<T>(c, in, on(head_split_forward_table(), device, kDtypeOf<T>));
    const Forward naive = forward<T>(c, in, reference::head_split_forward<T>);
    const Forward exact = forward<double>(c, in, reference::head_split_forward<double>);
    expect_as_good_as_naive<T>(actual.q, naive.q, exact.q, "q");
    expect_as_good_as_naive<T>(actual.k, naive.k, exact.k, "k");
    EXPECT_EQ(actual.v, exact.v);

    const auto g = on(head_split_backward_table(), device, kDtypeOf<T>);
    for (const bool drop_k : {false, true}) {
      const Backward b = backward<T>(c, in, g, drop_k);
      const Backward nb = backward<T>(c, in, reference::head_split_backward<T>, drop_k);
      const Backward eb = backward<double>(c, in, reference::head_split_backward<double>, drop_k);
      expect_as_good_as_naive<T>(b.dmerged, nb.dmerged, eb.dmerged, "dmerged");
      expect_as_good_as_naive<A>(b.dq_norm, nb.dq_norm, eb.dq_norm, "dq_norm");
      expect_as_good_as_naive<A>(b.dk_norm, nb.dk_norm, eb.dk_norm, "dk_norm");
    }
  });
}

TEST(HeadSplitTest, MatchesTheReference) {
  for (const Case& c : cases()) check(c);
}

TEST(HeadSplitTest, AddressesNeedNoAlignment) {
  for (const int64_t skew : {1, 2, 4}) {
    const Skew scope(skew);
    for (const RopeStyle style : {RopeStyle::kHalf, RopeStyle::kInterleaved}) {
      check({5, 64, 32, style, true, true});
      check({5, 64, 32, style, false, false});
    }
  }
}

void check_rotation_by_hand(const Device& device) {
  const OnDevice scope(device);
  for (const RopeStyle style : {RopeStyle::kHalf, RopeStyle::kInterleaved}) {
    // One head of 6 dims, 4 rotated, by 90 and 180 degrees at position 1.
    FencedBuffer<float> merged(Values{1, 2, 3, 4, 5, 6}), out(6);
    FencedBuffer<float> cosines(Values{1, 1, 0, -1}), sines(Values{0, 0, 1, 0});
    const FencedBuffer<int32_t> position(std::vector<int32_t>{1});
    HeadRoute route;
    route.data = out.data();
    route.row_stride = 6;
    route.rotate = true;
    HeadSplitForwardArgs args;
    args.merged = merged.data();
    args.routes = &route;
    args.route_count = 1;
    args.n = 1;
    args.width = args.head_dim = 6;
    args.positions = position.data();
    args.cosines = cosines.data();
    args.sines = sines.data();
    args.rotary_dim = 4;
    args.style = style;
    on(head_split_forward_table(), device, Dtype::kFloat32)(args);
    EXPECT_EQ(out.values(), style == RopeStyle::kHalf ? (Values{-3, -2, 1, -4, 5, 6})
                                                      : (Values{-2, 1, -3, -4, 5, 6}));
  }
}

TEST(HeadSplitTest, RotatesByHand) { for_each_device(check_rotation_by_hand); }

TEST(HeadSplitTest, GradientsAreCentralDifferences) {
  for (const RopeStyle style : {RopeStyle::kHalf, RopeStyle::kInterleaved}) {
    const Case c{3, 6, 4, style, true, false};
    Inputs in = make_inputs<double>(c);
    in.dq_norm.assign(in.dq_norm.size(), 0);
    in.dk_norm.assign(in.dk_norm.size(), 0);
    const Backward b = backward<double>(c, in, reference::head_split_backward<double>);
    const auto loss = [&](Values Inputs::*which) {
      return [&, which](const Values& x) {
        Inputs moved = in;
        moved.*which = x;
        const Forward out = forward<double>(c, moved, reference::head_split_forward<double>);
        double sum = 0;
        for (int64_t i = 0; i < c.n; ++i) {
          for (int64_t j = 0; j < c.head_dim; ++j) {
            const auto grad = [&](int64_t r) {
              return in.grads[r][static_cast<size_t>(i * (c.head_dim + r) + j)];
            };
            const int64_t q = i * 2 * c.head_dim + j;
            sum += grad(0) * out.q[static_cast<size_t>(q)];
            sum += grad(1) * out.q[static_cast<size_t>(q + c.head_dim)];
            sum += grad(2) * out.k[static_cast<size_t>(i * (c.head_dim + 3) + j)];
            sum += grad(3) * out.v[static_cast<size_t>(i * (c.head_dim + 1) + j)];
          }
        }
        return sum;
      };
    };
    expect_gradient(loss(&Inputs::merged), in.merged, b.dmerged, "dmerged");
    expect_gradient(loss(&Inputs::q_norm), in.q_norm, b.dq_norm, "dq_norm");
    expect_gradient(loss(&Inputs::k_norm), in.k_norm, b.dk_norm, "dk_norm");
  }
}

TEST(HeadSplitTest, SameBitsEveryTime) {
  const Case c{131, 64, 64, RopeStyle::kHalf, true, true};
  for_each_entry(head_split_backward_table(), [&]<class T>(const Device& device) {
    const Inputs in = make_inputs<T>(c);
    expect_reproducible(device, [&] {
      const Forward f = forward<T>(c, in, on(head_split_forward_table(), device, kDtypeOf<T>));
      const Backward b = backward<T>(c, in, on(head_split_backward_table(), device, kDtypeOf<T>));
      return concatenated({f.q, f.k, f.v, b.dmerged, b.dq_norm, b.dk_norm});
    });
  });
}

TEST(HeadSplitTest, CostByHand) {
  float some = 0;
  HeadRoute routes[2];
  routes[0].rotate = true;
  routes[0].norm_weight = &some;
  HeadSplitForwardArgs f;
  f.routes = routes;
  f.route_count = 2;
  f.n = 10;
  f.head_dim = 8;
  f.rotary_dim = 4;
  EXPECT_EQ(head_split_forward_cost(f, Dtype::kBFloat16).bytes_read, 2 * 80 * 2 + 40 * 4);
  EXPECT_EQ(head_split_forward_cost(f, Dtype::kBFloat16).bytes_written, 2 * 80 * 2);
  EXPECT_EQ(head_split_forward_cost(f, Dtype::kBFloat16).flops, 3 * 40 + 4 * 80);
  HeadGradRoute grads[2];
  grads[0].is_accumulate_dtype = true;
  grads[1].norm_weight = &some;
  HeadSplitBackwardArgs b;
  b.routes = grads;
  b.route_count = 2;
  b.n = 10;
  b.head_dim = 8;
  EXPECT_EQ(head_split_backward_cost(b, Dtype::kBFloat16).bytes_read, 80 * 4 + 80 * 2 + 80 * 2);
  EXPECT_EQ(head_split_backward_cost(b, Dtype::kBFloat16).bytes_written, 160 * 2);
  EXPECT_EQ(head_split_backward_cost(b, Dtype::kBFloat16).flops, 800);
  EXPECT_EQ(head_split_backward_workspace_bytes(40, 3, 16, Dtype::kFloat64), 2 * 3 * 16 * 8);
}

}  // namespace
}  // namespace heirloom
