// SPDX-License-Identifier: Apache-2.0
//
// head_split: takes the merged projection (N, W) apart by heads. Each head goes where its route
// says: query heads to Q, key and value heads straight into the streams of the KV layout
// (activations in training, the cache in inference), on the way normalised over D (qk_norm,
// RMSNorm) and rotated (rope). This is the `append` of the KV store.
//
// Rope on the first R dims of a head, frequencies f = 0..R/2-1, angle table row p = position:
//   kHalf         pairs (x[f], x[f + R/2])          kInterleaved  pairs (x[2f], x[2f+1])
//   (a, b) -> (a cos - b sin, a sin + b cos)        Source: Su et al., RoFormer (arXiv 2104.09864),
//   section 3.4.2.
#pragma once

#include "heirloom/kernels/kernel_table.h"

namespace heirloom {

enum class RopeStyle : uint8_t { kHalf, kInterleaved };

struct HeadRoute {
  int64_t column = 0;                 ///< first column of the head in the merged row
  void* data = nullptr;               ///< element (row 0, dim 0) of the head at its destination
  int64_t row_stride = 0;             ///< of the destination
  bool rotate = false;                ///< queries and keys under rope
  bool to_slots = false;              ///< the destination row of token i is slots[i] instead of i
  const void* norm_weight = nullptr;  ///< (D) T: qk_norm, or null
};

struct HeadSplitForwardArgs {
  const void* merged = nullptr;  ///< (N, width) T, contiguous
  const HeadRoute* routes = nullptr;
  int64_t route_count = 0;
  int64_t n = 0, width = 0, head_dim = 0;
  const int32_t* positions = nullptr;  ///< (N) row of the angle tables per token
  const int64_t* slots = nullptr;      ///< (N) or null
  const void* cosines = nullptr;       ///< (positions, R/2) A
  const void* sines = nullptr;         ///< (positions, R/2) A
  int64_t rotary_dim = 0;              ///< R, even, <= D
  RopeStyle style = RopeStyle::kHalf;
  double eps = 1e-6;  ///< of qk_norm
};
KernelTable<HeadSplitForwardArgs>& head_split_forward_table();
KernelCost head_split_forward_cost(const HeadSplitForwardArgs&, Dtype);

/// Gradient of one head, as it stands in its slot.
struct HeadGradRoute {
  int64_t column = 0;
  const void* data = nullptr;  ///< element (row 0, dim 0) of the gradient; null: zero gradient
  int64_t row_stride = 0;
  bool is_accumulate_dtype = false;  ///< slot dtype: A, else T
  bool rotate = false;
  const void* norm_weight = nullptr;  ///< (D) T
  void* dnorm_weight = nullptr;       ///< (D) A, added to; several heads may share it
};

/// dmerged gets every column of every route: inverse rope, then the backward of qk_norm, then
/// rounding to T.
struct HeadSplitBackwardArgs {
  const void* merged =
      nullptr;  ///< (N, width) T as forward saw it; only read where a route has norm_weight
  void* dmerged = nullptr;  ///< (N, width) T; may alias merged
  const HeadGradRoute* routes = nullptr;
  int64_t route_count = 0;
  int64_t n = 0, width = 0, head_dim = 0;
  const int32_t* positions = nullptr;
  const void* cosines = nullptr;
  const void* sines = nullptr;
  int64_t rotary_dim = 0;
  RopeStyle style = RopeStyle::kHalf;
  double eps = 1e-6;
  void* workspace = nullptr;  ///< head_split_backward_workspace_bytes(...); qk_norm only
};
KernelTable<HeadSplitBackwardArgs>& head_split_backward_table();
KernelCost head_split_backward_cost(const HeadSplitBackwardArgs&, Dtype);
int64_t head_split_backward_workspace_bytes(int64_t n, int64_t routes, int64_t head_dim,
                                            Dtype dtype, DeviceKind device = DeviceKind::kCpu);

}  // namespace heirloom
