// SPDX-License-Identifier: Apache-2.0
//
// Copies, fills and allocations of the runtime.
#include <cstring>

#include "emulator/runtime.h"
#include "engine.h"
#include "memory.h"
#include "stream.h"

namespace heirloom::emulator {
namespace {

enum class Place { kPageable, kPinned, kDevice };

Place place_of(const void* data) {
  const Allocation* a = find_allocation(data);
  if (a == nullptr) return Place::kPageable;
  return a->kind == MemoryKind::kDevice ? Place::kDevice : Place::kPinned;
}

// A copy's or a fill's memory may have been freed since it was queued.
void require_memory(const void* data, size_t bytes, const char* what) {
  if (place_of(data) != Place::kPageable && !in_allocation(data, bytes)) {
    fail(cudaErrorIllegalAddress, std::string(what) + ": " + std::to_string(bytes) +
                                      " bytes beginning at " + describe_address(data));
  }
}

void copy_now(void* to, const void* from, size_t bytes) {
  require_memory(from, bytes, "copy, source");
  require_memory(to, bytes, "copy, destination");
  if (runtime().sticky != cudaSuccess) return;
  std::memmove(to, from, bytes);
  if (instrument && place_of(from) != Place::kDevice) instrument->memory_written(to, bytes);
}

cudaError_t check_copy(const void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                       Place* to_place, Place* from_place) {
  *to_place = place_of(to);
  *from_place = place_of(from);
  if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault) {
    return cudaErrorInvalidMemcpyDirection;
  }
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (kind != cudaMemcpyDefault && bytes != 0) {
    if (to_device != (*to_place == Place::kDevice)) return cudaErrorInvalidValue;
    if (from_device != (*from_place == Place::kDevice)) return cudaErrorInvalidValue;
  }
  for (const void* data : {to, from}) {
    if (bytes != 0 &&
        (data == nullptr || (place_of(data) != Place::kPageable && !in_allocation(data, bytes)))) {
      return cudaErrorInvalidValue;
    }
  }
  return cudaSuccess;
}

bool in_use(CUstream_st* stream) { return stream->capture != nullptr; }

cudaError_t copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t handle,
                 bool blocking) {
  Runtime& r = runtime();
  if (r.sticky != cudaSuccess) return r.sticky;
  CUstream_st* stream = find_stream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  Place to_place, from_place;
  const cudaError_t error = check_copy(to, from, bytes, kind, &to_place, &from_place);
  if (error != cudaSuccess) return error;
  if (blocking) {
    if (any_blocking_capture()) {
      invalidate_blocking_captures();
      return cudaErrorStreamCaptureImplicit;
    }
    const cudaError_t refused = refuse_during_capture();
    if (refused != cudaSuccess) return refused;
  }
  if (bytes == 0) return cudaSuccess;
  const double nanoseconds =
      1000 + static_cast<double>(bytes) /
                 (to_place == Place::kDevice && from_place == Place::kDevice ? 2000 : 20);
  OperationPtr operation;
  if (from_place == Place::kPageable && !in_use(stream)) {
    // Pageable memory may be reused at once: the driver stages it.
    auto staged = std::make_shared<std::vector<unsigned char>>(
        static_cast<const unsigned char*>(from), static_cast<const unsigned char*>(from) + bytes);
    operation =
        make_operation("copy", nanoseconds, [=] { copy_now(to, staged->data(), staged->size()); });
  } else {
    operation = make_operation("copy", nanoseconds, [=] { copy_now(to, from, bytes); });
  }
  const cudaError_t submitted = submit(handle, operation);
  if (submitted != cudaSuccess || in_use(stream)) return submitted;
  const bool waits = to_place == Place::kPageable ||
                     (blocking && (to_place == Place::kPinned || from_place == Place::kPinned));
  return waits ? synchronize_stream(*stream) : cudaSuccess;
}

