// SPDX-License-Identifier: Apache-2.0
//
// Every sharing scheme as a tiny model of five layers (three after the first two hide a wrong
// source layer), and a composed twin: the same model in plain float64 loops that gathers K and V by
// the plan and runs textbook attention. Nothing of the tape, the kernels, the streams or the cache
// is used by the twin.
#pragma once

#include <cmath>
#include <map>
#include <numbers>
#include <string>
#include <vector>

#include "heirloom/core/rng.h"
#include "heirloom/model/kv_plan.h"
#include "heirloom/model/transformer.h"

namespace heirloom::testing {

struct Variant {
  std::string name;
  std::string overrides;  ///< JSON merged over the base config
};

inline const std::vector<Variant>& variants() {
  static const std::vector<Variant> list = {
      {"mha", R"({})"},
      {"gqa", R"({"num_key_value_heads": 2})"},
      {"mqa", R"({"num_key_value_heads": 1})"},
      {"skipv1", R"({"kv_sharing": {"scheme": "skipv1"}})"},
      {"skipv1_quarter", R"({"kv_sharing": {"scheme": "skipv1", "ratio": 0.25}})"},
      {"skipv1_all", R"({"kv_sharing": {"scheme": "skipv1", "ratio": 1}})"},
      {"skipv1_none", R"({"kv_sharing": {"scheme": "skipv1", "ratio": 0}})"},
      {"skipv0", R"({"kv_sharing": {"scheme": "skipv1", "source_layer": 0}})"},
      {"skipv3", R"({"kv_sharing": {"scheme": "skipv1", "source_layer": 3}})"},
      {"skipv1_dynamic", R"({"kv_sharing": {"scheme": "skipv1", "injection": "dynamic"}})"},
      {"skipv1_odd_even", R"({"kv_sharing": {"scheme": "skipv1", "injection": "odd-even"}})"},
      {"skipv1_pooling", R"({"kv_sharing": {"scheme": "skipv1", "injection": "pooling"}})"},
      {"skipv1_gqa", R"({"num_key_value_heads": 2, "kv_sharing": {"scheme": "skipv1"}})"},
      {"skipkv1", R"({"kv_sharing": {"scheme": "skipkv1"}})"},
      {"skipkv1_qk_norm", R"({"qk_norm": true, "kv_sharing": {"scheme": "skipkv1", "ratio": 1}})"},
      {"skipv1_yoco", R"({"kv_sharing": {"scheme": "skipv1-yoco"}})"},
      {"yoco", R"({"kv_sharing": {"scheme": "yoco"}})"},
      {"yoco_from_3", R"({"kv_sharing": {"scheme": "yoco", "start": 3}})"},
      {"yoco_v", R"({"kv_sharing": {"scheme": "yoco-v"}})"},
      {"cla", R"({"kv_sharing": {"scheme": "cla"}})"},
      {"cla_3", R"({"kv_sharing": {"scheme": "cla", "group": 3}})"},
      {"cla_v", R"({"kv_sharing": {"scheme": "cla-v"}})"},
      {"svformer", R"({"kv_sharing": {"scheme": "svformer"}})"},
      {"split",
       R"({"kv_sharing": {"scheme": "split", "keys": {"scheme": "cla"}, "values": {"scheme": "skipv1"}}})"},
      {"explicit", R"({"kv_sharing": {"scheme": "explicit",
        "keys": [["own","own","own","own"], ["own",[1,1],"own","own"], ["own",[1,1],[1,1],[2,0]],
                 ["own","own","own","own"], [[2,3],[4,0],"own",[1,2]]],
        "values": [["own","own","own","own"], [[1,2],"own","own",[1,0]], [["mean",1,0,3],"own",[2,1],"zero"],
                   [[3,1],[3,1],[3,1],[3,1]], [["mean",2,1,2],["mean",2,2,1],"zero","own"]]}})"},
      {"gpt2",
       R"({"norm": "layernorm", "norm_bias": true, "norm_eps": 1e-5, "mlp": "gelu_tanh", "mlp_bias": true,
        "attention_bias": true, "position": "learned", "tie_word_embeddings": true,
        "kv_sharing": {"scheme": "skipv1"}})"},
      {"rotary_gelu",
       R"({"norm": "layernorm", "mlp": "gelu", "rope_style": "interleaved", "tie_word_embeddings": true,
        "partial_rotary_factor": 0.67, "kv_sharing": {"scheme": "cla-v"}})"},
      {"odd_shapes",
       R"({"num_attention_heads": 3, "head_dim": 10, "hidden_size": 20, "intermediate_size": 101,
        "kv_sharing": {"scheme": "skipv1", "ratio": 0.3333333333}})"},
      {"six_layers_of_seven_heads",
       R"({"num_attention_heads": 7, "num_key_value_heads": 7, "num_hidden_layers": 6,
        "hidden_size": 23, "head_dim": 4, "kv_sharing": {"scheme": "split", "keys": {"scheme": "yoco", "start": 2},
        "values": {"scheme": "cla-v", "group": 4}}})"},
      {"parallel_window",
       R"({"parallel_residual": true, "sliding_window": 7, "kv_sharing": {"scheme": "skipv1"}})"},
  };
  return list;
}

