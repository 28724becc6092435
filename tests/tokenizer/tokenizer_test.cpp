// SPDX-License-Identifier: Apache-2.0
#include "heirloom/tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <fstream>
#include <random>
#include <thread>

#include "fixtures.h"
#include "heirloom/core/error.h"

namespace heirloom::testing {
namespace {

using Tokens = std::vector<std::string>;

TEST(ByteLevel, MergesByRankLeftmostFirst) {
  const Tokenizer t =
      load(byte_level_file({"l o", "lo w", "e r", "o w", "\xC4\xA0 lo", "\xC4\xA0lo w"}));
  EXPECT_EQ(tokens_of(t, "low"), (Tokens{"low"}));
  EXPECT_EQ(tokens_of(t, "lower"), (Tokens{"low", "er"}));
  // "l o" (rank 0) is merged before "Ġ lo", and "lo w" (rank 1) before that: " low" stays two
  // tokens.
  EXPECT_EQ(tokens_of(t, " low"), (Tokens{"\xC4\xA0", "low"}));
  EXPECT_EQ(tokens_of(t, " lo"), (Tokens{"\xC4\xA0lo"}));
  EXPECT_EQ(tokens_of(t, "ow lows"), (Tokens{"ow", "\xC4\xA0", "low", "s"}));
}

TEST(ByteLevel, OverlapsMergeFromTheLeft) {
  const Tokenizer t = load(byte_level_file({"a a", "aa a"}));
  EXPECT_EQ(tokens_of(t, "aaa"), (Tokens{"aaa"}));
  EXPECT_EQ(tokens_of(t, "aaaa"), (Tokens{"aa", "aa"}));
  EXPECT_EQ(tokens_of(t, "aaaaa"), (Tokens{"aa", "aaa"}));
}

TEST(ByteLevel, ArrayMergesEqualStringMerges) {
  json file = byte_level_file({"l o", "lo w"});
  file["model"]["merges"] = json::array({json::array({"l", "o"}), json::array({"lo", "w"})});
  EXPECT_EQ(tokens_of(load(file), "slow"), (Tokens{"s", "low"}));
}

TEST(ByteLevel, IgnoreMergesTakesWholeWords) {
  json file = byte_level_file({"a b"});
  file["model"]["vocab"]["\xC4\xA0xyz"] = 900;
  EXPECT_EQ(tokens_of(load(file), " xyz").size(), 4u);
  file["model"]["ignore_merges"] = true;
  EXPECT_EQ(tokens_of(load(file), " xyz"), (Tokens{"\xC4\xA0xyz"}));
}

/// Pair by pair on strings: the definition.
Tokens merge_by_definition(Tokens symbols, const std::vector<std::string>& merges) {
  while (true) {
    size_t best_rank = merges.size(), best_at = 0;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto it = std::find(merges.begin(), merges.end(), symbols[i] + " " + symbols[i + 1]);
      const auto rank = static_cast<size_t>(it - merges.begin());
      if (rank < best_rank) best_rank = rank, best_at = i;
    }
    if (best_rank == merges.size()) return symbols;
    symbols[best_at] += symbols[best_at + 1];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best_at) + 1);
  }
}

TEST(ByteLevel, ShortAndLongWordsFollowTheDefinition) {
  // Merges in an order that lets a later merge make a pair of lower rank than those still waiting.
  const std::vector<std::string> merges = {"ab c", "a b",   "c a",  "b b",    "abc abc", "ca ca",
                                           "c c",  "bb ab", "cc a", "ab abc", "a a"};
  const Tokenizer t = load(byte_level_file(merges));
  std::mt19937 random(7);
  for (int trial = 0; trial < 600; ++trial) {
    const size_t length = 1 + random() % (trial % 3 == 0 ? 200 : 30);
    std::string word;
    Tokens symbols;
    for (size_t i = 0; i < length; ++i) {
      word += static_cast<char>('a' + random() % 3);
      symbols.emplace_back(1, word.back());
    }
    ASSERT_EQ(tokens_of(t, word), merge_by_definition(symbols, merges)) << word;
    ASSERT_EQ(tokens_of(t, word), merge_by_definition(symbols, merges))
        << word << " from the cache";
  }
}

