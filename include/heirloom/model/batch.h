// SPDX-License-Identifier: Apache-2.0
//
// A batch on its way to the device and back. Nothing but these arrays changes from one pass to the
// next, so a pass that was captured once can be replayed on another batch of the same shape.
#pragma once

#include <span>
#include <vector>

#include "heirloom/core/arena.h"
#include "heirloom/ops/embedding.h"
#include "heirloom/ops/kv_store.h"

namespace heirloom {

/// Rows of one pass as the host holds them: N tokens of one or more sequences.
struct HostBatch {
  std::span<const int32_t> tokens, targets, positions;  ///< (N); targets < 0 are not scored
  std::span<const AttentionSequence> sequences;
  std::span<double> nll;        ///< (N), filled by the pass
  int64_t sequence_length = 1;  ///< rows of a sequence, for dropout
  uint32_t first_sequence = 0;  ///< number of its first sequence within the step
};

/// The same where kernels see them.
struct DeviceBatch {
  TokenBatch rows;
  const int32_t* targets = nullptr;
  double* nll = nullptr;
  std::span<const AttentionSequence> sequences;  ///< on the host: grids follow it
  const AttentionSequence* device_sequences = nullptr;
  int64_t sequence_length = 1;
  uint32_t first_sequence = 0;         ///< where step_key is null
  const uint64_t* step_key = nullptr;  ///< dropout: {key of (seed, step), first_sequence}
};

/// The host's arrays themselves: what the CPU computes on.
DeviceBatch on_host(const HostBatch& batch);

/// Row indices ordered by (value, row); values in [0, limit).
void order_rows(std::span<const int32_t> values, int64_t limit, std::span<int32_t> order);

/// Carries batches to a device and their losses back, through pinned memory: `slots` batches may be
/// on their way before the host has to wait. On the CPU nothing is copied.
class BatchTransfer {
 public:
  BatchTransfer(const Device& device, int64_t slots);

  /// Queues the arrays of `batch` for the device, in stream order, into the one place that every
  /// pass reads; a step's passes take slots 0, 1, ... With `backward`, the row orders of
  /// kernels/embedding.h for a vocabulary of `vocab` go along. The spans of `batch` must stay valid
  /// until `finish`, but all of them except nll may be filled anew as soon as this returns (on the
  /// CPU: when the pass has run).
  DeviceBatch send(const HostBatch& batch, int64_t slot, uint64_t step_key, bool backward,
                   int64_t vocab);
  /// Queues the way back of the losses of the pass just run.
  void receive(int64_t slot);
  /// Waits for the device; `visit` sees the losses of every pass since the last call, in order.
  template <class Visit>
  void finish(Visit visit) {
    wait();
    for (const std::vector<double>& nll : losses_) visit(std::span<const double>(nll));
    losses_.clear();
  }
  /// The same, adding each loss to `sum`, row by row.
  double finish_sum(double sum = 0) {
    finish([&sum](std::span<const double> nll) {
      for (const double x : nll) sum += x;
    });
    return sum;
  }

 private:
  void reserve(int64_t rows, int64_t sequences);
  void wait();

  Device device_;
  int64_t rows_ = 0, sequences_ = 0;  // capacity
  DeviceMemory memory_;
  std::vector<PinnedMemory> slots_;
  std::vector<int64_t> counts_;  // rows in flight, by slot
  std::vector<int64_t> received_;
  std::span<double> host_nll_;               // CPU: of the batch sent last
  std::vector<std::vector<double>> losses_;  // per pass
};

}  // namespace heirloom
