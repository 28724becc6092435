// SPDX-License-Identifier: Apache-2.0
#include "sentencepiece.h"

#include <bit>
#include <charconv>
#include <cmath>
#include <cstring>
#include <queue>
#include <unordered_map>

#include "heirloom/core/error.h"
#include "unicode.h"
#include "word_cache.h"

namespace heirloom::tokenizer {
namespace {

/// Walks the fields of one protobuf message.
class Message {
 public:
  Message(std::string_view bytes, const std::string& origin) : bytes_(bytes), origin_(origin) {}

  /// The next field; false at the end. Then number, and text (length-delimited), value (varint) or
  /// fixed (32 bits).
  bool next() {
    if (at_ == bytes_.size()) return false;
    const uint64_t key = varint();
    number = key >> 3;
    wire = static_cast<int>(key & 7);
    text = {};
    value = 0;
    switch (wire) {
      case 0:
        value = varint();
        return true;
      case 1:
        take(8);
        return true;
      case 2:
        text = take(varint());
        return true;
      case 5:
        std::memcpy(&fixed, take(4).data(), 4);
        return true;
      default:
        fail(fmt::format("wire type {}", wire));
    }
  }

  uint64_t number = 0;
  int wire = 0;
  std::string_view text;
  uint64_t value = 0;
  uint32_t fixed = 0;

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw_error<FormatError>(
        "[tokenizer] expected a SentencePiece model; got {} at byte {} of a {}-byte "
        "message; {}; is the file complete?",
        what, at_, bytes_.size(), origin_);
  }
  std::string_view take(uint64_t n) {
    if (n > bytes_.size() - at_) fail(fmt::format("a field of {} bytes", n));
    const auto out = bytes_.substr(at_, static_cast<size_t>(n));
    at_ += static_cast<size_t>(n);
    return out;
  }
  uint64_t varint() {
    uint64_t v = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<uint8_t>(take(1)[0]);
      v |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if ((byte & 0x80) == 0) return v;
    }
    fail("an endless integer");
  }

  std::string_view bytes_;
  const std::string& origin_;
  size_t at_ = 0;
};

// A unit of the double array: label, offset to the children, "a value hangs here".
bool has_leaf(uint32_t unit) { return ((unit >> 8) & 1) == 1; }
uint32_t leaf_value(uint32_t unit) { return unit & 0x7FFFFFFFu; }
uint32_t label(uint32_t unit) { return unit & (0x80000000u | 0xFFu); }
uint32_t child_offset(uint32_t unit) { return (unit >> 10) << ((unit & (1u << 9)) >> 6); }

}  // namespace

SentencePieceModel::SentencePieceModel(std::string_view file, const std::string& origin)
    : byte_ids_(256, -1) {
  struct Piece {
    std::string text;
    float score = 0;
    PieceType type = PieceType::kNormal;
  };
  std::vector<Piece> pieces;
  bool has_trainer = false;
  for (Message model(file, origin); model.next();) {
    if (model.wire != 2) continue;
    if (model.number == 1) {
      Piece piece;
      for (Message m(model.text, origin); m.next();) {
        if (m.number == 1 && m.wire == 2) piece.text = m.text;
        if (m.number == 2 && m.wire == 5) piece.score = std::bit_cast<float>(m.fixed);
        if (m.number == 3 && m.wire == 0) {
          if (m.value < 1 || m.value > 6)
            throw_error<FormatError>(
                "[tokenizer] expected a piece type from 1 to 6; got {} for piece {}; {}", m.value,
                pieces.size(), origin);
          piece.type = static_cast<PieceType>(m.value);
        }
      }
      if (std::isnan(piece.score) || piece.text.empty())
        throw_error<FormatError>(
            "[tokenizer] expected pieces with a text and a score; got '{}' with {} as piece {}; {}",
            piece.text, piece.score, pieces.size(), origin);
      pieces.push_back(std::move(piece));
    } else if (model.number == 2) {
      has_trainer = true;
      read_trainer_spec(model.text, origin);
    } else if (model.number == 3) {
      read_normalizer_spec(model.text, origin);
    }
  }
  if (!has_trainer || pieces.empty())
    throw_error<FormatError>(
        "[tokenizer] expected a SentencePiece model with pieces and a trainer "
        "spec; got {} pieces{}; {}",
        pieces.size(), has_trainer ? "" : " and no trainer spec", origin);
  for (size_t i = 0; i < pieces.size(); ++i) {
    const auto id = static_cast<int32_t>(i);
    const Piece& piece = pieces[i];
    vocabulary_.add(piece.text, id, pieces.size(), origin);
    scores_.push_back(piece.score);
    types_.push_back(piece.type);
    if (piece.type == PieceType::kUnknown) unk_ = id;
    if (piece.type == PieceType::kUserDefined) user_defined_.insert(piece.text, id);
    if (piece.type == PieceType::kByte) {
      unsigned byte = 256;
      if (piece.text.size() == 6 && piece.text.starts_with("<0x"))
        std::from_chars(piece.text.data() + 3, piece.text.data() + 5, byte, 16);
      if (byte > 255)
        throw_error<FormatError>("[tokenizer] expected byte pieces <0x00> to <0xFF>; got '{}'; {}",
                                 piece.text, origin);
      byte_ids_[byte] = id;
    }
  }
  stamp_ = new_cache_stamp();
  cut_at_spaces_ = vocabulary_.words_start_with_space();
}

