// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "heirloom/ops/parameter.h"
#include "heirloom/ops/tape.h"

namespace heirloom {

/// y (N, out) = x (N, in) W^T [+ b], W (out, in). Backward: dx = dy W, dW += dy^T x, db += column
/// sums of dy. In the decode phase every output element is summed in an order fixed by `in` alone
/// (kernels/gemm.h, linear_rows).
Variable linear(Context& context, const Variable& x, const Parameter& weight,
                const Parameter* bias);

/// The same product into the accumulate dtype, not recorded: logits.
Tensor linear_accumulate_dtype(Context& context, const Tensor& x, const Tensor& weight);

/// The two halves of its backward, not recorded: dx = dy W;  dW += dy^T x.
void linear_backward_input(Context& context, const Tensor& dy, const Tensor& weight,
                           const Tensor& dx);
void linear_backward_weight(Context& context, const Tensor& dy, const Tensor& x,
                            const Tensor& dweight);

}  // namespace heirloom
