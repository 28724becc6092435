// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <string>
#include <vector>

#include "command.h"
#include "heirloom/core/error.h"
#include "heirloom/data/prepare.h"
#include "heirloom/data/token_shard.h"
#include "heirloom/report/progress.h"
#include "heirloom/tokenizer/tokenizer.h"

namespace heirloom::cli {
namespace {

using Clock = std::chrono::steady_clock;

volatile std::sig_atomic_t g_stopped = 0;

/// The first SIGINT or SIGTERM asks to stop, the second one kills.
void stop_on_signals() {
  struct sigaction action {};
  action.sa_handler = [](int) { g_stopped = 1; };
  action.sa_flags = SA_RESETHAND;
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
}

/// A bar rewritten in place on a terminal; elsewhere plain lines, at most one every five seconds.
class PrepareLine {
 public:
  explicit PrepareLine(bool quiet) : quiet_(quiet), terminal_(::isatty(STDERR_FILENO) != 0) {}

  void update(const PrepareProgress& p) {
    const Clock::time_point now = Clock::now();
    const double interval = terminal_ ? 0.1 : 5.0;
    if (quiet_ || std::chrono::duration<double>(now - last_).count() < interval) return;
    last_ = now;
    const double seconds = std::chrono::duration<double>(now - start_).count();
    const double done =
        p.bytes_total > 0
            ? std::min(1.0, static_cast<double>(p.bytes_read) / static_cast<double>(p.bytes_total))
            : 0.0;
    std::string line;
    if (terminal_) {
      const auto filled = static_cast<size_t>(done * 24);
      line = "[" + std::string(filled, '#') + std::string(24 - filled, '.') + "] ";
    }
    line += fmt::format("{:5.1f}%  {} documents  {} tokens  {}/s", 100 * done,
                        format_count(static_cast<double>(p.documents)),
                        format_count(static_cast<double>(p.tokens)),
                        format_bytes(static_cast<double>(p.text_bytes) / std::max(seconds, 1e-9)));
    if (done > 0) line += "  eta " + format_duration(seconds * (1 - done) / done);
    std::fprintf(stderr, terminal_ ? "\r%s\033[K" : "%s\n", line.c_str());
    open_ = terminal_;
  }

  void finish() {
    if (open_) std::fputs("\r\033[K", stderr);
    open_ = false;
  }

