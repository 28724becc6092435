// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "heirloom/ops/parameter.h"
#include "heirloom/ops/tape.h"

namespace heirloom {

/// Rows of logits that exist at a time. CUDA: large enough that the head's gradient, read and
/// written once a chunk, is a small part of the traffic.
constexpr int64_t loss_chunk_rows(DeviceKind device) {
  return device == DeviceKind::kCuda ? 8192 : 256;
}

/// nll[i] = -log softmax(x_i W^T)[targets[i]] for i in [0, N): the language-model head and its
/// loss, over chunks of loss_chunk_rows rows, so that the logits of a step never exist at once.
/// targets[i] < 0: not scored. When recording, the gradient of scale * sum(nll) is computed in the
/// same pass, while the chunk's logits are there: the head's gradient is added at once, x's is
/// delivered when backward begins. `targets` and `nll` (N) are in the memory of the device.
void cross_entropy_loss(Context& context, const Variable& x, const Parameter& head,
                        const int32_t* targets, double scale, double* nll);

}  // namespace heirloom
