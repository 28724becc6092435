// SPDX-License-Identifier: Apache-2.0
//
// DeviceRuntime on the CUDA runtime. One non-blocking stream per device carries all work.
#include <cuda_runtime.h>

#include <array>
#include <cstring>
#include <exception>
#include <mutex>

#include "heirloom/core/device_runtime.h"
#include "heirloom/core/log.h"
#include "kernels/cuda/error.h"
#include "kernels/cuda/gemm.h"

namespace heirloom::cuda {
namespace {

constexpr int kMaxDevices = 64;

cudaStream_t native(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }

// For what destructors call: the failure shows again at the next call that may throw.
void complain(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  log(LogLevel::kWarning, fmt::format("[cuda] expected {} to succeed; got {} ({})", what,
                                      cudaGetErrorString(error), cudaGetErrorName(error)));
  static_cast<void>(cudaGetLastError());
}

class CudaRuntime final : public DeviceRuntime {
 public:
  int device_count() override {
    int count = 0;
    // Without a driver or a device this is an error, and means none.
    if (cudaGetDeviceCount(&count) != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      return 0;
    }
    return count;
  }

  std::string description(int index) override { return properties(index).name; }

  bool emulated() const override {
    cudaDeviceProp first;
    if (cudaGetDeviceProperties(&first, 0) != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      return false;
    }
    constexpr char kMark[] = "emulated";
    return std::strncmp(first.name, kMark, sizeof kMark - 1) == 0;
  }

  int64_t available_bytes(int index) override {
    use(index);
    size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "asking for free memory");
    return static_cast<int64_t>(free);
  }

  void* allocate(int index, int64_t bytes) override {
    use(index);
    void* data = nullptr;
    const cudaError_t error = cudaMalloc(&data, static_cast<size_t>(bytes > 0 ? bytes : 1));
    if (error == cudaErrorMemoryAllocation) {
      static_cast<void>(cudaGetLastError());
      throw_error<OutOfMemoryError>(
          "[memory] expected {} bytes on cuda:{}; got {} free; a smaller batch or model is needed",
          bytes, index, available_bytes(index));
    }
    check(error, "allocating device memory");
    return data;
  }

  void release(int index, void* data) override {
    if (data == nullptr) return;
    complain(cudaSetDevice(index), "choosing a device");
    complain(cudaFree(data), "releasing device memory");
  }

  void* allocate_pinned(int64_t bytes) override {
    void* data = nullptr;
    const cudaError_t error =
        cudaHostAlloc(&data, static_cast<size_t>(bytes > 0 ? bytes : 1), cudaHostAllocDefault);
    if (error == cudaErrorMemoryAllocation) {
      static_cast<void>(cudaGetLastError());
      throw_error<OutOfMemoryError>(
          "[memory] expected {} bytes of pinned memory; the system refused", bytes);
    }
    check(error, "allocating pinned memory");
    return data;
  }

  void release_pinned(void* data) override {
    if (data != nullptr) complain(cudaFreeHost(data), "releasing pinned memory");
  }

  Stream stream(int index) override {
    use(index);
    const std::lock_guard lock(mutex_);
    cudaStream_t& stream = streams_.at(static_cast<size_t>(index));
    if (stream == nullptr) {
      check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream");
    }
    return {stream};
  }

  void copy_to_device(void* to, const void* from, int64_t bytes, Stream stream) override {
    copy(to, from, bytes, cudaMemcpyHostToDevice, stream, "copying to the device");
  }
  void copy_to_host(void* to, const void* from, int64_t bytes, Stream stream) override {
    copy(to, from, bytes, cudaMemcpyDeviceToHost, stream, "copying to the host");
  }
  void copy_on_device(void* to, const void* from, int64_t bytes, Stream stream) override {
    copy(to, from, bytes, cudaMemcpyDeviceToDevice, stream, "copying on the device");
  }
  void fill_zero(void* data, int64_t bytes, Stream stream) override {
    if (bytes == 0) return;
    check(cudaMemsetAsync(data, 0, static_cast<size_t>(bytes), native(stream)), "clearing memory");
  }
  void synchronize(Stream stream) override {
    check(cudaStreamSynchronize(native(stream)), "the device's work");
  }

  void begin_capture(Stream stream) override {
    prepare_gemm();
    drop_broken_capture(stream);
    check(cudaStreamBeginCapture(native(stream), cudaStreamCaptureModeThreadLocal),
          "beginning a capture");
  }
  Graph end_capture(Stream stream) override {
    cudaGraph_t graph = nullptr;
    check(cudaStreamEndCapture(native(stream), &graph), "ending a capture");
    cudaGraphExec_t executable = nullptr;
    const cudaError_t error = cudaGraphInstantiate(&executable, graph, 0);
    complain(cudaGraphDestroy(graph), "destroying a graph");
    check(error, "instantiating a graph");
    return {executable};
  }
  void launch(Graph graph, Stream stream) override {
    check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph.handle), native(stream)),
          "launching a graph");
  }
  void destroy(Graph graph) override {
    if (graph.handle == nullptr) return;
    complain(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph.handle)),
             "destroying a graph");
  }

 private:
  static void use(int index) { check(cudaSetDevice(index), "choosing a device"); }

  static cudaDeviceProp properties(int index) {
    cudaDeviceProp p;
    check(cudaGetDeviceProperties(&p, index), "asking for a device's properties");
    return p;
  }

  static void copy(void* to, const void* from, int64_t bytes, cudaMemcpyKind kind, Stream stream,
                   const char* what) {
    if (bytes == 0) return;
    check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), kind, native(stream)), what);
  }

  // What an exception between begin_capture and end_capture left behind.
  static void drop_broken_capture(Stream stream) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(native(stream), &status), "asking for a capture");
    if (status == cudaStreamCaptureStatusNone) return;
    cudaGraph_t graph = nullptr;
    if (cudaStreamEndCapture(native(stream), &graph) == cudaSuccess) {
      complain(cudaGraphDestroy(graph), "destroying a graph");
    }
    static_cast<void>(cudaGetLastError());
  }

  std::mutex mutex_;
  std::array<cudaStream_t, kMaxDevices> streams_{};
};

}  // namespace

void register_runtime() {
  // Never destroyed: tensors of static objects release their memory through it.
  static CudaRuntime* const runtime = new CudaRuntime;
  register_device_runtime(DeviceKind::kCuda, runtime);
}

}  // namespace heirloom::cuda