TEST(ByteLevel, AnyBytesRoundTrip) {
  json file = byte_level_file({"a b", "\xC4\xA0 a", "\xC3\xA2 \xC4\xA4"});
  std::mt19937 random(3);
  for (const bool prefix : {false, true}) {
    file["pre_tokenizer"]["add_prefix_space"] = prefix;
    const Tokenizer t = load(file);
    for (int trial = 0; trial < 500; ++trial) {
      std::string text;
      for (size_t i = random() % 60; i > 0; --i)
        text += static_cast<char>(random() % 4 == 0 ? random() % 256
                                                    : "ab \n\xE2\x82\xAC"[random() % 7]);
      const std::string decoded = t.decode(t.encode(text));
      // add_prefix_space prefixes words (after the text's start they begin with their space or
      // letter).
      if (!prefix) {
        ASSERT_EQ(decoded, text);
      }
      if (prefix && !text.empty() && static_cast<uint8_t>(text[0]) < 0x80) {
        ASSERT_EQ(decoded, (text[0] == ' ' ? "" : " ") + text);
      }
    }
    if (!prefix) {
      std::string all;
      for (int b = 0; b < 256; ++b) all += static_cast<char>(b);
      EXPECT_EQ(t.decode(t.encode(all)), all);
    }
  }
}

TEST(Tokenizer, EncodesAlikeFromManyThreads) {
  const Tokenizer one = load(byte_level_file({"l o", "lo w"}));
  const Tokenizer other = load(byte_level_file({"o w", "l ow"}));
  const auto expected_one = one.encode("slow low lot how"),
             expected_other = other.encode("slow low lot how");
  ASSERT_NE(expected_one, expected_other);
  std::vector<int> wrong(4);
  std::vector<std::thread> threads;
  for (size_t n = 0; n < wrong.size(); ++n)
    threads.emplace_back([&, n] {
      for (int i = 0; i < 50; ++i) {
        wrong[n] += one.encode("slow low lot how") != expected_one;
        wrong[n] += other.encode("slow low lot how") != expected_other;
      }
    });
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

TEST(AddedTokens, LongestFirstAndFlags) {
  json file = byte_level_file({"a b"});
  json strip = added_token(302, "<mask>");
  strip["lstrip"] = true;
  strip["rstrip"] = true;
  json word = added_token(303, "cat", false);
  word["single_word"] = true;
  file["added_tokens"] = {added_token(300, "<|a|>"), added_token(301, "<|a|>b"), strip, word};
  const Tokenizer t = load(file);
  EXPECT_EQ(tokens_of(t, "x<|a|>c<|a|>b"), (Tokens{"x", "<|a|>", "c", "<|a|>b"}));
  EXPECT_EQ(tokens_of(t, "x  <mask>\n y"), (Tokens{"x", "<mask>", "y"}));
  EXPECT_EQ(tokens_of(t, "cat"), (Tokens{"cat"}));
  EXPECT_EQ(tokens_of(t, "(cat)"), (Tokens{"(", "cat", ")"}));
  EXPECT_EQ(tokens_of(t, "cats").size(), 4u);
  EXPECT_EQ(tokens_of(t,
                      "\xC3\xA9"
                      "cat")
                .size(),
            5u);
  EXPECT_EQ(tokens_of(t, "<|a|>", {.recognise_special = false}).size(), 5u);
  EXPECT_EQ(tokens_of(t, "cat", {.recognise_special = false}), (Tokens{"cat"}));
  EXPECT_EQ(t.decode(t.encode("x<|a|>c")), "x<|a|>c");
  EXPECT_EQ(t.decode(t.encode("x<|a|>c"), {.skip_special = true}), "xc");
  EXPECT_TRUE(t.is_special(300));
  EXPECT_FALSE(t.is_special(303));
}

TEST(AddedTokens, NonAsciiContentDecodesToItself) {
  json file = byte_level_file({});
  file["added_tokens"] = {added_token(256, "\xC3\xA9t\xC3\xA9"), added_token(257, "a b", false)};
  const Tokenizer t = load(file);
  EXPECT_EQ(t.encode("\xC3\xA9t\xC3\xA9").size(), 1u);
  EXPECT_EQ(t.decode(std::vector<int32_t>{256, 257}),
            "\xC3\xA9t\xC3\xA9"
            "a b");
}

TEST(AddedTokens, NormalizedOnesAreFoundAfterNormalization) {
  json file = byte_level_file({});
  file["normalizer"] = {{"type", "NFC"}};
  json token = added_token(256, "e\xCC\x81", false);
  token["normalized"] = true;
  file["added_tokens"] = {token};
  const Tokenizer t = load(file);
  EXPECT_EQ(t.encode("x\xC3\xA9"), (std::vector<int32_t>{'x', 256}));
  EXPECT_EQ(t.encode("xe\xCC\x81"), (std::vector<int32_t>{'x', 256}));
}

TEST(Normalizers, DoWhatTheySay) {
  json file = character_file({"a", "b", "_", "\xC3\xA9", "f", "i"}, {});
  const auto with = [&](json normalizer, std::string_view text) {
    file["normalizer"] = std::move(normalizer);
    const Tokenizer t = load(file);
    return t.decode(t.encode(text));
  };
  EXPECT_EQ(with({{"type", "NFC"}}, "e\xCC\x81"), "\xC3\xA9");
  EXPECT_EQ(with({{"type", "NFKC"}}, "\xEF\xAC\x81"), "fi");
  EXPECT_EQ(with({{"type", "Prepend"}, {"prepend", "_"}}, "ab"), "_ab");
  EXPECT_EQ(with({{"type", "Prepend"}, {"prepend", "_"}}, ""), "");
  EXPECT_EQ(with({{"type", "Strip"}}, "  ab "), "ab");
  EXPECT_EQ(with({{"type", "Replace"}, {"pattern", {{"String", "."}}}, {"content", "_"}}, "a.b"),
            "a_b");
  EXPECT_EQ(with({{"type", "Replace"}, {"pattern", {{"Regex", "a+"}}}, {"content", "b"}}, "aab"),
            "bb");
  const json both = {{"type", "Sequence"},
                     {"normalizers",
                      {{{"type", "Prepend"}, {"prepend", " "}},
                       {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "_"}}}}};
  EXPECT_EQ(with(both, "a b"), "_a_b");
}

