// SPDX-License-Identifier: Apache-2.0
#include "heirloom/model/config.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "heirloom/core/error.h"
#include "heirloom/model/kv_layout.h"

namespace heirloom {
namespace {

const char* const kSmall = R"({
  "model_type": "heirloom", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
  "num_hidden_layers": 5, "num_attention_heads": 4, "max_position_embeddings": 16})";

Json small(const std::string& changes = "{}") {
  Json json = parse_json(kSmall, "test");
  json.update(parse_json(changes, "changes"));
  return json;
}

ModelConfig parse(const std::string& changes = "{}") {
  return parse_model_config(small(changes), "test.json");
}

std::string problem_of(const Json& json) {
  try {
    parse_model_config(json, "test.json");
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

void expect_problem(const std::string& changes, const std::string& expected) {
  const std::string message = problem_of(small(changes));
  EXPECT_NE(message.find(expected), std::string::npos) << changes << "\n" << message;
}

TEST(Config, Defaults) {
  const ModelConfig c = parse();
  EXPECT_EQ(c.num_key_value_heads, 4);
  EXPECT_EQ(c.head_dim, 8);
  EXPECT_EQ(c.norm, NormKind::kRms);
  EXPECT_EQ(c.norm_eps, 1e-6);
  EXPECT_EQ(c.mlp, ActivationKind::kSwiglu);
  EXPECT_EQ(c.position, PositionKind::kRope);
  EXPECT_EQ(c.rope_style, RopeStyle::kHalf);
  EXPECT_EQ(c.rope_theta, 10000);
  EXPECT_EQ(c.rotary_dim(), 8);
  EXPECT_EQ(c.sliding_window, 0);
  EXPECT_FALSE(c.bos_token_id);
  EXPECT_TRUE(c.eos_token_ids.empty());
  EXPECT_EQ(c.stored_dtype, "float32");
  EXPECT_EQ(c.kv_sharing.scheme, "none");
  EXPECT_EQ(c.value_residual.mode, "none");
  EXPECT_FALSE(c.depth_weighted_average);
  EXPECT_FALSE(c.attention_out_bias);
}

TEST(Config, EveryFieldSurvivesTheRoundTrip) {
  const char* const changes[] = {
      "{}",
      R"({"num_key_value_heads":2,"head_dim":10,"norm":"layernorm","norm_eps":1e-5,"norm_bias":true,
          "mlp":"gelu_tanh","mlp_bias":true,"attention_bias":true,"attention_out_bias":false,
          "position":"learned","qk_norm":true,"tie_word_embeddings":true,"parallel_residual":true,
          "sliding_window":7,"bos_token_id":1,"eos_token_id":[2,3],"dtype":"bfloat16"})",
      R"({"rope_style":"interleaved","partial_rotary_factor":0.5,"rope_theta":5e5,"eos_token_id":2,
          "rope_scaling":{"rope_type":"llama3","factor":8,"original_max_position_embeddings":32},"mlp":"gelu"})",
      R"({"rope_scaling":{"rope_type":"linear","factor":2.5}})",
      R"({"rope_scaling":{"type":"yarn","factor":4,"attention_factor":1.5,"beta_fast":16,"beta_slow":2,
          "mscale":1,"mscale_all_dim":0.7,"truncate":false,"original_max_position_embeddings":8}})",
      R"({"attention":{"kind":"mla","kv_lora_rank":16,"qk_rope_head_dim":4,"qk_nope_head_dim":6,
          "v_head_dim":5,"q_lora_rank":12},"kv_sharing":{"scheme":"skipv1","ratio":0.25}})",
      R"({"kv_sharing":{"scheme":"skipv1","ratio":0.5,"source_layer":2,"injection":"pooling"},
          "value_residual":{"mode":"sparse","layers":[4,5],"v1":3},"neutreno":{"lambda":0.4},
          "depth_weighted_average":{"dilation":2}})",
      R"({"kv_sharing":{"scheme":"split","keys":{"scheme":"cla","group":3},
          "values":{"scheme":"yoco-v","start":4}},"value_residual":{"mode":"constant"}})",
      R"({"value_residual":{"mode":"learnable-plus"},"kv_sharing":{"scheme":"explicit",
          "keys":[["own","own","own","own"],["own","own","own",[1,2]],["own","own","own","own"],
          ["own","own","own","own"],["own","own","own","own"]],
          "values":[["own","own","own","own"],["zero","own",["mean",1,0,1],[1,2]],["own","own","own","own"],
          ["own","own","own","own"],["own","own","own","own"]]}})",
      R"({"architectures":["HeirloomForCausalLM"],"auto_map":{"AutoConfig":"x.Y"},"use_cache":true,
          "transformers_version":"5.1.0","initializer_range":0.02,"pad_token_id":null})",
  };
  for (const char* change : changes) {
    const ModelConfig first = parse(change);
    const Json written = model_config_json(first);
    const ModelConfig second = parse_model_config(written, "written");
    EXPECT_EQ(model_config_json(second), written) << change;
    EXPECT_EQ(first.kept, second.kept) << change;
    // What was asked for stands in what is written (older spellings aside).
    const Json asked = parse_json(change, "change");
    for (const auto& [key, value] : asked.items()) {
      if (value.is_object() || !written.contains(key)) continue;
      EXPECT_EQ(written[key], value) << key;
    }
    EXPECT_EQ(build_kv_plan(first).values, build_kv_plan(second).values) << change;
    EXPECT_EQ(first.rope_scaling.type, second.rope_scaling.type);
    EXPECT_EQ(rope_tables(first, 3).sines, rope_tables(second, 3).sines);
    EXPECT_EQ(count_parameters(first).total(), count_parameters(second).total());
  }
}

