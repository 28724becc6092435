// SPDX-License-Identifier: Apache-2.0
//
// What a person watches while a run trains. On a terminal one line is rewritten in place; anywhere
// else (a file, a pipe, a batch system's log) full lines are written, each readable by itself.
#pragma once

#include <chrono>
#include <cstdint>
#include <limits>
#include <mutex>
#include <string>
#include <string_view>

namespace heirloom {

/// One optimizer step. NaN stands for "unknown": such a figure is not shown, and is null in
/// metrics.jsonl.
struct StepReport {
  static constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

  int64_t step = 0;        ///< from 1
  int64_t steps = 0;       ///< of the whole run
  double loss = kUnknown;  ///< nats per token, before the update
  double lr = kUnknown;
  double grad_norm = kUnknown;  ///< before clipping
  int64_t tokens = 0;           ///< seen since the run's first step, this step included
  double tokens_per_second = kUnknown;
  double mfu = kUnknown;      ///< model FLOPs utilisation, a fraction of 1
  double seconds = kUnknown;  ///< wall time of this step
  double eta_seconds = kUnknown;
};

/// Three significant digits and a unit: 420ms, 3.2s, 42s, 3m12s, 2h05m, 4d03h. Negative or not
/// finite: "?".
std::string format_duration(double seconds);

/// Three significant digits: 999, 12.3k, 4.56M, 7.80B, 1.20T (powers of 1000).
std::string format_count(double count);

/// Three significant digits: 512 B, 1.50 KiB, 4.00 GiB (powers of 1024).
std::string format_bytes(double bytes);

/// `step   120/1000  loss 3.2145  lr 1.00e-03  norm 0.812  12.3k tok/s  mfu 61.2%  eta 3m12s`
/// The loss is always shown, the other figures where they are known.
std::string format_step(const StepReport& report);

/// The same with a bar and the percentage done, in at most `width` columns: the bar shrinks first,
/// then figures leave in the order norm, lr, mfu, tok/s, eta.
std::string format_step_in_place(const StepReport& report, int width);

/// Writes to a file descriptor; a failed write is ignored, since progress must never end a run.
/// Safe to call from several threads.
class ProgressLine {
 public:
  enum class Style {
    kAuto,  ///< in place when the descriptor is a terminal that understands it (TERM is set and not
            ///< "dumb")
    kInPlace,  ///< one line, rewritten
    kLines,    ///< full lines
  };

  /// `line_interval_seconds`: in the style of full lines, the least time between two of them; 0
  /// writes every step. The first and the last step of the run are always written.
  explicit ProgressLine(double line_interval_seconds = 0.0, Style style = Style::kAuto,
                        int descriptor = 2);
  ~ProgressLine();  ///< calls finish()
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  void update(const StepReport& report);

  /// A line that stays (an evaluation, a saved checkpoint, a warning): the line in progress is
  /// cleared, `text` written, and the line drawn again below it. Control characters other than tab
  /// and newline become '?', so that text from a model or a file cannot drive the terminal.
  void note(std::string_view text);

  /// Leaves the last state of the line standing and ends it; later updates start a new one.
  void finish();

  bool in_place() const { return in_place_; }

 private:
  using Clock = std::chrono::steady_clock;
  void emit(std::string_view text) const;
  int columns() const;

  mutable std::mutex mutex_;
  int descriptor_;
  double line_interval_seconds_;
  bool in_place_;
  bool any_written_ = false;
  Clock::time_point last_write_;
  StepReport current_;
  bool line_open_ = false;
};

}  // namespace heirloom
