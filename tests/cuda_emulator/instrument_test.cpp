// SPDX-License-Identifier: Apache-2.0
//
// Mistakes planted on purpose must be found, at their line, and the right versions must be clean.
#include "tests/cuda_emulator/src/instrument.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/cuda/common/launch.cuh"
#include "tests/cuda_emulator/planted/memory.cu"
#include "tests/cuda_emulator/planted/ordering.cu"

namespace heirloom::cuda::planted {
namespace {

using emulator::Finding;
using emulator::KernelTraffic;
using emulator::Space;
using testing::HasSubstr;

/// "planted/memory.cu:12" of the comment "// found: <mark>".
std::string line_of(const std::string& file, const std::string& mark) {
  std::ifstream in("tests/cuda_emulator/planted/" + file);  // tests run at the top of the tree
  std::string line;
  for (int number = 1; std::getline(in, line); ++number) {
    const size_t at = line.find("// found: ");
    if (at != std::string::npos && line.substr(at + 10) == mark) {
      return "planted/" + file + ":" + std::to_string(number);
    }
  }
  ADD_FAILURE() << "no line is marked " << mark << " in " << file;
  return "?";
}

template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t n) : n_(n) { check(cudaMalloc(&data_, n * sizeof(T)), "malloc"); }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    check(cudaMemcpy(data_, values.data(), n_ * sizeof(T), cudaMemcpyHostToDevice), "copy");
    check(cudaDeviceSynchronize(), "copy");  // streams that do not block would not wait for it
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  T* get() const { return data_; }
  std::vector<T> read() const {
    std::vector<T> values(n_);
    check(cudaMemcpy(values.data(), data_, n_ * sizeof(T), cudaMemcpyDeviceToHost), "copy");
    return values;
  }

 private:
  size_t n_;
  T* data_ = nullptr;
};

std::vector<float> numbers(size_t n) {
  std::vector<float> x(n);
  std::iota(x.begin(), x.end(), 1.0f);
  return x;
}

class Instrument : public testing::Test {
 protected:
  void SetUp() override {
    if (!emulator::instrumented()) GTEST_SKIP() << "kernels of this build are not watched";
    forget();
  }
  void TearDown() override { forget(); }
  static void forget() {
    emulator::reset_runtime();
    emulator::take_report();
    emulator::watch_traffic(false);
    emulator::take_traffic();
  }
  /// Runs what is queued; true iff nothing failed.
  static bool runs() { return cudaDeviceSynchronize() == cudaSuccess; }

  static void expect_clean() {
    EXPECT_TRUE(runs()) << emulator::last_failure();
    EXPECT_EQ(emulator::format(emulator::take_report()), "");
  }
  static void expect_finding(Finding::Kind kind, const std::string& line) {
    runs();
    const std::vector<Finding> report = emulator::take_report();
    EXPECT_FALSE(report.empty());
    for (const Finding& f : report) {
      EXPECT_EQ(f.kind, kind) << f.text;
      EXPECT_THAT(f.line, testing::EndsWith(line)) << f.text;
    }
  }
  static KernelTraffic traffic() {
    EXPECT_TRUE(runs()) << emulator::last_failure();
    std::vector<KernelTraffic> all = emulator::take_traffic();
    EXPECT_EQ(all.size(), 1u);
    return all.empty() ? KernelTraffic{} : all[0];
  }
};

constexpr Stream kStream{};
using Kind = Finding::Kind;

TEST_F(Instrument, MissingLeadingBarrierIsARace) {
  const DeviceArray<float> in(numbers(128)), out(128);
  launch(leading_barrier_kernel<true>, 2, 64, 256, kStream, in.get(), out.get());
  expect_clean();
  launch(leading_barrier_kernel<false>, 2, 64, 256, kStream, in.get(), out.get());
  // Whether the write or the read comes first is the schedule's choice.
  runs();
  const auto report = emulator::take_report();
  ASSERT_FALSE(report.empty());
  for (const Finding& f : report) {
    EXPECT_EQ(f.kind, f.line == f.other_line ? Kind::kRace : f.kind) << f.text;
    if (f.kind == Kind::kRace) {
      EXPECT_THAT(f.line + " " + f.other_line,
                  HasSubstr(line_of("ordering.cu", "leading barrier")));
    }
  }
}