TEST(Config, ModeAndSchemeDefaults) {
  EXPECT_EQ(parse(R"({"value_residual":{"mode":"identity"}})").value_residual.v1, 0.5);
  EXPECT_EQ(parse(R"({"value_residual":{"mode":"constant"}})").value_residual.v1, 2);
  EXPECT_EQ(parse(R"({"value_residual":{"mode":"constant"}})").value_residual.own, 1);
  EXPECT_EQ(parse(R"({"value_residual":{"mode":"sparse","layers":[3]}})").value_residual.v1, 5);
  EXPECT_EQ(parse(R"({"depth_weighted_average":{}})").depth_weighted_average->period, 1);
  EXPECT_FALSE(parse(R"({"depth_weighted_average":null})").depth_weighted_average);
  EXPECT_TRUE(parse(R"({"attention_bias":true})").attention_out_bias);
}

TEST(Config, UnknownKeysNameTheNearest) {
  expect_problem(R"({"hiden_size":32})",
                 "unknown key \"hiden_size\"; did you mean \"hidden_size\"?");
  expect_problem(R"({"neutreno":{"lamda":1}})",
                 "neutreno: unknown key \"lamda\"; did you mean \"lambda\"?");
  expect_problem(R"({"attention":{"kind":"softmax","kv_lora_rank":3}})", "attention: unknown key");
  expect_problem(R"({"rope_scaling":{"rope_type":"linear","factor":2,"beta_fast":1}})",
                 "rope_scaling: unknown key");
  expect_problem(R"({"value_residual":{"mode":"learnable","v1":1}})", "unknown key \"v1\"");
  expect_problem(R"({"hidden_act":"silu"})", "unknown key \"hidden_act\"");
  expect_problem(R"({"quantization_config":{}})", "unknown key");
  EXPECT_EQ(problem_of(small(R"({"output_attentions":false,"torch_dtype":"float32"})")),
            "no error");
}

