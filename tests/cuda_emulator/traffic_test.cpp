// SPDX-License-Identifier: Apache-2.0
#include "tests/cuda_emulator/src/traffic.h"

#include <gtest/gtest.h>

namespace heirloom::emulator {
namespace {

template <class F>
WarpAccess warp(uint32_t bytes, F address, uint32_t lanes = 0xffffffffu) {
  WarpAccess a;
  a.lanes = lanes;
  a.bytes = bytes;
  for (unsigned lane = 0; lane < 32; ++lane) a.address[lane] = 4096 + address(lane);
  return a;
}
void expect(Units units, uint64_t used, uint64_t ideal) {
  EXPECT_EQ(units.used, used);
  EXPECT_EQ(units.ideal, ideal);
}

TEST(Sectors, CountDistinctOnes) {
  expect(sectors(warp(4, [](unsigned l) { return 4 * l; })), 4, 4);
  expect(sectors(warp(16, [](unsigned l) { return 16 * l; })), 16, 16);
  expect(sectors(warp(4, [](unsigned l) { return 8 * l; })), 8, 4);
  expect(sectors(warp(4, [](unsigned l) { return 64 * l; })), 32, 4);
  expect(sectors(warp(4, [](unsigned) { return 0; })), 1, 1);
  expect(sectors(warp(2, [](unsigned l) { return 2 * (31 - l); })), 2, 2);
  // Aligned to 16 bytes only: one more sector than the bytes need.
  expect(sectors(warp(4, [](unsigned l) { return 16 + 4 * l; })), 5, 4);
  // Overlapping halves count once.
  expect(sectors(warp(8, [](unsigned l) { return 4 * l; })), 5, 5);
  expect(sectors(warp(
             4, [](unsigned l) { return 4 * l; }, 0xff)),
         1, 1);
  expect(sectors(warp(
             4, [](unsigned) { return 0; }, 0)),
         0, 0);
}

TEST(Wavefronts, OneWordOfEachBankInOnePass) {
  expect(wavefronts(warp(4, [](unsigned l) { return 4 * l; })), 1, 1);
  expect(wavefronts(warp(4, [](unsigned) { return 64; })), 1, 1);             // broadcast
  expect(wavefronts(warp(4, [](unsigned l) { return 4 * (l / 8); })), 1, 1);  // multicast
  expect(wavefronts(warp(4, [](unsigned l) { return 128 * l; })), 32, 1);     // one bank
  expect(wavefronts(warp(4, [](unsigned l) { return 132 * l; })), 1, 1);      // padded
  expect(wavefronts(warp(4, [](unsigned l) { return 8 * l; })), 2, 1);        // two words a bank
  expect(wavefronts(warp(2, [](unsigned l) { return 2 * l; })), 1, 1);        // two lanes a word
  expect(wavefronts(warp(2, [](unsigned l) { return 4 * l + 2; })), 1, 1);
}

TEST(Wavefronts, WideAccessesGoByHalvesAndQuarters) {
  expect(wavefronts(warp(8, [](unsigned l) { return 8 * l; })), 2, 2);
  expect(wavefronts(warp(16, [](unsigned l) { return 16 * l; })), 4, 4);
  expect(wavefronts(warp(16, [](unsigned l) { return 32 * l; })), 8, 4);
  expect(wavefronts(warp(16, [](unsigned l) { return 128 * l; })), 32, 4);
  expect(wavefronts(warp(
             16, [](unsigned l) { return 16 * l; }, 0xff)),
         1, 1);
  // Rows of 128 bytes, swizzled: eight lanes, eight places.
  expect(wavefronts(warp(16, [](unsigned l) { return 128 * l + 16 * (l % 8); })), 4, 4);
}

TEST(Wavefronts, MatricesAreReadOneByOne) {
  expect(matrix_wavefronts(warp(16, [](unsigned l) { return 16 * l; })), 4, 4);
  expect(matrix_wavefronts(warp(16, [](unsigned l) { return 128 * l; })), 32, 4);
  expect(matrix_wavefronts(warp(16, [](unsigned l) { return 144 * l; })), 4, 4);
  expect(matrix_wavefronts(warp(
             16, [](unsigned l) { return 64 * l; }, 0xffff)),
         8, 2);
}

TEST(WarpRecorder, LanesThatRunOneAfterAnotherMeetByOccurrence) {
  WarpRecorder recorder;
  std::vector<Units> done;
  const auto count = [&](uint32_t, const WarpAccess& a) { done.push_back(sectors(a)); };
  for (unsigned lane = 0; lane < 32; ++lane) {
    for (unsigned i = 0; i < 3; ++i) {
      recorder.record(7, lane, 0xffffffffu, 1024 * i + 4 * lane, 4, count);
    }
  }
  ASSERT_EQ(done.size(), 3u);
  for (const Units& u : done) expect(u, 4, 4);
}

TEST(WarpRecorder, LanesWithFewerIterationsMeetTheOthersAgainWhenTheWarpDoes) {
  WarpRecorder recorder;
  std::vector<uint32_t> lanes;
  const auto count = [&](uint32_t, const WarpAccess& a) { lanes.push_back(a.lanes); };
  for (int row = 0; row < 2; ++row) {
    for (unsigned lane = 0; lane < 32; ++lane) {
      for (unsigned i = 0; i < (lane < 8 ? 2u : 1u); ++i) {
        recorder.record(1, lane, 0xffffffffu, 4096 * i + 4 * lane, 4, count);
      }
    }
    recorder.converge(count);
  }
  EXPECT_EQ(lanes, (std::vector<uint32_t>{0xffffffffu, 0xff, 0xffffffffu, 0xff}));
}

TEST(WarpRecorder, PlacesAreApart) {
  WarpRecorder recorder;
  int count = 0;
  const auto done = [&](uint32_t, const WarpAccess&) { ++count; };
  for (unsigned lane = 0; lane < 16; ++lane) recorder.record(1, lane, 0xffffffffu, 0, 4, done);
  for (unsigned lane = 16; lane < 32; ++lane) recorder.record(2, lane, 0xffffffffu, 0, 4, done);
  EXPECT_EQ(count, 0);
  recorder.converge(done);
  EXPECT_EQ(count, 2);
}

}  // namespace
}  // namespace heirloom::emulator
