// SPDX-License-Identifier: Apache-2.0
//
// The emulator's runtime: what CUDA promises holds, and what it does not promise is seen to fail.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "tests/cuda_emulator/src/memory.h"

namespace {

using heirloom::emulator::last_failure;
using heirloom::emulator::reset_runtime;
using heirloom::emulator::set_seed;

__global__ void add_kernel(float* x, int n, float value) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) x[i] += value;
}
__global__ void scale_kernel(float* x, int n, float value) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) x[i] *= value;
}
__global__ void write_at_kernel(float* x, int64_t at) { x[at] = 1; }
__global__ void read_at_kernel(const float* x, int64_t at, float* out) { out[0] = x[at]; }
struct Large {
  unsigned char bytes[32764];
};
struct TooLarge {
  unsigned char bytes[32768];
};
__global__ void large_kernel(const __grid_constant__ Large p, unsigned char* out) {
  out[0] = p.bytes[32763];
}
__global__ void too_large_kernel(const __grid_constant__ TooLarge p, unsigned char* out) {
  out[0] = p.bytes[0];
}
template <class T>
__global__ void typed_kernel(T* x) {
  x[1 << 20] = T{};
}

template <class... P, class... A>
cudaError_t start(void (*kernel)(P...), dim3 grid, dim3 block, cudaStream_t stream, A... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, args...);
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

#define ASSERT_OK(call) ASSERT_EQ(cudaSuccess, call) << cudaGetErrorString(cudaPeekAtLastError())

class RuntimeTest : public testing::Test {
 protected:
  void SetUp() override {
    reset_runtime();
    set_seed(1);
    ASSERT_OK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    ASSERT_OK(cudaStreamCreateWithFlags(&other_, cudaStreamNonBlocking));
    ASSERT_OK(cudaMalloc(&data_, kBytes));
    ASSERT_OK(cudaMallocHost(&pinned_, kBytes));
    for (int i = 0; i < kCount; ++i) pinned_[i] = static_cast<float>(i);
  }
  void TearDown() override {
    reset_runtime();
    EXPECT_EQ(cudaSuccess, cudaFree(data_));
    EXPECT_EQ(cudaSuccess, cudaFreeHost(pinned_));
    EXPECT_EQ(cudaSuccess, cudaStreamDestroy(stream_));
    EXPECT_EQ(cudaSuccess, cudaStreamDestroy(other_));
    reset_runtime();
  }
  void zero() {
    ASSERT_OK(cudaMemsetAsync(data_, 0, kBytes, stream_));
    ASSERT_OK(cudaStreamSynchronize(stream_));
  }
  std::vector<float> values() {
    std::vector<float> host(kCount);
    EXPECT_EQ(cudaSuccess,
              cudaMemcpyAsync(host.data(), data_, kBytes, cudaMemcpyDeviceToHost, stream_));
    return host;
  }
  cudaError_t add(float value, cudaStream_t stream) {
    return start(add_kernel, 4, 256, stream, data_, kCount, value);
  }

  static constexpr int kCount = 1000;
  static constexpr size_t kBytes = kCount * sizeof(float);
  cudaStream_t stream_ = nullptr, other_ = nullptr;
  float* data_ = nullptr;
  float* pinned_ = nullptr;
};

TEST_F(RuntimeTest, DescribesAnEmulatedDevice) {
  int count = 0, value = 0;
  ASSERT_OK(cudaGetDeviceCount(&count));
  EXPECT_EQ(1, count);
  cudaDeviceProp properties;
  ASSERT_OK(cudaGetDeviceProperties(&properties, 0));
  EXPECT_EQ(std::string("emulated CUDA device"), properties.name);
  EXPECT_EQ(9, properties.major);
  EXPECT_EQ(227u << 10, properties.sharedMemPerBlockOptin);
  ASSERT_OK(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, 0));
  EXPECT_EQ(132, value);
  EXPECT_EQ(cudaErrorInvalidDevice, cudaSetDevice(1));
  EXPECT_EQ(cudaErrorInvalidDevice, cudaPeekAtLastError());
  EXPECT_EQ(cudaErrorInvalidDevice, cudaGetLastError());
  EXPECT_EQ(cudaSuccess, cudaGetLastError());
  EXPECT_EQ(std::string("cudaErrorInvalidDevice"), cudaGetErrorName(cudaErrorInvalidDevice));
  EXPECT_EQ(std::string("invalid device ordinal"), cudaGetErrorString(cudaErrorInvalidDevice));
}

