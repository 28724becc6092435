// SPDX-License-Identifier: Apache-2.0
//
// Runs of a model so small that a whole one takes milliseconds.
#pragma once

#include <map>

#include "heirloom/core/log.h"
#include "heirloom/core/rng.h"
#include "heirloom/data/token_shard.h"
#include "heirloom/io/safetensors.h"
#include "heirloom/report/metrics_log.h"
#include "heirloom/train/trainer.h"
#include "io/temporary_directory.h"
#include "support/numerics.h"

namespace heirloom::test {

inline constexpr int64_t kVocab = 29, kEos = 28;

/// A shard of documents of 2 to 9 tokens, each ended by kEos.
inline void write_shard(const fs::path& path, int64_t tokens, uint64_t seed) {
  std::vector<int32_t> ids;
  int64_t left = 4;
  for (int64_t i = 0; i < tokens; ++i) {
    const auto bits = philox(seed, {static_cast<uint32_t>(i), 0, 0, 0});
    const bool ends = --left == 0;
    if (ends) left = 2 + bits[1] % 8;
    ids.push_back(ends ? static_cast<int32_t>(kEos) : static_cast<int32_t>(bits[0] % kEos));
  }
  TokenShardWriter writer(path, kVocab);
  writer.append(ids);
  writer.commit();
}

inline Json tiny_model_json() {
  return Json::parse(
      R"({"model_type": "heirloom", "vocab_size": 29, "hidden_size": 16, "intermediate_size": 20,
    "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 64, "eos_token_id": 28,
    "kv_sharing": {"scheme": "skipv1"}})");
}

/// Four steps of four sequences of eight tokens; shards are written into `directory`.
inline Json tiny_run_json(const TemporaryDirectory& directory) {
  const fs::path train = directory / "train.bin", validation = directory / "validation.bin";
  if (!fs::exists(train)) {
    write_shard(train, 8 * 23 + 1, 1);
    write_shard(validation, 8 * 7 + 1, 2);
  }
  Json json = Json::parse(R"({
    "train": {"steps": 4, "batch_size": 4, "sequence_length": 8, "seed": 3, "init": {"std": 0.2}},
    "optimizer": {"lr": 0.01, "grad_clip": 0.5},
    "schedule": {"warmup_steps": 2}})");
  json["model"] = tiny_model_json();
  json["data"] = {{"train", train.string()}, {"validation", validation.string()}};
  json["output"] = (directory / "run").string();
  return json;
}

inline RunConfig with(Json json, const std::vector<std::string>& settings) {
  for (const std::string& s : settings) apply_setting(json, s);
  return parse_run_config(json, "test");
}

/// On one thread by default: at this size a second one only waits.
inline TrainOutcome train_quietly(const RunConfig& config, TrainerOptions options = {},
                                  int threads = 1) {
  register_kernels();
  const ThreadCount count(threads);
  options.quiet = true;
  return train(config, plan_step(config, config.train.micro_batch_size, options.device), {},
               options);
}

/// Values of every tensor of a safetensors file of F32 or F64.
inline std::map<std::string, std::vector<double>> stored_values(const fs::path& path) {
  std::map<std::string, std::vector<double>> all;
  const SafetensorsFile file(path);
  for (const auto& [name, t] : file.tensors()) {
    std::vector<double>& values = all[name];
    values.resize(static_cast<size_t>(t.numel()));
    for (size_t i = 0; i < values.size(); ++i) {
      if (t.dtype == "F64") {
        std::memcpy(&values[i], t.data.data() + 8 * i, 8);
      } else {
        float narrow = 0;
        std::memcpy(&narrow, t.data.data() + 4 * i, 4);
        values[i] = static_cast<double>(narrow);
      }
    }
  }
  return all;
}

/// One number per line of metrics.jsonl that has it, in step order.
inline std::vector<double> metric(const fs::path& run, const char* key) {
  std::vector<double> values;
  for (const Json& line : read_metrics(run / "metrics.jsonl")) {
    if (line.contains(key)) values.push_back(line.at(key).get<double>());
  }
  return values;
}

/// Collects warnings while it lives.
class Warnings {
 public:
  Warnings() {
    set_log_sink([this](LogLevel level, const std::string& text) {
      if (level == LogLevel::kWarning) all += text + "\n";
    });
  }
  ~Warnings() { set_log_sink(nullptr); }
  std::string all;
};

/// The text of the E that `body` throws; empty when it throws none.
template <class E, class Body>
std::string problem(Body body) {
  try {
    body();
  } catch (const E& e) {
    return e.what();
  }
  return "";
}

inline bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace heirloom::test
