// SPDX-License-Identifier: Apache-2.0
#include "heirloom/train/trainer.h"

#include <chrono>
#include <cmath>

#include "heirloom/core/device_runtime.h"
#include "heirloom/core/log.h"
#include "heirloom/core/rng.h"
#include "heirloom/data/batch_order.h"
#include "heirloom/report/metrics_log.h"
#include "heirloom/report/tensorboard.h"
#include "heirloom/train/checkpoint_directory.h"
#include "heirloom/train/validation.h"
#include "replay.h"

namespace heirloom {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Settings that may change between the parts of a resumed run without changing what it computes
/// (the number of steps does change a schedule, and is the user's to change).
void remove_free_settings(Json& config) {
  for (const char* key : {"output", "init_from"}) config.erase(key);
  for (const char* key : {"validation", "tokenizer"}) config["data"].erase(key);
  for (const char* key :
       {"steps", "eval_every", "eval_batches", "save_every", "keep", "sample_every",
        "sample_prompt", "sample_tokens", "save_dtype", "recompute", "capture"}) {
    config["train"].erase(key);
  }
}

void check_same_run(Json saved, Json now, const fs::path& checkpoint) {
  remove_free_settings(saved);
  remove_free_settings(now);
  std::vector<std::string> changed;
  const auto compare = [&](auto&& self, const Json& a, const Json& b,
                           const std::string& path) -> void {
    if (a == b) return;
    if (a.is_object() && b.is_object()) {
      const auto under = [&](const std::string& key) {
        return path.empty() ? key : path + "." + key;
      };
      for (const auto& [key, value] : b.items())
        self(self, a.contains(key) ? a[key] : Json(), value, under(key));
      for (const auto& [key, value] : a.items()) {
        if (!b.contains(key)) self(self, value, Json(), under(key));
      }
      return;
    }
    changed.push_back(fmt::format("{} was {}, now {}", path, dump_json(a), dump_json(b)));
  };
  compare(compare, saved, now, "");
  if (!changed.empty()) {
    throw_error<ConfigError>(
        "[resume] expected the config that {} was saved with; got: {}; use another output, or the "
        "old settings",
        checkpoint.string(), fmt::join(changed, "; "));
  }
}

class Run {
 public:
  Run(const RunConfig& config, const StepPlan& plan, const TrainerHooks& hooks,
      const TrainerOptions& options)
      : config_(config),
        plan_(plan),
        hooks_(hooks),
        options_(options),
        run_(config.output),
        data_(paths(config.data.train), config.train.sequence_length, config.model.vocab_size),
        order_(data_.sequences(), config.train.batch_size, config.data.shuffle, config.train.seed),
        device_(prepared(options.device, plan, run_)),
        model_(config.model, device_, config.train.dtype),
        optimizer_(model_.parameters(), config.optimizer),
        batch_(config.train.micro_batch_size, config.train.sequence_length),
        transfer_(device_, config.train.batch_size / config.train.micro_batch_size),
        block_(device_, plan.memory.activations),
        train_arena_(device_, plan.train, block_.data()),
        train_replay_(device_, config),
        update_replay_(device_, config) {
    model_.ensure_positions(config.train.sequence_length);
    if (!config.data.validation.empty()) {
      validation_.emplace(config, model_, plan.evaluation, block_.data());
    }
  }

  TrainOutcome run() {
    begin();
    if (step_ >= config_.train.steps && fs::exists(run_ / "final" / "model.safetensors")) {
      log(LogLevel::kInfo, fmt::format("{} is complete: {} steps", run_.string(), step_));
      return TrainOutcome::kFinished;
    }
    MetricsLog metrics(run_ / "metrics.jsonl", step_);
    EventWriter events(run_, step_);
    ProgressLine progress(2.0);
    metrics_ = &metrics;
    events_ = &events;
    progress_ = &progress;
    started_ = Clock::now();
    first_step_ = step_;

    if (!already_evaluated_) evaluate_if_due();
    while (step_ < config_.train.steps) {
      if (stop_requested()) return stop();
      train_step();
      const bool last = step_ == config_.train.steps;
      if (due(config_.train.save_every) && !last) save();
      if (!stop_requested()) evaluate_if_due();
      if (!stop_requested() && (last || due(config_.train.sample_every))) sample();
    }
    if (stop_requested() && validation_)
      return stop();  // the last evaluation may have been cut short
    save();
    save_final(run_, contents(), config_.train.save_dtype);
    metrics.finish();
    events.finish();
    write_report();
    progress.finish();
    return TrainOutcome::kFinished;
  }

 private:
  static std::vector<fs::path> paths(const std::vector<std::string>& names) {
    return {names.begin(), names.end()};
  }

