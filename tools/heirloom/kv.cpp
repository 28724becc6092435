// SPDX-License-Identifier: Apache-2.0
//
// heirloom kv: what a model caches per token, stream by stream, and how many sequences of which
// length fit a memory.
#include <fmt/format.h>

#include <cstdio>
#include <vector>

#include "command.h"
#include "heirloom/core/error.h"
#include "heirloom/model/kv_layout.h"

namespace heirloom::cli {
namespace {

constexpr double kGiB = 1024.0 * 1024 * 1024;

struct KvOptions {
  CommonOptions common;
  std::string model, config, preset;
  std::vector<std::string> memory;
};

ModelConfig load_config(const KvOptions& options) {
  if (!options.model.empty()) return read_model_config(options.model);
  if (!options.preset.empty()) return preset_model_config(options.preset);
  const Json json = read_json_file(options.config, JsonComments::kAllowed);
  if (json.is_object() && !json.contains("model_type") && json.contains("model")) {
    return resolve_model_config(json["model"], options.config + " model");
  }
  return parse_model_config(json, options.config);
}

/// "24GiB", "80GB", "512MiB", "1e9": bytes.
double parse_memory(const std::string& text) {
  struct Unit {
    const char* name;
    double bytes;
  };
  constexpr Unit kUnits[] = {{"", 1},       {"B", 1},
                             {"KB", 1e3},   {"MB", 1e6},
                             {"GB", 1e9},   {"TB", 1e12},
                             {"KiB", 1024}, {"MiB", 1024.0 * 1024},
                             {"GiB", kGiB}, {"TiB", kGiB * 1024}};
  double number = 0;
  size_t used = 0;
  try {
    number = std::stod(text, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  const size_t name = std::min(text.find_first_not_of(' ', used), text.size());
  for (const Unit& unit : kUnits) {
    if (used > 0 && number > 0 && number * unit.bytes < 1e18 && text.substr(name) == unit.name) {
      return number * unit.bytes;
    }
  }
  throw_error<ArgumentError>("[--memory] expected a size such as 24GiB, 80GB or 1e9; got \"{}\"",
                             text);
}

std::string format_bytes(double bytes) {
  const char* const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < std::size(units)) {
    bytes /= 1024;
    ++unit;
  }
  return fmt::format("{:.4g} {}", bytes, units[unit]);
}

/// Ascending numbers as ranges: "0-7", "1, 3-5".
std::string format_ranges(const std::vector<int64_t>& numbers, int64_t offset) {
  std::string text;
  for (size_t i = 0; i < numbers.size();) {
    size_t last = i;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
    if (!text.empty()) text += ", ";
    text += fmt::format("{}", numbers[i] + offset);
    if (last > i) text += fmt::format("-{}", numbers[last] + offset);
    i = last + 1;
  }
  return text;
}

/// Streams that differ only in their layer, and that only their own layer reads, share a row.
struct StreamRow {
  const KvStream* stream;
  std::vector<int64_t> layers;
};

std::vector<StreamRow> stream_rows(const KvLayout& layout) {
  std::vector<StreamRow> rows;
  for (const KvStream& stream : layout.streams) {
    StreamRow* match = nullptr;
    for (StreamRow& row : rows) {
      if (!stream.shared && !row.stream->shared && row.stream->kind == stream.kind &&
          row.stream->heads == stream.heads && row.stream->width == stream.width) {
        match = &row;
      }
    }
    if (match != nullptr) {
      match->layers.push_back(stream.layer);
    } else {
      rows.push_back({&stream, {stream.layer}});
    }
  }
  return rows;
}

void print_streams(const KvLayout& layout, int64_t element_bytes) {
  fmt::print("{:<14} {:<7} {:<16} {:>10} {:>12}  {:<7} {}\n", "layers", "kind", "heads", "elements",
             "bytes/token", "shared", "readers");
  for (const StreamRow& row : stream_rows(layout)) {
    const int64_t elements = row.stream->width * static_cast<int64_t>(row.layers.size());
    fmt::print(
        "{:<14} {:<7} {:<16} {:>10} {:>12}  {:<7} {}\n", format_ranges(row.layers, 1),
        stream_kind_name(row.stream->kind), format_ranges(row.stream->heads, 0), elements,
        elements * element_bytes, row.stream->shared ? "yes" : "no",
        row.stream->shared ? "layers " + format_ranges(row.stream->readers, 1) : "its own layer");
  }
}

struct Frontier {
  std::vector<double> memory;
  std::vector<int64_t> contexts;
  std::vector<std::vector<int64_t>> sequences;  ///< [context][memory]
};

Frontier frontier_of(const std::vector<std::string>& memory, int64_t bytes_per_token) {
  Frontier frontier;
  for (const std::string& text : memory) frontier.memory.push_back(parse_memory(text));
  if (frontier.memory.empty()) {
    for (const double gib : {8, 16, 24, 48, 80, 141}) frontier.memory.push_back(gib * kGiB);
  }
  for (int64_t context = 1024; context <= 131072; context *= 2) {
    frontier.contexts.push_back(context);
    std::vector<int64_t>& row = frontier.sequences.emplace_back();
    for (const double bytes : frontier.memory) {
      const double one = static_cast<double>(context) * static_cast<double>(bytes_per_token);
      row.push_back(static_cast<int64_t>(bytes / one));
    }
  }
  return frontier;
}

Json frontier_json(const Frontier& frontier) {
  Json rows = Json::array();
  for (size_t c = 0; c < frontier.contexts.size(); ++c) {
    for (size_t m = 0; m < frontier.memory.size(); ++m) {
      rows.push_back({{"context", frontier.contexts[c]},
                      {"memory_bytes", static_cast<int64_t>(frontier.memory[m])},
                      {"sequences", frontier.sequences[c][m]}});
    }
  }
  return rows;
}

void print_frontier(const Frontier& frontier) {
  fmt::print("\nsequences that fit, by context length (rows) and memory for the cache (columns)\n");
  fmt::print("{:>10}", "tokens");
  for (const double bytes : frontier.memory) fmt::print(" {:>11}", format_bytes(bytes));
  fmt::print("\n");
  for (size_t c = 0; c < frontier.contexts.size(); ++c) {
    fmt::print("{:>10}", frontier.contexts[c]);
    for (const int64_t sequences : frontier.sequences[c]) fmt::print(" {:>11}", sequences);
    fmt::print("\n");
  }
}

void print_report(const ModelConfig& config, const KvLayout& layout, const Json& report,
                  int64_t element_bytes) {
  fmt::print("{} layers, {} query heads, {} KV heads, {} attention, kv_sharing {}; cache in {}\n\n",
             layout.layers, layout.query_heads, layout.kv_heads,
             report["attention"].get<std::string>(), config.kv_sharing.scheme,
             report["dtype"].get<std::string>());
  print_streams(layout, element_bytes);
  const int64_t elements = layout.elements_per_token();
  const auto line = [&](const char* name, int64_t count) {
    fmt::print("{:<46} {:>10} elements {:>12} bytes\n", name, count, count * element_bytes);
  };
  fmt::print("\n");
  line("resident per token", elements);
  line("multi-head attention would hold", layout.baseline_elements_per_token);
  fmt::print("{:<46} {:>9.2f}%\n", "reduction", 100 * report["reduction"].get<double>());
  line("read per cached token and decode step", layout.read_elements_per_token());
  line("the same with shared streams kept on chip", layout.read_elements_per_token_resident());
}

int run_kv(const KvOptions& options) {
  const int given = !options.model.empty() + !options.config.empty() + !options.preset.empty();
  if (given != 1) {
    throw_error<ArgumentError>(
        "[kv] expected exactly one of --model, --config and --preset; got {}", given);
  }
  apply_common_options(options.common);
  const ModelConfig config = load_config(options);
  const Dtype dtype = parse_dtype(options.common.dtype, cache_dtype(config));
  const KvLayout layout = build_kv_layout(config, build_kv_plan(config));
  const int64_t element_bytes = dtype_size(dtype);
  const Frontier frontier =
      frontier_of(options.memory, layout.elements_per_token() * element_bytes);
  Json report = kv_report(config, layout, dtype);
  report["frontier"] = frontier_json(frontier);
  if (options.common.json != "-") {
    print_report(config, layout, report, element_bytes);
    print_frontier(frontier);
  }
  write_json_result(options.common, report);
  return kDone;
}

}  // namespace

void add_kv_command(Cli& cli) {
  auto options = std::make_shared<KvOptions>();
  CLI::App* command =
      cli.app.add_subcommand("kv", "KV cache per token, by stream; what fits which memory");
  command->add_option("--model", options->model, "a model directory (or its config.json)");
  command->add_option("--config", options->config,
                      "a run config (only its \"model\" is read) or a model's config.json");
  command->add_option("--preset", options->preset, "a model preset, such as llama-350m-skipv1");
  command->add_option("--memory", options->memory,
                      "bytes for the cache, such as 24GiB; may be repeated");
  add_common_options(command, options->common);
  command->callback([&cli, options] { cli.action = [options] { return run_kv(*options); }; });
}

}  // namespace heirloom::cli
