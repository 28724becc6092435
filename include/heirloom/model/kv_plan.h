// SPDX-License-Identifier: Apache-2.0
//
// The KV plan: where do the keys and the values of each head come from? For every layer and KV head
// one source for K and one for V. Every sharing scheme is one function that fills this table;
// parameters, kernel pointers, gradient routing, cache streams and byte counts all follow from it
// (kv_layout.h), and nothing else asks for a scheme by name.
//
// Sources: SkipV1Former arXiv 2510.16807 (sections 3 and App. B); YOCO 2405.05254; CLA 2405.12981;
// SVFormer/ResFormer 2410.17897.
#pragma once

#include <compare>
#include <cstdint>
#include <string>
#include <vector>

#include "heirloom/model/config.h"

namespace heirloom {

struct KvSource {
  enum class Kind : uint8_t {
    kOwn,   ///< the layer's own projection, row `head` of its own K (or V) heads
    kFrom,  ///< head `head` (position in the source layer) that `layer` projects itself
    kMean,  ///< the average of heads `head` and `second` of `layer` (values only)
    kZero,  ///< no value at all (values only)
  };
  Kind kind = Kind::kOwn;
  int64_t layer = 0;   ///< 0-based; kFrom, kMean
  int64_t head = 0;    ///< kOwn: row among the layer's own heads; kFrom, kMean: KV head position in
                       ///< the source layer
  int64_t second = 0;  ///< kMean
  friend bool operator==(const KvSource&, const KvSource&) = default;
};

struct KvPlan {
  int64_t layers = 0, kv_heads = 0;
  std::vector<std::vector<KvSource>> keys, values;  ///< [layer][KV head]

  /// KV head positions that the layer projects itself, ascending (their order is the row order of
  /// k_proj / v_proj).
  std::vector<int64_t> own_key_heads(int64_t layer) const;
  std::vector<int64_t> own_value_heads(int64_t layer) const;
};

/// Builds the plan of a config and checks it: every kFrom/kMean names an earlier layer and a head
/// which that layer projects itself. Throws ConfigError (layers 1-based in messages).
KvPlan build_kv_plan(const ModelConfig& config);

/// Latent attention: elements of the latent that every layer after the first inherits from it
/// (SkipV1); 0 where none.
int64_t inherited_latent_rank(const ModelConfig& config);

/// A short human name of where heads come from, for tables: "own", "layer 1 head 3", "mean of layer
/// 1 heads 0, 3", "zero".
std::string describe(const KvSource& source);

}  // namespace heirloom