  /// The run directory and the products' algorithms, before memory is taken.
  static Device prepared(const Device& device, const StepPlan& plan, const fs::path& run) {
    std::error_code error;
    fs::create_directories(run, error);
    if (error) {
      throw_error<IoError>("[train] cannot create the run directory {}: {}", run.string(),
                           error.message());
    }
    tune_gemms(device, plan.gemms, (run / "gemm_algorithms.txt").string());
    return device;
  }

  CheckpointContents contents() {
    Json trainer = {
        {"step", step_}, {"tokens", step_ * tokens_per_step()}, {"config", config_.resolved}};
    return {config_.model,          model_.parameters(), optimizer_,
            config_.data.tokenizer, generation_,         std::move(trainer)};
  }

  int64_t tokens_per_step() const {
    return config_.train.batch_size * config_.train.sequence_length;
  }
  bool due(int64_t every) const { return every > 0 && step_ % every == 0; }

  void begin() {
    const std::optional<fs::path> checkpoint = starting_point(config_, options_.resume);
    const fs::path generation =
        (checkpoint ? *checkpoint : fs::path(config_.init_from)) / "generation_config.json";
    if (generation.has_parent_path() && fs::exists(generation)) generation_ = read_file(generation);
    if (checkpoint) {
      const Json trainer = load_checkpoint(*checkpoint, contents());
      step_ = trainer.at("step").get<int64_t>();
      log(LogLevel::kInfo, fmt::format("resuming {} after step {}", run_.string(), step_));
      for (const Json& line : read_metrics(run_ / "metrics.jsonl")) {
        if (line.contains("val_loss") && line.value("step", int64_t{-1}) == step_)
          already_evaluated_ = true;
        if (line.contains("sample") && line.value("step", int64_t{-1}) <= step_) {
          samples_.push_back({line.at("step").get<int64_t>(), line.value("prompt", ""),
                              line.at("sample").get<std::string>()});
        }
      }
    } else {
      if (!config_.init_from.empty()) {
        load_weights(config_.init_from, config_.model, model_.parameters(), optimizer_.weights(),
                     optimizer_.weights_dtype());
      } else {
        InitOptions init;
        init.std = config_.train.init_std;
        if (config_.train.init_scale_residual) {
          init.residual_factor =
              1 / std::sqrt(2.0 * static_cast<double>(config_.model.num_hidden_layers));
        }
        initialize(model_.parameters(), config_.train.seed, init, optimizer_.weights(),
                   optimizer_.weights_dtype());
      }
      optimizer_.publish_weights();
    }
    write_file_atomically(run_ / "config.json", dump_json(config_.resolved, 2) + "\n");
  }

  void train_step() {
    const Clock::time_point start = Clock::now();
    const TrainConfig& t = config_.train;
    const double lr = learning_rate(config_.schedule, config_.optimizer.lr, step_ + 1, t.steps);
    const uint64_t step_key =
        mix_key(mix_key(t.seed, hash_name("dropout")), static_cast<uint64_t>(step_));
    optimizer_.prepare(step_ + 1, lr, t.seed);
    optimizer_.zero_gradients();
    for (int64_t first = 0, slot = 0; first < t.batch_size; first += t.micro_batch_size, ++slot) {
      batch_.begin(static_cast<uint32_t>(first));
      for (int64_t b = 0; b < t.micro_batch_size; ++b) {
        batch_.load(b, data_, order_.sequence(step_, first + b), config_.data.document_mask,
                    config_.model.eos_token_ids);
      }
      const DeviceBatch batch =
          transfer_.send(batch_.host(), slot, step_key, true, config_.model.vocab_size);
      train_replay_.run([&] {
        train_arena_.begin_step();
        Context context{train_arena_};
        context.tf32 = t.tf32;
        context.dropout.embedding = t.dropout_embedding;
        context.dropout.attention = t.dropout_attention;
        context.dropout.residual = t.dropout_residual;
        context.dropout.key = step_key;
        train_pass(context, model_, batch, 1.0 / static_cast<double>(tokens_per_step()),
                   t.recompute);
      });
      transfer_.receive(slot);
    }
    update_replay_.run([&] { optimizer_.update(); });
    const double loss = transfer_.finish_sum() / static_cast<double>(tokens_per_step());
    const double norm = optimizer_.gradient_norm();
    if (!std::isfinite(loss) || !std::isfinite(norm)) {
      throw_error<Error>(
          "[train] expected a finite loss and gradient norm; got {} and {} at step {}; checkpoints "
          "in {} are untouched; "
          "lower optimizer.lr, set optimizer.grad_clip, or look at the data of this step",
          loss, norm, step_ + 1, (run_ / "checkpoints").string());
    }
    ++step_;

    StepReport report;
    report.step = step_;
    report.steps = t.steps;
    report.loss = loss;
    report.lr = lr;
    report.grad_norm = norm;
    report.tokens = step_ * tokens_per_step();
    report.seconds = seconds_since(start);
    report.tokens_per_second = static_cast<double>(tokens_per_step()) / report.seconds;
    if (options_.roof_flops > 0)
      report.mfu = report.tokens_per_second * plan_.flops_per_token / options_.roof_flops;
    report.eta_seconds = seconds_since(started_) / static_cast<double>(step_ - first_step_) *
                         static_cast<double>(t.steps - step_);
    metrics_->step(report);
    events_->step(report);
    if (!options_.quiet) progress_->update(report);
  }