/// Each word as one token "[n]..." is visible through a model that knows no merges but whole words.
Tokens words(json pre_tokenizer, std::string_view text, const Tokens& vocabulary) {
  json file = character_file(vocabulary, {});
  file["model"]["ignore_merges"] = true;
  file["pre_tokenizer"] = std::move(pre_tokenizer);
  return tokens_of(load(file), text);
}

json split(const json& pattern, const char* behavior, bool invert = false) {
  return {{"type", "Split"}, {"pattern", pattern}, {"behavior", behavior}, {"invert", invert}};
}

TEST(PreTokenizers, SplitBehaviours) {
  const Tokens all = {"a",  "b",   "-",   "--",  "a-", "-b", "-a",
                      "b-", "a--", "--b", "-ab", "ab", "ab-"};
  const json dash = {{"String", "-"}};
  EXPECT_EQ(words(split(dash, "Isolated"), "ab--b", all), (Tokens{"ab", "-", "-", "b"}));
  EXPECT_EQ(words(split(dash, "Removed"), "ab--b", all), (Tokens{"ab", "b"}));
  EXPECT_EQ(words(split(dash, "Contiguous"), "ab--b", all), (Tokens{"ab", "--", "b"}));
  EXPECT_EQ(words(split(dash, "MergedWithPrevious"), "ab--b", all), (Tokens{"ab-", "-", "b"}));
  EXPECT_EQ(words(split(dash, "MergedWithNext"), "ab--b", all), (Tokens{"ab", "-", "-b"}));
  EXPECT_EQ(words(split({{"Regex", "[a-z]+"}}, "Removed", true), "ab--b", all),
            (Tokens{"ab", "b"}));
  EXPECT_EQ(words(split({{"Regex", "x*"}}, "Isolated"), "ab", all), (Tokens{"a", "b"}));
}

