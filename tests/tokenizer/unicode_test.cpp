// SPDX-License-Identifier: Apache-2.0
#include "src/tokenizer/unicode.h"

#include <gtest/gtest.h>

#include "heirloom/core/error.h"
#include "src/tokenizer/regex.h"

namespace heirloom::tokenizer {
namespace {

TEST(Utf8, KnowsWhatIsValid) {
  EXPECT_EQ(valid_char_length("a"), 1u);
  EXPECT_EQ(valid_char_length("\xC3\xA9"), 2u);
  EXPECT_EQ(valid_char_length("\xE2\x82\xAC!"), 3u);
  EXPECT_EQ(valid_char_length("\xF0\x9F\x98\x80"), 4u);
  for (const char* bad :
       {"\x80", "\xC0\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xF0\x8F\xBF\xBF",
        "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF", "\xC3", "\xE2\x82", "\xC3("})
    EXPECT_EQ(valid_char_length(bad), 0u) << bad;
  EXPECT_EQ(valid_char_length(""), 0u);
}

TEST(Utf8, RoundTripsEveryScalarValue) {
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string text;
    append_char(text, c);
    ASSERT_EQ(valid_char_length(text), text.size()) << static_cast<uint32_t>(c);
    ASSERT_EQ(decode_char(text), c);
  }
}

TEST(Utf8, FindsTheFirstInvalidByteAnywhere) {
  for (size_t at = 0; at < 40; ++at) {
    std::string text(40, 'x');
    text[at] = '\xFF';
    EXPECT_EQ(find_invalid_utf8(text), at);
    EXPECT_EQ(find_invalid_utf8(text, at + 1), 40u);
  }
  EXPECT_EQ(find_invalid_utf8("1234567\xC3\xA9 89"), 12u);
  EXPECT_EQ(find_invalid_utf8("1234567\xC3"), 7u);
}

TEST(Utf8, ReplacesMaximalInvalidSequences) {
  const std::string fffd = "\xEF\xBF\xBD";
  EXPECT_EQ(replace_invalid_utf8("a\xE2\x82z"), "a" + fffd + "z");
  EXPECT_EQ(replace_invalid_utf8("\xFF\xFE"), fffd + fffd);
  EXPECT_EQ(replace_invalid_utf8("\xED\xA0\x80"), fffd + fffd + fffd);
  EXPECT_EQ(replace_invalid_utf8("\xF0\x9F\x98"), fffd);
  EXPECT_EQ(replace_invalid_utf8("caf\xC3\xA9"), "caf\xC3\xA9");
}

TEST(Utf8, UnfinishedIsAPrefixOfSomething) {
  EXPECT_TRUE(is_unfinished_char("\xF0\x9F\x98"));
  EXPECT_TRUE(is_unfinished_char("\xE2"));
  EXPECT_FALSE(is_unfinished_char("\xED\xA0"));
  EXPECT_FALSE(is_unfinished_char("\xE2\x82\xAC"));
  EXPECT_FALSE(is_unfinished_char("\x82"));
  EXPECT_FALSE(is_unfinished_char(""));
}

TEST(ByteAlphabet, IsTheOneOfGpt2) {
  EXPECT_EQ(byte_alphabet()[' '], "\xC4\xA0");   // U+0120
  EXPECT_EQ(byte_alphabet()['\n'], "\xC4\x8A");  // U+010A
  EXPECT_EQ(byte_alphabet()['A'], "A");
  EXPECT_EQ(byte_alphabet()[0xE9], "\xC3\xA9");
  EXPECT_EQ(byte_alphabet()[0xAD], "\xC5\x83");  // U+0143, the last stand-in
  std::string bytes;
  for (size_t b = 0; b < 256; ++b) {
    bytes.clear();
    ASSERT_TRUE(append_alphabet_bytes(byte_alphabet()[b], bytes));
    ASSERT_EQ(bytes, std::string(1, static_cast<char>(b)));
  }
  bytes = "kept";
  EXPECT_FALSE(append_alphabet_bytes("a b", bytes));
  EXPECT_EQ(bytes, "kept");
}

TEST(Normalize, ComposesAndDecomposes) {
  EXPECT_EQ(normalize("e\xCC\x81", NormalForm::kNfc), "\xC3\xA9");
  EXPECT_EQ(normalize("\xC3\xA9", NormalForm::kNfd), "e\xCC\x81");
  EXPECT_EQ(normalize("\xEF\xAC\x81", NormalForm::kNfc), "\xEF\xAC\x81");
  EXPECT_EQ(normalize("\xEF\xAC\x81", NormalForm::kNfkc), "fi");
  EXPECT_EQ(normalize(std::string("a\0b", 3), NormalForm::kNfkd), std::string("a\0b", 3));
  EXPECT_EQ(normalize("", NormalForm::kNfc), "");
}

std::vector<std::string> matches(const std::string& pattern, std::string_view text) {
  const Regex regex(pattern);
  std::vector<std::string> out;
  size_t begin, end;
  for (size_t at = 0; at < text.size() && regex.find(text, at, begin, end) && end > begin; at = end)
    out.emplace_back(text.substr(begin, end - begin));
  return out;
}

using Words = std::vector<std::string>;

TEST(Patterns, Gpt2SplitsAsPublished) {
  EXPECT_EQ(matches(kGpt2Pattern, "I'll say  it's 12345 ok...\n\n x"),
            (Words{"I", "'ll", " say", " ", " it", "'s", " 12345", " ok", "...", "\n\n", " x"}));
  EXPECT_EQ(matches(kGpt2Pattern,
                    "WE'RE na\xC3\xAFve \xE2\x82\xAC"
                    "5"),
            (Words{"WE", "'", "RE", " na\xC3\xAFve", " \xE2\x82\xAC", "5"}));
  EXPECT_EQ(matches(kGpt2Pattern, "end   "), (Words{"end", "   "}));
}

TEST(Patterns, Llama3SplitsAsPublished) {
  EXPECT_EQ(matches(kLlama3Pattern, "WE'RE 1234567 (x)\n\ny\t\tz"),
            (Words{"WE", "'RE", " ", "123", "456", "7", " (", "x", ")\n\n", "y", "\t", "\tz"}));
  EXPECT_EQ(matches(kLlama3Pattern, "a \n b"), (Words{"a", " \n", " b"}));
}

TEST(Regex, WhiteSpaceIsUnicodes) {
  // U+180E is not white space, U+0085, U+2009 and U+3000 are.
  EXPECT_TRUE(matches(R"(\s)", "\xE1\xA0\x8E").empty());
  EXPECT_EQ(matches(R"(\s+)", "\xC2\x85\xE2\x80\x89\xE3\x80\x80").size(), 1u);
  EXPECT_EQ(matches(R"([^\s]+)",
                    "a\xE1\xA0\x8E"
                    "b\xE3\x80\x80"
                    "c")
                .size(),
            2u);
  EXPECT_EQ(matches(R"([\S]+)",
                    "ab c\xC2\xA0"
                    "d")
                .size(),
            3u);
  EXPECT_EQ(matches(R"(\w+)", "e\xCC\x81_1-b"), (Words{"e\xCC\x81_1", "b"}));
}

TEST(Regex, RefusesWhatItWouldMisread) {
  for (const char* bad :
       {"(", "[a-z&&[^x]]", "[a[bc]]", R"(\h)", R"([\W])", "a{2,1}", "(?<n>a)(?<n>b)"})
    EXPECT_THROW(Regex{bad}, FormatError) << bad;
  EXPECT_NO_THROW(Regex{R"([]a\[])"});
  EXPECT_NO_THROW(Regex{R"([[:alpha:]]+)"});
}

TEST(Regex, GivesUpOnCatastrophicPatterns) {
  const Regex regex("(a|aa)+$");
  size_t begin, end;
  EXPECT_THROW(regex.find(std::string(60, 'a') + "b", 0, begin, end), FormatError);
}

TEST(Regex, LongWhiteSpaceIsLinear) {
  const std::string text(2'000'000, ' ');
  EXPECT_EQ(matches(kGpt2Pattern, text + "x").size(), 2u);
  EXPECT_EQ(matches(kLlama3Pattern, text + "x").size(), 2u);
}

TEST(Regex, LiteralsAreNotPatterns) {
  const Regex regex("a.(", Regex::Kind::kLiteral);
  size_t begin, end;
  ASSERT_TRUE(regex.find("xxa.(", 0, begin, end));
  EXPECT_EQ(begin, 2u);
  EXPECT_FALSE(regex.find("xxab(", 0, begin, end));
}

}  // namespace
}  // namespace heirloom::tokenizer
