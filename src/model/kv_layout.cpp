// SPDX-License-Identifier: Apache-2.0
#include "heirloom/model/kv_layout.h"

#include <algorithm>
#include <cmath>

#include "heirloom/core/error.h"

namespace heirloom {
namespace {

using Kind = KvSource::Kind;
using Sources = std::vector<std::vector<KvSource>>;

size_t at(int64_t index) { return static_cast<size_t>(index); }

/// Layers that read a head, by (layer, head) of its projection; the projecting layer is the first.
std::vector<std::vector<std::vector<int64_t>>> readers_of(const Sources& sources) {
  std::vector<std::vector<std::vector<int64_t>>> readers(sources.size());
  for (size_t l = 0; l < sources.size(); ++l) readers[l].resize(sources[l].size());
  const auto note = [&](int64_t layer, int64_t head, size_t reader) {
    auto& list = readers[at(layer)][at(head)];
    if (list.empty() || list.back() != static_cast<int64_t>(reader)) {
      list.push_back(static_cast<int64_t>(reader));
    }
  };
  for (size_t l = 0; l < sources.size(); ++l) {
    for (size_t h = 0; h < sources[l].size(); ++h) {
      const KvSource& source = sources[l][h];
      if (source.kind == Kind::kOwn) note(static_cast<int64_t>(l), static_cast<int64_t>(h), l);
      if (source.kind == Kind::kFrom || source.kind == Kind::kMean)
        note(source.layer, source.head, l);
      if (source.kind == Kind::kMean) note(source.layer, source.second, l);
    }
  }
  return readers;
}

/// Keys or values: their streams, per layer (private, then shared), and where each head of a layer
/// lies.
struct Side {
  StreamKind kind;
  const Sources& sources;
  std::vector<std::vector<std::vector<int64_t>>> readers;
  std::vector<std::vector<KvAddress>> own;  ///< [layer][head] of own heads

  Side(StreamKind kind_in, const Sources& sources_in)
      : kind(kind_in),
        sources(sources_in),
        readers(readers_of(sources_in)),
        own(sources_in.size()) {
    for (size_t l = 0; l < own.size(); ++l) own[l].resize(sources[l].size());
  }

  void add_streams(int64_t layer, int64_t head_dim, std::vector<KvStream>& streams) {
    for (const bool shared : {false, true}) {
      KvStream stream;
      stream.layer = layer;
      stream.kind = kind;
      stream.head_dim = head_dim;
      stream.shared = shared;
      for (size_t h = 0; h < sources[at(layer)].size(); ++h) {
        const auto& list = readers[at(layer)][h];
        if (sources[at(layer)][h].kind != Kind::kOwn || (list.size() > 1) != shared) continue;
        own[at(layer)][h] = {static_cast<int64_t>(streams.size()), stream.width, -1, 0};
        stream.heads.push_back(static_cast<int64_t>(h));
        stream.width += head_dim;
        stream.readers.insert(stream.readers.end(), list.begin(), list.end());
      }
      if (stream.heads.empty()) continue;
      std::sort(stream.readers.begin(), stream.readers.end());
      stream.readers.erase(std::unique(stream.readers.begin(), stream.readers.end()),
                           stream.readers.end());
      streams.push_back(std::move(stream));
    }
  }