TEST(PreTokenizers, DigitsPunctuationMetaspace) {
  EXPECT_EQ(words({{"type", "Digits"}, {"individual_digits", true}}, "a12", {"a", "1", "2", "12"}),
            (Tokens{"a", "1", "2"}));
  EXPECT_EQ(words({{"type", "Digits"}}, "a12", {"a", "1", "2", "12"}), (Tokens{"a", "12"}));
  EXPECT_EQ(words({{"type", "Punctuation"}}, "a?!", {"a", "?", "!", "?!"}),
            (Tokens{"a", "?", "!"}));
  const Tokens meta = {"_a", "_b", "a", "b", "_"};
  const auto metaspace = [](const char* scheme, bool cut) {
    return json{
        {"type", "Metaspace"}, {"replacement", "_"}, {"prepend_scheme", scheme}, {"split", cut}};
  };
  EXPECT_EQ(words(metaspace("always", true), "a b", meta), (Tokens{"_a", "_b"}));
  EXPECT_EQ(words(metaspace("never", true), "a  b", meta), (Tokens{"a", "_", "_b"}));
  EXPECT_EQ(words(metaspace("first", true), " a", meta), (Tokens{"_a"}));
}

TEST(PreTokenizers, StepsAfterByteLevelSeeTheByteAlphabet) {
  json file = byte_level_file({});
  file["model"]["vocab"]
      ["\xC4\xA0"
       "a"] = 256;
  file["model"]["ignore_merges"] = true;
  file["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       {file["pre_tokenizer"], {{"type", "Digits"}, {"individual_digits", true}}}}};
  const Tokenizer t = load(file);
  EXPECT_EQ(tokens_of(t, " a12"), (Tokens{"\xC4\xA0"
                                          "a",
                                          "1", "2"}));
  EXPECT_EQ(t.decode(t.encode(" a12 \xE2\x82\xAC")), " a12 \xE2\x82\xAC");
}

json template_of(const json& single, const json& special_tokens) {
  return {{"type", "TemplateProcessing"}, {"single", single}, {"special_tokens", special_tokens}};
}

TEST(PostProcessors, TemplatesAddOnBothSides) {
  json file = byte_level_file({});
  file["added_tokens"] = {added_token(256, "<s>"), added_token(257, "</s>")};
  const json sequence = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  const auto token = [](const char* name) {
    return json{{"SpecialToken", {{"id", name}, {"type_id", 0}}}};
  };
  const json known = {{"<s>", {{"id", "<s>"}, {"ids", {256}}}},
                      {"</s>", {{"id", "</s>"}, {"ids", {257}}}}};
  file["post_processor"] = {
      {"type", "Sequence"},
      {"processors",
       {{{"type", "ByteLevel"}}, template_of({token("<s>"), sequence, token("</s>")}, known)}}};
  const Tokenizer t = load(file);
  EXPECT_EQ(t.encode("a"), (std::vector<int32_t>{'a'}));
  EXPECT_EQ(t.encode("a", {.add_special = true}), (std::vector<int32_t>{256, 'a', 257}));
  EXPECT_EQ(t.encode("", {.add_special = true}), (std::vector<int32_t>{256, 257}));
  EXPECT_EQ(t.bos_id(), 256);
  EXPECT_EQ(t.eos_id(), 257);

  file["post_processor"] = template_of({token("<s>")}, known);
  EXPECT_THROW(load(file), FormatError);
  file["post_processor"] = template_of({token("<x>"), sequence}, known);
  EXPECT_THROW(load(file), FormatError);
  file["post_processor"] = template_of({token("<s>"), sequence}, {{"<s>", {{"ids", {9999}}}}});
  EXPECT_THROW(load(file), FormatError);
}

/// "▁"-style with byte fallback, as converted SentencePiece models have it.
json fallback_file() {
  std::vector<std::string> alphabet = {"<unk>", "_", "a", "b"};
  for (int b = 0; b < 256; ++b) alphabet.push_back(fmt::format("<0x{:02X}>", b));
  json file = character_file(alphabet, {"_ a"});
  file["model"]["unk_token"] = "<unk>";
  file["model"]["byte_fallback"] = true;
  file["normalizer"] = {
      {"type", "Sequence"},
      {"normalizers",
       {{{"type", "Prepend"}, {"prepend", "_"}},
        {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "_"}}}}};
  file["decoder"] = {{"type", "Sequence"},
                     {"decoders",
                      {{{"type", "Replace"}, {"pattern", {{"String", "_"}}}, {"content", " "}},
                       {{"type", "ByteFallback"}},
                       {{"type", "Fuse"}},
                       {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}}}};
  return file;
}

