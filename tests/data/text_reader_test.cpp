// SPDX-License-Identifier: Apache-2.0
#include "heirloom/data/text_reader.h"

#include <gtest/gtest.h>
#include <zlib.h>
#include <zstd.h>

#include <cctype>

#include "heirloom/core/error.h"
#include "io/temporary_directory.h"

namespace heirloom {
namespace {

using test::TemporaryDirectory;

std::string gzip(const std::string& text) {
  z_stream stream{};
  EXPECT_EQ(deflateInit2(&stream, 6, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string out(deflateBound(&stream, text.size()) + 64, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

std::string zstd(const std::string& text) {
  std::string out(ZSTD_compressBound(text.size()), '\0');
  out.resize(ZSTD_compress(out.data(), out.size(), text.data(), text.size(), 3));
  return out;
}

std::string drain(ByteSource& source, size_t step) {
  std::string out, buffer(step, '\0');
  while (const size_t got = source.read(buffer.data(), step)) out.append(buffer, 0, got);
  return out;
}

/// All documents of a text, pieces joined; checks that no piece is empty inside a document.
std::vector<std::string> documents(const std::string& text, TextReaderOptions options,
                                   const std::string& name = "a.txt", size_t* pieces = nullptr) {
  TextReader reader(memory_bytes(text, name), name, std::move(options));
  std::vector<std::string> out;
  TextPiece piece;
  bool open = false;
  while (reader.next(piece)) {
    if (!open) out.emplace_back();
    out.back() += piece.text;
    open = !piece.document_end;
    if (open) {
      EXPECT_FALSE(piece.text.empty());
    }
    if (pieces != nullptr) ++*pieces;
  }
  EXPECT_FALSE(open);
  EXPECT_EQ(reader.bytes_consumed(), reader.bytes_total());
  return out;
}

std::string long_text(size_t bytes) {
  std::string text;
  for (uint32_t i = 0, x = 1; text.size() < bytes; ++i) {
    x = x * 1664525u + 1013904223u;
    text += std::string("word ninety-nine. \xC3\xA9t\xC3\xA9, \n\n 3.14")
                .substr(x % 7, 3 + (x >> 8) % 25);
    text += (x >> 20) % 9 == 0 ? "\n" : " ";
  }
  return text;
}

TEST(ByteSource, Decompresses) {
  const std::string text = long_text(1 << 20), other = long_text(1000);
  for (const size_t step : {size_t{1000}, size_t{1} << 20}) {
    EXPECT_EQ(drain(*memory_bytes(text, "a.txt"), step), text);
    EXPECT_EQ(drain(*memory_bytes(gzip(text), "a.gz"), step), text);
    EXPECT_EQ(drain(*memory_bytes(zstd(text), "a.zst"), step), text);
    EXPECT_EQ(drain(*memory_bytes(gzip(text) + gzip("") + gzip(other), "a.gz"), step),
              text + other);
    EXPECT_EQ(drain(*memory_bytes(zstd(text) + zstd("") + zstd(other), "a.zst"), step),
              text + other);
    EXPECT_EQ(drain(*memory_bytes(gzip(text) + std::string(512, '\0'), "a.gz"), step), text);
  }
  // A megabyte of zeros in a few bytes: more output than one call takes, from no further input.
  const std::string zeros(1 << 22, '\0');
  EXPECT_EQ(drain(*memory_bytes(zstd(zeros), "a.zst"), 100'000), zeros);
  EXPECT_EQ(drain(*memory_bytes(gzip(zeros), "a.gz"), 100'000), zeros);
}

TEST(ByteSource, DamagedStreamsAreFormatErrors) {
  const std::string text = long_text(100'000), gz = gzip(text), zst = zstd(text);
  for (const size_t cut : {size_t{0}, size_t{1}, size_t{10}, gz.size() / 2, gz.size() - 1}) {
    EXPECT_THROW(drain(*memory_bytes(gz.substr(0, cut), "a.gz"), 4096), FormatError) << cut;
  }
  for (const size_t cut : {size_t{0}, size_t{1}, size_t{10}, zst.size() / 2, zst.size() - 1}) {
    EXPECT_THROW(drain(*memory_bytes(zst.substr(0, cut), "a.zst"), 4096), FormatError) << cut;
  }
  std::string bad = gz;
  bad[bad.size() - 6] = static_cast<char>(bad[bad.size() - 6] ^ 1);  // the checksum
  EXPECT_THROW(drain(*memory_bytes(bad, "a.gz"), 4096), FormatError);
  EXPECT_THROW(drain(*memory_bytes("plain text", "a.gz"), 4096), FormatError);
  EXPECT_THROW(drain(*memory_bytes("plain text", "a.zst"), 4096), FormatError);
  EXPECT_THROW(drain(*memory_bytes(gz + "junk", "a.gz"), 4096), FormatError);
  EXPECT_THROW(drain(*memory_bytes(zst + "junk", "a.zst"), 4096), FormatError);
  EXPECT_THROW(open_bytes("/nowhere/a.gz"), IoError);
}

TEST(LineReader, LinesOfAllKinds) {
  LineReader reader(memory_bytes("a\r\n\n\nb\rc\nlast", "x"), "x");
  std::string_view line;
  std::vector<std::string> lines;
  while (reader.next(line)) lines.emplace_back(line);
  EXPECT_EQ(lines, (std::vector<std::string>{"a", "", "", "b\rc", "last"}));
  EXPECT_EQ(reader.line_number(), 5);
  LineReader capped(memory_bytes("12345\r\n12345\n123456\n", "x"), "x", 5);
  EXPECT_TRUE(capped.next(line));
  EXPECT_TRUE(capped.next(line));
  EXPECT_EQ(line, "12345");
  EXPECT_THROW(capped.next(line), FormatError);
  LineReader endless(memory_bytes(std::string(10 << 20, 'x'), "x"), "x", 1 << 20);
  EXPECT_THROW(endless.next(line), FormatError);
  EXPECT_LT(endless.source().consumed(), 2 << 20);  // it did not read on
}

TEST(JsonlReader, NamesFileAndLine) {
  JsonlReader reader(
      LineReader(memory_bytes("{\"a\":1}\n \n{\"a\":2}\r\n{\"a\":\n", "f.jsonl"), "f.jsonl"));
  Json object;
  ASSERT_TRUE(reader.next(object));
  ASSERT_TRUE(reader.next(object));
  EXPECT_EQ(object["a"], 2);
  EXPECT_EQ(reader.where(), "f.jsonl:3");
  try {
    reader.next(object);
    FAIL();
  } catch (const FormatError& e) {
    EXPECT_NE(std::string(e.what()).find("f.jsonl:4:"), std::string::npos) << e.what();
  }
}

TEST(TextReader, JsonlDocuments) {
  EXPECT_EQ(documents("{\"id\":1,\"text\":\"a\\nb\"}\n{\"text\":\"\"}\n", {}, "a.jsonl"),
            (std::vector<std::string>{"a\nb", ""}));
  EXPECT_EQ(documents(gzip("{\"text\":\"x\"}"), {}, "a.jsonl.gz"), std::vector<std::string>{"x"});
  for (const char* bad :
       {"{\"txt\":\"a\"}", "{\"text\":1}", "[1]", "text", "{\"text\":\"\xff\"}"}) {
    try {
      documents(std::string("{\"text\":\"x\"}\n") + bad, {}, "a.jsonl");
      FAIL() << bad;
    } catch (const FormatError& e) {
      EXPECT_NE(std::string(e.what()).find("a.jsonl:2"), std::string::npos) << e.what();
    }
  }
}

TEST(TextReader, FormatComesFromTheName) {
  for (const char* name : {"a.md", "a.txt.xz", "a", "a.gz", "jsonl"}) {
    EXPECT_THROW(TextReader(memory_bytes("x", "a"), name), FormatError) << name;
  }
  TextReaderOptions options;
  options.format = TextFormat::kText;
  EXPECT_EQ(documents("x", options, "a.md"), std::vector<std::string>{"x"});
}

TEST(TextReader, WholeFileIsOneDocumentByteForByte) {
  const std::string text = long_text(300'000) + "\xff\xfe\n";
  for (const size_t piece : {size_t{1}, size_t{100}, size_t{4096}, size_t{1} << 20}) {
    TextReaderOptions options;
    options.piece_bytes = piece;
    size_t pieces = 0;
    EXPECT_EQ(documents(piece == 1 ? text.substr(0, 2000) : text, options, "a.txt", &pieces),
              std::vector<std::string>{piece == 1 ? text.substr(0, 2000) : text});
    if (piece < 10'000) {
      EXPECT_GT(pieces, 50u);
    }
  }
  EXPECT_TRUE(documents("", {}).empty());
  EXPECT_EQ(documents("\n", {}), std::vector<std::string>{"\n"});
}

TEST(TextReader, PiecesEndInFrontOfWhiteSpaceAfterAWord) {
  const std::string text = long_text(200'000);
  TextReaderOptions options;
  options.piece_bytes = 1000;
  TextReader reader(memory_bytes(text, "a.txt"), "a.txt", options);
  TextPiece piece;
  bool first = true;
  char last = 0;
  size_t longest = 0;
  while (reader.next(piece)) {
    if (!first) {
      EXPECT_TRUE(piece.text[0] == '\n' || piece.text[0] == ' ') << piece.text.substr(0, 10);
      EXPECT_TRUE(std::isalnum(static_cast<unsigned char>(last))) << last;
    }
    first = false;
    last = piece.text.back();
    longest = std::max(longest, piece.text.size());
  }
  EXPECT_LE(longest, 1010u);
}

TEST(TextReader, TextWithoutSpacesIsCutBetweenCharacters) {
  std::string text;
  for (int i = 0; i < 5000; ++i) text += "\xE6\x97\xA5\xF0\x9F\x8E\x89";
  TextReaderOptions options;
  options.piece_bytes = 1001;
  TextReader reader(memory_bytes(text, "a.txt"), "a.txt", options);
  TextPiece piece;
  std::string joined;
  while (reader.next(piece)) {
    EXPECT_NE(static_cast<unsigned char>(piece.text[0]) & 0xC0, 0x80);
    joined += piece.text;
  }
  EXPECT_EQ(joined, text);
  // Bytes that are no UTF-8 at all still pass.
  EXPECT_EQ(documents(std::string(5000, '\x80'), options),
            std::vector<std::string>{std::string(5000, '\x80')});
}

TEST(TextReader, SeparatorLines) {
  TextReaderOptions options;
  options.separator = "<|end|>";
  using List = std::vector<std::string>;
  EXPECT_EQ(documents("a\nb\n<|end|>\nc\n<|end|>\n", options), (List{"a\nb", "c"}));
  EXPECT_EQ(documents("<|end|>\n<|end|>\na<|end|>\n<|end|> \nb", options),
            (List{"a<|end|>\n<|end|> \nb"}));
  EXPECT_EQ(documents("a\r\n<|end|>\r\nb\r\n<|end|>", options), (List{"a", "b"}));
  EXPECT_EQ(documents("a\n<|end|>\r", options), (List{"a"}));
  EXPECT_EQ(documents("a\n<|end|", options), (List{"a\n<|end|"}));
  EXPECT_EQ(documents("<|end|>", options), List{});
  EXPECT_EQ(documents("\n<|end|>\n\n\n<|end|>\nx", options), (List{"\n", "x"}));
  options.separator = "a\nb";
  EXPECT_THROW(documents("x", options), ArgumentError);
}

TEST(TextReader, SeparatorsAreFoundWhereverThePiecesEnd) {
  // Many documents of many lengths: the separator falls on every offset from a piece's and a read's
  // end.
  TextReaderOptions options;
  options.separator = "<|endoftext|>";
  std::vector<std::string> expected;
  std::string text;
  for (size_t i = 1; i < 900; ++i) {
    std::string document = long_text(i * 3).substr(0, i * 3);
    while (!document.empty() && document.back() == '\n') document.pop_back();
    text += document + "\n<|endoftext|>\n";
    expected.push_back(document);
  }
  ASSERT_GT(text.size(), size_t{1} << 20);
  for (const size_t piece : {size_t{7}, size_t{64}, size_t{1000}, size_t{1} << 20}) {
    options.piece_bytes = piece;
    EXPECT_TRUE(documents(text, options) == expected) << piece;
  }
}

TEST(TextReader, ReportsProgressInStoredBytes) {
  const TemporaryDirectory dir;
  const std::string packed = zstd(long_text(1 << 20));
  write_file_atomically(dir / "a.txt.zst", packed);
  TextReader reader(dir / "a.txt.zst");
  EXPECT_EQ(reader.bytes_total(), static_cast<int64_t>(packed.size()));
  TextPiece piece;
  while (reader.next(piece)) {
  }
  EXPECT_EQ(reader.bytes_consumed(), reader.bytes_total());
}

}  // namespace
}  // namespace heirloom
