// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "heirloom/kernels/norm.h"
#include "heirloom/ops/parameter.h"
#include "heirloom/ops/tape.h"

namespace heirloom {

/// Residual stream and normalised branch.
struct AddNorm {
  Variable residual;  ///< x = residual + delta
  Variable y;         ///< norm(x)
};

/// x = residual + delta (delta may be undefined) and y = norm(x), in one pass; kernels/norm.h has
/// the equations.
AddNorm add_norm(Context& context, const Variable& residual, const Variable& delta, NormKind kind,
                 const Parameter& weight, const Parameter* bias, double eps);

}  // namespace heirloom