TEST_F(RuntimeTest, NewMemoryIsAlignedAndNotANumber) {
  EXPECT_EQ(0u, reinterpret_cast<uintptr_t>(data_) % 256);
  for (const float x : values()) ASSERT_TRUE(std::isnan(x));
}

TEST_F(RuntimeTest, KernelsRunInTheirStreamsOrder) {
  zero();
  ASSERT_OK(add(3, stream_));
  ASSERT_OK(start(scale_kernel, 4, 256, stream_, data_, kCount, 2.0f));
  ASSERT_OK(add(1, stream_));
  for (const float x : values()) ASSERT_EQ(7, x);
}

TEST_F(RuntimeTest, WorkWaitsForASynchronisation) {
  zero();
  ASSERT_OK(add(3, stream_));
  ASSERT_OK(cudaMemcpyAsync(pinned_, data_, kBytes, cudaMemcpyDeviceToHost, stream_));
  EXPECT_EQ(999, pinned_[999]) << "pinned memory is written when the stream comes to it";
  ASSERT_OK(cudaStreamSynchronize(stream_));
  EXPECT_EQ(3, pinned_[999]);
}

TEST_F(RuntimeTest, ArgumentsAreCopiedAtTheLaunch) {
  zero();
  {
    float value = 5;
    ASSERT_OK(add(value, stream_));
    value = 7;
    static_cast<void>(value);
  }
  EXPECT_EQ(5, values()[0]);
}

TEST_F(RuntimeTest, PinnedMemoryReusedTooEarlyShows) {
  ASSERT_OK(cudaMemcpyAsync(data_, pinned_, kBytes, cudaMemcpyHostToDevice, stream_));
  pinned_[5] = -1;
  EXPECT_EQ(-1, values()[5]);
}

TEST_F(RuntimeTest, PageableMemoryMayBeReusedAtOnce) {
  std::vector<float> host(kCount, 4.0f);
  ASSERT_OK(cudaMemcpyAsync(data_, host.data(), kBytes, cudaMemcpyHostToDevice, stream_));
  host.assign(kCount, 9.0f);
  EXPECT_EQ(4, values()[5]);
}

TEST_F(RuntimeTest, StreamsAreNotOrderedWithoutAnEvent) {
  std::set<float> without, with;
  cudaEvent_t event;
  ASSERT_OK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  for (uint64_t seed = 1; seed <= 24; ++seed) {
    set_seed(seed);
    zero();
    ASSERT_OK(add(3, stream_));
    ASSERT_OK(cudaMemcpyAsync(pinned_, data_, kBytes, cudaMemcpyDeviceToHost, other_));
    ASSERT_OK(cudaDeviceSynchronize());
    without.insert(pinned_[0]);

    zero();
    ASSERT_OK(add(3, stream_));
    ASSERT_OK(cudaEventRecord(event, stream_));
    ASSERT_OK(cudaStreamWaitEvent(other_, event));
    ASSERT_OK(cudaMemcpyAsync(pinned_, data_, kBytes, cudaMemcpyDeviceToHost, other_));
    ASSERT_OK(cudaStreamSynchronize(other_));
    with.insert(pinned_[0]);
  }
  EXPECT_EQ((std::set<float>{0, 3}), without);
  EXPECT_EQ((std::set<float>{3}), with);
  ASSERT_OK(cudaEventDestroy(event));
}

TEST_F(RuntimeTest, TheLegacyStreamIsOrderedWithBlockingStreamsOnly) {
  cudaStream_t blocking;
  ASSERT_OK(cudaStreamCreate(&blocking));
  std::set<float> ordered, unordered;
  for (uint64_t seed = 1; seed <= 24; ++seed) {
    set_seed(seed);
    zero();
    ASSERT_OK(add(3, blocking));
    ASSERT_OK(cudaMemcpy(pinned_, data_, kBytes, cudaMemcpyDeviceToHost));
    ordered.insert(pinned_[0]);
    ASSERT_OK(start(add_kernel, 4, 256, nullptr, data_, kCount, 1.0f));
    ASSERT_OK(cudaMemcpyAsync(pinned_, data_, kBytes, cudaMemcpyDeviceToHost, blocking));
    ASSERT_OK(cudaStreamSynchronize(blocking));
    ordered.insert(pinned_[0]);

    zero();
    ASSERT_OK(add(3, stream_));
    ASSERT_OK(cudaMemcpy(pinned_, data_, kBytes, cudaMemcpyDeviceToHost));
    unordered.insert(pinned_[0]);
    ASSERT_OK(cudaDeviceSynchronize());
  }
  EXPECT_EQ((std::set<float>{3, 4}), ordered);
  EXPECT_EQ((std::set<float>{0, 3}), unordered);
  ASSERT_OK(cudaStreamDestroy(blocking));
}

