// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "regex.h"

namespace heirloom::tokenizer {

struct WordCount {
  std::string text;
  int64_t count;
};

/// Open-addressing table of byte strings and counts; the strings lie in one buffer.
class WordTable {
 public:
  void add(std::string_view word, int64_t count);
  template <class Visit>
  void for_each(Visit&& visit) const {
    for (const Slot& s : slots_)
      if (s.count > 0) visit(std::string_view(text_).substr(s.begin, s.size), s.count);
  }

 private:
  struct Slot {
    uint64_t hash = 0;
    size_t begin = 0;
    size_t size = 0;
    int64_t count = 0;
  };
  size_t place_of(uint64_t hash, std::string_view word) const;
  std::vector<Slot> slots_;
  std::string text_;
  size_t used_ = 0;
};

/// Counts the words that a split pattern cuts documents into, on all OpenMP threads.
class WordCounter {
 public:
  explicit WordCounter(std::string_view pattern);
  void add(const std::vector<std::string>& documents);
  /// All words in byte order; stray bytes are words of their own.
  std::vector<WordCount> take();

 private:
  void count(std::string_view document, WordTable& table) const;
  Regex pattern_;
  std::vector<WordTable> tables_;  ///< one per thread
};

}  // namespace heirloom::tokenizer
