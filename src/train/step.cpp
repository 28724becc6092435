// SPDX-License-Identifier: Apache-2.0
#include "heirloom/train/step.h"

#include "heirloom/train/optimizer.h"

namespace heirloom {
namespace {

/// Resident bytes of the program beside its plan: code and libraries, oneDNN's generated kernels
/// and scratch, the page tables and read buffers of data files. Measured as the difference between
/// peak residency and plan over the presets, rounded up.
constexpr int64_t kRuntimeBytes = 16 << 20;
/// On CUDA what is free is asked after the driver has taken its own; cuBLASLt's workspace, the batch
/// and the captured graph remain.
constexpr int64_t kCudaRuntimeBytes = 96 << 20;

std::string gib(int64_t bytes) {
  return fmt::format("{:.2f} GiB", static_cast<double>(bytes) / (1 << 30));
}

}  // namespace

MicroBatch::MicroBatch(int64_t sequence_count, int64_t sequence_length)
    : count(sequence_count),
      length(sequence_length),
      fetched_(static_cast<size_t>(sequence_length + 1)) {
  const size_t n = static_cast<size_t>(count * length);
  tokens.assign(n, 0);
  targets.assign(n, -1);
  positions.assign(n, 0);
  nll.assign(n, 0);
  begin(0);
  for (int64_t b = 0; b < count; ++b) load_padding(b);
}

void MicroBatch::begin(uint32_t first) {
  first_sequence = first;
  sequences.clear();
}

void MicroBatch::load_padding(int64_t b) {
  const size_t base = static_cast<size_t>(b * length);
  for (int64_t t = 0; t < length; ++t) {
    tokens[base + static_cast<size_t>(t)] = 0;
    targets[base + static_cast<size_t>(t)] = -1;
    positions[base + static_cast<size_t>(t)] = static_cast<int32_t>(t);
  }
  AttentionSequence s;
  s.query_row = s.key_row = b * length;
  s.queries = s.keys = length;
  s.dropout_sequence = first_sequence + static_cast<uint32_t>(b);
  sequences.push_back(s);
}

void MicroBatch::load(int64_t b, const TokenDataset& data, int64_t k, DocumentMask mask,
                      const std::vector<int64_t>& eos) {
  data.fetch(k, fetched_);
  const int64_t base = b * length;
  AttentionSequence s;
  s.query_row = s.key_row = base;
  s.dropout_sequence = first_sequence + static_cast<uint32_t>(b);
  for (int64_t t = 0; t < length; ++t) {
    const size_t i = static_cast<size_t>(base + t);
    tokens[i] = fetched_[static_cast<size_t>(t)];
    targets[i] = fetched_[static_cast<size_t>(t + 1)];
    positions[i] = static_cast<int32_t>(base + t - s.query_row);
    const bool ends =
        mask == DocumentMask::kCausal && std::find(eos.begin(), eos.end(), tokens[i]) != eos.end();
    if (ends || t + 1 == length) {
      s.queries = s.keys = base + t + 1 - s.query_row;
      sequences.push_back(s);
      s.query_row = s.key_row = base + t + 1;
      s.dropout_sequence += 1u << 20;  // documents of one sequence draw apart
    }
  }
}

HostBatch MicroBatch::host() {
  return {tokens, targets, positions, sequences, nll, length, first_sequence};
}

namespace {

void run_loss(Context& context, Transformer& model, const DeviceBatch& batch, double scale,
              Recompute recompute) {
  ActivationKvStore store(model.stream_specs(), model.dtype(), batch.rows.n,
                          {batch.sequences.begin(), batch.sequences.end()}, batch.device_sequences);
  model.loss(context, batch.rows, store, batch.targets, scale, batch.nll, recompute);
  if (context.tape) context.tape->backward(context);
}

}  // namespace

void train_pass(Context context, Transformer& model, const DeviceBatch& batch, double scale,
                Recompute recompute) {
  Tape tape;
  context.tape = &tape;
  context.dropout.first_sequence = batch.first_sequence;
  context.dropout.step_key = batch.step_key;
  context.dropout.sequence_length = batch.sequence_length;
  run_loss(context, model, batch, scale, recompute);
}

void evaluation_pass(Context context, Transformer& model, const DeviceBatch& batch) {
  context.tape = nullptr;
  context.dropout = {};
  run_loss(context, model, batch, 1, Recompute::kNone);
}

StepPlan plan_step(const RunConfig& config, int64_t micro_batch_size, const Device& device) {
  const Device meta = meta_device(device);
  Transformer model(config.model, meta, config.train.dtype);
  model.ensure_positions(config.train.sequence_length);
  model.parameters().attach_gradients(nullptr);
  MicroBatch host(micro_batch_size, config.train.sequence_length);
  const DeviceBatch batch = on_host(host.host());
  const auto record = [&](KernelCost* cost, std::vector<GemmProblem>* gemms, auto pass) {
    Arena arena(meta);
    Context context{arena};
    context.dropout.embedding = config.train.dropout_embedding;
    context.dropout.attention = config.train.dropout_attention;
    context.dropout.residual = config.train.dropout_residual;
    context.tf32 = config.train.tf32;
    context.cost = cost;
    context.gemms = gemms;
    pass(context);
    return plan_memory(arena.lifetimes());
  };
  StepPlan plan;
  KernelCost stored_cost;
  record(&stored_cost, nullptr,
         [&](Context& c) { train_pass(c, model, batch, 1, Recompute::kNone); });
  plan.flops_per_token =
      stored_cost.flops / static_cast<double>(micro_batch_size * config.train.sequence_length);
  plan.train = record(&plan.cost, &plan.gemms,
                      [&](Context& c) { train_pass(c, model, batch, 1, config.train.recompute); });
  plan.evaluation =
      record(nullptr, &plan.gemms, [&](Context& c) { evaluation_pass(c, model, batch); });

  const StateBytes state = state_bytes(model.parameters(), config.optimizer.narrow_state);
  RunMemory& m = plan.memory;
  m.weights = state.weights;
  m.master = state.master;
  m.gradients = state.gradients;
  m.moments = state.moments;
  m.activations = std::max(plan.train.peak_bytes, plan.evaluation.peak_bytes);
  m.activations_floor = std::max(plan.train.floor_bytes, plan.evaluation.floor_bytes);
  m.tables = model.rope_table_bytes();
  m.runtime = device.kind == DeviceKind::kCuda ? kCudaRuntimeBytes : kRuntimeBytes;
  return plan;
}

void check_memory(const RunConfig& config, const StepPlan& plan, int64_t limit,
                  const Device& device) {
  const int64_t total = plan.memory.total();
  if (total <= limit) return;
  for (int64_t b = config.train.micro_batch_size - 1; b >= 1; --b) {
    if (config.train.batch_size % b != 0) continue;
    const int64_t smaller = plan_step(config, b, device).memory.total();
    if (smaller <= limit) {
      throw_error<OutOfMemoryError>(
          "[memory] the run needs {} with train.micro_batch_size {}; {} are available ({} too "
          "few); "
          "train.micro_batch_size {} fits ({}){}",
          gib(total), config.train.micro_batch_size, gib(limit), gib(total - limit), b,
          gib(smaller),
          config.train.recompute == Recompute::kNone ? "; train.recompute true needs less, too"
                                                     : "");
    }
  }
  throw_error<OutOfMemoryError>(
      "[memory] the run needs {} with train.micro_batch_size {}; {} are available ({} too few); no "
      "micro-batch fits{}",
      gib(total), config.train.micro_batch_size, gib(limit), gib(total - limit),
      config.train.recompute == Recompute::kNone ? "; try train.recompute true"
                                                 : "; use a shorter sequence or a smaller model");
}

}  // namespace heirloom
