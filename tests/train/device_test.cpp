// SPDX-License-Identifier: Apache-2.0
//
// Whole runs on CUDA, real or emulated, held to the CPU's and to each other.
#include <gtest/gtest.h>

#include <cmath>

#include "heirloom/model/batch.h"
#include "heirloom/train/checkpoint_directory.h"
#include "support/devices.h"
#include "train/tiny_run.h"

namespace heirloom {
namespace {
using namespace test;

struct Result {
  std::map<std::string, std::vector<double>> weights;
  std::vector<double> losses, norms, validation;
  bool operator==(const Result&) const = default;
};

using Settings = std::vector<std::string>;

Result trained_on(const Device& device, const TemporaryDirectory& data, Settings settings) {
  const TemporaryDirectory out;
  settings.push_back("output=" + (out / "run").string());
  const RunConfig c = with(tiny_run_json(data), settings);
  TrainerOptions options;
  options.device = device;
  EXPECT_EQ(train_quietly(c, options), TrainOutcome::kFinished);
  const fs::path run = c.output;
  return {stored_values(run / "final" / "model.safetensors"), metric(run, "loss"),
          metric(run, "grad_norm"), metric(run, "val_loss")};
}

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  EXPECT_EQ(a.size(), b.size());
  double worst = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    worst = std::max(worst, std::abs(a[i] - b[i]));
  }
  return worst;
}

const Settings kDropout = {"train.dropout.embedding=0.1", "train.dropout.attention=0.2",
                           "train.dropout.residual=0.2"};