void SentencePieceModel::read_trainer_spec(std::string_view message, const std::string& origin) {
  for (Message m(message, origin); m.next();) {
    if (m.number == 3 && m.value != 2)
      throw_error<UnsupportedError>(
          "[tokenizer] expected a SentencePiece model of type BPE; got {}; {}; convert it to a "
          "tokenizer.json with BPE, or choose another tokenizer",
          m.value == 1   ? "unigram"
          : m.value == 3 ? "word"
          : m.value == 4 ? "char"
                         : "an unknown type",
          origin);
    if (m.number == 24 && m.value != 0)
      throw_error<UnsupportedError>(
          "[tokenizer] expected white space as a prefix; got treat_whitespace_as_suffix; {}",
          origin);
    if (m.number == 35) byte_fallback_ = m.value != 0;
    if (m.number == 44) unk_surface_ = m.text;
    if (m.number == 46) bos_piece_ = m.text;
    if (m.number == 47) eos_piece_ = m.text;
  }
}

void SentencePieceModel::read_normalizer_spec(std::string_view message, const std::string& origin) {
  for (Message m(message, origin); m.next();) {
    if (m.number == 3) add_dummy_prefix_ = m.value != 0;
    if (m.number == 4) remove_extra_whitespaces_ = m.value != 0;
    if (m.number == 5) escape_whitespaces_ = m.value != 0;
    if (m.number != 2 || m.text.empty()) continue;
    // The bytes of the trie, the trie, then zero-terminated strings.
    uint32_t bytes = 0;
    if (m.text.size() >= 4) std::memcpy(&bytes, m.text.data(), 4);
    if (m.text.size() < 4 || bytes == 0 || bytes % 4 != 0 || bytes > m.text.size() - 4)
      throw_error<FormatError>(
          "[tokenizer] expected a precompiled normalization map; got {} bytes with a trie of {}; "
          "{}",
          m.text.size(), bytes, origin);
    charsmap_.resize(bytes / 4);
    std::memcpy(charsmap_.data(), m.text.data() + 4, bytes);
    charsmap_strings_ = m.text.substr(4 + bytes);
  }
}

std::optional<int32_t> SentencePieceModel::control_id(const std::string& piece) const {
  const auto id = vocabulary_.find(piece);
  if (!id || type(*id) != PieceType::kControl) return std::nullopt;
  return id;
}

std::string_view SentencePieceModel::normalize_prefix(std::string_view text,
                                                      size_t& consumed) const {
  int32_t id;
  if (const size_t n = user_defined_.longest(text, id); n > 0) {
    consumed = n;
    return text.substr(0, n);
  }
  if (!charsmap_.empty()) {
    size_t best = 0, value = 0;
    size_t node = child_offset(charsmap_[0]);
    for (size_t i = 0; i < text.size(); ++i) {
      const auto c = static_cast<uint8_t>(text[i]);
      node ^= c;
      if (c == 0 || node >= charsmap_.size() || label(charsmap_[node]) != c) break;
      const uint32_t unit = charsmap_[node];
      node ^= child_offset(unit);
      if (node >= charsmap_.size()) break;
      if (has_leaf(unit)) {
        best = i + 1;
        value = leaf_value(charsmap_[node]);
      }
    }
    if (best > 0 && value < charsmap_strings_.size()) {
      consumed = best;
      return std::string_view(charsmap_strings_.c_str() + value);
    }
  }
  // A stray byte stays what it is: byte fallback can spell it.
  consumed = std::max<size_t>(1, valid_char_length(text.substr(0, 4)));
  return text.substr(0, consumed);
}

std::string SentencePieceModel::normalize(std::string_view text) const {
  const std::string_view space = escape_whitespaces_ ? kSpaceSymbol : " ";
  size_t consumed = 0;
  if (remove_extra_whitespaces_)
    while (!text.empty() && normalize_prefix(text, consumed) == " ") text.remove_prefix(consumed);
  std::string out;
  if (text.empty()) return out;
  if (add_dummy_prefix_) out += space;
  bool after_space = remove_extra_whitespaces_;
  while (!text.empty()) {
    std::string_view piece = normalize_prefix(text, consumed);
    text.remove_prefix(consumed);
    while (after_space && piece.starts_with(' ')) piece.remove_prefix(1);
    if (piece.empty()) continue;
    for (const char c : piece) {
      if (c == ' ') {
        out += space;
      } else {
        out += c;
      }
    }
    after_space = remove_extra_whitespaces_ && piece.back() == ' ';
  }
  if (remove_extra_whitespaces_)
    while (out.ends_with(space)) out.erase(out.size() - space.size());
  return out;
}

