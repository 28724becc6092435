// SPDX-License-Identifier: Apache-2.0
//
// heirloom convert and heirloom uptrain, from the outside.
#include <cmath>
#include <fstream>

#include "evaluate/tiny_model.h"
#include "heirloom/data/token_shard.h"
#include "tools/run_binary.h"

namespace heirloom {
namespace {

using test::run_binary;

class ConvertCommand : public test::BinaryTest {
 protected:
  ConvertCommand() {
    Json plain = test::tiny_config_json();
    plain["kv_sharing"] = {{"scheme", "none"}};
    test::write_text(folder_ / "tokenizer.json", test::byte_tokenizer_json());
    test::write_tiny_model(folder_ / "plain", plain, 0.3, folder_ / "tokenizer.json");
    TokenShardWriter writer(folder_ / "tokens.bin", 300);
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < 3000; ++i)
      ids.push_back(static_cast<int32_t>((i * 7919 + i * i) % 300));
    writer.append(ids);
    writer.commit();
  }

  std::string path(const std::string& name) { return (folder_ / name).string(); }
  test::BinaryResult convert(std::vector<std::string> more) {
    std::vector<std::string> all = {"convert",   "--from", path("plain"),
                                    "--threads", "1",      "--quiet"};
    all.insert(all.end(), more.begin(), more.end());
    return run_binary(all);
  }
  double perplexity(const std::string& model) {
    const auto r = run_binary({"perplexity", "--model", path(model), "--data", path("tokens.bin"),
                               "--context", "16", "--threads", "1", "--quiet", "--json", "-"});
    EXPECT_EQ(r.code, 0) << r.err;
    return r.code == 0 ? Json::parse(r.out)["perplexity"].get<double>() : 0;
  }
  std::vector<Json> metrics(const std::string& run) {
    std::ifstream in(path(run) + "/metrics.jsonl");
    std::vector<Json> all;
    for (std::string line; std::getline(in, line);) all.push_back(Json::parse(line));
    return all;
  }
  double validation_loss(const std::string& run, int64_t step) {
    for (const Json& line : metrics(run)) {
      if (line.contains("val_loss") && line["step"] == step) return line["val_loss"];
    }
    return std::nan("");
  }

