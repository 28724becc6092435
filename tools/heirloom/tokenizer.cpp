// SPDX-License-Identifier: Apache-2.0
#include <charconv>
#include <cstdio>
#include <memory>
#include <vector>

#include "command.h"
#include "heirloom/core/error.h"
#include "heirloom/core/log.h"
#include "heirloom/data/text_reader.h"
#include "heirloom/io/file.h"
#include "heirloom/tokenizer/bpe_trainer.h"

namespace heirloom::cli {
namespace {

struct Options {
  CommonOptions common;
  std::string tokenizer, out;
  std::vector<std::string> in;
  bool plain = false, special = false;
  int64_t vocab_size = 32'000, min_frequency = 2;
  std::string pattern = "gpt2", separator;
  std::vector<std::string> special_tokens = {"<|endoftext|>"};
};

int run_train(const Options& o) {
  BpeTrainerOptions options;
  options.vocab_size = o.vocab_size;
  options.pattern = o.pattern == "llama3" ? SplitPattern::kLlama3 : SplitPattern::kGpt2;
  options.special_tokens = o.special_tokens;
  options.min_frequency = o.min_frequency;
  TextReaderOptions reading;
  reading.separator = o.separator;
  size_t file = 0;
  std::unique_ptr<TextReader> reader;
  const auto next_document = [&](std::string& document) {
    TextPiece piece;
    while (reader == nullptr || !reader->next(piece)) {
      if (file == o.in.size()) return false;
      reader = std::make_unique<TextReader>(o.in[file++], reading);
    }
    document = std::move(piece.text);
    return true;
  };
  int64_t bytes = 0;
  auto phase = BpeTrainerProgress::Phase::kReading;
  const auto progress = [&](const BpeTrainerProgress& p) {
    if (p.phase == BpeTrainerProgress::Phase::kReading) bytes = p.done;
    if (p.phase != phase)
      log(LogLevel::kInfo,
          fmt::format("counted the words of {:.1f} MB, merging", static_cast<double>(bytes) / 1e6));
    phase = p.phase;
  };
  const Tokenizer tokenizer = *train_bpe(options, next_document, nullptr, progress);
  const fs::path out = o.out;
  if (!out.has_extension()) fs::create_directories(out);
  tokenizer.save(out);
  if (tokenizer.vocab_size() < o.vocab_size)
    log(LogLevel::kWarning, fmt::format("the text has pairs for {} tokens only, not {}",
                                        tokenizer.vocab_size(), o.vocab_size));
  log(LogLevel::kInfo, fmt::format("wrote {} tokens to {}", tokenizer.vocab_size(), o.out));
  write_json_result(o.common, {{"vocab_size", tokenizer.vocab_size()},
                               {"merges", tokenizer.merge_count()},
                               {"bytes", bytes},
                               {"out", o.out}});
  return kDone;
}

/// Gives visit(line, where) every line of every input; "-" is stdin.
template <class Visit>
void for_each_line(const std::vector<std::string>& files, Visit&& visit) {
  for (const std::string& file : files) {
    LineReader lines{fs::path(file == "-" ? "/dev/stdin" : file)};
    std::string_view line;
    while (lines.next(line)) visit(line, fmt::format("{}:{}", lines.name(), lines.line_number()));
  }
}

template <class Visit>
void for_each_object(const std::vector<std::string>& files, Visit&& visit) {
  for (const std::string& file : files) {
    JsonlReader objects{fs::path(file == "-" ? "/dev/stdin" : file)};
    Json object;
    while (objects.next(object)) visit(object, objects.where());
  }
}

std::string join(const std::vector<int32_t>& ids, const char* separator) {
  std::string text;
  for (size_t i = 0; i < ids.size(); ++i)
    text += fmt::format("{}{}", i == 0 ? "" : separator, ids[i]);
  return text;
}

/// The output file, complete or untouched; or stdout for "-" and when there is none.
class Output {
 public:
  explicit Output(const std::string& path) {
    if (!path.empty() && path != "-") file_ = std::make_unique<AtomicFile>(path);
  }
  void line(const std::string& text) {
    if (file_ != nullptr) {
      file_->writer().write(text + "\n");
    } else if (std::fwrite((text + "\n").data(), 1, text.size() + 1, stdout) != text.size() + 1) {
      throw_error<IoError>("[tokenizer] expected to write to stdout; got an error");
    }
  }
  void finish() {
    if (file_ != nullptr) {
      file_->commit();
    } else {
      std::fflush(stdout);
    }
  }