  std::vector<std::vector<KvAddress>> addresses() const {
    auto result = own;
    for (size_t l = 0; l < result.size(); ++l) {
      for (size_t h = 0; h < result[l].size(); ++h) {
        const KvSource& source = sources[l][h];
        if (source.kind == Kind::kZero) result[l][h] = {};
        if (source.kind == Kind::kFrom) result[l][h] = own[at(source.layer)][at(source.head)];
        if (source.kind != Kind::kMean) continue;
        const KvAddress& second = own[at(source.layer)][at(source.second)];
        result[l][h] = own[at(source.layer)][at(source.head)];
        result[l][h].second_stream = second.stream;
        result[l][h].second_column = second.column;
      }
    }
    return result;
  }
};

void lay_out_heads(const ModelConfig& config, const KvPlan& plan, KvLayout& layout) {
  layout.qk_dim = layout.v_dim = config.head_dim;
  Side keys(StreamKind::kKey, plan.keys), values(StreamKind::kValue, plan.values);
  for (int64_t l = 0; l < layout.layers; ++l) {
    keys.add_streams(l, layout.qk_dim, layout.streams);
    values.add_streams(l, layout.v_dim, layout.streams);
  }
  layout.keys = keys.addresses();
  layout.values = values.addresses();
}

/// Layer 1 caches its whole latent, the tail that later layers read apart; those cache the head of
/// theirs. Every layer has its own rope key.
void lay_out_latent(const ModelConfig& config, KvLayout& layout) {
  const LatentAttentionConfig& latent = config.latent;
  layout.qk_dim = latent.qk_nope_head_dim + latent.qk_rope_head_dim;
  layout.v_dim = latent.v_head_dim;
  const int64_t rank = latent.kv_lora_rank;
  const int64_t inherited = inherited_latent_rank(config);
  int64_t shared_stream = -1;
  const auto add = [&](int64_t layer, StreamKind kind, int64_t width, bool shared) {
    KvStream stream{layer, kind, {0}, width, width, shared, {layer}};
    for (int64_t l = layer + 1; shared && l < layout.layers; ++l) stream.readers.push_back(l);
    layout.streams.push_back(std::move(stream));
    return KvAddress{static_cast<int64_t>(layout.streams.size()) - 1, 0, -1, 0};
  };
  for (int64_t l = 0; l < layout.layers; ++l) {
    std::vector<KvAddress> segments;
    if (rank > inherited) segments.push_back(add(l, StreamKind::kLatent, rank - inherited, false));
    if (inherited > 0) {
      if (l == 0) shared_stream = add(l, StreamKind::kLatent, inherited, true).stream;
      segments.push_back({shared_stream, 0, -1, 0});
    }
    layout.values.push_back(std::move(segments));
    layout.keys.push_back({add(l, StreamKind::kRopeKey, latent.qk_rope_head_dim, false)});
  }
}

/// Calls f(stream, elements) for every source that a decode step reads, per layer and KV head.
template <class F>
void for_each_read(const KvLayout& layout, F f) {
  const auto read = [&](int64_t stream) {
    if (stream >= 0) f(layout.streams[at(stream)], layout.streams[at(stream)].head_dim);
  };
  for (const auto* table : {&layout.keys, &layout.values}) {
    for (const auto& row : *table) {
      for (const KvAddress& address : row) {
        read(address.stream);
        read(address.second_stream);
      }
    }
  }
}

}  // namespace

const char* stream_kind_name(StreamKind kind) {
  switch (kind) {
    case StreamKind::kKey:
      return "k";
    case StreamKind::kValue:
      return "v";
    case StreamKind::kLatent:
      return "latent";
    case StreamKind::kRopeKey:
      return "rope";
  }
  return "?";
}

std::vector<int64_t> KvLayout::streams_of(int64_t layer) const {
  std::vector<int64_t> result;
  for (size_t i = 0; i < streams.size(); ++i) {
    if (streams[i].layer == layer) result.push_back(static_cast<int64_t>(i));
  }
  return result;
}

int64_t KvLayout::elements_per_token() const {
  int64_t sum = 0;
  for (const KvStream& stream : streams) sum += stream.width;
  return sum;
}

int64_t KvLayout::read_elements_per_token() const {
  int64_t sum = 0;
  for_each_read(*this, [&](const KvStream&, int64_t elements) { sum += elements; });
  return sum;
}

int64_t KvLayout::read_elements_per_token_resident() const {
  int64_t sum = 0;
  for_each_read(*this, [&](const KvStream& stream, int64_t elements) {
    if (!stream.shared) sum += elements;
  });
  for (const KvStream& stream : streams) {
    if (stream.shared) sum += stream.width;
  }
  return sum;
}

int64_t KvLayout::last_writing_layer() const { return streams.empty() ? -1 : streams.back().layer; }

KvLayout build_kv_layout(const ModelConfig& config, const KvPlan& plan) {
  HEIRLOOM_CHECK(
      plan.layers == config.num_hidden_layers && plan.kv_heads == config.num_key_value_heads,
      "[kv layout] expected the plan of this config ({} layers, {} KV heads); got {}, {}",
      config.num_hidden_layers, config.num_key_value_heads, plan.layers, plan.kv_heads);
  KvLayout layout;
  layout.layers = plan.layers;
  layout.kv_heads = plan.kv_heads;
  layout.query_heads = config.num_attention_heads;
  layout.baseline_elements_per_token =
      2 * config.num_hidden_layers * config.num_attention_heads * config.head_dim;
  if (config.latent.kv_lora_rank > 0) {
    lay_out_latent(config, layout);
  } else {
    lay_out_heads(config, plan, layout);
  }
  return layout;
}

Dtype cache_dtype(const ModelConfig& config) {
  const std::string& stored = config.stored_dtype;
  if (stored == "bfloat16" || stored == "float16") return Dtype::kBFloat16;
  return stored == "float64" ? Dtype::kFloat64 : Dtype::kFloat32;
}

Json kv_report(const ModelConfig& config, const KvLayout& layout, Dtype cache_dtype) {
  const int64_t bytes = dtype_size(cache_dtype), elements = layout.elements_per_token();
  Json report = Json::object();
  report["scheme"] = config.kv_sharing.scheme;
  report["attention"] = config.latent.kv_lora_rank > 0 ? "mla" : "softmax";
  report["elements_per_token"] = elements;
  report["bytes_per_token"] = elements * bytes;
  report["dtype"] = dtype_name(cache_dtype);
  Json streams = Json::array();
  for (const KvStream& stream : layout.streams) {
    std::vector<int64_t> readers;
    for (const int64_t layer : stream.readers) readers.push_back(layer + 1);
    streams.push_back({{"layer", stream.layer + 1},
                       {"kind", stream_kind_name(stream.kind)},
                       {"heads", stream.heads.size()},
                       {"head_indices", stream.heads},
                       {"elements_per_token", stream.width},
                       {"bytes_per_token", stream.width * bytes},
                       {"shared", stream.shared},
                       {"readers", readers}});
  }
  report["streams"] = std::move(streams);
  report["read_bytes_per_token_per_step"] = layout.read_elements_per_token() * bytes;
  report["read_bytes_per_token_per_step_shared_resident"] =
      layout.read_elements_per_token_resident() * bytes;
  report["baseline_elements_per_token"] = layout.baseline_elements_per_token;
  report["reduction"] =
      1.0 - static_cast<double>(elements) / static_cast<double>(layout.baseline_elements_per_token);
  return report;
}

}  // namespace heirloom
