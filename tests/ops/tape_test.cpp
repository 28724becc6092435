// SPDX-License-Identifier: Apache-2.0
#include "heirloom/ops/tape.h"

#include "heirloom/ops/activation.h"
#include "heirloom/ops/elementwise.h"
#include "ops/op_runner.h"

namespace heirloom {
namespace {
using namespace test;

class TapeTest : public ::testing::Test {
 protected:
  TapeTest() { register_kernels(); }

  Tensor filled(const Values& values) {
    Tensor t = context_.allocate({1, static_cast<int64_t>(values.size())}, Dtype::kFloat64);
    put(t, values);
    return t;
  }

  Arena arena_{Device{}};
  Tape tape_;
  Context context_{arena_, &tape_};
};

TEST_F(TapeTest, AnEmptySlotAdopts) {
  const int32_t slot = tape_.new_slot();
  EXPECT_FALSE(tape_.take(slot).defined());
  Tensor g = filled({1, 2});
  void* const address = g.data();
  tape_.deliver(context_, slot, std::move(g));
  const int64_t before = arena_.allocations();
  tape_.deliver(context_, slot, filled({10, 20}));
  EXPECT_EQ(arena_.allocations(), before + 1) << "a slot that alone holds its tensor adds in place";
  const Tensor sum = tape_.take(slot);
  EXPECT_EQ(sum.data(), address);
  EXPECT_EQ(get(sum), (Values{11, 22}));
  EXPECT_FALSE(tape_.take(slot).defined()) << "take empties the slot";
}

TEST_F(TapeTest, AddingToASharedTensorCopies) {
  const int32_t a = tape_.new_slot(), b = tape_.new_slot(), c = tape_.new_slot();
  {
    const Tensor g = filled({1, 2});
    for (const int32_t slot : {a, b, c}) tape_.deliver(context_, slot, g);
  }
  tape_.deliver(context_, a, filled({100, 100}));
  tape_.deliver(context_, b, filled({-1, -1}));
  EXPECT_EQ(get(tape_.take(a)), (Values{101, 102}));
  EXPECT_EQ(get(tape_.take(b)), (Values{0, 1}));
  EXPECT_EQ(get(tape_.take(c)), (Values{1, 2}));
}

TEST_F(TapeTest, ATensorDeliveredTwiceToOneSlotCountsTwice) {
  const int32_t slot = tape_.new_slot();
  const Tensor g = filled({3, 4});
  tape_.deliver(context_, slot, g);
  tape_.deliver(context_, slot, g);
  EXPECT_EQ(get(tape_.take(slot)), (Values{6, 8}));
  EXPECT_EQ(get(g), (Values{3, 4}));
}

TEST_F(TapeTest, UnwantedGradientsGoNowhere) {
  tape_.deliver(context_, -1, filled({1}));
  EXPECT_FALSE(tape_.take(-1).defined());
  EXPECT_EQ(arena_.live_bytes(), 0);
}

TEST_F(TapeTest, RunsLastFirstAndLetsGoAtOnce) {
  std::vector<int> order;
  std::vector<int64_t> live;
  for (int i = 0; i < 3; ++i) {
    tape_.record([&, i, kept = filled({1})](Context& c) {
      order.push_back(i);
      live.push_back(c.arena.live_bytes());
    });
  }
  tape_.backward(context_);
  EXPECT_EQ(order, (std::vector<int>{2, 1, 0}));
  EXPECT_EQ(live, (std::vector<int64_t>{3 * kArenaAlignment, 2 * kArenaAlignment, kArenaAlignment}))
      << "a node's tensors go when it has run";
  EXPECT_EQ(arena_.live_bytes(), 0);
  tape_.backward(context_);
  EXPECT_EQ(order.size(), 3u) << "once";
}

TEST_F(TapeTest, NodesThatNeverRanLetGoToo) {
  {
    Tape tape;
    tape.record([kept = filled({1})](Context&) { FAIL(); });
  }
  EXPECT_EQ(arena_.live_bytes(), 0);
}

TEST(Fan, OutAndInGradients) {
  Case c;
  c.inputs = {leaf({2, 3}, 1), leaf({2, 3}, 2)};
  c.graph = [](Context& context, const Leaves& l) {
    const Variable s = add(context, l.inputs[0], l.inputs[1]);
    const Variable twice = add(context, s, s);
    const Variable t = add(context, twice, l.inputs[0]);
    return std::vector<Variable>{add(context, t, s), t};
  };
  expect_gradients(c, "diamond");
  expect_plannable(c, Dtype::kFloat32, "diamond");
}

// add() hands one tensor to both operands; the first operand gets more before the second one reads its own.
TEST(Fan, WhatIsAddedToOneOperandDoesNotReachTheOther) {
  Case c;
  c.inputs = {leaf({2, 3}, 1), leaf({2, 3}, 2)};
  c.graph = [](Context& context, const Leaves& l) {
    const Variable b = activation(context, l.inputs[1], ActivationKind::kGelu);
    const Variable again = activation(context, l.inputs[0], ActivationKind::kGelu);
    return std::vector<Variable>{add(context, l.inputs[0], b), again};
  };
  expect_gradients(c, "aliased");
}

TEST(Fan, AnOperandWithoutASlotIsLeftAlone) {
  Case c;
  c.inputs = {leaf({2, 3}, 1), leaf({2, 3}, 2)};
  c.inputs[1].wanted = false;
  c.graph = [](Context& context, const Leaves& l) {
    return std::vector<Variable>{add(context, l.inputs[0], l.inputs[1])};
  };
  expect_gradients(c, "one side");
  EXPECT_TRUE(run_case(c, Dtype::kFloat64, true).inputs[1].empty());
}

TEST(Add, RefusesOtherShapes) {
  Arena arena(Device{});
  Context context{arena};
  const Tensor a = arena.allocate({2, 3}, Dtype::kFloat32),
               b = arena.allocate({3, 2}, Dtype::kFloat32);
  EXPECT_THROW(add_into(context, a, b), ArgumentError);
}

}  // namespace
}  // namespace heirloom
