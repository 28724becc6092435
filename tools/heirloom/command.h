// SPDX-License-Identifier: Apache-2.0
//
// The command line: one file per subcommand. Each `add_<name>_command` declares its options on a
// CLI11 subcommand and leaves the work to do in Cli::action, which main runs and whose result is
// the exit code.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <string>

#include "heirloom/core/device.h"
#include "heirloom/core/dtype.h"
#include "heirloom/io/json.h"

namespace heirloom::cli {

enum ExitCode {
  kDone = 0,
  kFailed = 1,
  kUsage = 2,
  kBadInput = 3,
  kOutOfMemory = 4,
  kStoppedBySignal = 75
};

struct Cli {
  CLI::App app;
  std::function<int()> action;
};

/// Options that most commands share (CONTRACT: --device --dtype --threads --seed --json --quiet).
struct CommonOptions {
  std::string device;  ///< empty: the command's default
  std::string dtype;   ///< empty: the command's default
  int threads = 0;     ///< 0: as many as there are cores
  uint64_t seed = 0;
  std::string json;  ///< a path, "-" for stdout, or empty
  bool quiet = false;
};

void add_common_options(CLI::App* command, CommonOptions& options);

/// What a command can run on.
enum class Devices : uint8_t { kCpuOnly, kAll };

/// Applies --threads and --quiet, registers the kernels, and returns the device to run on: the one
/// --device names, else the first real GPU where the command and the build can use it, else the CPU.
/// ConfigError or UnsupportedError where the one named is not there or the command is not.
Device apply_common_options(const CommonOptions& options, Devices devices = Devices::kCpuOnly);

/// FLOP/s that MFU is counted against: the CPU's as measured, a GPU's dense peak by its name; 0
/// where unknown.
double peak_flops(const Device& device, Dtype dtype);

/// "float32", "bfloat16" ("float64" too); `fallback` when the text is empty. ConfigError otherwise.
Dtype parse_dtype(const std::string& text, Dtype fallback);

/// Writes `object` to options.json (atomically, or to stdout for "-"); nothing when the option is
/// absent.
void write_json_result(const CommonOptions& options, const Json& object);

void add_train_command(Cli& cli);
void add_uptrain_command(Cli& cli);
void add_convert_command(Cli& cli);
void add_perplexity_command(Cli& cli);
void add_generate_command(Cli& cli);
void add_kv_command(Cli& cli);
void add_tokenizer_command(Cli& cli);
void add_data_command(Cli& cli);
void add_info_command(Cli& cli);
void add_bench_command(Cli& cli);

}  // namespace heirloom::cli
