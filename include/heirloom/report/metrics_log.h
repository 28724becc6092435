// SPDX-License-Identifier: Apache-2.0
//
// metrics.jsonl: one flat JSON object per line, in the order in which things happened.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "heirloom/io/file.h"
#include "heirloom/io/json.h"
#include "heirloom/report/progress.h"

namespace heirloom {

/// The lines of a metrics file, oldest first. A last line that is not a JSON object is what a
/// killed run leaves behind, and is dropped; any other such line is a FormatError that names the
/// file and the line. A missing file is an IoError.
std::vector<Json> read_metrics(const fs::path& path);

/// Appends to a metrics file; every line has reached the operating system when its call returns.
class MetricsLog {
 public:
  /// Opens for a run whose next step is `resume_step` + 1: of an existing file, lines whose "step"
  /// is greater and a torn last line are dropped (the file is replaced atomically), so that each
  /// step stands there once. 0 starts an empty file.
  explicit MetricsLog(const fs::path& path, int64_t resume_step = 0);

  /// Keys: step, loss, lr, grad_norm, tokens, tokens_per_second, mfu, seconds. What is not finite
  /// is written as null.
  void step(const StepReport& report);
  /// Keys: step, val_loss (nats per token), val_perplexity.
  void evaluation(int64_t step, double val_loss);
  /// Any other flat object; it should have a "step", or it survives every resume.
  void write(const Json& line);

  /// Makes everything durable and closes the file. Without it the operating system decides when.
  void finish() { writer_.finish(); }

 private:
  FileWriter writer_;
};

}  // namespace heirloom