 private:
  bool quiet_, terminal_, open_ = false;
  Clock::time_point start_ = Clock::now(), last_ = start_;
};

struct PrepareArguments {
  CommonOptions common;
  PrepareOptions prepare;
  std::string tokenizer;
  std::string end_of_text;  ///< empty: the tokenizer's eos
  bool no_special = false;
};

std::string tokenizer_hash(const Tokenizer& tokenizer, const fs::path& path) {
  std::string text;
  try {
    text = tokenizer.to_json();
  } catch (const UnsupportedError&) {
    text = read_file(fs::is_directory(path) ? path / "tokenizer.model" : path);
  }
  ContentHash hash;
  hash.update(text.data(), text.size());
  return hash.hex();
}

std::optional<int32_t> find_end_of_text(const Tokenizer& tokenizer, const std::string& spelled) {
  if (spelled == "none") return std::nullopt;
  const std::optional<int32_t> id =
      spelled.empty() ? tokenizer.eos_id() : tokenizer.token_id(spelled);
  if (!id) {
    throw_error<ConfigError>(
        "[data] expected a token that ends documents; got {}; --eot; name one of the "
        "tokenizer's tokens, or none",
        spelled.empty() ? "a tokenizer without one" : "\"" + spelled + "\", which it lacks");
  }
  return id;
}

Json split_result(const PreparedSplit& split) {
  Json files = Json::array();
  for (const PreparedShard& shard : split.shards) {
    files.push_back({{"path", shard.path.string()}, {"tokens", shard.tokens}});
  }
  return {{"documents", split.documents},
          {"text_bytes", split.text_bytes},
          {"tokens", split.tokens},
          {"files", files}};
}

int run_prepare(PrepareArguments& arguments) {
  apply_common_options(arguments.common);
  PrepareOptions& options = arguments.prepare;
  const Tokenizer tokenizer = Tokenizer::load(arguments.tokenizer);
  options.vocab_size = tokenizer.vocab_size();
  options.end_of_text = find_end_of_text(tokenizer, arguments.end_of_text);
  options.threads = arguments.common.threads;
  options.tokenizer = arguments.tokenizer;
  options.tokenizer_hash = tokenizer_hash(tokenizer, arguments.tokenizer);

  const EncodeOptions encode{.recognise_special = !arguments.no_special, .add_special = false};
  stop_on_signals();
  PrepareLine line(arguments.common.quiet);
  const PrepareResult result = prepare_shards(
      options, [&](std::string_view text) { return tokenizer.encode(text, encode); },
      [&](const PrepareProgress& progress) { line.update(progress); },
      [] { return g_stopped != 0; });
  line.finish();
  if (result.stopped) {
    std::fprintf(stderr, "heirloom: stopped by a signal; nothing has been written\n");
    return kFailed;
  }
  Json object = {{"train", split_result(result.train)}, {"manifest", result.manifest.string()}};
  if (!result.validation.shards.empty()) object["validation"] = split_result(result.validation);
  write_json_result(arguments.common, object);
  if (arguments.common.json != "-") {
    for (const PreparedSplit* split : {&result.train, &result.validation}) {
      for (const PreparedShard& shard : split->shards) {
        std::printf("%s  %lld tokens\n", shard.path.c_str(), static_cast<long long>(shard.tokens));
      }
    }
  }
  return kDone;
}

struct InfoArguments {
  CommonOptions common;
  std::vector<std::string> files;
};

int run_info(const InfoArguments& arguments) {
  apply_common_options(arguments.common);
  constexpr int64_t kFirst = 8, kChunk = 1 << 16;
  Json files = Json::array();
  for (const std::string& path : arguments.files) {
    const TokenShard shard(path);
    std::vector<int32_t> tokens;
    std::vector<uint32_t> first;
    uint32_t max_id = 0;
    for (int64_t begin = 0; begin < shard.size(); begin += kChunk) {
      tokens.resize(static_cast<size_t>(std::min(kChunk, shard.size() - begin)));
      shard.copy(begin, tokens);
      for (const int32_t token : tokens) max_id = std::max(max_id, static_cast<uint32_t>(token));
    }
    for (int64_t i = 0; i < std::min(kFirst, shard.size()); ++i) first.push_back(shard.at(i));
    files.push_back({{"path", path},
                     {"form", shard_form_name(shard.form())},
                     {"token_bytes", shard.token_bytes()},
                     {"tokens", shard.size()},
                     {"max_id", shard.size() > 0 ? Json(max_id) : Json(nullptr)},
                     {"first", first}});
  }
  write_json_result(arguments.common, Json{{"files", files}});
  if (arguments.common.json == "-") return kDone;
  for (const Json& file : files) {
    std::printf("%s\n  form    %s\n  tokens  %lld\n  max id  %s\n  first   %s\n",
                file["path"].get_ref<const std::string&>().c_str(),
                file["form"].get_ref<const std::string&>().c_str(),
                static_cast<long long>(file["tokens"].get<int64_t>()),
                dump_json(file["max_id"]).c_str(), dump_json(file["first"]).c_str());
  }
  return kDone;
}

}  // namespace

void add_data_command(Cli& cli) {
  CLI::App* data = cli.app.add_subcommand("data", "Make token shards from text, or look into them");
  data->require_subcommand(1);

  auto prepare = std::make_shared<PrepareArguments>();
  CLI::App* command =
      data->add_subcommand("prepare", "Tokenize text and JSONL files into token shards");
  add_common_options(command, prepare->common);
  PrepareOptions& options = prepare->prepare;
  command
      ->add_option("--tokenizer", prepare->tokenizer,
                   "tokenizer.json, SentencePiece .model or model directory")
      ->required();
  command
      ->add_option("--in", options.inputs, ".txt or .jsonl (\"text\") files, each also .gz or .zst")
      ->required();
  command->add_option("--out", options.out, "token shard to write; a manifest goes to FILE.json")
      ->required();
  command->add_option("--eot", prepare->end_of_text,
                      "token after each document, or none [the tokenizer's end of sequence]");
  command->add_option(
      "--separator", options.text.separator,
      "text files: a line equal to this ends a document [each file is one document]");
  command->add_option("--shard-tokens", options.shard_tokens,
                      "split into FILE-00000.bin, ... of this many tokens");
  command->add_option("--validation-fraction", options.validation_fraction,
                      "this share of the documents, evenly spread, goes to --validation-out");
  command->add_option("--validation-out", options.validation_out,
                      "token shard for the validation documents");
  command->add_flag("--no-special", prepare->no_special,
                    "special tokens spelled in the text are plain text");
  command->callback([&cli, prepare] { cli.action = [prepare] { return run_prepare(*prepare); }; });

  auto info = std::make_shared<InfoArguments>();
  command = data->add_subcommand("info", "Form, size and first tokens of token shards");
  add_common_options(command, info->common);
  command->add_option("files", info->files, "token shards")->required();
  command->callback([&cli, info] { cli.action = [info] { return run_info(*info); }; });
}

}  // namespace heirloom::cli
