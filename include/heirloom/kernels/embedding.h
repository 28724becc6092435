// SPDX-License-Identifier: Apache-2.0
//
// embedding: x[i] = table[token[i]] (+ position_table[position[i]]).
#pragma once

#include "heirloom/kernels/kernel_table.h"

namespace heirloom {

struct EmbeddingForwardArgs {
  const int32_t* tokens = nullptr;       ///< (N), each in [0, V): checked by the caller
  const int32_t* positions = nullptr;    ///< (N), read with position_table
  const void* table = nullptr;           ///< (V, C) T
  const void* position_table = nullptr;  ///< (P, C) T or null
  void* x = nullptr;                     ///< (N, C) T
  int64_t n = 0, c = 0;
};
KernelTable<EmbeddingForwardArgs>& embedding_forward_table();
KernelCost embedding_forward_cost(const EmbeddingForwardArgs&, Dtype);

/// Rows are added in row order whatever the device and its threads: the same bits everywhere.
struct EmbeddingBackwardArgs {
  const int32_t* tokens = nullptr;
  const int32_t* positions = nullptr;
  const void* dx = nullptr;         ///< (N, C) T
  void* dtable = nullptr;           ///< (V, C) A, added to
  void* dposition_table = nullptr;  ///< (P, C) A, added to, or null
  int64_t n = 0, c = 0;
  /// Rows ordered by (token, row), and by (position, row): what lets a device that cannot add in
  /// place give each table row to one writer. The CPU does not read them.
  const int32_t* token_order = nullptr;     ///< (N)
  const int32_t* position_order = nullptr;  ///< (N), read with dposition_table
};
KernelTable<EmbeddingBackwardArgs>& embedding_backward_table();
KernelCost embedding_backward_cost(const EmbeddingBackwardArgs&, Dtype);

}  // namespace heirloom
