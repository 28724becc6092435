// SPDX-License-Identifier: Apache-2.0
//
// heirloom convert: a checkpoint rewritten for another KV plan, number of KV heads, model_type or
// dtype.
#include <fmt/format.h>

#include <cstdio>

#include "conversion.h"
#include "heirloom/core/log.h"
#include "heirloom/tokenizer/tokenizer.h"
#include "scoring.h"

namespace heirloom::cli {
namespace {

struct ConvertCommand {
  CommonOptions common;
  std::string from, out, tokenizer, kv_sharing, data;
  ConvertOptions convert;
  int64_t context = 0, stride = 0;
  bool overwrite = false;
};

void check_out(const ConvertCommand& o) {
  if (!heirloom::exists(o.out)) return;
  if (heirloom::is_directory(o.out) && fs::is_empty(o.out)) return;
  if (!o.overwrite) {
    throw_error<ConfigError>(
        "[convert] expected --out to name a new or empty directory; got {}, which holds something; "
        "name another or add --overwrite",
        o.out);
  }
  // A slip of the hand must not remove a folder of runs.
  bool model = heirloom::is_regular_file(fs::path(o.out) / "config.json");
  if (model) {
    for (const auto& entry : fs::directory_iterator(o.out)) model = model && !entry.is_directory();
  }
  if (!model) {
    throw_error<ConfigError>(
        "[convert] expected --overwrite to replace a model directory: config.json and no folders; "
        "got {}; name another --out",
        o.out);
  }
}

/// The text of --data under the tokenizer that the result will have.
SequenceSet read_data(const ConvertCommand& o, const ImportedModel& from) {
  SequenceOptions reading;
  reading.vocab_size = from.config.vocab_size;
  if (!from.tokenizer_json.empty()) {
    reading.loaded = Tokenizer::from_json(from.tokenizer_json, "the tokenizer of " + o.from);
  } else if (!o.tokenizer.empty() || heirloom::is_directory(o.from)) {
    reading.tokenizer = o.tokenizer.empty() ? o.from : o.tokenizer;
  }
  return read_sequences(o.data, reading);
}

Json score_json(const PerplexityResult& r) {
  return {{"tokens", r.tokens}, {"nll_mean", r.nll_mean()}, {"perplexity", r.perplexity()}};
}

int run_convert(const ConvertCommand& o) {
  const Device device = apply_common_options(o.common, Devices::kAll);
  ConvertOptions options = o.convert;
  options.kv_sharing = parse_kv_sharing(o.kv_sharing);
  options.dtype = o.common.dtype;
  check_sources_stay(o.out, {o.from, o.tokenizer, o.data}, "--out", InPlace::kAllowed);
  check_out(o);
  const ImportedModel from = import_model(o.from, o.tokenizer);
  ConversionPlan plan = plan_conversion(from.config, options);
  // What is to be scored is read, and known to fit, before anything is written.
  SequenceSet data;
  PerplexityOptions windows;
  if (!o.data.empty()) {
    const int64_t positions = from.config.max_position_embeddings;
    windows =
        window_options(from.config, o.context > 0 ? o.context : positions, o.stride, "convert");
    data = read_data(o, from);
    check_scoring_memory(from.config, device, Dtype::kFloat32, data, windows);
    check_scoring_memory(plan.config, device, Dtype::kFloat32, data, windows);
  }
  convert_model(from, plan, options, o.out);

  Json object = {{"from", o.from}, {"out", o.out}};
  object.update(conversion_json(from.config, plan, options));
  const bool talk = o.common.json != "-";
  if (talk) print_conversion(from.config, plan);
  if (!o.data.empty()) {
    const auto score = [&](const ImportedModel& model) {  // one in memory at a time
      return evaluate_perplexity(*load_imported(model, device, Dtype::kFloat32), data, windows);
    };
    const PerplexityResult before = score(from);
    const PerplexityResult after = score(import_directory(o.out));
    object["data"] = o.data;
    object["before"].update(score_json(before));
    object["after"].update(score_json(after));
    if (talk) {
      std::printf("\n%-28s %16s %16s\n", "", "before", "after");
      std::printf("%-28s %16.4f %16.4f\n", "loss (nats per token)", before.nll_mean(),
                  after.nll_mean());
      std::printf("%-28s %16.2f %16.2f\n", "perplexity", before.perplexity(), after.perplexity());
      std::printf("%-28s %16lld\n", "tokens scored", static_cast<long long>(before.tokens));
    }
  }
  if (talk) std::printf("\nwritten to %s\n", o.out.c_str());
  write_json_result(o.common, object);
  return kDone;
}

}  // namespace

void add_convert_command(Cli& cli) {
  CLI::App* command = cli.app.add_subcommand(
      "convert", "rewrite a checkpoint for another KV plan, model_type or dtype");
  auto o = std::make_shared<ConvertCommand>();
  o->common.dtype.clear();
  add_common_options(command, o->common);
  command->get_option("--dtype")->description(
      "of the result's tensors: float32, bfloat16 or float16 [each tensor keeps its own]");
  command->get_option("--dtype")->check(CLI::IsMember({"float32", "bfloat16", "float16"}));
  command->add_option("--from", o->from, "model directory, .gguf (GGUF) or .bin (llama2.c)")
      ->required();
  command->add_option("--out", o->out, "model directory to write, complete or absent")->required();
  command->add_option("--tokenizer", o->tokenizer,
                      "tokenizer.json, SentencePiece .model, directory with one, or (llama2.c) "
                      "tokenizer.bin [the source's]");
  command->add_option(
      "--kv-sharing", o->kv_sharing,
      "scheme, as in a config: '{\"scheme\": \"skipv1\", \"ratio\": 0.5}', or a bare name "
      "[as it is]");
  command
      ->add_option("--kv-heads", o->convert.kv_heads,
                   "KV heads of the result: adjacent ones are averaged [as many as there are]")
      ->check(CLI::Range(int64_t{1}, int64_t{4096}));
  command->add_option("--method", o->convert.method, convert_methods_help())->capture_default_str();
  command->add_option("--format", o->convert.model_type,
                      "model_type of the result: heirloom, llama, gpt2, ... [the source's where it "
                      "can say the result, else heirloom]");
  command->add_option("--data", o->data,
                      "text, JSONL or token shard: perplexity before and after, in float32");
  command->add_option("--context", o->context, "tokens of a window [the model's positions]")
      ->check(CLI::Range(int64_t{1}, int64_t{INT32_MAX}));
  command->add_option("--stride", o->stride, "tokens from one window to the next [context]")
      ->check(CLI::Range(int64_t{1}, int64_t{INT32_MAX}));
  command->add_flag("--overwrite", o->overwrite, "replace what --out holds");
  command->callback([&cli, o] { cli.action = [o] { return run_convert(*o); }; });
}

}  // namespace heirloom::cli
