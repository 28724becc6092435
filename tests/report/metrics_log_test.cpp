// SPDX-License-Identifier: Apache-2.0
#include "heirloom/report/metrics_log.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>

#include "heirloom/core/error.h"

namespace heirloom {
namespace {

class MetricsLogTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = fs::temp_directory_path() /
                 (std::string("heirloom_metrics_") +
                  ::testing::UnitTest::GetInstance()->current_test_info()->name() + "_" +
                  std::to_string(::getpid()));
    fs::create_directories(directory_);
    path_ = directory_ / "metrics.jsonl";
  }
  void TearDown() override { fs::remove_all(directory_); }

  static StepReport at(int64_t step) {
    StepReport r;
    r.step = step;
    r.steps = 100;
    r.loss = 4.0 / static_cast<double>(step);
    r.lr = 1e-3;
    r.grad_norm = 0.1 + 0.2;
    r.tokens = 512 * step;
    r.tokens_per_second = 1000.5;
    r.mfu = 0.4;
    r.seconds = 0.5;
    return r;
  }

  fs::path directory_, path_;
};

TEST_F(MetricsLogTest, WritesTheAgreedKeysAndExactNumbers) {
  {
    MetricsLog log(path_);
    log.step(at(1));
    log.evaluation(1, 2.0);
    log.finish();
  }
  const std::vector<Json> lines = read_metrics(path_);
  ASSERT_EQ(lines.size(), 2u);
  std::vector<std::string> keys;
  for (const auto& item : lines[0].items()) keys.push_back(item.key());
  EXPECT_EQ(keys, (std::vector<std::string>{"step", "loss", "lr", "grad_norm", "tokens",
                                            "tokens_per_second", "mfu", "seconds"}));
  EXPECT_EQ(lines[0]["step"], 1);
  EXPECT_EQ(lines[0]["loss"].get<double>(), 4.0);
  EXPECT_EQ(lines[0]["grad_norm"].get<double>(), 0.1 + 0.2);
  EXPECT_EQ(lines[0]["tokens"], 512);
  EXPECT_EQ(lines[1], (Json{{"step", 1}, {"val_loss", 2.0}, {"val_perplexity", std::exp(2.0)}}));
}

TEST_F(MetricsLogTest, WritesWhatIsNotFiniteAsNull) {
  StepReport r = at(1);
  r.loss = std::nan("");
  r.grad_norm = std::numeric_limits<double>::infinity();
  r.mfu = StepReport::kUnknown;
  MetricsLog log(path_);
  log.step(r);
  log.evaluation(1, 1e4);  // its perplexity overflows
  const std::vector<Json> lines = read_metrics(path_);
  ASSERT_EQ(lines.size(), 2u);
  for (const char* key : {"loss", "grad_norm", "mfu"}) EXPECT_TRUE(lines[0][key].is_null()) << key;
  EXPECT_EQ(lines[0]["lr"], 1e-3);
  EXPECT_TRUE(lines[1]["val_perplexity"].is_null());
}

TEST_F(MetricsLogTest, EveryLineIsReadableAtOnce) {
  MetricsLog log(path_);
  for (int64_t step = 1; step <= 3; ++step) {
    log.step(at(step));
    EXPECT_EQ(read_metrics(path_).size(), static_cast<size_t>(step));
  }
}

TEST_F(MetricsLogTest, ResumeLeavesEachStepOnce) {
  {
    MetricsLog log(path_);
    for (int64_t step = 1; step <= 10; ++step) {
      log.step(at(step));
      if (step % 5 == 0) log.evaluation(step, 1.0);
    }
    log.finish();
  }
  const std::string uninterrupted = read_file(path_);
  {
    FileWriter torn(path_, FileWriter::Mode::kAppend);
    torn.write("{\"step\": 11, \"lo");
    torn.finish();
  }
  {
    MetricsLog log(path_, 4);
    EXPECT_EQ(read_metrics(path_).size(), 4u);
    for (int64_t step = 5; step <= 10; ++step) {
      log.step(at(step));
      if (step % 5 == 0) log.evaluation(step, 1.0);
    }
    log.finish();
  }
  EXPECT_EQ(read_file(path_), uninterrupted);
}

TEST_F(MetricsLogTest, ResumeKeepsTheEvaluationOfItsOwnStep) {
  write_file_atomically(path_,
                        "{\"step\":5,\"loss\":1}\n{\"step\":5,\"val_loss\":1}\n"
                        "{\"step\":6,\"loss\":1}\n");
  MetricsLog log(path_, 5);
  EXPECT_EQ(read_metrics(path_).size(), 2u);
}

TEST_F(MetricsLogTest, AFreshRunStartsEmpty) {
  write_file_atomically(path_, "{\"step\":1,\"loss\":1}\n");
  MetricsLog log(path_, 0);
  EXPECT_EQ(read_file(path_), "");
}

TEST_F(MetricsLogTest, ResumeWithoutAFileStartsOne) {
  MetricsLog log(path_, 7);
  log.step(at(8));
  EXPECT_EQ(read_metrics(path_).size(), 1u);
}

TEST_F(MetricsLogTest, ResumeEndsALastLineThatLacksOnlyItsNewline) {
  write_file_atomically(path_, "{\"step\":1}\n{\"step\":2}");
  MetricsLog log(path_, 2);
  log.write({{"step", 3}});
  EXPECT_EQ(read_file(path_), "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n");
}

TEST_F(MetricsLogTest, ReaderToleratesTornLastLinesOnly) {
  for (const char* torn : {"{\"step\":2,", "{\"step\":2", "\"x", "17", "{\"s\xff", "{\n"}) {
    write_file_atomically(path_, std::string("{\"step\":1}\n") + torn);
    EXPECT_EQ(read_metrics(path_).size(), 1u) << torn;
  }
  write_file_atomically(path_, std::string("{\"step\":1}\n\0\0\0", 14));
  EXPECT_EQ(read_metrics(path_).size(), 1u);
  write_file_atomically(path_, "");
  EXPECT_TRUE(read_metrics(path_).empty());

  for (const char* damaged :
       {"{\"step\":1}\n{\"st\n{\"step\":3}\n", "{\"step\":1}\n[2]\n{\"step\":3}\n"}) {
    write_file_atomically(path_, damaged);
    try {
      read_metrics(path_);
      ADD_FAILURE() << "no error for " << damaged;
    } catch (const FormatError& error) {
      EXPECT_NE(std::string(error.what()).find("line 2"), std::string::npos) << error.what();
    }
    EXPECT_THROW(MetricsLog(path_, 3), FormatError);
    EXPECT_EQ(read_file(path_), damaged) << "a refused file must stay as it is";
  }
  EXPECT_THROW(read_metrics(directory_ / "absent.jsonl"), IoError);
}

TEST_F(MetricsLogTest, RefusesLinesThatAreNotObjects) {
  MetricsLog log(path_);
  EXPECT_THROW(log.write(Json::array({1})), ArgumentError);
}

}  // namespace
}  // namespace heirloom