TEST_F(Instrument, MissingTrailingBarrierIsARace) {
  const DeviceArray<float> in(numbers(128)), out(64);
  launch(trailing_barrier_kernel<true>, 1, 64, 256, kStream, in.get(), out.get());
  expect_clean();
  launch(trailing_barrier_kernel<false>, 1, 64, 256, kStream, in.get(), out.get());
  runs();
  const auto report = emulator::take_report();
  ASSERT_FALSE(report.empty());
  for (const Finding& f : report) {
    EXPECT_EQ(f.kind, Kind::kRace);
    EXPECT_THAT(f.line + " " + f.other_line, HasSubstr(line_of("ordering.cu", "trailing barrier")));
  }
}

TEST_F(Instrument, ShufflesDoNotOrderMemory) {
  const DeviceArray<float> in(numbers(64)), out(64);
  launch(warp_barrier_kernel<true>, 1, 64, 256, kStream, in.get(), out.get());
  expect_clean();
  launch(warp_barrier_kernel<false>, 1, 64, 256, kStream, in.get(), out.get());
  expect_finding(Kind::kRace, line_of("ordering.cu", "warp barrier"));
}

TEST_F(Instrument, AsyncCopyMustBeWaitedFor) {
  const DeviceArray<float> in(numbers(128)), out(128);
  launch(async_copy_kernel<true>, 1, 32, 512, kStream, in.get(), out.get());
  expect_clean();
  EXPECT_EQ(out.read(), numbers(128));
  launch(async_copy_kernel<false>, 1, 32, 512, kStream, in.get(), out.get());
  expect_finding(Kind::kRace, line_of("ordering.cu", "async copy"));
  launch(own_async_copy_kernel<true>, 1, 32, 128, kStream, in.get(), out.get());
  expect_clean();
  launch(own_async_copy_kernel<false>, 1, 32, 128, kStream, in.get(), out.get());
  expect_finding(Kind::kRace, line_of("ordering.cu", "own async copy"));
}

TEST_F(Instrument, TicketNeedsFences) {
  const DeviceArray<float> in(numbers(8 * 32)), partial(8 * 32), out(32);
  const DeviceArray<unsigned> tickets(std::vector<unsigned>{0});
  for (int repeat = 0; repeat < 2; ++repeat) {
    launch(ticket_kernel<Fences::kBoth>, 8, 32, 128, kStream, in.get(), partial.get(),
           tickets.get(), out.get());
  }
  expect_clean();
  EXPECT_EQ(out.read()[0], 256.0f * 257.0f / 2.0f);
  launch(wide_ticket_kernel, 8, 32, 0, kStream, in.get(), partial.get(), tickets.get(), out.get());
  expect_clean();
  check(cudaMemset(tickets.get(), 0, 4), "memset");
  launch(ticket_kernel<Fences::kNone>, 8, 32, 128, kStream, in.get(), partial.get(), tickets.get(),
         out.get());
  expect_finding(Kind::kRace, line_of("ordering.cu", "ticket"));
  launch(ticket_kernel<Fences::kWriterOnly>, 8, 32, 128, kStream, in.get(), partial.get(),
         tickets.get(), out.get());
  expect_finding(Kind::kRace, line_of("ordering.cu", "ticket"));
}

TEST_F(Instrument, BlocksMustNotShareAnElement) {
  const DeviceArray<float> out(4);
  launch(shared_output_kernel<true>, 4, 32, 0, kStream, out.get());
  expect_clean();
  launch(shared_output_kernel<false>, 4, 32, 0, kStream, out.get());
  expect_finding(Kind::kRace, line_of("ordering.cu", "shared output"));
}

TEST_F(Instrument, AtomicsDoNotRace) {
  std::vector<int> values(256);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int>(i * 7 % 8);
  const DeviceArray<int> in(values);
  const DeviceArray<unsigned> counts(std::vector<unsigned>(8, 0));
  launch(histogram_kernel, 4, 64, 32, kStream, in.get(), counts.get());
  expect_clean();
  EXPECT_EQ(counts.read(), std::vector<unsigned>(8, 32));
}

