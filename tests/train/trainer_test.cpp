// SPDX-License-Identifier: Apache-2.0
//
// Whole runs of a tiny model.
#include "heirloom/train/trainer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "heirloom/data/batch_order.h"
#include "heirloom/train/checkpoint_directory.h"
#include "train/tiny_run.h"

namespace heirloom {
namespace {
using namespace test;

const std::vector<std::string> kDropout = {
    "train.dropout.embedding=0.1", "train.dropout.attention=0.2", "train.dropout.residual=0.2"};

std::vector<std::string> operator+(std::vector<std::string> a, const std::vector<std::string>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

struct Result {
  std::map<std::string, std::vector<double>> weights;
  std::vector<double> losses, norms, validation;
};

/// Trains into a fresh directory.
Result trained(const TemporaryDirectory& data, const std::vector<std::string>& settings,
               int threads = 1) {
  const TemporaryDirectory out;
  const RunConfig c = with(tiny_run_json(data),
                           settings + std::vector<std::string>{"output=" + (out / "run").string()});
  EXPECT_EQ(train_quietly(c, {}, threads), TrainOutcome::kFinished);
  const fs::path run = c.output;
  return {stored_values(run / "final" / "model.safetensors"), metric(run, "loss"),
          metric(run, "grad_norm"), metric(run, "val_loss")};
}

void expect_near(const std::vector<double>& a, const std::vector<double>& b, double tolerance,
                 const std::string& what) {
  ASSERT_EQ(a.size(), b.size()) << what;
  for (size_t i = 0; i < a.size(); ++i)
    ASSERT_NEAR(a[i], b[i], tolerance) << what << "[" << i << "]";
}

void expect_near(const Result& a, const Result& b, double tolerance, const std::string& what) {
  expect_near(a.losses, b.losses, tolerance, what + " losses");
  expect_near(a.validation, b.validation, tolerance, what + " validation");
  ASSERT_EQ(a.weights.size(), b.weights.size());
  for (const auto& [name, values] : a.weights)
    expect_near(values, b.weights.at(name), tolerance, what + " " + name);
}

TEST(Trainer, MicroBatchesRecomputationAndThreadsChangeNothing) {
  const TemporaryDirectory data;
  for (const bool dropout : {false, true}) {
    std::vector<std::string> base = {"train.dtype=float64", "train.save_dtype=float64",
                                     "train.steps=3"};
    if (dropout) base = base + kDropout;
    const Result whole = trained(data, base, 2);
    ASSERT_EQ(whole.losses.size(), 3u);
    EXPECT_NE(whole.losses[0], whole.losses[2]);
    for (const char* micro : {"1", "2", "4"}) {
      for (const char* recompute : {"false", "true"}) {
        const Result other = trained(
            data, base + std::vector<std::string>{std::string("train.micro_batch_size=") + micro,
                                                  std::string("train.recompute=") + recompute});
        expect_near(whole, other, 1e-12,
                    std::string("micro-batch ") + micro + " recompute " + recompute);
      }
    }
    const Result masked =
        trained(data, base + std::vector<std::string>{"data.document_mask=causal"});
    expect_near(masked,
                trained(data, base + std::vector<std::string>{"data.document_mask=causal",
                                                              "train.micro_batch_size=1"}),
                1e-12, "documents");
    EXPECT_NE(masked.losses, whole.losses);
  }
  const Result dry = trained(data, {}), wet = trained(data, kDropout);
  EXPECT_NE(dry.losses[0], wet.losses[0]) << "dropout is at work";
  EXPECT_EQ(dry.validation[0], wet.validation[0]) << "but not in evaluation";
}

// The loop of the trainer, written out: batches in order, gradients of the mean, clipping, the schedule, AdamW.
TEST(Trainer, EqualsTheLoopWrittenOut) {
  const TemporaryDirectory data;
  const std::vector<std::string> settings = {
      "train.dtype=float64",  "train.save_dtype=float64",         "train.steps=5",
      "schedule.name=linear", "schedule.warmup_steps=2",          "data.shuffle=false",
      "train.batch_size=5",   "optimizer.decay_embeddings=false", "train.init.residual=1/sqrt(2L)"};
  const Result seen = trained(data, settings);
  const RunConfig c = with(tiny_run_json(data), settings);
  Transformer model(c.model, Device{}, Dtype::kFloat64);
  model.ensure_positions(8);
  ParameterStore& store = model.parameters();
  initialize(store, 3, {0.2, 1 / std::sqrt(6.0)}, store.data(), Dtype::kFloat64);
  const size_t n = static_cast<size_t>(store.elements());
  std::vector<double> g(n), m(n), v(n);
  store.attach_gradients(g.data());
  const TokenDataset dataset({c.data.train[0]}, 8, kVocab);
  ASSERT_EQ(dataset.sequences(), 23);
  double* w = static_cast<double*>(store.data());
  const double rates[] = {0.005, 0.01, 0.01 * 0.7, 0.01 * 0.4, 0.01 * 0.1};
  for (int64_t step = 0; step < 5; ++step) {
    std::fill(g.begin(), g.end(), 0.0);
    MicroBatch batch(5, 8);
    batch.begin(0);
    for (int64_t b = 0; b < 5; ++b)
      batch.load(b, dataset, (5 * step + b) % 23, DocumentMask::kNone, {});
    Arena arena(Device{});
    train_pass(Context{arena}, model, on_host(batch.host()), 1.0 / 40, Recompute::kNone);
    double loss = 0, squares = 0;
    for (const double nll : batch.nll) loss += nll / 40;
    for (const double x : g) squares += x * x;
    const double norm = std::sqrt(squares);
    EXPECT_GT(norm, 0.5) << "clipping is at work";
    EXPECT_NEAR(seen.losses[static_cast<size_t>(step)], loss, 1e-12);
    EXPECT_NEAR(seen.norms[static_cast<size_t>(step)], norm, 1e-12);
    for (const NamedParameter& p : store.all()) {
      const double decay =
          p.shape.rank() == 1 || p.slices[0].name == "model.embed_tokens.weight" ? 0 : 0.1;
      for (int64_t k = 0; k < p.numel(); ++k) {
        const size_t i = static_cast<size_t>(p.offset + k);
        const double scaled = g[i] * (0.5 / (norm + 1e-6));
        m[i] = 0.9 * m[i] + 0.1 * scaled;
        v[i] = 0.95 * v[i] + 0.05 * scaled * scaled;
        const double m_hat = m[i] / (1 - std::pow(0.9, step + 1)),
                     v_hat = v[i] / (1 - std::pow(0.95, step + 1));
        w[i] -= rates[step] * (m_hat / (std::sqrt(v_hat) + 1e-8) + decay * w[i]);
      }
    }
  }
  for (const NamedParameter& p : store.all()) {
    for (const ParameterSlice& s : p.slices) {
      const double* from = w + p.offset + s.begin * p.columns();
      expect_near(seen.weights.at(s.name),
                  std::vector<double>(from, from + (s.end - s.begin) * p.columns()), 1e-11, s.name);
    }
  }
}

TEST(Trainer, EvaluationAtTheStartIsADirectEvaluation) {
  const TemporaryDirectory data;
  // Seven validation sequences: micro-batches of two leave one row of padding.
  const RunConfig c = with(tiny_run_json(data),
                           {"train.steps=0", "train.micro_batch_size=2", "train.eval_batches=0",
                            "train.dtype=float64", "train.save_dtype=float64"});
  EXPECT_EQ(train_quietly(c), TrainOutcome::kFinished);
  const std::vector<double> validation = metric(c.output, "val_loss"),
                            perplexity = metric(c.output, "val_perplexity");
  ASSERT_EQ(validation.size(), 1u);
  Transformer model(c.model, Device{}, Dtype::kFloat64);
  load_weights(fs::path(c.output) / "final", c.model, model.parameters(), model.parameters().data(),
               Dtype::kFloat64);
  model.ensure_positions(8);
  const TokenDataset dataset({c.data.validation}, 8, kVocab);
  ASSERT_EQ(dataset.sequences(), 7);
  const auto direct = [&](int64_t sequences) {
    double sum = 0;
    for (int64_t k = 0; k < sequences; ++k) {
      MicroBatch batch(1, 8);
      batch.begin(0);
      batch.load(0, dataset, k, DocumentMask::kNone, {});
      Arena arena(Device{});
      evaluation_pass(Context{arena}, model, on_host(batch.host()));
      for (const double nll : batch.nll) sum += nll;
    }
    return sum / static_cast<double>(8 * sequences);
  };
  EXPECT_NEAR(validation[0], direct(7), 1e-12);
  EXPECT_NEAR(perplexity[0], std::exp(direct(7)), 1e-9);
  // eval_batches 1: the first batch_size sequences only.
  const Result first = trained(data, {"train.steps=0", "train.eval_batches=1",
                                      "train.dtype=float64", "train.micro_batch_size=2"});
  EXPECT_NEAR(first.validation[0], direct(4), 1e-12);
}

TEST(Trainer, WritesWhatTheContractNames) {
  const TemporaryDirectory data;
  const RunConfig c =
      with(tiny_run_json(data), {"train.save_every=2", "train.eval_every=2", "train.keep=1"});
  train_quietly(c);
  const fs::path run = c.output;
  for (const char* name : {"config.json", "metrics.jsonl", "report.html", "final/config.json",
                           "final/model.safetensors", "checkpoints/step-00000004/config.json",
                           "checkpoints/step-00000004/model.safetensors",
                           "checkpoints/step-00000004/optimizer.safetensors",
                           "checkpoints/step-00000004/trainer.json"}) {
    EXPECT_TRUE(fs::exists(run / name)) << name;
  }
  EXPECT_FALSE(fs::exists(checkpoint_path(run, 2))) << "keep";
  EXPECT_EQ(read_json_file((run / "config.json").string()), c.resolved);
  const std::vector<Json> lines = read_metrics(run / "metrics.jsonl");
  std::vector<std::string> order;
  int64_t step = 0;
  for (const Json& line : lines) {
    order.push_back(line.contains("loss") ? "step" : "eval");
    EXPECT_GE(line.at("step").get<int64_t>(), step);
    step = line.at("step").get<int64_t>();
    if (!line.contains("loss")) continue;
    EXPECT_EQ(line.at("tokens"), 32 * step);
    for (const char* key : {"lr", "grad_norm", "tokens_per_second", "mfu", "seconds"})
      EXPECT_TRUE(line.contains(key)) << key;
  }
  EXPECT_EQ(order,
            (std::vector<std::string>{"eval", "step", "step", "eval", "step", "step", "eval"}));
  EXPECT_NEAR(lines[1].at("loss").get<double>(), std::log(29), 1.5);
}

TEST(Trainer, InitFromStartsAtThatModel) {
  const TemporaryDirectory data;
  const RunConfig first = with(tiny_run_json(data), {});
  train_quietly(first);
  const Result next =
      trained(data, {"init_from=" + (fs::path(first.output) / "final").string(), "train.steps=0"});
  EXPECT_EQ(next.validation.at(0), metric(first.output, "val_loss").back());
  EXPECT_EQ(next.weights, stored_values(fs::path(first.output) / "final" / "model.safetensors"));
  EXPECT_THROW(trained(data, {"init_from=" + (data / "nothing").string()}), IoError);
}

class ResumeTest : public ::testing::Test {
 protected:
  RunConfig config(const std::vector<std::string>& more = {}) const {
    return with(
        tiny_run_json(data_),
        std::vector<std::string>{"train.steps=8", "train.save_every=2", "train.eval_every=4",
                                 "train.keep=0", "train.dtype=bfloat16"} +
            kDropout + more);
  }
  /// The uninterrupted run; what the tests compare with.
  void run_through() {
    ASSERT_EQ(train_quietly(config()), TrainOutcome::kFinished);
    final_ = read_file(run_ / "final" / "model.safetensors");
    losses_ = metric(run_, "loss");
    validation_ = metric(run_, "val_loss");
    ASSERT_EQ(losses_.size(), 8u);
    ASSERT_EQ(validation_.size(), 3u);
  }
  void drop_after(int64_t step) {
    for (int64_t s = step + 1; s <= 8; ++s) fs::remove_all(checkpoint_path(run_, s));
    fs::remove_all(run_ / "final");
  }
  void expect_same_result() {
    EXPECT_TRUE(read_file(run_ / "final" / "model.safetensors") == final_)
        << "final weights differ";
    EXPECT_EQ(metric(run_, "loss"), losses_);
    EXPECT_EQ(metric(run_, "val_loss"), validation_);
  }
  static void damage(const fs::path& file, bool truncate) {
    std::string bytes = read_file(file);
    if (truncate)
      bytes.resize(bytes.size() / 2);
    else
      bytes[bytes.size() - 9] = static_cast<char>(bytes[bytes.size() - 9] ^ 1);
    std::ofstream(file, std::ios::binary | std::ios::trunc) << bytes;
  }

  TemporaryDirectory data_;
  fs::path run_ = data_ / "run";
  std::string final_;
  std::vector<double> losses_, validation_;
};

TEST_F(ResumeTest, FromAnyCheckpointGivesTheSameBits) {
  run_through();
  for (const int64_t step : {6, 4, 2}) {
    drop_after(step);
    TrainerOptions must;
    must.resume = ResumeMode::kMust;
    EXPECT_EQ(train_quietly(config(), must), TrainOutcome::kFinished);
    expect_same_result();
  }
  // Killed after the last checkpoint but before final/.
  fs::remove_all(run_ / "final");
  train_quietly(config());
  expect_same_result();
  // A complete run does nothing.
  const auto before = fs::last_write_time(run_ / "final" / "model.safetensors");
  train_quietly(config());
  EXPECT_EQ(fs::last_write_time(run_ / "final" / "model.safetensors"), before);
}

TEST_F(ResumeTest, DamagedCheckpointsArePassedOver) {
  run_through();
  for (const auto& [name, truncate] :
       std::vector<std::pair<const char*, bool>>{{"model.safetensors", false},
                                                 {"optimizer.safetensors", true},
                                                 {"trainer.json", false},
                                                 {"complete.json", true}}) {
    drop_after(6);
    damage(checkpoint_path(run_, 6) / name, truncate);
    const Warnings warnings;
    train_quietly(config());
    EXPECT_TRUE(has(warnings.all, "step-00000006 is damaged")) << name << ": " << warnings.all;
    expect_same_result();
  }
  drop_after(6);
  fs::remove(checkpoint_path(run_, 6) / "optimizer.safetensors");
  for (const int64_t step : {2, 4}) damage(checkpoint_path(run_, step) / "model.safetensors", true);
  const Warnings warnings;
  TrainerOptions must;
  must.resume = ResumeMode::kMust;
  EXPECT_THROW(train_quietly(config(), must), IoError) << "every checkpoint is damaged";
  EXPECT_TRUE(has(warnings.all, "optimizer.safetensors is missing"));
  train_quietly(config());  // from the start
  expect_same_result();
}

// A damaged checkpoint of a later step must not push the sound ones out.
TEST_F(ResumeTest, KeepCountsCheckpointsUpToTheOneJustWritten) {
  run_through();
  drop_after(6);
  damage(checkpoint_path(run_, 6) / "model.safetensors", true);
  fs::rename(checkpoint_path(run_, 6),
             checkpoint_path(run_, 7));  // as a stop by a signal would have named it
  const Warnings warnings;
  train_quietly(config({"train.keep=1", "train.steps=6"}));
  EXPECT_TRUE(has(warnings.all, "step-00000007 is damaged"));
  EXPECT_EQ(newest_checkpoint(run_), checkpoint_path(run_, 6));
  EXPECT_FALSE(fs::exists(checkpoint_path(run_, 4)));
}

TEST_F(ResumeTest, AChangedConfigIsRefusedByName) {
  run_through();
  drop_after(4);
  const std::string before = read_file(run_ / "metrics.jsonl");
  const std::pair<const char*, const char*> cases[] = {
      {"optimizer.lr=0.02", "optimizer.lr was 0.01, now 0.02"},
      {"train.seed=4", "train.seed"},
      {"train.batch_size=8", "train.batch_size"},
      {"schedule.warmup_steps=3", "schedule.warmup_steps"},
      {"data.shuffle=false", "data.shuffle"},
      {"train.dropout.residual=0", "train.dropout.residual"},
      {"model.hidden_size=32", "model.hidden_size"},
      {"train.dtype=float32", "train.dtype"}};
  for (const auto& [setting, part] : cases) {
    const std::string text = problem<ConfigError>([&] { train_quietly(config({setting})); });
    EXPECT_TRUE(has(text, part)) << setting << ": " << text;
  }
  EXPECT_EQ(read_file(run_ / "metrics.jsonl"), before) << "a refused run touches nothing";
  train_quietly(config({"train.recompute=true", "train.save_every=3", "train.save_dtype=float32"}));
  expect_same_result();
}

TEST_F(ResumeTest, AKeyThatIsGoneIsAChangeToo) {
  Json json = tiny_run_json(data_);
  json["model"]["rope_scaling"] = {
      {"rope_type", "yarn"}, {"factor", 2.0}, {"attention_factor", 1.5}};
  train_quietly(parse_run_config(json, "test"));
  fs::remove_all(run_ / "final");
  json["model"]["rope_scaling"].erase("attention_factor");
  const std::string text =
      problem<ConfigError>([&] { train_quietly(parse_run_config(json, "test")); });
  EXPECT_TRUE(has(text, "model.rope_scaling.attention_factor")) << text;
}

TEST_F(ResumeTest, NeverAndMust) {
  TrainerOptions never, must;
  never.resume = ResumeMode::kNever;
  must.resume = ResumeMode::kMust;
  EXPECT_THROW(train_quietly(config(), must), IoError);
  EXPECT_EQ(train_quietly(config(), never), TrainOutcome::kFinished) << "nothing there yet";
  EXPECT_TRUE(has(problem<ConfigError>([&] { train_quietly(config(), never); }), "--resume never"));
}

TEST_F(ResumeTest, ALossThatIsNotFiniteStopsTheRun) {
  RunConfig c =
      with(tiny_run_json(data_), {"train.save_every=1", "train.keep=0", "schedule.warmup_steps=0"});
  c.optimizer.lr = 1e30;
  const std::string text = problem<Error>([&] { train_quietly(c); });
  EXPECT_TRUE(has(text, "expected a finite loss") && has(text, "at step 2") &&
              has(text, "checkpoints"))
      << text;
  EXPECT_FALSE(fs::exists(run_ / "final"));
  EXPECT_EQ(newest_checkpoint(run_), checkpoint_path(run_, 1));
  EXPECT_FALSE(fs::exists(checkpoint_path(run_, 2)));
  const std::string kept = read_file(checkpoint_path(run_, 1) / "model.safetensors");
  EXPECT_THROW(train_quietly(c), Error) << "again from step 1";
  EXPECT_TRUE(read_file(checkpoint_path(run_, 1) / "model.safetensors") == kept);
  EXPECT_EQ(metric(run_, "loss").size(), 1u);
}

TEST_F(ResumeTest, LeftoversOfAKilledWriteAreRemovedAndNeverRead) {
  run_through();
  drop_after(4);
  const fs::path leftover = run_ / "checkpoints" / ".writing-step-00000006";
  fs::copy(checkpoint_path(run_, 4), leftover);
  train_quietly(config());
  expect_same_result();
  EXPECT_FALSE(fs::exists(leftover));
}

}  // namespace
}  // namespace heirloom
