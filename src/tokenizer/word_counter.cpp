// SPDX-License-Identifier: Apache-2.0
#include "word_counter.h"

#include <omp.h>

#include <algorithm>
#include <exception>

#include "unicode.h"

namespace heirloom::tokenizer {

size_t WordTable::place_of(uint64_t hash, std::string_view word) const {
  const size_t mask = slots_.size() - 1;
  size_t at = static_cast<size_t>(hash) & mask;
  while (slots_[at].count > 0 &&
         (slots_[at].hash != hash ||
          std::string_view(text_).substr(slots_[at].begin, slots_[at].size) != word))
    at = (at + 1) & mask;
  return at;
}

void WordTable::add(std::string_view word, int64_t count) {
  if (used_ * 2 >= slots_.size()) {
    std::vector<Slot> old(std::max<size_t>(1 << 12, slots_.size() * 2));
    old.swap(slots_);
    const size_t mask = slots_.size() - 1;
    for (const Slot& s : old) {
      if (s.count == 0) continue;
      size_t at = static_cast<size_t>(s.hash) & mask;
      while (slots_[at].count > 0) at = (at + 1) & mask;
      slots_[at] = s;
    }
  }
  const uint64_t hash = hash_bytes(word);
  Slot& slot = slots_[place_of(hash, word)];
  if (slot.count == 0) {
    slot = {hash, text_.size(), word.size(), 0};
    text_ += word;
    ++used_;
  }
  slot.count += count;
}

WordCounter::WordCounter(std::string_view pattern) : pattern_(pattern) {}

void WordCounter::count(std::string_view document, WordTable& table) const {
  for_each_span(document, [&](std::string_view span, bool valid) {
    if (!valid) return table.add(span, 1);
    size_t at = 0, begin, end;
    while (at < span.size() && pattern_.find(span, at, begin, end) && end > begin) {
      table.add(span.substr(begin, end - begin), 1);
      at = end;
    }
  });
}

void WordCounter::add(const std::vector<std::string>& documents) {
  const auto n = static_cast<int64_t>(documents.size());
  tables_.resize(std::max(tables_.size(), static_cast<size_t>(omp_get_max_threads())));
  std::exception_ptr failure;
#pragma omp parallel for schedule(dynamic)
  for (int64_t i = 0; i < n; ++i) {
    try {
      count(documents[static_cast<size_t>(i)], tables_[static_cast<size_t>(omp_get_thread_num())]);
    } catch (...) {
#pragma omp critical
      failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

std::vector<WordCount> WordCounter::take() {
  WordTable all;
  for (WordTable& table : tables_) {
    table.for_each([&](std::string_view word, int64_t count) { all.add(word, count); });
    table = {};
  }
  std::vector<WordCount> words;
  all.for_each([&](std::string_view word, int64_t count) {
    words.push_back({std::string(word), count});
  });
  std::sort(words.begin(), words.end(),
            [](const WordCount& a, const WordCount& b) { return a.text < b.text; });
  return words;
}

}  // namespace heirloom::tokenizer
