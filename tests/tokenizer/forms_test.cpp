// SPDX-License-Identifier: Apache-2.0
//
// tokenizer.json in the forms of published model families, on small vocabularies. The expected ids
// are those of the tokenizers package (0.23) for the same files.
#include <gtest/gtest.h>

#include <fstream>

#include "fixtures.h"
#include "heirloom/core/error.h"
#include "io/temporary_directory.h"

namespace heirloom {
namespace {

using testing::added_token;
using testing::byte_level_file;
using testing::json;
using testing::load;
using Ids = std::vector<int32_t>;

const std::vector<std::string> kMerges = {"' s", "' S", "Ġ a", "a b", "Ġa b", "1 2", "12 3",
                                          "Ġ Ġ", "Ċ Ċ", "Ã ©", "' l", "'l l", "Ġ 1", "Ġ Ċ"};
const char* const kTexts[] = {"it's IT'S a ab",
                              "12 123 1234",
                              "a  b   ab\n\nb \n a",
                              "e\u0301\u00e9",
                              "<|im_start|>a<think> <|im_end|>",
                              "bab\u00a0'LL'll"};
/// "<|im_start|>a<think> <|im_end|>" where neither is a token.
const Ids kSpelled = {60,  124, 105, 109, 95, 115, 116, 97,  114, 116, 124, 62,  97,  60,  116, 104,
                      105, 110, 107, 62,  32, 60,  124, 105, 109, 95,  101, 110, 100, 124, 62};

void expect_ids(const json& file, const std::vector<Ids>& expected, EncodeOptions options = {}) {
  const Tokenizer tokenizer = load(file);
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(tokenizer.encode(kTexts[i], options), expected[i]) << kTexts[i];
  }
}

/// A Split by `digits` and the rest of the pattern that Llama 3 and Qwen2 share, then ByteLevel.
json split_file(const std::string& digits) {
  json file = byte_level_file(kMerges);
  const json split = {
      {"type", "Split"},
      {"pattern",
       {{"Regex", R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|)" + digits +
                      R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"}}},
      {"behavior", "Isolated"},
      {"invert", false}};
  const json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", false},
                           {"use_regex", false}};
  file["pre_tokenizer"] = {{"type", "Sequence"},
                           {"pretokenizers", json::array({split, byte_level})}};
  return file;
}

TEST(Forms, Qwen2) {
  json file = split_file(R"(\p{N})");
  file["normalizer"] = {{"type", "NFC"}};
  file["added_tokens"] = {added_token(270, "<|im_start|>"), added_token(271, "<|im_end|>"),
                          added_token(272, "<think>", false)};
  expect_ids(file, {{105, 116, 256, 32, 73, 84, 257, 258, 260},
                    {49, 50, 32, 49, 50, 51, 32, 49, 50, 51, 52},
                    {97, 32, 32, 98, 263, 260, 264, 98, 269, 258},
                    {265, 265},
                    {270, 97, 272, 32, 271},
                    {98, 259, 194, 160, 39, 76, 76, 267}});
}

TEST(Forms, Llama3) {
  json file = split_file(R"(\p{N}{1,3})");
  file["model"]["ignore_merges"] = true;
  file["model"]["vocab"]["bab"] = 270;  // no merges lead there
  file["added_tokens"] = {added_token(271, "<|begin|>")};
  const json begin = {{"SpecialToken", {{"id", "<|begin|>"}, {"type_id", 0}}}};
  const json sequence = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  const json known = {{"id", "<|begin|>"}, {"ids", {271}}, {"tokens", {"<|begin|>"}}};
  const json end_template = {{"type", "TemplateProcessing"},
                             {"single", json::array({begin, sequence})},
                             {"special_tokens", {{"<|begin|>", known}}}};
  file["post_processor"] = {
      {"type", "Sequence"},
      {"processors",
       json::array({{{"type", "ByteLevel"}, {"trim_offsets", false}}, end_template})}};
  Ids spelled = kSpelled;
  spelled.insert(spelled.begin(), 271);
  expect_ids(file,
             {{271, 105, 116, 256, 32, 73, 84, 257, 258, 260},
              {271, 261, 32, 262, 32, 262, 52},
              {271, 97, 32, 32, 98, 263, 260, 264, 98, 269, 258},
              {271, 101, 204, 129, 265},
              spelled,
              {271, 270, 194, 160, 39, 76, 76, 267}},
             {.add_special = true});
}

TEST(Forms, SmolLm2) {
  json file = byte_level_file(kMerges);
  const json digits = {{"type", "Digits"}, {"individual_digits", true}};
  file["pre_tokenizer"] = {{"type", "Sequence"},
                           {"pretokenizers", json::array({digits, file["pre_tokenizer"]})}};
  expect_ids(file, {{105, 116, 256, 32, 73, 84, 39, 83, 258, 260},
                    {49, 50, 32, 49, 50, 51, 32, 49, 50, 51, 52},
                    {97, 32, 32, 98, 263, 260, 10, 10, 98, 269, 258},
                    {101, 204, 129, 265},
                    kSpelled,
                    {98, 259, 194, 160, 39, 76, 76, 267}});
}

TEST(Forms, GptNeox) {
  json file = byte_level_file(kMerges);
  file["normalizer"] = {{"type", "NFC"}};
  file["added_tokens"] = {added_token(270, "   ", false), added_token(271, "  ", false)};
  for (json& token : file["added_tokens"]) token["normalized"] = true;
  expect_ids(file, {{105, 116, 256, 32, 73, 84, 39, 83, 258, 260},
                    {261, 32, 262, 32, 262, 52},
                    {97, 271, 98, 270, 259, 10, 10, 98, 269, 258},
                    {265, 265},
                    kSpelled,
                    {98, 259, 194, 160, 39, 76, 76, 267}});
}

/// Bytes from id 3, then single characters, then merges, as files converted from SentencePiece
/// have them.
json sentencepiece_file() {
  json vocab = {{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}};
  int id = 3;
  for (int byte = 0; byte < 256; ++byte) vocab[fmt::format("<0x{:02X}>", byte)] = id++;
  for (const char* token : {"▁", "a", "b", ".", "▁a", "ab", "▁ab", "▁b", "▁▁"}) vocab[token] = id++;
  const json decoders =
      json::array({{{"type", "Replace"}, {"pattern", {{"String", "▁"}}}, {"content", " "}},
                   {{"type", "ByteFallback"}},
                   {{"type", "Fuse"}},
                   {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}});
  return {
      {"version", "1.0"},
      {"added_tokens", {added_token(0, "<unk>"), added_token(1, "<s>"), added_token(2, "</s>")}},
      {"decoder", {{"type", "Sequence"}, {"decoders", decoders}}},
      {"model",
       {{"type", "BPE"},
        {"unk_token", "<unk>"},
        {"fuse_unk", true},
        {"byte_fallback", true},
        {"vocab", vocab},
        {"merges", {"▁ a", "a b", "▁a b", "▁ b", "▁ ▁"}}}}};
}

TEST(Forms, LlamaAndMistralInEveryForm) {
  const auto metaspace = [](const json& options) {
    json file = sentencepiece_file();
    file["pre_tokenizer"] = {{"type", "Metaspace"}, {"replacement", "▁"}};
    file["pre_tokenizer"].update(options);
    return file;
  };
  json legacy = sentencepiece_file();
  legacy["normalizer"] = {
      {"type", "Sequence"},
      {"normalizers",
       json::array({{{"type", "Prepend"}, {"prepend", "▁"}},
                    {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "▁"}}})}};
  struct Form {
    const char* name;
    json file;
    std::vector<Ids> ids;
    std::vector<std::string> decoded;
  };
  const char* const texts[] = {"ab a", " ab  b", "a</s>b</s> b", "</s>a", "é\n"};
  const std::vector<Ids> always = {
      {265, 263}, {265, 259, 266}, {263, 2, 266, 2, 266}, {2, 263}, {259, 198, 172, 13}};
  const std::vector<std::string> spaced = {"ab a", "ab  b", "a</s> b</s> b", "</s> a", "é\n"};
  const Form forms[] = {
      {"Prepend and Replace",
       legacy,
       {{265, 263},
        {259, 265, 259, 266},
        {263, 2, 266, 2, 259, 266},
        {2, 263},
        {259, 198, 172, 13}},
       {"ab a", " ab  b", "a</s> b</s>  b", "</s> a", "é\n"}},
      {"always", metaspace({{"prepend_scheme", "always"}, {"split", false}}), always, spaced},
      {"older", metaspace({{"add_prefix_space", true}}), always, spaced},
      {"first",
       metaspace({{"prepend_scheme", "first"}, {"split", false}}),
       {{265, 263}, {265, 259, 266}, {263, 2, 261, 2, 266}, {2, 260}, {259, 198, 172, 13}},
       {"ab a", "ab  b", "a</s>b</s> b", "</s>a", "é\n"}},
      {"never",
       metaspace({{"prepend_scheme", "never"}, {"split", false}}),
       {{264, 263}, {265, 259, 266}, {260, 2, 261, 2, 266}, {2, 260}, {198, 172, 13}},
       {"ab a", "ab  b", "a</s>b</s> b", "</s>a", "é\n"}}};
  for (const Form& form : forms) {
    const Tokenizer tokenizer = load(form.file);
    for (size_t i = 0; i < std::size(texts); ++i) {
      EXPECT_EQ(tokenizer.encode(texts[i]), form.ids[i]) << form.name << ": " << texts[i];
      EXPECT_EQ(tokenizer.decode(form.ids[i]), form.decoded[i]) << form.name << ": " << texts[i];
    }
  }
}

void write(const std::filesystem::path& path, const std::string& content) {
  std::ofstream(path) << content;
}

std::string merge_lines(const json& file) {
  std::string lines = "#version: 0.2\n";
  for (const json& merge : file["model"]["merges"]) lines += merge.get<std::string>() + "\n";
  return lines;
}

TEST(Forms, VocabularyAndMergesInTwoFiles) {
  json file = byte_level_file(kMerges);
  file["model"]["vocab"]["<|endoftext|>"] = 270;
  json whole = file;
  whole["added_tokens"] = {added_token(270, "<|endoftext|>")};
  const Tokenizer expected = load(whole);
  const std::pair<const char*, const char*> names[] = {{"vocab.json", "merges.txt"},
                                                       {"encoder.json", "vocab.bpe"}};
  for (const auto& [vocab, merges] : names) {
    const test::TemporaryDirectory directory;
    write(directory / vocab, file["model"]["vocab"].dump());
    EXPECT_THROW(Tokenizer::load(directory.path()), IoError);
    write(directory / merges, merge_lines(file));
    const Tokenizer tokenizer = Tokenizer::load(directory.path());
    for (const char* text : kTexts) EXPECT_EQ(tokenizer.encode(text), expected.encode(text));
    EXPECT_EQ(tokenizer.encode("a<|endoftext|>"), (Ids{97, 270}));
    EXPECT_EQ(tokenizer.eos_id(), 270);
    EXPECT_EQ(tokenizer.bos_id(), 270);
    EXPECT_EQ(tokenizer.merge_count(), static_cast<int64_t>(kMerges.size()));
    // What it stands for is a tokenizer.json like any other.
    EXPECT_EQ(Tokenizer::from_json(tokenizer.to_json(), "again").encode(kTexts[2]),
              expected.encode(kTexts[2]));
    write(directory / "tokenizer_config.json",
          R"({"tokenizer_class":"GPT2Tokenizer","add_prefix_space":true})");
    EXPECT_EQ(Tokenizer::load(directory.path()).encode("ab"), (Ids{260}));
    write(directory / "tokenizer_config.json", R"({"tokenizer_class":"RobertaTokenizer"})");
    EXPECT_THROW(Tokenizer::load(directory.path()), UnsupportedError);
    write(directory / "tokenizer_config.json", "[]");
    EXPECT_THROW(Tokenizer::load(directory.path()), FormatError);
    write(directory / "tokenizer_config.json", R"({"added_tokens_decoder":{"-1":{}}})");
    EXPECT_THROW(Tokenizer::load(directory.path()), FormatError);
    std::filesystem::remove(directory / "tokenizer_config.json");
    write(directory / merges, "#version: 0.2\nno such\n");
    EXPECT_THROW(Tokenizer::load(directory.path()), FormatError);
  }
}

TEST(Forms, TwoFilesOfQwen2) {
  const json file = byte_level_file(kMerges);
  const test::TemporaryDirectory directory;
  write(directory / "vocab.json", file["model"]["vocab"].dump());
  write(directory / "merges.txt", merge_lines(file));
  write(directory / "tokenizer_config.json", R"({"tokenizer_class":"Qwen2Tokenizer",
    "added_tokens_decoder":{"270":{"content":"<|im_start|>","special":true,"normalized":false},
                            "271":{"content":"<|im_end|>","special":true,"normalized":false}},
    "eos_token":"<|im_end|>"})");
  const Tokenizer tokenizer = Tokenizer::load(directory.path());
  EXPECT_EQ(tokenizer.encode(kTexts[0]), (Ids{105, 116, 256, 32, 73, 84, 257, 258, 260}));
  EXPECT_EQ(tokenizer.encode(kTexts[3]), (Ids{265, 265}));
  EXPECT_EQ(tokenizer.encode("<|im_start|>a<|im_end|>"), (Ids{270, 97, 271}));
  EXPECT_EQ(tokenizer.eos_id(), 271);
}

}  // namespace
}  // namespace heirloom