TEST_F(RuntimeTest, ADestroyedStreamsWorkStillRuns) {
  zero();
  cudaStream_t brief;
  ASSERT_OK(cudaStreamCreateWithFlags(&brief, cudaStreamNonBlocking));
  ASSERT_OK(add(2, brief));
  ASSERT_OK(cudaStreamDestroy(brief));
  EXPECT_EQ(cudaErrorInvalidResourceHandle, add(2, brief));
  ASSERT_OK(cudaDeviceSynchronize());
  EXPECT_EQ(2, values()[0]);
}

TEST_F(RuntimeTest, EventsModelTimeAlikeInEveryRun) {
  cudaEvent_t begin, end, untimed;
  ASSERT_OK(cudaEventCreate(&begin));
  ASSERT_OK(cudaEventCreate(&end));
  ASSERT_OK(cudaEventCreateWithFlags(&untimed, cudaEventDisableTiming));
  zero();
  std::set<float> times;
  for (int run = 0; run < 3; ++run) {
    ASSERT_OK(cudaEventRecord(begin, stream_));
    ASSERT_OK(add(1, stream_));
    ASSERT_OK(cudaEventRecord(end, stream_));
    float milliseconds = -1;
    EXPECT_EQ(cudaErrorNotReady, cudaEventElapsedTime(&milliseconds, begin, end));
    int questions = 0;
    while (cudaEventQuery(end) == cudaErrorNotReady) ASSERT_LT(++questions, 100);
    ASSERT_OK(cudaEventElapsedTime(&milliseconds, begin, end));
    EXPECT_GT(milliseconds, 0);
    times.insert(milliseconds);
  }
  EXPECT_EQ(1u, times.size());
  ASSERT_OK(cudaEventRecord(untimed, stream_));
  ASSERT_OK(cudaEventSynchronize(untimed));
  float milliseconds;
  EXPECT_EQ(cudaErrorInvalidResourceHandle, cudaEventElapsedTime(&milliseconds, begin, untimed));
  for (cudaEvent_t event : {begin, end, untimed}) ASSERT_OK(cudaEventDestroy(event));
}

TEST_F(RuntimeTest, CopiesAreChecked) {
  std::vector<float> host(kCount);
  EXPECT_EQ(cudaErrorInvalidValue,
            cudaMemcpyAsync(data_, host.data(), kBytes + 4, cudaMemcpyHostToDevice, stream_));
  EXPECT_EQ(cudaErrorInvalidValue,
            cudaMemcpyAsync(host.data(), data_, kBytes, cudaMemcpyHostToDevice, stream_));
  EXPECT_EQ(cudaErrorInvalidValue, cudaMemsetAsync(host.data(), 0, 4, stream_));
  EXPECT_EQ(cudaSuccess, cudaMemcpyAsync(data_, host.data(), kBytes, cudaMemcpyDefault, stream_));
  EXPECT_EQ(cudaErrorInvalidValue, cudaFree(data_ + 1));
}

TEST_F(RuntimeTest, MemoryEnds) {
  size_t before = 0, after = 0, total = 0;
  ASSERT_OK(cudaMemGetInfo(&before, &total));
  void* more = nullptr;
  ASSERT_OK(cudaMalloc(&more, 1 << 20));
  ASSERT_OK(cudaMemGetInfo(&after, &total));
  EXPECT_EQ(before - (1 << 20), after);
  ASSERT_OK(cudaFree(more));
  EXPECT_EQ(cudaErrorMemoryAllocation, cudaMalloc(&more, total + 1));
  EXPECT_EQ(nullptr, more);
  EXPECT_EQ(cudaErrorMemoryAllocation, cudaGetLastError());
  EXPECT_EQ(cudaSuccess, cudaFree(nullptr));
}

