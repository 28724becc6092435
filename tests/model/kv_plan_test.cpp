// SPDX-License-Identifier: Apache-2.0
//
// Plan tables against hand-written ones. A table is written as one string per layer with one word
// per KV head: o = own, 1.2 = layer 1 head 2, m1.0.2 = the mean of layer 1's heads 0 and 2, z =
// zero.
#include "heirloom/model/kv_plan.h"

#include <gtest/gtest.h>

#include "heirloom/core/error.h"

namespace heirloom {
namespace {

Json small_config(const Json& sharing, int64_t layers = 5, int64_t kv_heads = 4) {
  return {{"model_type", "heirloom"},
          {"vocab_size", 32},
          {"hidden_size", 32},
          {"intermediate_size", 48},
          {"num_hidden_layers", layers},
          {"num_attention_heads", 8},
          {"num_key_value_heads", kv_heads},
          {"max_position_embeddings", 16},
          {"kv_sharing", sharing}};
}

KvPlan plan_of(const std::string& sharing, int64_t layers = 5, int64_t kv_heads = 4) {
  return build_kv_plan(
      parse_model_config(small_config(parse_json(sharing, "test"), layers, kv_heads), "test"));
}

std::string word(const KvSource& s) {
  switch (s.kind) {
    case KvSource::Kind::kOwn:
      return "o";
    case KvSource::Kind::kFrom:
      return fmt::format("{}.{}", s.layer + 1, s.head);
    case KvSource::Kind::kMean:
      return fmt::format("m{}.{}.{}", s.layer + 1, s.head, s.second);
    case KvSource::Kind::kZero:
      return "z";
  }
  return "?";
}

std::vector<std::string> words(const std::vector<std::vector<KvSource>>& table) {
  std::vector<std::string> rows;
  for (const auto& row : table) {
    std::vector<std::string> heads;
    for (const KvSource& source : row) heads.push_back(word(source));
    rows.push_back(fmt::format("{}", fmt::join(heads, " ")));
  }
  return rows;
}

using Rows = std::vector<std::string>;
const Rows kOwn(5, "o o o o");
const Rows kSkip = {"o o o o", "o o 1.2 1.3", "o o 1.2 1.3", "o o 1.2 1.3", "o o 1.2 1.3"};

struct Case {
  const char* name;
  const char* sharing;
  Rows keys, values;
};

class Schemes : public testing::TestWithParam<Case> {};

TEST_P(Schemes, TableIsTheHandWrittenOne) {
  const KvPlan plan = plan_of(GetParam().sharing);
  EXPECT_EQ(words(plan.keys), GetParam().keys);
  EXPECT_EQ(words(plan.values), GetParam().values);
}

const Case kCases[] = {
    {"none", R"({"scheme":"none"})", kOwn, kOwn},
    {"skipv1", R"({"scheme":"skipv1"})", kOwn, kSkip},
    {"skipv1_quarter",
     R"({"scheme":"skipv1","ratio":0.25})",
     kOwn,
     {"o o o o", "o o o 1.3", "o o o 1.3", "o o o 1.3", "o o o 1.3"}},
    {"skipv1_ratio0", R"({"scheme":"skipv1","ratio":0})", kOwn, kOwn},
    {"skipv1_ratio1",
     R"({"scheme":"skipv1","ratio":1})",
     kOwn,
     {"o o o o", "1.0 1.1 1.2 1.3", "1.0 1.1 1.2 1.3", "1.0 1.1 1.2 1.3", "1.0 1.1 1.2 1.3"}},
    {"skipv2",
     R"({"scheme":"skipv1","source_layer":2})",
     kOwn,
     {"o o o o", "o o o o", "o o 2.2 2.3", "o o 2.2 2.3", "o o 2.2 2.3"}},
    {"skipv5", R"({"scheme":"skipv1","source_layer":5})", kOwn, kOwn},
    {"skipv0",
     R"({"scheme":"skipv1","source_layer":0})",
     kOwn,
     {"o o o o", "o o z z", "o o z z", "o o z z", "o o z z"}},
    // Layer l, routed head j: source head (l + j) mod 4, l from 1.
    {"dynamic",
     R"({"scheme":"skipv1","injection":"dynamic"})",
     kOwn,
     {"o o o o", "o o 1.2 1.3", "o o 1.3 1.0", "o o 1.0 1.1", "o o 1.1 1.2"}},
    {"dynamic_skipv2",
     R"({"scheme":"skipv1","injection":"dynamic","source_layer":2})",
     kOwn,
     {"o o o o", "o o o o", "o o 2.3 2.0", "o o 2.0 2.1", "o o 2.1 2.2"}},
    {"odd_even",
     R"({"scheme":"skipv1","injection":"odd-even"})",
     kOwn,
     {"o o o o", "o o 1.2 1.3", "o o 1.0 1.1", "o o 1.2 1.3", "o o 1.0 1.1"}},
    {"pooling",
     R"({"scheme":"skipv1","injection":"pooling"})",
     kOwn,
     {"o o o o", "o o m1.0.2 m1.1.3", "o o m1.0.2 m1.1.3", "o o m1.0.2 m1.1.3",
      "o o m1.0.2 m1.1.3"}},
    {"pooling_three_quarters",
     R"({"scheme":"skipv1","injection":"pooling","ratio":0.75})",
     kOwn,
     {"o o o o", "o m1.0.1 m1.1.2 m1.2.3", "o m1.0.1 m1.1.2 m1.2.3", "o m1.0.1 m1.1.2 m1.2.3",
      "o m1.0.1 m1.1.2 m1.2.3"}},
    {"pooling_all",
     R"({"scheme":"skipv1","injection":"pooling","ratio":1})",
     kOwn,
     {"o o o o", "1.0 1.1 1.2 1.3", "1.0 1.1 1.2 1.3", "1.0 1.1 1.2 1.3", "1.0 1.1 1.2 1.3"}},
    {"skipkv1", R"({"scheme":"skipkv1"})", kSkip, kSkip},
    {"skipv1_yoco",
     R"({"scheme":"skipv1-yoco"})",
     {"o o o o", "o o o o", "2.0 2.1 2.2 2.3", "2.0 2.1 2.2 2.3", "2.0 2.1 2.2 2.3"},
     kSkip},
    {"skipv1_yoco_start",
     R"({"scheme":"skipv1-yoco","start":4})",
     {"o o o o", "o o o o", "o o o o", "o o o o", "4.0 4.1 4.2 4.3"},
     kSkip},
    {"yoco",
     R"({"scheme":"yoco"})",
     {"o o o o", "o o o o", "2.0 2.1 2.2 2.3", "2.0 2.1 2.2 2.3", "2.0 2.1 2.2 2.3"},
     {"o o o o", "o o o o", "2.0 2.1 2.2 2.3", "2.0 2.1 2.2 2.3", "2.0 2.1 2.2 2.3"}},
    {"yoco_start_last", R"({"scheme":"yoco","start":5})", kOwn, kOwn},
    {"yoco_v",
     R"({"scheme":"yoco-v","start":3})",
     kOwn,
     {"o o o o", "o o o o", "o o o o", "3.0 3.1 3.2 3.3", "3.0 3.1 3.2 3.3"}},
    {"cla",
     R"({"scheme":"cla"})",
     {"o o o o", "1.0 1.1 1.2 1.3", "o o o o", "3.0 3.1 3.2 3.3", "o o o o"},
     {"o o o o", "1.0 1.1 1.2 1.3", "o o o o", "3.0 3.1 3.2 3.3", "o o o o"}},
    {"cla_v",
     R"({"scheme":"cla-v","group":3})",
     kOwn,
     {"o o o o", "1.0 1.1 1.2 1.3", "1.0 1.1 1.2 1.3", "o o o o", "4.0 4.1 4.2 4.3"}},
    {"cla_one", R"({"scheme":"cla","group":1})", kOwn, kOwn},
    {"svformer",
     R"({"scheme":"svformer"})",
     kOwn,
     {"o o o o", "1.0 1.1 1.2 1.3", "1.0 1.1 1.2 1.3", "1.0 1.1 1.2 1.3", "1.0 1.1 1.2 1.3"}},
    {"split",
     R"({"scheme":"split","keys":{"scheme":"cla"},"values":{"scheme":"skipv1"}})",
     {"o o o o", "1.0 1.1 1.2 1.3", "o o o o", "3.0 3.1 3.2 3.3", "o o o o"},
     kSkip},
    {"split_of_split",
     R"({"scheme":"split","keys":{"scheme":"skipv1"},
         "values":{"scheme":"split","keys":{"scheme":"yoco"},"values":{"scheme":"skipkv1"}}})",
     kOwn, kSkip},
    {"explicit",
     R"({"scheme":"explicit",
         "keys":[["own","own","own","own"],["own",[1,1],"own","own"],["own","own",[2,0],[1,3]],
                 ["own","own","own","own"],[[4,3],[4,3],[1,0],"own"]],
         "values":[["own","own","zero","own"],[["mean",1,0,3],"own","own","zero"],
                   [[2,1],[2,2],[1,0],"own"],["zero","zero","zero","zero"],
                   [["mean",3,3,3],"own",["mean",2,2,1],[1,1]]]})",
     {"o o o o", "o 1.1 o o", "o o 2.0 1.3", "o o o o", "4.3 4.3 1.0 o"},
     {"o o z o", "m1.0.3 o o z", "2.1 2.2 1.0 o", "z z z z", "3.3 o m2.2.1 1.1"}},
};
INSTANTIATE_TEST_SUITE_P(All, Schemes, testing::ValuesIn(kCases),
                         [](const auto& test) { return std::string(test.param.name); });