inline ModelConfig variant_config(const Variant& variant) {
  Json json = parse_json(
      R"({"model_type": "heirloom", "vocab_size": 37, "hidden_size": 24, "intermediate_size": 19,
    "num_hidden_layers": 5, "num_attention_heads": 4, "head_dim": 6, "max_position_embeddings": 256})",
      "base");
  json.merge_patch(parse_json(variant.overrides, variant.name));
  return parse_model_config(json, variant.name);
}

/// Weights by checkpoint name: random, large enough that every path matters (norms around 1, biases
/// not 0).
inline std::map<std::string, std::vector<double>> random_weights(const ParameterStore& parameters,
                                                                 uint64_t seed) {
  std::map<std::string, std::vector<double>> weights;
  for (const NamedParameter& p : parameters.all()) {
    for (const ParameterSlice& s : p.slices) {
      std::vector<double>& w = weights[s.name];
      w.resize(static_cast<size_t>((s.end - s.begin) * p.columns()));
      for (size_t i = 0; i < w.size(); ++i) {
        const auto bits =
            philox(mix_key(seed, hash_name(s.name)), {static_cast<uint32_t>(i), 0, 0, 0});
        w[i] = normals_from_bits(bits[0], bits[1])[0] * (p.columns() == 1 ? 0.2 : 0.25) +
               (s.init == InitKind::kOnes ? 1.0 : 0.0);
      }
    }
  }
  return weights;
}

/// Puts weights into a flat buffer (float64 models).
inline void put_weights(ParameterStore& parameters,
                        const std::map<std::string, std::vector<double>>& weights) {
  for (NamedParameter& p : parameters.all()) {
    for (const ParameterSlice& s : p.slices) {
      const std::vector<double>& w = weights.at(s.name);
      for (size_t i = 0; i < w.size(); ++i) {
        const int64_t at = s.begin * p.columns() + static_cast<int64_t>(i);
        switch (p.value.dtype()) {
          case Dtype::kFloat64:
            p.value.as<double>()[at] = w[i];
            break;
          case Dtype::kBFloat16:
            p.value.as<bfloat16>()[at] = bfloat16(static_cast<float>(w[i]));
            break;
          default:
            p.value.as<float>()[at] = static_cast<float>(w[i]);
        }
      }
    }
  }
}

class Twin {
 public:
  using Rows = std::vector<std::vector<double>>;  // [token][column]

  Twin(ModelConfig config, std::map<std::string, std::vector<double>> initial)
      : weights(std::move(initial)), config_(std::move(config)), plan_(build_kv_plan(config_)) {}

  std::map<std::string, std::vector<double>> weights;

