// SPDX-License-Identifier: Apache-2.0
#include "heirloom/report/progress.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <cmath>
#include <limits>
#include <string>

namespace heirloom {
namespace {

StepReport example() {
  StepReport r;
  r.step = 120;
  r.steps = 1000;
  r.loss = 3.2145;
  r.lr = 1e-3;
  r.grad_norm = 0.812;
  r.tokens = 122880;
  r.tokens_per_second = 12345;
  r.mfu = 0.612;
  r.seconds = 0.08;
  r.eta_seconds = 192;
  return r;
}

/// Both ends of a pipe; `text()` closes the writing end and returns what arrived.
class Pipe {
 public:
  Pipe() { EXPECT_EQ(::pipe(ends_.data()), 0); }
  ~Pipe() { ::close(ends_[0]); }
  int writer() const { return ends_[1]; }
  std::string text() {
    ::close(ends_[1]);
    std::string out;
    std::array<char, 4096> buffer{};
    for (ssize_t n; (n = ::read(ends_[0], buffer.data(), buffer.size())) > 0;)
      out.append(buffer.data(), static_cast<size_t>(n));
    return out;
  }

 private:
  std::array<int, 2> ends_{};
};

TEST(Format, Duration) {
  EXPECT_EQ(format_duration(0), "0ms");
  EXPECT_EQ(format_duration(0.42), "420ms");
  EXPECT_EQ(format_duration(0.9999), "1.0s");
  EXPECT_EQ(format_duration(3.21), "3.2s");
  EXPECT_EQ(format_duration(9.97), "10s");
  EXPECT_EQ(format_duration(59.6), "1m00s");
  EXPECT_EQ(format_duration(192), "3m12s");
  EXPECT_EQ(format_duration(3599.7), "1h00m");
  EXPECT_EQ(format_duration(7500), "2h05m");
  EXPECT_EQ(format_duration(4 * 86400 + 3 * 3600 + 59), "4d03h");
  EXPECT_EQ(format_duration(-1), "?");
  EXPECT_EQ(format_duration(1e300), "?");
  EXPECT_EQ(format_duration(StepReport::kUnknown), "?");
  EXPECT_EQ(format_duration(std::numeric_limits<double>::infinity()), "?");
}

TEST(Format, Count) {
  EXPECT_EQ(format_count(0), "0");
  EXPECT_EQ(format_count(7.25), "7.25");
  EXPECT_EQ(format_count(999), "999");
  EXPECT_EQ(format_count(999.7), "1.00k");
  EXPECT_EQ(format_count(12345), "12.3k");
  EXPECT_EQ(format_count(123456), "123k");
  EXPECT_EQ(format_count(999499), "999k");
  EXPECT_EQ(format_count(999999), "1.00M");
  EXPECT_EQ(format_count(4.56e6), "4.56M");
  EXPECT_EQ(format_count(7.8e9), "7.80B");
  EXPECT_EQ(format_count(1.2e12), "1.20T");
  EXPECT_EQ(format_count(-1500), "-1.50k");
}

TEST(Format, Bytes) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(1023), "1023 B");
  EXPECT_EQ(format_bytes(1536), "1.50 KiB");
  EXPECT_EQ(format_bytes(1023.9 * 1024), "1.00 MiB");
  EXPECT_EQ(format_bytes(4.0 * 1024 * 1024 * 1024), "4.00 GiB");
}

TEST(FormatStep, HasEveryKnownFigureInOrder) {
  EXPECT_EQ(format_step(example()),
            "step   120/1000  loss 3.2145  lr 1.00e-03  norm 0.812  12.3k tok/s  mfu 61.2%  "
            "eta 3m12s");
}

TEST(FormatStep, LeavesUnknownFiguresOutButNotTheLoss) {
  StepReport r;
  r.step = 7;
  r.steps = 1234567;
  EXPECT_EQ(format_step(r), "step       7/1234567  loss nan");
  r.loss = 1.5;
  r.grad_norm = std::numeric_limits<double>::infinity();
  EXPECT_EQ(format_step(r), "step       7/1234567  loss 1.5000  norm inf");
}

