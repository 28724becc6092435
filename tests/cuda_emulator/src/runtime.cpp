// SPDX-License-Identifier: Apache-2.0
#include "emulator/runtime.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>

#include "engine.h"
#include "memory.h"
#include "stream.h"

namespace heirloom::emulator {
namespace {

constexpr int kMultiprocessors = 132;
constexpr size_t kSharedDefault = size_t{48} << 10;
constexpr size_t kSharedOptin = size_t{227} << 10;
constexpr size_t kSharedPerMultiprocessor = size_t{228} << 10;
constexpr size_t kSharedReserved = 1024;
constexpr int kThreadsPerMultiprocessor = 2048;
constexpr int kBlocksPerMultiprocessor = 32;
constexpr size_t kMaxArgumentBytes = 32764;

std::map<const void*, int>& shared_limits() {
  static std::map<const void*, int> limits;
  return limits;
}

size_t shared_limit(const void* kernel) {
  const auto found = shared_limits().find(kernel);
  return found == shared_limits().end()
             ? kSharedDefault
             : std::max(kSharedDefault, static_cast<size_t>(found->second));
}

int blocks_per_multiprocessor(int threads, size_t shared_bytes) {
  const int warps = (threads + 31) / 32;
  const int by_threads = kThreadsPerMultiprocessor / (warps * 32);
  const auto by_shared =
      static_cast<int>(kSharedPerMultiprocessor / (shared_bytes + kSharedReserved));
  return std::min({by_threads, by_shared, kBlocksPerMultiprocessor});
}

// What events see: a launch, then waves of blocks. No statement about any device.
double modelled_nanoseconds(const dim3& grid, const dim3& block, size_t shared_bytes) {
  const double blocks = double(grid.x) * grid.y * grid.z;
  const int threads = static_cast<int>(block.x * block.y * block.z);
  const double resident =
      double(kMultiprocessors) * std::max(1, blocks_per_multiprocessor(threads, shared_bytes));
  return 2000 + 1000 * std::max(1.0, blocks / resident);
}

}  // namespace

cudaError_t prepare_launch(const cudaLaunchConfig_t& config, const KernelLaunch& launch,
                           size_t storage_bytes, void** storage) {
  const Lock lock(runtime().mutex);
  if (runtime().sticky != cudaSuccess) return result(runtime().sticky);
  if (launch.kernel == nullptr) return result(cudaErrorInvalidDeviceFunction);
  if (find_stream(config.stream) == nullptr) return result(cudaErrorInvalidResourceHandle);
  const dim3 &grid = config.gridDim, &block = config.blockDim;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.x > 1024 || block.y > 1024 || block.z > 64) {
    return result(cudaErrorInvalidConfiguration);
  }
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 ||
      grid.z > 65535) {
    return result(cudaErrorInvalidConfiguration);
  }
  if (config.dynamicSmemBytes > shared_limit(launch.kernel)) return result(cudaErrorInvalidValue);
  if (launch.argument_bytes > kMaxArgumentBytes) return result(cudaErrorInvalidValue);
  if (config.numAttrs != 0) return result(cudaErrorNotSupported);
  *storage = allocate_launch_arguments(storage_bytes);
  return cudaSuccess;
}

cudaError_t enqueue_launch(const cudaLaunchConfig_t& config, const KernelLaunch& launch,
                           void* storage) {
  const Lock lock(runtime().mutex);
  const std::shared_ptr<void> arguments(storage, free_launch_arguments);
  const std::string name = kernel_name(launch.kernel);
  LaunchConfig shape;
  shape.grid = config.gridDim;
  shape.block = config.blockDim;
  shape.shared_bytes = config.dynamicSmemBytes;
  return result(submit(
      config.stream,
      make_operation(name,
                     modelled_nanoseconds(config.gridDim, config.blockDim, config.dynamicSmemBytes),
                     [=] {
                       ++runtime().kernels;
                       KernelInfo info;
                       info.name = name;
                       info.function = launch.kernel;
                       run_grid(
                           shape, [=] { launch.call(launch.kernel, arguments.get()); }, info);
                     })));
}

void set_seed(uint64_t seed) {
  const Lock lock(runtime().mutex);
  runtime().seed = runtime().random_state = seed;
  set_schedule_seed(seed);
}
uint64_t seed() { return runtime().seed; }
int64_t kernels_run() { return runtime().kernels; }

}  // namespace heirloom::emulator

using namespace heirloom::emulator;

cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  return result(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device != 0) return result(cudaErrorInvalidDevice);
  *properties = {};
  std::strcpy(properties->name, "emulated CUDA device");
  properties->totalGlobalMem = device_capacity();
  properties->sharedMemPerBlock = kSharedDefault;
  properties->regsPerBlock = 65536;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = 1024;
  properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024;
  properties->maxThreadsDim[2] = 64;
  properties->maxGridSize[0] = 0x7fffffff;
  properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
  properties->major = 9;
  properties->minor = 0;
  properties->multiProcessorCount = kMultiprocessors;
  properties->asyncEngineCount = 3;
  properties->memoryBusWidth = 5120;
  properties->l2CacheSize = 50 << 20;
  properties->maxThreadsPerMultiProcessor = kThreadsPerMultiprocessor;
  properties->sharedMemPerMultiprocessor = kSharedPerMultiprocessor;
  properties->regsPerMultiprocessor = 65536;
  properties->sharedMemPerBlockOptin = kSharedOptin;
  properties->maxBlocksPerMultiProcessor = kBlocksPerMultiprocessor;
  properties->reservedSharedMemPerBlock = kSharedReserved;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp properties;
  const cudaError_t error = cudaGetDeviceProperties(&properties, device);
  if (error != cudaSuccess) return error;
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = properties.maxThreadsPerBlock;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = static_cast<int>(properties.sharedMemPerBlock);
      return cudaSuccess;
    case cudaDevAttrWarpSize:
      *value = properties.warpSize;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = properties.multiProcessorCount;
      return cudaSuccess;
    case cudaDevAttrL2CacheSize:
      *value = properties.l2CacheSize;
      return cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = properties.maxThreadsPerMultiProcessor;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = properties.major;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = properties.minor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(properties.sharedMemPerMultiprocessor);
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(properties.sharedMemPerBlockOptin);
      return cudaSuccess;
  }
  return result(cudaErrorInvalidValue);
}

