// SPDX-License-Identifier: Apache-2.0
//
// Streaming readers of lines, JSONL objects and documents. Files may be compressed
// (data/byte_source.h); memory is bounded by the longest line allowed or the piece size, whatever
// the file's size.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "heirloom/data/byte_source.h"
#include "heirloom/io/json.h"

namespace heirloom {

inline constexpr size_t kMaxLineBytes = size_t{256} << 20;

/// Lines without their "\n" or "\r\n".
class LineReader {
 public:
  /// A line of more than `max_line_bytes` is a FormatError.
  explicit LineReader(const fs::path& path, size_t max_line_bytes = kMaxLineBytes);
  LineReader(std::unique_ptr<ByteSource> source, std::string name,
             size_t max_line_bytes = kMaxLineBytes);

  /// False at the end. `line` is valid until the next call.
  bool next(std::string_view& line);
  int64_t line_number() const { return line_number_; }  ///< of the last line given, from 1
  const std::string& name() const { return name_; }
  const ByteSource& source() const { return *source_; }

 private:
  std::unique_ptr<ByteSource> source_;
  std::string name_;
  size_t max_line_bytes_;
  std::string buffer_;
  size_t begin_ = 0;
  int64_t line_number_ = 0;
  bool at_end_ = false;
};

/// One JSON object per line; lines of white space are skipped. Anything else is a FormatError
/// naming file and line.
class JsonlReader {
 public:
  explicit JsonlReader(const fs::path& path, size_t max_line_bytes = kMaxLineBytes)
      : lines_(path, max_line_bytes) {}
  explicit JsonlReader(LineReader lines) : lines_(std::move(lines)) {}

  bool next(Json& object);
  std::string where() const;  ///< "file:line" of the last object
  int64_t line_number() const { return lines_.line_number(); }
  const ByteSource& source() const { return lines_.source(); }

 private:
  LineReader lines_;
};

enum class TextFormat {
  kAuto,   ///< by the name, less .gz or .zst: .txt is text, .jsonl is JSONL, anything else a
           ///< FormatError
  kText,   ///< bytes; UTF-8 is not checked
  kJsonl,  ///< each line's "text" is a document, given as one piece
};

struct TextReaderOptions {
  TextFormat format = TextFormat::kAuto;
  /// Text only: documents are separated by lines equal to this; they lose their final newline, and
  /// empty ones are skipped. Empty: the whole file is one document, byte for byte.
  std::string separator;
  /// Text only: longer documents come in pieces of about this many bytes.
  size_t piece_bytes = size_t{1} << 20;
  size_t max_line_bytes = kMaxLineBytes;
};

struct TextPiece {
  std::string text;
  bool document_end = false;  ///< the last piece of its document
};

/// Documents of one file, long ones in pieces. Pieces joined are the document. A piece ends where
/// pre-tokenizers split too: in front of white space that follows a letter or digit (a newline
/// where there is one), so that with byte-level BPE the tokens of the pieces joined are the tokens
/// of the document; a tokenizer that puts a space in front of every text adds one token per further
/// piece. Only text without any such place for a whole piece is cut elsewhere.
class TextReader {
 public:
  explicit TextReader(const fs::path& path, TextReaderOptions options = {});
  TextReader(std::unique_ptr<ByteSource> source, const std::string& name,
             TextReaderOptions options = {});

  /// False at the end.
  bool next(TextPiece& piece);
  int64_t bytes_consumed() const;  ///< of the stored file
  int64_t bytes_total() const;

 private:
  bool next_text(TextPiece& piece);
  bool next_json(TextPiece& piece);
  void fill();
  size_t find_separator(size_t& after);

  TextReaderOptions options_;
  std::unique_ptr<JsonlReader> jsonl_;
  std::unique_ptr<ByteSource> source_;
  std::string buffer_;  // bytes not given yet, from begin_ on
  size_t begin_ = 0;
  size_t searched_ = 0;     // no separator starts before this position
  bool line_start_ = true;  // begin_ is the start of a line
  bool open_ = false;       // pieces of the current document have been given
  bool at_end_ = false;
};

}  // namespace heirloom
