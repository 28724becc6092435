// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "heirloom/kernels/head_split.h"
#include "heirloom/ops/kv_store.h"
#include "heirloom/ops/parameter.h"
#include "heirloom/ops/tape.h"

namespace heirloom {

/// Rope angles for positions 0..P-1; rotary_dim 0: no rotation.
struct RopeAngles {
  Tensor cosines, sines;  ///< (P, rotary_dim / 2) in the accumulate dtype
  int64_t rotary_dim = 0;
  RopeStyle style = RopeStyle::kHalf;
};

/// How one layer attends: its own heads and where every K and V head lies. Static per layer.
struct AttentionSpec {
  int64_t heads = 0, kv_heads = 0, qk_dim = 0, v_dim = 0;
  double scale = 1;
  int64_t window = 0;
  std::vector<KvRef> own_keys,
      own_values;                   ///< rows of k_proj, v_proj in order: where they are written
  std::vector<KvRef> keys, values;  ///< [kv_heads]: where they are read
  std::vector<int32_t> streams;     ///< the streams that this layer writes
  /// Columns of the merged projection: heads x qk_dim of q, then the own K heads, then the own V
  /// heads.
  int64_t merged_width() const {
    return (heads + static_cast<int64_t>(own_keys.size())) * qk_dim +
           static_cast<int64_t>(own_values.size()) * v_dim;
  }
};

/// RMSNorm over the head dimension on q and k before rope; null weights: none.
struct QkNorm {
  const Parameter* query = nullptr;
  const Parameter* key = nullptr;  ///< null where the layer has no own K heads
  double eps = 1e-6;
};

/// Splits the merged projection (N, merged_width): returns q (N, heads * qk_dim), normalised and
/// rotated, and writes the layer's own K and V heads into the store's streams. `positions` (N)
/// outlives the backward pass. qk_dim == v_dim for softmax attention.
Variable split_heads(Context& context, const Variable& merged, const AttentionSpec& spec,
                     const QkNorm& norm, const RopeAngles& rope, const int32_t* positions,
                     KvStore& store);

/// o (N, heads * v_dim): attention of q over the store's streams. Gradients of K and V heads go to
/// the store's slots. `layer_key` tells the dropout of layers apart.
Variable attend(Context& context, const Variable& q, const AttentionSpec& spec, KvStore& store,
                uint64_t layer_key);

}  // namespace heirloom
