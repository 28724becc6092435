// SPDX-License-Identifier: Apache-2.0
#include "heirloom/tokenizer/bpe_trainer.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <queue>
#include <unordered_map>
#include <unordered_set>

#include "heirloom/core/error.h"
#include "unicode.h"
#include "word_counter.h"

namespace heirloom {
namespace {

using tokenizer::byte_alphabet;
using tokenizer::WordCount;

constexpr int64_t kBatchBytes = 64 << 20;

uint64_t pair_of(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}
int32_t left_of(uint64_t pair) { return static_cast<int32_t>(pair >> 32); }
int32_t right_of(uint64_t pair) { return static_cast<int32_t>(pair & 0xFFFFFFFFu); }

struct PairHash {
  size_t operator()(uint64_t pair) const {
    const uint64_t h = pair * 0x9E3779B97F4A7C15ull;
    return static_cast<size_t>(h ^ (h >> 32));
  }
};

/// The words as token ids, and for every pair its count and the words it was seen in.
class PairTable {
 public:
  PairTable(const std::vector<WordCount>& words, const std::array<int32_t, 256>& byte_ids) {
    for (const auto& [text, count] : words) {
      words_.push_back(
          {static_cast<uint32_t>(symbols_.size()), static_cast<uint32_t>(text.size()), count});
      for (const char c : text) symbols_.push_back(byte_ids[static_cast<uint8_t>(c)]);
    }
    for (uint32_t w = 0; w < words_.size(); ++w) {
      const int32_t* s = symbols_.data() + words_[w].begin;
      for (uint32_t i = 0; i + 1 < words_[w].size; ++i)
        change(pair_of(s[i], s[i + 1]), w, words_[w].count);
    }
    for (const auto& [pair, entry] : pairs_) queue_.push({entry.count, pair});
    touched_.clear();
  }

  /// The most frequent pair, the lowest ids among equals; empty when none reaches `min_count`.
  std::optional<uint64_t> most_frequent(int64_t min_count) {
    while (!queue_.empty()) {
      const Candidate top = queue_.top();
      const auto it = pairs_.find(top.pair);
      const int64_t count = it == pairs_.end() ? 0 : it->second.count;
      if (count == top.count)
        return count >= std::max<int64_t>(min_count, 1) ? std::optional(top.pair) : std::nullopt;
      queue_.pop();  // counted differently since; a raised count was queued when it rose
      if (count > 0 && count < top.count) queue_.push({count, top.pair});
    }
    return std::nullopt;
  }

  void merge(uint64_t pair, int32_t id) {
    std::vector<uint32_t> seen_in = std::move(pairs_[pair].words);
    std::sort(seen_in.begin(), seen_in.end());
    seen_in.erase(std::unique(seen_in.begin(), seen_in.end()), seen_in.end());
    for (const uint32_t w : seen_in) merge_in_word(w, pair, id);
    pairs_.erase(pair);
    for (const uint64_t changed : touched_) {
      const auto it = pairs_.find(changed);
      if (it == pairs_.end()) continue;
      if (it->second.count <= 0) {
        pairs_.erase(it);
      } else {
        queue_.push({it->second.count, changed});
      }
    }
    touched_.clear();
  }

 private:
  struct Word {
    uint32_t begin, size;
    int64_t count;
  };
  struct Entry {
    int64_t count = 0;
    std::vector<uint32_t> words;
  };
  struct Candidate {
    int64_t count;
    uint64_t pair;
    bool operator<(const Candidate& other) const {  // priority_queue: the largest comes first
      return count != other.count ? count < other.count : pair > other.pair;
    }
  };

  /// Raises a pair's count (a positive delta also notes the word); raised pairs are queued again
  /// after the merge.
  void change(uint64_t pair, uint32_t word, int64_t delta) {
    Entry& entry = pairs_[pair];
    entry.count += delta;
    if (delta <= 0) return;
    if (entry.words.empty() || entry.words.back() != word) entry.words.push_back(word);
    touched_.insert(pair);
  }

