// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <fstream>

#include "evaluate/tiny_model.h"
#include "heirloom/data/token_shard.h"
#include "tools/run_binary.h"

namespace heirloom {
namespace {

using test::run_binary;

class PerplexityCommand : public test::BinaryTest {
 protected:
  PerplexityCommand() {
    test::write_text(folder_ / "tokenizer.json", test::byte_tokenizer_json());
    test::write_tiny_model(folder_ / "model", test::tiny_config_json(), 0.2,
                           folder_ / "tokenizer.json");
    Json learned = test::tiny_config_json();
    learned["position"] = "learned";
    test::write_tiny_model(folder_ / "learned", learned, 0.2);
  }

  std::string file(const std::string& name, std::string_view contents) {
    test::write_text(folder_ / name, contents);
    return (folder_ / name).string();
  }
  test::BinaryResult perplexity(const std::string& data, std::vector<std::string> more = {},
                                const std::string& model = "model") {
    std::vector<std::string> all = {"perplexity", "--model", (folder_ / model).string(), "--data",
                                    data};
    all.insert(all.end(), more.begin(), more.end());
    return run_binary(all);
  }
  Json result_of(const std::string& data, std::vector<std::string> more = {}) {
    more.insert(more.end(), {"--json", "-"});
    const test::BinaryResult r = perplexity(data, more);
    EXPECT_EQ(r.code, 0) << r.err;
    return parse_json(r.out, "stdout");
  }
  std::vector<std::vector<double>> dump_of(const std::string& data,
                                           std::vector<std::string> more = {}) {
    const std::string path = (folder_ / "dump.jsonl").string();
    more.insert(more.end(), {"--dump-nll", path});
    result_of(data, more);
    std::ifstream in(path);
    std::vector<std::vector<double>> all;
    for (std::string line; std::getline(in, line);) {
      all.push_back(Json::parse(line).at("nll").get<std::vector<double>>());
    }
    return all;
  }

  test::TemporaryDirectory folder_;
};

TEST_F(PerplexityCommand, TextSlides) {
  std::string text;
  for (int i = 0; i < 30; ++i) text += "some words ";
  const Json r = result_of(file("a.txt", text));
  EXPECT_EQ(r.at("tokens"), 330) << "the tokenizer's <s> stands in front";
  EXPECT_EQ(r.at("protocol"), "sliding");
  EXPECT_EQ(r.at("context"), 32);
  EXPECT_EQ(r.at("stride"), 32);
  EXPECT_EQ(r.at("dtype"), "float32");
  EXPECT_EQ(r.at("device"), "cpu");
  const double sum = r.at("nll_sum").get<double>();
  EXPECT_NEAR(r.at("nll_mean").get<double>(), sum / 330, 1e-9);
  EXPECT_NEAR(r.at("perplexity").get<double>(), std::exp(sum / 330), 1e-6);
  EXPECT_NEAR(r.at("bits_per_byte").get<double>(), sum / std::log(2.0) / 330, 1e-9);
  EXPECT_NEAR(r.at("word_perplexity").get<double>() / std::exp(sum / 60), 1, 1e-9);
  EXPECT_EQ(result_of(file("a.txt", text), {"--no-special"}).at("tokens"), 329);
}

TEST_F(PerplexityCommand, StridesGiveLongerContexts) {
  const std::string data = file("a.txt", "The quick brown fox jumps over the lazy dog, twice.");
  const auto windows = dump_of(data, {"--context", "16", "--stride", "4"});
  ASSERT_EQ(windows.size(), 10u);  // 51 targets: 16, then 4 each, then what is left
  EXPECT_EQ(windows[0].size(), 16u);
  EXPECT_EQ(windows[1].size(), 4u);
  EXPECT_EQ(windows[9].size(), 3u);
  const auto whole = dump_of(data, {"--context", "16"});
  EXPECT_EQ(whole.size(), 4u);
  EXPECT_NEAR(whole[0][7], windows[0][7], 1e-5);
  EXPECT_GT(std::abs(whole[1][0] - windows[1][0]), 1e-3) << "one token of context, and thirteen";
}

TEST_F(PerplexityCommand, LinesOfJsonlStandAlone) {
  const std::string data =
      file("a.jsonl", "{\"tokens\": [1, 2, 3, 4]}\n{\"tokens\": [7]}\n{\"tokens\": [1, 2, 3]}\n");
  const auto lines = dump_of(data);
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[0].size(), 3u);
  EXPECT_TRUE(lines[1].empty());
  ASSERT_EQ(lines[2].size(), 2u);
  EXPECT_NEAR(lines[0][1], lines[2][1], 1e-5);
  const Json r = result_of(data);
  EXPECT_EQ(r.at("tokens"), 5);
  EXPECT_EQ(r.at("protocol"), "per-line");
  EXPECT_FALSE(r.contains("bits_per_byte"));
  EXPECT_NEAR(r.at("nll_sum").get<double>(),
              lines[0][0] + lines[0][1] + lines[0][2] + lines[2][0] + lines[2][1], 1e-9);
}

TEST_F(PerplexityCommand, ShardsEqualTheSameTokensInJsonl) {
  std::vector<int32_t> tokens(80);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * i % 300);
  TokenShardWriter writer(folder_ / "a.bin", 300);
  writer.append(tokens);
  writer.commit();
  const Json shard = result_of((folder_ / "a.bin").string(), {"--stride", "8"});
  const Json lines = result_of(file("a.jsonl", Json{{"tokens", tokens}}.dump() + "\n"),
                               {"--protocol", "sliding", "--stride", "8"});
  EXPECT_EQ(shard.at("tokens"), 79);
  EXPECT_EQ(shard.at("nll_sum"), lines.at("nll_sum"));
}

