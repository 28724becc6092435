// SPDX-License-Identifier: Apache-2.0
//
// heirloom tokenizer, from the outside.
#include "evaluate/tiny_model.h"
#include "tools/run_binary.h"

namespace heirloom {
namespace {

class TokenizerCommand : public test::BinaryTest {
 protected:
  TokenizerCommand() {
    test::write_text(folder_ / "tokenizer.json", test::byte_tokenizer_json());
    test::write_text(folder_ / "in.jsonl", "{\"text\": \"ab\"}\n{\"text\": \"c\"}\n");
  }
  std::string path(const std::string& name) { return (folder_ / name).string(); }
  test::BinaryResult run(const std::string& verb, const std::string& in, const std::string& out) {
    return test::run_binary({"tokenizer", verb, "--tokenizer", path("tokenizer.json"), "--in",
                             path(in), "--out", path(out)});
  }

  test::TemporaryDirectory folder_;
};

TEST_F(TokenizerCommand, OutputIsCompleteOrUntouched) {
  ASSERT_EQ(run("encode", "in.jsonl", "ids.jsonl").code, 0);
  EXPECT_EQ(test::read_all(path("ids.jsonl")), "{\"tokens\": [97, 98]}\n{\"tokens\": [99]}\n");
  // In place: what is written is not what is read.
  ASSERT_EQ(run("decode", "ids.jsonl", "ids.jsonl").code, 0);
  EXPECT_EQ(test::read_all(path("ids.jsonl")), "{\"text\":\"ab\"}\n{\"text\":\"c\"}\n");

  test::write_text(folder_ / "bad.jsonl", "{\"text\": \"ab\"}\n{\"text\": 3}\n");
  expect_error(run("encode", "bad.jsonl", "ids.jsonl"), 3, {path("bad.jsonl") + ":2"});
  EXPECT_EQ(test::read_all(path("ids.jsonl")), "{\"text\":\"ab\"}\n{\"text\":\"c\"}\n");
  expect_error(run("encode", "bad.jsonl", "absent.jsonl"), 3, {path("bad.jsonl") + ":2"});
  EXPECT_EQ(folder_.names(),
            (std::set<std::string>{"bad.jsonl", "ids.jsonl", "in.jsonl", "tokenizer.json"}));
}

}  // namespace
}  // namespace heirloom