  void merge_in_word(uint32_t w, uint64_t pair, int32_t id) {
    Word& word = words_[w];
    int32_t* s = symbols_.data() + word.begin;
    const int32_t left = left_of(pair), right = right_of(pair);
    uint32_t out = 0;
    for (uint32_t i = 0; i < word.size;) {
      if (i + 1 >= word.size || s[i] != left || s[i + 1] != right) {
        s[out++] = s[i++];
        continue;
      }
      change(pair, w, -word.count);
      if (out > 0) {
        change(pair_of(s[out - 1], left), w, -word.count);
        change(pair_of(s[out - 1], id), w, word.count);
      }
      if (i + 2 < word.size) {
        change(pair_of(right, s[i + 2]), w, -word.count);
        change(pair_of(id, s[i + 2]), w, word.count);
      }
      s[out++] = id;
      i += 2;
    }
    word.size = out;
  }

  std::vector<int32_t> symbols_;
  std::vector<Word> words_;
  std::unordered_map<uint64_t, Entry, PairHash> pairs_;
  std::priority_queue<Candidate> queue_;
  std::unordered_set<uint64_t, PairHash> touched_;
};

struct TrainedVocabulary {
  std::vector<std::string> tokens;  ///< by id, spelled in the byte alphabet
  std::vector<std::pair<int32_t, int32_t>> merges;
};

std::string quoted(const std::string& text) { return nlohmann::json(text).dump(); }

/// tokenizer.json as Hugging Face's tokenizers writes it.
std::string to_tokenizer_json(const BpeTrainerOptions& options,
                              const TrainedVocabulary& vocabulary) {
  const std::string byte_level =
      R"({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": )";
  std::string out = "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n";
  out += "  \"added_tokens\": [";
  for (size_t i = 0; i < options.special_tokens.size(); ++i)
    out += fmt::format(
        R"({}{{"id": {}, "content": {}, "single_word": false, "lstrip": false, "rstrip": false, )"
        R"("normalized": false, "special": true}})",
        i == 0 ? "\n    " : ",\n    ", i, quoted(options.special_tokens[i]));
  out += "\n  ],\n  \"normalizer\": null,\n  \"pre_tokenizer\": ";
  if (options.pattern == SplitPattern::kGpt2) {
    out += byte_level + "true}";
  } else {
    out += fmt::format(
        R"({{"type": "Sequence", "pretokenizers": [{{"type": "Split", "pattern": {{"Regex": {}}}, )"
        R"("behavior": "Isolated", "invert": false}}, {}false}}]}})",
        quoted(tokenizer::kLlama3Pattern), byte_level);
  }
  out += ",\n  \"post_processor\": " + byte_level + "true},\n  \"decoder\": " + byte_level +
         "true},\n";
  out +=
      "  \"model\": {\n    \"type\": \"BPE\",\n    \"dropout\": null,\n    \"unk_token\": null,\n"
      "    \"continuing_subword_prefix\": null,\n    \"end_of_word_suffix\": null,\n"
      "    \"fuse_unk\": false,\n    \"byte_fallback\": false,\n    \"ignore_merges\": false,\n    "
      "\"vocab\": {";
  const auto& tokens = vocabulary.tokens;
  for (size_t i = 0; i < tokens.size(); ++i)
    out += fmt::format("{}\n      {}: {}", i == 0 ? "" : ",", quoted(tokens[i]), i);
  out += "\n    },\n    \"merges\": [";
  for (size_t i = 0; i < vocabulary.merges.size(); ++i) {
    const auto [left, right] = vocabulary.merges[i];
    out += fmt::format(
        "{}\n      {}", i == 0 ? "" : ",",
        quoted(tokens[static_cast<size_t>(left)] + " " + tokens[static_cast<size_t>(right)]));
  }
  return out + "\n    ]\n  }\n}\n";
}

void check_options(const BpeTrainerOptions& options) {
  const auto least = static_cast<int64_t>(256 + options.special_tokens.size());
  HEIRLOOM_CHECK(options.vocab_size >= least && options.vocab_size <= 10'000'000,
                 "[tokenizer] expected a vocabulary of {} (256 bytes and the special tokens) to "
                 "10,000,000; got {}",
                 least, options.vocab_size);
  HEIRLOOM_CHECK(options.min_frequency >= 1, "[tokenizer] expected min_frequency >= 1; got {}",
                 options.min_frequency);
  std::unordered_set<std::string> seen;
  for (const std::string& token : options.special_tokens) {
    const bool is_byte =
        std::find(byte_alphabet().begin(), byte_alphabet().end(), token) != byte_alphabet().end();
    HEIRLOOM_CHECK(
        !token.empty() && tokenizer::is_valid_utf8(token) && !is_byte && seen.insert(token).second,
        "[tokenizer] expected distinct special tokens of valid UTF-8 that are not a byte's name; "
        "got '{}'",
        replace_invalid_utf8(token));
  }
}

}  // namespace

