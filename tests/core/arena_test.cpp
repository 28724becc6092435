// SPDX-License-Identifier: Apache-2.0
#include "heirloom/core/arena.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "heirloom/core/memory.h"
#include "heirloom/core/rng.h"

namespace heirloom {
namespace {

const Device kCpu{};
const Device kMeta{DeviceKind::kMeta, 0};

bool overlap(int64_t begin_a, int64_t end_a, int64_t begin_b, int64_t end_b) {
  return begin_a < end_b && begin_b < end_a;
}

/// What a plan promises, checked pair by pair.
void expect_sound(const std::vector<BufferLifetime>& lifetimes, const MemoryPlan& plan) {
  ASSERT_EQ(plan.offsets.size(), lifetimes.size());
  int64_t top = 0, last = 0;
  for (size_t i = 0; i < lifetimes.size(); ++i) {
    EXPECT_EQ(plan.bytes[i], lifetimes[i].bytes);
    EXPECT_GE(plan.offsets[i], 0);
    EXPECT_EQ(plan.offsets[i] % kArenaAlignment, 0);
    top = std::max(top, plan.offsets[i] + lifetimes[i].bytes);
    last = std::max(last, lifetimes[i].end);
    for (size_t j = 0; j < i; ++j) {
      if (!overlap(lifetimes[i].begin, lifetimes[i].end, lifetimes[j].begin, lifetimes[j].end))
        continue;
      EXPECT_FALSE(overlap(plan.offsets[i], plan.offsets[i] + plan.bytes[i], plan.offsets[j],
                           plan.offsets[j] + plan.bytes[j]))
          << "buffers " << i << " and " << j << " share bytes";
    }
  }
  EXPECT_EQ(plan.peak_bytes, top);
  int64_t floor = 0;
  for (int64_t t = 0; t < last; ++t) {
    int64_t live = 0;
    for (const BufferLifetime& b : lifetimes) live += b.begin <= t && t < b.end ? b.bytes : 0;
    floor = std::max(floor, live);
  }
  EXPECT_EQ(plan.floor_bytes, floor);
  EXPECT_GE(plan.peak_bytes, plan.floor_bytes);
}

TEST(PlanMemory, KnownExample) {
  // Largest first: b at 0; c lives beside b, so above it; a has ended before c begins.
  const std::vector<BufferLifetime> lifetimes = {
      {256, 0, 2}, {768, 1, 5}, {512, 3, 6}, {256, 5, 7}};
  const MemoryPlan plan = plan_memory(lifetimes);
  EXPECT_EQ(plan.offsets, (std::vector<int64_t>{768, 0, 768, 0}));
  EXPECT_EQ(plan.peak_bytes, 1280);
  EXPECT_EQ(plan.floor_bytes, 1280);
  expect_sound(lifetimes, plan);
}

TEST(PlanMemory, FillsTheLowestGapThatIsWideEnough) {
  // Once the second and the fourth have ended, holes of 1792 bytes at 2048 and of 1280 at 5376 are left.
  const std::vector<BufferLifetime> lifetimes = {{2048, 0, 9}, {1792, 0, 2}, {1536, 0, 9},
                                                 {1280, 0, 2}, {1024, 0, 9}, {1024, 3, 9},
                                                 {512, 3, 9},  {512, 3, 9}};
  const MemoryPlan plan = plan_memory(lifetimes);
  expect_sound(lifetimes, plan);
  EXPECT_EQ(plan.offsets, (std::vector<int64_t>{0, 2048, 3840, 5376, 6656, 2048, 3072, 5376}));
}

TEST(PlanMemory, NothingAndEmptyBuffers) {
  const MemoryPlan none = plan_memory({});
  EXPECT_EQ(none.peak_bytes, 0);
  EXPECT_EQ(none.floor_bytes, 0);
  const std::vector<BufferLifetime> lifetimes = {{0, 0, 3}, {256, 1, 2}};
  expect_sound(lifetimes, plan_memory(lifetimes));
}

TEST(PlanMemory, RandomLifetimesNeverShareAByte) {
  for (uint64_t seed = 0; seed < 40; ++seed) {
    std::vector<BufferLifetime> lifetimes;
    const uint32_t count = 1 + philox(seed, {0, 0, 0, 0})[0] % 80;
    for (uint32_t i = 0; i < count; ++i) {
      const auto r = philox(seed, {i, 1, 0, 0});
      const int64_t begin = r[0] % 100;
      const int64_t span = r[1] % 4 == 0 ? 1 + r[2] % 100 : 1 + r[2] % 8;  // some live long
      lifetimes.push_back({static_cast<int64_t>(r[3] % 40) * kArenaAlignment, begin, begin + span});
    }
    const MemoryPlan plan = plan_memory(lifetimes);
    expect_sound(lifetimes, plan);
    EXPECT_LE(plan.peak_bytes, 2 * plan.floor_bytes) << "seed " << seed << ": a poor packing";
  }
}

/// A step with buffers of several lifetimes; the addresses that it saw.
std::vector<void*> some_step(Arena& arena, int64_t second = 100) {
  std::vector<void*> addresses;
  const auto note = [&](const Tensor& t) {
    addresses.push_back(t.data());
    return t;
  };
  const Tensor a = note(arena.allocate({3, 5}, Dtype::kFloat64));
  Tensor b = note(arena.allocate({second}, Dtype::kFloat32));
  b = Tensor();
  const Tensor c = note(arena.allocate({second}, Dtype::kFloat32));
  return addresses;
}

TEST(Arena, RecordModeSeesLifetimes) {
  Arena arena(kMeta);
  EXPECT_EQ(arena.mode(), Arena::Mode::kRecord);
  Tensor a = arena.allocate({3, 5}, Dtype::kFloat64);  // 120 bytes
  EXPECT_EQ(a.data(), nullptr);
  EXPECT_EQ(a.device(), kMeta);
  Tensor view = a.rows(1, 2);
  a = Tensor();  // the view keeps the buffer
  Tensor b = arena.allocate({1}, Dtype::kBFloat16);
  EXPECT_EQ(arena.live_bytes(), 2 * kArenaAlignment);
  view = Tensor();
  const Tensor c = arena.allocate({65}, Dtype::kInt32);  // 260 bytes
  EXPECT_EQ(arena.allocations(), 3);
  b = Tensor();
  const std::vector<BufferLifetime>& seen = arena.lifetimes();
  ASSERT_EQ(seen.size(), 3u);
  EXPECT_EQ(seen[0].bytes, kArenaAlignment);
  EXPECT_EQ(seen[1].bytes, kArenaAlignment);
  EXPECT_EQ(seen[2].bytes, 2 * kArenaAlignment);
  EXPECT_LT(seen[0].begin, seen[1].begin);
  EXPECT_LT(seen[1].begin, seen[0].end);  // both alive
  EXPECT_LT(seen[0].end, seen[2].begin);  // reusable
  EXPECT_LT(seen[2].begin, seen[1].end);
  EXPECT_EQ(arena.peak_bytes(), 3 * kArenaAlignment);
}

TEST(Arena, PlannedModeRepeatsAddressesWithinThePlan) {
  Arena record(kMeta);
  some_step(record);
  const MemoryPlan plan = plan_memory(record.lifetimes());
  const HostMemory block(plan.peak_bytes);
  Arena arena(kCpu, plan, block.data());
  EXPECT_EQ(arena.mode(), Arena::Mode::kPlanned);
  std::vector<void*> first;
  for (int step = 0; step < 3; ++step) {
    arena.begin_step();
    const std::vector<void*> seen = some_step(arena);
    for (size_t i = 0; i < seen.size(); ++i) {
      EXPECT_EQ(seen[i], block.data() + plan.offsets[i]);
    }
    if (step == 0) first = seen;
    EXPECT_EQ(seen, first);
    EXPECT_EQ(arena.live_bytes(), 0);
  }
  EXPECT_EQ(first[1], first[2]) << "b's bytes are free when c comes";
}

TEST(Arena, PlannedModeRefusesAStepThatDiffers) {
  Arena record(kMeta);
  some_step(record);
  const MemoryPlan plan = plan_memory(record.lifetimes());
  const HostMemory block(plan.peak_bytes);
  Arena arena(kCpu, plan, block.data());
  try {
    some_step(arena, 197);
    FAIL() << "another size passed";
  } catch (const InternalError& e) {
    EXPECT_NE(std::string(e.what()).find("expected allocation 1 of 512 bytes; got 1024 bytes"),
              std::string::npos)
        << e.what();
  }
  arena.begin_step();
  some_step(arena);
  EXPECT_THROW(arena.allocate({1}, Dtype::kFloat32), InternalError) << "one allocation too many";
  arena.begin_step();
  const Tensor alive = arena.allocate({3, 5}, Dtype::kFloat64);
  EXPECT_THROW(arena.begin_step(), InternalError) << "a tensor of the step before is alive";
}

TEST(Arena, ArenasThatAreNotInUseTogetherShareABlock) {
  Arena train(kMeta), evaluation(kMeta);
  some_step(train);
  some_step(evaluation, 1000);
  const MemoryPlan a = plan_memory(train.lifetimes()), b = plan_memory(evaluation.lifetimes());
  const HostMemory block(std::max(a.peak_bytes, b.peak_bytes));
  Arena first(kCpu, a, block.data()), second(kCpu, b, block.data());
  const std::vector<void*> before = some_step(first);
  some_step(second, 1000);
  first.begin_step();
  EXPECT_EQ(some_step(first), before);
}

TEST(Arena, DynamicModePoisonsAndReuses) {
  Arena arena(kCpu);
  EXPECT_EQ(arena.mode(), Arena::Mode::kDynamic);
  arena.poison(true);
  void* address = nullptr;
  {
    const Tensor a = arena.allocate({10}, Dtype::kFloat32);
    address = a.data();
    EXPECT_EQ(reinterpret_cast<uintptr_t>(address) % kArenaAlignment, 0u);
    for (int i = 0; i < 10; ++i) EXPECT_TRUE(std::isnan(a.as<float>()[i]));
    std::fill_n(a.as<float>(), 10, 1.0f);
  }
  const Tensor b = arena.allocate({9}, Dtype::kFloat32);
  EXPECT_EQ(b.data(), address) << "a freed buffer of the size is used again";
  EXPECT_TRUE(std::isnan(b.as<float>()[0])) << "and poisoned again";
  const Tensor c = arena.allocate({9}, Dtype::kFloat32);
  EXPECT_NE(c.data(), b.data());
  const Tensor empty = arena.allocate({0, 4}, Dtype::kFloat32);
  EXPECT_TRUE(empty.defined());
}

TEST(HostMemory, ZeroedMovableAndEmpty) {
  HostMemory memory(5 << 20);
  EXPECT_EQ(memory.bytes(), 5 << 20);
  for (int64_t i = 0; i < memory.bytes(); i += 4096) EXPECT_EQ(memory.data()[i], std::byte{0});
  std::byte* const data = memory.data();
  HostMemory moved(std::move(memory));
  EXPECT_EQ(moved.data(), data);
  EXPECT_EQ(memory.data(), nullptr);  // NOLINT: what a move leaves behind
  EXPECT_EQ(HostMemory(0).data(), nullptr);
  EXPECT_THROW(HostMemory(int64_t{1} << 60), OutOfMemoryError);
}

TEST(AvailableMemory, IsAPlausibleNumber) {
  EXPECT_GT(available_memory(), 1 << 20);
  EXPECT_LT(available_memory(), int64_t{1} << 50);
}

}  // namespace
}  // namespace heirloom