TEST_F(RuntimeTest, LaunchesBeyondTheDevicesLimitsAreRefused) {
  EXPECT_EQ(cudaErrorInvalidConfiguration, start(add_kernel, 1, 1025, stream_, data_, 1, 1.0f));
  EXPECT_EQ(cudaErrorInvalidConfiguration, start(add_kernel, 1, 0, stream_, data_, 1, 1.0f));
  EXPECT_EQ(cudaErrorInvalidConfiguration, start(add_kernel, 0, 32, stream_, data_, 1, 1.0f));
  EXPECT_EQ(cudaErrorInvalidConfiguration,
            start(add_kernel, dim3(1, 65536), 32, stream_, data_, 1, 1.0f));
  EXPECT_EQ(cudaErrorInvalidConfiguration,
            start(add_kernel, 1, dim3(1, 1, 65), stream_, data_, 1, 1.0f));
  EXPECT_EQ(cudaErrorInvalidConfiguration, cudaGetLastError());

  cudaLaunchConfig_t config{};
  config.gridDim = config.blockDim = 1;
  config.stream = stream_;
  config.dynamicSmemBytes = 49 << 10;
  EXPECT_EQ(cudaErrorInvalidValue, cudaLaunchKernelEx(&config, scale_kernel, data_, 1, 1.0f));
  EXPECT_EQ(cudaErrorInvalidValue,
            cudaFuncSetAttribute(scale_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 (227 << 10) + 1));
  ASSERT_OK(
      cudaFuncSetAttribute(scale_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 << 10));
  EXPECT_EQ(cudaSuccess, cudaLaunchKernelEx(&config, scale_kernel, data_, 1, 1.0f));
  int blocks = 0;
  ASSERT_OK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, scale_kernel, 256, 100 << 10));
  EXPECT_EQ(2, blocks);
}

TEST_F(RuntimeTest, ArgumentsMayTakeAlmost32KB) {
  auto* bytes = reinterpret_cast<unsigned char*>(data_);
  TooLarge too_large{};
  Large large{};
  large.bytes[32763] = 42;
  EXPECT_EQ(cudaErrorInvalidValue, start(too_large_kernel, 1, 1, stream_, too_large, bytes));
  EXPECT_EQ(cudaErrorInvalidValue, start(large_kernel, 1, 1, stream_, large, bytes))
      << "the pointer behind it is too much";
}

// Memory errors

TEST_F(RuntimeTest, TheHostCannotTouchDeviceMemory) {
  zero();
  EXPECT_DEATH(data_[3] = 1, "device memory touched by the host: byte 12 of device allocation #");
  EXPECT_DEATH(data_[kCount + 100] = 1, "touched by the host: 400 bytes past the end of device");
  float* gone;
  ASSERT_OK(cudaMalloc(&gone, 64));
  ASSERT_OK(cudaFree(gone));
  EXPECT_DEATH(gone[0] = 1, "touched by the host: byte 0 of freed device allocation #");
}

TEST_F(RuntimeTest, AnOverrunIsFoundAfterItsKernel) {
  ASSERT_OK(start(write_at_kernel, 1, 1, stream_, data_, int64_t{kCount}));
  EXPECT_EQ(cudaErrorIllegalAddress, cudaStreamSynchronize(stream_));
  EXPECT_TRUE(contains(last_failure(), "(4000 bytes) was overrun: the byte 0 past its end"));
  EXPECT_TRUE(contains(last_failure(), "found after write_at_kernel"));
  EXPECT_TRUE(contains(cudaGetErrorString(cudaErrorIllegalAddress),
                       "an illegal memory access was encountered: device allocation #"));
  // The context is lost.
  EXPECT_EQ(cudaErrorIllegalAddress, add(1, stream_));
  EXPECT_EQ(cudaErrorIllegalAddress, cudaGetLastError());
  EXPECT_EQ(cudaErrorIllegalAddress, cudaGetLastError());
  reset_runtime();
  zero();
  EXPECT_EQ(0, values()[0]);
}

TEST_F(RuntimeTest, AnUnderrunIsFoundAfterItsKernel) {
  float* small;
  ASSERT_OK(cudaMalloc(&small, 64));
  ASSERT_OK(start(write_at_kernel, 1, 1, stream_, small, int64_t{-1}));
  EXPECT_EQ(cudaErrorIllegalAddress, cudaStreamSynchronize(stream_));
  EXPECT_TRUE(contains(last_failure(), "was underrun: the byte 4 before its beginning"));
  reset_runtime();
  ASSERT_OK(cudaFree(small));
}