cudaError_t set_memory(void* data, int value, size_t bytes, cudaStream_t handle) {
  Runtime& r = runtime();
  if (r.sticky != cudaSuccess) return r.sticky;
  if (bytes == 0) return cudaSuccess;
  if (place_of(data) == Place::kPageable || !in_allocation(data, bytes)) {
    return cudaErrorInvalidValue;
  }
  return submit(handle, make_operation("memset", 1000 + static_cast<double>(bytes) / 2000, [=] {
                  require_memory(data, bytes, "memset");
                  if (runtime().sticky != cudaSuccess) return;
                  std::memset(data, value, bytes);
                  if (instrument) instrument->memory_written(data, bytes);
                }));
}

cudaError_t allocate(MemoryKind kind, void** data, size_t bytes) {
  Runtime& r = runtime();
  if (r.sticky != cudaSuccess) return r.sticky;
  if (data == nullptr) return cudaErrorInvalidValue;
  const cudaError_t refused = refuse_during_capture();
  if (refused != cudaSuccess) return refused;
  *data = nullptr;
  if (bytes == 0) return cudaSuccess;
  *data = allocate_memory(kind, bytes);
  return *data == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}

cudaError_t release(MemoryKind kind, void* data) {
  Runtime& r = runtime();
  if (data == nullptr) return cudaSuccess;
  if (r.sticky == cudaSuccess) {
    const cudaError_t refused = refuse_during_capture();
    if (refused != cudaSuccess) return refused;
    // cudaFree waits for the device; of cudaFreeHost nothing is promised.
    if (kind == MemoryKind::kDevice) run_all();
  }
  std::string damage;
  if (!free_memory(kind, data, &damage)) return cudaErrorInvalidValue;
  if (!damage.empty()) fail(cudaErrorIllegalAddress, damage + " (found when it was freed)");
  return r.sticky;
}

}  // namespace
}  // namespace heirloom::emulator

using namespace heirloom::emulator;

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  const Lock lock(runtime().mutex);
  *total = device_capacity();
  *free = *total - allocated_bytes(MemoryKind::kDevice);
  return result(runtime().sticky);
}
cudaError_t cudaMalloc(void** data, size_t bytes) {
  const Lock lock(runtime().mutex);
  return result(allocate(MemoryKind::kDevice, data, bytes));
}
cudaError_t cudaFree(void* data) {
  const Lock lock(runtime().mutex);
  return result(release(MemoryKind::kDevice, data));
}
cudaError_t cudaHostAlloc(void** data, size_t bytes, unsigned int) {
  const Lock lock(runtime().mutex);
  return result(allocate(MemoryKind::kPinned, data, bytes));
}
cudaError_t cudaMallocHost(void** data, size_t bytes) { return cudaHostAlloc(data, bytes, 0); }
cudaError_t cudaFreeHost(void* data) {
  const Lock lock(runtime().mutex);
  return result(release(MemoryKind::kPinned, data));
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* data) {
  const Lock lock(runtime().mutex);
  *attributes = {};
  const Allocation* a = find_allocation(data);
  if (a == nullptr || !a->alive || !in_allocation(data, 0)) return cudaSuccess;
  attributes->devicePointer = const_cast<void*>(data);
  if (a->kind == MemoryKind::kDevice) {
    attributes->type = cudaMemoryTypeDevice;
  } else {
    attributes->type = cudaMemoryTypeHost;
    attributes->hostPointer = const_cast<void*>(data);
  }
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  const Lock lock(runtime().mutex);
  return result(copy(to, from, bytes, kind, nullptr, true));
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  const Lock lock(runtime().mutex);
  return result(copy(to, from, bytes, kind, stream, false));
}
cudaError_t cudaMemset(void* data, int value, size_t bytes) {
  const Lock lock(runtime().mutex);
  return result(set_memory(data, value, bytes, nullptr));
}
cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t stream) {
  const Lock lock(runtime().mutex);
  return result(set_memory(data, value, bytes, stream));
}