std::optional<Tokenizer> train_bpe(const BpeTrainerOptions& options,
                                   const DocumentSource& next_document,
                                   const std::atomic<bool>* stop,
                                   const std::function<void(const BpeTrainerProgress&)>& progress) {
  check_options(options);
  const auto stopped = [&] { return stop != nullptr && stop->load(std::memory_order_relaxed); };
  const auto report = [&](BpeTrainerProgress::Phase phase, int64_t done, int64_t total) {
    if (progress) progress({phase, done, total});
  };

  tokenizer::WordCounter counter(
      options.pattern == SplitPattern::kGpt2 ? tokenizer::kGpt2Pattern : tokenizer::kLlama3Pattern);
  int64_t bytes = 0;
  for (bool more = true; more && !stopped();) {
    std::vector<std::string> batch;
    int64_t batch_bytes = 0;
    std::string document;
    while (batch_bytes < kBatchBytes && (more = next_document(document))) {
      batch_bytes += static_cast<int64_t>(document.size());
      batch.push_back(std::move(document));
      document.clear();
    }
    counter.add(batch);
    bytes += batch_bytes;
    report(BpeTrainerProgress::Phase::kReading, bytes, 0);
  }
  if (stopped()) return std::nullopt;
  const std::vector<WordCount> words = counter.take();
  if (words.empty())
    throw_error<FormatError>("[tokenizer] expected a text to train on; got {} bytes without a word",
                             bytes);

  TrainedVocabulary vocabulary;
  vocabulary.tokens = options.special_tokens;
  // The bytes stand in the order of their names, as tokenizers sorts them: printable ones first.
  std::array<int32_t, 256> order, byte_ids;
  for (size_t b = 0; b < 256; ++b) order[b] = static_cast<int32_t>(b);
  std::sort(order.begin(), order.end(), [](int32_t a, int32_t b) {
    return tokenizer::decode_char(byte_alphabet()[static_cast<size_t>(a)]) <
           tokenizer::decode_char(byte_alphabet()[static_cast<size_t>(b)]);
  });
  std::unordered_map<std::string, int32_t> ids;
  const auto add_token = [&](const std::string& token) {
    const auto [it, fresh] = ids.emplace(token, static_cast<int32_t>(vocabulary.tokens.size()));
    if (fresh) vocabulary.tokens.push_back(token);
    return it->second;
  };
  for (size_t i = 0; i < options.special_tokens.size(); ++i)
    ids.emplace(options.special_tokens[i], static_cast<int32_t>(i));
  for (const int32_t b : order)
    byte_ids[static_cast<size_t>(b)] = add_token(byte_alphabet()[static_cast<size_t>(b)]);

  PairTable table(words, byte_ids);
  while (static_cast<int64_t>(vocabulary.tokens.size()) < options.vocab_size) {
    if (stopped()) return std::nullopt;
    const auto pair = table.most_frequent(options.min_frequency);
    if (!pair) break;
    const int32_t left = left_of(*pair), right = right_of(*pair);
    // Two ways to one spelling are two merges and one token.
    const int32_t id = add_token(vocabulary.tokens[static_cast<size_t>(left)] +
                                 vocabulary.tokens[static_cast<size_t>(right)]);
    vocabulary.merges.emplace_back(left, right);
    table.merge(*pair, id);
    if (vocabulary.merges.size() % 256 == 0)
      report(BpeTrainerProgress::Phase::kMerging, static_cast<int64_t>(vocabulary.tokens.size()),
             options.vocab_size);
  }
  report(BpeTrainerProgress::Phase::kMerging, static_cast<int64_t>(vocabulary.tokens.size()),
         options.vocab_size);
  return Tokenizer::from_json(to_tokenizer_json(options, vocabulary), "the trained tokenizer");
}

}  // namespace heirloom
