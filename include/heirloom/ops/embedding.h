// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "heirloom/ops/parameter.h"
#include "heirloom/ops/tape.h"

namespace heirloom {

/// x[i] = table[tokens[i]] (+ position_table[positions[i]]). `tokens` and `positions` (N int32,
/// host) outlive the backward pass.
Variable embedding(Context& context, const int32_t* tokens, const int32_t* positions, int64_t n,
                   const Parameter& table, const Parameter* position_table);

/// Rows `indices[0..n)` of x, in order. Not recorded.
Tensor gather_rows(Context& context, const Tensor& x, const int32_t* indices, int64_t n);

}  // namespace heirloom