  test::TemporaryDirectory folder_;
};

TEST_F(ConvertCommand, SaysWhatItCostsAndSaves) {
  const auto r = convert({"--out", path("skip"), "--kv-sharing", "skipv1", "--data",
                          path("tokens.bin"), "--context", "16", "--json", "-"});
  ASSERT_EQ(r.code, 0) << r.err;
  const Json json = Json::parse(r.out);
  // 3 layers, 4 heads of 8: K 96; V 32 and twice 16; float32.
  EXPECT_EQ(json["before"]["kv_bytes_per_token"], 4 * 192);
  EXPECT_EQ(json["after"]["kv_bytes_per_token"], 4 * 160);
  EXPECT_EQ(json["before"]["kv_dtype"], "float32");
  EXPECT_EQ(json["layers"][0]["values"], "as they were");
  EXPECT_EQ(json["layers"][2]["own_value_heads"], Json::parse("[4, 2]"));
  EXPECT_NEAR(json["before"]["perplexity"].get<double>(), perplexity("plain"),
              1e-6 * perplexity("plain"));
  EXPECT_NEAR(json["after"]["perplexity"].get<double>(), perplexity("skip"),
              1e-6 * perplexity("skip"));
  EXPECT_GT(std::abs(json["after"]["perplexity"].get<double>() - perplexity("plain")), 1e-3);
  const auto table = convert({"--out", path("skip-2"), "--kv-sharing",
                              R"({"scheme": "skipv1", "ratio": 0.75})", "--method", "top-v"});
  EXPECT_NE(table.out.find("4 -> 1"), std::string::npos) << table.out;
}

TEST_F(ConvertCommand, WhatCannotBeScoredIsSaidBeforeAnythingIsWritten) {
  const auto scored = [&](const std::string& data) {
    return convert({"--out", path("skip"), "--kv-sharing", "skipv1", "--data", path(data)});
  };
  test::write_text(folder_ / "lines.jsonl", R"({"tokens": [1, 2, 300]})");
  expect_error(scored("lines.jsonl"), 3, {path("lines.jsonl"), "300"});
  expect_error(scored("missing.txt"), 3, {path("missing.txt")});
  test::write_text(folder_ / "text.txt", "a b c d e f");
  fs::remove(folder_ / "plain/tokenizer.json");
  expect_error(scored("text.txt"), 3, {path("text.txt"), "tokenizer"});
  EXPECT_FALSE(fs::exists(path("skip")));
  const auto other =
      convert({"--out", path("skip"), "--kv-sharing", "skipv1", "--data", path("text.txt"),
               "--tokenizer", path("tokenizer.json"), "--json", "-"});
  ASSERT_EQ(other.code, 0) << other.err;
  EXPECT_EQ(Json::parse(other.out)["after"]["tokens"], 11) << "bytes, behind <s>";
}

TEST_F(ConvertCommand, WhatIsThereIsNotWrittenOver) {
  ASSERT_EQ(convert({"--out", path("skip"), "--kv-sharing", "skipv1"}).code, 0);
  expect_error(convert({"--out", path("skip"), "--kv-sharing", "yoco"}), 2,
               {path("skip"), "new or empty", "--overwrite"});
  EXPECT_EQ(convert({"--out", path("skip"), "--kv-sharing", "yoco", "--overwrite"}).code, 0);
  expect_error(convert({"--out", path("more"), "--kv-sharing", "skipv1", "--method", "svd2"}), 2,
               {"method", "did you mean svd"});
  EXPECT_FALSE(fs::exists(path("more")));
}

TEST_F(ConvertCommand, TheSourceIsNotRemoved) {
  fs::create_directories(folder_ / "outer");
  fs::rename(folder_ / "plain", folder_ / "outer/plain");
  const std::string source = path("outer/plain");
  const auto run = [&](const std::string& out) {
    return run_binary({"convert", "--from", source, "--out", out, "--overwrite", "--threads", "1",
                       "--quiet", "--kv-sharing", "skipv1"});
  };
  for (const std::string& out :
       {path("outer"), path("outer") + "/", source + "/..", path("outer/plain/../../outer")}) {
    expect_error(run(out), 2, {"does not hold its source", source});
    EXPECT_TRUE(fs::exists(source + "/model.safetensors"));
  }
  // In place is what was asked for; a conversion that fails leaves the source as it was.
  const std::string weights = test::read_all(source + "/model.safetensors");
  test::write_text(source + "/model.safetensors", weights.substr(0, weights.size() - 1));
  expect_error(run(source), 3, {source});
  EXPECT_EQ(test::read_all(source + "/model.safetensors").size(), weights.size() - 1);
  test::write_text(source + "/model.safetensors", weights);
  const auto r = run(source);
  EXPECT_EQ(r.code, 0) << r.err;
  EXPECT_EQ(read_model_config(source).kv_sharing.scheme, "skipv1");
  EXPECT_LT(test::read_all(source + "/model.safetensors").size(), weights.size());
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_ / "outer"), fs::directory_iterator()), 1);
}