TEST(Config, KeysOfAnySortStayOneShortLine) {
  const std::string message =
      problem_of(small("{\"a\\nb\\u001b[31m\":1,\"" + std::string(100'000, 'x') + "\":1}"));
  EXPECT_NE(message.find("2 problems\n  unknown key \"a\\nb\\u001b[31m\""), std::string::npos);
  EXPECT_EQ(std::count(message.begin(), message.end(), '\n'), 2);
  EXPECT_LT(message.size(), 2000u);
}

TEST(Config, AllProblemsAtOnceOnePerLine) {
  const std::string message = problem_of(small(
      R"({"vocab_size":0,"norm":"rmsnrom","mlp_bias":1,"kv_sharing":{"scheme":"skipv1","ratio":2},"extra":1})"));
  for (const char* part :
       {"test.json: 5 problems", "\n  vocab_size: ", "\n  norm: ", "did you mean \"rmsnorm\"",
        "\n  mlp_bias: ", "\n  kv_sharing.ratio: ", "\n  unknown key \"extra\""}) {
    EXPECT_NE(message.find(part), std::string::npos) << part << "\n" << message;
  }
  const std::string one = problem_of(small(R"({"vocab_size":-1})"));
  EXPECT_EQ(one,
            "[config] test.json: vocab_size: expected an integer from 1 to 2147483647; got -1");
}

TEST(Config, RangesAndTypes) {
  for (const char* key : {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                          "num_attention_heads", "max_position_embeddings"}) {
    for (const char* value : {"0", "-3", "1.5", "\"8\"", "true", "[8]", "{}", "null", "1e300",
                              "9223372036854775807", "18446744073709551615"}) {
      expect_problem(fmt::format(R"({{"{}":{}}})", key, value), key);
    }
    Json without = small();
    without.erase(key);
    EXPECT_NE(problem_of(without).find("it is missing"), std::string::npos) << key;
  }
  for (const char* value : {"0", "-1", "\"x\"", "1e300", "3.0", "5"}) {
    expect_problem(fmt::format(R"({{"num_key_value_heads":{}}})", value), "num_key_value_heads");
  }
  expect_problem(R"({"num_hidden_layers":5000000})", "num_hidden_layers");
  expect_problem(R"({"num_hidden_layers":4096,"num_attention_heads":4096,"head_dim":2})",
                 "layers x KV heads");
  expect_problem(R"({"num_key_value_heads":3})",
                 "expected a divisor of num_attention_heads (4); got 3");
  expect_problem(R"({"head_dim":7})", "head_dim: expected an even number");
  expect_problem(R"({"hidden_size":34})", "expected hidden_size / num_attention_heads to be whole");
  expect_problem(R"({"norm_eps":0})", "norm_eps");
  expect_problem(R"({"norm_eps":"small"})", "norm_eps");
  expect_problem(R"({"rope_theta":0})", "rope_theta");
  expect_problem(R"({"partial_rotary_factor":0.1})", "rotating dims");
  expect_problem(R"({"partial_rotary_factor":0.4})", "int(8 x 0.4) = 3");
  expect_problem(R"({"partial_rotary_factor":1.5})", "partial_rotary_factor");
  expect_problem(R"({"sliding_window":0})", "sliding_window");
  expect_problem(R"({"dtype":"float8"})", "dtype");
  expect_problem(R"({"eos_token_id":"</s>"})", "eos_token_id");
  expect_problem(R"({"eos_token_id":[1,-2]})", "eos_token_id");
  expect_problem(R"({"eos_token_id":[[1]]})", "eos_token_id");
  expect_problem(R"({"bos_token_id":1.0})", "bos_token_id");
  expect_problem(R"({"position":"alibi"})", "position");
  expect_problem(R"({"rope_scaling":"linear"})", "rope_scaling: expected an object");
  expect_problem(R"({"rope_scaling":{"factor":2}})", "rope_scaling.rope_type");
  expect_problem(R"({"rope_scaling":{"rope_type":"dynamic","factor":2}})",
                 "rope_scaling.rope_type");
  expect_problem(R"({"rope_scaling":{"rope_type":"linear"}})", "rope_scaling.factor");
  expect_problem(R"({"rope_scaling":{"rope_type":"linear","factor":0.5}})", "rope_scaling.factor");
  expect_problem(R"({"rope_scaling":{"rope_type":"llama3","factor":8}})",
                 "original_max_position_embeddings");
  expect_problem(
      R"({"rope_scaling":{"rope_type":"llama3","factor":8,"original_max_position_embeddings":8,
                     "low_freq_factor":4,"high_freq_factor":4}})",
      "low_freq_factor");
  expect_problem(R"({"position":"learned","rope_scaling":{"rope_type":"linear","factor":2}})",
                 "rope_scaling");
}

