// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "heirloom/core/arena.h"
#include "heirloom/core/device_runtime.h"
#include "heirloom/kernels/gemm.h"

namespace heirloom {

class Tape;

/// What the forward pass is run for. Kernels are chosen by phase, never by the number of rows, so
/// that a sequence's result does not depend on what stands beside it.
enum class Phase : uint8_t {
  kTrain,    ///< and evaluation: large matrix products
  kPrefill,  ///< prompts, in chunks of one fixed number of rows
  kDecode,   ///< few rows, each product summed in an order fixed by K alone
};

/// Dropout rates and the key of this step; rates of 0 outside training.
struct DropoutState {
  double embedding = 0, attention = 0, residual = 0;
  uint64_t key = 0;             ///< of (seed, step)
  uint32_t first_sequence = 0;  ///< number, within the step, of the batch's first sequence
  int64_t sequence_length = 1;
  /// {key, first sequence} in the device's memory; where set, they stand for the two above.
  const uint64_t* step_key = nullptr;
};

/// Everything an op needs beside its operands: where buffers come from, whether to record, which
/// kernels to take.
struct Context {
  Arena& arena;
  Tape* tape = nullptr;  ///< null: nothing is recorded
  Phase phase = Phase::kTrain;
  DropoutState dropout = {};
  Stream stream = device_stream(arena.device());
  KernelCost* cost = nullptr;                 ///< where kernel costs are summed, if anywhere
  bool tf32 = false;                          ///< float32 matrix products may use TF32 (CUDA)
  std::vector<GemmProblem>* gemms = nullptr;  ///< where matrix products are noted, if anywhere

  const Device& device() const { return arena.device(); }
  bool meta() const { return arena.device().kind == DeviceKind::kMeta; }
  /// The kind of device whose kernels run, or would run where the device is meta.
  DeviceKind target() const { return meta() ? device().stands_for : device().kind; }
  Tensor allocate(Shape shape, Dtype dtype) { return arena.allocate(shape, dtype); }

  /// Calls the kernel for (device, dtype), or on the meta device only adds up its cost.
  template <class Args>
  void run(const KernelTable<Args>& table, KernelCost (*args_cost)(const Args&, Dtype), Dtype dtype,
           const Args& args) {
    if (cost) *cost += args_cost(args, dtype);
    if (!meta()) table.get(device().kind, dtype)(args, stream);
  }
};

}  // namespace heirloom