 private:
  std::unique_ptr<AtomicFile> file_;
};

int run_encode(const Options& o) {
  const Tokenizer tokenizer = Tokenizer::load(o.tokenizer);
  const EncodeOptions options{.recognise_special = true, .add_special = o.special};
  Output out(o.out);
  int64_t lines = 0, tokens = 0, bytes = 0;
  const auto encode = [&](std::string_view text) {
    auto ids = tokenizer.encode(text, options);
    ++lines;
    tokens += static_cast<int64_t>(ids.size());
    bytes += static_cast<int64_t>(text.size());
    return ids;
  };
  if (o.plain) {
    for_each_line(o.in, [&](std::string_view line, const std::string&) {
      out.line(join(encode(line), " "));
    });
  } else {
    for_each_object(o.in, [&](const Json& object, const std::string& where) {
      const auto text = object.find("text");
      if (text == object.end() || !text->is_string())
        throw_error<FormatError>("[tokenizer] expected {{\"text\": \"...\"}}; got {}; {}",
                                 text == object.end() ? "no \"text\"" : text->type_name(), where);
      out.line(fmt::format("{{\"tokens\": [{}]}}",
                           join(encode(text->get_ref<const std::string&>()), ", ")));
    });
  }
  out.finish();
  write_json_result(o.common, {{"lines", lines}, {"tokens", tokens}, {"bytes", bytes}});
  return kDone;
}

int32_t checked_id(const Tokenizer& tokenizer, int64_t id, const std::string& where) {
  if (!tokenizer.has_token(id))
    throw_error<FormatError>("[tokenizer] expected ids of known tokens, below {}; got {}; {}",
                             tokenizer.vocab_size(), id, where);
  return static_cast<int32_t>(id);
}

std::vector<int32_t> parse_ids(const Tokenizer& tokenizer, std::string_view line,
                               const std::string& where) {
  std::vector<int32_t> ids;
  for (size_t at = 0; (at = line.find_first_not_of(" \t", at)) != std::string_view::npos;) {
    const size_t end = std::min(line.find_first_of(" \t", at), line.size());
    int64_t id = -1;
    const auto [stop, error] = std::from_chars(line.data() + at, line.data() + end, id);
    if (error != std::errc{} || stop != line.data() + end)
      throw_error<FormatError>("[tokenizer] expected ids with spaces between; got '{}'; {}",
                               line.substr(at, std::min<size_t>(end - at, 40)), where);
    ids.push_back(checked_id(tokenizer, id, where));
    at = end;
  }
  return ids;
}

int run_decode(const Options& o) {
  const Tokenizer tokenizer = Tokenizer::load(o.tokenizer);
  Output out(o.out);
  int64_t lines = 0, tokens = 0;
  const auto decode = [&](const std::vector<int32_t>& ids) {
    ++lines;
    tokens += static_cast<int64_t>(ids.size());
    return tokenizer.decode(ids);
  };
  if (o.plain) {
    for_each_line(o.in, [&](std::string_view line, const std::string& where) {
      out.line(decode(parse_ids(tokenizer, line, where)));
    });
  } else {
    for_each_object(o.in, [&](const Json& object, const std::string& where) {
      const auto list = object.find("tokens");
      if (list == object.end() || !list->is_array())
        throw_error<FormatError>("[tokenizer] expected {{\"tokens\": [...]}}; got {}; {}",
                                 list == object.end() ? "no \"tokens\"" : list->type_name(), where);
      std::vector<int32_t> ids;
      for (const Json& id : *list) {
        if (!id.is_number_integer())
          throw_error<FormatError>("[tokenizer] expected integers in \"tokens\"; got {}; {}",
                                   id.type_name(), where);
        ids.push_back(checked_id(tokenizer, id.get<int64_t>(), where));
      }
      out.line(dump_json({{"text", decode(ids)}}));
    });
  }
  out.finish();
  write_json_result(o.common, {{"lines", lines}, {"tokens", tokens}});
  return kDone;
}

int run_info(const Options& o) {
  const Tokenizer tokenizer = Tokenizer::load(o.tokenizer);
  const auto name = [&](std::optional<int32_t> id) {
    return id ? fmt::format("{} ({})", tokenizer.token_text(*id), *id) : std::string("none");
  };
  Json special = Json::array(), object;
  for (const int32_t id : tokenizer.added_tokens())
    special.push_back(
        {{"id", id}, {"content", tokenizer.token_text(id)}, {"special", tokenizer.is_special(id)}});
  const auto id_or_null = [](std::optional<int32_t> id) { return id ? Json(*id) : Json(); };
  object = {{"kind", tokenizer.kind()},
            {"vocab_size", tokenizer.vocab_size()},
            {"merges", tokenizer.merge_count()},
            {"bos_token_id", id_or_null(tokenizer.bos_id())},
            {"eos_token_id", id_or_null(tokenizer.eos_id())},
            {"added_tokens", special}};
  if (o.common.json != "-") {
    fmt::print(
        "kind          {}\nvocabulary    {}\nmerges        {}\nbos           {}\neos           "
        "{}\n",
        tokenizer.kind(), tokenizer.vocab_size(), tokenizer.merge_count(), name(tokenizer.bos_id()),
        name(tokenizer.eos_id()));
    fmt::print("added tokens  {}\n", special.size());
    for (size_t i = 0; i < std::min<size_t>(special.size(), 20); ++i)
      fmt::print("  {:>8}  {}{}\n", special[i]["id"].get<int64_t>(),
                 special[i]["content"].get<std::string>(),
                 special[i]["special"].get<bool>() ? "" : "  (not special)");
    if (special.size() > 20) fmt::print("  ... and {} more\n", special.size() - 20);
  }
  write_json_result(o.common, object);
  return kDone;
}

}  // namespace

void add_tokenizer_command(Cli& cli) {
  CLI::App* tokenizer = cli.app.add_subcommand("tokenizer", "train, run and inspect tokenizers");
  tokenizer->require_subcommand(1);
  auto o = std::make_shared<Options>();
  const auto add = [&](const char* name, const char* description, int (*run)(const Options&)) {
    CLI::App* command = tokenizer->add_subcommand(name, description);
    add_common_options(command, o->common);
    command->callback([&cli, o, run] {
      cli.action = [o, run] {
        apply_common_options(o->common);
        return run(*o);
      };
    });
    return command;
  };
  const char* path_help = "a tokenizer.json, a SentencePiece .model, or a model directory";

  CLI::App* train = add("train", "byte-level BPE from text, written as tokenizer.json", run_train);
  train->add_option("--in", o->in, "text (.txt) or JSONL with \"text\", also .gz and .zst")
      ->required();
  train->add_option("--out", o->out, "a directory, or a .json file")->required();
  train->add_option("--vocab-size", o->vocab_size, "tokens in all: special, 256 bytes, merges")
      ->capture_default_str();
  train->add_option("--pattern", o->pattern, "how words are cut: gpt2 or llama3")
      ->check(CLI::IsMember({"gpt2", "llama3"}))
      ->capture_default_str();
  train->add_option("--special", o->special_tokens, "special tokens, ids from 0")
      ->capture_default_str();
  train->add_option("--min-frequency", o->min_frequency, "pairs seen less often are not merged")
      ->capture_default_str();
  train->add_option("--separator", o->separator, "in text files: the line between documents");

  CLI::App* encode = add("encode", "JSONL {\"text\"} to {\"tokens\"}", run_encode);
  encode->add_option("--tokenizer,--model", o->tokenizer, path_help)->required();
  encode->add_option("--in", o->in, "input files, - for stdin")->required();
  encode->add_option("--out", o->out, "output file [stdout]");
  encode->add_flag("--special", o->special, "add what the tokenizer's post-processor adds");
  encode->add_flag("--plain", o->plain, "plain text in, one line of ids per line out");

  CLI::App* decode = add("decode", "JSONL {\"tokens\"} to {\"text\"}", run_decode);
  decode->add_option("--tokenizer,--model", o->tokenizer, path_help)->required();
  decode->add_option("--in", o->in, "input files, - for stdin")->required();
  decode->add_option("--out", o->out, "output file [stdout]");
  decode->add_flag("--plain", o->plain, "lines of ids in, lines of text out");

  CLI::App* info = add("info", "what a tokenizer is made of", run_info);
  info->add_option("--tokenizer,--model,PATH", o->tokenizer, path_help)->required();
}

}  // namespace heirloom::cli