TEST_F(Instrument, DivergentCollectivesAreDeadlocks) {
  const DeviceArray<float> out(64);
  launch(divergent_barrier_kernel<true>, 1, 64, 0, kStream, out.get());
  launch(divergent_shuffle_kernel<true>, 1, 32, 0, kStream, out.get());
  expect_clean();
  launch(divergent_shuffle_kernel<false>, 1, 32, 0, kStream, out.get());
  EXPECT_FALSE(runs());
  EXPECT_THAT(emulator::last_failure(),
              HasSubstr(line_of("ordering.cu", "divergent shuffle").substr(9)));
  emulator::reset_runtime();
  launch(divergent_barrier_kernel<false>, 1, 64, 0, kStream, out.get());
  EXPECT_FALSE(runs());
  EXPECT_THAT(emulator::last_failure(),
              HasSubstr(line_of("ordering.cu", "divergent barrier").substr(9)));
}

TEST_F(Instrument, ReadPastTheEndIsOutOfBounds) {
  const DeviceArray<bfloat16> rows(std::vector<bfloat16>(40 * 64, bfloat16(1.0f)));
  const DeviceArray<float> out(64);
  launch(tile_past_end_kernel<true>, 1, 64, 2048, kStream, rows.get(), 40, out.get());
  expect_clean();
  EXPECT_EQ(out.read()[0], 40.0f);
  launch(tile_past_end_kernel<false>, 1, 64, 2048, kStream, rows.get(), 40, out.get());
  expect_finding(Kind::kOutOfBounds, line_of("memory.cu", "tile past the end"));
}

TEST_F(Instrument, MissingStoreGuardIsOutOfBounds) {
  const DeviceArray<float> in(numbers(100)), out(100);
  launch(store_guard_kernel<true>, 2, 64, 0, kStream, in.get(), out.get(), 100);
  expect_clean();
  launch(store_guard_kernel<false>, 2, 64, 0, kStream, in.get(), out.get(), 100);
  expect_finding(Kind::kOutOfBounds, line_of("memory.cu", "store guard"));
}

TEST_F(Instrument, OverrunOfSharedMemoryIsOutOfBounds) {
  const DeviceArray<float> out(64);
  launch(shared_overrun_kernel, 1, 64, 256, kStream, out.get());
  expect_clean();
  launch(shared_overrun_kernel, 1, 64, 252, kStream, out.get());
  expect_finding(Kind::kOutOfBounds, line_of("memory.cu", "shared overrun"));
}

TEST_F(Instrument, UnwrittenMemoryIsFound) {
  const DeviceArray<float> in(numbers(96)), out(96);
  launch(unwritten_slot_kernel<true>, 1, 96, 0, kStream, in.get(), out.get());
  expect_clean();
  launch(unwritten_slot_kernel<false>, 1, 96, 0, kStream, in.get(), out.get());
  expect_finding(Kind::kUninitialised, line_of("memory.cu", "unwritten slot"));

  const DeviceArray<float> half(64), copy(64);
  check(cudaMemcpy(half.get(), numbers(32).data(), 128, cudaMemcpyHostToDevice), "copy");
  launch(unwritten_input_kernel<true>, 1, 64, 0, kStream, half.get(), copy.get(), 32);
  expect_clean();
  launch(unwritten_input_kernel<false>, 1, 64, 0, kStream, half.get(), copy.get(), 32);
  expect_finding(Kind::kUninitialised, line_of("memory.cu", "unwritten input"));
}

TEST_F(Instrument, PaddingMayMoveAlong) {
  const DeviceArray<float> rows(4 * 32), out(32);
  for (int i = 0; i < 32; ++i) {
    check(cudaMemcpy(rows.get() + 4 * i, numbers(3).data(), 12, cudaMemcpyHostToDevice), "copy");
  }
  launch(padded_rows_kernel, 1, 32, 0, kStream, rows.get(), out.get());
  expect_clean();
  EXPECT_EQ(out.read(), std::vector<float>(32, 6.0f));
}

