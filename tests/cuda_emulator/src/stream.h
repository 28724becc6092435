// SPDX-License-Identifier: Apache-2.0
//
// What runtime.cpp, graph.cpp and cublaslt.cpp share: streams as queues of operations, events,
// captures, and the state of errors. All of it is guarded by one lock.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "emulator/runtime.h"

namespace heirloom::emulator {

/// Something that a stream executes. `nanoseconds` is what events see pass.
struct Operation {
  std::string name;
  std::function<void()> run;
  double nanoseconds = 0;
};
using OperationPtr = std::shared_ptr<const Operation>;

/// One cudaEventRecord: done when the stream has come to it.
struct EventRecord {
  bool done = false;
  double time = 0;
};

struct GraphNode {
  OperationPtr operation;  ///< null: only joins
  std::vector<int> after;
};

/// Between cudaStreamBeginCapture and cudaStreamEndCapture.
struct Capture {
  CUstream_st* origin = nullptr;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::thread::id thread;
  bool invalid = false;
  std::vector<GraphNode> nodes;
};

struct QueuedItem {
  enum class Kind { kOperation, kRecord, kWait } kind = Kind::kOperation;
  OperationPtr operation;
  std::shared_ptr<EventRecord> record;
  uint64_t sequence = 0;  ///< over all streams, for the rules of the legacy stream
};

}  // namespace heirloom::emulator

struct CUstream_st {
  bool blocking = true;    ///< ordered with the legacy stream
  bool destroyed = false;  ///< goes away when its queue is empty
  std::deque<heirloom::emulator::QueuedItem> queue;
  double time = 0;
  std::shared_ptr<heirloom::emulator::Capture> capture;
  std::vector<int> capture_after;  ///< what the next captured node follows
};

struct CUevent_st {
  bool timing = true;
  std::shared_ptr<heirloom::emulator::EventRecord> latest;
  std::weak_ptr<heirloom::emulator::Capture> capture;  ///< of the latest record, when captured
  bool captured = false;
  std::vector<int> capture_after;
};

struct CUgraph_st {
  std::vector<heirloom::emulator::GraphNode> nodes;
};

struct CUgraphExec_st {
  std::shared_ptr<const std::vector<heirloom::emulator::GraphNode>> nodes;
};

namespace heirloom::emulator {

struct Runtime {
  std::recursive_mutex mutex;
  CUstream_st legacy;
  std::vector<std::unique_ptr<CUstream_st>> streams;
  std::set<CUevent_st*> events;
  std::set<CUgraph_st*> graphs;
  std::set<CUgraphExec_st*> executables;
  uint64_t next_sequence = 0;
  uint64_t seed = 1;
  uint64_t random_state = 1;
  cudaError_t sticky = cudaSuccess;  ///< the context is lost: every call fails with it
  std::string failure;
  int64_t kernels = 0;
};
Runtime& runtime();
using Lock = std::lock_guard<std::recursive_mutex>;

/// Remembers the error for cudaGetLastError and returns it.
cudaError_t result(cudaError_t error);
/// The stream of a handle, null when there is none such.
CUstream_st* find_stream(cudaStream_t handle);
/// Queues or captures `operation`.
cudaError_t submit(cudaStream_t stream, OperationPtr operation);
/// A uniform number below `bound`, from the seed.
uint64_t random_below(uint64_t bound);
OperationPtr make_operation(std::string name, double nanoseconds, std::function<void()> run);
/// Queues an item of a stream that is not captured.
cudaError_t enqueue(CUstream_st& stream, QueuedItem item);
cudaError_t synchronize_stream(CUstream_st& stream);
void remove_finished_streams();
/// Executes ready work of all streams until `done`, or none is left.
void run_until(const std::function<bool()>& done);
/// Executes one piece of ready work of some stream.
void run_one();
void run_all();
/// Executes now, guarded: what it throws becomes the sticky error.
void run_operation(const Operation& operation);
/// The context is lost: nothing queued will run.
void fail(cudaError_t error, const std::string& text);

/// For calls that a capture does not allow: fails and invalidates the captures that forbid it.
/// cudaSuccess when no capture is in the way.
cudaError_t refuse_during_capture();
/// The capture that `stream` belongs to takes the operation as its next node.
cudaError_t capture_operation(CUstream_st& stream, OperationPtr operation);
cudaError_t capture_record(CUstream_st& stream, CUevent_st& event);
cudaError_t capture_wait(CUstream_st& stream, CUevent_st& event);
bool any_blocking_capture();
void invalidate_blocking_captures();

/// The name of a kernel by its address, from the symbol table of the running program.
std::string kernel_name(const void* function);

}  // namespace heirloom::emulator
