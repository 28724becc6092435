// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <set>

#include "command.h"
#include "heirloom/core/error.h"
#include "heirloom/core/log.h"
#include "heirloom/decode/engine.h"
#include "heirloom/io/field_reader.h"
#include "heirloom/io/file.h"
#include "heirloom/model/load.h"
#include "heirloom/report/progress.h"
#include "heirloom/train/trainer.h"

namespace heirloom::cli {
namespace {

struct GenerateCommand {
  CommonOptions common;
  std::string model, tokenizer, prompts, prompt, out;
  int64_t max_new_tokens = 256, max_sequences = 32, cache_bytes = 0;
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<int64_t> top_k;
  std::vector<std::string> stop;
  bool ignore_eos = false, logprobs = false;
};

/// A prompt line: a request, or why it is none.
struct PromptLine {
  GenerationRequest request;
  std::string error;
};

template <class T>
void take_number(const Json& line, const char* key, T& value, double low, double high,
                 const std::string& where = {}) {
  const auto it = line.find(key);
  if (it == line.end() || it->is_null()) return;
  if (!it->is_number() || !(it->get<double>() >= low && it->get<double>() <= high)) {
    throw_error<FormatError>("[{}] expected {} between {} and {}; got {}{}",
                             where.empty() ? "prompt" : "generation", key, low, high,
                             quote_json(*it), where.empty() ? "" : "; " + where);
  }
  value = it->get<T>();
}

/// What a line may say for itself, over the command's options.
void apply_overrides(const Json& line, GenerationRequest& r) {
  take_number(line, "max_new_tokens", r.max_new_tokens, 0, 1e9);
  take_number(line, "temperature", r.sampling.temperature, 0, 1e6);
  take_number(line, "top_k", r.sampling.top_k, 0, 1e9);
  take_number(line, "top_p", r.sampling.top_p, 0, 1);
  take_number(line, "min_p", r.sampling.min_p, 0, 1);
  take_number(line, "repetition_penalty", r.sampling.repetition_penalty, 1e-3, 1e3);
  take_number(line, "seed", r.sampling.seed, 0, 9e18);
  if (const auto it = line.find("logprobs"); it != line.end() && it->is_boolean())
    r.logprobs = it->get<bool>();
  if (const auto it = line.find("stop"); it != line.end() && !it->is_null()) {
    r.stop.clear();
    for (const Json& s : it->is_array() ? *it : Json::array({*it})) {
      if (!s.is_string())
        throw_error<FormatError>("[prompt] expected stop to be strings; got {}", dump_json(s));
      r.stop.push_back(s.get<std::string>());
    }
  }
  std::erase(r.stop, "");
}

std::vector<int32_t> encode_prompt(const std::string& text, const Tokenizer* tokenizer) {
  if (tokenizer == nullptr) {
    throw_error<FormatError>(
        "[prompt] expected \"tokens\" (the model has no tokenizer.json); got \"prompt\"");
  }
  return tokenizer->encode(text, {.add_special = true});
}

void fill_prompt(const Json& line, const Tokenizer* tokenizer, GenerationRequest& r) {
  if (const auto it = line.find("tokens"); it != line.end()) {
    if (!it->is_array())
      throw_error<FormatError>("[prompt] expected tokens to be a list; got {}", dump_json(*it));
    for (const Json& t : *it) {
      if (!t.is_number_integer() || t.get<int64_t>() < 0 || t.get<int64_t>() > INT32_MAX) {
        throw_error<FormatError>("[prompt] expected token ids; got {}", dump_json(t));
      }
      r.prompt.push_back(t.get<int32_t>());
    }
  } else if (const auto text = line.find("prompt"); text != line.end() && text->is_string()) {
    r.prompt = encode_prompt(text->get<std::string>(), tokenizer);
  } else {
    throw_error<FormatError>("[prompt] expected \"prompt\" (text) or \"tokens\" (a list); got {}",
                             dump_json(line).substr(0, 80));
  }
}

std::vector<PromptLine> read_prompts(const GenerateCommand& options,
                                     const GenerationRequest& defaults,
                                     const Tokenizer* tokenizer) {
  std::vector<PromptLine> lines;
  std::set<std::string> ids;
  std::ifstream file;
  if (options.prompts != "-") {
    file.open(options.prompts, std::ios::binary);
    if (!file) throw_error<IoError>("[prompts] cannot open {}", options.prompts);
  }
  std::istream& in = options.prompts == "-" ? std::cin : file;
  int64_t number = 0;
  for (std::string text; std::getline(in, text); ++number) {
    if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
    PromptLine& line = lines.emplace_back();
    line.request = defaults;
    line.request.id = std::to_string(number);
    const std::string where = fmt::format("{}:{}", options.prompts, number + 1);
    try {
      const Json json = parse_json(text, where);
      if (!json.is_object())
        throw_error<FormatError>("[prompt] expected an object; got {}", text.substr(0, 80));
      if (const auto id = json.find("id"); id != json.end()) {
        line.request.id = id->is_string() ? id->get<std::string>() : dump_json(*id);
      }
      fill_prompt(json, tokenizer, line.request);
      apply_overrides(json, line.request);
    } catch (const FormatError& e) {
      line.error = e.what();
    }
    if (!ids.insert(line.request.id).second) {
      throw_error<FormatError>("[prompts] expected ids that differ; got \"{}\" again at {}",
                               line.request.id, where);
    }
  }
  if (lines.empty())
    throw_error<FormatError>("[prompts] expected at least one prompt; got none in {}",
                             options.prompts);
  return lines;
}

/// Ids that an earlier run finished; a torn last line is cut off the file.
std::set<std::string> finished_ids(const std::string& out) {
  std::set<std::string> ids;
  if (out.empty() || !heirloom::exists(out)) return ids;
  const std::string contents = read_file(out, INT64_MAX);
  const size_t whole = contents.rfind('\n') == std::string::npos ? 0 : contents.rfind('\n') + 1;
  size_t begin = 0, number = 0;
  while (begin < whole) {
    const size_t end = contents.find('\n', begin);
    ++number;
    const Json line =
        parse_json(contents.substr(begin, end - begin), fmt::format("{}:{}", out, number));
    if (line.contains("tokens") && line.contains("id") && line["id"].is_string()) {
      ids.insert(line["id"].get<std::string>());
    }
    begin = end + 1;
  }
  if (whole < contents.size()) fs::resize_file(out, whole);
  return ids;
}

std::string result_line(const GenerationResult& r) {
  Json line = {{"id", r.id}};
  if (!r.error.empty()) {
    line["error"] = r.error;
  } else {
    line["text"] = r.text ? Json(*r.text) : Json();
    line["tokens"] = r.tokens;
    line["finish_reason"] = finish_reason_name(r.reason);
    if (!r.logprobs.empty()) line["logprobs"] = r.logprobs;
  }
  return dump_json(line) + "\n";
}

Json summary_json(const EngineStatistics& s, const Transformer& model) {
  Json streams = Json::array();
  int64_t allocated = 0, used = 0;
  for (const EngineStatistics::Stream& stream : s.streams) {
    streams.push_back({{"layer", stream.layer},
                       {"kind", stream.kind},
                       {"allocated_bytes", stream.allocated_bytes},
                       {"used_bytes", stream.used_bytes}});
    allocated += stream.allocated_bytes;
    used += stream.used_bytes;
  }
  const auto rate = [](int64_t tokens, double seconds) {
    return seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0;
  };
  return {
      {"sequences", s.sequences},
      {"prompt_tokens", s.prefill_tokens},
      {"tokens", s.decode_tokens + s.upper_rows},
      {"prefill_tokens_per_second", rate(s.prefill_tokens, s.prefill_seconds)},
      {"decode_tokens_per_second", rate(s.decode_tokens, s.decode_seconds)},
      {"cached_tokens", s.cached_tokens},
      {"cache_allocated_bytes", allocated},
      {"cache_used_bytes", used},
      {"cache_bytes_per_token", model.layout().elements_per_token() * dtype_size(model.dtype())},
      {"dtype", dtype_name(model.dtype())},
      {"streams", streams}};
}

GenerationRequest default_request(const GenerateCommand& options) {
  GenerationRequest r;
  r.max_new_tokens = options.max_new_tokens;
  r.ignore_eos = options.ignore_eos;
  r.logprobs = options.logprobs;
  r.stop = options.stop;
  std::erase(r.stop, "");
  SamplingOptions& s = r.sampling;
  s.seed = options.common.seed;
  const fs::path generation = fs::path(options.model) / "generation_config.json";
  if (heirloom::exists(generation)) {
    const std::string name = generation.string();
    const Json json = read_json_file(name);
    take_number(json, "temperature", s.temperature, 0, 1e6, name);
    take_number(json, "top_k", s.top_k, 0, 1e9, name);
    take_number(json, "top_p", s.top_p, 0, 1, name);
    take_number(json, "min_p", s.min_p, 0, 1, name);
    take_number(json, "repetition_penalty", s.repetition_penalty, 1e-3, 1e3, name);
  }
  if (options.temperature) s.temperature = *options.temperature;
  if (options.top_k) s.top_k = *options.top_k;
  if (options.top_p) s.top_p = *options.top_p;
  if (options.min_p) s.min_p = *options.min_p;
  if (options.repetition_penalty) s.repetition_penalty = *options.repetition_penalty;
  return r;
}

int run_generate(const GenerateCommand& options) {
  const Device device = apply_common_options(options.common);
  if (options.prompts.empty() == options.prompt.empty()) {
    throw_error<ConfigError>("[generate] expected one of --prompts FILE and --prompt TEXT; got {}",
                             options.prompts.empty() ? "neither" : "both");
  }
  const std::unique_ptr<Transformer> model =
      load_model(options.model, device, parse_dtype(options.common.dtype, Dtype::kFloat32));
  std::optional<Tokenizer> tokenizer;
  const fs::path tokenizer_path =
      options.tokenizer.empty() ? fs::path(options.model) : fs::path(options.tokenizer);
  if (!options.tokenizer.empty() || Tokenizer::is_in(tokenizer_path)) {
    tokenizer.emplace(Tokenizer::load(tokenizer_path));
  }
  const Tokenizer* tokens = tokenizer ? &*tokenizer : nullptr;
  const GenerationRequest defaults = default_request(options);

  std::vector<PromptLine> lines;
  if (!options.prompt.empty()) {
    PromptLine line{defaults, ""};
    line.request.id = "0";
    line.request.prompt = encode_prompt(options.prompt, tokens);
    lines.push_back(std::move(line));
  } else {
    lines = read_prompts(options, defaults, tokens);
  }
  const std::set<std::string> finished = finished_ids(options.out);
  std::erase_if(lines, [&](const PromptLine& l) { return finished.contains(l.request.id); });
  if (!finished.empty()) {
    log(LogLevel::kInfo, fmt::format("{}: {} finished already, {} to do", options.out,
                                     finished.size(), lines.size()));
  }

  EngineOptions engine_options;
  engine_options.max_sequences = options.max_sequences;
  engine_options.cache_bytes = options.cache_bytes;
  engine_options.eos = model->config().eos_token_ids;
  for (const PromptLine& l : lines) {
    engine_options.max_tokens =
        std::max(engine_options.max_tokens,
                 static_cast<int64_t>(l.request.prompt.size()) + l.request.max_new_tokens);
  }
  engine_options.max_sequences =
      std::clamp<int64_t>(static_cast<int64_t>(lines.size()), 1, engine_options.max_sequences);
  Engine engine(*model, tokens, engine_options);

  // One prompt and no file: the text streams to stdout as it appears.
  const bool streams_text =
      options.out.empty() && !options.prompt.empty() && tokenizer && options.common.json != "-";
  std::optional<FileWriter> out;
  if (!options.out.empty()) out.emplace(options.out, FileWriter::Mode::kAppend);
  const bool writes_stdout = options.out.empty() && !streams_text && options.common.json != "-";
  bool any_bad = false;
  const auto done = [&](const GenerationResult& result) {
    if (!result.error.empty()) any_bad = true;
    const std::string line = result_line(result);
    if (out) {
      out->write(line);
      out->flush();
    } else if (writes_stdout) {
      std::fwrite(line.data(), 1, line.size(), stdout);
      std::fflush(stdout);
    } else if (!result.error.empty()) {
      throw_error<FormatError>("{}", result.error);
    }
  };
  size_t at = 0;
  const auto next = [&]() -> std::optional<GenerationRequest> {
    while (at < lines.size()) {
      PromptLine& line = lines[at++];
      if (line.error.empty()) return line.request;
      GenerationResult bad;
      bad.id = line.request.id;
      bad.error = line.error;
      done(bad);
    }
    return std::nullopt;
  };
  install_stop_signals();
  engine.run(next, done,
             streams_text ? Engine::OnText([](const std::string&, const std::string& piece) {
               std::fwrite(piece.data(), 1, piece.size(), stdout);
               std::fflush(stdout);
             })
                          : Engine::OnText(),
             [] { return stop_requested(); });
  if (streams_text) std::printf("\n");
  if (out) out->finish();
  const Json summary = summary_json(engine.statistics(), *model);
  write_json_result(options.common, summary);
  log(LogLevel::kInfo,
      fmt::format("{} sequences; prefill {} tok/s, decode {} tok/s; KV cache {} used",
                  summary["sequences"].get<int64_t>(),
                  format_count(summary["prefill_tokens_per_second"].get<double>()),
                  format_count(summary["decode_tokens_per_second"].get<double>()),
                  format_bytes(summary["cache_used_bytes"].get<double>())));
  if (stop_requested()) return kStoppedBySignal;
  return any_bad ? kBadInput : kDone;
}

}  // namespace

void add_generate_command(Cli& cli) {
  CLI::App* command = cli.app.add_subcommand("generate", "continue prompts, many at once");
  auto o = std::make_shared<GenerateCommand>();
  add_common_options(command, o->common);
  command->add_option("--model", o->model, "model directory")->required();
  command->add_option("--tokenizer", o->tokenizer, "tokenizer, when not the model's own");
  command->add_option(
      "--prompts", o->prompts,
      "JSONL: {\"id\"?, \"prompt\" | \"tokens\", sampling options?} per line; - for stdin");
  command->add_option("--prompt", o->prompt, "one prompt; its continuation streams to stdout");
  command->add_option("--out", o->out,
                      "JSONL, one line per finished prompt; finished ids are skipped on a rerun");
  command->add_option("--max-new-tokens", o->max_new_tokens, "tokens to generate")
      ->capture_default_str()
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40));
  command->add_option("--temperature", o->temperature, "0: greedy")->check(CLI::Range(0.0, 1e6));
  command->add_option("--top-k", o->top_k, "keep the k most likely tokens (0: all)")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--top-p", o->top_p, "keep the most likely tokens with this mass")
      ->check(CLI::Range(0.0, 1.0));
  command
      ->add_option("--min-p", o->min_p, "drop tokens less likely than this times the most likely")
      ->check(CLI::Range(0.0, 1.0));
  command
      ->add_option("--repetition-penalty", o->repetition_penalty, "over 1 discourages seen tokens")
      ->check(CLI::Range(1e-3, 1e3));
  command->add_option("--stop", o->stop, "text that ends a continuation; repeatable");
  command->add_flag("--ignore-eos", o->ignore_eos, "go on past the end-of-text token");
  command->add_flag("--logprobs", o->logprobs, "log-probability of every new token");
  command->add_option("--max-sequences", o->max_sequences, "prompts at once")
      ->capture_default_str()
      ->check(CLI::Range(1, 4096));
  command->add_option("--cache-memory", o->cache_bytes, "bytes of KV cache")
      ->transform(CLI::AsSizeValue(false));
  command->callback([&cli, o] { cli.action = [o] { return run_generate(*o); }; });
}

}  // namespace heirloom::cli
