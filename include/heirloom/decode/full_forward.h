// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "heirloom/decode/sampler.h"
#include "heirloom/model/transformer.h"

namespace heirloom {

/// Continues `prompt` (at least one token) by up to `max_new_tokens` on the model's device, running
/// the whole sequence again for every token: for short samples on devices without decode kernels.
/// Stops behind a token of `eos`. The last logits and the draw are those of the Engine up to the
/// rounding of the products.
std::vector<int32_t> continue_by_full_forward(Transformer& model, std::vector<int32_t> prompt,
                                              int64_t max_new_tokens,
                                              const SamplingOptions& sampling,
                                              const std::vector<int64_t>& eos);

}  // namespace heirloom
