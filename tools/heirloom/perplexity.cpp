// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <cstdio>

#include "heirloom/core/error.h"
#include "heirloom/core/log.h"
#include "heirloom/io/file.h"
#include "heirloom/model/load.h"
#include "heirloom/report/progress.h"
#include "scoring.h"

namespace heirloom::cli {
namespace {

struct Options {
  CommonOptions common;
  std::string model, data, tokenizer, protocol, dump;
  int64_t context = 0, stride = 0;
  int64_t tokens_per_pass = PerplexityOptions{}.tokens_per_pass;
  bool no_special = false;
};

/// Short runs show nothing; longer ones a line on a terminal, else one every few seconds.
class Progress {
 public:
  explicit Progress(bool quiet) : quiet_(quiet) {}

  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

  void update(const PerplexityResult& so_far, int64_t total) {
    if (quiet_ || (passes_++ == 0 && so_far.tokens == total)) return;
    const double elapsed = seconds();
    if (elapsed < kQuietSeconds) return;
    StepReport report;
    report.step = report.tokens = so_far.tokens;
    report.steps = total;
    report.loss = so_far.nll_mean();
    report.tokens_per_second = static_cast<double>(so_far.tokens) / elapsed;
    report.eta_seconds =
        static_cast<double>(total - so_far.tokens) / std::max(report.tokens_per_second, 1e-9);
    line_.update(report);
  }

 private:
  static constexpr double kQuietSeconds = 2, kLineSeconds = 5;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  bool quiet_;
  int64_t passes_ = 0;
  ProgressLine line_{kLineSeconds};
};

/// One JSON line per window; doubles in the shortest form that reads back as the same number.
class NllDump {
 public:
  explicit NllDump(const std::string& path) {
    if (!path.empty()) file_.emplace(path);
  }
  void write(std::span<const double> nll) {
    if (!file_) return;
    line_ = "{\"nll\": [";
    for (size_t i = 0; i < nll.size(); ++i) {
      if (i > 0) line_ += ", ";
      std::isfinite(nll[i]) ? fmt::format_to(std::back_inserter(line_), "{}", nll[i])
                            : fmt::format_to(std::back_inserter(line_), "null");
    }
    line_ += "]}\n";
    file_->writer().write(line_);
  }
  void commit() {
    if (file_) file_->commit();
  }

