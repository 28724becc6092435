// SPDX-License-Identifier: Apache-2.0
#include "heirloom/evaluate/sequences.h"

#include "heirloom/core/error.h"
#include "heirloom/data/text_reader.h"
#include "heirloom/data/token_shard.h"
#include "heirloom/io/utf8.h"

namespace heirloom {
namespace {

/// Bytes of the white space character at text[i], 0 when there is none (Unicode's White_Space, and
/// the separators 1C to 1F as Python splits).
size_t white_space_length(std::string_view text, size_t i) {
  const auto byte = [&](size_t k) {
    return i + k < text.size() ? static_cast<unsigned char>(text[i + k]) : 0u;
  };
  const unsigned a = byte(0);
  if (a == ' ' || (a >= 0x09 && a <= 0x0D) || (a >= 0x1C && a <= 0x1F)) return 1;
  if (a == 0xC2) return byte(1) == 0x85 || byte(1) == 0xA0 ? 2 : 0;
  const bool continued = (byte(1) & 0xC0u) == 0x80u && (byte(2) & 0xC0u) == 0x80u;
  if (a < 0xE1 || a > 0xE3 || !continued) return 0;
  const unsigned code = (a & 0xFu) << 12 | (byte(1) & 0x3Fu) << 6 | (byte(2) & 0x3Fu);
  const bool space = code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 ||
                     code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
  return space ? 3 : 0;
}

class SequenceReader {
 public:
  SequenceReader(const fs::path& path, const SequenceOptions& options)
      : path_(path), options_(options) {
    set_.name = path.string();
  }

  SequenceSet read() {
    switch (sequence_format(path_)) {
      case SequenceFormat::kText:
        options_.split_lines ? read_lines() : read_text();
        break;
      case SequenceFormat::kJsonl:
        read_jsonl();
        break;
      case SequenceFormat::kShard:
        read_shard();
    }
    set_.words = words_.words();
    if (set_.scorable() == 0) {
      throw_error<FormatError>(
          "[data] expected a sequence of at least two tokens (the first is never scored); got {} "
          "tokens in {} sequences; {}",
          set_.tokens.size(), set_.count(), set_.name);
    }
    return std::move(set_);
  }

 private:
  const Tokenizer& tokenizer() {
    if (tokenizer_) return *tokenizer_;
    const fs::path& path = options_.tokenizer;
    if (options_.loaded) {
      tokenizer_ = options_.loaded;
    } else if (path.empty() || (fs::is_directory(path) && !Tokenizer::is_in(path))) {
      throw_error<IoError>(
          "[data] expected a tokenizer for the text of {}; got none{}; give --tokenizer PATH, "
          "or data with \"tokens\"",
          set_.name, path.empty() ? "" : " in " + path.string());
    } else {
      tokenizer_ = Tokenizer::load(path);
    }
    takes_any_bytes_ = tokenizer_->kind().starts_with("byte-level");
    return *tokenizer_;
  }

  /// `where`: file, or file:line.
  void add_text(std::string_view text, const std::string& where) {
    const Tokenizer& encoder = tokenizer();
    if (!takes_any_bytes_) {
      if (const size_t at = find_invalid_utf8(text); at < text.size()) {
        throw_error<FormatError>(
            "[data] expected UTF-8, as this tokenizer ({}) is not byte-level; got byte 0x{:02X} at "
            "offset {}; {}",
            encoder.kind(), static_cast<unsigned char>(text[at]), at, where);
      }
    }
    const std::vector<int32_t> ids =
        encoder.encode(text, {.recognise_special = true, .add_special = options_.add_special});
    for (size_t i = 0; i < ids.size(); ++i) {
      if (ids[i] >= options_.vocab_size) {
        throw_error<FormatError>(
            "[data] expected token ids below the model's vocabulary of {}; got {} (\"{}\") as "
            "token "
            "{} of {}; the tokenizer belongs to another model",
            options_.vocab_size, ids[i], encoder.token_text(ids[i]), i, where);
      }
    }
    append(ids);
    count_text(text);
  }

  void count_text(std::string_view text) {
    words_.add(text);
    words_.end_text();
    set_.bytes += static_cast<int64_t>(text.size());
  }

  void append(std::span<const int32_t> ids) {
    set_.tokens.insert(set_.tokens.end(), ids.begin(), ids.end());
    set_.begins.push_back(static_cast<int64_t>(set_.tokens.size()));
  }

  void read_text() {
    const std::unique_ptr<ByteSource> source = open_bytes(path_);
    std::string text;
    constexpr size_t kChunk = size_t{1} << 20;
    for (size_t got = 1; got > 0;) {
      const size_t size = text.size();
      text.resize(size + kChunk);
      got = source->read(text.data() + size, kChunk);
      text.resize(size + got);
    }
    if (text.empty())
      throw_error<FormatError>("[data] expected text; got an empty file; {}", set_.name);
    set_.text_known = true;
    add_text(text, set_.name);
  }

