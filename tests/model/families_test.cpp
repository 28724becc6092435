// SPDX-License-Identifier: Apache-2.0
//
// The families of transformers: what their configs mean, in both forms.
#include <gtest/gtest.h>

#include "heirloom/core/error.h"
#include "tiny_families.h"

namespace heirloom {
namespace {

using testing::expect_written_back;
using testing::kFamilies;
using testing::meaning;
using testing::parse;
using testing::text;
using testing::tiny;

/// The same in version 5's form.
Json newer(const std::string& family) {
  Json json = tiny(family);
  json["dtype"] = json.value("torch_dtype", "float32");
  json.erase("torch_dtype");
  if (family == "gpt2") return json;
  const bool neox = family == "gpt_neox";
  json["rope_parameters"] = {{"rope_type", "default"},
                             {"rope_theta", json[neox ? "rotary_emb_base" : "rope_theta"]}};
  if (neox) json["rope_parameters"]["partial_rotary_factor"] = json["rotary_pct"];
  for (const char* key : {"rope_theta", "rope_scaling", "rotary_emb_base", "rotary_pct"}) {
    json.erase(key);
  }
  if (family.starts_with("qwen")) json["layer_types"] = {"full_attention", "full_attention"};
  return json;
}

std::string problem_of(const Json& json) {
  try {
    parse(json);
  } catch (const ConfigError& e) {
    return e.what();
  }
  return "no error";
}

void expect_problem(Json json, const Json& changes, const std::string& expected) {
  if (changes.is_object()) json.update(changes);
  const std::string message = problem_of(json);
  EXPECT_NE(message.find(expected + ": "), std::string::npos) << changes << "\n" << message;
}

TEST(Families, BothFormsMeanTheSameAndAreWrittenBack) {
  for (const std::string family : kFamilies) {
    EXPECT_EQ(meaning(parse(tiny(family))), meaning(parse(newer(family)))) << family;
    expect_written_back(tiny(family));
    expect_written_back(newer(family));
    const Json written = model_config_json(parse(newer(family)));
    for (const char* older :
         {"rope_theta", "rope_scaling", "rotary_emb_base", "rotary_pct", "torch_dtype"}) {
      EXPECT_FALSE(written.contains(older)) << family << " " << older;
    }
    const Json first = model_config_json(parse(tiny(family)));
    for (const char* later : {"rope_parameters", "layer_types", "dtype"}) {
      EXPECT_FALSE(first.contains(later)) << family << " " << later;
    }
  }
}

TEST(Families, RopeScalingKeepsItsSpelling) {
  for (const char* family : {"llama", "mistral", "qwen2", "qwen3", "gpt_neox"}) {
    Json older = tiny(family), later = newer(family);
    older["rope_scaling"] = text(R"({"type":"linear","factor":4})");
    later["rope_parameters"].update(text(R"({"rope_type":"linear","factor":4.0})"));
    EXPECT_EQ(parse(older).rope_scaling.factor, 4);
    EXPECT_EQ(meaning(parse(older)), meaning(parse(later))) << family;
    expect_written_back(older);
    expect_written_back(later);
    ModelConfig changed = parse(older);
    changed.rope_scaling.factor = 2;
    EXPECT_EQ(model_config_json(changed)["rope_scaling"],
              (Json{{"rope_type", "linear"}, {"factor", 2.0}}));
    changed = parse(later);
    changed.rope_theta = 3e4;
    EXPECT_EQ(model_config_json(changed)["rope_parameters"]["rope_theta"], 3e4);
    EXPECT_EQ(meaning(parse(model_config_json(changed))), meaning(changed));
    // Version 5 reads what it has under rope_scaling too, and that one where both are there.
    Json mixed = later;
    mixed["rope_scaling"] = later["rope_parameters"];
    expect_written_back(mixed);
    mixed["rope_scaling"]["factor"] = 8;
    expect_problem(mixed, {}, "rope_parameters");
  }
  Json llama3 = newer("llama");
  llama3["rope_parameters"] = text(R"({"rope_type":"llama3","factor":8,"rope_theta":5e5})");
  EXPECT_EQ(parse(llama3).rope_scaling.original_max_position_embeddings, 16);
  expect_written_back(llama3);
}

TEST(Families, DefaultsOfTransformers) {
  const auto of = [](const char* family) { return parse({{"model_type", family}}); };
  const ModelConfig llama = of("llama"), mistral = of("mistral"), qwen2 = of("qwen2"),
                    qwen3 = of("qwen3"), gpt2 = of("gpt2"), neox = of("gpt_neox");
  const auto sizes = [](const ModelConfig& c) {
    return std::vector<int64_t>{c.vocab_size,
                                c.hidden_size,
                                c.intermediate_size,
                                c.num_hidden_layers,
                                c.num_attention_heads,
                                c.num_key_value_heads,
                                c.head_dim,
                                c.max_position_embeddings};
  };
  using Sizes = std::vector<int64_t>;
  EXPECT_EQ(sizes(llama), (Sizes{32000, 4096, 11008, 32, 32, 32, 128, 2048}));
  EXPECT_EQ(sizes(mistral), (Sizes{32000, 4096, 14336, 32, 32, 8, 128, 131072}));
  EXPECT_EQ(sizes(qwen2), (Sizes{151936, 4096, 22016, 32, 32, 32, 128, 32768}));
  EXPECT_EQ(sizes(qwen3), (Sizes{151936, 4096, 22016, 32, 32, 32, 128, 32768}));
  EXPECT_EQ(sizes(gpt2), (Sizes{50257, 768, 3072, 12, 12, 12, 64, 1024}));
  EXPECT_EQ(sizes(neox), (Sizes{50432, 6144, 24576, 44, 64, 64, 96, 2048}));
  EXPECT_EQ(count_parameters(gpt2).total(), 124439808);
  EXPECT_EQ(mistral.sliding_window, 4096);
  EXPECT_EQ(qwen2.sliding_window, 0);
  EXPECT_TRUE(qwen2.attention_bias && !qwen2.attention_out_bias && !qwen2.qk_norm);
  EXPECT_TRUE(qwen3.qk_norm && !qwen3.attention_bias);
  EXPECT_TRUE(gpt2.tie_word_embeddings && gpt2.attention_bias && gpt2.attention_out_bias &&
              gpt2.mlp_bias && gpt2.norm_bias);
  EXPECT_TRUE(gpt2.position == PositionKind::kLearned && gpt2.mlp == ActivationKind::kGeluTanh &&
              gpt2.norm == NormKind::kLayer && gpt2.norm_eps == 1e-5);
  EXPECT_TRUE(neox.parallel_residual && neox.attention_bias && neox.attention_out_bias &&
              !neox.tie_word_embeddings && neox.mlp == ActivationKind::kGelu);
  EXPECT_EQ(neox.rotary_dim(), 24);
  EXPECT_EQ(llama.bos_token_id, 1);
  EXPECT_EQ(mistral.eos_token_ids, std::vector<int64_t>{2});
  EXPECT_FALSE(qwen2.bos_token_id);
  EXPECT_TRUE(qwen3.eos_token_ids.empty());
  EXPECT_EQ(gpt2.bos_token_id, 50256);
  EXPECT_EQ(neox.bos_token_id, 0);
  EXPECT_EQ(neox.eos_token_ids, std::vector<int64_t>{2});
  // A null is not an absent key.
  EXPECT_EQ(parse(text(R"({"model_type":"mistral","sliding_window":null})")).sliding_window, 0);
  EXPECT_EQ(
      parse(text(R"({"model_type":"mistral","num_key_value_heads":null})")).num_key_value_heads,
      32);
  for (const char* family : kFamilies) expect_written_back({{"model_type", family}});
}

TEST(Families, MisspeltSizesAreNoDefaults) {
  for (const char* family : kFamilies) {
    Json json = tiny(family);
    json["vocab_sise"] = json["vocab_size"];
    json.erase("vocab_size");
    expect_problem(json, {}, "vocab_size");
  }
}

TEST(Families, RefusalsNameTheKey) {
  for (const char* family : kFamilies) {
    const Json json = tiny(family);
    expect_problem(json, text(R"({"kv_sharing":{"scheme":"skipv1"}})"), "kv_sharing");
    expect_problem(json, text(R"({"norm":"layernorm"})"), "norm");
    expect_problem(json, text(R"({"quantization_config":{"bits":4}})"), "quantization_config");
    expect_problem(json, text(R"({"torch_dtype":"int8"})"), "torch_dtype");
    expect_problem(json, text(R"({"vocab_size":0})"), "vocab_size");
    EXPECT_EQ(problem_of([&] {
                Json fine = json;
                fine["quantization_config"] = nullptr;
                return fine;
              }()),
              "no error");
  }
  for (const char* family : {"llama", "mistral", "qwen2", "qwen3"}) {
    const Json json = tiny(family);
    expect_problem(json, text(R"({"hidden_act":"gelu"})"), "hidden_act");
    expect_problem(json, text(R"({"num_key_value_heads":2})"), "num_key_value_heads");
    expect_problem(json, text(R"({"partial_rotary_factor":0.5})"), "partial_rotary_factor");
    expect_problem(json, text(R"({"rope_scaling":{"rope_type":"longrope","factor":2}})"),
                   "rope_scaling.rope_type");
    expect_problem(newer(family),
                   text(R"({"rope_parameters":{"rope_theta":1e4,"partial_rotary_factor":0.5}})"),
                   "rope_parameters.partial_rotary_factor");
  }
  for (const char* family : {"mistral", "qwen2", "qwen3"}) {
    expect_problem(tiny(family), {{"mlp_bias", true}}, "mlp_bias");
    expect_written_back([&] {
      Json fine = tiny(family);
      fine["mlp_bias"] = false;
      return fine;
    }());
  }
  expect_problem(tiny("mistral"), {{"attention_bias", true}}, "attention_bias");
  expect_problem(tiny("qwen2"), {{"attention_bias", false}}, "attention_bias");
  expect_problem(tiny("llama"), {{"sliding_window", 8}}, "sliding_window");
  expect_problem(tiny("mistral"), text(R"({"layer_types":["sliding_attention","full_attention"]})"),
                 "layer_types");
  const Json gpt2 = tiny("gpt2");
  expect_problem(gpt2, {{"activation_function", "relu"}}, "activation_function");
  expect_problem(gpt2, {{"scale_attn_weights", false}}, "scale_attn_weights");
  expect_problem(gpt2, {{"scale_attn_by_inverse_layer_idx", true}},
                 "scale_attn_by_inverse_layer_idx");
  expect_problem(gpt2, {{"add_cross_attention", true}}, "add_cross_attention");
  expect_problem(gpt2, {{"n_head", 5}}, "n_head");
  expect_problem(gpt2, {{"n_ctx", 15}}, "n_ctx");
  expect_problem(gpt2, {{"hidden_size", 24}}, "hidden_size");
  expect_problem(gpt2, {{"num_key_value_heads", 1}}, "num_key_value_heads");
  const Json neox = tiny("gpt_neox");
  expect_problem(neox, {{"hidden_act", "silu"}}, "hidden_act");
  expect_problem(neox, {{"num_key_value_heads", 1}}, "num_key_value_heads");
  expect_problem(neox, {{"head_dim", 4}}, "head_dim");
  expect_problem(neox, {{"rotary_pct", 0}}, "rotary_pct");
  expect_problem(neox, {{"rope_theta", 5e5}}, "rope_theta");
}

TEST(Families, ActivationsAndTheirNames) {
  for (const char* name : {"gelu_new", "gelu_pytorch_tanh", "gelu_fast"}) {
    Json json = tiny("gpt2");
    json["activation_function"] = name;
    EXPECT_EQ(parse(json).mlp, ActivationKind::kGeluTanh) << name;
    expect_written_back(json);
    json = tiny("gpt_neox");
    json["hidden_act"] = name;
    EXPECT_EQ(parse(json).mlp, ActivationKind::kGeluTanh) << name;
    expect_written_back(json);
  }
  Json json = tiny("gpt2");
  json["activation_function"] = "gelu";
  ModelConfig config = parse(json);
  EXPECT_EQ(config.mlp, ActivationKind::kGelu);
  config.mlp = ActivationKind::kGeluTanh;
  EXPECT_EQ(model_config_json(config)["activation_function"], "gelu_new");
}

TEST(Families, GptSizesUnderTheirOtherNames) {
  Json json = tiny("gpt2");
  const Json renamed = text(R"({"hidden_size":12,"num_hidden_layers":2,"num_attention_heads":3,
                                "max_position_embeddings":16})");
  for (const char* key : {"n_embd", "n_layer", "n_head", "n_positions"}) json.erase(key);
  Json context = json;
  json.update(renamed);
  EXPECT_EQ(meaning(parse(json)), meaning(parse(tiny("gpt2"))));
  expect_written_back(json);
  context.update(text(R"({"n_embd":12,"n_layer":2,"n_head":3})"));
  EXPECT_EQ(parse(context).max_position_embeddings, 16);  // n_ctx
  context["n_inner"] = 48;
  EXPECT_EQ(model_config_json(parse(context))["n_inner"], 48);
  context["n_inner"] = 40;
  EXPECT_EQ(parse(context).intermediate_size, 40);
  // What version 4 of transformers writes beside the family's own names.
  Json neox = tiny("gpt_neox");
  neox.update(text(R"({"rope_theta":10000,"partial_rotary_factor":0.25,"rope_scaling":null})"));
  expect_written_back(neox);
  neox["use_parallel_residual"] = false;
  neox["attention_bias"] = false;
  EXPECT_FALSE(parse(neox).parallel_residual || parse(neox).attention_out_bias);
}

TEST(Families, QwenWindowsOfAllLayersOrNone) {
  for (const char* family : {"qwen2", "qwen3"}) {
    const auto window = [&](const char* changes) {
      Json json = tiny(family);
      json.update(text(changes));
      expect_written_back(json);
      return parse(json).sliding_window;
    };
    EXPECT_EQ(window(R"({"sliding_window":5,"max_window_layers":0})"), 0);
    EXPECT_EQ(window(R"({"sliding_window":5,"use_sliding_window":true,"max_window_layers":0})"), 5);
    EXPECT_EQ(window(R"({"sliding_window":5,"use_sliding_window":true,"max_window_layers":2})"), 0);
    EXPECT_EQ(window(R"({"sliding_window":null,"use_sliding_window":true,"max_window_layers":0})"),
              0);
    EXPECT_EQ(window(R"({"sliding_window":5,"use_sliding_window":true,
                         "layer_types":["sliding_attention","sliding_attention"]})"),
              5);
    EXPECT_EQ(window(R"({"sliding_window":5,"use_sliding_window":true,"max_window_layers":0,
                         "layer_types":["full_attention","full_attention"]})"),
              0);
    const Json json = tiny(family);
    expect_problem(json, text(R"({"use_sliding_window":true})"), "max_window_layers");
    expect_problem(json, text(R"({"use_sliding_window":true,
                                  "layer_types":["full_attention","sliding_attention"]})"),
                   "layer_types");
    expect_problem(json, text(R"({"layer_types":["sliding_attention","sliding_attention"]})"),
                   "use_sliding_window");
    expect_problem(json, text(R"({"layer_types":["full_attention"]})"), "layer_types");
    expect_problem(json, text(R"({"layer_types":["full_attention","linear_attention"]})"),
                   "layer_types");
    ModelConfig changed = parse(newer(family));
    changed.sliding_window = 6;
    changed.num_hidden_layers = 3;
    const Json written = model_config_json(changed);
    EXPECT_EQ(written["layer_types"], Json(std::vector<std::string>(3, "sliding_attention")));
    EXPECT_EQ(meaning(parse(written)), meaning(changed));
  }
}