cudaError_t cudaDeviceSynchronize() {
  const Lock lock(runtime().mutex);
  if (runtime().sticky != cudaSuccess) return result(runtime().sticky);
  const cudaError_t refused = refuse_during_capture();
  if (refused != cudaSuccess) return result(refused);
  run_all();
  return result(runtime().sticky);
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int flags) {
  const Lock lock(runtime().mutex);
  if (runtime().sticky != cudaSuccess) return result(runtime().sticky);
  if (flags > cudaStreamNonBlocking) return result(cudaErrorInvalidValue);
  runtime().streams.push_back(std::make_unique<CUstream_st>());
  *stream = runtime().streams.back().get();
  (*stream)->blocking = flags == cudaStreamDefault;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  const Lock lock(runtime().mutex);
  CUstream_st* stream = find_stream(handle);
  if (stream == nullptr || stream == &runtime().legacy) {
    return result(cudaErrorInvalidResourceHandle);
  }
  if (stream->capture != nullptr) {
    stream->capture->invalid = true;
    stream->capture.reset();
  }
  stream->destroyed = true;  // what is queued still runs
  remove_finished_streams();
  return result(runtime().sticky);
}
cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  const Lock lock(runtime().mutex);
  if (runtime().sticky != cudaSuccess) return result(runtime().sticky);
  CUstream_st* stream = find_stream(handle);
  if (stream == nullptr) return result(cudaErrorInvalidResourceHandle);
  if (stream->capture != nullptr) {
    stream->capture->invalid = true;
    return result(cudaErrorStreamCaptureUnsupported);
  }
  if (stream == &runtime().legacy && any_blocking_capture()) {
    invalidate_blocking_captures();
    return result(cudaErrorStreamCaptureImplicit);
  }
  return result(synchronize_stream(*stream));
}
cudaError_t cudaStreamQuery(cudaStream_t handle) {
  const Lock lock(runtime().mutex);
  if (runtime().sticky != cudaSuccess) return result(runtime().sticky);
  CUstream_st* stream = find_stream(handle);
  if (stream == nullptr) return result(cudaErrorInvalidResourceHandle);
  if (stream->capture != nullptr) {
    stream->capture->invalid = true;
    return result(cudaErrorStreamCaptureUnsupported);
  }
  if (stream->queue.empty()) return cudaSuccess;
  run_one();
  if (runtime().sticky != cudaSuccess) return result(runtime().sticky);
  return cudaErrorNotReady;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned int) {
  const Lock lock(runtime().mutex);
  Runtime& r = runtime();
  if (r.sticky != cudaSuccess) return result(r.sticky);
  CUstream_st* stream = find_stream(handle);
  if (stream == nullptr || !r.events.count(event)) return result(cudaErrorInvalidResourceHandle);
  if (stream->capture != nullptr || event->captured) return result(capture_wait(*stream, *event));
  if (event->latest == nullptr) return cudaSuccess;
  return enqueue(*stream, {QueuedItem::Kind::kWait, nullptr, event->latest, 0});
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int flags) {
  const Lock lock(runtime().mutex);
  if (runtime().sticky != cudaSuccess) return result(runtime().sticky);
  *event = new CUevent_st;
  (*event)->timing = (flags & cudaEventDisableTiming) == 0;
  runtime().events.insert(*event);
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const Lock lock(runtime().mutex);
  if (runtime().events.erase(event) == 0) return result(cudaErrorInvalidResourceHandle);
  delete event;
  return result(runtime().sticky);
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
  const Lock lock(runtime().mutex);
  Runtime& r = runtime();
  if (r.sticky != cudaSuccess) return result(r.sticky);
  CUstream_st* stream = find_stream(handle);
  if (stream == nullptr || !r.events.count(event)) return result(cudaErrorInvalidResourceHandle);
  if (stream->capture != nullptr) return result(capture_record(*stream, *event));
  event->captured = false;
  event->latest = std::make_shared<EventRecord>();
  return enqueue(*stream, {QueuedItem::Kind::kRecord, nullptr, event->latest, 0});
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const Lock lock(runtime().mutex);
  Runtime& r = runtime();
  if (r.sticky != cudaSuccess) return result(r.sticky);
  if (!r.events.count(event)) return result(cudaErrorInvalidResourceHandle);
  if (event->captured) {
    if (const auto capture = event->capture.lock()) capture->invalid = true;
    return result(cudaErrorCapturedEvent);
  }
  const std::shared_ptr<EventRecord> record = event->latest;
  if (record != nullptr) run_until([&] { return record->done; });
  return result(r.sticky);
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  const Lock lock(runtime().mutex);
  Runtime& r = runtime();
  if (r.sticky != cudaSuccess) return result(r.sticky);
  if (!r.events.count(event)) return result(cudaErrorInvalidResourceHandle);
  if (event->captured) {
    if (const auto capture = event->capture.lock()) capture->invalid = true;
    return result(cudaErrorCapturedEvent);
  }
  if (event->latest == nullptr || event->latest->done) return cudaSuccess;
  run_one();
  if (r.sticky != cudaSuccess) return result(r.sticky);
  return cudaErrorNotReady;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  const Lock lock(runtime().mutex);
  Runtime& r = runtime();
  if (r.sticky != cudaSuccess) return result(r.sticky);
  if (!r.events.count(start) || !r.events.count(end) || !start->timing || !end->timing ||
      start->latest == nullptr || end->latest == nullptr) {
    return result(cudaErrorInvalidResourceHandle);
  }
  if (start->captured || end->captured) return result(cudaErrorCapturedEvent);
  if (!start->latest->done || !end->latest->done) return cudaErrorNotReady;
  *milliseconds = static_cast<float>((end->latest->time - start->latest->time) * 1e-6);
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  const Lock lock(runtime().mutex);
  if (kernel == nullptr) return result(cudaErrorInvalidDeviceFunction);
  if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) {
    return result(value >= -1 && value <= 100 ? cudaSuccess : cudaErrorInvalidValue);
  }
  if (value < 0 || static_cast<size_t>(value) > kSharedOptin) {
    return result(cudaErrorInvalidValue);
  }
  shared_limits()[kernel] = value;
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  const Lock lock(runtime().mutex);
  if (kernel == nullptr) return result(cudaErrorInvalidDeviceFunction);
  *attributes = {};
  attributes->maxThreadsPerBlock = 1024;
  attributes->ptxVersion = attributes->binaryVersion = 90;
  attributes->maxDynamicSharedSizeBytes = static_cast<int>(shared_limit(kernel));
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel,
                                                          int threads, size_t shared_bytes) {
  if (kernel == nullptr) return result(cudaErrorInvalidDeviceFunction);
  if (threads <= 0) return result(cudaErrorInvalidValue);
  *blocks = threads > 1024 ? 0 : blocks_per_multiprocessor(threads, shared_bytes);
  return cudaSuccess;
}
