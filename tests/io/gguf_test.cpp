// SPDX-License-Identifier: Apache-2.0
#include "heirloom/io/gguf.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>

#include "heirloom/core/error.h"
#include "io/temporary_directory.h"
#include "support/gguf_writer.h"

namespace heirloom {
namespace {

using test::gguf_string;
using test::GgufWriter;
using test::raw;

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

/// The message of the FormatError that an image causes, or "" when it is accepted.
std::string problem(const std::string& image) {
  try {
    parse_gguf(bytes_of(image), "x.gguf");
  } catch (const FormatError& e) {
    return e.what();
  }
  return "";
}

#define EXPECT_PROBLEM(image, text)                                                   \
  do {                                                                                \
    const std::string found = problem(image);                                         \
    EXPECT_NE(found.find(text), std::string::npos) << "got: " << found;               \
    EXPECT_EQ(found.find("[gguf] expected "), 0u) << found;                           \
    EXPECT_TRUE(found.empty() || found.find("x.gguf") != std::string::npos) << found; \
  } while (0)

GgufWriter small() {
  GgufWriter w;
  w.add("general.architecture", "llama").add("llama.block_count", 2);
  w.floats("a", {3, 2}, {1, 2, 3, 4, 5, 6}).floats("b", {1}, {7});
  return w;
}

TEST(Gguf, ReadsMetadataOfEveryType) {
  GgufWriter w;
  w.pair("u8", 0, "\xFF").pair("i8", 1, "\xFF").pair("u16", 2, raw<uint16_t>(65535));
  w.pair("i16", 3, raw<int16_t>(-2)).add("u32", uint32_t{4000000000}).pair("i32", 5, raw(-3));
  w.add("f32", 0.5f).add("yes", true).add("no", false).add("text", "gr\xC3\xBC\xC3\x9F");
  w.pair("u64", 10, raw<uint64_t>(1ull << 63)).pair("i64", 11, raw<int64_t>(-4));
  w.pair("f64", 12, raw(0.1));
  w.add("texts", std::vector<std::string>{"", "b"}).array<int32_t>("ids", 5, {3, -1});
  w.array<float>("scores", 6, {-1.5f, 2}).array<uint8_t>("none", 0, {});
  const std::string image = w.image();
  const GgufMetadata m = parse_gguf(bytes_of(image), "x.gguf").metadata;
  EXPECT_EQ(m.values().size(), 17u);
  EXPECT_EQ(m.integer("u8"), 255);
  EXPECT_EQ(m.integer("i8"), -1);
  EXPECT_EQ(m.integer("u16"), 65535);
  EXPECT_EQ(m.integer("i16"), -2);
  EXPECT_EQ(m.integer("u32"), 4000000000);
  EXPECT_EQ(m.integer("i32"), -3);
  EXPECT_EQ(m.integer("u64"), INT64_MAX);
  EXPECT_EQ(m.integer("i64"), -4);
  EXPECT_EQ(m.number("f32"), 0.5);
  EXPECT_EQ(m.number("f64"), 0.1);
  EXPECT_EQ(m.number("i32"), -3.0);
  EXPECT_EQ(m.find_boolean("yes"), true);
  EXPECT_EQ(m.find_boolean("no"), false);
  EXPECT_EQ(m.text("text"), "gr\xC3\xBC\xC3\x9F");
  EXPECT_EQ(m.find_texts("texts")->texts(), (std::vector<std::string_view>{"", "b"}));
  EXPECT_EQ(m.find_integers("ids")->integer(1), -1);
  EXPECT_EQ(m.find_numbers("scores")->number(0), -1.5);
  EXPECT_EQ(m.find_integers("none")->size(), 0u);
  EXPECT_EQ(m.find_integer("absent"), std::nullopt);
  EXPECT_EQ(m.find_texts("absent"), nullptr);
}

TEST(Gguf, WrongTypesNameTheKey) {
  const std::string image = small().add("list", std::vector<std::string>{"a"}).image();
  const GgufMetadata m = parse_gguf(bytes_of(image), "x.gguf").metadata;
  const auto message = [](auto&& call) -> std::string {
    try {
      call();
    } catch (const FormatError& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_EQ(message([&] { m.integer("general.architecture"); }),
            "[gguf] expected an integer as general.architecture; got string; x.gguf");
  EXPECT_EQ(message([&] { m.text("list"); }),
            "[gguf] expected a string as list; got array of string; x.gguf");
  EXPECT_EQ(message([&] { m.number("absent"); }),
            "[gguf] expected a number as absent; got none; x.gguf");
  EXPECT_NE(message([&] { m.find_boolean("llama.block_count"); }), "");
  EXPECT_NE(message([&] { m.find_integers("list"); }), "");
  EXPECT_NE(message([&] { m.find_texts("llama.block_count"); }), "");
  EXPECT_NE(message([&] { m.find_numbers("list"); }), "");
}

TEST(Gguf, ReadsTensorsWithRowsFirst) {
  const test::TemporaryDirectory dir;
  for (const uint32_t version : {2u, 3u}) {
    GgufWriter w = small();
    w.version = version;
    write_file_atomically(dir / "m.gguf", w.image());
    const GgufFile file(dir / "m.gguf");
    ASSERT_EQ(file.tensors().size(), 2u);
    const GgufTensor& a = file.tensors().at("a");
    EXPECT_EQ(a.shape, (std::vector<int64_t>{2, 3}));
    EXPECT_EQ(a.type, GgufType::kF32);
    float values[6];
    ASSERT_EQ(a.data.size(), sizeof values);
    std::memcpy(values, a.data.data(), sizeof values);
    EXPECT_EQ(values[3], 4.0f);
    std::memcpy(values, file.tensors().at("b").data.data(), sizeof(float));
    EXPECT_EQ(values[0], 7.0f);
  }
  EXPECT_THROW(GgufFile(dir / "absent.gguf"), IoError);
}

TEST(Gguf, AlignmentIsTheFilesOwn) {
  GgufWriter w;
  w.alignment = 64;
  w.add("general.alignment", 64).floats("a", {1}, {1}).floats("b", {1}, {2});
  const std::string image = w.image();
  EXPECT_EQ(parse_gguf(bytes_of(image), "x").tensors.at("b").data.data() -
                reinterpret_cast<const std::byte*>(image.data()),
            192);
  for (const uint32_t bad : {0u, 3u, 1u << 21}) {
    EXPECT_PROBLEM(GgufWriter().add("general.alignment", bad).image(), "power of two");
  }
  EXPECT_PROBLEM(GgufWriter().add("general.alignment", "32").image(), "general.alignment");
}

TEST(Gguf, EveryTruncationIsRefused) {
  const std::string image = small().add("t", std::vector<std::string>{"x", "y"}).image();
  ASSERT_EQ(problem(image), "");
  // Only the padding behind the last tensor (28 bytes) may be absent.
  for (size_t size = 0; size < image.size(); ++size) {
    EXPECT_EQ(problem(image.substr(0, size)).empty(), size >= image.size() - 28) << size;
  }
  EXPECT_PROBLEM(image + std::string(1, '\0'), "bytes behind it");
}

TEST(Gguf, WrongHeaders) {
  const std::string image = small().image();
  const auto with = [&](size_t at, const std::string& part) {
    std::string copy = image;
    return copy.replace(at, part.size(), part);
  };
  EXPECT_PROBLEM(with(0, "GGML"), "no GGUF file");
  EXPECT_PROBLEM(with(4, raw<uint32_t>(1)), "version 1");
  EXPECT_PROBLEM(with(4, raw<uint32_t>(4)), "version 4");
  EXPECT_PROBLEM(with(4, raw<uint32_t>(0)), "got 0");
  EXPECT_PROBLEM(with(4, raw<uint32_t>(3u << 24)), "big-endian");
  EXPECT_PROBLEM(with(8, raw<uint64_t>(~0ull)), "counts");
  EXPECT_PROBLEM(with(16, raw<uint64_t>(~0ull)), "counts");
  EXPECT_PROBLEM(with(8, raw<uint64_t>(3)), "[gguf]");
  EXPECT_PROBLEM(with(16, raw<uint64_t>(3)), "[gguf]");
}

TEST(Gguf, WrongMetadata) {
  const auto pair = [](std::string_view key, uint32_t type, const std::string& value) {
    return GgufWriter().pair(key, type, value).image() + std::string(64, '\0');
  };
  EXPECT_PROBLEM(GgufWriter().add("a", 1).add("a", 2).image(), "once; got \"a\" again");
  EXPECT_PROBLEM(pair("", 4, raw(1)), "empty");
  EXPECT_PROBLEM(pair("\xFF", 4, raw(1)), "UTF-8");
  EXPECT_PROBLEM(pair("a", 13, raw(1)), "got 13");
  EXPECT_PROBLEM(pair("a", 7, "\2"), "bool of 0 or 1; got 2");
  EXPECT_PROBLEM(pair("a", 8, raw<uint64_t>(~0ull) + "x"), "at most");
  EXPECT_PROBLEM(pair("a", 8, raw<uint64_t>(1000) + "x"), "cut short");
  EXPECT_PROBLEM(pair("a", 9, raw<uint32_t>(9) + raw<uint64_t>(1)), "array of arrays");
  EXPECT_PROBLEM(pair("a", 9, raw<uint32_t>(99) + raw<uint64_t>(1)), "got 99");
  EXPECT_PROBLEM(pair("a", 9, raw<uint32_t>(4) + raw<uint64_t>(1ull << 62)), "fits the file");
  EXPECT_PROBLEM(pair("a", 9, raw<uint32_t>(8) + raw<uint64_t>(1ull << 61)), "fits the file");
  EXPECT_PROBLEM(pair("a", 9, raw<uint32_t>(7) + raw<uint64_t>(2) + "\1\2"), "got 2");
  for (const char* bad : {"\x80", "\xC0\x80", "\xC3", "\xE0\x80\x80", "\xED\xA0\x80",
                          "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "a\xF0\x9F\x98"}) {
    EXPECT_PROBLEM(pair("a", 8, gguf_string(bad)), "UTF-8");
  }
  EXPECT_EQ(problem(GgufWriter().add("a", "\xF0\x9F\x98\x80\xE2\x82\xAC\x7F").image()), "");
}

TEST(Gguf, WrongTensors) {
  const auto damaged = [](auto&& change) {
    GgufWriter w = small();
    change(w.tensors);
    return w.image();
  };
  using Tensors = std::vector<GgufWriter::Tensor>;
  EXPECT_PROBLEM(damaged([](Tensors& t) { t[1].name = "a"; }), "\"a\" again");
  EXPECT_PROBLEM(damaged([](Tensors& t) { t[1].name = ""; }), "distinct tensor names");
  EXPECT_PROBLEM(damaged([](Tensors& t) { t[1].name = std::string(65, 'x'); }), "at most 64");
  EXPECT_PROBLEM(damaged([](Tensors& t) { t[1].name = "\xFF"; }), "UTF-8");
  EXPECT_PROBLEM(damaged([](Tensors& t) { t[0].dims = {}; }), "1 to 4 dims; got 0");
  EXPECT_PROBLEM(damaged([](Tensors& t) { t[0].dims = {1, 1, 1, 1, 6}; }), "got 5");
  EXPECT_PROBLEM(damaged([](Tensors& t) { t[0].dims = {0, 2}; }), "got 0 as dim 0");
  EXPECT_PROBLEM(damaged([](Tensors& t) { t[0].dims = {1ull << 63, 2}; }), "below 2^63");
  EXPECT_PROBLEM(damaged([](Tensors& t) { t[0].dims = {1ull << 32, 1ull << 32}; }), "below 2^63");
  EXPECT_PROBLEM(damaged([](Tensors& t) { t[0].dims = {1ull << 62}; }), "below 2^63");
  EXPECT_PROBLEM(damaged([](Tensors& t) { t[0].dims = {1ull << 40}; }), "cut short");
  EXPECT_PROBLEM(damaged([](Tensors& t) { t[0].type = 77; }), "got number 77");
  EXPECT_PROBLEM(damaged([](Tensors& t) { t[0].type = 2; }), "whole Q4_0 blocks");
  EXPECT_PROBLEM(damaged([](Tensors& t) { t[1].offset = 36; }), "multiple of 32");
  EXPECT_PROBLEM(damaged([](Tensors& t) { t[1].offset = 0; }), "an overlap");
  EXPECT_PROBLEM(damaged([](Tensors& t) { t[0].offset = 32; }), "[gguf]");
  EXPECT_PROBLEM(damaged([](Tensors& t) { t[1].offset = 1ull << 62; }), "cut short");
  EXPECT_PROBLEM(damaged([](Tensors& t) { t[0].dims = {9, 1}; }), "an overlap");
  EXPECT_PROBLEM(damaged([](Tensors& t) { t.erase(t.begin()); }), "a gap");
  EXPECT_PROBLEM(damaged([](Tensors& t) { t.pop_back(); }), "bytes behind it");
  EXPECT_EQ(problem(damaged([](Tensors& t) { std::swap(t[0], t[1]); })), "");
}

TEST(Gguf, OtherQuantisationsAreRefusedByName) {
  GgufWriter w = small();
  w.tensors[0].type = 12;
  try {
    const std::string image = w.image();
    parse_gguf(bytes_of(image), "x.gguf");
    FAIL();
  } catch (const UnsupportedError& e) {
    EXPECT_STREQ(e.what(),
                 "[gguf] expected F32, F16, BF16, Q8_0, Q4_0 or Q4_1; got Q4_K; tensor \"a\" of "
                 "x.gguf; quantise the model to Q8_0 or F16");
  }
}

std::vector<float> values(GgufType type, const std::string& blocks, size_t count) {
  std::vector<float> out(count, -1e30f);
  dequantise(type, bytes_of(blocks), out.data());
  return out;
}

TEST(Gguf, DequantisesPlainTypes) {
  EXPECT_EQ(values(GgufType::kF32, raw(1.25f) + raw(-2.0f), 2), (std::vector<float>{1.25f, -2}));
  // 1, -2, 2^-24 (the smallest), 65504 (the largest)
  EXPECT_EQ(values(GgufType::kF16, std::string("\x00\x3C\x00\xC0\x01\x00\xFF\x7B", 8), 4),
            (std::vector<float>{1, -2, 0x1p-24f, 65504}));
  EXPECT_EQ(values(GgufType::kBf16, std::string("\x80\x3F\x49\xC0", 4), 2),
            (std::vector<float>{1, -3.140625f}));
  EXPECT_FALSE(is_quantised(GgufType::kBf16));
  EXPECT_TRUE(is_quantised(GgufType::kQ8_0));
  EXPECT_STREQ(gguf_type_name(GgufType::kQ4_1), "Q4_1");
}

TEST(Gguf, DequantisesQ8_0) {
  std::string block = raw<uint16_t>(0x3800) /* 0.5 */ + std::string(32, '\0');
  block[2] = 1;
  block[3] = static_cast<char>(-128);
  block[33] = 127;
  const auto v = values(GgufType::kQ8_0, block + raw<uint16_t>(0xC000) + std::string(32, '\3'), 64);
  EXPECT_EQ(v[0], 0.5f);
  EXPECT_EQ(v[1], -64.0f);
  EXPECT_EQ(v[2], 0.0f);
  EXPECT_EQ(v[31], 63.5f);
  EXPECT_EQ(v[32], -6.0f);  // the second block, with d = -2
  EXPECT_EQ(v[63], -6.0f);
}

TEST(Gguf, DequantisesQ4) {
  std::string nibbles(16, '\0');
  nibbles[0] = static_cast<char>(0xF1);  // element 0 is 1, element 16 is 15
  nibbles[15] = 0x28;                    // element 15 is 8, element 31 is 2
  auto v = values(GgufType::kQ4_0, raw<uint16_t>(0x3400) /* 0.25 */ + nibbles, 32);
  EXPECT_EQ(v[0], -1.75f);
  EXPECT_EQ(v[16], 1.75f);
  EXPECT_EQ(v[15], 0.0f);
  EXPECT_EQ(v[31], -1.5f);
  EXPECT_EQ(v[1], -2.0f);
  v = values(GgufType::kQ4_1, raw<uint16_t>(0x3400) + raw<uint16_t>(0x4900) /* 10 */ + nibbles, 32);
  EXPECT_EQ(v[0], 10.25f);
  EXPECT_EQ(v[16], 13.75f);
  EXPECT_EQ(v[15], 12.0f);
  EXPECT_EQ(v[31], 10.5f);
  EXPECT_EQ(v[1], 10.0f);
  // The sum is rounded once: 2^-24 * 15 + 1 is nearest to 1 + 2^-20.
  v = values(GgufType::kQ4_1, raw<uint16_t>(1) + raw<uint16_t>(0x3C00) + std::string(16, '\x0F'),
             32);
  EXPECT_EQ(v[0], static_cast<float>(1 + 15 * 0x1p-24));
  EXPECT_EQ(v[16], 1.0f);
}

}  // namespace
}  // namespace heirloom