  void read_lines() {
    LineReader lines(path_);
    set_.text_known = true;
    for (std::string_view line; lines.next(line);) {
      WordCount words;
      words.add(line);
      if (words.words() == 0) continue;
      add_text(line, fmt::format("{}:{}", set_.name, lines.line_number()));
      set_.lines.push_back(lines.line_number());
    }
  }

  void read_jsonl() {
    JsonlReader lines(path_);
    set_.text_known = true;
    for (Json object; lines.next(object);) {
      const auto text = object.find("text"), tokens = object.find("tokens");
      const std::string where = lines.where();
      if (text != object.end() && !text->is_string()) {
        throw_error<FormatError>("[data] expected a string as \"text\"; got {}; {}",
                                 text->type_name(), where);
      }
      if (tokens != object.end()) {
        add_tokens(*tokens, where);
        if (text != object.end()) {
          count_text(text->get_ref<const std::string&>());
        } else {
          set_.text_known = false;
        }
      } else if (text != object.end()) {
        add_text(text->get_ref<const std::string&>(), where);
      } else {
        throw_error<FormatError>(
            "[data] expected an object with \"text\" or \"tokens\"; got neither; {}", where);
      }
      set_.lines.push_back(lines.line_number());
    }
  }

  void add_tokens(const Json& list, const std::string& where) {
    if (!list.is_array()) {
      throw_error<FormatError>("[data] expected an array as \"tokens\"; got {}; {}",
                               list.type_name(), where);
    }
    std::vector<int32_t> ids;
    ids.reserve(list.size());
    for (const Json& item : list) {
      const bool fits = item.is_number_integer() && item >= 0 && item < options_.vocab_size;
      if (!fits) {
        throw_error<FormatError>(
            "[data] expected token ids from 0 to {} (the model's vocabulary); got {} at position "
            "{}; {}",
            options_.vocab_size - 1, dump_json(item).substr(0, 40), ids.size(), where);
      }
      ids.push_back(item.get<int32_t>());
    }
    append(ids);
  }

  void read_shard() {
    const TokenShard shard(path_);
    set_.tokens.resize(static_cast<size_t>(shard.size()));
    shard.copy(0, set_.tokens);
    for (size_t i = 0; i < set_.tokens.size(); ++i) {
      if (set_.tokens[i] < 0 || set_.tokens[i] >= options_.vocab_size) {
        throw_error<FormatError>(
            "[data] expected token ids below the model's vocabulary of {}; got {} at position {}; "
            "{}; the shard was made with another tokenizer",
            options_.vocab_size, static_cast<uint32_t>(set_.tokens[i]), i, set_.name);
      }
    }
    set_.begins.push_back(shard.size());
  }

  fs::path path_;
  SequenceOptions options_;
  SequenceSet set_;
  WordCount words_;
  std::optional<Tokenizer> tokenizer_;
  bool takes_any_bytes_ = false;
};

}  // namespace

SequenceFormat sequence_format(const fs::path& path) {
  if (!fs::exists(path)) {
    throw_error<IoError>("[data] expected a readable file; got nothing; {}", path.string());
  }
  fs::path name = path.filename();
  if (name.extension() == ".bin") return SequenceFormat::kShard;
  if (name.extension() == ".gz" || name.extension() == ".zst") name = name.stem();
  if (name.extension() == ".txt") return SequenceFormat::kText;
  if (name.extension() == ".jsonl") return SequenceFormat::kJsonl;
  throw_error<FormatError>(
      "[data] expected a name ending with .txt or .jsonl (alone or with .gz or .zst) or .bin; got "
      "{}; rename or convert it",
      path.string());
}

void WordCount::add(std::string_view piece) {
  for (size_t i = 0; i < piece.size();) {
    const size_t space = white_space_length(piece, i);
    if (space == 0 && !in_word_) ++words_;
    in_word_ = space == 0;
    i += std::max<size_t>(space, 1);
  }
}

std::span<const int32_t> SequenceSet::sequence(int64_t i) const {
  const auto begin = static_cast<size_t>(begins[static_cast<size_t>(i)]);
  const auto end = static_cast<size_t>(begins[static_cast<size_t>(i) + 1]);
  return std::span(tokens).subspan(begin, end - begin);
}

int64_t SequenceSet::scorable() const {
  int64_t total = 0;
  for (int64_t i = 0; i < count(); ++i) {
    total += std::max<int64_t>(static_cast<int64_t>(sequence(i).size()) - 1, 0);
  }
  return total;
}

SequenceSet read_sequences(const fs::path& path, const SequenceOptions& options) {
  return SequenceReader(path, options).read();
}

}  // namespace heirloom
