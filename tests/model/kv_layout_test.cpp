// SPDX-License-Identifier: Apache-2.0
#include "heirloom/model/kv_layout.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>

#include "heirloom/core/error.h"

namespace heirloom {
namespace {

Json config_json(int64_t layers, int64_t heads, int64_t kv_heads, int64_t head_dim,
                 const Json& sharing) {
  return {{"model_type", "heirloom"},
          {"vocab_size", 32},
          {"hidden_size", 64},
          {"intermediate_size", 48},
          {"num_hidden_layers", layers},
          {"num_attention_heads", heads},
          {"num_key_value_heads", kv_heads},
          {"head_dim", head_dim},
          {"max_position_embeddings", 16},
          {"kv_sharing", sharing}};
}

KvLayout layout_of(const Json& json) {
  const ModelConfig config = parse_model_config(json, "test");
  return build_kv_layout(config, build_kv_plan(config));
}

KvLayout layout_of(int64_t layers, int64_t heads, int64_t head_dim, const std::string& sharing) {
  return layout_of(config_json(layers, heads, heads, head_dim, parse_json(sharing, "test")));
}

Json with_mla(Json json, int64_t rank, int64_t rope) {
  json["attention"] = {{"kind", "mla"},
                       {"kv_lora_rank", rank},
                       {"qk_rope_head_dim", rope},
                       {"qk_nope_head_dim", 64},
                       {"v_head_dim", 48}};
  return json;
}

// The published table: elements per token of six model shapes.
struct Shape {
  int64_t layers, heads, head_dim;
};
constexpr Shape kShapes[] = {{12, 12, 64}, {24, 16, 64}, {28, 20, 60},
                             {24, 32, 64}, {32, 32, 80}, {32, 32, 128}};
struct Row {
  const char* sharing;
  int64_t elements[6];
};
constexpr Row kRows[] = {
    {R"({"scheme":"none"})", {18432, 49152, 67200, 98304, 163840, 262144}},
    {R"({"scheme":"skipv1"})", {14208, 37376, 51000, 74752, 124160, 198656}},
    {R"({"scheme":"skipv1","ratio":0.25})", {16320, 43264, 59100, 86528, 144000, 230400}},
    {R"({"scheme":"skipv1","ratio":0.75})", {12096, 31488, 42900, 62976, 104320, 166912}},
    {R"({"scheme":"skipv1","source_layer":2})", {14592, 37888, 51600, 75776, 125440, 200704}},
    {R"({"scheme":"skipv1","source_layer":3})", {14976, 38400, 52200, 76800, 126720, 202752}},
    {R"({"scheme":"skipv1","source_layer":4})", {15360, 38912, 52800, 77824, 128000, 204800}},
    {R"({"scheme":"skipv1","source_layer":0})", {14208, 37376, 51000, 74752, 124160, 198656}},
    {R"({"scheme":"skipv1","injection":"dynamic"})", {14208, 37376, 51000, 74752, 124160, 198656}},
    {R"({"scheme":"skipv1","injection":"odd-even"})", {14208, 37376, 51000, 74752, 124160, 198656}},
    {R"({"scheme":"skipv1","injection":"pooling"})", {14208, 37376, 51000, 74752, 124160, 198656}},
    {R"({"scheme":"skipkv1"})", {9984, 25600, 34800, 51200, 84480, 135168}},
    {R"({"scheme":"skipv1-yoco"})", {9600, 25088, 34200, 50176, 83200, 133120}},
    {R"({"scheme":"yoco-v"})", {13824, 36864, 50400, 73728, 122880, 196608}},
    {R"({"scheme":"yoco"})", {9216, 24576, 33600, 49152, 81920, 131072}},
    {R"({"scheme":"cla-v"})", {13824, 36864, 50400, 73728, 122880, 196608}},
    {R"({"scheme":"cla-v","group":3})", {12288, 32768, 45600, 65536, 110080, 176128}},
    {R"({"scheme":"cla"})", {9216, 24576, 33600, 49152, 81920, 131072}},
    {R"({"scheme":"cla","group":3})", {6144, 16384, 24000, 32768, 56320, 90112}},
    {R"({"scheme":"svformer"})", {9984, 25600, 34800, 51200, 84480, 135168}},
};

TEST(KvLayout, ElementsPerTokenAreThePublishedOnes) {
  for (const Row& row : kRows) {
    for (size_t i = 0; i < std::size(kShapes); ++i) {
      const Shape& s = kShapes[i];
      const KvLayout layout = layout_of(s.layers, s.heads, s.head_dim, row.sharing);
      EXPECT_EQ(layout.elements_per_token(), row.elements[i]) << row.sharing << " shape " << i;
      EXPECT_EQ(layout.baseline_elements_per_token, kRows[0].elements[i]);
    }
  }
  EXPECT_EQ(layout_of(8, 8, 64, R"({"scheme":"none"})").elements_per_token(), 8192);
  EXPECT_EQ(layout_of(8, 8, 64, R"({"scheme":"skipv1"})").elements_per_token(), 6400);
}

TEST(KvLayout, GroupedAndLatentConstants) {
  const Json none = {{"scheme", "none"}}, skip = {{"scheme", "skipv1"}};
  EXPECT_EQ(layout_of(config_json(24, 16, 8, 64, none)).elements_per_token(), 24576);
  EXPECT_EQ(layout_of(config_json(24, 16, 8, 64, skip)).elements_per_token(), 18688);
  const KvLayout mla = layout_of(with_mla(config_json(24, 16, 16, 64, none), 256, 32));
  EXPECT_EQ(mla.elements_per_token(), 6912);
  EXPECT_EQ(mla.baseline_elements_per_token, 49152);
  const KvLayout skip_mla = layout_of(with_mla(config_json(24, 16, 16, 64, skip), 256, 32));
  EXPECT_EQ(skip_mla.elements_per_token(), 3968);
  EXPECT_EQ(skip_mla.read_elements_per_token(), 24 * (256 + 32));
  EXPECT_EQ(skip_mla.read_elements_per_token_resident(), 24 * (128 + 32) + 128);
}

TEST(KvLayout, StreamsOfSkipV1) {
  const KvLayout layout = layout_of(3, 4, 8, R"({"scheme":"skipv1"})");
  ASSERT_EQ(layout.streams.size(), 7u);  // k1 v1 v1-shared k2 v2 k3 v3
  const KvStream& own = layout.streams[1];
  const KvStream& shared = layout.streams[2];
  EXPECT_EQ(own.kind, StreamKind::kValue);
  EXPECT_EQ(own.heads, (std::vector<int64_t>{0, 1}));
  EXPECT_FALSE(own.shared);
  EXPECT_EQ(own.readers, (std::vector<int64_t>{0}));
  EXPECT_EQ(own.width, 16);
  EXPECT_EQ(shared.layer, 0);
  EXPECT_EQ(shared.heads, (std::vector<int64_t>{2, 3}));
  EXPECT_TRUE(shared.shared);
  EXPECT_EQ(shared.readers, (std::vector<int64_t>{0, 1, 2}));
  EXPECT_EQ(layout.streams_of(0), (std::vector<int64_t>{0, 1, 2}));
  EXPECT_EQ(layout.streams_of(2), (std::vector<int64_t>{5, 6}));
  EXPECT_EQ(layout.values[2][0].stream, 6);
  EXPECT_EQ(layout.values[2][1].column, 8);
  EXPECT_EQ(layout.values[2][3].stream, 2);
  EXPECT_EQ(layout.values[2][3].column, 8);
  EXPECT_EQ(layout.values[0][3].stream, 2);
  EXPECT_EQ(layout.last_writing_layer(), 2);
  EXPECT_EQ(layout.read_elements_per_token(), 3 * 4 * 8 * 2);
  // Private: 3 x 32 keys, 16 values per layer; the shared 16 once.
  EXPECT_EQ(layout.read_elements_per_token_resident(), 96 + 48 + 16);
}

TEST(KvLayout, PoolingReadsBothHeadsAndStoresNoMean) {
  const KvLayout layout = layout_of(3, 4, 8, R"({"scheme":"skipv1","injection":"pooling"})");
  // Every head of layer 1 is read later, so it has no private values.
  ASSERT_EQ(layout.streams_of(0).size(), 2u);
  const KvStream& shared = layout.streams[1];
  EXPECT_TRUE(shared.shared);
  EXPECT_EQ(shared.heads, (std::vector<int64_t>{0, 1, 2, 3}));
  const KvAddress& mean = layout.values[1][3];  // heads 1 and 3 of layer 1
  EXPECT_EQ(mean.stream, 1);
  EXPECT_EQ(mean.column, 8);
  EXPECT_EQ(mean.second_stream, 1);
  EXPECT_EQ(mean.second_column, 24);
  EXPECT_EQ(layout.elements_per_token(), 3 * 32 + 32 + 2 * 16);
  EXPECT_EQ(layout.read_elements_per_token(), 3 * 32 + 32 + 2 * (16 + 2 * 16));
}

TEST(KvLayout, ZeroHeadsLieNowhere) {
  const KvLayout layout = layout_of(2, 4, 8, R"({"scheme":"skipv1","source_layer":0})");
  EXPECT_EQ(layout.values[1][2].stream, -1);
  EXPECT_EQ(layout.values[1][1].stream, 3);
  EXPECT_EQ(layout.read_elements_per_token(), 2 * 32 + 32 + 16);
}

TEST(KvLayout, UpperHalfOfYocoWritesNothing) {
  const KvLayout layout = layout_of(6, 4, 8, R"({"scheme":"yoco"})");
  EXPECT_EQ(layout.last_writing_layer(), 2);
  EXPECT_TRUE(layout.streams_of(3).empty());
  EXPECT_EQ(layout_of(6, 4, 8, R"({"scheme":"skipv1-yoco"})").last_writing_layer(), 5);
}

TEST(KvLayout, LatentStreams) {
  Json json = with_mla(config_json(3, 4, 4, 16, {{"scheme", "skipv1"}, {"ratio", 0.25}}), 32, 8);
  const KvLayout layout = layout_of(json);
  ASSERT_EQ(layout.streams.size(), 7u);  // own tail rope | own rope | own rope
  EXPECT_EQ(layout.streams[0].kind, StreamKind::kLatent);
  EXPECT_EQ(layout.streams[0].width, 24);
  EXPECT_FALSE(layout.streams[0].shared);
  EXPECT_EQ(layout.streams[1].width, 8);
  EXPECT_TRUE(layout.streams[1].shared);
  EXPECT_EQ(layout.streams[1].readers, (std::vector<int64_t>{0, 1, 2}));
  EXPECT_EQ(layout.streams[2].kind, StreamKind::kRopeKey);
  EXPECT_EQ(layout.streams[3].width, 24);
  ASSERT_EQ(layout.values[2].size(), 2u);
  EXPECT_EQ(layout.values[2][0].stream, 5);
  EXPECT_EQ(layout.values[2][1].stream, 1);
  EXPECT_EQ(layout.keys[2][0].stream, 6);
  EXPECT_EQ(layout.qk_dim, 72);
  EXPECT_EQ(layout.v_dim, 48);
  json["kv_sharing"]["ratio"] = 1;
  EXPECT_EQ(layout_of(json).elements_per_token(), 32 + 3 * 8);
  json["kv_sharing"]["ratio"] = 0;
  EXPECT_EQ(layout_of(json).elements_per_token(), 3 * (32 + 8));
}

TEST(KvLayout, Report) {
  const ModelConfig config =
      parse_model_config(config_json(2, 4, 2, 8, {{"scheme", "skipv1"}}), "test");
  const Json report =
      kv_report(config, build_kv_layout(config, build_kv_plan(config)), Dtype::kBFloat16);
  EXPECT_EQ(report["scheme"], "skipv1");
  EXPECT_EQ(report["elements_per_token"], 2 * 16 + 16 + 8);
  EXPECT_EQ(report["bytes_per_token"], 112);
  EXPECT_EQ(report["dtype"], "bfloat16");
  EXPECT_EQ(report["baseline_elements_per_token"], 2 * 2 * 4 * 8);
  EXPECT_DOUBLE_EQ(report["reduction"].get<double>(), 1 - 56.0 / 128);
  EXPECT_EQ(report["read_bytes_per_token_per_step"], 2 * 64);
  EXPECT_EQ(report["read_bytes_per_token_per_step_shared_resident"], 2 * 56);
  ASSERT_EQ(report["streams"].size(), 5u);
  int64_t sum = 0;
  for (const Json& stream : report["streams"]) sum += stream["elements_per_token"].get<int64_t>();
  EXPECT_EQ(sum, 56);
  const Json& shared = report["streams"][2];
  EXPECT_EQ(shared["layer"], 1);
  EXPECT_EQ(shared["kind"], "v");
  EXPECT_EQ(shared["heads"], 1);
  EXPECT_EQ(shared["shared"], true);
  EXPECT_EQ(shared["readers"], Json({1, 2}));
  EXPECT_EQ(report["streams"][1]["readers"], Json({1}));
}

TEST(KvLayout, RefusesThePlanOfAnotherConfig) {
  const ModelConfig a = parse_model_config(config_json(2, 4, 4, 8, {{"scheme", "none"}}), "a");
  const ModelConfig b = parse_model_config(config_json(3, 4, 4, 8, {{"scheme", "none"}}), "b");
  EXPECT_THROW(build_kv_layout(a, build_kv_plan(b)), ArgumentError);
}

TEST(KvLayout, GoldenModels) {
  const char* data = std::getenv("HEIRLOOM_TEST_DATA");
  if (data == nullptr) GTEST_SKIP() << "HEIRLOOM_TEST_DATA is unset: golden model configs";
  int found = 0;
  for (const char* folder : {"golden", "golden_hf"}) {
    const std::filesystem::path root = std::filesystem::path(data) / folder;
    if (!std::filesystem::is_directory(root)) continue;
    for (const auto& entry : std::filesystem::directory_iterator(root)) {
      const std::string name = entry.path().filename();
      if (std::string(folder) == "golden_hf" && !name.starts_with("llama-")) continue;
      const Json expected = read_json_file((entry.path() / "expected.json").string());
      const ModelConfig config = read_model_config(entry.path().string());
      const KvLayout layout = build_kv_layout(config, build_kv_plan(config));
      EXPECT_EQ(layout.elements_per_token(), expected["kv_elements_per_token"].get<int64_t>())
          << name;
      EXPECT_EQ(count_parameters(config).total(), expected["parameters"].get<int64_t>()) << name;
      const Json written = model_config_json(config);
      EXPECT_EQ(model_config_json(parse_model_config(written, name)), written) << name;
      ++found;
    }
  }
  EXPECT_GT(found, 0);
}

}  // namespace
}  // namespace heirloom
