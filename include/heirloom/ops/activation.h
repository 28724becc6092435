// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "heirloom/kernels/activation.h"
#include "heirloom/ops/tape.h"

namespace heirloom {

/// The MLP's non-linearity: (N, 2F) -> (N, F) for SwiGLU (gate columns first), (N, F) -> (N, F) for
/// GELU.
Variable activation(Context& context, const Variable& x, ActivationKind kind);

}  // namespace heirloom
