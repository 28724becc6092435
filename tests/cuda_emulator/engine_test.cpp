// SPDX-License-Identifier: Apache-2.0
//
// The engine keeps CUDA's rules of threads: what is legal works in every order of threads, what is not ends
// the kernel with a message that says where.
#include <set>

#include "kernels/cuda/common/reduce.cuh"
#include "tests/cuda_emulator/engine_fixture.h"

namespace heirloom::cuda {
namespace {

using emulator::set_schedule_seed;
using testing::AllOf;
using testing::HasSubstr;

std::string here(int line) { return "engine_test.cpp:" + std::to_string(line); }

// ---- indices, order ----

__global__ void index_kernel(int* seen, int* at) {
  const int thread =
      static_cast<int>(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z) +
                       blockDim.x * blockDim.y * blockDim.z *
                           (blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z)));
  atomicAdd(&seen[thread], 1);
  at[atomicAdd(at, 1) + 1] = thread;
}

TEST_F(Engine, RunsEveryThreadOnceInAnOrderThatTheSeedChooses) {
  constexpr size_t kThreads = 5 * 3 * 2 * 7 * 3 * 2;
  std::set<std::vector<int>> orders;
  for (int seed = 1; seed <= kSeeds; ++seed) {
    std::vector<int> first;
    for (int again = 0; again < 2; ++again) {
      set_schedule_seed(static_cast<uint64_t>(seed));
      Pinned<int> seen(kThreads), at(kThreads + 1);
      ASSERT_EQ(outcome(index_kernel, {7, 3, 2}, {5, 3, 2}, 0, seen.get(), at.get()), "");
      EXPECT_EQ(seen.values(), std::vector<int>(kThreads, 1));
      if (again) {
        EXPECT_EQ(at.values(), first);
      }
      first = at.values();
    }
    orders.insert(first);
  }
  EXPECT_GT(orders.size(), kSeeds / 2u);
}

// ---- barriers ----

__global__ void rotate_kernel(const int* in, int* out, int rounds) {
  DYN_SMEM(bytes);
  int* shared = reinterpret_cast<int*>(bytes);
  const unsigned t = threadIdx.x, n = blockDim.x;
  int mine = in[t];
  for (int r = 0; r < rounds; ++r) {
    shared[t] = mine;
    __syncthreads();
    mine = shared[(t + 1) % n];
    __syncthreads();
  }
  out[t] = mine;
}

TEST_F(Engine, BarriersOrderSharedMemory) {
  for (const unsigned n : {1u, 31u, 32u, 33u, 250u, 1024u}) {
    Pinned<int> in(n), out(n);
    for (unsigned i = 0; i < n; ++i) in[i] = static_cast<int>(i);
    for (int seed = 1; seed <= kSeeds; ++seed) {
      set_schedule_seed(static_cast<uint64_t>(seed));
      ASSERT_EQ(outcome(rotate_kernel, 1, n, n * 4, in.get(), out.get(), 5), "");
      for (unsigned i = 0; i < n; ++i) ASSERT_EQ(out[i], static_cast<int>((i + 5) % n));
    }
  }
}

