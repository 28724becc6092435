// SPDX-License-Identifier: Apache-2.0
//
// What `train` and `uptrain` share: options, the plan on paper, the run.
#pragma once

#include "command.h"
#include "heirloom/train/trainer.h"

namespace heirloom::cli {

struct TrainingOptions {
  CommonOptions common;
  std::string config, preset, resume = "auto";
  std::vector<std::string> settings;
  bool dry_run = false;
  int64_t memory_limit = 0;
};

/// `preset_help`: what --preset names in this command.
void add_training_options(CLI::App* command, TrainingOptions& options, const char* preset_help);

/// --config, else the preset's run, then every --set; `origin` becomes what messages call it.
Json training_json(const TrainingOptions& options, std::string& origin);

/// --dry-run: prints the plan of a run, or writes it to --json with `more` in it; refuses one that
/// does not fit.
void dry_run(const TrainingOptions& options, const RunConfig& config, const Device& device,
             const Json& more = Json::object());

/// Trains. `prepare` is called once the run is known to fit and to be resumable (or `fresh`); what it
/// returns are lines in the report.
ExitCode run_training(const TrainingOptions& options, const RunConfig& config, const Device& device,
                      const std::function<std::vector<ReferenceLine>(bool fresh)>& prepare = {});

}  // namespace heirloom::cli
