// SPDX-License-Identifier: Apache-2.0
#include <fstream>

#include "evaluate/tiny_model.h"
#include "tools/run_binary.h"

namespace heirloom {
namespace {

using test::run_binary;

class GenerateCommand : public test::BinaryTest {
 protected:
  GenerateCommand() {
    test::write_text(folder_ / "tokenizer.json", test::byte_tokenizer_json());
    test::write_tiny_model(folder_ / "model", test::tiny_config_json(), 0.2,
                           folder_ / "tokenizer.json");
    test::write_tiny_model(folder_ / "bare", test::tiny_config_json(), 0.2);
  }

  std::string path(const std::string& name) { return (folder_ / name).string(); }
  std::string file(const std::string& name, std::string_view contents) {
    test::write_text(folder_ / name, contents);
    return path(name);
  }
  test::BinaryResult generate(std::vector<std::string> more, const std::string& model = "model") {
    std::vector<std::string> all = {"generate", "--model", path(model), "--quiet"};
    all.insert(all.end(), more.begin(), more.end());
    return run_binary(all);
  }
  std::vector<Json> lines_of(const std::string& name) {
    std::ifstream in(path(name));
    std::vector<Json> lines;
    for (std::string line; std::getline(in, line);) lines.push_back(Json::parse(line));
    return lines;
  }

