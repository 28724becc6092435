// SPDX-License-Identifier: Apache-2.0
#include "config_fields.h"

namespace heirloom {
namespace {

void check_heads(const ModelConfig& c, Problems& problems) {
  if (problems.fine({"num_attention_heads", "num_key_value_heads"}) &&
      c.num_attention_heads % c.num_key_value_heads != 0) {
    problems.add("num_key_value_heads", "expected a divisor of num_attention_heads ({}); got {}",
                 c.num_attention_heads, c.num_key_value_heads);
  }
  if (problems.fine({"head_dim", "hidden_size", "num_attention_heads"}) && c.head_dim % 2 != 0) {
    problems.add("head_dim", "expected an even number; got {}", c.head_dim);
  }
  if (problems.fine({"num_hidden_layers", "num_key_value_heads"}) &&
      c.num_hidden_layers * c.num_key_value_heads > kMaxPlanHeads) {
    problems.add("num_hidden_layers", "expected layers x KV heads of at most {}; got {} x {}",
                 kMaxPlanHeads, c.num_hidden_layers, c.num_key_value_heads);
  }
  if (c.position == PositionKind::kRope && c.latent.kv_lora_rank == 0 &&
      problems.fine({"head_dim", "hidden_size", "num_attention_heads", "partial_rotary_factor"}) &&
      (c.rotary_dim() < 2 || c.rotary_dim() % 2 != 0)) {
    problems.add("partial_rotary_factor",
                 "expected an even, positive number of rotating dims; got int({} x {}) = {}",
                 c.head_dim, c.partial_rotary_factor, c.rotary_dim());
  }
  if (c.position == PositionKind::kLearned && !c.rope_scaling.type.empty()) {
    problems.add("rope_scaling", "expected null with position learned; got {}",
                 c.rope_scaling.type);
  }
}

void check_latent(const ModelConfig& c, Problems& problems) {
  if (c.latent.kv_lora_rank == 0) return;
  const auto refuse = [&](bool present, const char* key, const char* expected) {
    if (present)
      problems.add(key, "expected {} with latent attention (attention.kind mla)", expected);
  };
  refuse(c.qk_norm, "qk_norm", "false");
  refuse(c.attention_bias, "attention_bias", "false");
  refuse(c.value_residual.mode != "none", "value_residual", "mode none");
  refuse(c.neutreno_lambda != 0, "neutreno", "lambda 0");
  refuse(c.position != PositionKind::kRope, "position", "rope");
  refuse(c.partial_rotary_factor != 1, "partial_rotary_factor", "1.0");
  refuse(problems.fine({"num_attention_heads", "num_key_value_heads"}) &&
             c.num_key_value_heads != c.num_attention_heads,
         "num_key_value_heads", "num_attention_heads");
  const KvSharingConfig& s = c.kv_sharing;
  if (s.scheme == "none") return;
  if (s.scheme != "skipv1") {
    problems.add("kv_sharing.scheme", "expected none or skipv1 with latent attention; got {}",
                 s.scheme);
    return;
  }
  if (s.source_layer != 1) {
    problems.add("kv_sharing.source_layer", "expected 1 with latent attention; got {}",
                 s.source_layer);
  }
  if (s.injection != "tail") {
    problems.add("kv_sharing.injection", "expected tail with latent attention; got {}",
                 s.injection);
  }
}

void check_value_residual(const ModelConfig& c, Problems& problems) {
  if (!problems.fine({"num_hidden_layers", "value_residual.layers"})) return;
  int64_t before = 1;
  for (const int64_t layer : c.value_residual.layers) {
    if (layer <= before || layer > c.num_hidden_layers) {
      problems.add(
          "value_residual.layers",
          "expected ascending layers from 2 to {}; got {} (layer 1 is what the others mix in)",
          c.num_hidden_layers, layer);
      return;
    }
    before = layer;
  }
}

/// What needs the finished plan: reached only when everything else fits.
void check_plan(const ModelConfig& c, Problems& problems) {
  const KvPlan plan = make_kv_plan(c, problems);
  const bool mixes = c.value_residual.mode != "none" || c.neutreno_lambda != 0;
  if (!mixes || !problems.empty()) return;
  const auto own = static_cast<int64_t>(plan.own_value_heads(0).size());
  if (own != plan.kv_heads) {
    problems.add(c.neutreno_lambda != 0 ? "neutreno" : "value_residual",
                 "expected layer 1 to own all {} value heads; got {}", plan.kv_heads, own);
  }
}

}  // namespace

void check_model_config(const ModelConfig& config, Problems& problems) {
  check_heads(config, problems);
  check_latent(config, problems);
  check_value_residual(config, problems);
  check_kv_sharing(config, config.kv_sharing, "kv_sharing", problems);
  if (problems.empty()) check_plan(config, problems);
}

}  // namespace heirloom