TEST_F(Instrument, AllOnesCopiedInAreWritten) {
  // -1, the label that a loss leaves out, looks like memory that nobody has written.
  const DeviceArray<float> minus_one(1), out(1);
  const int value = -1;
  check(cudaMemcpy(minus_one.get(), &value, 4, cudaMemcpyHostToDevice), "copy");
  launch(read_one_kernel, 1, 32, 0, kStream, minus_one.get(), out.get());
  expect_clean();
  const DeviceArray<float> filled(1);
  check(cudaMemset(filled.get(), 0xff, 4), "fill");
  launch(read_one_kernel, 1, 32, 0, kStream, filled.get(), out.get());
  expect_clean();
}

TEST_F(Instrument, HostPointerInAKernelIsOutOfBounds) {
  const DeviceArray<float> out(1);
  const std::vector<float> host(1, 1.0f);
  launch(read_one_kernel, 1, 32, 0, kStream, host.data(), out.get());
  expect_finding(Kind::kOutOfBounds, line_of("memory.cu", "host pointer"));
  emulator::reset_runtime();
  float* pinned = nullptr;
  check(cudaMallocHost(&pinned, 4), "malloc");
  *pinned = 3.0f;
  launch(read_one_kernel, 1, 32, 0, kStream, pinned, out.get());
  expect_clean();
  EXPECT_EQ(out.read()[0], 3.0f);
  cudaFreeHost(pinned);
}

TEST_F(Instrument, DevicePointerOnTheHostIsAFault) {
  const DeviceArray<float> x(numbers(1));
  EXPECT_DEATH(static_cast<void>(*const_cast<volatile float*>(x.get())), "touched by the host");
}

TEST_F(Instrument, FreedMemoryIsOutOfBounds) {
  const DeviceArray<float> out(1);
  float* freed = nullptr;
  check(cudaMalloc(&freed, 4), "malloc");
  check(cudaMemset(freed, 0, 4), "memset");
  cudaFree(freed);
  launch(read_one_kernel, 1, 32, 0, kStream, freed, out.get());
  runs();
  const auto report = emulator::take_report();
  ASSERT_EQ(report.size(), 1u);
  EXPECT_THAT(report[0].text, HasSubstr("freed"));
}

double ratio(const KernelTraffic& t, Space space) {
  return static_cast<double>(t.used(space)) / static_cast<double>(t.ideal(space));
}

TEST_F(Instrument, StridedLoadsTouchMoreSectors) {
  const DeviceArray<float> in(numbers(8 * 64)), out(64);
  const auto loads = [&](auto kernel) {
    emulator::watch_traffic(true);
    launch(kernel, 1, 64, 0, kStream, in.get(), out.get());
    for (const auto& line : traffic().lines) {
      if (!line.write) {
        EXPECT_THAT(line.line, testing::EndsWith(line_of("memory.cu", "strided")));
        return std::pair(line.used, line.ideal);
      }
    }
    return std::pair(uint64_t{0}, uint64_t{0});
  };
  EXPECT_EQ(loads(strided_kernel<1>), std::pair(uint64_t{8}, uint64_t{8}));
  EXPECT_EQ(loads(strided_kernel<2>), std::pair(uint64_t{16}, uint64_t{8}));
  EXPECT_EQ(loads(strided_kernel<8>), std::pair(uint64_t{64}, uint64_t{8}));
}

TEST_F(Instrument, HalfUsedSectorsAreSeen) {
  const DeviceArray<float> in(numbers(8 * 32)), out(4 * 32);
  emulator::watch_traffic(true);
  launch(half_sector_kernel<true>, 1, 32, 0, kStream, in.get(), out.get());
  KernelTraffic t = traffic();
  EXPECT_EQ(ratio(t, Space::kGlobal), 1.0);
  EXPECT_EQ(t.dram_read, 512u);
  EXPECT_EQ(t.dram_written, 512u);
  launch(half_sector_kernel<false>, 1, 32, 0, kStream, in.get(), out.get());
  t = traffic();
  EXPECT_EQ(ratio(t, Space::kGlobal), 1.5);
  EXPECT_EQ(t.dram_read, 1024u);
}

TEST_F(Instrument, ReadingWhatTheLaunchWroteIsNoDramTraffic) {
  const DeviceArray<float> x(numbers(64));
  emulator::watch_traffic(true);
  launch(double_kernel, 1, 64, 0, kStream, x.get());
  const KernelTraffic t = traffic();
  EXPECT_EQ(t.dram_read, 256u);
  EXPECT_EQ(t.dram_written, 256u);
}

