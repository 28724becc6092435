// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "heirloom/train/trainer.h"

namespace heirloom::cli {

/// Continues train.sample_prompt greedily-random (temperature 0.8, top-k 40, seeded by the run)
/// with the model in training.
std::function<Sample(Transformer&, int64_t step)> sampling_hook(const RunConfig& config);

}  // namespace heirloom::cli