  void evaluate_if_due() {
    if (!validation_ ||
        !(step_ == 0 || step_ == config_.train.steps || due(config_.train.eval_every)))
      return;
    const std::optional<double> scored = validation_->loss();
    if (!scored) return;
    const double loss = *scored;
    metrics_->evaluation(step_, loss);
    events_->evaluation(step_, loss);
    if (!options_.quiet) {
      progress_->note(fmt::format("step {:>6}  validation loss {:.4f}  perplexity {:.2f}", step_,
                                  loss, std::exp(loss)));
    }
    write_report();
  }

  void sample() {
    if (!hooks_.sample) return;
    const Sample s = hooks_.sample(model_, step_);
    samples_.push_back(s);
    metrics_->write({{"step", step_}, {"prompt", s.prompt}, {"sample", s.text}});
    if (!options_.quiet)
      progress_->note(fmt::format("step {:>6}  sample: {}{}", step_, s.prompt, s.text));
  }

  void save() { save_checkpoint(run_, step_, contents(), config_.train.keep); }

  TrainOutcome stop() {
    save();
    write_report();
    progress_->finish();
    log(LogLevel::kInfo,
        fmt::format(
            "stopped by a signal after step {}; saved; run the same command again to continue",
            step_));
    return TrainOutcome::kStoppedBySignal;
  }

  void write_report() {
    RunReport report;
    report.title = run_.filename().string();
    report.subtitle = fmt::format("{} steps of {}, {} tokens each, {}", step_, config_.train.steps,
                                  format_count(static_cast<double>(tokens_per_step())),
                                  dtype_name(config_.train.dtype));
    report.runs = {{report.title, read_metrics(run_ / "metrics.jsonl")}};
    report.config = config_.resolved;
    report.kv = kv_report(config_.model, model_.layout(), config_.train.dtype);
    report.tables = {parameter_table(config_.model), memory_table(plan_.memory)};
    report.samples = samples_;
    report.reference_lines = options_.references;
    write_file_atomically(run_ / "report.html", render_html(report));
  }

  const RunConfig& config_;
  const StepPlan& plan_;
  const TrainerHooks& hooks_;
  const TrainerOptions& options_;
  fs::path run_;
  TokenDataset data_;
  BatchOrder order_;
  Device device_;
  Transformer model_;
  Optimizer optimizer_;
  MicroBatch batch_;
  BatchTransfer transfer_;
  DeviceMemory block_;
  Arena train_arena_;
  std::optional<Validation> validation_;
  Replay train_replay_, update_replay_;
  int64_t step_ = 0, first_step_ = 0;
  bool already_evaluated_ = false;
  std::string generation_;  // how the model that the run began with was meant to be sampled
  std::vector<Sample> samples_;
  Clock::time_point started_;
  MetricsLog* metrics_ = nullptr;
  EventWriter* events_ = nullptr;
  ProgressLine* progress_ = nullptr;
};

}  // namespace

std::optional<fs::path> starting_point(const RunConfig& config, ResumeMode mode) {
  const fs::path run = config.output;
  if (mode == ResumeMode::kNever && has_checkpoints(run)) {
    throw_error<ConfigError>(
        "[train] expected an output without checkpoints (--resume never); got {}; name another "
        "output or use --resume auto",
        run.string());
  }
  const std::optional<fs::path> checkpoint = newest_checkpoint(run);
  if (checkpoint) {
    const Json trainer = read_json_file((*checkpoint / "trainer.json").string());
    check_same_run(trainer.at("config"), config.resolved, *checkpoint);
  } else if (mode == ResumeMode::kMust) {
    throw_error<IoError>("[train] expected a complete checkpoint to resume in {}; got none",
                         run.string());
  }
  return checkpoint;
}

TrainOutcome train(const RunConfig& config, const StepPlan& plan, const TrainerHooks& hooks,
                   const TrainerOptions& options) {
  const int64_t available =
      device_runtime(options.device.kind).available_bytes(options.device.index);
  check_memory(config, plan, options.memory_limit > 0 ? options.memory_limit : available,
               options.device);
  return Run(config, plan, hooks, options).run();
}

}  // namespace heirloom
