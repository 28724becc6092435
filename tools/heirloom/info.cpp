// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <omp.h>

#include <cstdio>
#include <set>

#include "command.h"
#include "heirloom/core/device_runtime.h"
#include "heirloom/core/error.h"
#include "heirloom/core/memory.h"
#include "heirloom/io/safetensors.h"
#include "heirloom/kernels/kernel_table.h"
#include "heirloom/model/config.h"
#include "heirloom/model/kv_layout.h"
#include "heirloom/report/progress.h"
#include "heirloom/train/step.h"

namespace heirloom::cli {
namespace {

struct Options {
  CommonOptions common;
  std::string model;
  bool kernels = false;
};

void line(const char* label, const std::string& text) { fmt::print("{:<24}{}\n", label, text); }

Json kernel_list() {
  Json list = Json::array();
  for (const KernelTableBase* table : kernel_tables()) {
    Json entry = {{"op", table->name()}};
    for (const DeviceKind kind : {DeviceKind::kCpu, DeviceKind::kCuda}) {
      Json dtypes = Json::array();
      for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat64}) {
        if (table->has(kind, dtype)) dtypes.push_back(dtype_name(dtype));
      }
      if (!dtypes.empty()) entry[kind == DeviceKind::kCpu ? "cpu" : "cuda"] = dtypes;
    }
    list.push_back(entry);
  }
  return list;
}

Json devices() {
  Json list = {"cpu"};
  if (has_device_runtime(DeviceKind::kCuda)) {
    DeviceRuntime& cuda = device_runtime(DeviceKind::kCuda);
    for (int i = 0; i < cuda.device_count(); ++i) {
      list.push_back(fmt::format("cuda:{} ({})", i, cuda.description(i)));
    }
  }
  return list;
}

Json build_info() {
  return {{"version", HEIRLOOM_VERSION},
          {"devices", devices()},
          {"isa", cpu_kernel_isa()},
          {"threads", omp_get_max_threads()},
          {"available_memory_bytes", available_memory()}};
}

void print_build(const Json& info) {
  line("heirloom", info["version"].get<std::string>());
  line("devices",
       fmt::format("{}", fmt::join(info["devices"].get<std::vector<std::string>>(), ", ")));
  line("CPU kernels", info["isa"].get<std::string>());
  line("threads", info["threads"].dump());
  line("available memory", format_bytes(info["available_memory_bytes"].get<double>()));
}

void print_kernels(const Json& kernels) {
  fmt::print("kernels\n");
  for (const Json& kernel : kernels) {
    std::string have;
    for (const auto& [device, dtypes] : kernel.items()) {
      if (device == "op") continue;
      for (const Json& dtype : dtypes) {
        have += fmt::format("{}{} {}", have.empty() ? "" : ", ", device, dtype.get<std::string>());
      }
    }
    fmt::print("  {:<20}{}\n", kernel["op"].get<std::string>(), have.empty() ? "none" : have);
  }
}

/// What config.json and the weight files say; weights may be missing (a config.json alone).
Json model_info(const std::string& path) {
  const ModelConfig c = read_model_config(path);
  const ParameterCount count = count_parameters(c);
  Json parameters = {
      {"embedding", count.embedding}, {"attention", count.attention},         {"mlp", count.mlp},
      {"norm", count.norm},           {"depth_average", count.depth_average}, {"head", count.head},
      {"total", count.total()}};
  const Json kv = kv_report(c, build_kv_layout(c, build_kv_plan(c)), cache_dtype(c));
  Json info = {{"path", path},
               {"config", model_config_json(c)},
               {"parameters", parameters},
               {"kv",
                {{"scheme", kv["scheme"]},
                 {"dtype", kv["dtype"]},
                 {"elements_per_token", kv["elements_per_token"]},
                 {"bytes_per_token", kv["bytes_per_token"]},
                 {"reduction", kv["reduction"]}}}};
  if (!heirloom::is_directory(path)) return info;
  Json files = Json::array();
  std::set<fs::path> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(path)) {
    if (heirloom::is_regular_file(entry.path())) names.insert(entry.path());
  }
  for (const fs::path& name : names) {
    files.push_back({{"name", name.filename().string()}, {"bytes", fs::file_size(name)}});
  }
  info["files"] = files;
  if (!heirloom::exists(fs::path(path) / "model.safetensors") &&
      !heirloom::exists(fs::path(path) / "model.safetensors.index.json")) {
    return info;
  }
  std::map<std::string, int64_t> elements;
  const SafetensorsModel weights{fs::path(path)};
  for (const auto& [name, tensor] : weights.tensors()) elements[tensor.dtype] += tensor.numel();
  info["stored"] = {{"tensors", weights.tensors().size()}, {"elements_by_dtype", elements}};
  return info;
}

void print_model(const Json& info) {
  const Json& config = info["config"];
  const auto scalar = [&](const char* key) {
    const auto it = config.find(key);
    if (it == config.end() || it->is_null()) return;
    line(key, it->is_string() ? it->get<std::string>() : it->dump());
  };
  line("model", info["path"].get<std::string>());
  for (const char* key : {"model_type", "vocab_size", "hidden_size", "intermediate_size",
                          "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                          "head_dim", "max_position_embeddings", "n_embd", "n_layer", "n_head",
                          "n_positions", "kv_sharing", "attention", "value_residual"}) {
    scalar(key);
  }
  fmt::print("parameters\n");
  const double total = info["parameters"]["total"].get<double>();
  for (const auto& [kind, n] : info["parameters"].items()) {
    if (n == 0) continue;
    fmt::print("  {:<20}{:>16}  {:>5.1f}%\n", kind, n.get<int64_t>(),
               100 * n.get<double>() / total);
  }
  const Json& kv = info["kv"];
  line("KV cache per token",
       fmt::format("{} elements, {} bytes in {}; {:.2f}% less than multi-head attention",
                   kv["elements_per_token"].get<int64_t>(), kv["bytes_per_token"].get<int64_t>(),
                   kv["dtype"].get<std::string>(), 100 * kv["reduction"].get<double>()));
  if (info.contains("stored")) {
    std::string dtypes;
    for (const auto& [dtype, n] : info["stored"]["elements_by_dtype"].items()) {
      dtypes += fmt::format(", {} elements of {}", n.get<int64_t>(), dtype);
    }
    line("stored", fmt::format("{} tensors{}", info["stored"]["tensors"].get<int64_t>(), dtypes));
  }
  if (!info.contains("files")) return;
  fmt::print("files\n");
  for (const Json& file : info["files"]) {
    fmt::print("  {:<36}{}\n", file["name"].get<std::string>(),
               format_bytes(file["bytes"].get<double>()));
  }
}

int run_info(const Options& o) {
  apply_common_options(o.common);
  register_kernels();
  Json info = build_info();
  if (o.kernels) info["kernels"] = kernel_list();
  if (!o.model.empty()) info["model"] = model_info(o.model);
  if (o.common.json != "-") {
    print_build(info);
    if (o.kernels) print_kernels(info["kernels"]);
    if (!o.model.empty()) print_model(info["model"]);
  }
  write_json_result(o.common, info);
  return kDone;
}

}  // namespace

void add_info_command(Cli& cli) {
  CLI::App* command = cli.app.add_subcommand("info", "this build and machine, or a model");
  auto o = std::make_shared<Options>();
  add_common_options(command, o->common);
  command->add_option("--model", o->model, "model directory, or a config.json");
  command->add_flag("--kernels", o->kernels, "list the kernels by operation, device and dtype");
  command->callback([&cli, o] { cli.action = [o] { return run_info(*o); }; });
}

}  // namespace heirloom::cli