__global__ void early_exit_kernel(int* out) {
  DYN_SMEM(bytes);
  int* shared = reinterpret_cast<int*>(bytes);
  if (threadIdx.x >= 40) return;
  shared[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = shared[39 - threadIdx.x];
}

TEST_F(Engine, ExitedThreadsDoNotCountAtABarrier) {
  for (int seed = 1; seed <= kSeeds; ++seed) {
    set_schedule_seed(static_cast<uint64_t>(seed));
    Pinned<int> out(40);
    ASSERT_EQ(outcome(early_exit_kernel, 1, 96, 160, out.get()), "");
    for (int i = 0; i < 40; ++i) ASSERT_EQ(out[static_cast<size_t>(i)], 39 - i);
  }
}

__global__ void count_kernel(int* out) {
  const int x = static_cast<int>(threadIdx.x);
  const int count = __syncthreads_count(x % 3 == 0);
  const int all = __syncthreads_and(x < 70), some = __syncthreads_or(x == 69);
  const int none = __syncthreads_or(x == 70);
  out[x] = count * 1000 + all * 100 + some * 10 + none;
}

TEST_F(Engine, BarriersCount) {
  Pinned<int> out(70);
  ASSERT_EQ(outcome(count_kernel, 1, 70, 0, out.get()), "");
  EXPECT_EQ(out.values(), std::vector<int>(70, 24110));
}

// ---- warps ----

__global__ void shuffle_kernel(int kind, int argument, int width, int* out) {
  const int x = static_cast<int>(threadIdx.x) + 100;
  int y = 0;
  if (kind == 0) y = __shfl_sync(kWholeWarp, x, argument, width);
  if (kind == 1) y = __shfl_xor_sync(kWholeWarp, x, argument, width);
  if (kind == 2) y = __shfl_up_sync(kWholeWarp, x, static_cast<unsigned>(argument), width);
  if (kind == 3) y = __shfl_down_sync(kWholeWarp, x, static_cast<unsigned>(argument), width);
  const double z = __shfl_sync(kWholeWarp, static_cast<double>(x) * 0x1p-40, argument, 32);
  out[threadIdx.x] =
      z == (argument % 32 + 100 + static_cast<int>(threadIdx.x) / 32 * 32) * 0x1p-40 ? y : -1;
}

TEST_F(Engine, ShufflesReadTheLanesThatTheGuideNames) {
  Pinned<int> out(64);
  for (int kind = 0; kind < 4; ++kind) {
    for (int width = 1; width <= 32; width *= 2) {
      for (int argument = 0; argument < 32; ++argument) {
        ASSERT_EQ(outcome(shuffle_kernel, 1, 64, 0, kind, argument, width, out.get()), "");
        for (int t = 0; t < 64; ++t) {
          const int base = t / width * width, within = t % width;
          int from = t;
          if (kind == 0) from = base + argument % width;
          // Programming guide: earlier groups may be read, later ones give the own value.
          if (kind == 1 && (t % 32 ^ argument) < base % 32 + width) from = t ^ argument;
          if (kind == 2 && within >= argument) from = t - argument;
          if (kind == 3 && within + argument < width) from = t + argument;
          ASSERT_EQ(out[static_cast<size_t>(t)], from + 100)
              << kind << " " << width << " " << argument << " " << t;
        }
      }
    }
  }
}

__global__ void halves_kernel(int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  int x = lane;
  if (lane < 16) {
    for (int d = 8; d > 0; d /= 2) x += __shfl_xor_sync(0x0000ffffu, x, d);
  } else {
    for (int i = 0; i < 3; ++i) x = __shfl_down_sync(0xffff0000u, x, 1, 16);
    __syncwarp(0xffff0000u);
  }
  __syncwarp();
  out[lane] = x;
}

TEST_F(Engine, HalvesOfAWarpMayGoTheirOwnWays) {
  for (int seed = 1; seed <= kSeeds; ++seed) {
    set_schedule_seed(static_cast<uint64_t>(seed));
    Pinned<int> out(32);
    ASSERT_EQ(outcome(halves_kernel, 1, 32, 0, out.get()), "");
    for (int i = 0; i < 32; ++i) {
      ASSERT_EQ(out[static_cast<size_t>(i)], i < 16 ? 120 : std::min(i + 3, 31));
    }
  }
}

__global__ void meet_at_two_lines_kernel(int* out) {
  DYN_SMEM(bytes);
  int* shared = reinterpret_cast<int*>(bytes);
  if (threadIdx.x < 16) {
    shared[threadIdx.x] = static_cast<int>(threadIdx.x);
    __syncwarp();
  } else {
    __syncwarp();
    out[threadIdx.x - 16] = shared[threadIdx.x - 16];
  }
}

TEST_F(Engine, LanesMayComeToSyncwarpFromDifferentLines) {
  Pinned<int> out(16, -1);
  ASSERT_EQ(outcome(meet_at_two_lines_kernel, 1, 32, 64, out.get()), "");
  for (size_t i = 0; i < 16; ++i) EXPECT_EQ(out[i], static_cast<int>(i));
}

__global__ void vote_kernel(unsigned* out) {
  const unsigned t = threadIdx.x;
  const unsigned ballot = __ballot_sync(kWholeWarp, t % 5 == 0);
  const bool any = __any_sync(kWholeWarp, t == 40), all = __all_sync(kWholeWarp, t < 64);
  const unsigned sum = __reduce_add_sync(kWholeWarp, t);
  const int least = __reduce_min_sync(kWholeWarp, static_cast<int>(t) - 40);
  out[5 * t] = ballot;
  out[5 * t + 1] = any;
  out[5 * t + 2] = all;
  out[5 * t + 3] = sum;
  out[5 * t + 4] = static_cast<unsigned>(least);
}

TEST_F(Engine, VotesAndWarpReductions) {
  Pinned<unsigned> out(5 * 64);
  ASSERT_EQ(outcome(vote_kernel, 1, 64, 0, out.get()), "");
  for (unsigned t = 0; t < 64; ++t) {
    unsigned ballot = 0, sum = 0;
    for (unsigned l = 0; l < 32; ++l) {
      ballot |= static_cast<unsigned>((t / 32 * 32 + l) % 5 == 0) << l;
      sum += t / 32 * 32 + l;
    }
    EXPECT_EQ(out[5 * t], ballot);
    EXPECT_EQ(out[5 * t + 1], t / 32);
    EXPECT_EQ(out[5 * t + 2], 1u);
    EXPECT_EQ(out[5 * t + 3], sum);
    EXPECT_EQ(static_cast<int>(out[5 * t + 4]), t < 32 ? -40 : -8);
  }
}

// ---- reductions and tickets ----

__global__ void sum_kernel(const float* x, float* sum, float* most) {
  __shared__ float scratch[32];
  const float mine = x[blockIdx.x * blockDim.x + threadIdx.x];
  const float s = block_sum(mine, scratch), m = block_max(mine, scratch);
  sum[blockIdx.x * blockDim.x + threadIdx.x] = s;
  most[blockIdx.x * blockDim.x + threadIdx.x] = m;
}

TEST_F(Engine, BlockReductionsGiveTheSameBitsInEveryOrder) {
  for (const unsigned threads : {32u, 96u, 256u, 1024u}) {
    Pinned<float> x(3 * threads), sum(3 * threads), most(3 * threads);
    double exact = 0;
    for (unsigned i = 0; i < 3 * threads; ++i) {
      x[i] = static_cast<float>(static_cast<int>(i * 2654435761u % 1999) - 999) * 0.37f;
      if (i < threads) exact += static_cast<double>(x[i]);
    }
    std::vector<float> first;
    for (int seed = 1; seed <= kSeeds; ++seed) {
      set_schedule_seed(static_cast<uint64_t>(seed));
      ASSERT_EQ(outcome(sum_kernel, 3, threads, 0, x.get(), sum.get(), most.get()), "");
      if (seed > 1) {
        ASSERT_EQ(sum.values(), first);
      }
      first = sum.values();
    }
    EXPECT_NEAR(static_cast<double>(sum[0]), exact, 1e-6 * 999 * threads);
    for (unsigned i = 0; i < 3 * threads; ++i) {
      const float* block = x.get() + i / threads * threads;
      EXPECT_EQ(most[i], *std::max_element(block, block + threads));
      EXPECT_EQ(sum[i], sum[i / threads * threads]);
    }
  }
}

__global__ void ticket_kernel(const float* x, float* partial, unsigned* ticket, float* total,
                              int n) {
  __shared__ float scratch[32];
  __shared__ bool last;
  float mine = 0;
  for (int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < n;
       i += static_cast<int>(gridDim.x * blockDim.x)) {
    mine += x[i];
  }
  const float sum = block_sum(mine, scratch);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = sum;
    __threadfence();
    last = atomicAdd(ticket, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  float all = threadIdx.x < gridDim.x ? partial[threadIdx.x] : 0.0f;
  all = block_sum(all, scratch);
  if (threadIdx.x == 0) {
    *total = all;
    *ticket = 0;
  }
}

TEST_F(Engine, TheLastBlockDoesTheRest) {
  Pinned<float> x(5000), partial(40), total(1);
  Pinned<unsigned> ticket(1, 0u);
  for (size_t i = 0; i < 5000; ++i) x[i] = static_cast<float>(i % 17) * 0.1f;
  float first = 0;
  for (int seed = 1; seed <= kSeeds; ++seed) {
    set_schedule_seed(static_cast<uint64_t>(seed));
    total[0] = -1;
    ASSERT_EQ(
        outcome(ticket_kernel, 40, 64, 0, x.get(), partial.get(), ticket.get(), total.get(), 5000),
        "");
    if (seed > 1) {
      ASSERT_EQ(total[0], first);
    }
    first = total[0];
  }
  EXPECT_NEAR(first, 4000.0f, 4.0f);
}

// ---- what must not be ----

constexpr int kTwoBarriers = __LINE__ + 3;
__global__ void two_barriers_kernel(int* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}

TEST_F(Engine, DivergentBarrier) {
  Pinned<int> out(64);
  const std::string text = outcome(two_barriers_kernel, 2, 64, 0, out.get());
  EXPECT_THAT(text, AllOf(HasSubstr("two_barriers_kernel"), HasSubstr("block ("),
                          HasSubstr("thread ("), HasSubstr("at another one"),
                          HasSubstr(here(kTwoBarriers)), HasSubstr(here(kTwoBarriers + 2))));
}

constexpr int kBarrierOrShuffle = __LINE__ + 3;
__global__ void barrier_or_shuffle_kernel(int* out) {
  if (threadIdx.x % 2) {
    __syncthreads();
  } else {
    out[threadIdx.x] = __shfl_xor_sync(kWholeWarp, 1, 2);
  }
}

TEST_F(Engine, BarrierAndShuffleWaitForEachOther) {
  Pinned<int> out(32);
  for (int seed = 1; seed <= kSeeds; ++seed) {
    set_schedule_seed(static_cast<uint64_t>(seed));
    const std::string text = outcome(barrier_or_shuffle_kernel, 1, 32, 0, out.get());
    EXPECT_THAT(text,
                AllOf(HasSubstr("a shuffle"), HasSubstr("__syncthreads"),
                      HasSubstr(here(kBarrierOrShuffle)), HasSubstr(here(kBarrierOrShuffle + 2))));
  }
}

constexpr int kExited = __LINE__ + 3;
__global__ void exited_kernel(int* out) {
  if (threadIdx.x == 5) return;
  out[threadIdx.x] = __shfl_xor_sync(kWholeWarp, 1, 2);
}

TEST_F(Engine, ShuffleWithAnExitedLane) {
  Pinned<int> out(32);
  std::set<bool> before;
  for (int seed = 1; seed <= kSeeds; ++seed) {
    set_schedule_seed(static_cast<uint64_t>(seed));
    const std::string text = outcome(exited_kernel, 1, 32, 0, out.get());
    EXPECT_THAT(text, AllOf(HasSubstr("exited"), HasSubstr(here(kExited))));
    const bool was_before = text.find("names lane 5, which exited before") != std::string::npos;
    before.insert(was_before);
    if (!was_before) {
      EXPECT_THAT(text, AllOf(HasSubstr("thread (5,0,0): exited while"), HasSubstr("for it")));
    }
  }
  EXPECT_EQ(before.size(), 2u);
}

__global__ void wrong_mask_kernel(int* out, int which) {
  const int lane = static_cast<int>(threadIdx.x);
  int x = lane;
  if (which == 0) x = __shfl_xor_sync(0xfffffffeu, x, 1);
  if (which == 1) x = __shfl_xor_sync(lane < 16 ? 0x0000ffffu : kWholeWarp, x, 1);
  if (which == 2) x = __shfl_down_sync(lane < 16 ? 0x0000ffffu : 0xffff0000u, x, 1);
  if (which == 3) x = __shfl_sync(kWholeWarp, x, 0, 12);
  if (which == 4 && lane < 3) __syncwarp(lane == 0 ? 3u : lane == 1 ? 6u : 5u);
  if (which == 5 && lane % 2) x = __shfl_sync(kWholeWarp, x, 0);
  if (which == 5 && lane % 2 == 0) x = __shfl_sync(kWholeWarp, x, 0);
  if (which == 7) x = __shfl_sync(lane % 2 ? 0xbfffffffu : kWholeWarp, x, 0);
  out[lane] = x;
}

TEST_F(Engine, WrongMasks) {
  Pinned<int> out(32);
  EXPECT_THAT(outcome(wrong_mask_kernel, 1, 32, 0, out.get(), 0),
              HasSubstr("by a lane that its mask leaves out"));
  EXPECT_THAT(outcome(wrong_mask_kernel, 1, 32, 0, out.get(), 1), HasSubstr("a shuffle"));
  EXPECT_THAT(outcome(wrong_mask_kernel, 1, 32, 0, out.get(), 7), HasSubstr("with another mask"));
  EXPECT_THAT(outcome(wrong_mask_kernel, 1, 32, 0, out.get(), 2),
              HasSubstr("lane 15 reads lane 16, which the mask leaves out"));
  EXPECT_THAT(outcome(wrong_mask_kernel, 1, 32, 0, out.get(), 3), HasSubstr("power of two"));
  EXPECT_THAT(outcome(wrong_mask_kernel, 1, 32, 0, out.get(), 4),
              AllOf(HasSubstr("that never come"), HasSubstr("lane 0 at __syncwarp"),
                    HasSubstr("for lane 1"), HasSubstr("lane 2 at __syncwarp")));
  EXPECT_THAT(outcome(wrong_mask_kernel, 1, 32, 0, out.get(), 5),
              HasSubstr("for this lane at a shuffle"));
  EXPECT_THAT(outcome(wrong_mask_kernel, 1, 20, 0, out.get(), 1),
              HasSubstr("lanes 20-31, which the block does not have"));
  EXPECT_EQ(outcome(wrong_mask_kernel, 1, 32, 0, out.get(), 6), "");
}

constexpr int kSomeAtBarrier = __LINE__ + 3;
__global__ void lost_warp_kernel(int* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else if (threadIdx.x == 32) {
    __syncwarp(3u);
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}

TEST_F(Engine, AWarpsBarrierAndTheBlocks) {
  Pinned<int> out(64);
  for (int seed = 1; seed <= kSeeds; ++seed) {
    set_schedule_seed(static_cast<uint64_t>(seed));
    EXPECT_NE(outcome(lost_warp_kernel, 1, 64, 0, out.get()), "") << kSomeAtBarrier;
  }
}

__global__ void trap_kernel(int) { __trap(); }

TEST_F(Engine, TrapAndTheNextLaunch) {
  EXPECT_THAT(outcome(trap_kernel, dim3(2, 3, 1), 1, 0, 0), HasSubstr("__trap()"));
  Pinned<int> in(32, 7), out(32);
  EXPECT_EQ(outcome(rotate_kernel, 1, 32, 128, in.get(), out.get(), 3), "");
  EXPECT_EQ(out.values(), std::vector<int>(32, 7));
}

}  // namespace
}  // namespace heirloom::cuda
