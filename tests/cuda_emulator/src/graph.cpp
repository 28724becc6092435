// SPDX-License-Identifier: Apache-2.0
//
// Capture: streams record what is submitted to them as the nodes of a graph. A launched graph is one
// operation of its stream that runs the nodes in an order drawn from those the edges allow.
#include <algorithm>

#include "emulator/runtime.h"
#include "stream.h"

namespace heirloom::emulator {
namespace {

// Every capture that is going on; a capture ends when no stream holds it.
std::vector<std::shared_ptr<Capture>> captures() {
  std::vector<std::shared_ptr<Capture>> all;
  for (const auto& stream : runtime().streams) {
    if (stream->capture != nullptr &&
        std::find(all.begin(), all.end(), stream->capture) == all.end()) {
      all.push_back(stream->capture);
    }
  }
  return all;
}

void run_nodes(const std::vector<GraphNode>& nodes) {
  std::vector<int> missing(nodes.size()), ready;
  std::vector<std::vector<int>> followers(nodes.size());
  for (size_t i = 0; i < nodes.size(); ++i) {
    missing[i] = static_cast<int>(nodes[i].after.size());
    for (const int before : nodes[i].after) {
      followers[static_cast<size_t>(before)].push_back(static_cast<int>(i));
    }
    if (missing[i] == 0) ready.push_back(static_cast<int>(i));
  }
  while (!ready.empty() && runtime().sticky == cudaSuccess) {
    const size_t pick = random_below(ready.size());
    const auto node = static_cast<size_t>(ready[pick]);
    ready.erase(ready.begin() + static_cast<std::ptrdiff_t>(pick));
    if (nodes[node].operation != nullptr) run_operation(*nodes[node].operation);
    for (const int follower : followers[node]) {
      if (--missing[static_cast<size_t>(follower)] == 0) ready.push_back(follower);
    }
  }
}

void merge(std::vector<int>& into, const std::vector<int>& from) {
  for (const int node : from) {
    if (std::find(into.begin(), into.end(), node) == into.end()) into.push_back(node);
  }
}

// True iff every node has a way to the nodes `last`.
bool all_joined(const std::vector<GraphNode>& nodes, const std::vector<int>& last) {
  std::vector<bool> reached(nodes.size(), false);
  std::vector<int> open = last;
  while (!open.empty()) {
    const auto node = static_cast<size_t>(open.back());
    open.pop_back();
    if (reached[node]) continue;
    reached[node] = true;
    open.insert(open.end(), nodes[node].after.begin(), nodes[node].after.end());
  }
  return std::find(reached.begin(), reached.end(), false) == reached.end();
}

}  // namespace

cudaError_t refuse_during_capture() {
  const auto self = std::this_thread::get_id();
  cudaError_t error = cudaSuccess;
  for (const auto& capture : captures()) {
    const bool forbids =
        capture->mode == cudaStreamCaptureModeGlobal ||
        (capture->mode == cudaStreamCaptureModeThreadLocal && capture->thread == self);
    if (!forbids) continue;
    capture->invalid = true;
    error = cudaErrorStreamCaptureUnsupported;
  }
  return error;
}

bool any_blocking_capture() {
  const auto& streams = runtime().streams;
  return std::any_of(streams.begin(), streams.end(), [](const auto& stream) {
    return stream->blocking && stream->capture != nullptr;
  });
}

void invalidate_blocking_captures() {
  for (const auto& stream : runtime().streams) {
    if (stream->blocking && stream->capture != nullptr) stream->capture->invalid = true;
  }
}

cudaError_t capture_operation(CUstream_st& stream, OperationPtr operation) {
  Capture& capture = *stream.capture;
  if (capture.invalid) return cudaErrorStreamCaptureInvalidated;
  capture.nodes.push_back({std::move(operation), stream.capture_after});
  stream.capture_after = {static_cast<int>(capture.nodes.size()) - 1};
  return cudaSuccess;
}

cudaError_t capture_record(CUstream_st& stream, CUevent_st& event) {
  if (stream.capture->invalid) return cudaErrorStreamCaptureInvalidated;
  event.captured = true;
  event.capture = stream.capture;
  event.capture_after = stream.capture_after;
  return cudaSuccess;
}

cudaError_t capture_wait(CUstream_st& stream, CUevent_st& event) {
  const std::shared_ptr<Capture> of_event = event.captured ? event.capture.lock() : nullptr;
  if (of_event == nullptr) {
    // A capturing stream cannot wait for work outside of its capture, nor anybody for a past one.
    if (stream.capture != nullptr) stream.capture->invalid = true;
    return stream.capture != nullptr ? cudaErrorStreamCaptureIsolation : cudaErrorCapturedEvent;
  }
  if (of_event->invalid) return cudaErrorStreamCaptureInvalidated;
  if (&stream == &runtime().legacy) {
    of_event->invalid = true;
    return cudaErrorStreamCaptureImplicit;
  }
  if (stream.capture == nullptr) {
    stream.capture = of_event;  // a fork: the stream joins the capture
    stream.capture_after.clear();
  } else if (stream.capture != of_event) {
    stream.capture->invalid = of_event->invalid = true;
    return cudaErrorStreamCaptureMerge;
  }
  merge(stream.capture_after, event.capture_after);
  return cudaSuccess;
}

}  // namespace heirloom::emulator