TEST_F(PerplexityCommand, TableAndJsonFile) {
  const std::string data = file("a.txt", "some text"), json = (folder_ / "r.json").string();
  const auto r = perplexity(data, {"--json", json, "--dtype", "bfloat16", "--quiet"});
  EXPECT_EQ(r.code, 0);
  EXPECT_EQ(r.err, "");
  EXPECT_NE(r.out.find("perplexity"), std::string::npos);
  EXPECT_NE(r.out.find("bfloat16"), std::string::npos);
  EXPECT_EQ(read_json_file(json).at("dtype"), "bfloat16");
}

TEST_F(PerplexityCommand, BadDataIsOneLineAndExit3) {
  const std::string good = "{\"tokens\": [1, 2]}\n";
  expect_error(perplexity((folder_ / "none.txt").string()), 3, {"none.txt"});
  expect_error(perplexity(file("a.jsonl", good + "{\"tokens\": [1,")), 3, {"a.jsonl", "2"});
  expect_error(perplexity(file("b.jsonl", good + "{\"tokens\": [1, 300]}\n")), 3,
               {"b.jsonl:2", "got 300", "position 1"});
  expect_error(perplexity(file("c.jsonl", "")), 3, {"c.jsonl", "at least two tokens"});
  expect_error(perplexity(file("d.txt", "")), 3, {"d.txt", "empty"});
  expect_error(perplexity(file("e.bin", "odd")), 3, {"e.bin"});
  expect_error(perplexity(file("f.bin", std::string("\x01\x00\xFF\xFF", 4))), 3,
               {"got 65535 at position 1"});
  expect_error(perplexity(file("g.csv", "1")), 3, {"g.csv", ".jsonl"});
  expect_error(perplexity(file("h.txt", "text"), {}, "learned"), 3, {"--tokenizer"});
  std::string line = "{\"tokens\": [0";
  for (int i = 0; i < 33; ++i) line += ", 1";
  expect_error(perplexity(file("i.jsonl", good + line + "]}\n"), {}, "learned"), 3, {"i.jsonl:2"});
}