TEST_F(RuntimeTest, AStrayAccessNamesKernelThreadAndPlace) {
  ASSERT_OK(start(read_at_kernel, 1, 1, stream_, static_cast<const float*>(data_),
                  int64_t{kCount + 64}, data_));
  EXPECT_EQ(cudaErrorIllegalAddress, cudaStreamSynchronize(stream_));
  EXPECT_TRUE(contains(last_failure(), "kernel read_at_kernel, block ")) << last_failure();
  EXPECT_TRUE(contains(last_failure(), "256 bytes past the end of device allocation #"));
  reset_runtime();
  ASSERT_OK(start(typed_kernel<float>, 1, 1, stream_, data_));
  EXPECT_EQ(cudaErrorIllegalAddress, cudaStreamSynchronize(stream_));
  EXPECT_TRUE(contains(last_failure(), "kernel typed_kernel<float>")) << last_failure();
}

TEST_F(RuntimeTest, MemoryInUseAfterItsReleaseIsFound) {
  float* gone;
  ASSERT_OK(cudaMalloc(&gone, 64));
  ASSERT_OK(cudaFree(gone));
  ASSERT_OK(start(write_at_kernel, 1, 1, stream_, gone, int64_t{2}));
  EXPECT_EQ(cudaErrorIllegalAddress, cudaStreamSynchronize(stream_));
  EXPECT_TRUE(contains(last_failure(), "byte 8 of freed device allocation #")) << last_failure();
  reset_runtime();

  float* pinned;
  ASSERT_OK(cudaMallocHost(&pinned, 64));
  ASSERT_OK(cudaMemcpyAsync(data_, pinned, 64, cudaMemcpyHostToDevice, stream_));
  ASSERT_OK(cudaFreeHost(pinned));
  EXPECT_EQ(cudaErrorIllegalAddress, cudaStreamSynchronize(stream_));
  EXPECT_TRUE(contains(last_failure(), "byte 0 of freed pinned allocation #")) << last_failure();
}

TEST_F(RuntimeTest, AnOverrunByTheHostIsFoundAtTheRelease) {
  float* pinned;
  ASSERT_OK(cudaMallocHost(&pinned, 60));
  reinterpret_cast<volatile unsigned char*>(pinned)[60] = 1;
  EXPECT_EQ(cudaErrorIllegalAddress, cudaFreeHost(pinned));
  EXPECT_TRUE(contains(last_failure(), "pinned allocation #")) << last_failure();
  EXPECT_TRUE(contains(last_failure(), "found when it was freed")) << last_failure();
}

TEST_F(RuntimeTest, TheRegistryKnowsAddresses) {
  using namespace heirloom::emulator;
  const Allocation* a = find_allocation(data_ + 10);
  ASSERT_NE(nullptr, a);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(data_), a->base);
  EXPECT_TRUE(in_allocation(data_, kBytes));
  EXPECT_FALSE(in_allocation(data_ + 1, kBytes));
  int local = 0;
  EXPECT_EQ(nullptr, find_allocation(&local));
  cudaPointerAttributes attributes;
  ASSERT_OK(cudaPointerGetAttributes(&attributes, data_));
  EXPECT_EQ(cudaMemoryTypeDevice, attributes.type);
  ASSERT_OK(cudaPointerGetAttributes(&attributes, &local));
  EXPECT_EQ(cudaMemoryTypeUnregistered, attributes.type);
}

// Graphs