using namespace heirloom::emulator;

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  const Lock lock(runtime().mutex);
  Runtime& r = runtime();
  if (r.sticky != cudaSuccess) return result(r.sticky);
  CUstream_st* stream = find_stream(handle);
  if (stream == nullptr) return result(cudaErrorInvalidResourceHandle);
  if (stream == &r.legacy) return result(cudaErrorStreamCaptureUnsupported);
  if (stream->capture != nullptr) {
    stream->capture->invalid = true;
    return result(cudaErrorIllegalState);
  }
  stream->capture = std::make_shared<Capture>();
  stream->capture->origin = stream;
  stream->capture->mode = mode;
  stream->capture->thread = std::this_thread::get_id();
  stream->capture_after.clear();
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  const Lock lock(runtime().mutex);
  Runtime& r = runtime();
  *graph = nullptr;
  CUstream_st* stream = find_stream(handle);
  if (stream == nullptr) return result(cudaErrorInvalidResourceHandle);
  const std::shared_ptr<Capture> capture = stream->capture;
  if (capture == nullptr) return result(cudaErrorIllegalState);
  if (capture->origin != stream) {
    capture->invalid = true;
    return result(cudaErrorStreamCaptureUnmatched);
  }
  if (capture->mode != cudaStreamCaptureModeRelaxed &&
      capture->thread != std::this_thread::get_id()) {
    capture->invalid = true;
    return result(cudaErrorStreamCaptureWrongThread);
  }
  const bool joined = all_joined(capture->nodes, stream->capture_after);
  for (const auto& other : r.streams) {
    if (other->capture == capture) {
      other->capture.reset();
      other->capture_after.clear();
    }
  }
  if (r.sticky != cudaSuccess) return result(r.sticky);
  if (capture->invalid) return result(cudaErrorStreamCaptureInvalidated);
  if (!joined) return result(cudaErrorStreamCaptureUnjoined);
  *graph = new CUgraph_st{std::move(capture->nodes)};
  r.graphs.insert(*graph);
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  const Lock lock(runtime().mutex);
  const CUstream_st* stream = find_stream(handle);
  if (stream == nullptr) return result(cudaErrorInvalidResourceHandle);
  *status = stream->capture == nullptr ? cudaStreamCaptureStatusNone
            : stream->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                       : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  const Lock lock(runtime().mutex);
  if (!runtime().graphs.count(graph)) return result(cudaErrorInvalidValue);
  if (nodes != nullptr) return result(cudaErrorNotSupported);
  *count = graph->nodes.size();
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long) {
  const Lock lock(runtime().mutex);
  Runtime& r = runtime();
  if (r.sticky != cudaSuccess) return result(r.sticky);
  if (!r.graphs.count(graph)) return result(cudaErrorInvalidValue);
  *executable = new CUgraphExec_st{std::make_shared<std::vector<GraphNode>>(graph->nodes)};
  r.executables.insert(*executable);
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  const Lock lock(runtime().mutex);
  Runtime& r = runtime();
  if (r.sticky != cudaSuccess) return result(r.sticky);
  if (!r.executables.count(executable)) return result(cudaErrorInvalidValue);
  double nanoseconds = 1000;
  for (const GraphNode& node : *executable->nodes) {
    if (node.operation != nullptr) nanoseconds += node.operation->nanoseconds;
  }
  auto operation = std::make_shared<Operation>();
  operation->name = "graph";
  operation->nanoseconds = nanoseconds;
  operation->run = [nodes = executable->nodes] { run_nodes(*nodes); };
  return result(submit(stream, std::move(operation)));
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  const Lock lock(runtime().mutex);
  if (runtime().executables.erase(executable) == 0) return result(cudaErrorInvalidValue);
  delete executable;
  return result(runtime().sticky);
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  const Lock lock(runtime().mutex);
  if (runtime().graphs.erase(graph) == 0) return result(cudaErrorInvalidValue);
  delete graph;
  return result(runtime().sticky);
}
