// SPDX-License-Identifier: Apache-2.0
#include "heirloom/tokenizer/bpe_trainer.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <map>
#include <random>

#include "fixtures.h"
#include "heirloom/core/error.h"

namespace heirloom::testing {
namespace {

DocumentSource source_of(std::vector<std::string> documents) {
  return [documents = std::move(documents), next = size_t{0}](std::string& out) mutable {
    if (next == documents.size()) return false;
    out = documents[next++];
    return true;
  };
}

Tokenizer train(std::vector<std::string> documents, BpeTrainerOptions options) {
  return *train_bpe(options, source_of(std::move(documents)));
}

/// Words of lower-case letters and single spaces, some frequent.
std::string random_text(uint32_t seed, size_t words) {
  std::mt19937 random(seed);
  std::string text;
  for (size_t i = 0; i < words; ++i) {
    if (i > 0) text += ' ';
    auto word = static_cast<uint32_t>(random() % 40 * (random() % 3));
    for (size_t n = 1 + word % 7; n > 0; --n, word = word * 5 + 3)
      text += static_cast<char>('a' + word % 5);
  }
  return text;
}

/// The definition, slowly: recount every pair of every word before each merge.
std::vector<std::string> merges_by_definition(const std::string& text, size_t count,
                                              int64_t min_frequency) {
  std::map<std::string, int64_t> words;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find(' ', at + 1), text.size());
    ++words[text.substr(at, end - at)];
    at = end;
  }
  // Ids decide ties: special token 0, then bytes by the character that spells them, then merges.
  std::map<std::string, size_t> id_of;
  std::vector<std::string> by_id = {"<|endoftext|>"};
  std::vector<std::string> alphabet(tokenizer::byte_alphabet().begin(),
                                    tokenizer::byte_alphabet().end());
  std::sort(alphabet.begin(), alphabet.end());  // UTF-8 sorts as code points do
  by_id.insert(by_id.end(), alphabet.begin(), alphabet.end());
  for (size_t i = 0; i < by_id.size(); ++i) id_of[by_id[i]] = i;
  std::vector<std::pair<std::vector<size_t>, int64_t>> split;
  for (const auto& [word, n] : words) {
    std::vector<size_t> symbols;
    for (const char c : word)
      symbols.push_back(id_of[tokenizer::byte_alphabet()[static_cast<uint8_t>(c)]]);
    split.emplace_back(symbols, n);
  }
  std::vector<std::string> merges;
  while (by_id.size() < 257 + count) {
    std::map<std::pair<size_t, size_t>, int64_t> pairs;
    for (const auto& [symbols, n] : split)
      for (size_t i = 0; i + 1 < symbols.size(); ++i) pairs[{symbols[i], symbols[i + 1]}] += n;
    auto best = pairs.end();
    for (auto it = pairs.begin(); it != pairs.end(); ++it)
      if (best == pairs.end() || it->second > best->second) best = it;
    if (best == pairs.end() || best->second < min_frequency) break;
    const auto [left, right] = best->first;
    merges.push_back(by_id[left] + " " + by_id[right]);
    const std::string token = by_id[left] + by_id[right];
    if (!id_of.contains(token)) {
      id_of[token] = by_id.size();
      by_id.push_back(token);
    }
    for (auto& [symbols, n] : split) {
      std::vector<size_t> merged;
      for (size_t i = 0; i < symbols.size(); ++i) {
        if (i + 1 < symbols.size() && symbols[i] == left && symbols[i + 1] == right) {
          merged.push_back(id_of[token]);
          ++i;
        } else {
          merged.push_back(symbols[i]);
        }
      }
      symbols = merged;
    }
  }
  return merges;
}

TEST(Trainer, FollowsTheDefinition) {
  for (uint32_t seed = 1; seed <= 6; ++seed) {
    const std::string text = random_text(seed, 400);
    BpeTrainerOptions options;
    options.vocab_size = 257 + 120;
    options.min_frequency = seed % 2 == 0 ? 2 : 5;
    const json file = json::parse(train({text}, options).to_json());
    EXPECT_EQ(file["model"]["merges"].get<std::vector<std::string>>(),
              merges_by_definition(text, 120, options.min_frequency))
        << "seed " << seed;
  }
}

TEST(Trainer, HandCheckedMerges) {
  BpeTrainerOptions options;
  options.vocab_size = 259;
  options.min_frequency = 1;
  // "a b" five times; then "a ab", "Ġ a" and "Ġ ab" twice each, and "a" has the lowest id.
  const json file = json::parse(train({"ab ab aab aab ab"}, options).to_json());
  EXPECT_EQ(file["model"]["merges"], (json{"a b", "a ab"}));
  EXPECT_EQ(file["model"]["vocab"]["<|endoftext|>"], 0);
  EXPECT_EQ(file["model"]["vocab"]["!"], 1);
  EXPECT_EQ(file["model"]["vocab"]["ab"], 257);
  EXPECT_EQ(file["model"]["vocab"].size(), 259u);
}