TEST(ByteFallback, UnknownCharactersBecomeBytes) {
  const Tokenizer t = load(fallback_file());
  EXPECT_EQ(tokens_of(t, "a\xC3\xA9 b"), (Tokens{"_a", "<0xC3>", "<0xA9>", "_", "b"}));
  EXPECT_EQ(t.decode(t.encode("a\xC3\xA9 b")), "a\xC3\xA9 b");
  EXPECT_EQ(t.decode(t.encode(" a\xFF")), " a\xFF");
  EXPECT_EQ(t.kind(), "BPE with byte fallback");
}

TEST(ByteFallback, WordByWordEqualsWholeText) {
  const std::string space = "\xE2\x96\x81";
  const std::vector<std::string> merges = {
      "a b", space + " a", space + " " + space, space + "a b", space + space + " ab", "b b"};
  json file = character_file({space, "a", "b"}, merges);
  const Tokenizer by_word = load(file);
  file["model"]["vocab"]["a" + space] = 100;  // now a merge might reach across a word's start
  const Tokenizer whole = load(file);
  std::mt19937 random(21);
  for (int trial = 0; trial < 400; ++trial) {
    std::string text;
    Tokens symbols;
    for (size_t i = random() % 120; i > 0; --i) {
      symbols.push_back(std::vector<std::string>{space, "a", "b"}[random() % 3]);
      text += symbols.back();
    }
    ASSERT_EQ(by_word.encode(text), whole.encode(text)) << text;
    ASSERT_EQ(tokens_of(by_word, text), merge_by_definition(symbols, merges)) << text;
  }
}

TEST(ByteFallback, WithoutItUnknownIsFusedOrNot) {
  json file = character_file({"<unk>", "a"}, {});
  EXPECT_EQ(tokens_of(load(file), "axxa"), (Tokens{"a", "a"}));
  file["model"]["unk_token"] = "<unk>";
  EXPECT_EQ(tokens_of(load(file), "axxa"), (Tokens{"a", "<unk>", "<unk>", "a"}));
  file["model"]["fuse_unk"] = true;
  EXPECT_EQ(tokens_of(load(file), "axxa"), (Tokens{"a", "<unk>", "a"}));
  file["model"]["unk_token"] = "<none>";
  EXPECT_THROW(load(file), FormatError);
}

TEST(Decoders, MetaspaceDropsTheFirstSpaceOnly) {
  json file = character_file({"_a", "_", "b"}, {});
  file["decoder"] = {{"type", "Metaspace"}, {"replacement", "_"}, {"prepend_scheme", "always"}};
  EXPECT_EQ(load(file).decode(std::vector<int32_t>{0, 0, 1, 2}), "a a b");
  file["decoder"]["prepend_scheme"] = "never";
  EXPECT_EQ(load(file).decode(std::vector<int32_t>{0, 0, 1, 2}), " a a b");
  file["decoder"] = nullptr;
  EXPECT_EQ(load(file).decode(std::vector<int32_t>{0, 2}), "_a b");
}

TEST(Decoders, UnknownIdsDecodeToNothing) {
  const Tokenizer t = load(byte_level_file({}));
  EXPECT_EQ(t.decode(std::vector<int32_t>{'a', -1, 256, INT32_MAX, 'b'}), "ab");
  EXPECT_FALSE(t.has_token(256));
  EXPECT_FALSE(t.has_token(-1));
  EXPECT_EQ(t.token_bytes(' '), " ");
  EXPECT_EQ(t.token_text(' '), "\xC4\xA0");
  EXPECT_EQ(t.token_text(-5), "");
}