TEST_F(RuntimeTest, AGraphReplaysWhatWasCaptured) {
  zero();
  ASSERT_OK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal));
  cudaStreamCaptureStatus status;
  ASSERT_OK(cudaStreamIsCapturing(stream_, &status));
  EXPECT_EQ(cudaStreamCaptureStatusActive, status);
  ASSERT_OK(add(0.1f, stream_));
  ASSERT_OK(start(scale_kernel, 4, 256, stream_, data_, kCount, 1.7f));
  cudaGraph_t graph;
  ASSERT_OK(cudaStreamEndCapture(stream_, &graph));
  EXPECT_EQ(0, values()[0]) << "nothing ran";
  size_t nodes = 0;
  ASSERT_OK(cudaGraphGetNodes(graph, nullptr, &nodes));
  EXPECT_EQ(2u, nodes);
  cudaGraphExec_t executable;
  ASSERT_OK(cudaGraphInstantiate(&executable, graph));
  ASSERT_OK(cudaGraphDestroy(graph));

  for (int i = 0; i < 3; ++i) ASSERT_OK(cudaGraphLaunch(executable, stream_));
  const std::vector<float> replayed = values();
  zero();
  for (int i = 0; i < 3; ++i) {
    ASSERT_OK(add(0.1f, stream_));
    ASSERT_OK(start(scale_kernel, 4, 256, stream_, data_, kCount, 1.7f));
  }
  EXPECT_EQ(values(), replayed);

  ASSERT_OK(cudaGraphLaunch(executable, stream_));
  ASSERT_OK(cudaMemcpyAsync(pinned_, data_, kBytes, cudaMemcpyDeviceToHost, stream_));
  EXPECT_EQ(999, pinned_[999]) << "a launch is queued as all work is";
  ASSERT_OK(cudaGraphExecDestroy(executable));
  ASSERT_OK(cudaStreamSynchronize(stream_));
  EXPECT_NE(999, pinned_[999]) << "a destroyed graph's pending launches still run";
}

TEST_F(RuntimeTest, BranchesOfAGraphAreOrderedByTheirEventsOnly) {
  cudaEvent_t fork, join;
  ASSERT_OK(cudaEventCreateWithFlags(&fork, cudaEventDisableTiming));
  ASSERT_OK(cudaEventCreateWithFlags(&join, cudaEventDisableTiming));
  ASSERT_OK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal));
  ASSERT_OK(cudaMemsetAsync(data_, 0, kBytes, stream_));
  ASSERT_OK(cudaEventRecord(fork, stream_));
  ASSERT_OK(cudaStreamWaitEvent(other_, fork));
  ASSERT_OK(add(1, other_));
  ASSERT_OK(start(scale_kernel, 4, 256, stream_, data_, kCount, 2.0f));
  ASSERT_OK(cudaEventRecord(join, other_));
  ASSERT_OK(cudaStreamWaitEvent(stream_, join));
  ASSERT_OK(add(10, stream_));
  cudaGraph_t graph;
  ASSERT_OK(cudaStreamEndCapture(stream_, &graph));
  cudaStreamCaptureStatus status;
  ASSERT_OK(cudaStreamIsCapturing(other_, &status));
  EXPECT_EQ(cudaStreamCaptureStatusNone, status);
  cudaGraphExec_t executable;
  ASSERT_OK(cudaGraphInstantiate(&executable, graph));
  std::set<float> seen;
  for (uint64_t seed = 1; seed <= 24; ++seed) {
    set_seed(seed);
    ASSERT_OK(cudaGraphLaunch(executable, stream_));
    seen.insert(values()[0]);
  }
  EXPECT_EQ((std::set<float>{11, 12}), seen);
  ASSERT_OK(cudaGraphExecDestroy(executable));
  ASSERT_OK(cudaGraphDestroy(graph));
  ASSERT_OK(cudaEventDestroy(fork));
  ASSERT_OK(cudaEventDestroy(join));
}

