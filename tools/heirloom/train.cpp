// SPDX-License-Identifier: Apache-2.0
#include "training.h"

#include <cstdio>

#include "heirloom/core/device_runtime.h"
#include "sampling.h"

namespace heirloom::cli {
namespace {

Json dry_run_json(const RunConfig& config, const StepPlan& plan) {
  const ParameterCount count = count_parameters(config.model);
  const RunMemory& m = plan.memory;
  const int64_t tokens =
      config.train.steps * config.train.batch_size * config.train.sequence_length;
  return {{"parameters",
           {{"embedding", count.embedding},
            {"attention", count.attention},
            {"mlp", count.mlp},
            {"norm", count.norm},
            {"head", count.head},
            {"total", count.total()}}},
          {"memory_bytes",
           {{"weights", m.weights},
            {"master", m.master},
            {"gradients", m.gradients},
            {"moments", m.moments},
            {"activations", m.activations},
            {"tables", m.tables},
            {"runtime", m.runtime},
            {"total", m.total()}}},
          {"steps", config.train.steps},
          {"tokens", tokens},
          {"flops_per_token", plan.flops_per_token},
          {"config", config.resolved}};
}

void print_table(const NamedTable& table) {
  std::printf("%s\n", table.title.c_str());
  for (const auto& row : table.rows) {
    std::printf("  %-28s %16s  %s\n", row[0].c_str(), row[1].c_str(), row[2].c_str());
  }
  if (!table.note.empty()) std::printf("  %s\n", table.note.c_str());
}

void print_dry_run(const RunConfig& config, const StepPlan& plan) {
  print_table(parameter_table(config.model));
  print_table(memory_table(plan.memory));
  const double per_step =
      static_cast<double>(config.train.batch_size * config.train.sequence_length);
  std::printf("Work\n  %-28s %16lld\n", "steps", static_cast<long long>(config.train.steps));
  std::printf("  %-28s %16s\n", "tokens per step", format_count(per_step).c_str());
  std::printf("  %-28s %16s\n", "tokens",
              format_count(per_step * static_cast<double>(config.train.steps)).c_str());
  std::printf("  %-28s %16s\n", "FLOPs per token", format_count(plan.flops_per_token).c_str());
  std::printf("Config\n%s\n", dump_json(config.resolved, 2).c_str());
}

}  // namespace

void add_training_options(CLI::App* command, TrainingOptions& options, const char* preset_help) {
  add_common_options(command, options.common);
  auto* config =
      command->add_option("--config", options.config, "run config (JSON, comments allowed)");
  auto* preset = command->add_option("--preset", options.preset, preset_help);
  config->excludes(preset);
  command->add_option("--set", options.settings, "path=value, over config or preset; repeatable");
  command
      ->add_option("--resume", options.resume,
                   "auto: continue where there is a checkpoint; never; must")
      ->check(CLI::IsMember({"auto", "never", "must"}))
      ->capture_default_str();
  command->add_flag("--dry-run", options.dry_run,
                    "print parameters, memory, FLOPs and the resolved config; train nothing");
  command
      ->add_option("--memory-limit", options.memory_limit,
                   "bytes the run may use (default: what is available)")
      ->transform(CLI::AsSizeValue(false));
}

Json training_json(const TrainingOptions& options, std::string& origin) {
  Json json = Json::object();
  origin = "--set";
  if (!options.preset.empty()) {
    json = preset_run(options.preset);
    origin = "preset " + options.preset;
  } else if (!options.config.empty()) {
    json = read_json_file(options.config, JsonComments::kAllowed);
    origin = options.config;
  }
  for (const std::string& setting : options.settings) apply_setting(json, setting);
  return json;
}

namespace {

int64_t memory_limit(const TrainingOptions& options, const Device& device) {
  return options.memory_limit > 0 ? options.memory_limit
                                  : device_runtime(device.kind).available_bytes(device.index);
}

}  // namespace

void dry_run(const TrainingOptions& options, const RunConfig& config, const Device& device,
             const Json& more) {
  const StepPlan plan = plan_step(config, config.train.micro_batch_size, device);
  if (options.common.json.empty()) {
    print_dry_run(config, plan);
  } else {
    Json json = dry_run_json(config, plan);
    json.update(more);
    write_json_result(options.common, json);
  }
  check_memory(config, plan, memory_limit(options, device), device);
}

ExitCode run_training(const TrainingOptions& options, const RunConfig& config, const Device& device,
                      const std::function<std::vector<ReferenceLine>(bool fresh)>& prepare) {
  const StepPlan plan = plan_step(config, config.train.micro_batch_size, device);
  check_memory(config, plan, memory_limit(options, device), device);
  install_stop_signals();
  TrainerOptions trainer;
  trainer.device = device;
  trainer.resume = options.resume == "never"  ? ResumeMode::kNever
                   : options.resume == "must" ? ResumeMode::kMust
                                              : ResumeMode::kAuto;
  trainer.memory_limit = options.memory_limit;
  trainer.quiet = options.common.quiet;
  trainer.roof_flops = peak_flops(device, config.train.dtype);
  if (prepare) trainer.references = prepare(!starting_point(config, trainer.resume));
  TrainerHooks hooks;
  if (!config.data.tokenizer.empty()) hooks.sample = sampling_hook(config);
  return train(config, plan, hooks, trainer) == TrainOutcome::kFinished ? kDone : kStoppedBySignal;
}

namespace {

int run_train(const TrainingOptions& options) {
  const Device device = apply_common_options(options.common, Devices::kAll);
  std::string origin;
  const Json json = training_json(options, origin);
  const RunConfig config = parse_run_config(json, origin);
  if (!options.dry_run) return run_training(options, config, device);
  dry_run(options, config, device);
  return kDone;
}

}  // namespace

void add_train_command(Cli& cli) {
  CLI::App* command = cli.app.add_subcommand("train", "pretrain a model");
  auto options = std::make_shared<TrainingOptions>();
  add_training_options(command, *options,
                       "a recipe of the paper: llama-60m, gpt2-125m-skipv1, ...");
  command->callback([&cli, options] { cli.action = [options] { return run_train(*options); }; });
}

}  // namespace heirloom::cli