TEST(KvPlan, OwnHeadsAndTheirRows) {
  const KvPlan plan = plan_of(
      R"({"scheme":"explicit","keys":[["own","own"],["own","own"]],"values":[["zero","own"],[[1,1],"own"]]})",
      2, 2);
  EXPECT_EQ(plan.own_value_heads(0), (std::vector<int64_t>{1}));
  EXPECT_EQ(plan.own_value_heads(1), (std::vector<int64_t>{1}));
  EXPECT_EQ(plan.values[0][1].head, 0);  // row 0 of a one-head v_proj
  EXPECT_EQ(plan.values[1][1].head, 0);
  EXPECT_EQ(plan.own_key_heads(1), (std::vector<int64_t>{0, 1}));
  EXPECT_EQ(plan.keys[1][1].head, 1);
}

TEST(KvPlan, OneLayerSharesNothing) {
  for (const char* scheme :
       {"none", "skipv1", "skipkv1", "skipv1-yoco", "yoco", "yoco-v", "cla", "cla-v", "svformer"}) {
    const KvPlan plan = plan_of(fmt::format(R"({{"scheme":"{}"}})", scheme), 1);
    EXPECT_EQ(words(plan.keys), Rows{"o o o o"}) << scheme;
    EXPECT_EQ(words(plan.values), Rows{"o o o o"}) << scheme;
  }
}

