// SPDX-License-Identifier: Apache-2.0
//
// The engine keeps CUDA's rules of memory: where it ends, how it is aligned, when a copy is done.
#include <set>

#include "kernels/cuda/common/vector.cuh"
#include "tests/cuda_emulator/engine_fixture.h"

namespace heirloom::cuda {
namespace {

using emulator::set_schedule_seed;
using testing::AllOf;
using testing::HasSubstr;

// ---- shared memory ----

__global__ void touch_shared_kernel(int byte, bool write, int* out) {
  DYN_SMEM(shared);
  if (threadIdx.x == 3) {
    if (write) {
      *static_cast<volatile unsigned char*>(shared + byte) = 1;
    } else {
      out[0] = *static_cast<volatile unsigned char*>(shared + byte);
    }
  }
}

TEST_F(Engine, DynamicSharedMemoryEndsWhereItShould) {
  Pinned<int> out(1);
  EXPECT_EQ(outcome(touch_shared_kernel, 1, 32, 1000, 999, true, out.get()), "");
  EXPECT_NE(outcome(touch_shared_kernel, 1, 32, 1000, 1000, true, out.get()), "");
  EXPECT_NE(outcome(touch_shared_kernel, 1, 32, 1000, -1, true, out.get()), "");
  EXPECT_THAT(outcome(touch_shared_kernel, 1, 32, 1024, 1024, true, out.get()),
              HasSubstr("dynamic shared memory"));
  EXPECT_THAT(outcome(touch_shared_kernel, 1, 32, 1024, 1030, false, out.get()),
              AllOf(HasSubstr("dynamic shared memory"), HasSubstr("touch_shared_kernel"),
                    HasSubstr("thread (3,0,0)")));
  EXPECT_NE(outcome(touch_shared_kernel, 1, 32, 0, 0, true, out.get()), "");
}

__global__ void stale_shared_kernel(uint32_t* out, bool fill) {
  DYN_SMEM(bytes);
  auto* shared = reinterpret_cast<volatile uint32_t*>(bytes);
  out[blockIdx.x * blockDim.x + threadIdx.x] = shared[threadIdx.x];
  if (fill) shared[threadIdx.x] = 5;
}

TEST_F(Engine, SharedMemoryIsPoisonedBeforeEveryBlock) {
  if (emulator::instrumented()) GTEST_SKIP() << "reading it is an error there";
  Pinned<uint32_t> out(128);
  ASSERT_EQ(outcome(stale_shared_kernel, 4, 32, 128, out.get(), true), "");
  EXPECT_EQ(out.values(), std::vector<uint32_t>(128, 0xffffffffu));
}

// ---- wide accesses and copies ----

__global__ void wide_kernel(const unsigned char* in, unsigned char* out, int bytes) {
  const auto t = static_cast<ptrdiff_t>(threadIdx.x);
  if (bytes == 16) store_16(out + 16 * t, load_16(in + 16 * t));
  if (bytes == 8) store_8(out + 8 * t, load_8(in + 8 * t));
  if (bytes == 4) store_4(out + 4 * t, load_4(in + 4 * t));
  if (bytes == 17) store_16_streaming(out + 16 * t, load_16_streaming(in + 16 * t));
}

TEST_F(Engine, WideAccessesAreAligned) {
  Pinned<unsigned char> in(600), out(600);
  for (size_t i = 0; i < 600; ++i) in[i] = static_cast<unsigned char>(i * 7);
  for (const int bytes : {4, 8, 16, 17}) {
    std::fill_n(out.get(), 600, static_cast<unsigned char>(0));
    ASSERT_EQ(outcome(wide_kernel, 1, 32, 0, in.get(), out.get(), bytes), "");
    const int n = 32 * std::min(bytes, 16);
    EXPECT_TRUE(std::equal(in.get(), in.get() + n, out.get()));
    EXPECT_EQ(out[static_cast<size_t>(n)], 0);
    const int off = std::min(bytes, 16) / 2;
    EXPECT_THAT(outcome(wide_kernel, 1, 32, 0, in.get() + off, out.get(), bytes),
                AllOf(HasSubstr("a load of"), HasSubstr("not aligned")));
    EXPECT_THAT(outcome(wide_kernel, 1, 32, 0, in.get(), out.get() + off, bytes),
                AllOf(HasSubstr("a store of"), HasSubstr("not aligned")));
  }
}

__global__ void outside_kernel(const float* in, float* out) { out[threadIdx.x] = in[threadIdx.x]; }
__global__ void outside_wide_kernel(const float* in, float* out) {
  store_16(out + 4 * threadIdx.x, load_16(in + 4 * threadIdx.x));
}

TEST_F(Engine, GlobalMemoryEndsWhereItShould) {
  Pinned<float> out(256);
  float* in = nullptr;
  ASSERT_EQ(cudaMalloc(&in, 512), cudaSuccess);
  ASSERT_EQ(cudaMemset(in, 0, 512), cudaSuccess);
  EXPECT_EQ(outcome(outside_kernel, 1, 128, 0, in, out.get()), "");
  EXPECT_EQ(outcome(outside_wide_kernel, 1, 32, 0, in, out.get()), "");
  EXPECT_THAT(outcome(outside_kernel, 1, 130, 0, in, out.get()),
              AllOf(HasSubstr("outside_kernel"), HasSubstr("past the end of")));
  EXPECT_THAT(outcome(outside_wide_kernel, 1, 33, 0, in, out.get()),
              AllOf(HasSubstr("outside_wide_kernel"), HasSubstr("past the end of")));
  EXPECT_EQ(cudaFree(in), cudaSuccess);
}

__global__ void copy_kernel(const float* in, float* out, int n, bool wait) {
  DYN_SMEM(bytes);
  auto* shared = reinterpret_cast<float*>(bytes);
  const int t = static_cast<int>(threadIdx.x);
  cp_async<16>(shared + 4 * t, in + 4 * t, 4 * t < n);
  cp_async_commit();
  if (wait) cp_async_wait<0>();
  __syncthreads();
  for (int i = 0; i < 4; ++i) out[4 * t + i] = shared[(4 * t + i + 32) % 256];
}

TEST_F(Engine, AsynchronousCopiesAreDoneWhenWaitedForAndMayBeLateElse) {
  Pinned<float> in(256), out(256);
  for (size_t i = 0; i < 256; ++i) in[i] = static_cast<float>(i + 1);
  bool early = false, late = false;
  for (int seed = 1; seed <= kSeeds; ++seed) {
    set_schedule_seed(static_cast<uint64_t>(seed));
    ASSERT_EQ(outcome(copy_kernel, 1, 64, 1024, in.get(), out.get(), 200, true), "");
    for (size_t i = 0; i < 256; ++i) {
      const size_t from = (i + 32) % 256;
      ASSERT_EQ(out[i], from < 200 ? in[from] : 0.0f);
    }
    outcome(copy_kernel, 1, 64, 1024, in.get(), out.get(), 200, false);
    for (size_t i = 0; i < 200; ++i) {
      (out[i] == out[i] ? early : late) = true;  // the poison is a NaN
    }
  }
  EXPECT_TRUE(early);
  EXPECT_TRUE(late);
}

__global__ void copy_groups_kernel(const float* in, float* out) {
  DYN_SMEM(bytes);
  auto* shared = reinterpret_cast<float*>(bytes);
  cp_async<4>(shared, in, true);
  cp_async_commit();
  cp_async<8>(shared + 2, in + 2, true);
  cp_async<4>(shared + 4, in + 4, true);
  cp_async_commit();
  cp_async<4>(shared + 5, in + 5, true);  // in no group yet
  cp_async_wait<1>();
  out[0] = shared[0];
  out[1] = static_cast<volatile float*>(shared)[2];
  cp_async_wait<0>();
  out[2] = shared[2];
  out[3] = shared[3];
  out[4] = shared[4];
  out[5] = static_cast<volatile float*>(shared)[5];
  cp_async<4>(shared + 6, nullptr, false);
  cp_async_commit();
  cp_async_commit();
  cp_async_wait<1>();  // an empty group counts
  out[6] = shared[5];
  out[7] = shared[6];
}

TEST_F(Engine, AsynchronousCopiesAreWaitedForInGroups) {
  Pinned<float> in(8, 3.0f);
  bool late_one = false, late_five = false;
  for (int seed = 1; seed <= kSeeds; ++seed) {
    set_schedule_seed(static_cast<uint64_t>(seed));
    Pinned<float> out(8);
    ASSERT_EQ(outcome(copy_groups_kernel, 1, 1, 28, in.get(), out.get()), "");
    for (const size_t i : {0u, 2u, 3u, 4u, 6u}) ASSERT_EQ(out[i], 3.0f) << i;
    ASSERT_EQ(out[7], 0.0f);
    if (out[1] != out[1]) late_one = true;
    if (out[5] != out[5]) late_five = true;
  }
  EXPECT_TRUE(late_one);
  EXPECT_TRUE(late_five);
}

__global__ void overtaken_copy_kernel(float* in, float* out) {
  DYN_SMEM(bytes);
  auto* shared = reinterpret_cast<float*>(bytes);
  cp_async<4>(shared, in, true);
  cp_async_commit();
  *static_cast<volatile float*>(in) = 2.0f;
  cp_async_wait<0>();
  *out = shared[0];
}

TEST_F(Engine, AsynchronousCopiesReadWhenTheyMove) {
  std::set<float> seen;
  for (int seed = 1; seed <= kSeeds; ++seed) {
    set_schedule_seed(static_cast<uint64_t>(seed));
    Pinned<float> in(1, 1.0f), out(1);
    outcome(overtaken_copy_kernel, 1, 1, 4, in.get(), out.get());
    seen.insert(out[0]);
  }
  EXPECT_EQ(seen, (std::set<float>{1.0f, 2.0f}));
}

__global__ void wrong_copy_kernel(const unsigned char* in, int to, int from, uint32_t* out) {
  DYN_SMEM(shared);
  cp_async<16>(shared + to, in + from, true);
  cp_async_commit();
  cp_async_wait<0>();
  out[0] = shared[to];
}
__global__ void wrong_matrix_kernel(int row, const unsigned char* global, uint32_t* out) {
  DYN_SMEM(shared);
  for (unsigned i = threadIdx.x; i < 512; i += 32) shared[i] = 0;
  __syncwarp();
  const Fragment4 f =
      ldmatrix_x4(threadIdx.x == 9 ? (global ? global : shared + row) : shared + 16 * threadIdx.x);
  out[threadIdx.x] = f.x[0];
}

TEST_F(Engine, CopiesAndMatricesAreAlignedAndInSharedMemory) {
  Pinned<unsigned char> in(256);
  Pinned<uint32_t> out(32);
  EXPECT_EQ(outcome(wrong_copy_kernel, 1, 1, 64, in.get(), 48, 16, out.get()), "");
  EXPECT_THAT(outcome(wrong_copy_kernel, 1, 1, 64, in.get(), 40, 16, out.get()),
              AllOf(HasSubstr("cp.async to shared"), HasSubstr("not aligned")));
  EXPECT_THAT(outcome(wrong_copy_kernel, 1, 1, 64, in.get(), 16, 8, out.get()),
              AllOf(HasSubstr("cp.async from global"), HasSubstr("not aligned")));
  EXPECT_THAT(outcome(wrong_copy_kernel, 1, 1, 64, in.get(), 64, 16, out.get()),
              AllOf(HasSubstr("cp.async outside"), HasSubstr("0 bytes past the end of 64")));
  EXPECT_THAT(outcome(wrong_copy_kernel, 1, 1, 60, in.get(), 48, 16, out.get()),
              HasSubstr("cp.async outside"));
  EXPECT_THAT(outcome(wrong_copy_kernel, 1, 1, 64, in.get(), 16, 256, out.get()),
              HasSubstr("past the end of"));
  EXPECT_EQ(outcome(wrong_matrix_kernel, 1, 32, 512, 16, nullptr, out.get()), "");
  EXPECT_THAT(
      outcome(wrong_matrix_kernel, 1, 32, 512, 8, nullptr, out.get()),
      AllOf(HasSubstr("a row of ldmatrix"), HasSubstr("not aligned"), HasSubstr("thread (9,0,0)")));
  EXPECT_THAT(outcome(wrong_matrix_kernel, 1, 32, 512, 512, nullptr, out.get()),
              HasSubstr("a row of ldmatrix outside"));
  EXPECT_THAT(outcome(wrong_matrix_kernel, 1, 32, 512, 0, in.get(), out.get()),
              HasSubstr("memory that is not shared"));
}

// ---- packs ----

template <class T, int N>
__global__ void pack_kernel(const T* in, T* out) {
  Pack<T, N> p = load_pack<T, N>(in + N * threadIdx.x);
  for (int i = 0; i < N; ++i) p.x[i] *= 2.0f;
  store_pack<T, N>(out + N * threadIdx.x, p);
}

template <class T, int N>
void check_packs() {
  Pinned<T> in(N * 32), out(N * 32);
  for (size_t i = 0; i < N * 32; ++i) in[i] = T(static_cast<float>(i) - 100.5f);
  ASSERT_EQ(outcome(pack_kernel<T, N>, 1, 32, 0, in.get(), out.get()), "");
  for (size_t i = 0; i < N * 32; ++i) {
    ASSERT_EQ(static_cast<float>(out[i]), static_cast<float>(T(2.0f * static_cast<float>(in[i]))));
  }
}

TEST_F(Engine, PacksOfElements) {
  check_packs<float, 1>();
  check_packs<float, 2>();
  check_packs<float, 4>();
  check_packs<float, 8>();
  check_packs<bfloat16, 1>();
  check_packs<bfloat16, 2>();
  check_packs<bfloat16, 4>();
  check_packs<bfloat16, 8>();
  check_packs<bfloat16, 16>();
}

}  // namespace
}  // namespace heirloom::cuda
