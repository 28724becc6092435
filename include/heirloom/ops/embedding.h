// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "heirloom/ops/parameter.h"
#include "heirloom/ops/tape.h"

namespace heirloom {

/// Rows of a forward pass, in the memory of the device. They are checked by the caller and outlive
/// the backward pass.
struct TokenBatch {
  const int32_t* tokens = nullptr;     ///< (N)
  const int32_t* positions = nullptr;  ///< (N)
  int64_t n = 0;
  /// Backward on devices that want it (kernels/embedding.h): rows by (token, row), (position, row).
  const int32_t* token_order = nullptr;
  const int32_t* position_order = nullptr;
};

/// x[i] = table[tokens[i]] (+ position_table[positions[i]]).
Variable embedding(Context& context, const TokenBatch& batch, const Parameter& table,
                   const Parameter* position_table);

/// Rows `indices[0..n)` of x, in order; indices in the memory of the device. Not recorded.
Tensor gather_rows(Context& context, const Tensor& x, const int32_t* indices, int64_t n);

}  // namespace heirloom