TEST(KvPlan, RatioToleratesRoundingOnly) {
  const char* near = R"({"scheme":"skipv1","ratio":0.6666667})";
  const auto six_heads = [](const std::string& sharing) {
    Json json = small_config(parse_json(sharing, "test"), 2, 6);
    json["num_attention_heads"] = 6;
    json["head_dim"] = 4;
    return words(build_kv_plan(parse_model_config(json, "test")).values)[1];
  };
  EXPECT_EQ(six_heads(near), "o o 1.2 1.3 1.4 1.5");
  EXPECT_THROW(six_heads(R"({"scheme":"skipv1","ratio":0.66667})"), ConfigError);
}

std::string problem_of(const std::string& sharing) {
  try {
    plan_of(sharing);
  } catch (const ConfigError& e) {
    return e.what();
  }
  return "no error";
}

TEST(KvPlan, ErrorsNameThePlaceFromOne) {
  const auto explicit_values = [](const std::string& last_row) {
    return R"({"scheme":"explicit","keys":[["own","own","own","own"],["own","own","own","own"],
      ["own","own","own","own"],["own","own","own","own"],["own","own","own","own"]],
      "values":[["own","own","own","zero"],[[1,0],"own","own","own"],["own","own","own","own"],
      ["own","own","own","own"],)" +
           last_row + "]}";
  };
  const std::pair<std::string, std::string> cases[] = {
      {R"({"scheme":"skipv1","ratio":0.3})", "kv_sharing.ratio: expected a ratio from 0 to 1"},
      {R"({"scheme":"skipv1","ratio":1.5})", "kv_sharing.ratio"},
      {R"({"scheme":"skipv1","ratio":-0.5})", "kv_sharing.ratio"},
      {R"({"scheme":"skipv1","ratio":"0.5"})", "kv_sharing.ratio"},
      {R"({"scheme":"skipv1","source_layer":6})", "expected a layer from 1 to 5"},
      {R"({"scheme":"skipv1","source_layer":-1})", "kv_sharing.source_layer"},
      {R"({"scheme":"skipv1","injection":"odd-even","ratio":0.25})", "ratio 0.5"},
      {R"({"scheme":"skipv1","injection":"tails"})", "did you mean \"tail\""},
      {R"({"scheme":"skipv2"})", "did you mean \"skip"},
      {R"({"scheme":"skipv1","ratoi":0.5})", "did you mean \"ratio\""},
      {R"({"scheme":"skipkv1","injection":"tail"})", "unknown key \"injection\""},
      {R"({"ratio":0.5})", "kv_sharing.scheme"},
      {R"(["skipv1"])", "kv_sharing: expected an object"},
      {R"({"scheme":"yoco","start":6})", "kv_sharing.start"},
      {R"({"scheme":"yoco","start":0})", "kv_sharing.start"},
      {R"({"scheme":"cla","group":0})", "kv_sharing.group"},
      {R"({"scheme":"split","keys":{"scheme":"cla"}})", "kv_sharing.values"},
      {R"({"scheme":"split","keys":{"scheme":"cla"},"values":{"scheme":"skipv1","ratio":0.4}})",
       "kv_sharing.values.ratio"},
      {R"({"scheme":"explicit","keys":[],"values":[]})", "one row per layer, 5 in all; got 0"},
      {R"({"scheme":"explicit","values":[]})", "kv_sharing.keys"},
      {explicit_values(R"(["own","own","own"])"), "layer 5: expected one source per KV head, 4"},
      {explicit_values(R"([[5,0],"own","own","own"])"),
       "layer 5 head 0: expected a source in an earlier"},
      {explicit_values(R"([[6,0],"own","own","own"])"), "earlier layer; got layer 6"},
      {explicit_values(R"([[0,0],"own","own","own"])"), "earlier layer; got layer 0"},
      {explicit_values(R"(["own",[1,4],"own","own"])"),
       "layer 5 head 1: expected a source head from 0 to 3"},
      {explicit_values(R"(["own",[2,0],"own","own"])"),
       "got layer 2 head 0, which is layer 1 head 0"},
      {explicit_values(R"(["own","own",[1,3],"own"])"), "got layer 1 head 3, which is zero"},
      {explicit_values(R"(["own","own",["mean",1,0,3],"own"])"), "layer 1 head 3, which is zero"},
      {explicit_values(R"(["own","own",["mean",1,0],"own"])"), "layer 5 head 2: expected \"own\""},
      {explicit_values(R"(["own","own",["average",1,0,1],"own"])"), "layer 5 head 2"},
      {explicit_values(R"(["own","own",[1.0,0],"own"])"), "layer 5 head 2"},
      {explicit_values(R"(["own","own",[1,99999999999999999999],"own"])"), "layer 5 head 2"},
      {explicit_values(R"(["own","own",null,"own"])"), "layer 5 head 2"},
      {explicit_values(R"("own")"), "layer 5: expected one source per KV head"},
  };
  for (const auto& [sharing, expected] : cases) {
    const std::string message = problem_of(sharing);
    EXPECT_NE(message.find(expected), std::string::npos) << sharing << "\n" << message;
  }
}