TEST_F(PerplexityCommand, BadModelsAreOneLine) {
  const std::string data = file("a.jsonl", "{\"tokens\": [1, 2]}\n");
  expect_error(perplexity(data, {}, "nowhere"), 3, {"nowhere"});
  fs::create_directory(folder_ / "empty");
  expect_error(perplexity(data, {}, "empty"), 3, {"config.json"});
  fs::copy(folder_ / "model" / "config.json", folder_ / "empty");
  expect_error(perplexity(data, {}, "empty"), 3, {"model.safetensors"});
  const std::string weights = test::read_all(folder_ / "model" / "model.safetensors");
  test::write_text(folder_ / "empty" / "model.safetensors", weights.substr(0, weights.size() - 8));
  expect_error(perplexity(data, {}, "empty"), 3, {"model.safetensors"});
  Json config = test::tiny_config_json();
  config["num_hidden_layers"] = 2;
  test::write_text(folder_ / "model" / "config.json", config.dump());
  expect_error(perplexity(data), 3, {"model.layers.2."});
  config["hiden_size"] = 2;
  test::write_text(folder_ / "model" / "config.json", config.dump());
  expect_error(perplexity(data), 2, {"hiden_size", "hidden_size"});
}

TEST_F(PerplexityCommand, WrongUsageIsExit2) {
  const std::string text = file("a.txt", "text");
  EXPECT_EQ(run_binary({"perplexity"}).code, 2);
  EXPECT_EQ(perplexity(text, {"--context", "0"}).code, 2);
  EXPECT_EQ(perplexity(text, {"--protocol", "other"}).code, 2);
  EXPECT_EQ(perplexity(text, {"--unknown"}).code, 2);
  expect_error(perplexity(text, {"--context", "8", "--stride", "9"}), 2, {"--stride", "got 9"});
  expect_error(perplexity(text, {"--dtype", "int4"}), 2, {"int4"});
  expect_error(perplexity(text, {"--device", "tpu"}), 2, {"tpu"});
  expect_error(perplexity(text, {"--context", "33"}, "learned"), 2, {"32", "33"});
  expect_error(perplexity(file("a.bin", "ab"), {"--protocol", "per-line"}), 2, {"sliding"});
  EXPECT_EQ(run_binary({"perplexity", "--help"}).code, 0);
}

TEST_F(PerplexityCommand, AFailedRunLeavesNoDump) {
  const std::string dump = (folder_ / "dump.jsonl").string();
  EXPECT_EQ(perplexity(file("a.jsonl", "{\"tokens\": [1, 999]}\n"), {"--dump-nll", dump}).code, 3);
  EXPECT_FALSE(fs::exists(dump));
}

TEST_F(PerplexityCommand, InfoDescribesTheModel) {
  const auto r =
      run_binary({"info", "--model", (folder_ / "model").string(), "--kernels", "--json", "-"});
  ASSERT_EQ(r.code, 0) << r.err;
  const Json info = parse_json(r.out, "stdout");
  EXPECT_GT(info.at("threads").get<int>(), 0);
  EXPECT_FALSE(info.at("isa").get<std::string>().empty());
  EXPECT_GT(info.at("kernels").size(), 5u);
  const Json& model = info.at("model");
  // Layer 1 caches 2 x 32 elements, two more layers 32 + 16.
  EXPECT_EQ(model.at("kv").at("elements_per_token"), 160);
  EXPECT_EQ(model.at("stored").at("elements_by_dtype").at("F32"),
            model.at("parameters").at("total"));
  const auto table = run_binary({"info", "--model", (folder_ / "model").string()});
  EXPECT_EQ(table.code, 0);
  EXPECT_NE(table.out.find("model.safetensors"), std::string::npos);
  expect_error(run_binary({"info", "--model", (folder_ / "nowhere").string()}), 3, {"nowhere"});
}

}  // namespace
}  // namespace heirloom