TEST(Config, ValueMixingRules) {
  expect_problem(R"({"value_residual":{"mode":"dense"}})", "value_residual.mode");
  expect_problem(R"({"value_residual":{"mode":"sparse"}})", "value_residual.layers");
  expect_problem(R"({"value_residual":{"mode":"sparse","layers":[]}})", "value_residual.layers");
  expect_problem(R"({"value_residual":{"mode":"sparse","layers":[1]}})", "from 2 to 5");
  expect_problem(R"({"value_residual":{"mode":"sparse","layers":[6]}})", "from 2 to 5");
  expect_problem(R"({"value_residual":{"mode":"sparse","layers":[3,3]}})", "value_residual.layers");
  expect_problem(R"({"neutreno":{"lambda":"big"}})", "neutreno.lambda");
  expect_problem(R"({"neutreno":0.4})", "neutreno: expected an object");
  expect_problem(R"({"depth_weighted_average":{"period":0}})", "depth_weighted_average.period");
  const std::string zero_first = R"("kv_sharing":{"scheme":"split","keys":{"scheme":"none"},
      "values":{"scheme":"explicit","keys":[],"values":[["zero","own","own","own"],["own","own","own","own"],
      ["own","own","own","own"],["own","own","own","own"],["own","own","own","own"]]}})";
  EXPECT_EQ(problem_of(small("{" + zero_first + "}")), "no error");
  expect_problem("{" + zero_first + R"(,"neutreno":{"lambda":0.1}})",
                 "expected layer 1 to own all 4 value heads; got 3");
  expect_problem("{" + zero_first + R"(,"value_residual":{"mode":"identity"}})",
                 "layer 1 to own all");
}

TEST(Config, LatentAttentionRefusesWhatItCannotDo) {
  const auto mla = [](const std::string& more) {
    return R"({"attention":{"kind":"mla","kv_lora_rank":16,"qk_rope_head_dim":4,"qk_nope_head_dim":6,
               "v_head_dim":5})" +
           more + "}";
  };
  EXPECT_EQ(problem_of(small(mla(""))), "no error");
  EXPECT_EQ(problem_of(small(mla(R"(,"kv_sharing":{"scheme":"skipv1","ratio":0.125})"))),
            "no error");
  expect_problem(mla(R"(,"kv_sharing":{"scheme":"skipv1","ratio":0.3})"), "latent columns");
  expect_problem(mla(R"(,"kv_sharing":{"scheme":"skipv1","source_layer":2})"),
                 "kv_sharing.source_layer");
  expect_problem(mla(R"(,"kv_sharing":{"scheme":"skipv1","injection":"pooling"})"),
                 "kv_sharing.injection");
  expect_problem(mla(R"(,"kv_sharing":{"scheme":"cla"})"), "kv_sharing.scheme");
  expect_problem(mla(R"(,"qk_norm":true)"), "qk_norm");
  expect_problem(mla(R"(,"attention_bias":true)"), "attention_bias");
  expect_problem(mla(R"(,"value_residual":{"mode":"identity"})"), "value_residual");
  expect_problem(mla(R"(,"neutreno":{"lambda":0.4})"), "neutreno");
  expect_problem(mla(R"(,"num_key_value_heads":2)"), "num_key_value_heads");
  expect_problem(mla(R"(,"position":"learned")"), "position");
  expect_problem(
      R"({"attention":{"kind":"mla","kv_lora_rank":16,"qk_rope_head_dim":3,"qk_nope_head_dim":6,
                     "v_head_dim":5}})",
      "qk_rope_head_dim");
  expect_problem(R"({"attention":{"kind":"mla"}})", "attention.kv_lora_rank");
  expect_problem(R"({"attention":{"kind":"linear"}})", "attention.kind");
}