TEST_F(RuntimeTest, CapturesForbidWhatCudaForbids) {
  const auto expect_invalidated = [&](auto call, cudaError_t expected, const char* what) {
    SCOPED_TRACE(what);
    ASSERT_OK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal));
    EXPECT_EQ(expected, call());
    EXPECT_EQ(cudaErrorStreamCaptureInvalidated, add(1, stream_));
    cudaGraph_t graph;
    EXPECT_EQ(cudaErrorStreamCaptureInvalidated, cudaStreamEndCapture(stream_, &graph));
    EXPECT_EQ(nullptr, graph);
    static_cast<void>(cudaGetLastError());
    ASSERT_OK(cudaStreamSynchronize(stream_));
  };
  void* memory = nullptr;
  cudaEvent_t event, outside;
  ASSERT_OK(cudaEventCreate(&event));
  ASSERT_OK(cudaEventCreate(&outside));
  ASSERT_OK(cudaEventRecord(outside, other_));
  const auto unsupported = cudaErrorStreamCaptureUnsupported;
  expect_invalidated([&] { return cudaMalloc(&memory, 64); }, unsupported, "cudaMalloc");
  expect_invalidated([&] { return cudaMallocHost(&memory, 64); }, unsupported, "cudaMallocHost");
  expect_invalidated([&] { return cudaFree(data_); }, unsupported, "cudaFree");
  expect_invalidated([&] { return cudaStreamSynchronize(stream_); }, unsupported, "synchronize");
  expect_invalidated([&] { return cudaStreamQuery(stream_); }, unsupported, "query");
  expect_invalidated([&] { return cudaDeviceSynchronize(); }, unsupported, "device synchronize");
  expect_invalidated([&] { return cudaMemcpy(pinned_, data_, kBytes, cudaMemcpyDeviceToHost); },
                     unsupported, "cudaMemcpy");
  expect_invalidated([&] { return cudaStreamWaitEvent(stream_, outside); },
                     cudaErrorStreamCaptureIsolation, "an event from outside");
  expect_invalidated(
      [&] {
        EXPECT_EQ(cudaSuccess, cudaEventRecord(event, stream_));
        return cudaEventSynchronize(event);
      },
      cudaErrorCapturedEvent, "a captured event");
  ASSERT_OK(cudaEventDestroy(event));
  ASSERT_OK(cudaEventDestroy(outside));

  cudaStream_t blocking;
  ASSERT_OK(cudaStreamCreate(&blocking));
  ASSERT_OK(cudaStreamBeginCapture(blocking, cudaStreamCaptureModeRelaxed));
  EXPECT_EQ(cudaErrorStreamCaptureImplicit, add(1, nullptr)) << "the legacy stream would wait";
  cudaGraph_t graph;
  EXPECT_EQ(cudaErrorStreamCaptureInvalidated, cudaStreamEndCapture(blocking, &graph));
  ASSERT_OK(cudaStreamDestroy(blocking));
  EXPECT_EQ(cudaErrorStreamCaptureUnsupported,
            cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal));
  EXPECT_EQ(cudaErrorIllegalState, cudaStreamEndCapture(stream_, &graph));
}

TEST_F(RuntimeTest, RelaxedCapturesAllowAllocation) {
  ASSERT_OK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed));
  void* memory = nullptr;
  EXPECT_EQ(cudaSuccess, cudaMalloc(&memory, 64));
  EXPECT_EQ(cudaSuccess, cudaFree(memory));
  cudaGraph_t graph;
  ASSERT_OK(cudaStreamEndCapture(stream_, &graph));
  ASSERT_OK(cudaGraphDestroy(graph));
}

TEST_F(RuntimeTest, AForkMustBeJoined) {
  cudaEvent_t event;
  ASSERT_OK(cudaEventCreate(&event));
  ASSERT_OK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal));
  ASSERT_OK(cudaEventRecord(event, stream_));
  ASSERT_OK(cudaStreamWaitEvent(other_, event));
  ASSERT_OK(add(1, other_));
  cudaGraph_t graph;
  EXPECT_EQ(cudaErrorStreamCaptureUnmatched, cudaStreamEndCapture(other_, &graph));
  EXPECT_EQ(cudaErrorStreamCaptureInvalidated, cudaStreamEndCapture(stream_, &graph));

  ASSERT_OK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal));
  ASSERT_OK(cudaEventRecord(event, stream_));
  ASSERT_OK(cudaStreamWaitEvent(other_, event));
  ASSERT_OK(add(1, other_));
  EXPECT_EQ(cudaErrorStreamCaptureUnjoined, cudaStreamEndCapture(stream_, &graph));
  ASSERT_OK(cudaEventDestroy(event));
}

TEST_F(RuntimeTest, AFailureInAGraphEndsIt) {
  ASSERT_OK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal));
  ASSERT_OK(start(write_at_kernel, 1, 1, stream_, data_, int64_t{kCount}));
  ASSERT_OK(cudaMemsetAsync(data_, 0, kBytes, stream_));
  cudaGraph_t graph;
  ASSERT_OK(cudaStreamEndCapture(stream_, &graph));
  cudaGraphExec_t executable;
  ASSERT_OK(cudaGraphInstantiate(&executable, graph));
  ASSERT_OK(cudaGraphLaunch(executable, stream_));
  EXPECT_EQ(cudaErrorIllegalAddress, cudaStreamSynchronize(stream_));
  EXPECT_TRUE(contains(last_failure(), "found after write_at_kernel"));
  reset_runtime();
  ASSERT_OK(cudaGraphExecDestroy(executable));
  ASSERT_OK(cudaGraphDestroy(graph));
}

}  // namespace
