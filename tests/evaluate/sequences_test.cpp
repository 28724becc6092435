// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "evaluate/tiny_model.h"
#include "heirloom/data/token_shard.h"
#include "heirloom/evaluate/sequences.h"
#include "io/temporary_directory.h"

namespace heirloom {
namespace {

using test::TemporaryDirectory;
using test::write_text;

class SequencesTest : public testing::Test {
 protected:
  SequencesTest() {
    write_text(folder_ / "tokenizer.json", test::byte_tokenizer_json());
    options_.vocab_size = 300;
    options_.tokenizer = folder_.path();
  }
  SequenceSet read(const std::string& name, std::string_view contents) {
    write_text(folder_ / name, contents);
    return read_sequences(folder_ / name, options_);
  }
  /// The message of the E that reading throws.
  template <class E>
  std::string error_of(const std::string& name, std::string_view contents) {
    try {
      read(name, contents);
    } catch (const E& e) {
      return e.what();
    }
    ADD_FAILURE() << "nothing of the expected type was thrown for " << name;
    return "";
  }

  TemporaryDirectory folder_;
  SequenceOptions options_;
};

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(WordCountTest, SplitsAtUnicodeWhiteSpace) {
  const auto count = [](std::string_view text) {
    WordCount words;
    words.add(text);
    return words.words();
  };
  EXPECT_EQ(count(""), 0);
  EXPECT_EQ(count(" \n\t "), 0);
  EXPECT_EQ(count("one"), 1);
  EXPECT_EQ(count(" one  two\r\nthree\v"), 3);
  EXPECT_EQ(count("a\u00A0b\u2003c\u3000d\u2028e"), 5);
  EXPECT_EQ(count("\u00E9\u4E2D\u6587 \u2014"), 2);
  EXPECT_EQ(count("truncated \xE2\x80"), 2);
  WordCount joined;
  joined.add("hel");
  joined.add("lo wor");
  joined.add("ld");
  EXPECT_EQ(joined.words(), 2);
}

TEST_F(SequencesTest, TextIsOneStreamWithItsSpecialTokens) {
  const SequenceSet set = read("a.txt", "ab c\n");
  EXPECT_EQ(set.tokens, (std::vector<int32_t>{256, 'a', 'b', ' ', 'c', '\n'}));
  EXPECT_EQ(set.begins, (std::vector<int64_t>{0, 6}));
  EXPECT_TRUE(set.text_known);
  EXPECT_EQ(set.bytes, 5);
  EXPECT_EQ(set.words, 2);
  EXPECT_TRUE(set.lines.empty());
  options_.add_special = false;
  EXPECT_EQ(read("a.txt", "ab").tokens, (std::vector<int32_t>{'a', 'b'}));
}

TEST_F(SequencesTest, LinesOfTextAreSequences) {
  options_.split_lines = true;
  const SequenceSet set = read("a.txt", "ab\n\n  \nc d\r\n");
  EXPECT_EQ(set.count(), 2);
  EXPECT_EQ(set.lines, (std::vector<int64_t>{1, 4}));
  EXPECT_EQ(set.sequence(1).size(), 4u);
  EXPECT_EQ(set.words, 3);
  EXPECT_EQ(set.bytes, 5);
}

TEST_F(SequencesTest, JsonlMixesTokensAndText) {
  const SequenceSet set = read("a.jsonl", "{\"tokens\": [1, 2, 299]}\n\n{\"text\": \"x y\"}\n");
  EXPECT_EQ(set.count(), 2);
  EXPECT_EQ(set.tokens, (std::vector<int32_t>{1, 2, 299, 256, 'x', ' ', 'y'}));
  EXPECT_EQ(set.lines, (std::vector<int64_t>{1, 3}));
  EXPECT_FALSE(set.text_known);
  EXPECT_EQ(set.scorable(), 5);
  EXPECT_TRUE(read("b.jsonl", "{\"text\": \"x y\"}\n").text_known);
}

TEST_F(SequencesTest, ShardsAreOneStream) {
  TokenShardWriter writer(folder_ / "a.bin", 300);
  const std::vector<int32_t> tokens = {5, 299, 0};
  writer.append(tokens);
  writer.commit();
  const SequenceSet set = read_sequences(folder_ / "a.bin", options_);
  EXPECT_EQ(set.tokens, tokens);
  EXPECT_FALSE(set.text_known);
  options_.vocab_size = 299;
  try {
    read_sequences(folder_ / "a.bin", options_);
    FAIL();
  } catch (const FormatError& e) {
    EXPECT_TRUE(contains(e.what(), "got 299 at position 1")) << e.what();
  }
}

TEST_F(SequencesTest, BadLinesAreNamed) {
  const std::string good = "{\"tokens\": [1, 2]}\n";
  EXPECT_TRUE(contains(error_of<FormatError>("a.jsonl", good + "{\"tokens\": [1, 300]}"),
                       "got 300 at position 1; " + (folder_ / "a.jsonl:2").string()));
  EXPECT_TRUE(contains(error_of<FormatError>("a.jsonl", good + "{\"tokens\": [-1]}"), "got -1"));
  EXPECT_TRUE(contains(error_of<FormatError>("a.jsonl", "{\"tokens\": [18446744073709551615]}"),
                       "got 18446744073709551615"));
  EXPECT_TRUE(contains(error_of<FormatError>("a.jsonl", "{\"tokens\": [1.5, 2]}"), "got 1.5"));
  EXPECT_TRUE(contains(error_of<FormatError>("a.jsonl", "{\"tokens\": \"1 2\"}"), "got string"));
  EXPECT_TRUE(contains(error_of<FormatError>("a.jsonl", "{\"text\": 3}"), "got number"));
  EXPECT_TRUE(contains(error_of<FormatError>("a.jsonl", "{\"prompt\": \"x\"}"), "neither"));
  EXPECT_TRUE(contains(error_of<FormatError>("a.jsonl", good + "{\"tokens\": [1, 2"), "a.jsonl"));
  error_of<FormatError>("a.jsonl", "[1, 2]\n");
  error_of<FormatError>("a.jsonl", "{\"text\": \"\xFF\"}\n");
}

TEST_F(SequencesTest, NothingToScoreIsAnError) {
  error_of<FormatError>("a.jsonl", "");
  error_of<FormatError>("a.jsonl", "{\"tokens\": [1]}\n{\"tokens\": []}\n");
  error_of<FormatError>("a.txt", "");
  options_.add_special = false;
  error_of<FormatError>("a.txt", "x");
}

TEST_F(SequencesTest, FilesThatCannotBeRead) {
  EXPECT_THROW(read_sequences(folder_ / "missing.txt", options_), IoError);
  error_of<FormatError>("a.csv", "1,2");
  options_.tokenizer = folder_ / "nowhere";
  fs::create_directory(options_.tokenizer);
  EXPECT_TRUE(contains(error_of<IoError>("a.txt", "some text"), "--tokenizer"));
  EXPECT_EQ(read("a.jsonl", "{\"tokens\": [1, 2]}").count(), 1) << "tokens need no tokenizer";
  options_.loaded = Tokenizer::from_json(test::byte_tokenizer_json(), "memory");
  EXPECT_EQ(read("a.txt", "ab").tokens, (std::vector<int32_t>{256, 'a', 'b'}));
}

TEST_F(SequencesTest, ByteLevelTokenizersTakeAnyBytes) {
  EXPECT_EQ(read("a.txt", "\xFF\xC3").tokens, (std::vector<int32_t>{256, 0xFF, 0xC3}));
}

TEST_F(SequencesTest, OtherTokenizersWantUtf8) {
  Json json = Json::parse(test::byte_tokenizer_json());
  json["pre_tokenizer"] = nullptr;
  json["decoder"] = nullptr;
  json["model"]["unk_token"] = "<s>";
  write_text(folder_ / "tokenizer.json", json.dump());
  for (const char* bad : {"ab\xFF", "ab\xC3(", "ab\xC0\x80", "ab\xED\xA0\x80", "ab\xE2\x82",
                          "ab\xF5\x80\x80\x80", "ab\x80"}) {
    EXPECT_TRUE(contains(error_of<FormatError>("a.txt", bad), "at offset 2")) << bad;
  }
  EXPECT_NO_THROW(read("a.txt", "ab\u00E9\u20AC\U0001F600"));
}

TEST_F(SequencesTest, TokenizerOfAnotherModel) {
  options_.vocab_size = 100;
  EXPECT_TRUE(contains(error_of<FormatError>("a.txt", "hello"), "another model"));
}

}  // namespace
}  // namespace heirloom
