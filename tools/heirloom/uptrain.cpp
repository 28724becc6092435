// SPDX-License-Identifier: Apache-2.0
//
// heirloom uptrain: conversion and continued training in one resumable run. The recipe is
// SkipV1Former's (arXiv 2510.16807, section 5.1 and appendix): everything as the original was
// pretrained but for 1.5 times its final learning rate, warmed up again over 1% of the new budget and
// decayed by cosine to 10%, without dropout, with fresh optimizer state.
#include <fmt/format.h>

#include <cstdio>

#include "conversion.h"
#include "heirloom/core/log.h"
#include "heirloom/io/field_reader.h"
#include "heirloom/report/metrics_log.h"
#include "heirloom/tokenizer/tokenizer.h"
#include "heirloom/train/validation.h"
#include "training.h"

namespace heirloom::cli {
namespace {

constexpr int64_t kSavesPerRun = 10;  // where nothing says how often
constexpr double kLearningRateFactor = 1.5, kWarmupRatio = 0.01, kMinLearningRateRatio = 0.1;

struct UptrainCommand {
  TrainingOptions training;
  std::string from, tokenizer, kv_sharing, method, original, from_scratch, output;
  int64_t kv_heads = 0;
  double share = 0;
};

/// `over` on top of `under`, section by section.
Json merged(Json under, const Json& over) {
  if (!under.is_object() || !over.is_object()) return over;
  for (const auto& [key, value] : over.items()) {
    under[key] = under.contains(key) ? merged(under[key], value) : value;
  }
  return under;
}

/// The run that trained a model directory (<run>/final, <run>/checkpoints/step-...), or nothing.
std::string run_of(const fs::path& model) {
  fs::path path = fs::absolute(model).lexically_normal();
  if (path.filename().empty()) path = path.parent_path();
  for (const fs::path& run : {path.parent_path(), path.parent_path().parent_path()}) {
    if (fs::exists(run / "config.json") && fs::exists(run / "metrics.jsonl")) return run.string();
  }
  return {};
}

/// How the original was trained: a run directory's config, or a preset's.
struct Original {
  std::string name;  ///< empty: not known
  Json json;
  RunConfig config;
};

Original find_original(const std::string& name, const fs::path& model, const std::string& preset) {
  Original original;
  original.name = !name.empty() ? name : !preset.empty() ? preset : run_of(model);
  if (original.name.empty()) return original;
  const fs::path file = fs::path(original.name) / "config.json";
  const bool is_path =
      fs::is_directory(original.name) || original.name.find('/') != std::string::npos;
  original.json = is_path ? read_json_file(file.string()) : preset_run(original.name);
  if (!original.json.is_object() || !original.json.value("data", Json::object()).is_object()) {
    throw_error<ConfigError>("[uptrain] original: expected a run's config.json; got {}; {}",
                             quote_json(original.json), file.string());
  }
  for (const char* key : {"convert", "uptrain"}) original.json.erase(key);
  Json complete = original.json;
  if (!complete.contains("output")) complete["output"] = "-";
  if (!complete["data"].contains("train")) complete["data"]["train"] = "-";
  original.config = parse_run_config(complete, original.name);
  if (original.config.train.steps == 0) {
    throw_error<ConfigError>("[uptrain] original: expected a run with steps; got none; {}",
                             original.name);
  }
  return original;
}

/// What a run config says unless the user does.
Json recipe(const Original& original, double share) {
  Json json = Json::object();
  json["train"]["dropout"] = {{"embedding", 0}, {"attention", 0}, {"residual", 0}};
  json["schedule"] = {
      {"name", "cosine"}, {"warmup_ratio", kWarmupRatio}, {"min_lr_ratio", kMinLearningRateRatio}};
  if (original.name.empty()) return json;
  const RunConfig& run = original.config;
  json["data"] = original.json.value("data", Json::object());
  Json train = original.json.value("train", Json::object());
  for (const char* key : {"init", "steps", "sample_every"}) train.erase(key);
  // Other batches than those that the original began with.
  train["seed"] = run.train.seed + 1;
  json["train"] = merged(std::move(train), json["train"]);
  if (share > 0) {
    json["train"]["steps"] =
        std::max<int64_t>(1, std::llround(share * static_cast<double>(run.train.steps)));
  }
  json["optimizer"] = original.json.value("optimizer", Json::object());
  json["optimizer"]["lr"] = kLearningRateFactor * learning_rate(run.schedule, run.optimizer.lr,
                                                                run.train.steps, run.train.steps);
  return json;
}

double training_flops(const RunConfig& run) {
  return static_cast<double>(run.train.steps * run.train.batch_size * run.train.sequence_length) *
         plan_step(run, run.train.micro_batch_size).flops_per_token;
}

/// What a loss was computed from and on: it is computed anew where this changes.
std::string reference_key(const char* name, const fs::path& model, const RunConfig& run) {
  std::error_code ignored;
  fs::path weights = model;
  for (const char* file : {"model.safetensors", "model.safetensors.index.json"}) {
    if (fs::exists(model / file)) weights = model / file;
  }
  return fmt::format("{}: {} of {} on {}, {} batches of {} x {}, {}{}", name, model.string(),
                     fs::last_write_time(weights, ignored).time_since_epoch().count(),
                     run.data.validation, run.train.eval_batches, run.train.batch_size,
                     run.train.sequence_length, dtype_name(run.train.dtype),
                     run.data.document_mask == DocumentMask::kNone ? "" : ", documents apart");
}

/// Losses that the report shows as lines, computed once per run directory.
std::vector<ReferenceLine> references(const RunConfig& run, const UptrainCommand& o,
                                      const Device& device) {
  const fs::path file = fs::path(run.output) / "references.json";
  Json known = fs::exists(file) ? read_json_file(file.string()) : Json::object();
  if (!known.is_object()) known = Json::object();
  std::vector<ReferenceLine> lines;
  const auto add = [&](const char* name, const fs::path& model) {
    const std::string key = reference_key(name, model, run);
    if (!known.contains(key) || !known[key].is_number()) {
      const auto loaded = load_imported(import_model(model), device, run.train.dtype);
      const std::optional<double> loss = validation_loss(run, *loaded);
      if (!loss) return;  // stopped; the run says so
      known[key] = *loss;
      write_file_atomically(file, dump_json(known, 2) + "\n");
    }
    lines.push_back({name, known[key].is_number() ? known[key].get<double>() : std::nan("")});
    log(LogLevel::kInfo, fmt::format("{}: validation loss {:.4f}", name, lines.back().value));
  };
  add("original", o.from);
  if (!o.from_scratch.empty()) add("from scratch", o.from_scratch);
  return lines;
}

/// The option, else the config's.
Json text_or(const Json& section, const char* key, const std::string& option) {
  if (!option.empty()) return option;
  return section.is_object() && section.contains(key) ? section[key] : Json();
}

std::string string_of(const Json& value, const char* key) {
  if (value.is_null()) return {};
  if (value.is_string()) return value.get<std::string>();
  throw_error<ConfigError>("[uptrain] {}: expected a string; got {}", key, dump_json(value));
}

/// "convert" of the config, under the command's options.
ConvertOptions convert_options(const UptrainCommand& o, const Json& section) {
  Problems problems("uptrain config");
  FieldReader fields(section, "convert", problems);
  fields.allow("from");  // what a run's own config.json says of it
  ConvertOptions options;
  if (const Json* sharing = fields.take("kv_sharing")) options.kv_sharing = *sharing;
  if (options.kv_sharing.is_string()) {
    options.kv_sharing = parse_kv_sharing(options.kv_sharing.get<std::string>());
  }
  options.kv_heads = fields.integer("kv_heads", 0, 1, 4096);
  options.method = string_of(text_or(section, "method", o.method), "convert.method");
  if (options.method.empty()) options.method = "mean-v";
  fields.allow("method");
  fields.reject_unknown();
  problems.throw_if_any();
  if (!o.kv_sharing.empty()) options.kv_sharing = parse_kv_sharing(o.kv_sharing);
  if (o.kv_heads > 0) options.kv_heads = o.kv_heads;
  return options;
}

double loss_at(const fs::path& run, int64_t step) {
  double loss = std::nan("");
  for (const Json& line : read_metrics(run / "metrics.jsonl")) {
    if (line.contains("val_loss") && line.value("step", int64_t{-1}) == step) {
      loss = line.at("val_loss").is_number() ? line.at("val_loss").get<double>() : loss;
    }
  }
  return loss;
}

/// Everything that is settled before a run begins.
struct Uptraining {
  ImportedModel from;
  ConvertOptions options;
  ConversionPlan plan;
  Original original;
  RunConfig config;
  fs::path initial;            ///< where the converted model lies
  bool has_tokenizer = false;  ///< the converted model will have one
};

/// The tree of the run: the user's on top of the recipe, the model from the conversion.
Json run_json(const Json& user, const Uptraining& u, double share) {
  Json defaults = recipe(u.original, share);
  const auto says = [&user](const char* section, const char* key) {
    return user.contains(section) && user[section].is_object() && user[section].contains(key);
  };
  if (says("schedule", "warmup_steps")) defaults["schedule"].erase("warmup_ratio");
  if (share > 0 && says("train", "steps")) {
    throw_error<ConfigError>(
        "[uptrain] expected train.steps or a share of the original's; got both");
  }
  if (u.original.name.empty()) {
    if (share > 0) {
      throw_error<ConfigError>(
          "[uptrain] share: expected to know how the original was trained; got a model outside a "
          "run directory; name its run or preset with --original, or give train.steps");
    }
    if (!says("optimizer", "lr")) {
      throw_error<ConfigError>(
          "[uptrain] optimizer.lr: expected the learning rate (the paper's: 1.5 times the "
          "original's last); got none, nor the original's run or preset (--original)");
    }
  }
  Json json = merged(std::move(defaults), user);
  if (!u.original.name.empty() && !says("optimizer", "lr") && json["optimizer"]["lr"] == 0) {
    throw_error<ConfigError>(
        "[uptrain] optimizer.lr: expected a learning rate; got none, and the original's last, of "
        "which the recipe takes 1.5 times, is 0; {}",
        u.original.name);
  }
  json["model"] = model_config_json(u.plan.config);
  json["init_from"] = u.initial.string();
  if (json["data"].is_object() && !json["data"].contains("tokenizer") && u.has_tokenizer) {
    json["data"]["tokenizer"] = u.initial.string();
  }
  Json& train = json["train"];
  if (train.is_object() && !train.contains("save_every") && train.contains("steps") &&
      train["steps"].is_number_integer()) {
    train["save_every"] = std::max<int64_t>(1, train["steps"].get<int64_t>() / kSavesPerRun);
  }
  return json;
}

Uptraining settle(UptrainCommand& o) {
  // Here --preset names the recipe that the original was trained by.
  const std::string preset = std::exchange(o.training.preset, "");
  std::string origin;
  Json json = training_json(o.training, origin);
  if (!json.is_object()) {
    throw_error<ConfigError>("[uptrain] expected an object; got {}; {}", quote_json(json), origin);
  }
  if (!o.output.empty()) json["output"] = o.output;
  const Json convert = json.value("convert", Json::object());
  const Json section = json.value("uptrain", Json::object());
  json.erase("convert");
  json.erase("uptrain");
  for (const char* key : {"model", "init_from"}) {
    if (json.erase(key) > 0) {
      log(LogLevel::kWarning,
          fmt::format("{}: {} is passed over: the model comes from --from", origin, key));
    }
  }
  Problems problems(origin);
  FieldReader fields(section, "uptrain", problems);
  const double share = o.share > 0 ? o.share : fields.number("share", 0.0, {0, 1e3});
  o.original = string_of(text_or(section, "original", o.original), "uptrain.original");
  o.from_scratch =
      string_of(text_or(section, "from_scratch", o.from_scratch), "uptrain.from_scratch");
  for (const char* key : {"share", "original", "from_scratch"}) fields.allow(key);
  fields.reject_unknown();
  problems.throw_if_any();

  Uptraining u;
  u.from = import_model(o.from, o.tokenizer);
  u.has_tokenizer = !u.from.tokenizer_json.empty() || u.from.files.contains("tokenizer.json") ||
                    u.from.files.contains("tokenizer.model") ||
                    (fs::is_directory(o.from) && Tokenizer::is_in(o.from));
  u.options = convert_options(o, convert);
  u.plan = plan_conversion(u.from.config, u.options);
  u.original = find_original(o.original, o.from, preset);
  const Json output = json.value("output", Json());
  u.initial = fs::path(output.is_string() ? output.get<std::string>() : "") / "initial";
  u.config = parse_run_config(run_json(json, u, share), origin);
  // What a resumed run may not change beside the model itself.
  u.config.resolved["convert"] = {
      {"from", o.from},
      {"kv_sharing", model_config_json(with_model_type(u.plan.config, "heirloom"))["kv_sharing"]},
      {"kv_heads", u.plan.config.num_key_value_heads},
      {"method", u.options.method}};
  check_sources_stay(u.config.output, {o.from, o.from_scratch, o.tokenizer}, "output",
                     InPlace::kRefused);
  if (!o.from_scratch.empty()) {
    const fs::path scratch = o.from_scratch;
    if (fs::is_directory(scratch / "final")) o.from_scratch = (scratch / "final").string();
    read_model_config(o.from_scratch);  // says what is wrong with it
  }
  return u;
}

/// What the uptraining costs of what the original did; empty where that is not known.
Json shares(const Uptraining& u) {
  if (u.original.name.empty()) return Json::object();
  const RunConfig &now = u.config, &then = u.original.config;
  return {{"share_of_original_steps",
           static_cast<double>(now.train.steps) / static_cast<double>(then.train.steps)},
          {"share_of_original_compute", training_flops(now) / training_flops(then)}};
}

int run_uptrain(UptrainCommand o) {
  const Device device = apply_common_options(o.training.common, Devices::kAll);
  Uptraining u = settle(o);
  Json summary = {{"from", o.from},
                  {"conversion", conversion_json(u.from.config, u.plan, u.options)}};
  summary.update(shares(u));
  const bool talk = o.training.common.json != "-";
  if (talk) {
    print_conversion(u.from.config, u.plan);
    if (summary.contains("share_of_original_steps")) {
      std::printf("\n%lld steps: %.1f %% of the original's %lld, %.1f %% of its compute (FLOPs)\n",
                  static_cast<long long>(u.config.train.steps),
                  100 * summary["share_of_original_steps"].get<double>(),
                  static_cast<long long>(u.original.config.train.steps),
                  100 * summary["share_of_original_compute"].get<double>());
    }
  }
  if (o.training.dry_run) {
    dry_run(o.training, u.config, device, summary);
    return kDone;
  }

  const fs::path run = u.config.output;
  std::vector<ReferenceLine> lines;
  const bool evaluates = !u.config.data.validation.empty();
  const auto prepare = [&](bool fresh) {
    // What the run will read is looked at before anything is written.
    const auto look = [&](std::vector<fs::path> shards) {
      TokenDataset(shards, u.config.train.sequence_length, u.config.model.vocab_size);
    };
    look({u.config.data.train.begin(), u.config.data.train.end()});
    if (evaluates) look({u.config.data.validation});
    if (fresh) convert_model(u.from, u.plan, u.options, u.initial);
    if (evaluates) lines = references(u.config, o, device);
    return lines;
  };
  const ExitCode code = run_training(o.training, u.config, device, prepare);
  if (code != kDone) return code;

  Json losses = Json::object();
  for (const ReferenceLine& line : lines) losses[line.name] = line.value;
  if (evaluates) {
    losses["converted"] = loss_at(run, 0);
    losses["uptrained"] = loss_at(run, u.config.train.steps);
  }
  summary["conversion"] = conversion_json(u.from.config, u.plan, u.options);
  summary["validation_loss"] = losses;
  summary["output"] = run.string();
  if (talk) {
    if (!losses.empty()) std::printf("\n%-24s %10s\n", "validation loss", "");
    for (const auto& [name, loss] : losses.items()) {
      std::printf("%-24s %10.4f\n", name.c_str(), loss.get<double>());
    }
  }
  write_json_result(o.training.common, summary);
  return kDone;
}

}  // namespace

void add_uptrain_command(Cli& cli) {
  CLI::App* command = cli.app.add_subcommand(
      "uptrain", "convert a checkpoint and continue its training, in one resumable run");
  auto o = std::make_shared<UptrainCommand>();
  command->add_option("--from", o->from, "model directory, .gguf or llama2.c .bin")->required();
  add_training_options(command, o->training,
                       "the recipe the original was trained by: gpt2-125m, llama-60m, ...");
  command->add_option("--tokenizer", o->tokenizer,
                      "tokenizer.json, SentencePiece .model, directory with one, or (llama2.c) "
                      "tokenizer.bin [the source's]");
  command->add_option("--kv-sharing", o->kv_sharing,
                      "scheme: JSON or a bare name [convert.kv_sharing]");
  command->add_option("--kv-heads", o->kv_heads, "KV heads [convert.kv_heads, else as they are]")
      ->check(CLI::Range(int64_t{1}, int64_t{4096}));
  command->add_option("--method", o->method,
                      convert_methods_help() + "\n[convert.method, else mean-v]");
  command
      ->add_option("--share", o->share,
                   "share of the original's steps, 0.1 for 10% [uptrain.share]")
      ->check(CLI::Range(0.0, 1000.0));
  command->add_option("--original", o->original,
                      "run directory or preset that the original was trained by [uptrain.original, "
                      "else the run that --from lies in]");
  command->add_option("--from-scratch", o->from_scratch,
                      "run or model directory of the target trained from scratch: its loss is a "
                      "line in the report [uptrain.from_scratch]");
  command->add_option("--output", o->output, "run directory [output]");
  command->callback([&cli, o] { cli.action = [o] { return run_uptrain(*o); }; });
}

}  // namespace heirloom::cli