TEST(Config, HostileInputs) {
  for (const char* text : {"null", "[]", "3", "\"heirloom\"", "{}", R"({"model_type":3})",
                           R"({"model_type":"hairloom"})", R"({"model_type":"heirloom"})"}) {
    EXPECT_THROW(parse_model_config(parse_json(text, "t"), "t"), ConfigError) << text;
  }
  EXPECT_NE(problem_of(Json{{"model_type", "hairloom"}}).find("did you mean \"heirloom\""),
            std::string::npos);
  // A split 100 levels deep, a table of the wrong length with long rows, thousands of unknown keys,
  // a huge key.
  Json deep = {{"scheme", "none"}};
  for (int i = 0; i < 100; ++i)
    deep = {{"scheme", "split"}, {"keys", {{"scheme", "none"}}}, {"values", deep}};
  Json json = small();
  json["kv_sharing"] = deep;
  EXPECT_NE(problem_of(json).find("at most 8 splits"), std::string::npos);
  const Json row = Json::array({Json::array({Json::array({Json::array()})})});
  json["kv_sharing"] = {{"scheme", "explicit"},
                        {"keys", Json(100000, row)},
                        {"values", Json(5, Json(100000, "own"))}};
  const std::string wrong = problem_of(json);
  EXPECT_NE(wrong.find("got 100000"), std::string::npos);
  EXPECT_LT(wrong.size(), 8192u);
  json = small();
  for (int i = 0; i < 3000; ++i) json[fmt::format("unknown_{}", i)] = i;
  const std::string many = problem_of(json);
  EXPECT_NE(many.find("and 2950 more"), std::string::npos);
  for (int i = 3000; i < 5000; ++i) json[fmt::format("unknown_{}", i)] = i;
  EXPECT_NE(problem_of(json).find("at most 4096 keys"), std::string::npos);
  json = small();
  json[std::string(1 << 20, 'k')] = std::string(1 << 20, 'v');
  EXPECT_LT(problem_of(json).size(), 1024u);
}

const char* const kLlamaV4 = R"({
  "architectures":["LlamaForCausalLM"],"attention_bias":false,"attention_dropout":0.0,"bos_token_id":1,
  "eos_token_id":[2,7],"hidden_act":"silu","hidden_size":64,"initializer_range":0.02,"intermediate_size":120,
  "max_position_embeddings":128,"mlp_bias":false,"model_type":"llama","num_attention_heads":4,
  "num_hidden_layers":3,"num_key_value_heads":2,"pretraining_tp":1,"rms_norm_eps":1e-5,"rope_theta":500000.0,
  "rope_scaling":{"factor":8.0,"high_freq_factor":4.0,"low_freq_factor":1.0,
  "original_max_position_embeddings":32,"rope_type":"llama3"},"tie_word_embeddings":true,
  "torch_dtype":"float16","transformers_version":"4.46.3","use_cache":true,"vocab_size":160,"my_note":"kept"})";

TEST(Config, LlamaOfTransformers4) {
  const ModelConfig c = parse_model_config(parse_json(kLlamaV4, "llama"), "llama");
  EXPECT_EQ(c.model_type, "llama");
  EXPECT_EQ(c.head_dim, 16);
  EXPECT_EQ(c.num_key_value_heads, 2);
  EXPECT_EQ(c.norm_eps, 1e-5);
  EXPECT_EQ(c.rope_theta, 5e5);
  EXPECT_EQ(c.rope_scaling.type, "llama3");
  EXPECT_EQ(c.stored_dtype, "float16");
  EXPECT_TRUE(c.tie_word_embeddings);
  EXPECT_EQ(c.eos_token_ids, (std::vector<int64_t>{2, 7}));
  const Json written = model_config_json(c), original = parse_json(kLlamaV4, "llama");
  for (const auto& [key, value] : original.items()) {
    if (key != "rope_scaling") {
      EXPECT_EQ(written[key], value) << key;
    }
  }
  for (const auto& [key, value] : original["rope_scaling"].items()) {
    EXPECT_EQ(written["rope_scaling"][key], value) << key;
  }
  EXPECT_FALSE(written.contains("rope_parameters"));
}