TEST(FormatStepInPlace, NeverExceedsTheWidthAndDropsTheLeastImportantFirst) {
  for (int width = 0; width < 160; ++width) {
    const std::string line = format_step_in_place(example(), width);
    ASSERT_LE(line.size(), static_cast<size_t>(width));
    const auto has = [&](const char* part) { return line.find(part) != std::string::npos; };
    // What leaves later is there whenever something that leaves earlier is.
    ASSERT_TRUE(!has("norm") || has("lr ")) << line;
    ASSERT_TRUE(!has("lr ") || has("mfu")) << line;
    ASSERT_TRUE(!has("mfu") || has("tok/s")) << line;
    ASSERT_TRUE(!has("tok/s") || has("eta")) << line;
    ASSERT_TRUE(!has("[") || has("norm")) << line;
  }
  EXPECT_EQ(format_step_in_place(example(), 38), "step   120/1000   12%  loss 3.2145");
  const std::string wide = format_step_in_place(example(), 200);
  EXPECT_NE(wide.find("[==>                     ]  12%"), std::string::npos) << wide;
}

TEST(FormatStepInPlace, BarIsFullOnlyAtTheEnd) {
  StepReport r = example();
  r.step = 999;
  EXPECT_NE(format_step_in_place(r, 200).find(">]  99%"), std::string::npos);
  r.step = 1000;
  EXPECT_NE(format_step_in_place(r, 200).find("=] 100%"), std::string::npos);
  r.steps = 0;
  EXPECT_NE(format_step_in_place(r, 200).find("  0%"), std::string::npos);
}

TEST(ProgressLine, WritesFullLinesWhereThereIsNoTerminal) {
  Pipe pipe;
  {
    ProgressLine line(0.0, ProgressLine::Style::kAuto, pipe.writer());
    EXPECT_FALSE(line.in_place());
    line.update(example());
    line.note("validation loss 3.1");
  }
  EXPECT_EQ(pipe.text(), format_step(example()) + "\nvalidation loss 3.1\n");
}

TEST(ProgressLine, KeepsTheIntervalButAlwaysWritesTheLastStep) {
  Pipe pipe;
  {
    ProgressLine line(3600.0, ProgressLine::Style::kLines, pipe.writer());
    StepReport r = example();
    r.steps = 50;
    for (r.step = 1; r.step <= 50; ++r.step) line.update(r);
  }
  const std::string text = pipe.text();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 2);
  EXPECT_EQ(text.find("step     1/50"), 0u);
  EXPECT_NE(text.find("\nstep    50/50"), std::string::npos);
}

TEST(ProgressLine, InPlaceClearsTheLineBeforeANoteAndRedrawsIt) {
  Pipe pipe;
  {
    ProgressLine line(0.0, ProgressLine::Style::kInPlace, pipe.writer());
    line.update(example());
    line.note("saved");
  }
  const std::string drawn = format_step_in_place(example(), 99);  // a pipe has no width: 100
  EXPECT_EQ(pipe.text(),
            "\r" + drawn + "\x1b[K" + "\r\x1b[Ksaved\n" + drawn + "\r" + drawn + "\x1b[K\n");
}

TEST(ProgressLine, NoteDisarmsControlCharacters) {
  Pipe pipe;
  {
    ProgressLine line(0.0, ProgressLine::Style::kLines, pipe.writer());
    line.note(
        "a\x1b]0;title\x07 b\tc\nd \xC2\x9B"
        "31m \xC3\xA9\x7f");
  }
  EXPECT_EQ(pipe.text(), "a?]0;title? b\tc\nd ??31m \xC3\xA9?\n");
}

TEST(ProgressLine, SurvivesAClosedDescriptor) {
  ProgressLine line(0.0, ProgressLine::Style::kLines, -1);
  line.update(example());
  line.note("nobody listens");
}

}  // namespace
}  // namespace heirloom
