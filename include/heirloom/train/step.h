// SPDX-License-Identifier: Apache-2.0
//
// One forward and backward pass over a micro-batch, and the memory that a run needs for it.
#pragma once

#include <string>
#include <vector>

#include "heirloom/data/token_dataset.h"
#include "heirloom/model/batch.h"
#include "heirloom/model/transformer.h"
#include "heirloom/train/run_config.h"

namespace heirloom {

/// Host side of a micro-batch: B sequences of T tokens.
struct MicroBatch {
  MicroBatch(int64_t sequence_count, int64_t sequence_length);

  /// Loads sequence `k` of `data` as the b-th of the batch: T inputs, the targets one later, one
  /// attention sequence (or, with a causal document mask, one per document: a document ends with an
  /// eos token, positions restart).
  void load(int64_t b, const TokenDataset& data, int64_t k, DocumentMask mask,
            const std::vector<int64_t>& eos);
  /// Makes the b-th sequence one that is computed but not scored.
  void load_padding(int64_t b);
  /// Call once before the first load of a batch. `first_sequence`: number of sequence 0 within the
  /// step (dropout key).
  void begin(uint32_t first_sequence);

  HostBatch host();

  int64_t count, length;
  uint32_t first_sequence = 0;
  std::vector<int32_t> tokens, targets, positions;  ///< (B*T)
  std::vector<AttentionSequence> sequences;
  std::vector<double> nll;  ///< (B*T), filled by a pass

 private:
  std::vector<int32_t> fetched_;
};

/// Forward and backward: gradients of scale * sum(nll) are added to the parameters' gradients.
void train_pass(Context context, Transformer& model, const DeviceBatch& batch, double scale,
                Recompute recompute);
/// Forward only.
void evaluation_pass(Context context, Transformer& model, const DeviceBatch& batch);

/// What a run keeps in memory, in bytes, found by running a step on the meta device.
struct RunMemory {
  int64_t weights = 0, master = 0, gradients = 0, moments = 0;
  int64_t activations = 0;        ///< block that a step (or an evaluation) takes its buffers from
  int64_t activations_floor = 0;  ///< most bytes alive at one time
  int64_t tables = 0;             ///< rope
  int64_t runtime = 0;  ///< the program, its libraries, kernel scratch: measured, see kRuntimeBytes
  int64_t total() const {
    return weights + master + gradients + moments + activations + tables + runtime;
  }
};

struct StepPlan {
  RunMemory memory;
  MemoryPlan train, evaluation;
  std::vector<GemmProblem> gemms;  ///< every matrix product of a pass, for tune_gemms
  KernelCost cost;                 ///< one micro-batch, forward and backward
  double flops_per_token = 0;      ///< without recomputation: what MFU counts
};

/// Plans a run with `micro_batch_size` sequences per pass on `device`.
StepPlan plan_step(const RunConfig& config, int64_t micro_batch_size, const Device& device = {});

/// Throws OutOfMemoryError when the plan exceeds `limit` bytes, naming by how much and the largest
/// micro-batch that fits.
void check_memory(const RunConfig& config, const StepPlan& plan, int64_t limit,
                  const Device& device = {});

}  // namespace heirloom
