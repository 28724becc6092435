// SPDX-License-Identifier: Apache-2.0
#include "tests/cuda_emulator/src/shadow.h"

#include <gtest/gtest.h>

namespace heirloom::emulator {
namespace {

constexpr uintptr_t kBase = 0x10000;
using With = Conflict::With;

class ShadowTest : public testing::Test {
 protected:
  ShadowTest() : global(kBase, 4096, false), shared(kBase, 4096, true) {
    order.begin_launch();
    order.begin_block(0, 128);
  }
  With access(Shadow& s, unsigned thread, Touch touch, uintptr_t at = 0, size_t bytes = 4) {
    return s.access(order, thread, kBase + at, bytes, touch, 1).with;
  }
  With read(unsigned t, uintptr_t at = 0, size_t bytes = 4) {
    return access(shared, t, Touch::kRead, at, bytes);
  }
  With write(unsigned t, uintptr_t at = 0, size_t bytes = 4) {
    return access(shared, t, Touch::kWrite, at, bytes);
  }
  With global_read(unsigned t, uintptr_t at = 0) { return access(global, t, Touch::kRead, at); }
  With global_write(unsigned t, uintptr_t at = 0) { return access(global, t, Touch::kWrite, at); }

  Order order;
  Shadow global, shared;
};

TEST_F(ShadowTest, BlockBarrierOrders) {
  EXPECT_EQ(write(0), With::kNothing);
  EXPECT_EQ(read(0), With::kNothing);
  order.block_barrier();
  EXPECT_EQ(read(1), With::kNothing);
  EXPECT_EQ(read(64), With::kNothing);
  order.block_barrier();
  EXPECT_EQ(write(64), With::kNothing);
}

TEST_F(ShadowTest, UnorderedAccessesConflict) {
  EXPECT_EQ(write(0), With::kNothing);
  EXPECT_EQ(read(1), With::kWrite);
  EXPECT_EQ(write(2, 16), With::kNothing);
  EXPECT_EQ(write(40, 16), With::kWrite);
  EXPECT_EQ(read(3, 32), With::kNothing);
  EXPECT_EQ(write(4, 32), With::kRead);
  // Reads of several warps, of which one is the writer's own.
  EXPECT_EQ(read(3, 48), With::kNothing);
  EXPECT_EQ(read(33, 48), With::kNothing);
  EXPECT_EQ(write(33, 48), With::kRead);
  // Both readers in the writer's warp.
  EXPECT_EQ(read(3, 64), With::kNothing);
  EXPECT_EQ(read(5, 64), With::kNothing);
  EXPECT_EQ(write(3, 64), With::kRead);
}

TEST_F(ShadowTest, ReadsDoNotConflict) {
  for (unsigned t = 0; t < 128; ++t) EXPECT_EQ(read(t), With::kNothing);
}

TEST_F(ShadowTest, WarpBarrierOrdersItsLanesOnly) {
  write(0, 0);
  write(1, 4);
  write(32, 8);
  order.warp_barrier(0, 0x5);  // lanes 0 and 2
  EXPECT_EQ(read(2, 0), With::kNothing);
  EXPECT_EQ(read(3, 0), With::kWrite);
  EXPECT_EQ(read(2, 4), With::kWrite);
  EXPECT_EQ(read(2, 8), With::kWrite);
  // Through lane 2 to lane 3.
  write(0, 12);
  order.warp_barrier(0, 0x5);
  order.warp_barrier(0, 0xc);
  EXPECT_EQ(read(3, 12), With::kNothing);
  EXPECT_EQ(read(1, 12), With::kWrite);
}

TEST_F(ShadowTest, WarpBarrierOrdersReadsBeforeWrites) {
  for (unsigned t = 0; t < 32; ++t) read(t);
  order.warp_barrier(0, 0xffffffffu);
  EXPECT_EQ(write(7), With::kNothing);
  for (unsigned t = 0; t < 32; ++t) read(t, 16);
  order.warp_barrier(0, 0xffff);
  EXPECT_EQ(write(7, 16), With::kRead);  // lanes 16 to 31 did not come
}

TEST_F(ShadowTest, BytesOfAWordAreApart) {
  EXPECT_EQ(write(0, 0, 1), With::kNothing);
  EXPECT_EQ(write(1, 1, 1), With::kNothing);
  EXPECT_EQ(write(2, 2, 2), With::kNothing);
  EXPECT_EQ(read(3, 0, 4), With::kWrite);
  order.block_barrier();
  EXPECT_EQ(read(3, 0, 16), With::kNothing);
  EXPECT_EQ(write(4, 3, 1), With::kRead);
  // A word is written whole, then in parts by the same thread.
  EXPECT_EQ(write(5, 100, 4), With::kNothing);
  EXPECT_EQ(write(5, 102, 2), With::kNothing);
  EXPECT_EQ(write(6, 100, 2), With::kWrite);
}

TEST_F(ShadowTest, AtomicsConflictWithOthersOnly) {
  EXPECT_EQ(access(shared, 0, Touch::kAtomic), With::kNothing);
  EXPECT_EQ(access(shared, 40, Touch::kAtomic), With::kNothing);
  EXPECT_EQ(read(1), With::kAtomic);
  order.block_barrier();
  EXPECT_EQ(read(1), With::kNothing);
  EXPECT_EQ(access(shared, 2, Touch::kAtomic), With::kRead);
}

TEST_F(ShadowTest, AsyncCopyBelongsToNobodyUntilItIsDone) {
  const auto begin = [&](unsigned t, uintptr_t at) {
    return shared.begin_async_write(order, t, kBase + at, 16, 9).with;
  };
  EXPECT_EQ(begin(0, 0), With::kNothing);
  EXPECT_EQ(read(0), With::kAsyncCopy);
  order.block_barrier();
  EXPECT_EQ(read(1), With::kAsyncCopy);
  shared.complete_async_write(order, 0, kBase, 16, 9);
  EXPECT_EQ(read(0), With::kNothing);
  EXPECT_EQ(read(1), With::kWrite);  // waited for by thread 0, but no barrier since
  order.block_barrier();
  EXPECT_EQ(read(1), With::kNothing);
  // The next copy to the place comes before everybody has read.
  EXPECT_EQ(begin(0, 0), With::kRead);
}

TEST_F(ShadowTest, BlocksShareNothingOfSharedMemory) {
  write(0);
  EXPECT_EQ(shared.written_bytes(kBase, 8), 4u);
  order.begin_block(1, 128);
  shared.forget_contents(kBase, 4096);
  EXPECT_EQ(shared.written_bytes(kBase, 8), 0u);
  EXPECT_EQ(write(5), With::kNothing);
}

TEST_F(ShadowTest, BlocksConflictInGlobalMemoryLaunchesDoNot) {
  global_write(0, 0);
  global_read(0, 16);
  order.begin_block(1, 128);
  EXPECT_EQ(global_read(0, 0), With::kWrite);
  EXPECT_EQ(global_write(0, 0), With::kWrite);
  EXPECT_EQ(global_read(1, 16), With::kNothing);
  EXPECT_EQ(global_write(1, 16), With::kRead);
  order.begin_launch();
  order.begin_block(0, 128);
  EXPECT_EQ(global_read(3, 0), With::kNothing);
  EXPECT_EQ(global_write(3, 16), With::kNothing);
}

// One block publishes, the other looks; what may be left out?
class TicketTest : public ShadowTest {
 protected:
  struct Steps {
    bool writer_fence = true, reader_fence = true, same_address = true, atomic_by_reader = true;
    bool writer_is_other_thread = false, barrier_before_fence = true, barrier_after_fence = false,
         reader_is_other_thread = false, barrier_in_reader = true;
  };
  With run(Steps s) {
    order.begin_launch();
    order.begin_block(0, 64);
    global_write(s.writer_is_other_thread ? 40 : 0);
    if (s.barrier_before_fence) order.block_barrier();
    if (s.writer_fence) order.fence(0);
    if (s.barrier_after_fence) order.block_barrier();
    order.atomic(0, kBase + 1024);
    order.begin_block(1, 64);
    if (s.atomic_by_reader) order.atomic(0, kBase + (s.same_address ? 1024 : 2048));
    if (s.reader_fence) order.fence(0);
    if (s.barrier_in_reader) order.block_barrier();
    return global_read(s.reader_is_other_thread ? 33 : 0);
  }
};

TEST_F(TicketTest, NeedsAllItsParts) {
  EXPECT_EQ(run({}), With::kNothing);
  EXPECT_EQ(run({.writer_fence = false}), With::kWrite);
  EXPECT_EQ(run({.reader_fence = false}), With::kWrite);
  EXPECT_EQ(run({.same_address = false}), With::kWrite);
  EXPECT_EQ(run({.atomic_by_reader = false}), With::kWrite);
  EXPECT_EQ(run({.writer_is_other_thread = true}), With::kNothing);
  EXPECT_EQ(run({.writer_is_other_thread = true, .barrier_before_fence = false}), With::kWrite);
  // A barrier after a fence does not help another thread's earlier write.
  EXPECT_EQ(run({.writer_is_other_thread = true,
                 .barrier_before_fence = false,
                 .barrier_after_fence = true}),
            With::kWrite);
  EXPECT_EQ(run({.barrier_before_fence = false}), With::kNothing);
  EXPECT_EQ(run({.reader_is_other_thread = true}), With::kNothing);
  EXPECT_EQ(run({.reader_is_other_thread = true, .barrier_in_reader = false}), With::kWrite);
}

TEST_F(TicketTest, EveryThreadMayFenceForItself) {
  order.begin_block(0, 64);
  for (unsigned t = 0; t < 64; ++t) {
    global_write(t, 4 * t);
    order.fence(t);
  }
  order.block_barrier();
  order.atomic(0, kBase + 1024);
  order.begin_block(1, 64);
  order.atomic(0, kBase + 1024);
  order.block_barrier();
  for (unsigned t = 0; t < 64; ++t) {
    order.fence(t);
    EXPECT_EQ(global_read(t, 4 * (63 - t)), With::kNothing);
  }
}

TEST_F(TicketTest, TheLastBlockMayResetTheTicketsAndOverwriteWhatAllHaveRead) {
  for (unsigned b = 0; b < 3; ++b) {
    if (b > 0) order.begin_block(b, 64);
    EXPECT_EQ(global_read(b), With::kNothing);
    order.block_barrier();
    order.fence(0);
    EXPECT_EQ(access(global, 0, Touch::kAtomic, 1024), With::kNothing);
    order.atomic(0, kBase + 1024);
  }
  EXPECT_EQ(global_write(0, 1024), With::kNothing);  // same address as the atomics
  EXPECT_EQ(global_write(0, 0), With::kRead);        // no fence yet
  order.fence(0);
  order.begin_launch();
}

TEST_F(ShadowTest, WrittenBytes) {
  EXPECT_EQ(global.written_bytes(kBase, 64), 0u);
  global.mark_written(kBase + 3, 30);
  EXPECT_EQ(global.written_bytes(kBase, 64), 30u);
  EXPECT_EQ(global.written_bytes(kBase + 8, 8), 8u);
  EXPECT_EQ(global.written_bytes(kBase + 31, 4), 2u);
  access(global, 0, Touch::kWrite, 40, 2);
  EXPECT_EQ(global.written_bytes(kBase + 40, 4), 2u);
}

}  // namespace
}  // namespace heirloom::emulator