Settings operator+(Settings a, const Settings& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

TEST(TrainOnCuda, AgreesWithTheCpuOverFiftySteps) {
  HEIRLOOM_SKIP_WITHOUT_CUDA();
  const TemporaryDirectory data;
  for (const bool dropout : {false, true}) {
    const Settings settings =
        Settings{"train.steps=50", "optimizer.lr=0.003"} + (dropout ? kDropout : Settings{});
    const Result cpu = trained_on({}, data, settings), cuda = trained_on(kCuda, data, settings);
    // Rounding differs from the first step on and grows with the steps; a wrong mask or gradient
    // shows at once: the losses fall by a nat.
    EXPECT_LT(largest_difference(cpu.losses, cuda.losses), 2e-4) << "dropout " << dropout;
    EXPECT_LT(largest_difference(cpu.validation, cuda.validation), 2e-4);
    EXPECT_GT(cpu.losses.front() - cpu.losses.back(), 0.2);
    const Settings half = settings + Settings{"train.dtype=bfloat16"};
    const Result narrow_cpu = trained_on({}, data, half), narrow = trained_on(kCuda, data, half);
    EXPECT_LT(largest_difference(narrow_cpu.losses, narrow.losses), 3e-2) << "dropout " << dropout;
  }
}

TEST(TrainOnCuda, CapturedStepsEqualEagerOnesBitForBit) {
  HEIRLOOM_SKIP_WITHOUT_CUDA();
  const TemporaryDirectory data;
  for (const char* dtype : {"float32", "bfloat16"}) {
    for (const char* recompute : {"none", "block"}) {
      const Settings settings = Settings{"train.micro_batch_size=2", "train.eval_every=2",
                                         std::string("train.dtype=") + dtype,
                                         std::string("train.recompute=") + recompute} +
                                kDropout;
      const Result captured = trained_on(kCuda, data, settings);
      const Result eager = trained_on(kCuda, data, settings + Settings{"train.capture=false"});
      EXPECT_TRUE(captured == eager) << dtype << " " << recompute;
    }
  }
}

TEST(TrainOnCuda, RecomputedStepsEqualStoredOnesBitForBit) {
  HEIRLOOM_SKIP_WITHOUT_CUDA();
  const TemporaryDirectory data;
  EXPECT_TRUE(trained_on(kCuda, data, kDropout + Settings{"train.recompute=block"}) ==
              trained_on(kCuda, data, kDropout + Settings{"train.recompute=none"}));
}

TEST(TrainOnCuda, MicroBatchesChangeOnlyRounding) {
  HEIRLOOM_SKIP_WITHOUT_CUDA();
  const TemporaryDirectory data;
  const Result whole = trained_on(kCuda, data, kDropout);
  const Result parts = trained_on(kCuda, data, kDropout + Settings{"train.micro_batch_size=1"});
  EXPECT_LT(largest_difference(whole.losses, parts.losses), 1e-5);
  EXPECT_LT(largest_difference(whole.norms, parts.norms), 1e-4);
}

TEST(TrainOnCuda, DocumentsAreMaskedAsOnTheCpu) {
  HEIRLOOM_SKIP_WITHOUT_CUDA();
  const TemporaryDirectory data;
  const Settings settings = kDropout + Settings{"data.document_mask=causal"};
  const Result cpu = trained_on({}, data, settings), cuda = trained_on(kCuda, data, settings);
  EXPECT_LT(largest_difference(cpu.losses, cuda.losses), 1e-4);
  const Result plain = trained_on(kCuda, data, kDropout);
  EXPECT_GT(largest_difference(plain.losses, cuda.losses), 1e-3);
}

TEST(TrainOnCuda, LearnedPositionsBiasesAndNorms) {
  HEIRLOOM_SKIP_WITHOUT_CUDA();
  const TemporaryDirectory data;
  const Settings settings = {"model.position=learned",        "model.norm=layernorm",
                             "model.norm_bias=true",          "model.mlp=gelu_tanh",
                             "model.mlp_bias=true",           "model.attention_bias=true",
                             "model.intermediate_size=21",    "model.tie_word_embeddings=true",
                             "train.init.residual=1/sqrt(2L)"};
  const Result cpu = trained_on({}, data, settings), cuda = trained_on(kCuda, data, settings);
  EXPECT_LT(largest_difference(cpu.losses, cuda.losses), 1e-4);
  EXPECT_LT(largest_difference(cpu.norms, cuda.norms), 1e-3);
}

// A run that moves from one device to the other in its middle ends where either would have.
TEST(TrainOnCuda, ResumesAcrossDevices) {
  HEIRLOOM_SKIP_WITHOUT_CUDA();
  const TemporaryDirectory data;
  const Settings settings = kDropout + Settings{"schedule.name=constant"};
  const Result whole = trained_on(kCuda, data, settings + Settings{"train.steps=8"});
  const TemporaryDirectory out;
  const Settings to = settings + Settings{"output=" + (out / "run").string()};
  const auto part = [&](const char* steps, const Device& device) {
    TrainerOptions options;
    options.device = device;
    const RunConfig c = with(tiny_run_json(data), to + Settings{steps});
    EXPECT_EQ(train_quietly(c, options), TrainOutcome::kFinished);
  };
  part("train.steps=3", kCuda);
  part("train.steps=6", Device{});
  part("train.steps=8", kCuda);
  EXPECT_LT(largest_difference(metric(out / "run", "loss"), whole.losses), 1e-4);
  // On one device the bits are the same.
  const TemporaryDirectory again;
  const Settings same = settings + Settings{"output=" + (again / "run").string()};
  for (const char* steps : {"train.steps=3", "train.steps=8"}) {
    TrainerOptions options;
    options.device = kCuda;
    EXPECT_EQ(train_quietly(with(tiny_run_json(data), same + Settings{steps}), options),
              TrainOutcome::kFinished);
  }
  EXPECT_EQ(metric(again / "run", "loss"), whole.losses);
  EXPECT_EQ(stored_values(again / "run" / "final" / "model.safetensors"), whole.weights);
}

TEST(TrainOnCuda, AStepThatIsNotFiniteChangesNothing) {
  HEIRLOOM_SKIP_WITHOUT_CUDA();
  const TemporaryDirectory data, out;
  const Settings settings = {"train.save_every=1",
                             "train.keep=0",
                             "optimizer.grad_clip=0",
                             "optimizer.lr=1000",
                             "optimizer.weight_decay=100",
                             "train.steps=20",
                             "schedule.name=constant",
                             "schedule.warmup_steps=0",
                             "output=" + (out / "run").string()};
  TrainerOptions options;
  options.device = kCuda;
  const RunConfig c = with(tiny_run_json(data), settings);
  EXPECT_TRUE(has(problem<Error>([&] { train_quietly(c, options); }), "finite"));
  EXPECT_TRUE(newest_checkpoint(out / "run").has_value());
}

TEST(TrainOnCuda, NarrowStateTrainsAsOnTheCpu) {
  HEIRLOOM_SKIP_WITHOUT_CUDA();
  const TemporaryDirectory data;
  const Settings settings = {"train.dtype=bfloat16", "optimizer.state=bfloat16",
                             "train.save_dtype=float32", "train.steps=20"};
  const Result cpu = trained_on({}, data, settings), cuda = trained_on(kCuda, data, settings);
  EXPECT_LT(largest_difference(cpu.losses, cuda.losses), 3e-2);
}

TEST(Trainer, NarrowStateLearnsAsWideStateDoes) {
  const TemporaryDirectory data;
  const Settings settings = {"train.dtype=bfloat16", "train.steps=60", "optimizer.lr=0.003"};
  const Result wide = trained_on({}, data, settings);
  const Result narrow = trained_on({}, data, settings + Settings{"optimizer.state=bfloat16"});
  EXPECT_GT(wide.losses.front() - wide.losses.back(), 0.2);
  EXPECT_LT(largest_difference(wide.losses, narrow.losses), 0.1);
  // Resuming draws the same roundings.
  const TemporaryDirectory out;
  const Settings to = settings + Settings{"optimizer.state=bfloat16", "schedule.name=constant",
                                          "output=" + (out / "run").string()};
  for (const char* steps : {"train.steps=7", "train.steps=12"}) {
    EXPECT_EQ(train_quietly(with(tiny_run_json(data), to + Settings{steps})),
              TrainOutcome::kFinished);
  }
  const Result whole = trained_on({}, data, to + Settings{"train.steps=12"});
  EXPECT_EQ(metric(out / "run", "loss"), whole.losses);
}

TEST(Trainer, NarrowStateNeedsBfloat16) {
  const TemporaryDirectory data;
  EXPECT_TRUE(
      has(problem<ConfigError>([&] { with(tiny_run_json(data), {"optimizer.state=bfloat16"}); }),
          "optimizer.state"));
}

TEST(OrderRows, ByValueThenRow) {
  const std::vector<int32_t> values = {3, 0, 3, 1, 0, 3};
  std::vector<int32_t> order(values.size());
  order_rows(values, 4, order);
  EXPECT_EQ(order, (std::vector<int32_t>{1, 4, 3, 0, 2, 5}));
  order_rows({}, 0, {});
}

}  // namespace
}  // namespace heirloom
