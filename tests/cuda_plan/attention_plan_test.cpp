// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <array>
#include <string>
#include <vector>

#include "kernels/cuda/plan/attention.h"

namespace heirloom::cuda::plan {
namespace {

TEST(AttentionPlan, HeadsArePaddedToCompiledWidths) {
  EXPECT_EQ(padded_head_dim(1), 16);
  EXPECT_EQ(padded_head_dim(16), 16);
  EXPECT_EQ(padded_head_dim(60), 64);
  EXPECT_EQ(padded_head_dim(80), 80);
  EXPECT_EQ(padded_head_dim(82), 96);
  EXPECT_EQ(padded_head_dim(256), 256);
  EXPECT_EQ(padded_head_dim(257), 0);
  EXPECT_EQ(padded_head_dims(60, 60), (HeadDims{64, 64}));
  EXPECT_EQ(padded_head_dims(96, 64), (HeadDims{96, 64}));
  EXPECT_EQ(padded_head_dims(96, 65), (HeadDims{96, 96}));
  EXPECT_EQ(padded_head_dims(192, 128), (HeadDims{192, 128}));
  EXPECT_EQ(padded_head_dims(24, 40), (HeadDims{64, 64}));
  EXPECT_EQ(padded_head_dims(128, 6), (HeadDims{128, 128}));
  EXPECT_EQ(padded_head_dims(258, 6), (HeadDims{}));
  static_assert(padded_head_dims(64, 64) == HeadDims{64, 64});
}

TEST(AttentionPlan, WorkedExample) {
  EXPECT_EQ(copy_bytes(reinterpret_cast<const void*>(256), 2400, 120), 8);
  const AttentionTiles t = forward_tiles(64, 64, false);
  EXPECT_EQ(t.rows(), 128);
  EXPECT_EQ(t.threads(), 128);
  EXPECT_EQ(t.stages, 2);
  EXPECT_EQ(t.shared_bytes, 49280);
  const AttentionSequence s[2] = {{0, 1000, 1000, 0, nullptr, 0}, {1000, 990, 1010, 0, nullptr, 0}};
  AttentionForwardArgs a;
  a.sequences = s;
  a.sequence_count = 2;
  EXPECT_EQ(longest_query_tiles(a, t.rows()), 8);
  EXPECT_EQ(longest_key_tiles(a, 64), 16);
}

TEST(AttentionPlan, CopiesAreAsWideAsEverythingAllows) {
  const auto at = [](uintptr_t address) { return reinterpret_cast<const void*>(address); };
  EXPECT_EQ(copy_bytes(at(512), 128, 128), 16);
  EXPECT_EQ(copy_bytes(at(520), 128, 128), 8);
  EXPECT_EQ(copy_bytes(at(512), 132, 128), 4);
  EXPECT_EQ(copy_bytes(at(512), 128, 34), 2);
  EXPECT_EQ(copy_bytes(at(514), 128, 128), 2);
}

constexpr HeadDims kCompiled[] = {{16, 16}, {32, 32},   {64, 64},   {80, 80},   {96, 64},
                                  {96, 96}, {128, 128}, {192, 128}, {192, 192}, {256, 256}};

// The least of sm_80 (163 KiB per CTA) and sm_90 (227 KiB); two CTAs per SM of sm_90 up to 128.
TEST(AttentionPlan, TilesFitIntoSharedMemory) {
  for (const auto& [qk, v] : kCompiled) {
    SCOPED_TRACE(std::to_string(qk) + ", " + std::to_string(v));
    for (const AttentionTiles& t : {forward_tiles(qk, v, false), forward_tiles(qk, v, true),
                                    backward_query_tiles(qk, v), backward_key_tiles(qk, v)}) {
      EXPECT_LE(t.shared_bytes, 163 << 10);
      const int ctas = ctas_per_sm(qk, v);
      EXPECT_LE(ctas * (t.shared_bytes + 1024), 228 << 10);
      EXPECT_EQ(t.rows() % 64, 0);
    }
    // Each thread brings one of lse and delta of a tile of queries.
    EXPECT_EQ(backward_key_tiles(qk, v).threads(), 2 * kKeyTile);
    for (const bool dropout : {false, true}) {
      EXPECT_EQ(kKeyTile % backward_key_step(qk, v, dropout), 0);
      EXPECT_EQ(backward_key_step(qk, v, dropout) % 16, 0);
    }
  }
  EXPECT_FALSE(needs_two_passes(128, 128));
  EXPECT_TRUE(needs_two_passes(192, 128));
}

struct Call {
  explicit Call(int64_t heads) : dk(static_cast<size_t>(heads)), dv(static_cast<size_t>(heads)) {}
  AttentionBackwardArgs args() {
    AttentionBackwardArgs b;
    b.forward.kv_heads = static_cast<int64_t>(dk.size());
    b.dk = dk.data();
    b.dv = dv.data();
    return b;
  }
  std::array<float, 16> slots{};
  std::vector<KvHeadGrad> dk, dv;
};

TEST(AttentionPlan, HeadsOfTheirOwnAreUnitsOfTheirOwn) {
  Call c(3);
  for (size_t g = 0; g < 3; ++g) {
    c.dk[g].data = &c.slots[g];
    c.dv[g].data = &c.slots[g + 3];
  }
  c.dk[1].add = true;
  c.dk[2].data = nullptr;
  c.dv[2].data = nullptr;  // wants nothing: in no unit
  const HeadUnits units = head_units(c.args(), false);
  EXPECT_EQ(units.heads, (std::vector<int>{0, 1}));
  EXPECT_EQ(units.first, (std::vector<int>{0, 1, 2}));
  EXPECT_EQ(units.count(), 2);
  EXPECT_FALSE(units.targets[0].dk[0].add);
  EXPECT_TRUE(units.targets[1].dk[0].add);
  EXPECT_EQ(units.targets[2].dk[0].data, nullptr);
}

TEST(AttentionPlan, HeadsThatShareAddressesFormUnits) {
  // 0 and 3 through the second half of a mean, 3 and 4 through keys; 1 and 2 alone.
  Call c(5);
  for (size_t g = 0; g < 5; ++g) {
    c.dk[g].data = &c.slots[g];
    c.dv[g].data = &c.slots[g + 5];
  }
  c.dv[0].second = &c.slots[8];
  c.dk[4].data = &c.slots[3];
  const HeadUnits units = head_units(c.args(), false);
  EXPECT_EQ(units.heads, (std::vector<int>{0, 3, 4, 1, 2}));
  EXPECT_EQ(units.first, (std::vector<int>{0, 3, 4, 5}));
  EXPECT_FALSE(units.targets[0].dv[1].add) << "the first use writes";
  EXPECT_TRUE(units.targets[3].dv[0].add) << "the second adds";
  EXPECT_FALSE(units.targets[3].dk[0].add);
  EXPECT_TRUE(units.targets[4].dk[0].add);
}

TEST(AttentionPlan, UnitsMergeWhenALaterHeadSharesWithBoth) {
  Call c(3);
  for (size_t g = 0; g < 3; ++g) c.dk[g].data = &c.slots[g];
  c.dk[2].data = &c.slots[1];
  c.dk[2].second = &c.slots[0];
  const HeadUnits units = head_units(c.args(), false);
  EXPECT_EQ(units.heads, (std::vector<int>{0, 1, 2}));
  EXPECT_EQ(units.count(), 1);
}

TEST(AttentionPlan, FirstUseFollowsTheOrderOfTheLaunches) {
  // Values of head 0 and keys of head 1 share an address: with two passes keys come first.
  Call c(2);
  c.dk[0].data = &c.slots[0];
  c.dv[0].data = &c.slots[1];
  c.dk[1].data = &c.slots[1];
  const HeadUnits one = head_units(c.args(), false), two = head_units(c.args(), true);
  EXPECT_FALSE(one.targets[0].dv[0].add);
  EXPECT_TRUE(one.targets[1].dk[0].add);
  EXPECT_FALSE(two.targets[1].dk[0].add);
  EXPECT_TRUE(two.targets[0].dv[0].add);
}

}  // namespace
}  // namespace heirloom::cuda::plan
