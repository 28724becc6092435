// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <fstream>

#include "evaluate/tiny_model.h"
#include "heirloom/data/token_shard.h"
#include "tools/run_binary.h"

namespace heirloom {
namespace {

using test::run_binary;

class TrainCommand : public test::BinaryTest {
 protected:
  TrainCommand() {
    write_shard("train.bin", 4000, 300);
    Json config =
        Json::parse(R"({"train": {"steps": 6, "batch_size": 4, "sequence_length": 16, "seed": 5},
      "optimizer": {"lr": 1e-3}})");
    config["model"] = test::tiny_config_json();
    config["data"] = {{"train", path("train.bin")}};
    config["output"] = path("run");
    config_ = config;
  }

  void write_shard(const std::string& name, int64_t tokens, int64_t vocab) {
    TokenShardWriter writer(folder_ / name, vocab);
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < tokens; ++i)
      ids.push_back(static_cast<int32_t>((i * 7919 + i * i) % vocab));
    writer.append(ids);
    writer.commit();
  }
  std::string path(const std::string& name) { return (folder_ / name).string(); }
  test::BinaryResult train(std::vector<std::string> more = {}) {
    test::write_text(folder_ / "c.json", config_.dump());
    std::vector<std::string> all = {"train", "--config", path("c.json"), "--quiet"};
    all.insert(all.end(), more.begin(), more.end());
    return run_binary(all);
  }
  std::vector<double> losses(const std::string& run) {
    std::ifstream in(path(run) + "/metrics.jsonl");
    std::vector<double> all;
    for (std::string line; std::getline(in, line);) {
      const Json j = Json::parse(line);
      if (j.contains("loss")) all.push_back(j["loss"]);
    }
    return all;
  }

  test::TemporaryDirectory folder_;
  Json config_;
};

TEST_F(TrainCommand, WritesEverythingARunPromises) {
  config_["data"]["validation"] = path("train.bin");
  config_["train"]["eval_every"] = 3;
  config_["train"]["save_every"] = 2;
  config_["train"]["keep"] = 0;
  const auto r = train();
  ASSERT_EQ(r.code, 0) << r.err;
  for (const char* name : {"config.json", "metrics.jsonl", "report.html", "final/model.safetensors",
                           "final/config.json", "checkpoints/step-00000002/complete.json",
                           "checkpoints/step-00000004/optimizer.safetensors",
                           "checkpoints/step-00000006/trainer.json"}) {
    EXPECT_TRUE(fs::exists(path("run") + "/" + name)) << name;
  }
  int64_t step = 0, evaluations = 0;
  std::ifstream in(path("run") + "/metrics.jsonl");
  for (std::string line; std::getline(in, line);) {
    const Json j = Json::parse(line);
    if (j.contains("val_loss")) {
      ++evaluations;
      EXPECT_NEAR(std::log(j.at("val_perplexity").get<double>()), j.at("val_loss").get<double>(),
                  1e-9);
    } else {
      EXPECT_EQ(j.at("step").get<int64_t>(), ++step);
      for (const char* key :
           {"loss", "lr", "grad_norm", "tokens", "tokens_per_second", "mfu", "seconds"}) {
        EXPECT_TRUE(j.at(key).is_number()) << key;
      }
      EXPECT_EQ(j.at("tokens").get<int64_t>(), step * 64);
    }
  }
  EXPECT_EQ(step, 6);
  EXPECT_EQ(evaluations, 3);   // at 0, 3 and 6
  EXPECT_EQ(train().code, 0);  // complete: nothing to do
  EXPECT_EQ(losses("run").size(), 6u);
}

TEST_F(TrainCommand, EveryDtypeLearns) {
  for (const char* dtype : {"float32", "bfloat16", "float64"}) {
    config_["train"]["dtype"] = dtype;
    config_["train"]["steps"] = 40;
    config_["output"] = path(dtype);
    ASSERT_EQ(train().code, 0);
    const std::vector<double> l = losses(dtype);
    EXPECT_LT(l.back(), l.front() - 0.3) << dtype;
  }
}

