// SPDX-License-Identifier: Apache-2.0
#include "heirloom/train/run_config.h"

#include <gtest/gtest.h>

#include <cmath>

#include "heirloom/io/embedded.h"
#include "train/tiny_run.h"

namespace heirloom {
namespace {
using namespace test;

Json minimal() {
  Json json = Json::parse(R"({"data": {"train": "a.bin"},
    "train": {"steps": 100, "batch_size": 6, "sequence_length": 32}, "optimizer": {"lr": 0.001}, "output": "run"})");
  json["model"] = tiny_model_json();
  return json;
}

std::string config_problem(const Json& json) {
  return problem<ConfigError>([&] { parse_run_config(json, "test.json"); });
}

std::string problem_with(const std::string& setting) {
  Json json = minimal();
  apply_setting(json, setting);
  return config_problem(json);
}

double rate(const ScheduleConfig& s, int64_t step, int64_t steps = 100) {
  return learning_rate(s, 2.0, step, steps);
}

TEST(LearningRate, WarmsUpLinearlyForEverySchedule) {
  for (const ScheduleKind kind : {ScheduleKind::kConstant, ScheduleKind::kCosine,
                                  ScheduleKind::kWsd, ScheduleKind::kLinear}) {
    const ScheduleConfig s{kind, 10, 0.1, 0.2};
    EXPECT_DOUBLE_EQ(rate(s, 1), 0.2);
    EXPECT_DOUBLE_EQ(rate(s, 9), 1.8);
    EXPECT_DOUBLE_EQ(rate(s, 10), 2.0) << "the peak at the end of warm-up";
    const ScheduleConfig endless{kind, 1000, 0.1, 0.2};
    EXPECT_DOUBLE_EQ(rate(endless, 100), 0.2) << "warm-up longer than the run";
    const ScheduleConfig none{kind, 0, 0.1, 0.2};
    EXPECT_GT(rate(none, 1), 1.9);
    EXPECT_LE(rate(none, 1), 2.0);
    const ScheduleConfig whole{kind, 100, 0.1, 0.2};
    EXPECT_TRUE(std::isfinite(rate(whole, 100)));
  }
}

TEST(LearningRate, Constant) {
  const ScheduleConfig s{ScheduleKind::kConstant, 10, 0.1, 0.2};
  EXPECT_EQ(rate(s, 11), 2.0);
  EXPECT_EQ(rate(s, 100), 2.0);
}

TEST(LearningRate, Cosine) {
  const ScheduleConfig s{ScheduleKind::kCosine, 10, 0.1, 0.2};
  EXPECT_DOUBLE_EQ(rate(s, 55), 2.0 * 0.55) << "half way: the middle of peak and least";
  EXPECT_NEAR(rate(s, 40), 2.0 * (0.1 + 0.9 * 0.75), 1e-12) << "a third: cos 60 degrees";
  EXPECT_NEAR(rate(s, 100), 0.2, 1e-15);
  EXPECT_LT(rate(s, 11), 2.0);
}

TEST(LearningRate, Linear) {
  const ScheduleConfig s{ScheduleKind::kLinear, 10, 0.1, 0.2};
  EXPECT_NEAR(rate(s, 55), 1.1, 1e-15);
  EXPECT_NEAR(rate(s, 100), 0.2, 1e-15);
}

TEST(LearningRate, WarmupStableDecay) {
  const ScheduleConfig s{ScheduleKind::kWsd, 10, 0.1, 0.2};
  EXPECT_EQ(rate(s, 80), 2.0) << "the last stable step";
  EXPECT_NEAR(rate(s, 90), 1.1, 1e-15);
  EXPECT_NEAR(rate(s, 100), 0.2, 1e-15);
  const ScheduleConfig never{ScheduleKind::kWsd, 10, 0.1, 0};
  EXPECT_EQ(rate(never, 100), 2.0);
  const ScheduleConfig late{ScheduleKind::kWsd, 90, 0.1, 0.5};
  EXPECT_EQ(rate(late, 90), 2.0) << "decay begins when warm-up has ended";
  EXPECT_NEAR(rate(late, 95), 1.1, 1e-15);
  EXPECT_NEAR(rate(late, 100), 0.2, 1e-15);
}

TEST(RunConfig, DefaultsAreTheDocumentedOnes) {
  const RunConfig c = parse_run_config(minimal(), "test");
  EXPECT_EQ(c.train.micro_batch_size, 6);
  EXPECT_EQ(c.train.dtype, Dtype::kFloat32);
  EXPECT_EQ(c.train.recompute, Recompute::kNone);
  EXPECT_EQ(c.train.init_std, 0.02);
  EXPECT_FALSE(c.train.init_scale_residual);
  EXPECT_TRUE(c.data.shuffle);
  EXPECT_EQ(c.data.document_mask, DocumentMask::kNone);
  EXPECT_EQ(c.optimizer.beta1, 0.9);
  EXPECT_EQ(c.optimizer.beta2, 0.95);
  EXPECT_EQ(c.optimizer.weight_decay, 0.1);
  EXPECT_EQ(c.optimizer.grad_clip, 1.0);
  EXPECT_TRUE(c.optimizer.decay_embeddings);
  EXPECT_EQ(c.schedule.kind, ScheduleKind::kCosine);
  EXPECT_EQ(c.schedule.warmup_steps, 0);
  EXPECT_EQ(c.data.train, std::vector<std::string>{"a.bin"});
}

TEST(RunConfig, ResolvedParsesToItself) {
  const RunConfig plain = parse_run_config(minimal(), "test");
  EXPECT_EQ(parse_run_config(plain.resolved, "again").resolved, plain.resolved);
  Json json = minimal();
  for (const char* setting : {"data.train=[\"a.bin\",\"b.bin\"]",
                              "data.validation=v.bin",
                              "data.tokenizer=tok",
                              "data.shuffle=false",
                              "data.document_mask=causal",
                              "train.micro_batch_size=3",
                              "train.seed=9223372036854775807",
                              "train.dtype=bfloat16",
                              "train.eval_every=7",
                              "train.eval_batches=0",
                              "train.save_every=5",
                              "train.keep=0",
                              "train.sample_every=9",
                              "train.sample_prompt=once",
                              "train.sample_tokens=3",
                              "train.recompute=true",
                              "train.init.std=0.5",
                              "train.init.residual=1/sqrt(2L)",
                              "train.dropout.embedding=0.1",
                              "train.dropout.attention=0.2",
                              "train.dropout.residual=0.3",
                              "train.save_dtype=bfloat16",
                              "optimizer.betas=[0.8,0.99]",
                              "optimizer.eps=1e-6",
                              "optimizer.weight_decay=0",
                              "optimizer.grad_clip=0",
                              "optimizer.decay_embeddings=false",
                              "schedule.name=wsd",
                              "schedule.warmup_ratio=0.125",
                              "schedule.min_lr_ratio=0",
                              "schedule.decay_ratio=0.3",
                              "init_from=some/where"}) {
    apply_setting(json, setting);
  }
  const RunConfig c = parse_run_config(json, "test");
  EXPECT_EQ(c.schedule.warmup_steps, 13);  // 12.5 rounded
  EXPECT_EQ(c.train.seed, static_cast<uint64_t>(INT64_MAX));
  EXPECT_EQ(c.train.recompute, Recompute::kBlock);
  EXPECT_EQ(c.data.train.size(), 2u);
  EXPECT_EQ(c.init_from, "some/where");
  const RunConfig again = parse_run_config(parse_json(dump_json(c.resolved, 2), "text"), "again");
  EXPECT_EQ(again.resolved, c.resolved);
  EXPECT_EQ(again.schedule.warmup_steps, 13);
  EXPECT_EQ(again.train.dropout_residual, 0.3);
  EXPECT_EQ(again.optimizer.beta2, 0.99);
  EXPECT_EQ(again.train.save_dtype, Dtype::kBFloat16);
  EXPECT_EQ(again.schedule.decay_ratio, 0.3);
  EXPECT_TRUE(again.train.init_scale_residual);
  EXPECT_EQ(again.init_from, "some/where");
}

TEST(RunConfig, EveryRequiredKeyIsMissedAtOnce) {
  const std::string text = config_problem(Json::object());
  for (const char* key : {"model:", "data.train:", "train.steps:", "train.batch_size:",
                          "train.sequence_length:", "optimizer.lr:", "output:"}) {
    EXPECT_TRUE(has(text, key)) << key << " in " << text;
  }
  EXPECT_TRUE(has(text, "test.json: 7 problems")) << text;
}

TEST(RunConfig, UnknownKeysNameTheNearest) {
  const std::pair<const char*, const char*> cases[] = {
      {"outptu=1", "\"output\""},
      {"data.trian=\"x\"", "\"train\""},
      {"train.batchsize=1", "\"batch_size\""},
      {"train.init.st=1", "\"std\""},
      {"train.dropout.atention=0", "\"attention\""},
      {"optimizer.weight_dcay=0", "\"weight_decay\""},
      {"schedule.warmup_step=1", "\"warmup_steps\""}};
  for (const auto& [setting, nearest] : cases) {
    const std::string text = problem_with(setting);
    EXPECT_TRUE(has(text, "unknown key") && has(text, "did you mean") && has(text, nearest))
        << setting << ": " << text;
  }
}

TEST(RunConfig, EveryRangeIsHeld) {
  const std::pair<const char*, const char*> cases[] = {
      {"train.steps=-1", "train.steps"},
      {"train.steps=1.5", "train.steps"},
      {"train.steps=\"4\"", "train.steps"},
      {"train.batch_size=0", "train.batch_size"},
      {"train.sequence_length=0", "train.sequence_length"},
      {"train.micro_batch_size=4", "expected a divisor of batch_size 6; got 4"},
      {"train.micro_batch_size=12", "divisor"},
      {"train.micro_batch_size=-1", "train.micro_batch_size"},
      {"train.seed=-1", "train.seed"},
      {"train.seed=18446744073709551615", "train.seed"},
      {"train.dtype=float16", "train.dtype"},
      {"train.save_dtype=int8", "train.save_dtype"},
      {"train.eval_every=-1", "train.eval_every"},
      {"train.eval_batches=-1", "train.eval_batches"},
      {"train.save_every=-5", "train.save_every"},
      {"train.keep=-1", "train.keep"},
      {"train.sample_tokens=0", "train.sample_tokens"},
      {"train.sample_prompt=3", "train.sample_prompt"},
      {"train.recompute=\"some\"", "train.recompute"},
      {"train.recompute=1", "train.recompute"},
      {"train.init.std=-1", "train.init.std"},
      {"train.init.residual=half", "train.init.residual"},
      {"train.dropout.attention=1", "train.dropout.attention"},
      {"train.dropout.residual=-0.1", "train.dropout.residual"},
      {"train.dropout=0.1", "train.dropout: expected an object"},
      {"optimizer.name=sgd", "optimizer.name"},
      {"optimizer.lr=-1", "optimizer.lr"},
      {"optimizer.lr=null", "optimizer.lr"},
      {"optimizer.betas=[0.9]", "optimizer.betas"},
      {"optimizer.betas=[0.9,1]", "optimizer.betas"},
      {"optimizer.betas=0.9", "optimizer.betas"},
      {"optimizer.eps=0", "optimizer.eps"},
      {"optimizer.weight_decay=-1", "optimizer.weight_decay"},
      {"optimizer.grad_clip=-1", "optimizer.grad_clip"},
      {"optimizer.decay_embeddings=1", "optimizer.decay_embeddings"},
      {"schedule.name=cosinus", "did you mean \"cosine\""},
      {"schedule.warmup_ratio=1.5", "schedule.warmup_ratio"},
      {"schedule.min_lr_ratio=2", "schedule.min_lr_ratio"},
      {"schedule.decay_ratio=-1", "schedule.decay_ratio"},
      {"data.train=[]", "data.train"},
      {"data.train=[1]", "data.train"},
      {"data.train=5", "data.train"},
      {"data.shuffle=yes", "data.shuffle"},
      {"data.document_mask=both", "data.document_mask"},
      {"output=3", "output"},
      {"output=", "output"},
      {"model=3", "model"},
      {"model=no/such/file.json", "expected an existing file"},
      {"model=llama-61m", "llama-60m"},
      {"model.vocab_size=0", "vocab_size"}};
  for (const auto& [setting, part] : cases) {
    const std::string text = problem_with(setting);
    EXPECT_TRUE(has(text, part)) << setting << ": " << (text.empty() ? "accepted" : text);
    EXPECT_FALSE(has(text, "problems")) << setting << " is one problem: " << text;
  }
}

TEST(RunConfig, SectionsAreObjects) {
  for (const char* section : {"data", "train", "optimizer", "schedule"}) {
    EXPECT_TRUE(has(problem_with(std::string(section) + "=3"),
                    std::string(section) + ": expected an object; got 3"));
  }
}

TEST(RunConfig, BothWarmupFormsAreAnError) {
  Json json = minimal();
  apply_setting(json, "schedule.warmup_steps=0");
  apply_setting(json, "schedule.warmup_ratio=0.1");
  EXPECT_TRUE(has(config_problem(json), "warmup_steps or warmup_ratio; got both"));
  json["schedule"].erase("warmup_steps");
  EXPECT_EQ(parse_run_config(json, "").schedule.warmup_steps, 10);
}

TEST(RunConfig, ProblemsAreReportedTogether) {
  Json json = minimal();
  for (const char* s : {"train.steps=-1", "optimizer.lrr=1", "schedule.name=x", "data.shuffle=3"})
    apply_setting(json, s);
  const std::string text = config_problem(json);
  for (const char* part : {"4 problems", "train.steps", "lrr", "schedule.name", "data.shuffle"}) {
    EXPECT_TRUE(has(text, part)) << part << " in " << text;
  }
}

TEST(RunConfig, ModelAndDataMustFit) {
  Json json = minimal();
  json["model"]["position"] = "learned";
  apply_setting(json, "train.sequence_length=65");
  EXPECT_TRUE(has(config_problem(json), "the model's 64 learned positions; got 65"));
  apply_setting(json, "train.sequence_length=64");
  EXPECT_EQ(config_problem(json), "");
  apply_setting(json, "data.document_mask=causal");
  EXPECT_EQ(config_problem(json), "");
  json["model"].erase("eos_token_id");
  EXPECT_TRUE(has(config_problem(json), "eos_token_id"));
  EXPECT_TRUE(has(config_problem(Json::array()), "expected an object"));
}

TEST(Setting, PathsAndValues) {
  Json json = Json::object();
  apply_setting(json, "a.b.c=1");
  apply_setting(json, "a.b.d=text with = and .");
  apply_setting(json, "a.e=[1, 2]");
  apply_setting(json, "f=\"5\"");
  apply_setting(json, "g=");
  apply_setting(json, "h=true");
  apply_setting(json, "a.b.c=2.5");
  EXPECT_EQ(
      json,
      Json::parse(
          R"({"a": {"b": {"c": 2.5, "d": "text with = and ."}, "e": [1, 2]}, "f": "5", "g": "", "h": true})"));
  for (const char* bad : {"", "=", "=1", "a", "f.x=1", "a.e.x=1", "a.b.c.d=1"}) {
    Json copy = json;
    EXPECT_THROW(apply_setting(copy, bad), ConfigError) << bad;
  }
  Json list = Json::array();
  EXPECT_THROW(apply_setting(list, "a=1"), ConfigError) << "a config that is no object";
  EXPECT_THROW(apply_setting(list, "a.b=1"), ConfigError);
}

TEST(Preset, EveryRunParsesWithDataAndOutput) {
  int count = 0;
  for (const auto& [key, text] : embedded_configs()) {
    if (!key.starts_with("runs/")) continue;
    for (const char* suffix : {"", "-skipv1"}) {
      const std::string name = key.substr(5) + suffix;
      Json json = preset_run(name);
      EXPECT_THROW(parse_run_config(json, name), ConfigError) << "data and output are the user's";
      apply_setting(json, "data.train=a.bin");
      apply_setting(json, "output=run");
      const RunConfig c = parse_run_config(json, name);
      EXPECT_EQ(parse_run_config(c.resolved, name).resolved, c.resolved) << name;
      EXPECT_GT(c.train.steps, 0);
      EXPECT_EQ(c.model.kv_sharing.scheme, *suffix ? "skipv1" : "none") << name;
      ++count;
    }
  }
  EXPECT_GE(count, 40);
  EXPECT_TRUE(
      has(problem<ConfigError>([] { preset_run("llama-61m"); }), "did you mean llama-60m?"));
}

}  // namespace
}  // namespace heirloom