TEST(StreamDecoder, HoldsBackUnfinishedCharacters) {
  const Tokenizer t = load(byte_level_file({}));
  StreamDecoder stream(t);
  EXPECT_EQ(stream.push('a'), "a");
  EXPECT_EQ(stream.push(0xF0), "");
  EXPECT_EQ(stream.push(0x9F), "");
  EXPECT_EQ(stream.push(0x98), "");
  EXPECT_EQ(stream.push(0x80), "\xF0\x9F\x98\x80");
  EXPECT_EQ(stream.push(0xE2), "");
  EXPECT_EQ(stream.push('b'),
            "\xEF\xBF\xBD"
            "b");
  EXPECT_EQ(stream.push(0xC3), "");
  EXPECT_EQ(stream.flush(), "\xEF\xBF\xBD");
  EXPECT_EQ(stream.flush(), "");
}

TEST(StreamDecoder, JoinedEqualsDecode) {
  for (const json& file : {byte_level_file({"a b", "\xC3\xA2 \xC4\xA4"}), fallback_file()}) {
    const Tokenizer t = load(file);
    std::mt19937 random(11);
    for (int trial = 0; trial < 300; ++trial) {
      std::vector<int32_t> ids;
      for (size_t i = random() % 20; i > 0; --i)
        ids.push_back(static_cast<int32_t>(random() % static_cast<size_t>(t.vocab_size())));
      StreamDecoder stream(t);
      std::string joined;
      for (const int32_t id : ids) {
        const std::string part = stream.push(id);
        ASSERT_TRUE(tokenizer::is_valid_utf8(part));
        joined += part;
      }
      joined += stream.flush();
      ASSERT_EQ(joined, replace_invalid_utf8(t.decode(ids)));
    }
  }
}

TEST(StreamDecoder, StripsTheFrontOnce) {
  const Tokenizer t = load(fallback_file());
  StreamDecoder stream(t);
  std::string joined;
  for (const int32_t id : t.encode("a a b")) joined += stream.push(id);
  EXPECT_EQ(joined + stream.flush(), "a a b");
}