TEST_F(ConvertCommand, UptrainConvertsAndContinues) {
  test::write_text(
      folder_ / "up.json",
      Json({{"data", {{"train", path("tokens.bin")}, {"validation", path("tokens.bin")}}},
            {"train",
             {{"steps", 4},
              {"batch_size", 4},
              {"sequence_length", 16},
              {"seed", 5},
              {"eval_batches", 4}}},
            {"optimizer", {{"lr", 1e-3}}},
            {"convert", {{"kv_sharing", {{"scheme", "skipv1"}}}, {"method", "mean-vo"}}},
            {"output", path("up")}})
          .dump());
  const std::vector<std::string> command = {"uptrain",       "--from",  path("plain"), "--config",
                                            path("up.json"), "--quiet", "--threads",   "1",
                                            "--json",        "-"};
  const auto r = run_binary(command);
  ASSERT_EQ(r.code, 0) << r.err;
  // The run begins at the converted model's loss and ends in what `final` says.
  ASSERT_EQ(convert({"--out", path("skip"), "--kv-sharing", "skipv1", "--method", "mean-vo"}).code,
            0);
  EXPECT_EQ(test::read_all(path("skip") + "/model.safetensors"),
            test::read_all(path("up") + "/initial/model.safetensors"));
  const Json losses = Json::parse(r.out)["validation_loss"];
  EXPECT_EQ(losses["converted"], validation_loss("up", 0));
  EXPECT_EQ(losses["uptrained"], validation_loss("up", 4));
  EXPECT_LT(losses["uptrained"].get<double>(), losses["converted"].get<double>());
  const auto score = [&](const std::string& model) {
    const auto scored =
        run_binary({"perplexity", "--model", path(model), "--data", path("tokens.bin"), "--context",
                    "16", "--dump-nll", path("nll.jsonl"), "--quiet", "--json", "-"});
    EXPECT_EQ(scored.code, 0) << scored.err;
    std::ifstream in(path("nll.jsonl"));
    double sum = 0;
    std::string line;
    for (int window = 0; window < 16 && std::getline(in, line); ++window) {  // 4 batches of 4
      const Json scored_window = Json::parse(line);
      for (const Json& nll : scored_window["nll"]) sum += nll.get<double>();
    }
    return sum / (16 * 16);
  };
  EXPECT_NEAR(losses["original"].get<double>(), score("plain"), 1e-5);
  EXPECT_NEAR(losses["converted"].get<double>(), score("skip"), 1e-5);
  EXPECT_NEAR(losses["uptrained"].get<double>(), score("up/final"), 1e-5);
  // Lines of the report; the recipe: cosine to 10 %, no dropout.
  EXPECT_NE(test::read_all(path("up") + "/report.html").find("original"), std::string::npos);
  const Json config = Json::parse(test::read_all(path("up") + "/config.json"));
  EXPECT_EQ(config["convert"]["method"], "mean-vo");
  EXPECT_EQ(config["schedule"]["min_lr_ratio"], 0.1);
  EXPECT_EQ(config["train"]["dropout"]["residual"], 0);
  EXPECT_EQ(test::read_all(path("up") + "/final/tokenizer.json"), test::byte_tokenizer_json());

  // The same again is done; another method in the same directory is refused; train is told.
  const size_t lines = metrics("up").size();
  EXPECT_EQ(run_binary(command).code, 0);
  EXPECT_EQ(metrics("up").size(), lines);
  std::vector<std::string> other = {"uptrain",       "--from",   path("plain"), "--config",
                                    path("up.json"), "--method", "svd",         "--quiet"};
  const auto refused = run_binary(other);
  EXPECT_EQ(refused.code, 2);
  EXPECT_NE(refused.err.find("convert.method was \"mean-vo\", now \"svd\""), std::string::npos)
      << refused.err;
  const auto wrong = run_binary({"train", "--config", path("up.json"), "--quiet"});
  EXPECT_EQ(wrong.code, 2);
  EXPECT_NE(wrong.err.find("heirloom uptrain"), std::string::npos) << wrong.err;
}

/// The original's line is what the run itself would say of it, documents apart included: uptrained into
/// the plan that it has, the model starts there, to the bit.
TEST_F(ConvertCommand, ReferenceLossesAreTheRunsOwn) {
  Json plain = test::tiny_config_json();
  plain["kv_sharing"] = {{"scheme", "none"}};
  plain["eos_token_id"] = 0;
  test::write_tiny_model(folder_ / "eos", plain, 0.3, folder_ / "tokenizer.json");
  std::map<std::string, double> original;
  for (const std::string mask : {"none", "causal"}) {
    const auto r = run_binary({"uptrain",   "--from",
                               path("eos"), "--output",
                               path(mask),  "--quiet",
                               "--threads", "1",
                               "--json",    "-",
                               "--set",     "data.train=" + path("tokens.bin"),
                               "--set",     "data.validation=" + path("tokens.bin"),
                               "--set",     "data.document_mask=" + mask,
                               "--set",     "train.steps=1",
                               "--set",     "train.batch_size=3",
                               "--set",     "train.sequence_length=50",
                               "--set",     "train.eval_batches=0",
                               "--set",     "optimizer.lr=0.001"});
    ASSERT_EQ(r.code, 0) << r.err;
    const Json losses = Json::parse(r.out)["validation_loss"];
    EXPECT_EQ(losses["original"], losses["converted"]) << mask;
    original[mask] = losses["original"].get<double>();
  }
  EXPECT_GT(std::abs(original["causal"] - original["none"]), 1e-3) << "the mask was not seen";
}

