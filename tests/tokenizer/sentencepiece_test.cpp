// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cstring>

#include "fixtures.h"
#include "heirloom/core/error.h"
#include "src/tokenizer/sentencepiece.h"

namespace heirloom::testing {
namespace {

using Tokens = std::vector<std::string>;
const std::string kSpace = "\xE2\x96\x81";

std::string varint(uint64_t value) {
  std::string out;
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(0x80 | (value & 0x7F));
  return out + static_cast<char>(value);
}
std::string number_field(uint64_t field, uint64_t value) {
  return varint(field << 3) + varint(value);
}
std::string text_field(uint64_t field, const std::string& text) {
  return varint(field << 3 | 2) + varint(text.size()) + text;
}
std::string float_field(uint64_t field, float value) {
  std::string bytes(4, '\0');
  std::memcpy(bytes.data(), &value, 4);
  return varint(field << 3 | 5) + bytes;
}

struct Piece {
  std::string text;
  float score;
  int type = 1;
};
enum : int { kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

struct ModelOptions {
  uint64_t type = 2;
  bool dummy_prefix = true, remove_extra = false, byte_fallback = true;
  std::string charsmap = {};
};

std::string model_file(const std::vector<Piece>& extra, const ModelOptions& o = {}) {
  std::vector<Piece> pieces = {{"<unk>", 0, kUnknown}, {"<s>", 0, kControl}, {"</s>", 0, kControl}};
  if (o.byte_fallback)
    for (int b = 0; b < 256; ++b) pieces.push_back({fmt::format("<0x{:02X}>", b), 0, kByte});
  pieces.insert(pieces.end(), extra.begin(), extra.end());
  std::string file;
  for (const Piece& p : pieces)
    file += text_field(1, text_field(1, p.text) + float_field(2, p.score) +
                              number_field(3, static_cast<uint64_t>(p.type)));
  file += text_field(2, number_field(3, o.type) + number_field(35, o.byte_fallback));
  file += text_field(3, text_field(2, o.charsmap) + number_field(3, o.dummy_prefix) +
                            number_field(4, o.remove_extra) + number_field(5, 1));
  return file;
}

Tokenizer load_model(const std::vector<Piece>& pieces, const ModelOptions& o = {}) {
  return Tokenizer::from_sentencepiece(model_file(pieces, o), "test");
}

const std::vector<Piece> kLow = {{kSpace, -10}, {"l", -11}, {"o", -12},         {"w", -13},
                                 {"lo", -2},    {"ow", -1}, {kSpace + "lo", -3}};

TEST(SentencePiece, HigherScoresMergeFirst) {
  const Tokenizer t = load_model(kLow);
  EXPECT_EQ(tokens_of(t, "low"), (Tokens{kSpace, "l", "ow"}));
  EXPECT_EQ(tokens_of(t, "lo"), (Tokens{kSpace + "lo"}));
  EXPECT_EQ(tokens_of(t, "lo lo"), (Tokens{kSpace + "lo", kSpace + "lo"}));
  EXPECT_EQ(t.kind(), "SentencePiece BPE");
}

TEST(SentencePiece, EqualScoresMergeLeftmostFirst) {
  const Tokenizer t = load_model({{kSpace, -10}, {"a", -11}, {"aa", -1}, {kSpace + "aa", -2}});
  EXPECT_EQ(tokens_of(t, "aaa"), (Tokens{kSpace + "aa", "a"}));
}

TEST(SentencePiece, BytesSpecialTokensAndBos) {
  const Tokenizer t = load_model(kLow);
  EXPECT_EQ(tokens_of(t, "\xC3\xA9"), (Tokens{kSpace, "<0xC3>", "<0xA9>"}));
  EXPECT_EQ(t.decode(t.encode("lo \xC3\xA9\xFF low")), "lo \xC3\xA9\xFF low");
  EXPECT_EQ(t.encode("<s>").size(), 4u);  // plain text
  EXPECT_EQ(t.encode("lo", {.add_special = true}).front(), 1);
  EXPECT_EQ(t.encode("", {.add_special = true}), (std::vector<int32_t>{1}));
  EXPECT_EQ(t.bos_id(), 1);
  EXPECT_EQ(t.eos_id(), 2);
  EXPECT_EQ(t.decode(t.encode("lo", {.add_special = true})), "<s>lo");
  EXPECT_EQ(t.decode(t.encode("lo", {.add_special = true}), {.skip_special = true}), "lo");
  EXPECT_EQ(t.decode(std::vector<int32_t>{*t.token_id("lo"), 0}), "lo \xE2\x81\x87 ");
  EXPECT_THROW(t.to_json(), UnsupportedError);
}

TEST(SentencePiece, WithoutFallbackUnknownsFuse) {
  const Tokenizer t = load_model(kLow, {.byte_fallback = false});
  EXPECT_EQ(tokens_of(t, "loxyzlo"), (Tokens{kSpace + "lo", "<unk>", "lo"}));
}

TEST(SentencePiece, WhiteSpaceRules) {
  EXPECT_EQ(tokens_of(load_model(kLow, {.dummy_prefix = false}), "lo"), (Tokens{"lo"}));
  EXPECT_EQ(tokens_of(load_model(kLow), "  lo "), (Tokens{kSpace, kSpace, kSpace + "lo", kSpace}));
  EXPECT_EQ(tokens_of(load_model(kLow, {.remove_extra = true}), "  lo   lo  "),
            (Tokens{kSpace + "lo", kSpace + "lo"}));
  EXPECT_TRUE(load_model(kLow, {.remove_extra = true}).encode("   ").empty());
  EXPECT_TRUE(load_model(kLow).encode("").empty());
}

TEST(SentencePiece, UserDefinedAndUnusedPieces) {
  std::vector<Piece> pieces = kLow;
  pieces.push_back({"lowlow", 0, kUserDefined});
  pieces.push_back({"lol", 5, kUnused});
  const Tokenizer t = load_model(pieces);
  EXPECT_EQ(tokens_of(t, "lowlow"), (Tokens{kSpace, "lowlow"}));
  // "lol" wins by its score but may not be put out: it falls back to what it was made of.
  EXPECT_EQ(tokens_of(t, "lol"), (Tokens{kSpace, "lo", "l"}));
}

TEST(SentencePiece, PrecompiledNormalization) {
  // A double array with one key: "A" becomes "lo". Unit 0 is the root; children of a unit lie at
  // position ^ offset ^ label.
  std::vector<uint32_t> units(256, 0);
  units[0] = 1u << 10;                            // children at 0 ^ 1 ^ label
  units[0 ^ 1 ^ 'A'] = 2u << 10 | 1u << 8 | 'A';  // a leaf at position ^ 2
  units[(0 ^ 1 ^ 'A') ^ 2] = 0x80000000u | 0;     // the value: strings start at 0
  std::string charsmap(4 + units.size() * 4, '\0');
  const auto bytes = static_cast<uint32_t>(units.size() * 4);
  std::memcpy(charsmap.data(), &bytes, 4);
  std::memcpy(charsmap.data() + 4, units.data(), bytes);
  charsmap += std::string("lo\0", 3);
  ModelOptions options;
  options.charsmap = charsmap;
  EXPECT_EQ(tokens_of(load_model(kLow, options), "Aw"), (Tokens{kSpace, "l", "ow"}));
  options.charsmap = charsmap.substr(0, 100);
  EXPECT_THROW(load_model(kLow, options), FormatError);
  // Offsets that point anywhere stay inside the array.
  for (uint32_t& unit : units) unit = 0xFFFFFF00u;
  std::memcpy(charsmap.data() + 4, units.data(), bytes);
  options.charsmap = charsmap;
  EXPECT_NO_THROW(load_model(kLow, options).encode("Aw\xFF"));
}

TEST(SentencePiece, RefusesOtherModelsAndDamage) {
  EXPECT_THROW(load_model(kLow, {.type = 1}), UnsupportedError);
  EXPECT_THROW(load_model(kLow, {.type = 4}), UnsupportedError);
  EXPECT_THROW(load_model({{"x", 0}, {"x", 0}}), FormatError);
  EXPECT_THROW(load_model({{"x", 0, 9}}), FormatError);
  EXPECT_THROW(load_model({{"<0xZZ>", 0, kByte}}), FormatError);
  EXPECT_THROW(load_model({{"x", std::nanf("")}}), FormatError);
  EXPECT_THROW(Tokenizer::from_sentencepiece("", "test"), FormatError);
  EXPECT_THROW(
      Tokenizer::from_sentencepiece("\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01", "test"),
      FormatError);
  EXPECT_THROW(Tokenizer::from_sentencepiece(std::string(64, '\xFF'), "test"), FormatError);
  const std::string file = model_file(kLow);
  for (size_t cut = 0; cut < file.size(); ++cut) {
    // A cut at the very end may leave a shorter but complete message.
    try {
      Tokenizer::from_sentencepiece(file.substr(0, cut), "test").encode("low");
      EXPECT_GT(cut, file.size() - 40);
    } catch (const FormatError&) {
    }
  }
}

}  // namespace
}  // namespace heirloom::testing
