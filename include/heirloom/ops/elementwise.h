// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "heirloom/ops/tape.h"

namespace heirloom {

/// y += x, same shape; each side in the compute or the accumulate dtype. Not recorded.
void add_into(Context& context, const Tensor& x, const Tensor& y);
/// y = x with conversion. Not recorded.
void convert_into(Context& context, const Tensor& x, const Tensor& y);
/// Sum of two values of the same shape, recorded.
Variable add(Context& context, const Variable& a, const Variable& b);

/// Zeroes elements at random by counters and divides the others by 1 - rate
/// (kernels/elementwise.h); `site` tells call sites of a step apart. Rate 0 returns x itself.
Variable dropout(Context& context, const Variable& x, double rate, uint64_t site);

}  // namespace heirloom