TEST_F(ConvertCommand, UptrainResumesOnlyWhatItMay) {
  std::vector<std::string> command = {"uptrain",     "--from",
                                      path("plain"), "--kv-sharing",
                                      "skipv1",      "--output",
                                      path("up"),    "--quiet",
                                      "--set",       "data.train=" + path("tokens.bin"),
                                      "--set",       "train.steps=2",
                                      "--set",       "train.batch_size=2",
                                      "--set",       "train.sequence_length=16",
                                      "--set",       "optimizer.lr=0.001",
                                      "--json",      "-",
                                      "--resume",    "must"};
  expect_error(run_binary(command), 3, {"checkpoint to resume", path("up")});
  EXPECT_FALSE(fs::exists(path("up"))) << "nothing is converted for a run that cannot be";
  command.back() = "auto";
  ASSERT_EQ(run_binary(command).code, 0);
  fs::remove_all(path("up") + "/initial");
  command.back() = "never";
  expect_error(run_binary(command), 2, {"--resume never", path("up")});
  EXPECT_FALSE(fs::exists(path("up") + "/initial"));
}

/// Of a run of this project's the recipe follows: 1.5 times the last learning rate, a share of the steps.
TEST_F(ConvertCommand, UptrainTakesTheRecipeFromTheOriginalsRun) {
  Json config =
      Json::parse(R"({"train": {"steps": 20, "batch_size": 4, "sequence_length": 16, "seed": 5,
      "dropout": {"residual": 0.1}}, "optimizer": {"lr": 1e-3, "weight_decay": 0.05},
      "schedule": {"name": "cosine", "min_lr_ratio": 0.2}})");
  config["model"] = test::tiny_config_json();
  config["model"]["kv_sharing"] = {{"scheme", "none"}};
  config["data"] = {{"train", path("tokens.bin")}};
  config["output"] = path("run");
  test::write_text(folder_ / "c.json", config.dump());
  ASSERT_EQ(run_binary({"train", "--config", path("c.json"), "--quiet", "--threads", "1"}).code, 0);
  const auto r =
      run_binary({"uptrain", "--from", path("run/final"), "--kv-sharing", "skipv1", "--share",
                  "0.1", "--output", path("up"), "--quiet", "--dry-run", "--json", "-"});
  ASSERT_EQ(r.code, 0) << r.err;
  const Json plan = Json::parse(r.out), &run = plan["config"];
  EXPECT_FALSE(fs::exists(path("up")));
  EXPECT_EQ(run["train"]["steps"], 2);
  EXPECT_EQ(run["train"]["batch_size"], 4);
  EXPECT_EQ(run["train"]["dropout"]["residual"], 0);
  EXPECT_EQ(run["optimizer"]["weight_decay"], 0.05);
  EXPECT_NEAR(run["optimizer"]["lr"].get<double>(), 1.5 * 0.2 * 1e-3, 1e-12);
  EXPECT_EQ(run["schedule"]["name"], "cosine");
  EXPECT_EQ(run["model"]["kv_sharing"]["scheme"], "skipv1");
  EXPECT_NEAR(plan["share_of_original_steps"].get<double>(), 0.1, 1e-12);
  // Half of two layers' value projections are not there any more.
  EXPECT_LT(plan["share_of_original_compute"].get<double>(), 0.1);
  EXPECT_GT(plan["share_of_original_compute"].get<double>(), 0.09);

  expect_error(run_binary({"uptrain", "--from", path("plain"), "--kv-sharing", "skipv1", "--share",
                           "0.1", "--output", path("up"), "--quiet"}),
               2, {"share", "--original"});
}

}  // namespace
}  // namespace heirloom