TEST_F(Instrument, MissingSwizzleCostsEightWavefronts) {
  const DeviceArray<bfloat16> in(std::vector<bfloat16>(64 * 64, bfloat16(1.0f)));
  const DeviceArray<uint32_t> out(32);
  const auto rows = [&](auto kernel) {
    emulator::watch_traffic(true);
    launch(kernel, 1, 32, 8192, kStream, in.get(), out.get());
    for (const auto& line : traffic().lines) {
      if (line.matrix) {
        EXPECT_THAT(line.line, testing::EndsWith(line_of("memory.cu", "swizzle")));
        return std::pair(line.used, line.ideal);
      }
    }
    return std::pair(uint64_t{0}, uint64_t{0});
  };
  EXPECT_EQ(rows(swizzle_kernel<true>), std::pair(uint64_t{64}, uint64_t{64}));
  EXPECT_EQ(rows(swizzle_kernel<false>), std::pair(uint64_t{512}, uint64_t{64}));
}

TEST_F(Instrument, BankConflictsAreCounted) {
  const DeviceArray<float> in(numbers(1024)), out(1024);
  emulator::watch_traffic(true);
  launch(transpose_kernel<1>, 1, 32, 33 * 32 * 4, kStream, in.get(), out.get());
  EXPECT_EQ(traffic().used(Space::kShared), 64u);
  launch(transpose_kernel<0>, 1, 32, 32 * 32 * 4, kStream, in.get(), out.get());
  EXPECT_EQ(traffic().used(Space::kShared), 32u + 32u * 32u);
}

// Between streams, mistakes show as stale data.
TEST_F(Instrument, MissingEventShowsStaleData) {
  const auto second_sees_first = [](bool wait, uint64_t seed) {
    emulator::reset_runtime();
    emulator::set_seed(seed);
    const DeviceArray<float> x(numbers(32)), out(1);
    cudaStream_t a, b;
    cudaEvent_t event;
    check(cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking), "stream");
    check(cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking), "stream");
    check(cudaEventCreate(&event), "event");
    launch(double_kernel, 1, 32, 0, Stream{a}, x.get());
    check(cudaEventRecord(event, a), "event");
    if (wait) check(cudaStreamWaitEvent(b, event), "wait");
    launch(read_one_kernel, 1, 32, 0, Stream{b}, x.get(), out.get());
    check(cudaDeviceSynchronize(), "synchronize");
    const bool right = out.read()[0] == 2.0f;
    cudaEventDestroy(event);
    cudaStreamDestroy(a);
    cudaStreamDestroy(b);
    return right;
  };
  int stale = 0;
  for (uint64_t seed = 1; seed <= 16; ++seed) {
    EXPECT_TRUE(second_sees_first(true, seed));
    stale += !second_sees_first(false, seed);
  }
  EXPECT_GT(stale, 0);
  emulator::set_seed(1);
}

TEST_F(Instrument, MissingSynchronizationAfterAGraphShowsStaleData) {
  const DeviceArray<float> x(numbers(32));
  float* seen = nullptr;
  check(cudaMallocHost(&seen, 4), "malloc");
  *seen = 0;
  cudaStream_t s;
  check(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking), "stream");
  check(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal), "capture");
  launch(double_kernel, 1, 32, 0, Stream{s}, x.get());
  check(cudaMemcpyAsync(seen, x.get(), 4, cudaMemcpyDeviceToHost, s), "copy");
  cudaGraph_t graph;
  check(cudaStreamEndCapture(s, &graph), "capture");
  cudaGraphExec_t executable;
  check(cudaGraphInstantiate(&executable, graph), "instantiate");
  check(cudaGraphLaunch(executable, s), "launch");
  EXPECT_EQ(*seen, 0.0f);  // nobody has waited
  check(cudaStreamSynchronize(s), "synchronize");
  EXPECT_EQ(*seen, 2.0f);
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(s);
  cudaFreeHost(seen);
}

}  // namespace
}  // namespace heirloom::cuda::planted