TEST_F(TrainCommand, DryRunTrainsNothing) {
  const auto r = train({"--dry-run", "--json", "-"});
  ASSERT_EQ(r.code, 0) << r.err;
  const Json j = parse_json(r.out, "stdout");
  EXPECT_EQ(j.at("tokens").get<int64_t>(), 6 * 64);
  EXPECT_GT(j.at("memory_bytes").at("activations").get<int64_t>(), 0);
  EXPECT_GT(j.at("flops_per_token").get<double>(), 6.0 * 3 * (4 * 32 * 32 * 0.8 + 3 * 32 * 48));
  EXPECT_FALSE(fs::exists(path("run")));
}

TEST_F(TrainCommand, RefusesWhatCannotFitAndNamesWhatDoes) {
  config_["train"]["batch_size"] = 64;
  const auto plan = [&](int64_t micro) {
    config_["train"]["micro_batch_size"] = micro;
    return parse_json(train({"--dry-run", "--json", "-"}).out, "stdout")
        .at("memory_bytes")
        .at("total")
        .get<int64_t>();
  };
  const int64_t limit = (plan(16) + plan(32)) / 2;
  config_["train"]["micro_batch_size"] = 64;
  expect_error(train({"--memory-limit", std::to_string(limit)}), 4,
               {"micro_batch_size 64", "micro_batch_size 16 fits"});
  EXPECT_FALSE(fs::exists(path("run")));
}

TEST_F(TrainCommand, UnknownKeysNameTheNearest) {
  config_["train"]["batchsize"] = 4;
  const auto r = train();
  EXPECT_EQ(r.code, 2);
  EXPECT_NE(r.err.find("batchsize"), std::string::npos);
  EXPECT_NE(r.err.find("batch_size"), std::string::npos);
}

TEST_F(TrainCommand, BadData) {
  config_["data"]["train"] = path("missing.bin");
  expect_error(train(), 3, {"missing.bin"});
  write_shard("short.bin", 10, 300);
  config_["data"]["train"] = path("short.bin");
  expect_error(train(), 3, {"short.bin", "17"});
  write_shard("wide.bin", 4000, 500);
  config_["data"]["train"] = path("wide.bin");
  expect_error(train(), 3, {"wide.bin", "300"});
  const std::string whole = test::read_all(path("train.bin"));
  test::write_text(folder_ / "torn.bin", whole.substr(0, whole.size() - 100));
  config_["data"]["train"] = path("torn.bin");
  expect_error(train(), 3, {"torn.bin"});
}

TEST_F(TrainCommand, LossThatIsNotFiniteStopsAndKeepsCheckpoints) {
  config_["train"]["save_every"] = 2;
  config_["train"]["keep"] = 0;
  config_["train"]["steps"] = 60;
  config_["optimizer"]["lr"] = 1;
  config_["optimizer"]["weight_decay"] = 8;  // weights grow 7 times per step until they overflow
  config_["schedule"] = {{"name", "constant"}};
  const auto r = train();
  EXPECT_EQ(r.code, 1) << r.err;
  EXPECT_NE(r.err.find("finite"), std::string::npos) << r.err;
  int64_t checkpoints = 0;
  for (const auto& entry : fs::directory_iterator(path("run") + "/checkpoints")) {
    EXPECT_TRUE(fs::exists(entry.path() / "complete.json")) << entry.path();
    ++checkpoints;
  }
  EXPECT_GT(checkpoints, 1);
}

TEST_F(TrainCommand, SettingsAndPresets) {
  const auto r = run_binary({"train", "--preset", "llama-9m", "--set",
                             "data.train=" + path("train.bin"), "--set", "output=" + path("preset"),
                             "--set", "train.steps=3", "--dry-run", "--json", "-"});
  ASSERT_EQ(r.code, 0) << r.err;
  EXPECT_EQ(parse_json(r.out, "stdout").at("steps").get<int64_t>(), 3);
  expect_error(run_binary({"train", "--preset", "llama-9n"}), 2, {"llama-9m"});
}

}  // namespace
}  // namespace heirloom