  test::TemporaryDirectory folder_;
};

TEST_F(GenerateCommand, SummaryCountsTheCacheAsKvDoes) {
  const std::string prompts = file("p.jsonl", "{\"tokens\":[1,2,3,4,5]}\n{\"tokens\":[9]}\n");
  const auto r = generate({"--prompts", prompts, "--out", path("o.jsonl"), "--max-new-tokens", "7",
                           "--temperature", "0", "--json", "-"});
  ASSERT_EQ(r.code, 0) << r.err;
  const Json summary = parse_json(r.out, "stdout");
  const auto kv = run_binary({"kv", "--model", path("model"), "--dtype", "float32", "--json", "-"});
  ASSERT_EQ(kv.code, 0) << kv.err;
  const int64_t per_token = parse_json(kv.out, "stdout").at("bytes_per_token").get<int64_t>();
  const int64_t cached = (5 + 7 - 1) + (1 + 7 - 1);  // the last new token is not fed again
  EXPECT_EQ(summary.at("cached_tokens").get<int64_t>(), cached);
  EXPECT_EQ(summary.at("cache_used_bytes").get<int64_t>(), cached * per_token);
  int64_t by_stream = 0;
  for (const Json& s : summary.at("streams")) by_stream += s.at("used_bytes").get<int64_t>();
  EXPECT_EQ(by_stream, cached * per_token);
  EXPECT_EQ(summary.at("sequences").get<int64_t>(), 2);
  EXPECT_EQ(summary.at("tokens").get<int64_t>(), 14);
}

TEST_F(GenerateCommand, RerunSkipsWhatIsFinishedAndMendsATornLine) {
  std::string text;
  for (int i = 0; i < 6; ++i)
    text += fmt::format("{{\"id\":\"p{}\",\"tokens\":[{},7,9]}}\n", i, i + 1);
  const std::string prompts = file("p.jsonl", text);
  const std::vector<std::string> run = {"--prompts",        prompts, "--out",  path("o.jsonl"),
                                        "--max-new-tokens", "5",     "--seed", "3"};
  ASSERT_EQ(generate(run).code, 0);
  const std::string whole = test::read_all(path("o.jsonl"));
  ASSERT_EQ(lines_of("o.jsonl").size(), 6u);
  // As a kill would leave it: three lines and a piece of the fourth.
  size_t cut = 0;
  for (int i = 0; i < 3; ++i) cut = whole.find('\n', cut) + 1;
  file("o.jsonl", whole.substr(0, cut + 9));
  ASSERT_EQ(generate(run).code, 0);
  std::map<std::string, Json> first, second;
  std::istringstream in(whole);
  for (std::string line; std::getline(in, line);)
    first[Json::parse(line)["id"]] = Json::parse(line);
  for (const Json& line : lines_of("o.jsonl")) EXPECT_TRUE(second.emplace(line["id"], line).second);
  EXPECT_EQ(first, second);
}

TEST_F(GenerateCommand, BadLinesAreReportedAndTheOthersDone) {
  const std::string prompts =
      file("p.jsonl",
           "{\"id\":\"a\",\"prompt\":\"ok\"}\nnot "
           "json\n{\"id\":\"c\",\"tokens\":[1,99999]}\n{\"id\":\"d\",\"prompt\":\"d\"}\n"
           "{\"id\":\"e\",\"prompt\":\"x\",\"top_p\":7}\n{\"id\":\"f\",\"tokens\":[]}\n");
  const auto r =
      generate({"--prompts", prompts, "--out", path("o.jsonl"), "--max-new-tokens", "3"});
  EXPECT_EQ(r.code, 3) << r.err;
  std::map<std::string, Json> by_id;
  for (const Json& line : lines_of("o.jsonl")) by_id[line["id"]] = line;
  ASSERT_EQ(by_id.size(), 6u);
  EXPECT_EQ(by_id["a"].at("tokens").size(), 3u);
  EXPECT_TRUE(by_id["a"].at("text").is_string());
  for (const char* bad : {"1", "c", "e", "f"}) EXPECT_TRUE(by_id[bad].contains("error")) << bad;
  EXPECT_NE(by_id["c"].at("error").get<std::string>().find("99999"), std::string::npos);
  EXPECT_NE(by_id["e"].at("error").get<std::string>().find("top_p"), std::string::npos);
}

TEST_F(GenerateCommand, RepeatedIdStopsBeforeAnyWork) {
  const std::string prompts =
      file("p.jsonl", "{\"id\":\"a\",\"tokens\":[1]}\n{\"id\":\"a\",\"tokens\":[2]}\n");
  expect_error(generate({"--prompts", prompts, "--out", path("o.jsonl")}), 3,
               {"\"a\"", "p.jsonl:2"});
  EXPECT_FALSE(fs::exists(path("o.jsonl")));
}

TEST_F(GenerateCommand, OverridesPerLineAndMissingIds) {
  const std::string prompts = file("p.jsonl",
                                   "{\"tokens\":[1,2],\"max_new_tokens\":2,\"temperature\":0}\n\n{"
                                   "\"tokens\":[1,2],\"logprobs\":true}\n");
  ASSERT_EQ(generate({"--prompts", prompts, "--out", path("o.jsonl"), "--max-new-tokens", "4",
                      "--temperature", "0"},
                     "bare")
                .code,
            0);
  std::map<std::string, Json> by_id;
  for (const Json& line : lines_of("o.jsonl")) by_id[line["id"]] = line;
  ASSERT_TRUE(by_id.contains("0") && by_id.contains("2"));  // the line's number from 0
  EXPECT_EQ(by_id["0"].at("tokens").size(), 2u);
  EXPECT_EQ(by_id["2"].at("logprobs").size(), 4u);
  EXPECT_TRUE(by_id["2"].at("text").is_null());
  EXPECT_EQ(by_id["0"].at("tokens")[0], by_id["2"].at("tokens")[0]);
}

TEST_F(GenerateCommand, DamagedFilesOfTheModelAreNamedInOneLine) {
  const std::string prompts = file("p.jsonl", "{\"tokens\":[1]}\n");
  const std::string generation = "bare/generation_config.json";
  for (const char* text : {"{\"temperature\":\"hot\"}", "{\"top_k\":-1}", "{\"top_p\":2}", "["}) {
    file(generation, text);
    expect_error(generate({"--prompts", prompts}, "bare"), 3, {path(generation)});
  }
  fs::remove(path(generation));
  fs::create_symlink("generation_config.json", path(generation));
  expect_error(generate({"--prompts", prompts}, "bare"), 3, {path(generation), "symbolic links"});
  fs::remove(path(generation));
  const std::string weights = test::read_all(path("bare/model.safetensors"));
  const std::string name = "model.norm.weight";
  std::string renamed = weights;
  renamed.replace(weights.find(name), name.size(), "model.\\nor.weight");  // "\n" in JSON
  file("bare/model.safetensors", renamed);
  expect_error(generate({"--prompts", prompts}, "bare"), 3, {path("bare")});
}

TEST_F(GenerateCommand, FinishedLinesOfOtherKindsArePassedOver) {
  const std::string prompts = file("p.jsonl", "{\"tokens\":[1]}\n");
  file("o.jsonl", "{\"id\":7,\"tokens\":[1]}\n[]\n");
  const auto r =
      generate({"--prompts", prompts, "--out", path("o.jsonl"), "--max-new-tokens", "1"});
  EXPECT_EQ(r.code, 0) << r.err;
  EXPECT_EQ(lines_of("o.jsonl").size(), 3u);
}

TEST_F(GenerateCommand, StopStringEndsTheTextBeforeIt) {
  const auto plain = generate({"--prompt", "ab", "--max-new-tokens", "24", "--temperature", "0"});
  ASSERT_EQ(plain.code, 0) << plain.err;
  const std::string prompts = file("p.jsonl", "{\"id\":\"x\",\"prompt\":\"ab\"}\n");
  ASSERT_EQ(generate({"--prompts", prompts, "--out", path("all.jsonl"), "--max-new-tokens", "24",
                      "--temperature", "0"})
                .code,
            0);
  const std::string text = lines_of("all.jsonl")[0].at("text");
  EXPECT_EQ(plain.out, text + "\n");
  // Any piece of the text that is valid UTF-8 serves as stop string.
  size_t at = text.size() / 2;
  while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0x80)) ++at;
  ASSERT_LT(at, text.size());
  const std::string stop = text.substr(at, 1);
  ASSERT_EQ(generate({"--prompts", prompts, "--out", path("cut.jsonl"), "--max-new-tokens", "24",
                      "--temperature", "0", "--stop", stop})
                .code,
            0);
  const Json cut = lines_of("cut.jsonl")[0];
  EXPECT_EQ(cut.at("finish_reason"), "stop");
  EXPECT_EQ(cut.at("text").get<std::string>(), text.substr(0, text.find(stop)));
}

TEST_F(GenerateCommand, WrongUse) {
  expect_error(generate({}), 2, {"--prompts", "--prompt"});
  expect_error(generate({"--prompts", path("none.jsonl")}), 3, {"none.jsonl"});
  expect_error(run_binary({"generate", "--model", path("nowhere"), "--prompt", "x"}), 3,
               {"nowhere"});
  expect_error(generate({"--prompts", file("empty.jsonl", "\n")}), 3, {"empty.jsonl"});
  EXPECT_EQ(generate({"--prompt", "x", "--temperature", "-1"}).code, 2);
  EXPECT_EQ(generate({"--prompt", "x", "--dtype", "float8"}).code, 2);
  EXPECT_EQ(generate({"--prompt", "x", "--device", "cuda"}).code, 2);
}

}  // namespace
}  // namespace heirloom
