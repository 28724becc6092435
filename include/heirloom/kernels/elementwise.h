// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "heirloom/core/rng.h"
#include "heirloom/kernels/kernel_table.h"

namespace heirloom {

/// add: y += x over strided rows; either side T or A. Sums in A.
struct AddArgs {
  const void* x = nullptr;  ///< (rows, cols) row stride x_stride
  void* y = nullptr;        ///< (rows, cols) row stride y_stride
  int64_t rows = 0, cols = 0, x_stride = 0, y_stride = 0;
  bool x_is_accumulate_dtype = false, y_is_accumulate_dtype = false;
  bool overwrite = false;  ///< y = x (a conversion) instead of y += x
};
KernelTable<AddArgs>& add_table();
KernelCost add_cost(const AddArgs&, Dtype);

/// column_sum: db (C) A += sum over rows of dy (N, C) T: the gradient of a bias. Fixed order:
/// chunks by
/// reduction_chunks (kernels/norm.h).
struct ColumnSumArgs {
  const void* dy = nullptr;
  void* db = nullptr;
  void* workspace = nullptr;  ///< reduction_chunks(n, device) x C elements of A
  int64_t n = 0, c = 0;
};
KernelTable<ColumnSumArgs>& column_sum_table();
KernelCost column_sum_cost(const ColumnSumArgs&, Dtype);

/// dropout: y = keep ? x / (1 - rate) : 0, forward and backward alike. Element (sequence s,
/// position t, column c) is dropped iff uniform(philox(key, {e & 0xffffffff, e >> 32, s, 0})[c %
/// 4]) < rate with e = t * ceil(C / 4) + c / 4. Row i belongs to sequence step_first_sequence() + i /
/// sequence_length, position i % sequence_length.
struct DropoutArgs {
  const void* x = nullptr;  ///< (N, C) T
  void* y = nullptr;        ///< (N, C) T; may alias x
  int64_t n = 0, c = 0, sequence_length = 1;
  uint32_t first_sequence = 0;
  double rate = 0;
  uint64_t key = 0;  ///< of (seed, step, site); with step_key: of the site
  /// {key of (seed, step), number of sequences to add to first_sequence} in the device's memory, or
  /// null.
  const uint64_t* step_key = nullptr;

  /// The Philox key. A step that is replayed changes its numbers through step_key alone.
  constexpr uint64_t philox_key() const { return step_key ? mix_key(step_key[0], key) : key; }
  constexpr uint32_t step_first_sequence() const {
    return first_sequence + (step_key ? static_cast<uint32_t>(step_key[1]) : 0u);
  }
};
KernelTable<DropoutArgs>& dropout_table();
KernelCost dropout_cost(const DropoutArgs&, Dtype);

}  // namespace heirloom
