// SPDX-License-Identifier: Apache-2.0
#include "heirloom/io/json.h"

#include <gtest/gtest.h>

#include <chrono>
#include <limits>

#include "heirloom/core/error.h"

namespace heirloom {
namespace {

/// The message of the FormatError that parsing `text` throws, or "" when it parses.
std::string problem(std::string_view text, JsonComments comments = JsonComments::kForbidden) {
  try {
    parse_json(text, "x.json", comments);
  } catch (const FormatError& e) {
    return e.what();
  }
  return "";
}

bool has(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

TEST(Json, ParsesValuesAndKeepsOrder) {
  const Json v =
      parse_json(R"({"b": [1, -2, 2.5, true, null, "\u00e9"], "a": {"z": {}, "y": []}})", "x");
  EXPECT_EQ(dump_json(v), "{\"b\":[1,-2,2.5,true,null,\"\xC3\xA9\"],\"a\":{\"z\":{},\"y\":[]}}");
  EXPECT_EQ(v.begin().key(), "b");
  EXPECT_EQ(parse_json(" 7 ", "x").get<int>(), 7);
  EXPECT_EQ(parse_json("18446744073709551615", "x").get<uint64_t>(), UINT64_MAX);
}

TEST(Json, DuplicateKeysAreErrorsWithTheirPlace) {
  const std::string text = problem("{\n  \"a\": 1,\n  \"b\": {\"c\": 1, \"c\": 2}\n}");
  EXPECT_TRUE(has(text, "\"c\" twice")) << text;
  EXPECT_TRUE(has(text, "x.json:3:")) << text;
  EXPECT_EQ(problem(R"({"a": {"k": 1}, "b": {"k": 1}})"), "");
  // More keys than the linear search handles, with the duplicate spelled by an escape.
  std::string big = "{";
  for (int i = 0; i < 100; ++i) big += fmt::format("\"key{}\": {}, ", i, i);
  EXPECT_EQ(problem(big + "\"key100\": 0}"), "");
  EXPECT_TRUE(has(problem(big + "\"\\u006bey3\": 0}"), "\"key3\" twice"));
}

TEST(Json, SyntaxErrorsNameLineAndColumn) {
  EXPECT_TRUE(has(problem("{\"a\": 1,\n \"b\" 2}"), "x.json:2:7"))
      << problem("{\"a\": 1,\n \"b\" 2}");
  for (const char* bad :
       {"", " ", "{", "[1,]", "{\"a\":}", "[1] 2", "{} {}", "01", "+1", "NaN", "1e999", "'a'",
        "\"\\x\"", "\"\\ud800\"", "\"a\nb\"", "// c\n1", "[1 /* */]", "nul", "\xEF\xBB"}) {
    EXPECT_TRUE(has(problem(bad), "x.json:")) << bad;
  }
  EXPECT_TRUE(has(problem(std::string_view("{}\0{", 4)), "NUL"));
}

TEST(Json, LinesCountFromTheGivenOne) {
  try {
    parse_json("[1,", "lines.jsonl", JsonComments::kForbidden, 41);
    FAIL();
  } catch (const FormatError& e) {
    EXPECT_TRUE(has(e.what(), "lines.jsonl:41:")) << e.what();
  }
}

TEST(Json, InvalidUtf8IsAnError) {
  for (const char* bad :
       {"\"\xff\"", "\"\xc0\x80\"", "\"\xed\xa0\x80\"", "\"\xf4\x90\x80\x80\"", "\"\xe2\x82\""}) {
    EXPECT_TRUE(has(problem(bad), "UTF-8")) << problem(bad);
  }
  EXPECT_EQ(problem("\"\xf4\x8f\xbf\xbf\""), "");
}

TEST(Json, DepthIsBounded) {
  const auto nested = [](size_t n) { return std::string(n, '[') + std::string(n, ']'); };
  EXPECT_EQ(problem(nested(256)), "");
  EXPECT_TRUE(has(problem(nested(257)), "more than 256"));
  EXPECT_TRUE(has(problem(std::string(2'000'000, '[')), "more than 256"));
}

TEST(Json, CommentsWhereAllowed) {
  EXPECT_EQ(problem("// a\n{\"a\": /* b */ 1}", JsonComments::kAllowed), "");
  EXPECT_TRUE(has(problem("{\"a\": 1 /* b", JsonComments::kAllowed), "comment"));
}

TEST(Json, BigObjectsParseInLinearTime) {
  std::string text = "{\"first\": 0";
  for (int i = 0; i < 200'000; ++i) text += fmt::format(",\"token number {}\":{}", i, i);
  text += "}";
  const auto begin = std::chrono::steady_clock::now();
  const Json v = parse_json(text, "x");
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  EXPECT_EQ(v.size(), 200'001u);
  EXPECT_LT(seconds.count(), 10.0);  // a search per key takes minutes
}

TEST(Json, DumpReplacesWhatJsonCannotHold) {
  EXPECT_EQ(dump_json(Json("a\xff"
                           "b")),
            "\"a\xEF\xBF\xBD"
            "b\"");
  EXPECT_EQ(dump_json(Json(std::numeric_limits<double>::infinity())), "null");
  EXPECT_EQ(dump_json(Json{{"a", 1}}, 2), "{\n  \"a\": 1\n}");
  const double x = 0.1 + 0.2;
  EXPECT_EQ(parse_json(dump_json(Json(x)), "x").get<double>(), x);
}

TEST(Json, NearestKey) {
  const std::vector<std::string> keys{"steps", "batch_size", "sequence_length", "lr"};
  EXPECT_EQ(nearest_key("step", keys), "steps");
  EXPECT_EQ(nearest_key("batchsize", keys), "batch_size");
  EXPECT_EQ(nearest_key("seq_length", keys), "");
  EXPECT_EQ(nearest_key("sequnce_lenght", keys), "sequence_length");
  EXPECT_EQ(nearest_key("completely_different", keys), "");
  EXPECT_EQ(nearest_key("x", {}), "");
}

}  // namespace
}  // namespace heirloom