TEST(Trainer, ThreadsAndCutsDoNotMatter) {
  const std::string text = random_text(9, 20'000);
  std::vector<std::string> pieces;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find(' ', std::min(at + 700, text.size())), text.size());
    pieces.push_back(text.substr(at, end - at));
    at = end;
  }
  BpeTrainerOptions options;
  options.vocab_size = 600;
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const std::string one = train({text}, options).to_json();
  omp_set_num_threads(4);
  const std::string four = train(pieces, options).to_json();
  omp_set_num_threads(threads);
  EXPECT_EQ(one, four);
}

TEST(Trainer, TrainedTokenizersRoundTripAnyBytes) {
  std::mt19937 random(5);
  for (const SplitPattern pattern : {SplitPattern::kGpt2, SplitPattern::kLlama3}) {
    BpeTrainerOptions options;
    options.vocab_size = 500;
    options.pattern = pattern;
    options.special_tokens = {"<|endoftext|>", "<|pad|>"};
    const Tokenizer t =
        train({random_text(2, 3000) + "\n\xFF\xC3(", "caf\xC3\xA9 1234 caf\xC3\xA9"}, options);
    EXPECT_EQ(t.eos_id(), 0);
    EXPECT_EQ(t.encode("<|pad|>"), (std::vector<int32_t>{1}));
    EXPECT_EQ(t.kind(), "byte-level BPE");
    for (int trial = 0; trial < 300; ++trial) {
      std::string text;
      for (size_t i = random() % 80; i > 0; --i)
        text += static_cast<char>(random() % 2 == 0 ? random() % 256 : 'a' + random() % 5);
      ASSERT_EQ(t.decode(t.encode(text)), text);
    }
    const std::string frequent = random_text(2, 100);
    EXPECT_LT(t.encode(frequent).size(), frequent.size() / 2);
  }
}

TEST(Trainer, WritesTheFileThatTokenizersReads) {
  BpeTrainerOptions options;
  options.vocab_size = 300;
  json file = json::parse(train({random_text(1, 500)}, options).to_json());
  for (const char* key : {"version", "truncation", "padding", "added_tokens", "normalizer",
                          "pre_tokenizer", "post_processor", "decoder", "model"})
    EXPECT_TRUE(file.contains(key)) << key;
  const json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", true}};
  EXPECT_EQ(file["pre_tokenizer"], byte_level);
  EXPECT_EQ(file["decoder"], byte_level);
  EXPECT_EQ(file["added_tokens"], (json{added_token(0, "<|endoftext|>")}));

  options.pattern = SplitPattern::kLlama3;
  file = json::parse(train({random_text(1, 500)}, options).to_json());
  EXPECT_EQ(file["pre_tokenizer"]["pretokenizers"][0]["type"], "Split");
  EXPECT_EQ(file["pre_tokenizer"]["pretokenizers"][0]["behavior"], "Isolated");
  EXPECT_EQ(file["pre_tokenizer"]["pretokenizers"][1]["use_regex"], false);
}

TEST(Trainer, StopsWhenPairsRunOutOrAsked) {
  BpeTrainerOptions options;
  options.vocab_size = 1000;
  EXPECT_EQ(train({"ab ab"}, options).vocab_size(), 258);
  std::atomic<bool> stop{true};
  EXPECT_FALSE(train_bpe(options, source_of({"ab ab"}), &stop).has_value());
  stop = false;
  const auto stop_while_merging = [&](const BpeTrainerProgress& p) {
    if (p.phase == BpeTrainerProgress::Phase::kReading) stop = true;
  };
  EXPECT_FALSE(
      train_bpe(options, source_of({random_text(1, 500)}), &stop, stop_while_merging).has_value());
}

TEST(Trainer, RefusesWhatCannotWork) {
  BpeTrainerOptions options;
  EXPECT_THROW(train({}, options), FormatError);
  EXPECT_THROW(train({"", ""}, options), FormatError);
  options.vocab_size = 256;
  EXPECT_THROW(train({"a"}, options), ArgumentError);
  options.vocab_size = 257;
  EXPECT_EQ(train({"a"}, options).vocab_size(), 257);
  options.vocab_size = 300;
  options.special_tokens = {"x", "x"};
  EXPECT_THROW(train({"a"}, options), ArgumentError);
  options.special_tokens = {"<s>", ""};
  EXPECT_THROW(train({"a"}, options), ArgumentError);
  options.special_tokens = {"<a>", "<b>", "\xFF"};
  EXPECT_THROW(train({"a"}, options), ArgumentError);
  options.special_tokens = {};
  EXPECT_EQ(train({"ab ab"}, options).encode("ab").size(), 1u);
  options.min_frequency = 0;
  EXPECT_THROW(train({"a"}, options), ArgumentError);
}

}  // namespace
}  // namespace heirloom::testing
