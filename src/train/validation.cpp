// SPDX-License-Identifier: Apache-2.0
#include "heirloom/train/validation.h"

#include "heirloom/train/trainer.h"
#include "replay.h"

namespace heirloom {

struct Validation::Impl {
  Impl(const RunConfig& config, Transformer& scored, const MemoryPlan& plan, void* block)
      : run(config),
        model(scored),
        data({config.data.validation}, config.train.sequence_length, config.model.vocab_size),
        batch(config.train.micro_batch_size, config.train.sequence_length),
        transfer(scored.device(), 1),
        arena(scored.device(), plan, block),
        replay(scored.device(), config) {
    sequences = data.sequences();
    if (run.train.eval_batches > 0) {
      sequences = std::min(sequences, run.train.eval_batches * run.train.batch_size);
    }
  }

  void load(int64_t first) {
    batch.begin(0);
    for (int64_t b = 0; b < batch.count; ++b) {
      if (first + b < sequences) {
        batch.load(b, data, first + b, run.data.document_mask, run.model.eos_token_ids);
      } else {
        batch.load_padding(b);
      }
    }
  }

  const RunConfig& run;
  Transformer& model;
  TokenDataset data;
  MicroBatch batch;
  BatchTransfer transfer;
  Arena arena;
  Replay replay;
  int64_t sequences = 0;
};

Validation::Validation(const RunConfig& run, Transformer& model, const MemoryPlan& plan,
                       void* block)
    : impl_(std::make_unique<Impl>(run, model, plan, block)) {}
Validation::~Validation() = default;

std::optional<double> Validation::loss() {
  Impl& v = *impl_;
  double sum = 0;
  for (int64_t first = 0; first < v.sequences; first += v.batch.count) {
    if (stop_requested()) return std::nullopt;
    v.load(first);
    const DeviceBatch batch = v.transfer.send(v.batch.host(), 0, 0, false, 0);
    v.replay.run([&] {
      v.arena.begin_step();
      Context context{v.arena};
      context.tf32 = v.run.train.tf32;
      evaluation_pass(context, v.model, batch);
    });
    v.transfer.receive(0);
    sum = v.transfer.finish_sum(sum);
  }
  return sum / static_cast<double>(v.sequences * v.batch.length);
}

std::optional<double> validation_loss(const RunConfig& run, Transformer& model) {
  RunConfig own = run;
  own.model = model.config();
  own.model.eos_token_ids = run.model.eos_token_ids;  // documents end where the run's do
  const MemoryPlan plan = plan_step(own, run.train.micro_batch_size, model.device()).evaluation;
  model.ensure_positions(run.train.sequence_length);
  DeviceMemory block(model.device(), plan.peak_bytes);
  return Validation(own, model, plan, block.data()).loss();
}

}  // namespace heirloom
