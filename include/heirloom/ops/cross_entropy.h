// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "heirloom/ops/parameter.h"
#include "heirloom/ops/tape.h"

namespace heirloom {

/// Rows of logits that exist at a time.
inline constexpr int64_t kLossChunkRows = 256;

/// nll[i] = -log softmax(x_i W^T)[targets[i]] for i in [0, N): the language-model head and its
/// loss, over chunks of kLossChunkRows rows, so that the logits of a step never exist at once.
/// targets[i] < 0: not scored. When recording, the gradient of scale * sum(nll) is computed in the
/// same pass, while the chunk's logits are there: the head's gradient is added at once, x's is
/// delivered when backward begins. `nll` (N, host float64) is filled except on the meta device.
void cross_entropy_loss(Context& context, const Variable& x, const Parameter& head,
                        const int32_t* targets, double scale, double* nll);

}  // namespace heirloom
