// SPDX-License-Identifier: Apache-2.0
//
// heirloom bench: throughput of whole phases on random weights, each beside the roof that the same
// run measures.
#include <algorithm>
#include <cstdio>

#include "command.h"
#include "heirloom/core/device_runtime.h"
#include "heirloom/core/error.h"
#include "heirloom/core/rng.h"
#include "heirloom/decode/engine.h"
#include "heirloom/kernels/roofs.h"
#include "heirloom/report/progress.h"
#include "heirloom/train/optimizer.h"
#include "heirloom/train/step.h"

namespace heirloom::cli {
namespace {

struct BenchCommand {
  CommonOptions common;
  std::string model = "llama-60m";
  std::vector<std::string> phases{"train", "prefill", "decode"};
  int64_t batch = 8, length = 256, sequences = 1, context = 128, tokens = 64, rounds = 5;
};

struct Row {
  std::string phase;
  std::vector<double> tokens_per_second, fraction;  // one per round
  double unit_per_token = 0;                        // FLOPs or bytes
  const char* roof = "";                            // "FLOP/s" or "B/s read"
};

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

ModelConfig bench_model(const std::string& name) {
  return name.find('/') != std::string::npos || name.ends_with(".json") ? read_model_config(name)
                                                                        : preset_model_config(name);
}

int32_t random_token(int64_t i, int64_t vocab) {
  return static_cast<int32_t>(mix_key(1, static_cast<uint64_t>(i)) % static_cast<uint64_t>(vocab));
}

Row bench_train(const BenchCommand& o, const ModelConfig& model_config, const Device& device,
                Dtype dtype) {
  RunConfig config;
  config.model = model_config;
  config.train.dtype = dtype;
  config.train.batch_size = config.train.micro_batch_size = o.batch;
  config.train.sequence_length = o.length;
  config.optimizer.lr = 1e-4;
  DeviceRuntime& runtime = device_runtime(device.kind);
  const StepPlan plan = plan_step(config, o.batch, device);
  check_memory(config, plan, runtime.available_bytes(device.index), device);
  Transformer model(model_config, device, dtype);
  model.ensure_positions(o.length);
  Optimizer optimizer(model.parameters(), config.optimizer);
  initialize(model.parameters(), 1, {}, optimizer.weights(), optimizer.weights_dtype());
  optimizer.publish_weights();
  const DeviceMemory block(device, plan.memory.activations);
  Arena arena(device, plan.train, block.data());
  BatchTransfer transfer(device, 1);
  MicroBatch batch(o.batch, o.length);
  for (size_t i = 0; i < batch.tokens.size(); ++i) {
    batch.tokens[i] = random_token(static_cast<int64_t>(i), model_config.vocab_size);
    batch.targets[i] = random_token(static_cast<int64_t>(i + 1), model_config.vocab_size);
  }
  Row row{"train", {}, {}, plan.flops_per_token, "FLOP/s"};
  const double tokens = static_cast<double>(o.batch * o.length);
  for (int64_t step = 1; step <= o.rounds + 1; ++step) {
    const double roof = peak_flops(device, dtype);
    const auto start = std::chrono::steady_clock::now();
    optimizer.prepare(step, config.optimizer.lr, 1);
    optimizer.zero_gradients();
    const DeviceBatch sent = transfer.send(batch.host(), 0, 0, true, model_config.vocab_size);
    arena.begin_step();
    train_pass(Context{arena}, model, sent, 1 / tokens, Recompute::kNone);
    optimizer.update();
    optimizer.gradient_norm();  // waits for the device
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (step == 1) continue;  // first touch and kernel generation
    row.tokens_per_second.push_back(tokens / seconds);
    row.fraction.push_back(tokens / seconds * plan.flops_per_token / roof);
  }
  return row;
}

std::vector<Row> bench_generation(const BenchCommand& o, const ModelConfig& config, Dtype dtype) {
  Transformer model(config, Device{}, dtype);
  initialize(model.parameters(), 1, {}, model.parameters().data(), dtype);
  const KvLayout& layout = model.layout();
  // A decode step reads every weight but the embedding table (one row per sequence; all of it where
  // the head is tied) and the cache as `heirloom kv` counts it.
  const ParameterCount count = count_parameters(config);
  const int64_t weights = count.total() - (config.tie_word_embeddings ? 0 : count.embedding);
  const double size = static_cast<double>(dtype_size(dtype));
  const double mean_context = static_cast<double>(o.context) + static_cast<double>(o.tokens) / 2;
  const double step_bytes = size * (static_cast<double>(weights) +
                                    static_cast<double>(o.sequences) * mean_context *
                                        static_cast<double>(layout.read_elements_per_token()));
  Row prefill{"prefill", {}, {}, 0, "FLOP/s"},
      decode{"decode", {}, {}, step_bytes / static_cast<double>(o.sequences), "B/s read"};
  {
    RunConfig run;
    run.model = config;
    run.train.sequence_length = kPrefillRows;
    Transformer meta(config, Device{DeviceKind::kMeta, 0}, dtype);
    meta.ensure_positions(kPrefillRows);
    Arena arena(Device{DeviceKind::kMeta, 0});
    KernelCost cost;
    Context context{arena};
    context.cost = &cost;
    MicroBatch batch(1, kPrefillRows);
    ActivationKvStore store(meta.stream_specs(), dtype, kPrefillRows, batch.sequences);
    meta.hidden(context, {batch.tokens.data(), batch.positions.data(), kPrefillRows}, store);
    prefill.unit_per_token = cost.flops / static_cast<double>(kPrefillRows);
  }
  for (int64_t round = 0; round < o.rounds; ++round) {
    EngineOptions options;
    options.max_sequences = o.sequences;
    options.max_tokens = o.context + o.tokens + 1;
    Engine engine(model, nullptr, options);
    const double read_before = cpu_read_roof(), flops = cpu_flops_roof(dtype);
    int64_t given = 0;
    engine.run(
        [&]() -> std::optional<GenerationRequest> {
          if (given == o.sequences) return std::nullopt;
          GenerationRequest r;
          r.id = std::to_string(given++);
          for (int64_t i = 0; i < o.context; ++i)
            r.prompt.push_back(random_token(i + given, config.vocab_size));
          r.max_new_tokens = o.tokens + 1;
          r.sampling.temperature = 0;
          return r;
        },
        [](const GenerationResult&) {});
    const double read = (read_before + cpu_read_roof()) / 2;
    const EngineStatistics& s = engine.statistics();
    const double p = static_cast<double>(s.prefill_tokens) / s.prefill_seconds;
    const double d = static_cast<double>(s.decode_tokens) / s.decode_seconds;
    prefill.tokens_per_second.push_back(p);
    prefill.fraction.push_back(p * prefill.unit_per_token / flops);
    decode.tokens_per_second.push_back(d);
    decode.fraction.push_back(d * decode.unit_per_token / read);
  }
  return {prefill, decode};
}

int run_bench(const BenchCommand& o) {
  const Device device = apply_common_options(o.common, Devices::kAll);
  const Dtype dtype = parse_dtype(o.common.dtype, Dtype::kFloat32);
  const ModelConfig config = bench_model(o.model);
  const auto wants = [&](const char* phase) {
    return std::find(o.phases.begin(), o.phases.end(), phase) != o.phases.end();
  };
  std::vector<Row> rows;
  if (wants("train")) rows.push_back(bench_train(o, config, device, dtype));
  if (device.kind != DeviceKind::kCpu && (wants("prefill") || wants("decode"))) {
    throw_error<UnsupportedError>(
        "[bench] expected --phases train: generation does not run on CUDA yet; got {}",
        fmt::format("{}", fmt::join(o.phases, ",")));
  }
  if (wants("prefill") || wants("decode")) {
    for (Row& row : bench_generation(o, config, dtype)) {
      if (wants(row.phase.c_str())) rows.push_back(std::move(row));
    }
  }
  Json results = Json::array();
  const double flops = cpu_flops_roof(dtype), read = cpu_read_roof();
  std::FILE* table = o.common.json == "-" ? stderr : stdout;
  std::fprintf(table, "%s, %s, %s: roof %.0f GFLOP/s, %.1f GB/s read\n", o.model.c_str(),
               dtype_name(dtype), cpu_kernel_isa().c_str(), flops / 1e9, read / 1e9);
  std::fprintf(table, "%-8s %12s %12s %12s %12s %10s\n", "phase", "tok/s", "min", "max",
               "GFLOP|GB /s", "of roof");
  for (const Row& row : rows) {
    const double rate = median(row.tokens_per_second), fraction = median(row.fraction);
    const auto [low, high] =
        std::minmax_element(row.tokens_per_second.begin(), row.tokens_per_second.end());
    std::fprintf(table, "%-8s %12.1f %12.1f %12.1f %12.1f %9.1f%%\n", row.phase.c_str(), rate, *low,
                 *high, rate * row.unit_per_token / 1e9, 100 * fraction);
    results.push_back({{"phase", row.phase},
                       {"tokens_per_second", rate},
                       {"min", *low},
                       {"max", *high},
                       {"per_second", rate * row.unit_per_token},
                       {"roof", row.roof},
                       {"of_roof", fraction}});
  }
  write_json_result(o.common, {{"model", o.model},
                               {"dtype", dtype_name(dtype)},
                               {"isa", cpu_kernel_isa()},
                               {"flops_roof", flops},
                               {"read_roof", read},
                               {"batch", o.batch},
                               {"length", o.length},
                               {"sequences", o.sequences},
                               {"context", o.context},
                               {"rows", results}});
  return kDone;
}

}  // namespace

void add_bench_command(Cli& cli) {
  CLI::App* command = cli.app.add_subcommand(
      "bench", "measure training, prefill and decode beside this machine's roofs");
  auto o = std::make_shared<BenchCommand>();
  add_common_options(command, o->common);
  command->add_option("--model", o->model, "preset name or model config")->capture_default_str();
  command->add_option("--phases", o->phases, "train prefill decode")
      ->delimiter(',')
      ->check(CLI::IsMember({"train", "prefill", "decode"}));
  command->add_option("--batch", o->batch, "train: sequences")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  command->add_option("--length", o->length, "train: tokens per sequence")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  command->add_option("--sequences", o->sequences, "generation: sequences at once")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  command->add_option("--context", o->context, "generation: prompt tokens")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  command->add_option("--tokens", o->tokens, "generation: tokens decoded")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  command->add_option("--rounds", o->rounds, "measurements; the median is printed with min and max")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  command->callback([&cli, o] { cli.action = [o] { return run_bench(*o); }; });
}

}  // namespace heirloom::cli