TEST(KvPlan, KeysKnowNeitherZeroNorMean) {
  const auto keys = [](const std::string& source) {
    return R"({"scheme":"explicit","values":[["own","own","own","own"],["own","own","own","own"],
      ["own","own","own","own"],["own","own","own","own"],["own","own","own","own"]],
      "keys":[["own","own","own","own"],["own","own","own","own"],["own","own","own","own"],
      ["own","own","own","own"],["own","own","own",)" +
           source + "]]}";
  };
  EXPECT_EQ(problem_of(keys("[1,1]")), "no error");
  EXPECT_NE(problem_of(keys("\"zero\"")).find("layer 5 head 3"), std::string::npos);
  EXPECT_NE(problem_of(keys("[\"mean\",1,0,1]")).find("layer 5 head 3"), std::string::npos);
}

TEST(KvPlan, BuiltFromCodeIsCheckedToo) {
  ModelConfig config;
  EXPECT_THROW(build_kv_plan(config), ArgumentError);
  config.num_hidden_layers = int64_t{1} << 40;
  config.num_key_value_heads = 4;
  EXPECT_THROW(build_kv_plan(config), ArgumentError);
  config.num_hidden_layers = 3;
  config.kv_sharing.scheme = "skipv9";
  EXPECT_THROW(build_kv_plan(config), ConfigError);
  config.kv_sharing.scheme = "split";
  EXPECT_THROW(build_kv_plan(config), ConfigError);
  config.kv_sharing.scheme = "explicit";
  EXPECT_THROW(build_kv_plan(config), ConfigError);
}

TEST(KvPlan, Describe) {
  EXPECT_EQ(describe({KvSource::Kind::kOwn, 0, 2, 0}), "own");
  EXPECT_EQ(describe({KvSource::Kind::kFrom, 0, 3, 0}), "layer 1 head 3");
  EXPECT_EQ(describe({KvSource::Kind::kMean, 0, 0, 3}), "mean of layer 1 heads 0, 3");
  EXPECT_EQ(describe({KvSource::Kind::kZero, 0, 0, 0}), "zero");
}

}  // namespace
}  // namespace heirloom