TEST(Config, LlamaOfTransformers5) {
  Json json = parse_json(kLlamaV4, "llama");
  json.erase("rope_theta");
  json.erase("rope_scaling");
  json.erase("torch_dtype");
  json["dtype"] = "bfloat16";
  json["rope_parameters"] = {{"rope_type", "yarn"}, {"factor", 4.0}, {"rope_theta", 1e6}};
  json["head_dim"] = 24;
  const ModelConfig c = parse_model_config(json, "llama");
  EXPECT_EQ(c.rope_theta, 1e6);
  EXPECT_EQ(c.rope_scaling.type, "yarn");
  EXPECT_EQ(c.stored_dtype, "bfloat16");
  EXPECT_EQ(c.head_dim, 24);
  ModelConfig changed = c;
  changed.rope_scaling = {};
  changed.stored_dtype = "float32";
  const Json written = model_config_json(changed);
  EXPECT_EQ(written["rope_parameters"], (Json{{"rope_type", "default"}, {"rope_theta", 1e6}}));
  EXPECT_EQ(written["dtype"], "float32");
  EXPECT_FALSE(written.contains("rope_theta"));
  EXPECT_FALSE(written.contains("torch_dtype"));
  EXPECT_EQ(model_config_json(parse_model_config(written, "again")), written);
}

TEST(Config, LlamaBiasesDefaultsAndRefusals) {
  Json json = parse_json(kLlamaV4, "llama");
  json["attention_bias"] = true;
  json["mlp_bias"] = true;
  json.erase("bos_token_id");
  json.erase("eos_token_id");
  const ModelConfig c = parse_model_config(json, "llama");
  EXPECT_TRUE(c.attention_bias && c.attention_out_bias && c.mlp_bias);
  EXPECT_EQ(c.bos_token_id, 1);  // transformers' defaults
  EXPECT_EQ(c.eos_token_ids, (std::vector<int64_t>{2}));
  const std::pair<const char*, Json> refused[] = {
      {"hidden_act", "gelu"},
      {"kv_sharing", {{"scheme", "skipv1"}}},
      {"quantization_config", {{"bits", 4}}},
      {"partial_rotary_factor", 0.5},
      {"rope_scaling", {{"type", "longrope"}, {"factor", 2}}},
      {"num_key_value_heads", 3}};
  for (const auto& [key, value] : refused) {
    Json bad = json;
    bad[key] = value;
    EXPECT_NE(problem_of(bad).find(key), std::string::npos) << key << "\n" << problem_of(bad);
  }
}

TEST(Config, UnknownFamiliesNameTheNearest) {
  const Json json = {{"model_type", "qwen4"}};
  EXPECT_THROW(parse_model_config(json, "t"), ConfigError);
  EXPECT_NE(problem_of(json).find("heirloom, llama"), std::string::npos);
  EXPECT_NE(problem_of(json).find("did you mean \"qwen"), std::string::npos) << problem_of(json);
}

TEST(Config, WithModelType) {
  ModelConfig c = parse_model_config(parse_json(kLlamaV4, "llama"), "llama");
  ModelConfig h = with_model_type(c, "heirloom");
  const Json written = model_config_json(h);
  EXPECT_EQ(written["model_type"], "heirloom");
  EXPECT_FALSE(written.contains("architectures"));
  EXPECT_FALSE(written.contains("my_note"));
  EXPECT_EQ(written["initializer_range"], 0.02);
  EXPECT_EQ(count_parameters(parse_model_config(written, "w")).total(),
            count_parameters(c).total());
  const Json back = model_config_json(with_model_type(h, "llama"));
  EXPECT_EQ(back["architectures"], Json::array({"LlamaForCausalLM"}));
  h.kv_sharing.scheme = "skipv1";
  EXPECT_THROW(model_config_json(with_model_type(h, "llama")), ConfigError);
  EXPECT_THROW(with_model_type(c, "no_such"), ConfigError);
}

struct Preset {
  const char* name;
  int64_t parameters, skipv1;
};
constexpr Preset kPresets[] = {
    {"llama-60m", 58073600, 57156096},    {"llama-130m", 134105856, 130861824},
    {"llama-350m", 367969280, 355910656}, {"llama-1b", 1339082752, 1290848256},
    {"llama-3b", 2685831680, 2584250880}, {"llama-7b", 6738415616, 6478368768},
    {"gpt2-125m", 123587328, 120343296},  {"gpt2-200m", 202531840, 196764672},
    {"gpt2-355m", 353551360, 341492736},  {"gpt2-550m", 544273200, 524833200},
    {"tinyllama-1.1b", 1100048384, 0},
};

