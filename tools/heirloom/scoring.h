// SPDX-License-Identifier: Apache-2.0
//
// What `perplexity` and `convert` share: windows that a model can take, and the memory of scoring.
#pragma once

#include "command.h"
#include "heirloom/evaluate/perplexity.h"

namespace heirloom::cli {

/// Windows of `context` tokens, `stride` apart; stride 0: context. ConfigError, as of `command`, where
/// they leave tokens out or the model has no positions for them.
PerplexityOptions window_options(const ModelConfig& config, int64_t context, int64_t stride,
                                 const char* command);

/// OutOfMemoryError, saying what is needed and what is there, unless scoring `data` fits.
void check_scoring_memory(const ModelConfig& config, const Device& device, Dtype dtype,
                          const SequenceSet& data, const PerplexityOptions& options);

}  // namespace heirloom::cli
