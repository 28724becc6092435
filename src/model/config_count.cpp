// SPDX-License-Identifier: Apache-2.0
#include "heirloom/model/config.h"
#include "heirloom/model/kv_plan.h"

#include <cmath>

namespace heirloom {
namespace {

int64_t linear(int64_t rows, int64_t columns, bool bias) {
  return rows * (columns + (bias ? 1 : 0));
}

int64_t head_attention(const ModelConfig& c, const KvPlan& plan, int64_t layer) {
  const int64_t d = c.head_dim, width = c.num_attention_heads * d;
  const auto own_keys = static_cast<int64_t>(plan.own_key_heads(layer).size());
  const auto own_values = static_cast<int64_t>(plan.own_value_heads(layer).size());
  int64_t count = linear(width + (own_keys + own_values) * d, c.hidden_size, c.attention_bias) +
                  linear(c.hidden_size, width, c.attention_out_bias);
  if (c.qk_norm) count += own_keys > 0 ? 2 * d : d;
  const bool learns =
      c.value_residual.mode == "learnable" || c.value_residual.mode == "learnable-plus";
  if (learns && layer > 0 && own_values > 0) count += 2;
  return count;
}

int64_t latent_attention(const ModelConfig& c, int64_t layer) {
  const LatentAttentionConfig& a = c.latent;
  const int64_t heads = c.num_attention_heads;
  const int64_t query = heads * (a.qk_nope_head_dim + a.qk_rope_head_dim);
  const int64_t inherited =
      c.kv_sharing.scheme == "skipv1" && layer > 0
          ? std::llround(static_cast<double>(a.kv_lora_rank) * c.kv_sharing.ratio)
          : 0;
  const int64_t own = a.kv_lora_rank - inherited;
  int64_t count = a.q_lora_rank > 0 ? a.q_lora_rank * (c.hidden_size + 1) + query * a.q_lora_rank
                                    : query * c.hidden_size;
  count += (own + a.qk_rope_head_dim) * c.hidden_size + own;
  count += heads * (a.qk_nope_head_dim + a.v_head_dim) * a.kv_lora_rank;
  return count + linear(c.hidden_size, heads * a.v_head_dim, c.attention_out_bias);
}

}  // namespace

ParameterCount count_parameters(const ModelConfig& c) {
  const KvPlan plan = build_kv_plan(c);
  const int64_t norm = c.hidden_size * (c.norm_bias ? 2 : 1);
  const bool gated = c.mlp == ActivationKind::kSwiglu;
  ParameterCount count;
  count.embedding = c.vocab_size * c.hidden_size;
  if (c.position == PositionKind::kLearned) {
    count.embedding += c.max_position_embeddings * c.hidden_size;
  }
  count.head = c.tie_word_embeddings ? 0 : c.vocab_size * c.hidden_size;
  count.norm = norm * (2 * c.num_hidden_layers + 1);
  count.mlp = c.num_hidden_layers *
              (linear((gated ? 2 : 1) * c.intermediate_size, c.hidden_size, c.mlp_bias) +
               linear(c.hidden_size, c.intermediate_size, c.mlp_bias));
  bool learnable_scale = false;
  for (int64_t l = 0; l < c.num_hidden_layers; ++l) {
    count.attention +=
        c.latent.kv_lora_rank > 0 ? latent_attention(c, l) : head_attention(c, plan, l);
    learnable_scale = learnable_scale || (l > 0 && !plan.own_value_heads(l).empty());
    if (!c.depth_weighted_average || (l + 1) % c.depth_weighted_average->period != 0) continue;
    count.depth_average += (l + 1) / c.depth_weighted_average->dilation + 1;
  }
  if (c.value_residual.mode == "learnable-plus" && learnable_scale) count.attention += 1;
  return count;
}

}  // namespace heirloom
