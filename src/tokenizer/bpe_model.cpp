// SPDX-License-Identifier: Apache-2.0
#include "bpe_model.h"

#include <algorithm>
#include <array>
#include <queue>

#include "heirloom/core/error.h"
#include "unicode.h"
#include "word_cache.h"

namespace heirloom::tokenizer {
namespace {

// Up to this many symbols a scan for the lowest rank beats a heap.
constexpr size_t kShortWord = 48;

}  // namespace

size_t Vocabulary::Hash::operator()(std::string_view text) const {
  return static_cast<size_t>(hash_bytes(text));
}

void Vocabulary::add(std::string token, int64_t id, size_t expected_tokens,
                     const std::string& origin) {
  const int64_t limit = 2 * static_cast<int64_t>(expected_tokens) + 100'000;
  if (id < 0 || id >= limit)
    throw_error<FormatError>("[tokenizer] expected token ids from 0 to {}; got {} for '{}'; {}",
                             limit - 1, id, token, origin);
  const auto index = static_cast<size_t>(id);
  if (index >= tokens_.size()) {
    tokens_.resize(index + 1);
    used_.resize(index + 1);
  }
  if (used_[index])
    throw_error<FormatError>("[tokenizer] expected one token per id; got '{}' and '{}' for {}; {}",
                             tokens_[index], token, id, origin);
  if (!ids_.emplace(token, static_cast<int32_t>(id)).second)
    throw_error<FormatError>("[tokenizer] expected each token once; got '{}' twice; {}", token,
                             origin);
  used_[index] = true;
  tokens_[index] = std::move(token);
}

std::optional<int32_t> Vocabulary::find(std::string_view token) const {
  const auto it = ids_.find(token);
  if (it == ids_.end()) return std::nullopt;
  return it->second;
}

bool Vocabulary::words_start_with_space() const {
  if (!find(kSpaceSymbol)) return false;
  for (const std::string& token : tokens_) {
    size_t chunks = 0;
    for_each_space_chunk(token, [&](std::string_view) { ++chunks; });
    if (chunks > 1) return false;
  }
  return true;
}

void Vocabulary::rename(int32_t id, std::string token) {
  ids_.emplace(token, id);
  tokens_[static_cast<size_t>(id)] = std::move(token);
}

BpeModel::BpeModel(Vocabulary vocabulary, BpeOptions options)
    : vocabulary_(std::move(vocabulary)), options_(options), byte_ids_(256, -1) {
  for (int b = 0; b < 256; ++b) {
    const auto index = static_cast<size_t>(b);
    const std::string key = options_.bytes ? byte_alphabet()[index] : fmt::format("<0x{:02X}>", b);
    byte_ids_[index] = vocabulary_.find(key).value_or(-1);
  }
}

void BpeModel::insert(const Merge& merge) {
  const size_t mask = table_.size() - 1;
  size_t at = static_cast<size_t>((merge.pair * 0x9E3779B97F4A7C15ull) >> 32) & mask;
  while (table_[at].pair != kNoPair && table_[at].pair != merge.pair) at = (at + 1) & mask;
  table_[at] = merge;
}

void BpeModel::add_merge(std::string_view left, std::string_view right, const std::string& origin) {
  const auto id_of = [&](std::string_view token) {
    const auto id = vocabulary_.find(token);
    if (!id)
      throw_error<FormatError>(
          "[tokenizer] expected the merge '{} {}' (number {}) to name tokens of the vocabulary; "
          "got "
          "'{}', which is not in it; {}",
          left, right, merge_count_, token, origin);
    return *id;
  };
  if (static_cast<size_t>(merge_count_) * 2 >= table_.size()) {
    std::vector<Merge> old(std::max<size_t>(1024, table_.size() * 4));
    old.swap(table_);
    for (const Merge& m : old)
      if (m.pair != kNoPair) insert(m);
  }
  const uint64_t pair = pair_of(id_of(left), id_of(right));
  insert({pair, static_cast<uint32_t>(merge_count_), id_of(std::string(left).append(right))});
  ++merge_count_;
}

void BpeModel::finish() {
  stamp_ = new_cache_stamp();
  if (table_.empty()) table_.resize(1);
  cut_at_spaces_ =
      !options_.bytes && !options_.ignore_merges && vocabulary_.words_start_with_space();
}

const BpeModel::Merge* BpeModel::find_merge(int32_t left, int32_t right) const {
  const uint64_t pair = pair_of(left, right);
  const size_t mask = table_.size() - 1;
  size_t at = static_cast<size_t>((pair * 0x9E3779B97F4A7C15ull) >> 32) & mask;
  while (true) {
    const Merge& m = table_[at];
    if (m.pair == pair) return &m;
    if (m.pair == kNoPair) return nullptr;
    at = (at + 1) & mask;
  }
}

void BpeModel::encode(std::string_view word, std::vector<int32_t>& ids) const {
  WordCache& cache = WordCache::of_thread(stamp_);
  const auto append = [&](std::string_view chunk) {
    cache.append(chunk, ids, [this](std::string_view text, std::vector<int32_t>& out) {
      encode_uncached(text, out);
    });
  };
  if (cut_at_spaces_) {
    for_each_space_chunk(word, append);
  } else {
    append(word);
  }
}

void BpeModel::encode_uncached(std::string_view word, std::vector<int32_t>& ids) const {
  if (options_.ignore_merges) {
    std::string spelled;
    if (options_.bytes)
      for (const char c : word) spelled += byte_alphabet()[static_cast<uint8_t>(c)];
    if (const auto id = vocabulary_.find(options_.bytes ? spelled : word)) {
      ids.push_back(*id);
      return;
    }
  }
  const size_t from = ids.size();
  split_characters(word, ids);
  if (ids.size() - from <= kShortWord) {
    merge_short(ids, from);
  } else {
    merge_long(ids, from);
  }
}

void BpeModel::split_characters(std::string_view word, std::vector<int32_t>& ids) const {
  bool after_unk = false;
  for (size_t at = 0; at < word.size();) {
    const size_t n =
        options_.bytes ? 1 : std::max<size_t>(1, valid_char_length(word.substr(at, 4)));
    const std::string_view c = word.substr(at, n);
    at += n;
    const auto byte_id = [&](char b) { return byte_ids_[static_cast<uint8_t>(b)]; };
    int32_t id = -1;
    if (options_.bytes) {
      id = byte_id(c[0]);
    } else if (const auto found = vocabulary_.find(c)) {
      id = *found;
    }
    if (id >= 0) {
      ids.push_back(id);
      after_unk = false;
    } else if (options_.byte_fallback &&
               std::all_of(c.begin(), c.end(), [&](char b) { return byte_id(b) >= 0; })) {
      for (const char b : c) ids.push_back(byte_id(b));
      after_unk = false;
    } else if (options_.unk) {
      if (!(options_.fuse_unk && after_unk)) ids.push_back(*options_.unk);
      after_unk = true;
    }
  }
}

void BpeModel::merge_short(std::vector<int32_t>& ids, size_t from) const {
  size_t n = ids.size() - from;
  if (n < 2) return;
  int32_t* symbols = ids.data() + from;
  std::array<uint32_t, kShortWord> ranks;
  std::array<int32_t, kShortWord> merged;
  const auto look_up = [&](size_t i) {
    const Merge* m = find_merge(symbols[i], symbols[i + 1]);
    ranks[i] = m != nullptr ? m->rank : UINT32_MAX;
    merged[i] = m != nullptr ? m->id : 0;
  };
  for (size_t i = 0; i + 1 < n; ++i) look_up(i);
  while (n > 1) {
    const auto end = ranks.begin() + static_cast<std::ptrdiff_t>(n - 1);
    const auto lowest = std::min_element(ranks.begin(), end);
    if (*lowest == UINT32_MAX) break;
    const auto i = static_cast<size_t>(lowest - ranks.begin());
    symbols[i] = merged[i];
    std::copy(symbols + i + 2, symbols + n, symbols + i + 1);
    if (i + 2 < n) {
      std::copy(lowest + 2, end, lowest + 1);
      std::copy(merged.begin() + static_cast<std::ptrdiff_t>(i + 2),
                merged.begin() + static_cast<std::ptrdiff_t>(n - 1),
                merged.begin() + static_cast<std::ptrdiff_t>(i + 1));
    }
    --n;
    if (i + 1 < n) look_up(i);
    if (i > 0) look_up(i - 1);
  }
  ids.resize(from + n);
}

void BpeModel::merge_long(std::vector<int32_t>& ids, size_t from) const {
  constexpr int64_t kNone = -1;
  struct Symbol {
    int32_t id;
    int64_t previous, next;
  };
  struct Candidate {
    uint32_t rank;
    int64_t at;
    bool operator<(const Candidate& other) const {  // priority_queue: the largest comes first
      return rank != other.rank ? rank > other.rank : at > other.at;
    }
  };
  const auto n = static_cast<int64_t>(ids.size() - from);
  std::vector<Symbol> symbols(static_cast<size_t>(n));
  const auto symbol = [&](int64_t i) -> Symbol& { return symbols[static_cast<size_t>(i)]; };
  for (int64_t i = 0; i < n; ++i)
    symbol(i) = {ids[from + static_cast<size_t>(i)], i - 1, i + 1 < n ? i + 1 : kNone};

  const auto merge_at = [&](int64_t i) -> const Merge* {
    const int64_t next = symbol(i).next;
    return next == kNone ? nullptr : find_merge(symbol(i).id, symbol(next).id);
  };
  std::vector<Candidate> candidates;
  for (int64_t i = 0; i < n; ++i)
    if (const Merge* m = merge_at(i)) candidates.push_back({m->rank, i});
  std::priority_queue<Candidate> queue(std::less<Candidate>{}, std::move(candidates));
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Symbol& left = symbol(top.at);
    if (left.id < 0) continue;  // merged into its left neighbour
    const Merge* m = merge_at(top.at);
    if (m == nullptr || m->rank != top.rank) continue;
    Symbol& right = symbol(left.next);
    left.id = m->id;
    left.next = right.next;
    right.id = -1;
    if (left.next != kNone) symbol(left.next).previous = top.at;
    if (const Merge* after = merge_at(top.at)) queue.push({after->rank, top.at});
    if (left.previous != kNone)
      if (const Merge* before = merge_at(left.previous)) queue.push({before->rank, left.previous});
  }
  size_t out = from;
  for (const Symbol& s : symbols)
    if (s.id >= 0) ids[out++] = s.id;
  ids.resize(out);
}

}  // namespace heirloom::tokenizer
