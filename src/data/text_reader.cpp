// SPDX-License-Identifier: Apache-2.0
#include "heirloom/data/text_reader.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "heirloom/core/error.h"

namespace heirloom {
namespace {

constexpr size_t kReadBytes = size_t{1} << 18;
constexpr size_t kNone = std::string::npos;

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
bool is_word(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

TextFormat resolve_format(const std::string& name, TextFormat format) {
  if (format != TextFormat::kAuto) return format;
  std::string_view stem = name;
  for (const std::string_view suffix : {".gz", ".zst"}) {
    if (stem.ends_with(suffix)) {
      stem.remove_suffix(suffix.size());
      break;
    }
  }
  if (stem.ends_with(".txt")) return TextFormat::kText;
  if (stem.ends_with(".jsonl")) return TextFormat::kJsonl;
  throw_error<FormatError>(
      "[text] expected a name ending with .txt or .jsonl, alone or with .gz or .zst; got {}; "
      "rename it, or "
      "decompress it first",
      name);
}

/// Where to cut `text`, which holds more than a piece: the last place of the best kind there is.
size_t cut_position(std::string_view text) {
  size_t after_word = 0, before_space = 0;
  for (size_t i = text.size() - 1; i > 0; --i) {
    if (!is_space(text[i]) || is_space(text[i - 1])) continue;
    if (is_word(text[i - 1])) {
      if (text[i] == '\n' || text[i] == '\r') return i;
      if (after_word == 0) after_word = i;
    } else if (before_space == 0) {
      before_space = i;
    }
  }
  if (after_word != 0) return after_word;
  if (before_space != 0) return before_space;
  // No white space at all: between two characters.
  size_t at = text.size();
  while (at > 1 && at + 4 > text.size() &&
         (static_cast<unsigned char>(text[at - 1]) & 0xC0) == 0x80)
    --at;
  const bool lead = (static_cast<unsigned char>(text[at - 1]) & 0xC0) == 0xC0;
  return lead && at > 1 ? at - 1 : text.size();
}

}  // namespace

LineReader::LineReader(const fs::path& path, size_t max_line_bytes)
    : LineReader(open_bytes(path), path.string(), max_line_bytes) {}

LineReader::LineReader(std::unique_ptr<ByteSource> source, std::string name, size_t max_line_bytes)
    : source_(std::move(source)), name_(std::move(name)), max_line_bytes_(max_line_bytes) {}

bool LineReader::next(std::string_view& line) {
  size_t searched = begin_;
  size_t newline = kNone;
  for (;;) {
    newline = buffer_.find('\n', searched);
    if (newline != kNone || at_end_) break;
    if (buffer_.size() - begin_ > max_line_bytes_ + 2) break;
    buffer_.erase(0, begin_);
    begin_ = 0;
    searched = buffer_.size();
    buffer_.resize(searched + kReadBytes);
    const size_t got = source_->read(buffer_.data() + searched, kReadBytes);
    buffer_.resize(searched + got);
    at_end_ = got == 0;
  }
  if (newline == kNone && begin_ == buffer_.size()) return false;
  const size_t end = newline == kNone ? buffer_.size() : newline;
  line = std::string_view(buffer_).substr(begin_, end - begin_);
  begin_ = newline == kNone ? end : newline + 1;
  ++line_number_;
  if (line.ends_with('\r')) line.remove_suffix(1);
  if (line.size() > max_line_bytes_) {
    throw_error<FormatError>("[text] expected lines of at most {} bytes; got a longer one; {}:{}",
                             max_line_bytes_, name_, line_number_);
  }
  return true;
}

bool JsonlReader::next(Json& object) {
  std::string_view line;
  do {
    if (!lines_.next(line)) return false;
  } while (std::all_of(line.begin(), line.end(), is_space));
  object = parse_json(line, lines_.name(), JsonComments::kForbidden, lines_.line_number());
  if (!object.is_object()) {
    throw_error<FormatError>("[jsonl] expected one JSON object per line; got {}; {}",
                             object.type_name(), where());
  }
  return true;
}

std::string JsonlReader::where() const {
  return fmt::format("{}:{}", lines_.name(), lines_.line_number());
}

TextReader::TextReader(const fs::path& path, TextReaderOptions options)
    : TextReader(open_bytes(path), path.string(), std::move(options)) {}

TextReader::TextReader(std::unique_ptr<ByteSource> source, const std::string& name,
                       TextReaderOptions options)
    : options_(std::move(options)) {
  HEIRLOOM_CHECK(options_.piece_bytes > 0, "[text] expected pieces of at least one byte; got 0");
  HEIRLOOM_CHECK(options_.separator.find_first_of("\r\n") == kNone,
                 "[text] expected a separator without line breaks; got one with them");
  if (resolve_format(name, options_.format) == TextFormat::kJsonl) {
    jsonl_ =
        std::make_unique<JsonlReader>(LineReader(std::move(source), name, options_.max_line_bytes));
  } else {
    source_ = std::move(source);
  }
}

bool TextReader::next(TextPiece& piece) { return jsonl_ ? next_json(piece) : next_text(piece); }

int64_t TextReader::bytes_consumed() const {
  return jsonl_ ? jsonl_->source().consumed() : source_->consumed();
}
int64_t TextReader::bytes_total() const {
  return jsonl_ ? jsonl_->source().total() : source_->total();
}

bool TextReader::next_json(TextPiece& piece) {
  Json object;
  if (!jsonl_->next(object)) return false;
  for (auto& [key, value] : object.get_ref<Json::object_t&>()) {
    if (key != "text") continue;
    if (!value.is_string()) {
      throw_error<FormatError>("[jsonl] expected a string as \"text\"; got {}; {}",
                               value.type_name(), jsonl_->where());
    }
    piece.text = std::move(value.get_ref<std::string&>());
    piece.document_end = true;
    return true;
  }
  throw_error<FormatError>("[jsonl] expected an object with \"text\"; got none; {}",
                           jsonl_->where());
}

void TextReader::fill() {
  buffer_.erase(0, begin_);
  searched_ -= begin_;
  begin_ = 0;
  const size_t size = buffer_.size();
  buffer_.resize(size + kReadBytes);
  const size_t got = source_->read(buffer_.data() + size, kReadBytes);
  buffer_.resize(size + got);
  at_end_ = got == 0;
}

/// Position of the next separator line in the buffer, kNone where there is none yet; `after` is the
/// start of the next line.
size_t TextReader::find_separator(size_t& after) {
  const std::string& separator = options_.separator;
  if (separator.empty()) return kNone;
  for (;;) {
    const size_t at = buffer_.find(separator, searched_);
    if (at == kNone) {
      const size_t tail = buffer_.size() - std::min(buffer_.size(), separator.size() - 1);
      searched_ = std::max(searched_, tail);
      return kNone;
    }
    searched_ = at;
    const size_t end = at + separator.size();
    const bool starts = at == begin_ ? line_start_ : buffer_[at - 1] == '\n';
    // The two bytes after it decide whether the line ends there.
    if (starts && end + 2 > buffer_.size() && !at_end_) return kNone;
    const std::string_view rest = std::string_view(buffer_).substr(end, 2);
    if (starts && (rest.empty() || rest[0] == '\n' || rest == "\r\n" || rest == "\r")) {
      after = std::min(buffer_.size(), end + (rest.starts_with('\r') ? 2 : 1));
      return at;
    }
    ++searched_;
  }
}

bool TextReader::next_text(TextPiece& piece) {
  // What may belong to a separator line stays in the buffer: "\r\n", the separator, "\r\n".
  const size_t margin = options_.separator.size() + 4;
  for (;;) {
    size_t after = 0;
    size_t end = find_separator(after);
    while (end == kNone && !at_end_ && buffer_.size() - begin_ < options_.piece_bytes + margin) {
      fill();
      end = find_separator(after);
    }
    const bool found = end != kNone;
    // A separator far away (a long read) still leaves a piece to cut first.
    const size_t available = (found ? end : buffer_.size()) - begin_;
    if (available > options_.piece_bytes + margin || (!found && !at_end_)) {
      const size_t window = std::min(available, options_.piece_bytes);
      const size_t cut = cut_position(std::string_view(buffer_).substr(begin_, window));
      piece.text.assign(buffer_, begin_, cut);
      piece.document_end = false;
      begin_ += cut;
      line_start_ = piece.text.back() == '\n';
      searched_ = std::max(searched_, begin_);
      open_ = true;
      return true;
    }
    const size_t document_end = found ? end : buffer_.size();
    std::string_view text = std::string_view(buffer_).substr(begin_, document_end - begin_);
    if (!options_.separator.empty()) {
      if (text.ends_with('\n')) text.remove_suffix(1);
      if (text.ends_with('\r')) text.remove_suffix(1);
    }
    piece.text = text;
    piece.document_end = true;
    begin_ = found ? after : buffer_.size();
    searched_ = begin_;
    line_start_ = true;
    const bool given = std::exchange(open_, false) || !piece.text.empty();
    if (given) return true;
    if (!found) return false;
  }
}

}  // namespace heirloom
