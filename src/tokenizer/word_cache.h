// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#include "unicode.h"

namespace heirloom::tokenizer {

/// Tells the words of one model from another's in a thread's cache; never 0.
uint64_t new_cache_stamp();

/// Remembers the ids of frequent short words, per thread. Direct-mapped: a word has one place, and
/// a later word with the same place replaces it. A thread that turns to another model starts anew.
class WordCache {
 public:
  static WordCache& of_thread(uint64_t stamp);

  /// Appends the ids of `word`, from the cache or from encode(word, ids).
  template <class Encode>
  void append(std::string_view word, std::vector<int32_t>& ids, Encode&& encode) {
    if (word.empty() || word.size() > kWordBytes) return encode(word, ids);
    Slot& slot = slots_[hash_bytes(word) & (kSlots - 1)];
    if (slot.bytes == word.size() && std::memcmp(slot.word, word.data(), word.size()) == 0) {
      ids.insert(ids.end(), slot.ids, slot.ids + slot.count);
      return;
    }
    const size_t from = ids.size();
    encode(word, ids);
    const size_t count = ids.size() - from;
    if (count > kIds) return;
    slot.bytes = static_cast<uint8_t>(word.size());
    slot.count = static_cast<uint8_t>(count);
    std::memcpy(slot.word, word.data(), word.size());
    std::copy(ids.begin() + static_cast<std::ptrdiff_t>(from), ids.end(), slot.ids);
  }

 private:
  static constexpr size_t kSlots = 1 << 15;
  static constexpr size_t kWordBytes = 30;
  static constexpr size_t kIds = 8;
  struct Slot {
    uint8_t bytes = 0;  // 0: empty
    uint8_t count = 0;
    char word[kWordBytes];
    int32_t ids[kIds];
  };
  uint64_t stamp_ = 0;
  std::vector<Slot> slots_;
};

/// U+2581, which stands for a space in SentencePiece vocabularies.
inline constexpr std::string_view kSpaceSymbol = "\xE2\x96\x81";

/// Calls visit(chunk) for the parts of `text` that start where a space symbol follows anything
/// else.
template <class Visit>
void for_each_space_chunk(std::string_view text, Visit&& visit) {
  constexpr size_t n = kSpaceSymbol.size();
  size_t begin = 0, search = 0;
  for (size_t hit; (hit = text.find(kSpaceSymbol, search)) != std::string_view::npos;) {
    search = hit + n;
    const bool follows_space = hit >= begin + n && text.substr(hit - n, n) == kSpaceSymbol;
    if (hit == begin || follows_space) continue;
    visit(text.substr(begin, hit - begin));
    begin = hit;
  }
  if (begin < text.size()) visit(text.substr(begin));
}

}  // namespace heirloom::tokenizer
