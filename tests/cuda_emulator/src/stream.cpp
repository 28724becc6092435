// SPDX-License-Identifier: Apache-2.0
#include "stream.h"

#include <algorithm>
#include <cstdlib>

#include "engine.h"
#include "memory.h"

namespace heirloom::emulator {
namespace {

thread_local cudaError_t last_error = cudaSuccess;

bool ready(const CUstream_st& stream) {
  if (stream.queue.empty()) return false;
  Runtime& r = runtime();
  const QueuedItem& front = stream.queue.front();
  if (front.kind == QueuedItem::Kind::kWait && !front.record->done) return false;
  if (&stream == &r.legacy) {
    for (const auto& other : r.streams) {
      if (other->blocking && !other->queue.empty() &&
          other->queue.front().sequence < front.sequence) {
        return false;
      }
    }
  } else if (stream.blocking && !r.legacy.queue.empty()) {
    return r.legacy.queue.front().sequence > front.sequence;
  }
  return true;
}

void run_front(CUstream_st& stream) {
  const QueuedItem item = std::move(stream.queue.front());
  stream.queue.pop_front();
  switch (item.kind) {
    case QueuedItem::Kind::kOperation:
      stream.time += item.operation->nanoseconds;
      run_operation(*item.operation);
      break;
    case QueuedItem::Kind::kRecord:
      item.record->done = true;
      item.record->time = stream.time;
      break;
    case QueuedItem::Kind::kWait:
      stream.time = std::max(stream.time, item.record->time);
      break;
  }
}

struct ErrorText {
  cudaError_t error;
  const char* name;
  const char* text;
};
constexpr ErrorText kErrors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInitializationError, "cudaErrorInitializationError", "initialization error"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration",
     "invalid configuration argument"},
    {cudaErrorInvalidMemcpyDirection, "cudaErrorInvalidMemcpyDirection",
     "invalid copy direction for memcpy"},
    {cudaErrorInvalidDeviceFunction, "cudaErrorInvalidDeviceFunction", "invalid device function"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorIllegalState, "cudaErrorIllegalState",
     "the operation cannot be performed in the present state"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress",
     "an illegal memory access was encountered"},
    {cudaErrorLaunchOutOfResources, "cudaErrorLaunchOutOfResources",
     "too many resources requested for launch"},
    {cudaErrorMisalignedAddress, "cudaErrorMisalignedAddress", "misaligned address"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureMerge, "cudaErrorStreamCaptureMerge",
     "operation would result in a merge of separate capture sequences"},
    {cudaErrorStreamCaptureUnmatched, "cudaErrorStreamCaptureUnmatched",
     "capture was not ended in the same stream as it began"},
    {cudaErrorStreamCaptureUnjoined, "cudaErrorStreamCaptureUnjoined",
     "capturing stream has unjoined work"},
    {cudaErrorStreamCaptureIsolation, "cudaErrorStreamCaptureIsolation",
     "dependency created on uncaptured work in another stream"},
    {cudaErrorStreamCaptureImplicit, "cudaErrorStreamCaptureImplicit",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {cudaErrorCapturedEvent, "cudaErrorCapturedEvent",
     "operation not permitted on an event last recorded in a capturing stream"},
    {cudaErrorStreamCaptureWrongThread, "cudaErrorStreamCaptureWrongThread",
     "attempt to terminate a thread-local capture sequence from another thread"},
    {cudaErrorUnknown, "cudaErrorUnknown", "unknown error"},
};

}  // namespace

// Never destroyed: streams and events may be freed by destructors of static objects.
Runtime& runtime() {
  static Runtime* const r = [] {
    auto* made = new Runtime;
    const char* text = std::getenv("HEIRLOOM_EMULATOR_SEED");
    made->seed = made->random_state = text ? std::strtoull(text, nullptr, 10) : 1;
    return made;
  }();
  return *r;
}

cudaError_t result(cudaError_t error) {
  if (error != cudaSuccess && error != cudaErrorNotReady) last_error = error;
  return error;
}

uint64_t random_below(uint64_t bound) {
  uint64_t z = runtime().random_state += 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return (z ^ (z >> 31)) % bound;
}

CUstream_st* find_stream(cudaStream_t handle) {
  Runtime& r = runtime();
  if (handle == nullptr || handle == cudaStreamLegacy) return &r.legacy;
  for (const auto& stream : r.streams) {
    if (stream.get() == handle && !stream->destroyed) return handle;
  }
  return nullptr;
}

