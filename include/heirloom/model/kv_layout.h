// SPDX-License-Identifier: Apache-2.0
//
// The KV layout: the plan turned into storage. A stream is a matrix (tokens, width) that one layer
// writes; heads that later layers read form a stream apart from the layer's private ones, so that
// keeping them alive pins nothing else. In training a stream is an activation, in inference a pool
// of cache blocks; per token both hold the same elements.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "heirloom/model/kv_plan.h"

namespace heirloom {

enum class StreamKind : uint8_t { kKey, kValue, kLatent, kRopeKey };

/// "k", "v", "latent", "rope".
const char* stream_kind_name(StreamKind kind);

struct KvStream {
  int64_t layer = 0;  ///< 0-based: who writes it
  StreamKind kind = StreamKind::kKey;
  std::vector<int64_t> heads;  ///< KV head positions in the writing layer, ascending; head i
                               ///< occupies columns [i*dim, (i+1)*dim)
  int64_t head_dim = 0;
  int64_t width = 0;             ///< elements per token
  bool shared = false;           ///< some later layer reads it
  std::vector<int64_t> readers;  ///< layers that read any of it, ascending, 0-based
};

/// Where one head lies: stream < 0 for a zero head; second_stream >= 0 for the mean of two.
struct KvAddress {
  int64_t stream = -1, column = 0;
  int64_t second_stream = -1, second_column = 0;
};

struct KvLayout {
  int64_t layers = 0, kv_heads = 0, query_heads = 0, qk_dim = 0, v_dim = 0;
  std::vector<KvStream> streams;  ///< ordered by layer, then K before V, private before shared
  /// [layer][KV head]. Latent attention: values[layer] are the latent's segments in column order
  /// (its own, then layer 1's shared one), keys[layer] is the one rope key; a segment is a whole
  /// stream.
  std::vector<std::vector<KvAddress>> keys, values;

  /// Streams that a layer writes (indices).
  std::vector<int64_t> streams_of(int64_t layer) const;
  /// Cached elements per token, all streams, each once.
  int64_t elements_per_token() const;
  /// 2 x layers x query heads x head_dim: what plain multi-head attention caches.
  int64_t baseline_elements_per_token = 0;
  /// Elements read per cached token by one decode step: each source once per reading layer and KV
  /// head (a mean reads two).
  int64_t read_elements_per_token() const;
  /// The same with shared streams read once (resident on chip after the first reader).
  int64_t read_elements_per_token_resident() const;
  /// The last layer (0-based) that owns a stream: later layers need run only for positions that are
  /// scored or sampled.
  int64_t last_writing_layer() const;
};

KvLayout build_kv_layout(const ModelConfig& config, const KvPlan& plan);

/// What a model's keys and values are cached in when nothing else is asked for: its stored dtype,
/// float16 in the half-width type of this library.
Dtype cache_dtype(const ModelConfig& config);

/// The object that `heirloom kv --json` prints (layers 1-based).
Json kv_report(const ModelConfig& config, const KvLayout& layout, Dtype cache_dtype);

}  // namespace heirloom
