// SPDX-License-Identifier: Apache-2.0
//
// Published tokenizers against the ids and texts that their own implementations give.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "fixtures.h"

namespace heirloom::testing {
namespace {

struct Published {
  const char* cases;
  const char* file;
};

class Golden : public ::testing::TestWithParam<Published> {};

TEST_P(Golden, EncodesAndDecodesAlike) {
  const char* root = std::getenv("HEIRLOOM_TEST_DATA");
  if (root == nullptr)
    GTEST_SKIP() << "HEIRLOOM_TEST_DATA is not set: skipping published tokenizer "
                 << GetParam().cases;
  const fs::path folder(root);
  const Tokenizer t = Tokenizer::load(folder / "data" / "tokenizers" / GetParam().file);
  std::ifstream cases(folder / "golden_tokenizers" / (std::string(GetParam().cases) + ".jsonl"));
  size_t count = 0;
  for (std::string line; std::getline(cases, line); ++count) {
    const json expected = json::parse(line);
    const auto text = expected["text"].get<std::string>();
    const auto tokens = expected["tokens"].get<std::vector<int32_t>>();
    EXPECT_EQ(t.encode(text), tokens) << text;
    EXPECT_EQ(t.encode(text, {.add_special = true}),
              expected["special"].get<std::vector<int32_t>>())
        << text;
    const auto decoded = expected["decoded"].get<std::string>();
    EXPECT_EQ(t.decode(tokens), decoded);
    StreamDecoder stream(t);
    std::string joined;
    for (const int32_t id : tokens) joined += stream.push(id);
    EXPECT_EQ(joined + stream.flush(), decoded);
  }
  EXPECT_GE(count, 100u);
}

INSTANTIATE_TEST_SUITE_P(
    Tokenizers, Golden,
    ::testing::Values(Published{"gpt2", "gpt2/tokenizer.json"},
                      Published{"mistral", "mistral/tokenizer.json"},
                      Published{"llama2-sentencepiece", "llama2/tokenizer.model"},
                      Published{"llama3", "llama3/tokenizer.json"},
                      Published{"gpt-neox-20b",
                                "gpt-neox-20b/allenai_eleuther-ai-gpt-neox-20b-pii-special.json"},
                      Published{"dolma2", "allenai_dolma2.json"}),
    [](const auto& param) {
      std::string name = param.param.cases;
      for (char& c : name)
        if (c == '-') c = '_';
      return name;
    });

}  // namespace
}  // namespace heirloom::testing
