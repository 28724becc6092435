// SPDX-License-Identifier: Apache-2.0
#include <omp.h>

#include <cstdio>

#include "command.h"
#include "heirloom/core/error.h"
#include "heirloom/core/log.h"
#include "heirloom/io/file.h"

namespace heirloom::cli {

void add_common_options(CLI::App* command, CommonOptions& options) {
  command->add_option("--device", options.device, "cpu, cuda or cuda:N")->capture_default_str();
  command->add_option("--dtype", options.dtype, "float32, bfloat16 or float64");
  command->add_option("--threads", options.threads, "CPU threads (0: one per core)")
      ->check(CLI::Range(0, 1024));
  command->add_option("--seed", options.seed, "seed of everything random");
  command->add_option("--json", options.json,
                      "write the result as one JSON object to this file, - for stdout");
  command->add_flag("--quiet", options.quiet, "no talk on stderr");
}

void apply_common_options(const CommonOptions& options) {
  if (options.threads > 0) omp_set_num_threads(options.threads);
  if (options.quiet) {
    set_log_sink({});
  } else {
    set_log_sink([](LogLevel level, const std::string& message) {
      std::fprintf(stderr, "%s%s\n", level == LogLevel::kWarning ? "warning: " : "",
                   message.c_str());
    });
  }
  if (parse_device(options.device).kind != DeviceKind::kCpu) {
    throw_error<UnsupportedError>("[device] expected a device of this build: cpu; got {}",
                                  options.device);
  }
}

Dtype parse_dtype(const std::string& text, Dtype fallback) {
  if (text.empty()) return fallback;
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat64}) {
    if (text == dtype_name(dtype)) return dtype;
  }
  throw_error<ConfigError>("[dtype] expected float32, bfloat16 or float64; got \"{}\"", text);
}

void write_json_result(const CommonOptions& options, const Json& object) {
  if (options.json.empty()) return;
  const std::string text = dump_json(object, 2) + "\n";
  if (options.json == "-") {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  } else {
    write_file_atomically(options.json, text);
  }
}

}  // namespace heirloom::cli