TEST(Families, WriteOnlyWhatTheyCanSay) {
  const auto refused = [](const std::string& family, auto change) {
    ModelConfig config = parse(tiny(family));
    change(config);
    try {
      model_config_json(config);
    } catch (const ConfigError& e) {
      return std::string(e.what());
    }
    return std::string("written");
  };
  const auto expect = [&](std::vector<std::string> cannot, const char* key, auto change) {
    for (const std::string family : kFamilies) {
      const bool no = std::find(cannot.begin(), cannot.end(), family) != cannot.end();
      const std::string message = refused(family, change);
      if (no) {
        EXPECT_NE(message.find(std::string(key) + ": "), std::string::npos)
            << family << " " << key << "\n"
            << message;
      } else {
        EXPECT_EQ(message, "written") << family << " " << key;
      }
    }
  };
  const std::vector<std::string> all(std::begin(kFamilies), std::end(kFamilies));
  const std::vector<std::string> kin = {"llama", "mistral", "qwen2", "qwen3"};
  expect(all, "kv_sharing", [](ModelConfig& c) { c.kv_sharing.scheme = "skipv1"; });
  expect(all, "value_residual", [](ModelConfig& c) { c.value_residual.mode = "identity"; });
  expect(all, "neutreno", [](ModelConfig& c) { c.neutreno_lambda = 0.1; });
  expect(all, "depth_weighted_average", [](ModelConfig& c) { c.depth_weighted_average.emplace(); });
  expect(all, "attention", [](ModelConfig& c) { c.latent.kv_lora_rank = 8; });
  expect(all, "norm", [](ModelConfig& c) { c.norm_bias = !c.norm_bias; });
  expect({"llama", "mistral", "qwen2", "qwen3", "gpt_neox"}, "rope_style",
         [](ModelConfig& c) { c.rope_style = RopeStyle::kInterleaved; });
  expect(kin, "mlp", [](ModelConfig& c) { c.mlp = ActivationKind::kGelu; });
  expect({"gpt2", "gpt_neox"}, "mlp", [](ModelConfig& c) { c.mlp = ActivationKind::kSwiglu; });
  expect({"mistral", "qwen2", "qwen3", "gpt2", "gpt_neox"}, "mlp_bias",
         [](ModelConfig& c) { c.mlp_bias = !c.mlp_bias; });
  expect({"mistral", "qwen2", "gpt2"}, "attention_bias", [](ModelConfig& c) {
    c.attention_bias = !c.attention_bias;
    c.attention_out_bias = c.attention_bias && c.model_type != "qwen2";
  });
  expect(all, "attention_out_bias",
         [](ModelConfig& c) { c.attention_out_bias = !c.attention_out_bias; });
  expect(all, "qk_norm", [](ModelConfig& c) { c.qk_norm = !c.qk_norm; });
  expect({"llama", "gpt2", "gpt_neox"}, "sliding_window",
         [](ModelConfig& c) { c.sliding_window = 3; });
  expect({"gpt2", "gpt_neox"}, "num_key_value_heads",
         [](ModelConfig& c) { c.num_key_value_heads = 1; });
  expect({"gpt2", "gpt_neox"}, "head_dim", [](ModelConfig& c) { c.head_dim = 6; });
  expect({"llama", "mistral", "qwen2", "qwen3", "gpt2"}, "parallel_residual",
         [](ModelConfig& c) { c.parallel_residual = true; });
  expect(kin, "partial_rotary_factor", [](ModelConfig& c) { c.partial_rotary_factor = 0.5; });
  expect({"llama", "mistral", "qwen2", "qwen3", "gpt_neox"}, "position",
         [](ModelConfig& c) { c.position = PositionKind::kLearned; });
  expect({"gpt2"}, "position", [](ModelConfig& c) { c.position = PositionKind::kRope; });
}

}  // namespace
}  // namespace heirloom
