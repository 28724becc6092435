// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "heirloom/report/html_report.h"
#include "heirloom/report/progress.h"
#include "heirloom/train/run_config.h"
#include "heirloom/train/step.h"

namespace heirloom {

enum class ResumeMode : uint8_t {
  kAuto,   ///< continue from the newest complete checkpoint where there is one
  kNever,  ///< start anew; an error where checkpoints exist
  kMust,   ///< an error where there is nothing to continue
};

/// The checkpoint that a run continues from: the newest complete one in its output, or nothing.
/// ConfigError where kNever finds any, or the config would compute something else than what the
/// checkpoint was saved with; IoError where kMust finds none.
std::optional<fs::path> starting_point(const RunConfig& config, ResumeMode mode);

struct TrainerHooks {
  /// Text that the model continues, for the log and the report; empty function: none.
  std::function<Sample(Transformer&, int64_t step)> sample;
};

struct TrainerOptions {
  Device device;
  ResumeMode resume = ResumeMode::kAuto;
  int64_t memory_limit = 0;  ///< bytes; 0: what the device has available
  double roof_flops = 0;     ///< of this machine in the run's dtype; 0: unknown, no MFU
  bool quiet = false;
  std::vector<ReferenceLine> references;  ///< levels that the report shows beside the losses
};

enum class TrainOutcome { kFinished, kStoppedBySignal };

/// Runs (or continues) a training run to its end or to a signal. Writes the run directory:
/// config.json, metrics.jsonl, TensorBoard events, report.html, checkpoints/, final/. Throws on bad
/// input, a memory plan that does not fit, and on a loss that is not finite (the message names step
/// and checkpoint; nothing written before is touched).
TrainOutcome train(const RunConfig& config, const StepPlan& plan, const TrainerHooks& hooks,
                   const TrainerOptions& options);

/// Installs handlers: SIGTERM, SIGINT and SIGUSR1 ask the loops to save and stop; a second SIGINT
/// ends the process.
void install_stop_signals();
bool stop_requested();

/// Tables for --dry-run and the report: parameters by kind, memory.
NamedTable parameter_table(const ModelConfig& config);
NamedTable memory_table(const RunMemory& memory);

}  // namespace heirloom
