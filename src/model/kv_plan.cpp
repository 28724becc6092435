// SPDX-License-Identifier: Apache-2.0
#include "heirloom/model/kv_plan.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "config_fields.h"
#include "heirloom/core/error.h"

namespace heirloom {
namespace {

using Kind = KvSource::Kind;
using Table = std::vector<std::vector<KvSource>>;

/// What a scheme's function may look at.
struct Scheme {
  int64_t layers, heads;
  const KvSharingConfig& sharing;
  Problems& problems;
  std::string path;

  int64_t own_heads() const {
    return heads - std::llround(static_cast<double>(heads) * sharing.ratio);
  }
  int64_t start() const {
    return sharing.start > 0 ? sharing.start : std::max<int64_t>(1, layers / 2);
  }
};

KvSource from(int64_t layer, int64_t head) { return {Kind::kFrom, layer, head, 0}; }
KvSource mean(int64_t layer, int64_t a, int64_t b) {
  return a == b ? from(layer, a) : KvSource{Kind::kMean, layer, a, b};
}

Table own_everywhere(const Scheme& s) {
  return Table(static_cast<size_t>(s.layers), std::vector<KvSource>(static_cast<size_t>(s.heads)));
}

/// Layers from the 0-based `begin` on take every head from the layer before it.
Table tail_layers_from(const Scheme& s, int64_t begin) {
  Table table = own_everywhere(s);
  for (int64_t l = begin; l < s.layers; ++l) {
    for (int64_t h = 0; h < s.heads; ++h) table[l][h] = from(begin - 1, h);
  }
  return table;
}

/// The source of the j-th routed head (own heads: n) of the 0-based layer l.
KvSource injected(const Scheme& s, int64_t l, int64_t j, int64_t n) {
  if (s.sharing.source_layer == 0) return {Kind::kZero, 0, 0, 0};
  const int64_t source = s.sharing.source_layer - 1;
  const bool odd_layer = l % 2 == 0;  // counted from 1
  if (s.sharing.injection == "dynamic") return from(source, (l + 1 + j) % s.heads);
  if (s.sharing.injection == "odd-even") return from(source, odd_layer ? j : n + j);
  if (s.sharing.injection == "pooling") return mean(source, j, n + j);
  return from(source, n + j);
}

Table skip(const Scheme& s) {
  Table table = own_everywhere(s);
  const int64_t n = s.own_heads();
  for (int64_t l = std::max<int64_t>(s.sharing.source_layer, 1); l < s.layers; ++l) {
    for (int64_t j = 0; n + j < s.heads; ++j) table[l][n + j] = injected(s, l, j, n);
  }
  return table;
}

Table from_start(const Scheme& s) { return tail_layers_from(s, s.start()); }
Table from_first(const Scheme& s) { return tail_layers_from(s, 1); }

Table groups(const Scheme& s) {
  Table table = own_everywhere(s);
  for (int64_t l = 0; l < s.layers; ++l) {
    const int64_t first = l - l % s.sharing.group;
    for (int64_t h = 0; h < s.heads && first < l; ++h) table[l][h] = from(first, h);
  }
  return table;
}

/// One source of an explicit table; nullopt when it is none.
std::optional<KvSource> parse_source(const Json& json, bool values) {
  if (json == "own") return KvSource{};
  if (values && json == "zero") return KvSource{Kind::kZero, 0, 0, 0};
  const bool is_mean = values && json.is_array() && json.size() == 4 && json[0] == "mean";
  if (!is_mean && !(json.is_array() && json.size() == 2)) return std::nullopt;
  int64_t n[3] = {0, 0, 0};
  for (size_t i = is_mean ? 1 : 0, k = 0; i < json.size(); ++i, ++k) {
    if (!json[i].is_number_integer() || json[i] < 0 || json[i] > kMaxCount) return std::nullopt;
    n[k] = json[i].get<int64_t>();
  }
  return is_mean ? mean(n[0] - 1, n[1], n[2]) : from(n[0] - 1, n[1]);
}

Table parse_explicit(const Scheme& s, const Json& json, const std::string& path, bool values) {
  Table table = own_everywhere(s);
  if (!json.is_array() || static_cast<int64_t>(json.size()) != s.layers) {
    s.problems.add(path, "expected one row per layer, {} in all; got {}", s.layers,
                   json.is_array() ? fmt::format("{}", json.size()) : quote_json(json));
    return table;
  }
  for (int64_t l = 0; l < s.layers; ++l) {
    const Json& row = json[static_cast<size_t>(l)];
    if (!row.is_array() || static_cast<int64_t>(row.size()) != s.heads) {
      s.problems.add(path, "layer {}: expected one source per KV head, {} in all; got {}", l + 1,
                     s.heads, row.is_array() ? fmt::format("{}", row.size()) : quote_json(row));
      continue;
    }
    for (int64_t h = 0; h < s.heads; ++h) {
      const Json& source = row[static_cast<size_t>(h)];
      if (const auto parsed = parse_source(source, values)) {
        table[l][h] = *parsed;
      } else {
        s.problems.add(
            path, "layer {} head {}: expected \"own\"{}; got {}", l + 1, h,
            values ? ", [layer, head], \"zero\" or [\"mean\", layer, a, b]" : " or [layer, head]",
            quote_json(source));
      }
    }
  }
  return table;
}

Table keys_of(const Scheme& s);
Table values_of(const Scheme& s);

Table split_keys(const Scheme& s) {
  return keys_of({s.layers, s.heads, *s.sharing.keys, s.problems, s.path + ".keys"});
}
Table split_values(const Scheme& s) {
  return values_of({s.layers, s.heads, *s.sharing.values, s.problems, s.path + ".values"});
}
Table explicit_keys(const Scheme& s) {
  return parse_explicit(s, s.sharing.explicit_keys, s.path + ".keys", false);
}
Table explicit_values(const Scheme& s) {
  return parse_explicit(s, s.sharing.explicit_values, s.path + ".values", true);
}

/// Every scheme: how its key table and its value table are filled.
struct SchemeTables {
  const char* name;
  Table (*keys)(const Scheme&);
  Table (*values)(const Scheme&);
};
constexpr SchemeTables kSchemes[] = {
    {"none", own_everywhere, own_everywhere},
    {"skipv1", own_everywhere, skip},
    {"skipkv1", skip, skip},
    {"skipv1-yoco", from_start, skip},
    {"yoco", from_start, from_start},
    {"yoco-v", own_everywhere, from_start},
    {"cla", groups, groups},
    {"cla-v", own_everywhere, groups},
    {"svformer", own_everywhere, from_first},
    {"split", split_keys, split_values},
    {"explicit", explicit_keys, explicit_values},
};

const SchemeTables& tables_of(const Scheme& s) {
  for (const SchemeTables& scheme : kSchemes) {
    if (s.sharing.scheme == scheme.name) return scheme;
  }
  throw_error<InternalError>("[kv plan] scheme \"{}\" has no builder", s.sharing.scheme);
}
Table keys_of(const Scheme& s) { return tables_of(s).keys(s); }
Table values_of(const Scheme& s) { return tables_of(s).values(s); }

bool is_own(const Table& table, int64_t layer, int64_t head) {
  return table[static_cast<size_t>(layer)][static_cast<size_t>(head)].kind == Kind::kOwn;
}

/// Checks that every source exists, then numbers each layer's own heads.
void finish(Table& table, const std::string& path, Problems& problems) {
  const auto check = [&](int64_t l, size_t h, int64_t layer, int64_t head) {
    const auto heads = static_cast<int64_t>(table[0].size());
    if (layer < 0 || layer >= l) {
      problems.add(path, "layer {} head {}: expected a source in an earlier layer; got layer {}",
                   l + 1, h, layer + 1);
    } else if (head < 0 || head >= heads) {
      problems.add(path, "layer {} head {}: expected a source head from 0 to {}; got {}", l + 1, h,
                   heads - 1, head);
    } else if (!is_own(table, layer, head)) {
      problems.add(path,
                   "layer {} head {}: expected a head that its layer projects itself; got layer {} "
                   "head {}, which is {}",
                   l + 1, h, layer + 1, head,
                   describe(table[static_cast<size_t>(layer)][static_cast<size_t>(head)]));
    }
  };
  for (size_t l = 0; l < table.size(); ++l) {
    for (size_t h = 0; h < table[l].size(); ++h) {
      const KvSource& source = table[l][h];
      const bool routed = source.kind == Kind::kFrom || source.kind == Kind::kMean;
      if (routed) check(static_cast<int64_t>(l), h, source.layer, source.head);
      if (source.kind == Kind::kMean)
        check(static_cast<int64_t>(l), h, source.layer, source.second);
    }
  }
  for (auto& row : table) {
    int64_t next = 0;
    for (KvSource& source : row) {
      if (source.kind == Kind::kOwn) source.head = next++;
    }
  }
}

std::vector<int64_t> own_heads(const Table& table, int64_t layer) {
  std::vector<int64_t> heads;
  const auto& row = table.at(static_cast<size_t>(layer));
  for (size_t h = 0; h < row.size(); ++h) {
    if (row[h].kind == Kind::kOwn) heads.push_back(static_cast<int64_t>(h));
  }
  return heads;
}

}  // namespace

std::vector<int64_t> KvPlan::own_key_heads(int64_t layer) const { return own_heads(keys, layer); }
std::vector<int64_t> KvPlan::own_value_heads(int64_t layer) const {
  return own_heads(values, layer);
}

KvPlan make_kv_plan(const ModelConfig& config, Problems& problems) {
  KvPlan plan;
  plan.layers = config.num_hidden_layers;
  plan.kv_heads = config.num_key_value_heads;
  // Latent attention shares columns of the latent, not heads: the layout's matter.
  static const KvSharingConfig kPlain;
  const KvSharingConfig& sharing = config.latent.kv_lora_rank > 0 ? kPlain : config.kv_sharing;
  const Scheme scheme{plan.layers, plan.kv_heads, sharing, problems, "kv_sharing"};
  plan.keys = keys_of(scheme);
  plan.values = values_of(scheme);
  finish(plan.keys, "kv_sharing keys", problems);
  finish(plan.values, "kv_sharing values", problems);
  return plan;
}

KvPlan build_kv_plan(const ModelConfig& config) {
  HEIRLOOM_CHECK(config.num_hidden_layers >= 1 && config.num_hidden_layers <= kMaxLayers &&
                     config.num_key_value_heads >= 1 && config.num_key_value_heads <= kMaxHeads &&
                     config.num_hidden_layers * config.num_key_value_heads <= kMaxPlanHeads,
                 "[kv plan] expected layers and KV heads of at least 1 and a product of at most "
                 "{}; got {} x {}",
                 kMaxPlanHeads, config.num_hidden_layers, config.num_key_value_heads);
  Problems problems("kv plan");
  check_kv_sharing(config, config.kv_sharing, "kv_sharing", problems);
  problems.throw_if_any();
  KvPlan plan = make_kv_plan(config, problems);
  problems.throw_if_any();
  return plan;
}

std::string describe(const KvSource& source) {
  switch (source.kind) {
    case Kind::kOwn:
      return "own";
    case Kind::kFrom:
      return fmt::format("layer {} head {}", source.layer + 1, source.head);
    case Kind::kMean:
      return fmt::format("mean of layer {} heads {}, {}", source.layer + 1, source.head,
                         source.second);
    case Kind::kZero:
      return "zero";
  }
  return "?";
}

int64_t inherited_latent_rank(const ModelConfig& config) {
  if (config.kv_sharing.scheme != "skipv1" || config.num_hidden_layers == 1) return 0;
  return std::llround(static_cast<double>(config.latent.kv_lora_rank) * config.kv_sharing.ratio);
}

}  // namespace heirloom