 private:
  std::optional<AtomicFile> file_;
  std::string line_;
};

void print_table(const Json& result) {
  const auto row = [&](const char* key, const char* label) {
    const auto value = result.find(key);
    if (value == result.end() || value->is_null()) return;
    const std::string text = value->is_number_float() ? fmt::format("{:.6g}", value->get<double>())
                             : value->is_string()     ? value->get<std::string>()
                                                      : value->dump();
    fmt::print("{:<18}{}\n", label, text);
  };
  row("tokens", "tokens scored");
  row("nll_mean", "nll (nats)");
  row("perplexity", "perplexity");
  row("bits_per_byte", "bits per byte");
  row("word_perplexity", "word perplexity");
  row("protocol", "protocol");
  row("context", "context");
  row("stride", "stride");
  row("dtype", "dtype");
  row("device", "device");
  fmt::print("{:<18}{}\n", "time", format_duration(result["seconds"].get<double>()));
  fmt::print("{:<18}{}\n", "tokens/s", format_count(result["tokens_per_second"].get<double>()));
}

int run_perplexity(const Options& o) {
  const Device device = apply_common_options(o.common, Devices::kAll);
  const Dtype dtype = parse_dtype(
      o.common.dtype, device.kind == DeviceKind::kCpu ? Dtype::kFloat32 : Dtype::kBFloat16);
  const SequenceFormat format = sequence_format(o.data);
  const std::string protocol = !o.protocol.empty()                ? o.protocol
                               : format == SequenceFormat::kJsonl ? "per-line"
                                                                  : "sliding";
  const bool per_line = protocol == "per-line";
  if (per_line && format == SequenceFormat::kShard) {
    throw_error<ConfigError>(
        "[perplexity] expected --protocol sliding for a token shard; got per-line");
  }
  const ModelConfig config = read_model_config(o.model);
  const int64_t context = o.context > 0 ? o.context : per_line ? 0 : config.max_position_embeddings;
  PerplexityOptions options = window_options(config, context, o.stride, "perplexity");
  options.tokens_per_pass = o.tokens_per_pass;
  if (options.context > config.max_position_embeddings) {
    log(LogLevel::kWarning, fmt::format("context {} is longer than the model's {} positions",
                                        options.context, config.max_position_embeddings));
  }

  SequenceOptions reading;
  reading.vocab_size = config.vocab_size;
  reading.tokenizer = o.tokenizer.empty() ? o.model : o.tokenizer;
  reading.add_special = !o.no_special;
  reading.split_lines = per_line;
  const SequenceSet data = read_sequences(o.data, reading);
  check_scoring_memory(config, device, dtype, data, options);
  const std::unique_ptr<Transformer> model = load_model(o.model, device, dtype);

  NllDump dump(o.dump);
  Progress progress(o.common.quiet);
  PerplexityHooks hooks;
  hooks.on_window = [&](std::span<const double> nll) { dump.write(nll); };
  hooks.on_pass = [&](const PerplexityResult& r, int64_t total) { progress.update(r, total); };
  const PerplexityResult result = evaluate_perplexity(*model, data, options, hooks);
  const double seconds = progress.seconds();
  dump.commit();
  if (!std::isfinite(result.nll_sum)) {
    log(LogLevel::kWarning,
        "the sum of the nll is not finite: the weights or their range are broken");
  }

  Json object = {{"tokens", result.tokens},
                 {"sequences", data.count()},
                 {"nll_sum", result.nll_sum},
                 {"nll_mean", result.nll_mean()},
                 {"perplexity", result.perplexity()}};
  if (data.text_known) {
    object["bits_per_byte"] = result.bits_per_byte(data.bytes);
    object["word_perplexity"] = result.word_perplexity(data.words);
    object["bytes"] = data.bytes;
    object["words"] = data.words;
  }
  object["protocol"] = protocol;
  object["context"] = options.context > 0 ? Json(options.context) : Json();
  object["stride"] = options.context > 0 ? Json(options.stride) : Json();
  object["dtype"] = dtype_name(dtype);
  object["device"] = device_name(device);
  object["model"] = o.model;
  object["data"] = o.data;
  object["seconds"] = seconds;
  object["tokens_per_second"] = static_cast<double>(result.tokens) / std::max(seconds, 1e-9);
  if (o.common.json != "-") print_table(object);
  write_json_result(o.common, object);
  return kDone;
}

}  // namespace

void add_perplexity_command(Cli& cli) {
  CLI::App* command = cli.app.add_subcommand("perplexity", "score text or tokens with a model");
  auto o = std::make_shared<Options>();
  add_common_options(command, o->common);
  command->add_option("--model", o->model, "model directory")->required();
  command
      ->add_option(
          "--data", o->data,
          "text (.txt), JSONL with \"text\" or \"tokens\" (.jsonl; either also .gz, .zst), "
          "or a token shard (.bin)")
      ->required();
  command->add_option("--tokenizer", o->tokenizer, "for text [the model's]");
  command
      ->add_option(
          "--protocol", o->protocol,
          "sliding: windows over each stream [default for text and shards]; per-line: each "
          "line by itself [default for JSONL]")
      ->check(CLI::IsMember({"sliding", "per-line"}));
  command
      ->add_option("--context", o->context,
                   "tokens of a window [sliding: the model's positions; per-line: whole lines]")
      ->check(CLI::Range(int64_t{1}, int64_t{INT32_MAX}));
  command->add_option("--stride", o->stride, "tokens from one window to the next [context]")
      ->check(CLI::Range(int64_t{1}, int64_t{INT32_MAX}));
  command
      ->add_option("--batch", o->tokens_per_pass,
                   "tokens of the windows that run together; bounds memory, not the result")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24))
      ->capture_default_str();
  command->add_option("--dump-nll", o->dump, "one JSON line per window: {\"nll\": [...]}, in nats");
  command->add_flag("--no-special", o->no_special,
                    "do not add the special tokens that the tokenizer adds");
  command->callback([&cli, o] { cli.action = [o] { return run_perplexity(*o); }; });
}

}  // namespace heirloom::cli