void SentencePieceModel::emit(std::string_view piece, size_t from,
                              std::vector<int32_t>& ids) const {
  const auto id = vocabulary_.find(piece);
  const bool is_text =
      id && (type(*id) == PieceType::kNormal || type(*id) == PieceType::kUserDefined ||
             type(*id) == PieceType::kUnused);
  if (is_text) {
    ids.push_back(*id);
  } else if (byte_fallback_) {
    for (const char c : piece) {
      const int32_t byte = byte_ids_[static_cast<uint8_t>(c)];
      if (byte >= 0) ids.push_back(byte);
    }
  } else if (unk_ && (ids.size() == from || ids.back() != *unk_)) {
    ids.push_back(*unk_);
  }
}

void SentencePieceModel::encode(std::string_view text, std::vector<int32_t>& ids) const {
  const std::string normal = normalize(text);
  if (!cut_at_spaces_) return encode_normal(normal, ids);
  WordCache& cache = WordCache::of_thread(stamp_);
  for_each_space_chunk(normal, [&](std::string_view chunk) {
    cache.append(chunk, ids, [this](std::string_view word, std::vector<int32_t>& out) {
      encode_normal(word, out);
    });
  });
}

void SentencePieceModel::encode_normal(std::string_view normal, std::vector<int32_t>& ids) const {
  constexpr int64_t kNone = -1;
  struct Symbol {
    size_t begin, size;  // size 0: merged into its left neighbour
    int64_t previous, next;
    bool frozen;  // user-defined: never merges
  };
  struct Candidate {
    float score;
    int64_t left, right;
    size_t size;
    bool operator<(const Candidate& other) const {  // priority_queue: the largest comes first
      return score != other.score ? score < other.score : left > other.left;
    }
  };
  std::vector<Symbol> symbols;
  for (size_t at = 0; at < normal.size();) {
    const auto rest = normal.substr(at);
    int32_t id;
    const size_t defined = user_defined_.longest(rest, id);
    const size_t n =
        defined > 0 ? defined : std::max<size_t>(1, valid_char_length(rest.substr(0, 4)));
    const auto index = static_cast<int64_t>(symbols.size());
    symbols.push_back({at, n, index - 1, at + n < normal.size() ? index + 1 : kNone, defined > 0});
    at += n;
  }
  const auto symbol = [&](int64_t i) -> Symbol& { return symbols[static_cast<size_t>(i)]; };
  const auto view = [&](size_t begin, size_t size) { return normal.substr(begin, size); };
  std::vector<Candidate> candidates;
  // Pieces of type "unused" take part in merging but are split again at the end: what they were
  // made of.
  std::unordered_map<std::string_view, std::pair<std::string_view, std::string_view>> parts;
  const auto candidate = [&](int64_t left, int64_t right) -> std::optional<Candidate> {
    if (left == kNone || right == kNone || symbol(left).frozen || symbol(right).frozen)
      return std::nullopt;
    const size_t size = symbol(left).size + symbol(right).size;
    const std::string_view piece = view(symbol(left).begin, size);
    const auto id = vocabulary_.find(piece);
    if (!id) return std::nullopt;
    const PieceType kind = type(*id);
    if (kind != PieceType::kNormal && kind != PieceType::kUserDefined && kind != PieceType::kUnused)
      return std::nullopt;
    if (kind == PieceType::kUnused)
      parts[piece] = {view(symbol(left).begin, symbol(left).size),
                      view(symbol(right).begin, symbol(right).size)};
    return Candidate{scores_[static_cast<size_t>(*id)], left, right, size};
  };
  for (int64_t i = 1; i < static_cast<int64_t>(symbols.size()); ++i)
    if (const auto c = candidate(i - 1, i)) candidates.push_back(*c);
  std::priority_queue<Candidate> queue(std::less<Candidate>{}, std::move(candidates));
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Symbol& left = symbol(top.left);
    Symbol& right = symbol(top.right);
    if (left.size == 0 || right.size == 0 || left.size + right.size != top.size) continue;
    left.size = top.size;
    left.next = right.next;
    right.size = 0;
    if (left.next != kNone) symbol(left.next).previous = top.left;
    if (const auto c = candidate(left.previous, top.left)) queue.push(*c);
    if (const auto c = candidate(top.left, left.next)) queue.push(*c);
  }
  const size_t from = ids.size();
  std::vector<std::string_view> pending;
  for (const Symbol& s : symbols) {
    if (s.size == 0) continue;
    pending.assign(1, view(s.begin, s.size));
    while (!pending.empty()) {
      const std::string_view piece = pending.back();
      pending.pop_back();
      const auto it = parts.find(piece);
      const auto id = it == parts.end() ? std::nullopt : vocabulary_.find(piece);
      if (id && type(*id) == PieceType::kUnused) {
        pending.push_back(it->second.second);
        pending.push_back(it->second.first);
      } else {
        emit(piece, from, ids);
      }
    }
  }
}

}  // namespace heirloom::tokenizer
