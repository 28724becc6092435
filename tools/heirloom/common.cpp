// SPDX-License-Identifier: Apache-2.0
#include <omp.h>

#include <cstdio>

#include "command.h"
#include "heirloom/core/device_runtime.h"
#include "heirloom/core/error.h"
#include "heirloom/core/log.h"
#include "heirloom/io/file.h"
#include "heirloom/kernels/kernel_table.h"
#include "heirloom/kernels/roofs.h"

namespace heirloom::cli {

void add_common_options(CLI::App* command, CommonOptions& options) {
  command->add_option("--device", options.device,
                      "cpu, cuda or cuda:N [cuda where there is a GPU that the command can use]");
  command->add_option("--dtype", options.dtype, "float32, bfloat16 or float64");
  command->add_option("--threads", options.threads, "CPU threads (0: one per core)")
      ->check(CLI::Range(0, 1024));
  command->add_option("--seed", options.seed, "seed of everything random");
  command->add_option("--json", options.json,
                      "write the result as one JSON object to this file, - for stdout");
  command->add_flag("--quiet", options.quiet, "no talk on stderr");
}

namespace {

Device choose_device(const std::string& text, Devices devices) {
  const bool built = has_device_runtime(DeviceKind::kCuda);
  if (text.empty()) {
    if (devices == Devices::kCpuOnly || !built) return {};
    DeviceRuntime& cuda = device_runtime(DeviceKind::kCuda);
    return cuda.device_count() > 0 && !cuda.emulated() ? Device{DeviceKind::kCuda, 0} : Device{};
  }
  const Device device = parse_device(text);
  if (device.kind == DeviceKind::kCpu) return device;
  if (devices == Devices::kCpuOnly) {
    throw_error<UnsupportedError>(
        "[device] expected cpu: this command does not run on CUDA yet; got {}; use --device cpu",
        text);
  }
  if (!built) {
    throw_error<UnsupportedError>(
        "[device] expected a device of this build: cpu; got {}; configure with -DHEIRLOOM_CUDA=ON",
        text);
  }
  const int count = device_runtime(DeviceKind::kCuda).device_count();
  if (device.index >= count) {
    throw_error<ConfigError>(
        "[device] expected one of {} CUDA devices; got {}{}", count, text,
        count == 0 ? "; is the driver there, and CUDA_VISIBLE_DEVICES right?" : "");
  }
  return device;
}

}  // namespace

Device apply_common_options(const CommonOptions& options, Devices devices) {
  if (options.threads > 0) omp_set_num_threads(options.threads);
  if (options.quiet) {
    set_log_sink({});
  } else {
    set_log_sink([](LogLevel level, const std::string& message) {
      std::fprintf(stderr, "%s%s\n", level == LogLevel::kWarning ? "warning: " : "",
                   message.c_str());
    });
  }
  register_kernels();
  return choose_device(options.device, devices);
}

double peak_flops(const Device& device, Dtype dtype) {
  if (device.kind == DeviceKind::kCpu) return cpu_flops_roof(dtype);
  const std::string name = device_runtime(device.kind).description(device.index);
  struct Peak {
    const char* name;
    double bfloat16, float32;  // dense, without sparsity; NVIDIA's data sheets
  };
  static constexpr Peak kPeaks[] = {
      {"H200", 989e12, 67e12}, {"H100", 989e12, 67e12}, {"A100", 312e12, 19.5e12}};
  for (const Peak& peak : kPeaks) {
    if (name.find(peak.name) != std::string::npos) {
      return dtype == Dtype::kBFloat16 ? peak.bfloat16 : peak.float32;
    }
  }
  return 0;
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