  /// Logits of every position of one sequence.
  Rows logits(const std::vector<int32_t>& tokens) const {
    const size_t n = tokens.size(), heads = static_cast<size_t>(config_.num_attention_heads);
    const size_t groups = static_cast<size_t>(config_.num_key_value_heads),
                 d = static_cast<size_t>(config_.head_dim);
    Rows x(n);
    for (size_t t = 0; t < n; ++t) {
      x[t] = row("model.embed_tokens.weight", static_cast<size_t>(tokens[t]));
      if (config_.position == PositionKind::kLearned)
        add(x[t], row("model.embed_positions.weight", t));
    }
    std::vector<std::vector<Rows>> keys, values;  // [layer][KV head][token][dim], as attended
    for (size_t l = 0; l < static_cast<size_t>(config_.num_hidden_layers); ++l) {
      const std::string base = "model.layers." + std::to_string(l) + ".";
      const Rows y = norm(x, base + "input_layernorm");
      std::vector<Rows> q = split(linear(y, base + "self_attn.q_proj"), d);
      const auto own_keys = plan_.own_key_heads(static_cast<int64_t>(l)),
                 own_values = plan_.own_value_heads(static_cast<int64_t>(l));
      std::vector<Rows> k_own, v_own;
      if (!own_keys.empty()) k_own = split(linear(y, base + "self_attn.k_proj"), d);
      if (!own_values.empty()) v_own = split(linear(y, base + "self_attn.v_proj"), d);
      for (Rows& head : q) rotate(head, config_.qk_norm ? base + "self_attn.q_norm.weight" : "");
      for (Rows& head : k_own)
        rotate(head, config_.qk_norm ? base + "self_attn.k_norm.weight" : "");
      keys.emplace_back(groups);
      values.emplace_back(groups);
      for (size_t g = 0; g < groups; ++g) {
        keys[l][g] = gather(plan_.keys[l][g], k_own, keys, n, d);
        values[l][g] = gather(plan_.values[l][g], v_own, values, n, d);
      }
      Rows o(n, std::vector<double>(heads * d, 0.0));
      for (size_t h = 0; h < heads; ++h)
        attend(q[h], keys[l][h / (heads / groups)], values[l][h / (heads / groups)], o, h * d);
      Rows delta = linear(o, base + "self_attn.o_proj");
      const auto mlp = [&](const Rows& in) {
        Rows a = linear(norm(in, base + "post_attention_layernorm"), base + "mlp.up_proj");
        const Rows gate =
            config_.mlp == ActivationKind::kSwiglu
                ? linear(norm(in, base + "post_attention_layernorm"), base + "mlp.gate_proj")
                : Rows();
        for (size_t t = 0; t < n; ++t) {
          for (size_t i = 0; i < a[t].size(); ++i) {
            double& u = a[t][i];
            switch (config_.mlp) {
              case ActivationKind::kSwiglu:
                u *= gate[t][i] / (1 + std::exp(-gate[t][i]));
                break;
              case ActivationKind::kGelu:
                u *= 0.5 * (1 + std::erf(u / std::sqrt(2.0)));
                break;
              case ActivationKind::kGeluTanh:
                u *= 0.5 *
                     (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (u + 0.044715 * u * u * u)));
            }
          }
        }
        return linear(a, base + "mlp.down_proj");
      };
      if (config_.parallel_residual) {
        const Rows second = mlp(x);
        for (size_t t = 0; t < n; ++t) add(add(x[t], delta[t]), second[t]);
      } else {
        for (size_t t = 0; t < n; ++t) add(x[t], delta[t]);
        const Rows second = mlp(x);
        for (size_t t = 0; t < n; ++t) add(x[t], second[t]);
      }
    }
    return linear(norm(x, "model.norm"),
                  config_.tie_word_embeddings ? "model.embed_tokens" : "lm_head");
  }

  /// Sum of -log p(target) over scored positions (target >= 0).
  double nll(const std::vector<int32_t>& tokens, const std::vector<int32_t>& targets) const {
    const Rows z = logits(tokens);
    double sum = 0;
    for (size_t t = 0; t < tokens.size(); ++t) {
      if (targets[t] >= 0) sum -= log_probability(z[t], targets[t]);
    }
    return sum;
  }

  static double log_probability(const std::vector<double>& logits, int32_t token) {
    double sum = 0;
    for (const double z : logits) sum += std::exp(z);
    return logits[static_cast<size_t>(token)] - std::log(sum);
  }

 private:
  static std::vector<double>& add(std::vector<double>& to, const std::vector<double>& from) {
    for (size_t i = 0; i < to.size(); ++i) to[i] += from[i];
    return to;
  }
  std::vector<double> row(const std::string& name, size_t index) const {
    const std::vector<double>& w = weights.at(name);
    const size_t width = static_cast<size_t>(config_.hidden_size);
    return {w.begin() + static_cast<ptrdiff_t>(index * width),
            w.begin() + static_cast<ptrdiff_t>((index + 1) * width)};
  }
  Rows linear(const Rows& x, const std::string& name) const {
    const std::vector<double>& w = weights.at(name + ".weight");
    const auto bias = weights.find(name + ".bias");
    const size_t in = x[0].size(), out = w.size() / in;
    Rows y(x.size(), std::vector<double>(out, 0.0));
    for (size_t t = 0; t < x.size(); ++t) {
      for (size_t j = 0; j < out; ++j) {
        double sum = bias == weights.end() ? 0.0 : bias->second[j];
        for (size_t i = 0; i < in; ++i) sum += x[t][i] * w[j * in + i];
        y[t][j] = sum;
      }
    }
    return y;
  }
  Rows norm(const Rows& x, const std::string& name) const {
    Rows y = x;
    for (std::vector<double>& r : y) normalise(r, config_.norm, name);
    return y;
  }
  void normalise(std::vector<double>& r, NormKind kind, const std::string& name) const {
    const double n = static_cast<double>(r.size());
    double mean = 0, square = 0;
    if (kind == NormKind::kLayer) {
      for (const double v : r) mean += v / n;
    }
    for (const double v : r) square += (v - mean) * (v - mean) / n;
    const auto bias = weights.find(name + ".bias");
    for (size_t i = 0; i < r.size(); ++i) {
      r[i] =
          (r[i] - mean) / std::sqrt(square + config_.norm_eps) * weights.at(name + ".weight")[i] +
          (bias == weights.end() ? 0.0 : bias->second[i]);
    }
  }
  static std::vector<Rows> split(const Rows& x, size_t d) {
    std::vector<Rows> heads(x[0].size() / d, Rows(x.size()));
    for (size_t h = 0; h < heads.size(); ++h) {
      for (size_t t = 0; t < x.size(); ++t) {
        heads[h][t].assign(x[t].begin() + static_cast<ptrdiff_t>(h * d),
                           x[t].begin() + static_cast<ptrdiff_t>((h + 1) * d));
      }
    }
    return heads;
  }
  void rotate(Rows& head, const std::string& norm_weight) const {
    for (size_t t = 0; t < head.size(); ++t) {
      std::vector<double>& r = head[t];
      if (!norm_weight.empty())
        normalise(r, NormKind::kRms, norm_weight.substr(0, norm_weight.size() - 7));
      if (config_.position != PositionKind::kRope) continue;
      const size_t dims = static_cast<size_t>(config_.rotary_dim()), half = dims / 2;
      const std::vector<double> old = r;
      for (size_t f = 0; f < half; ++f) {
        const double angle =
            static_cast<double>(t) *
            std::pow(config_.rope_theta, -2.0 * static_cast<double>(f) / static_cast<double>(dims));
        const bool halves = config_.rope_style == RopeStyle::kHalf;
        const size_t i = halves ? f : 2 * f, j = halves ? f + half : 2 * f + 1;
        r[i] = old[i] * std::cos(angle) - old[j] * std::sin(angle);
        r[j] = old[i] * std::sin(angle) + old[j] * std::cos(angle);
      }
    }
  }
  static Rows gather(const KvSource& source, const std::vector<Rows>& own,
                     const std::vector<std::vector<Rows>>& layers, size_t n, size_t d) {
    const auto at = [&](int64_t head) {
      return layers[static_cast<size_t>(source.layer)][static_cast<size_t>(head)];
    };
    switch (source.kind) {
      case KvSource::Kind::kOwn:
        return own[static_cast<size_t>(source.head)];
      case KvSource::Kind::kFrom:
        return at(source.head);
      case KvSource::Kind::kZero:
        return Rows(n, std::vector<double>(d, 0.0));
      case KvSource::Kind::kMean: {
        Rows mean = at(source.head);
        const Rows other = at(source.second);
        for (size_t t = 0; t < n; ++t) {
          for (size_t i = 0; i < d; ++i) mean[t][i] = (mean[t][i] + other[t][i]) / 2;
        }
        return mean;
      }
    }
    return {};
  }
  void attend(const Rows& q, const Rows& k, const Rows& v, Rows& o, size_t column) const {
    const double scale = 1 / std::sqrt(static_cast<double>(q[0].size()));
    for (size_t i = 0; i < q.size(); ++i) {
      const size_t window = static_cast<size_t>(config_.sliding_window);
      const size_t first = window > 0 && i + 1 > window ? i + 1 - window : 0;
      std::vector<double> p;
      double sum = 0;
      for (size_t j = first; j <= i; ++j) {
        double dot = 0;
        for (size_t c = 0; c < q[i].size(); ++c) dot += q[i][c] * k[j][c];
        sum += p.emplace_back(std::exp(scale * dot));
      }
      for (size_t j = first; j <= i; ++j) {
        for (size_t c = 0; c < v[j].size(); ++c) o[i][column + c] += p[j - first] / sum * v[j][c];
      }
    }
  }

  ModelConfig config_;
  KvPlan plan_;
};

}  // namespace heirloom::testing
