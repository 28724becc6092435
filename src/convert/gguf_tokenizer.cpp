// SPDX-License-Identifier: Apache-2.0
#include "gguf_tokenizer.h"

#include <cmath>
#include <unordered_set>

#include "heirloom/core/error.h"
#include "heirloom/core/log.h"
#include "heirloom/tokenizer/patterns.h"
#include "tokenizer_text.h"

namespace heirloom {
namespace {

using PieceType = ScoredPieces::Type;

/// What a tokenizer.ggml.pre stands for, as the tokenizers it was named after have it.
struct PreTokenizerInfo {
  const char* name;
  const char* pattern;  ///< nullptr: GPT-2's, built into ByteLevel
  bool digits = false;  ///< each digit is a word, before the pattern
  bool nfc = false;
  bool ignore_merges = false;  ///< a word that is a token is not split
  bool adds_bos = false;       ///< unless the file says otherwise
};
constexpr PreTokenizerInfo kPreTokenizers[] = {
    {"default", nullptr},
    {"gpt-2", nullptr},
    {"phi-2", nullptr},
    {"olmo", nullptr, false, true},
    {"smollm", nullptr, true},
    {"starcoder", nullptr, true},
    {"llama-bpe", tokenizer::kLlama3Pattern, false, false, true, true},
    {"llama3", tokenizer::kLlama3Pattern, false, false, true, true},
    {"llama-v3", tokenizer::kLlama3Pattern, false, false, true, true},
    {"dolma2", tokenizer::kLlama3Pattern},
    {"dbrx", tokenizer::kLlama3Pattern},
    {"qwen2", tokenizer::kQwen2Pattern, false, true},
};

Json byte_level(bool use_regex) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", false},
          {"trim_offsets", true},
          {"use_regex", use_regex}};
}

class TokenizerReader {
 public:
  explicit TokenizerReader(const GgufMetadata& metadata) : m_(metadata) {}

  std::string run() {
    const auto model = m_.find_text("tokenizer.ggml.model");
    if (!model || *model == "no_vocab" || *model == "none") return "";
    const GgufValue* tokens = m_.find_texts("tokenizer.ggml.tokens");
    if (tokens == nullptr || tokens->size() == 0) fail("tokenizer.ggml.tokens", "none");
    tokens_ = &tokens->texts();
    read_types();
    if (*model == "gpt2") return byte_level_json();
    if (*model == "llama") return sentencepiece_json();
    throw_error<UnsupportedError>(
        "[gguf] expected tokenizer.ggml.model gpt2 or llama; got {}; {}; give the model's own "
        "tokenizer (--tokenizer)",
        *model, m_.origin());
  }

 private:
  [[noreturn]] void fail(const std::string& expected, const std::string& got) const {
    throw_error<FormatError>("[gguf] expected {}; got {}; {}", expected, got, m_.origin());
  }

  void read_types() {
    types_.assign(tokens_->size(), PieceType::kNormal);
    const GgufValue* types = m_.find_integers("tokenizer.ggml.token_type");
    if (types == nullptr) return;
    check_count("tokenizer.ggml.token_type", types->size());
    for (size_t id = 0; id < types->size(); ++id) {
      const int64_t type = types->integer(id);
      if (type < 1 || type > 6) fail("a token_type from 1 to 6", std::to_string(type));
      types_[id] = static_cast<PieceType>(type);
    }
  }

  void check_count(const char* key, size_t count) const {
    if (count != tokens_->size()) {
      fail(fmt::format("{} of {} tokens", key, tokens_->size()), fmt::format("{}", count));
    }
  }

  SpecialFrame frame(bool adds_bos) const {
    const auto wanted = [&](const char* flag, bool fallback,
                            const char* id) -> std::optional<int64_t> {
      if (!m_.find_boolean(flag).value_or(fallback)) return std::nullopt;
      const auto value = m_.find_integer(id);
      if (!value && m_.find_boolean(flag)) fail(id, "none");
      return value;
    };
    return {wanted("tokenizer.ggml.add_bos_token", adds_bos, "tokenizer.ggml.bos_token_id"),
            wanted("tokenizer.ggml.add_eos_token", false, "tokenizer.ggml.eos_token_id")};
  }

