// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "heirloom/io/gguf.h"
#include "heirloom/model/config.h"

namespace heirloom {

/// What a GGUF file says its model is; tensors tell what the metadata leaves out (biases, a tied
/// head, the frequency factors of Llama 3.1). Sizes are positive and below 2^31, not otherwise
/// checked. FormatError, or UnsupportedError for an architecture or a feature that this project
/// cannot express.
ModelConfig gguf_config(const GgufMetadata& metadata,
                        const std::map<std::string, GgufTensor>& tensors);

/// The head repeats the embedding's bytes (files of GPT-2 store the tied matrix twice).
bool stores_tied_head(const ModelConfig& config, const std::map<std::string, GgufTensor>& tensors);

}  // namespace heirloom
