// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>

#include "heirloom/core/device_runtime.h"
#include "heirloom/core/error.h"
#include "heirloom/train/run_config.h"

namespace heirloom {

/// Work that is the same every time but for what lies in the device's memory: run as it is the
/// first time, captured as a graph the second, and replayed from then on.
class Replay {
 public:
  /// Passes of a run. Documents change a pass's grid from batch to batch; else all have one shape.
  Replay(const Device& device, const RunConfig& run)
      : device_(device),
        capture_(device.kind == DeviceKind::kCuda && run.train.capture &&
                 run.data.document_mask == DocumentMask::kNone) {}
  ~Replay() {
    if (graph_.handle) device_runtime(device_.kind).destroy(graph_);
  }
  Replay(const Replay&) = delete;

  template <class Work>
  void run(Work work) {
    if (!capture_ || !std::exchange(warm_, true)) return work();
    DeviceRuntime& runtime = device_runtime(device_.kind);
    const Stream stream = device_stream(device_);
    if (graph_.handle == nullptr) {
      runtime.begin_capture(stream);
      try {
        work();
      } catch (...) {
        capture_ = false;
        abandon(runtime, stream);
        throw;
      }
      graph_ = runtime.end_capture(stream);
    }
    runtime.launch(graph_, stream);
  }

 private:
  static void abandon(DeviceRuntime& runtime, Stream stream) {
    try {
      runtime.destroy(runtime.end_capture(stream));
    } catch (const Error&) {  // the first error is the one to report
    }
  }

  Device device_;
  bool capture_, warm_ = false;
  Graph graph_;
};

}  // namespace heirloom