  std::string byte_level_json() const {
    const std::string name = m_.find_text("tokenizer.ggml.pre").value_or("default");
    if (name == "default") {
      log(LogLevel::kWarning,
          fmt::format("{} does not say how its tokenizer cuts words (tokenizer.ggml.pre): taking "
                      "GPT-2's way; give --tokenizer where that is wrong",
                      m_.origin()));
    }
    const PreTokenizerInfo* pre = nullptr;
    std::vector<const char*> known;
    for (const PreTokenizerInfo& info : kPreTokenizers) {
      known.push_back(info.name);
      if (name == info.name) pre = &info;
    }
    if (pre == nullptr) {
      throw_error<UnsupportedError>(
          "[gguf] expected tokenizer.ggml.pre of {}; got {}; {}; give the model's own "
          "tokenizer (--tokenizer)",
          fmt::join(known, ", "), name, m_.origin());
    }
    TokenizerText text;
    add_tokens(text);
    add_merges(text);
    if (pre->nfc) text.normalizer = {{"type", "NFC"}};
    text.pre_tokenizer = byte_level(pre->pattern == nullptr);
    if (pre->digits || pre->pattern != nullptr) {
      Json steps = Json::array();
      if (pre->digits) steps.push_back({{"type", "Digits"}, {"individual_digits", true}});
      if (pre->pattern != nullptr) {
        steps.push_back({{"type", "Split"},
                         {"pattern", {{"Regex", pre->pattern}}},
                         {"behavior", "Isolated"},
                         {"invert", false}});
      }
      steps.push_back(text.pre_tokenizer);
      text.pre_tokenizer = {{"type", "Sequence"}, {"pretokenizers", steps}};
    }
    text.post_processor = template_processor(frame(pre->adds_bos), *tokens_, m_.origin());
    text.decoder = byte_level(true);
    text.decoder["add_prefix_space"] = true;
    text.model = {{"type", "BPE"},
                  {"dropout", nullptr},
                  {"unk_token", nullptr},
                  {"continuing_subword_prefix", nullptr},
                  {"end_of_word_suffix", nullptr},
                  {"fuse_unk", false},
                  {"byte_fallback", false},
                  {"ignore_merges", pre->ignore_merges}};
    return text.dump();
  }

  /// Unused ids fill a vocabulary up to the rows of its embedding: they are left out.
  void add_tokens(TokenizerText& text) const {
    std::unordered_set<std::string_view> seen;
    for (size_t i = 0; i < tokens_->size(); ++i) {
      const std::string_view token = (*tokens_)[i];
      const auto id = static_cast<int64_t>(i);
      if (types_[i] == PieceType::kUnused) continue;
      if (token.empty() || !seen.insert(token).second) {
        fail("distinct tokens",
             fmt::format("{} as number {}", dump_json(Json(token.substr(0, 100))), id));
      }
      text.vocabulary.emplace_back(token, id);
      if (types_[i] == PieceType::kControl || types_[i] == PieceType::kUserDefined) {
        text.add_token(token, id, types_[i] == PieceType::kControl);
      }
    }
  }

  void add_merges(TokenizerText& text) const {
    const GgufValue* merges = m_.find_texts("tokenizer.ggml.merges");
    if (merges == nullptr) fail("tokenizer.ggml.merges", "none");
    for (const std::string_view merge : merges->texts()) {
      // Both sides are in the byte alphabet, which has no space.
      const size_t space = merge.find(' ', 1);
      if (space == std::string_view::npos || space + 1 == merge.size()) {
        fail("merges of two tokens", dump_json(Json(merge.substr(0, 100))));
      }
      text.merges.emplace_back(merge.substr(0, space), merge.substr(space + 1));
    }
  }

  std::string sentencepiece_json() const {
    for (const char* flag : {"tokenizer.ggml.remove_extra_whitespaces"}) {
      if (m_.find_boolean(flag).value_or(false)) {
        throw_error<UnsupportedError>(
            "[gguf] expected {} false; got true; {}; give the model's own "
            "tokenizer.json",
            flag, m_.origin());
      }
    }
    ScoredPieces model;
    model.pieces = *tokens_;
    model.types = types_;
    const GgufValue* scores = m_.find_numbers("tokenizer.ggml.scores");
    if (scores == nullptr) fail("tokenizer.ggml.scores", "none");
    check_count("tokenizer.ggml.scores", scores->size());
    for (size_t id = 0; id < scores->size(); ++id) {
      model.scores.push_back(scores->number(id));
      if (std::isnan(model.scores.back())) fail("scores that are numbers", "NaN");
    }
    const auto unknown = m_.find_integer("tokenizer.ggml.unknown_token_id");
    if (unknown && *unknown >= 0 && static_cast<size_t>(*unknown) < tokens_->size()) {
      PieceType& type = model.types[static_cast<size_t>(*unknown)];
      if (type == PieceType::kNormal) type = PieceType::kUnknown;
    }
    model.space_prefix = m_.find_boolean("tokenizer.ggml.add_space_prefix").value_or(true);
    model.frame = frame(true);
    return scored_pieces_json(model, m_.origin());
  }

  const GgufMetadata& m_;
  const std::vector<std::string_view>* tokens_ = nullptr;
  std::vector<PieceType> types_;
};

}  // namespace

std::string gguf_tokenizer_json(const GgufMetadata& metadata) {
  return TokenizerReader(metadata).run();
}

}  // namespace heirloom