TEST(Presets, PublishedParameterCounts) {
  for (const Preset& preset : kPresets) {
    EXPECT_EQ(count_parameters(preset_model_config(preset.name)).total(), preset.parameters)
        << preset.name;
    const ModelConfig skip = preset_model_config(std::string(preset.name) + "-skipv1");
    EXPECT_EQ(skip.model_type, "heirloom");
    EXPECT_EQ(skip.kv_sharing.scheme, "skipv1");
    if (preset.skipv1 > 0) {
      EXPECT_EQ(count_parameters(skip).total(), preset.skipv1) << preset.name;
    }
  }
  const ModelConfig tiny = preset_model_config("tinyllama-1.1b");
  EXPECT_EQ(tiny.num_key_value_heads, 4);
  EXPECT_EQ(tiny.max_position_embeddings, 2048);
  EXPECT_NEAR(static_cast<double>(count_parameters(preset_model_config("tinyllama-315m")).total()),
              313.6e6, 1e5);
  EXPECT_NEAR(static_cast<double>(count_parameters(preset_model_config("tinyllama-125m")).total()),
              124.7e6, 1e5);
}

TEST(Presets, LatentVariantsOfThe350M) {
  ModelConfig c = with_model_type(preset_model_config("llama-350m"), "heirloom");
  c.latent = {256, 32, 64, 64, 0};
  const int64_t plain = count_parameters(c).total();
  c.kv_sharing.scheme = "skipv1";
  // Down-projection (1024 x 128) and latent norm (128) of 23 layers.
  EXPECT_EQ(plain - count_parameters(c).total(), 23 * 128 * (1024 + 1));
}

TEST(Presets, AllParseAndWriteBack) {
  const std::vector<std::string> names = preset_model_names();
  EXPECT_EQ(names.size(), 40u);
  for (const std::string& name : names) {
    const ModelConfig config = preset_model_config(name);
    const Json written = model_config_json(config);
    EXPECT_EQ(model_config_json(parse_model_config(written, name)), written) << name;
    EXPECT_EQ(written["model_type"] == "llama",
              name.find("llama") != std::string::npos && !name.ends_with("skipv1"))
        << name;
  }
}

TEST(Presets, UnknownNamesTheNearest) {
  try {
    preset_model_config("lama-60m");
    FAIL();
  } catch (const ConfigError& e) {
    EXPECT_NE(std::string(e.what()).find("did you mean \"llama-60m\"?"), std::string::npos)
        << e.what();
  }
  EXPECT_THROW(preset_model_config(""), ConfigError);
  EXPECT_THROW(preset_model_config("-skipv1"), ConfigError);
  EXPECT_THROW(preset_model_config("llama-60m-skipv1-skipv1"), ConfigError);
}

TEST(Config, FilesAndWhatARunConfigMayName) {
  const std::filesystem::path folder =
      std::filesystem::path(testing::TempDir()) / "heirloom_config_test";
  std::filesystem::create_directories(folder);
  const std::string file = (folder / "config.json").string();
  std::ofstream(file) << kSmall;
  EXPECT_EQ(read_model_config(folder.string()).hidden_size, 32);
  EXPECT_EQ(read_model_config(file).hidden_size, 32);
  EXPECT_EQ(resolve_model_config(file, "run").hidden_size, 32);
  EXPECT_EQ(resolve_model_config(folder.string(), "run").hidden_size, 32);
  EXPECT_EQ(resolve_model_config(small(), "run").hidden_size, 32);
  EXPECT_EQ(resolve_model_config("llama-60m-skipv1", "run").hidden_size, 512);
  EXPECT_THROW(resolve_model_config(3, "run"), ConfigError);
  EXPECT_THROW(resolve_model_config("llama-61m", "run"), ConfigError);
  EXPECT_THROW(resolve_model_config((folder / "absent.json").string(), "run"), IoError);
  std::ofstream(file) << "{\"model_type\":\"heirloom\",\"model_type\":\"llama\"}";
  EXPECT_THROW(read_model_config(file), FormatError);
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace heirloom