TEST(Errors, NameWhatIsUnknown) {
  const auto message = [](json file) -> std::string {
    try {
      load(file);
    } catch (const FormatError& e) {
      return e.what();
    } catch (const UnsupportedError& e) {
      return e.what();
    }
    return "accepted";
  };
  const json good = byte_level_file({"a b"});
  ASSERT_EQ(message(good), "accepted");
  const auto broken = [&](const char* path, json value) {
    json file = good;
    file[json::json_pointer(path)] = std::move(value);
    return message(file);
  };
  const auto names = [](const std::string& text, const char* part) {
    EXPECT_NE(text.find(part), std::string::npos) << text << " lacks " << part;
  };
  names(broken("/normalizer", {{"type", "BertNormalizer"}}), "BertNormalizer");
  names(broken("/pre_tokenizer", {{"type", "UnicodeScripts"}}), "UnicodeScripts");
  names(broken("/pre_tokenizer", {{"type", "Split"}, {"pattern", {{"String", ""}}}}), "pattern");
  names(broken("/pre_tokenizer", split({{"String", "x"}}, "Sideways")), "Sideways");
  names(broken("/pre_tokenizer", {{"type", "Split"}, {"pattern", {{"Regex", "(("}}}}), "((");
  names(broken("/pre_tokenizer", split({{"Regex", "(("}}, "Isolated")), "pre_tokenizer.pattern of");
  names(broken("/post_processor", {{"type", "Unheard"}}), "Unheard");
  names(broken("/decoder", {{"type", "WordPiece"}}), "WordPiece");
  names(broken("/model/type", "Unigram"), "Unigram");
  names(broken("/model/merges", {"a zz"}), "zz");
  names(broken("/model/merges", {"ab"}), "ab");
  names(broken("/model/merges", {"a b c"}), "a b c");
  names(broken("/model/merges", {3}), "3");
  names(broken("/model/merges", "a b"), "merges");
  names(broken("/model/vocab/a", -1), "-1");
  names(broken("/model/vocab/a", 2'000'000'000), "2000000000");
  names(broken("/model/vocab/a", 98), "98");
  names(broken("/model/vocab/a", "x"), "integer");
  names(broken("/model/vocab/a", 1e300), "integer");
  names(broken("/model/vocab", json::array()), "vocab");
  names(broken("/model/end_of_word_suffix", "</w>"), "end_of_word_suffix");
  names(broken("/added_tokens", {added_token(-3, "x")}), "-3");
  names(broken("/added_tokens", {added_token(1'900'000'000, "new")}), "1900000000");
  names(broken("/added_tokens", {added_token(300, "")}), "0 bytes");
  names(broken("/model", nullptr), "model");
}

TEST(Errors, HostileText) {
  EXPECT_THROW(Tokenizer::from_json("", "test"), FormatError);
  EXPECT_THROW(Tokenizer::from_json("[]", "test"), FormatError);
  EXPECT_THROW(Tokenizer::from_json("{\"model\": {\"vocab\": {\"\xFF\": 1}}}", "test"),
               FormatError);
  EXPECT_THROW(Tokenizer::from_json(std::string(100'000, '['), "test"), FormatError);
  const std::string good = byte_level_file({"a b"}).dump();
  EXPECT_THROW(Tokenizer::from_json(good + std::string(1, '\0') + "x", "test"), FormatError);
  EXPECT_THROW(Tokenizer::from_json(good + "x", "test"), FormatError);
  for (size_t cut = 0; cut < good.size(); cut += 37)
    EXPECT_THROW(Tokenizer::from_json(good.substr(0, cut), "test"), FormatError);
}

TEST(Errors, NormalizersThatExplodeAreStopped) {
  json steps = json::array();
  for (int i = 0; i < 60; ++i)
    steps.push_back({{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", "aa"}});
  json file = byte_level_file({});
  file["normalizer"] = {{"type", "Sequence"}, {"normalizers", steps}};
  const Tokenizer t = load(file);
  EXPECT_THROW(t.encode("aaaa"), FormatError);
  EXPECT_EQ(t.encode("bb").size(), 2u);
}

class TempDirectory {
 public:
  TempDirectory()
      : path_(fs::temp_directory_path() / fmt::format("heirloom-tokenizer-{}", ::getpid())) {
    fs::create_directories(path_);
  }
  ~TempDirectory() { fs::remove_all(path_); }
  const fs::path& path() const { return path_; }
  void write(const char* name, const std::string& text) const {
    std::ofstream(path_ / name) << text;
  }

 private:
  fs::path path_;
};

TEST(Files, DirectoriesAndSpecialTokens) {
  const TempDirectory dir;
  EXPECT_THROW(Tokenizer::load(dir.path()), IoError);
  EXPECT_THROW(Tokenizer::load(dir.path() / "none.json"), IoError);
  json file = byte_level_file({"a b"});
  file["added_tokens"] = {added_token(300, "<|begin|>"), added_token(301, "<|stop|>")};
  dir.write("tokenizer.json", file.dump());
  EXPECT_EQ(Tokenizer::load(dir.path()).eos_id(), std::nullopt);
  dir.write("tokenizer_config.json",
            R"({"bos_token": {"content": "<|begin|>"}, "eos_token": "<|stop|>"})");
  const Tokenizer t = Tokenizer::load(dir.path());
  EXPECT_EQ(t.bos_id(), 300);
  EXPECT_EQ(t.eos_id(), 301);
  fs::create_directories(dir.path() / "copy");
  t.save(dir.path() / "copy");
  EXPECT_EQ(Tokenizer::load(dir.path() / "copy").to_json(), file.dump());
  t.save(dir.path() / "other.json");
  EXPECT_EQ(Tokenizer::load(dir.path() / "other.json").vocab_size(), 302);
  dir.write("tokenizer_config.json", "nonsense");
  EXPECT_THROW(Tokenizer::load(dir.path()), FormatError);
}

}  // namespace
}  // namespace heirloom::testing