void fail(cudaError_t error, const std::string& text) {
  Runtime& r = runtime();
  if (r.sticky != cudaSuccess) return;
  r.sticky = error;
  r.failure = text;
  r.legacy.queue.clear();
  for (const auto& stream : r.streams) stream->queue.clear();
}

cudaError_t submit(cudaStream_t handle, OperationPtr operation) {
  Runtime& r = runtime();
  if (r.sticky != cudaSuccess) return r.sticky;
  CUstream_st* stream = find_stream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (stream->capture != nullptr) return capture_operation(*stream, std::move(operation));
  if (stream == &r.legacy && any_blocking_capture()) {
    invalidate_blocking_captures();
    return cudaErrorStreamCaptureImplicit;
  }
  return enqueue(*stream, {QueuedItem::Kind::kOperation, std::move(operation), nullptr, 0});
}

void run_operation(const Operation& operation) {
  Runtime& r = runtime();
  if (r.sticky != cudaSuccess || !operation.run) return;
  try {
    operation.run();
  } catch (const KernelError& error) {
    const bool memory = std::string(error.what()).find(": touched ") != std::string::npos;
    fail(memory ? cudaErrorIllegalAddress : cudaErrorLaunchFailure, error.what());
  }
  if (r.sticky != cudaSuccess) return;
  const std::string damage = check_canaries(false);
  if (!damage.empty()) {
    restore_canaries();
    fail(cudaErrorIllegalAddress, damage + " (found after " + operation.name + ")");
  }
}

void run_until(const std::function<bool()>& done) {
  Runtime& r = runtime();
  if (done()) return;
  install_fault_handler();
  const DeviceMemoryOpen open;
  std::vector<CUstream_st*> candidates;
  while (r.sticky == cudaSuccess && !done()) {
    candidates.clear();
    if (ready(r.legacy)) candidates.push_back(&r.legacy);
    for (const auto& stream : r.streams) {
      if (ready(*stream)) candidates.push_back(stream.get());
    }
    if (candidates.empty()) break;
    run_front(*candidates[random_below(candidates.size())]);
    remove_finished_streams();
  }
}

void run_one() {
  int asked = 0;  // run_until asks before the first piece, and once more before it begins
  run_until([&] { return asked++ == 2; });
}

void run_all() {
  run_until([] {
    Runtime& r = runtime();
    return r.legacy.queue.empty() &&
           std::all_of(r.streams.begin(), r.streams.end(),
                       [](const auto& stream) { return stream->queue.empty(); });
  });
}

OperationPtr make_operation(std::string name, double nanoseconds, std::function<void()> run) {
  return std::make_shared<Operation>(Operation{std::move(name), std::move(run), nanoseconds});
}

void remove_finished_streams() {
  std::erase_if(runtime().streams,
                [](const auto& stream) { return stream->destroyed && stream->queue.empty(); });
}

cudaError_t enqueue(CUstream_st& stream, QueuedItem item) {
  Runtime& r = runtime();
  item.sequence = r.next_sequence++;
  stream.queue.push_back(std::move(item));
  return cudaSuccess;
}

cudaError_t synchronize_stream(CUstream_st& stream) {
  run_until([&] { return stream.queue.empty(); });
  return runtime().sticky;
}

const char* last_failure() { return runtime().failure.c_str(); }

void reset_runtime() {
  Runtime& r = runtime();
  const Lock lock(r.mutex);
  r.sticky = cudaSuccess;
  r.failure.clear();
  last_error = cudaSuccess;
  for (const auto& stream : r.streams) {
    stream->queue.clear();
    stream->capture.reset();
    stream->capture_after.clear();
  }
  r.legacy.queue.clear();
  remove_finished_streams();
  restore_canaries();
}

}  // namespace heirloom::emulator

using namespace heirloom::emulator;

const char* cudaGetErrorName(cudaError_t error) {
  for (const ErrorText& e : kErrors) {
    if (e.error == error) return e.name;
  }
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  const Lock lock(runtime().mutex);
  static thread_local std::string text;
  text = "unrecognized error code";
  for (const ErrorText& e : kErrors) {
    if (e.error == error) text = e.text;
  }
  if (error != cudaSuccess && error == runtime().sticky) text += ": " + runtime().failure;
  return text.c_str();
}

cudaError_t cudaGetLastError() {
  const Lock lock(runtime().mutex);
  if (runtime().sticky != cudaSuccess) return runtime().sticky;
  return std::exchange(last_error, cudaSuccess);
}
cudaError_t cudaPeekAtLastError() {
  const Lock lock(runtime().mutex);
  return runtime().sticky != cudaSuccess ? runtime().sticky : last_error;
}
