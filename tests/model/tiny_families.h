// SPDX-License-Identifier: Apache-2.0
//
// A small config of every family of transformers, and what it means for one to be written back.
#pragma once

#include <gtest/gtest.h>

#include "heirloom/model/config.h"

namespace heirloom::testing {

inline const char* const kFamilies[] = {"llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox"};

inline ModelConfig parse(const Json& json) { return parse_model_config(json, "test"); }

inline Json text(const std::string& json) { return parse_json(json, "test"); }

/// A small config of a family, in version 4's form, with what its own transformers would write.
inline Json tiny(const std::string& family) {
  if (family == "gpt2") {
    return text(R"({"model_type":"gpt2","architectures":["GPT2LMHeadModel"],"vocab_size":23,
      "n_embd":12,"n_head":3,"n_layer":2,"n_positions":16,"n_ctx":16,"n_inner":null,
      "activation_function":"gelu_new","layer_norm_epsilon":1e-5,"attn_pdrop":0.1,"bos_token_id":1,
      "eos_token_id":2,"scale_attn_weights":true,"summary_type":"cls_index","note":"kept"})");
  }
  if (family == "gpt_neox") {
    return text(R"({"model_type":"gpt_neox","vocab_size":23,"hidden_size":24,"num_hidden_layers":2,
      "num_attention_heads":3,"intermediate_size":20,"max_position_embeddings":16,"rotary_pct":0.25,
      "rotary_emb_base":10000,"hidden_act":"gelu","layer_norm_eps":1e-5,"bos_token_id":0,
      "eos_token_id":0,"use_parallel_residual":true,"attention_bias":true,"torch_dtype":"float16",
      "tie_word_embeddings":false,"hidden_dropout":0.0,"note":"kept"})");
  }
  Json json = text(R"({"vocab_size":23,"hidden_size":12,"num_hidden_layers":2,
    "num_attention_heads":3,"num_key_value_heads":1,"head_dim":4,"intermediate_size":20,
    "max_position_embeddings":16,"rope_theta":20000.0,"rope_scaling":null,"rms_norm_eps":1e-5,
    "hidden_act":"silu","torch_dtype":"bfloat16","tie_word_embeddings":false,"bos_token_id":1,
    "eos_token_id":[2,3],"attention_dropout":0.0,"note":"kept"})");
  json["model_type"] = family;
  if (family == "mistral") json["sliding_window"] = 7;
  if (family.starts_with("qwen")) {
    json.update(
        text(R"({"use_sliding_window":false,"sliding_window":4096,"max_window_layers":1})"));
  }
  if (family == "llama") json.update(text(R"({"attention_bias":false,"mlp_bias":false})"));
  if (family == "qwen3") json["attention_bias"] = false;
  return json;
}

/// Every field of a config, whatever its family.
inline Json meaning(const ModelConfig& config) {
  return model_config_json(with_model_type(config, "heirloom"));
}

/// Under the same keys with the same values, and with the same meaning.
inline void expect_written_back(const Json& json) {
  const ModelConfig config = parse(json);
  const Json written = model_config_json(config);
  EXPECT_EQ(meaning(parse(written)), meaning(config)) << json;
  for (const auto& [key, value] : json.items()) EXPECT_EQ(written[key], value) << key << json;
}

}  // namespace heirloom::testing
