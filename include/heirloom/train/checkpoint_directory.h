// SPDX-License-Identifier: Apache-2.0
//
// Checkpoints of a run: <run>/checkpoints/step-00000100/, a model directory plus
// optimizer.safetensors, trainer.json and complete.json (every file's size and content hash). A
// checkpoint is written under a temporary name, made durable, then renamed: under its own name it
// is complete, or it is not there.
#pragma once

#include <optional>

#include "heirloom/io/file.h"
#include "heirloom/io/json.h"
#include "heirloom/train/optimizer.h"

namespace heirloom {

struct CheckpointContents {
  const ModelConfig& model;
  ParameterStore& parameters;
  Optimizer& optimizer;
  fs::path tokenizer;      ///< file or directory; empty: none
  std::string generation;  ///< contents of generation_config.json; empty: bos and eos alone
  Json trainer;            ///< "step", "tokens", "config": what resuming needs beside tensors
};

fs::path checkpoint_path(const fs::path& run, int64_t step);

/// Writes the checkpoint of `step`, then removes all but the newest `keep` (0: removes none).
/// Returns its path.
fs::path save_checkpoint(const fs::path& run, int64_t step, const CheckpointContents& contents,
                         int64_t keep);

/// Writes a plain model directory (final/) in the same all-or-nothing way, replacing one that is
/// there.
void save_final(const fs::path& run, const CheckpointContents& contents, Dtype stored);

/// The newest checkpoint whose files all match complete.json; damaged ones are passed over with a
/// warning to the log.
std::optional<fs::path> newest_checkpoint(const fs::path& run);
/// True when the run holds any checkpoint, damaged ones too.
bool has_checkpoints(const fs::path& run);

/// Loads weights and moments; returns trainer.json.
Json load_checkpoint(const fs::path& checkpoint, const CheckpointContents& contents);

}  // namespace heirloom
