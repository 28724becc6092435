// SPDX-License-Identifier: Apache-2.0
#include "heirloom/tokenizer/tokenizer.h"

#include <array>
#include <nlohmann/json.hpp>

#include "heirloom/core/error.h"
#include "tokenizer_impl.h"

namespace heirloom {
namespace {

const std::string kNoText;

/// Appends the words of one text through the BPE model.
class WordEncoder final : public tokenizer::PreTokenizer::Sink {
 public:
  WordEncoder(const tokenizer::BpeModel& bpe, std::vector<int32_t>& ids) : bpe_(bpe), ids_(ids) {}
  void word(std::string_view word) override { bpe_.encode(word, ids_); }

 private:
  const tokenizer::BpeModel& bpe_;
  std::vector<int32_t>& ids_;
};

void encode_plain(const Tokenizer::Impl& impl, std::string_view text, bool first,
                  bool recognise_special, std::vector<int32_t>& ids) {
  std::string normalized;
  if (!impl.normalizer.empty()) {
    normalized = impl.normalizer.run(text);
    text = normalized;
  }
  WordEncoder encoder(impl.bpe, ids);
  impl.normalized_tokens.split(text, recognise_special, [&](std::string_view piece, int32_t id) {
    if (id >= 0) {
      ids.push_back(id);
    } else {
      impl.pre_tokenizer.run(piece, first && piece.data() == text.data(), encoder);
    }
  });
}

std::optional<int32_t> find_special(const Tokenizer::Impl& impl,
                                    std::initializer_list<const char*> names) {
  for (const char* name : names) {
    const auto id = impl.vocabulary().find(name);
    if (id && impl.is_special(*id)) return id;
  }
  return std::nullopt;
}

/// bos_token and eos_token: a string, or an object with its content.
std::optional<int32_t> configured_token(const nlohmann::json& config, const char* key,
                                        const tokenizer::Vocabulary& vocabulary) {
  auto it = config.find(key);
  if (it == config.end()) return std::nullopt;
  const nlohmann::json& value =
      it->is_object() && it->contains("content") ? it->at("content") : *it;
  if (!value.is_string()) return std::nullopt;
  return vocabulary.find(value.get_ref<const std::string&>());
}

void read_tokenizer_config(const fs::path& path, Tokenizer::Impl& impl) {
  if (!heirloom::exists(path)) return;
  const auto config = nlohmann::json::parse(read_file(path), nullptr, false);
  if (!config.is_object())
    throw_error<FormatError>("[tokenizer] expected a JSON object; got something else; {}",
                             path.string());
  if (const auto id = configured_token(config, "bos_token", impl.vocabulary())) impl.bos = id;
  if (const auto id = configured_token(config, "eos_token", impl.vocabulary())) impl.eos = id;
}

std::shared_ptr<Tokenizer::Impl> impl_from_json(std::string text, const std::string& origin) {
  auto impl = std::make_shared<Tokenizer::Impl>();
  tokenizer::read_tokenizer_json(text, origin, *impl);
  impl->bos = find_special(*impl, {"<|begin_of_text|>", "<s>", "<bos>"});
  if (!impl->bos && !impl->prefix.empty()) impl->bos = impl->prefix.front();
  impl->eos = find_special(*impl, {"<|end_of_text|>", "</s>", "<eos>", "<|endoftext|>"});
  if (!impl->bos) impl->bos = find_special(*impl, {"<|endoftext|>"});
  impl->source = std::move(text);
  return impl;
}

std::shared_ptr<Tokenizer::Impl> impl_from_sentencepiece(std::string file,
                                                         const std::string& origin) {
  using Type = tokenizer::SentencePieceModel::PieceType;
  auto impl = std::make_shared<Tokenizer::Impl>();
  impl->sentencepiece.emplace(file, origin);
  impl->kind = "SentencePiece BPE";
  const auto& model = *impl->sentencepiece;
  const auto& vocabulary = model.vocabulary();
  for (int32_t id = 0; id < vocabulary.size(); ++id)
    if (model.type(id) == Type::kControl) impl->added.emplace(id, true);
  impl->decoder.add(tokenizer::ReplaceText{"\xE2\x96\x81", " "});
  impl->decoder.add(tokenizer::UnspellFallback{});
  if (model.add_dummy_prefix()) impl->decoder.strip_front(" ", 1, true);
  impl->decoder.finish(vocabulary, {});
  for (int32_t id = 0; id < vocabulary.size(); ++id)
    if (model.type(id) == Type::kUnknown) impl->decoder.set_bytes(id, model.unk_surface());
  impl->bos = model.control_id(model.bos_piece());
  impl->eos = model.control_id(model.eos_piece());
  if (impl->bos) impl->prefix = {*impl->bos};
  impl->source = std::move(file);
  return impl;
}

std::shared_ptr<Tokenizer::Impl> impl_from_file(const fs::path& path) {
  std::string text = read_file(path);
  const size_t start = text.find_first_not_of(" \t\r\n");
  if (path.extension() == ".json" || (start != std::string::npos && text[start] == '{'))
    return impl_from_json(std::move(text), path.string());
  return impl_from_sentencepiece(std::move(text), path.string());
}

}  // namespace

Tokenizer Tokenizer::from_json(std::string text, const std::string& origin) {
  return Tokenizer(impl_from_json(std::move(text), origin));
}

Tokenizer Tokenizer::from_sentencepiece(std::string model, const std::string& origin) {
  return Tokenizer(impl_from_sentencepiece(std::move(model), origin));
}

Tokenizer Tokenizer::load(const fs::path& path) {
  if (!heirloom::is_directory(path)) return Tokenizer(impl_from_file(path));
  for (const char* name : {"tokenizer.json", "tokenizer.model"}) {
    if (!heirloom::exists(path / name)) continue;
    auto impl = impl_from_file(path / name);
    read_tokenizer_config(path / "tokenizer_config.json", *impl);
    return Tokenizer(std::move(impl));
  }
  if (auto text = tokenizer::read_slow_files(path)) {
    auto impl = impl_from_json(*std::move(text), path.string());
    read_tokenizer_config(path / "tokenizer_config.json", *impl);
    return Tokenizer(std::move(impl));
  }
  throw_error<IoError>(
      "[tokenizer] expected tokenizer.json, tokenizer.model, or vocab.json and merges.txt; got a "
      "directory with none of them; {}",
      path.string());
}

bool Tokenizer::is_in(const fs::path& directory) {
  return heirloom::exists(directory / "tokenizer.json") ||
         heirloom::exists(directory / "tokenizer.model") || tokenizer::has_slow_files(directory);
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, EncodeOptions options) const {
  std::vector<int32_t> ids;
  if (options.add_special) ids = impl_->prefix;
  encode_append(text, ids, options.recognise_special);
  if (options.add_special) ids.insert(ids.end(), impl_->suffix.begin(), impl_->suffix.end());
  return ids;
}

void Tokenizer::encode_append(std::string_view text, std::vector<int32_t>& ids,
                              bool recognise_special) const {
  if (impl_->sentencepiece) return impl_->sentencepiece->encode(text, ids);
  impl_->raw_tokens.split(text, recognise_special, [&](std::string_view piece, int32_t id) {
    if (id >= 0) {
      ids.push_back(id);
    } else {
      encode_plain(*impl_, piece, piece.data() == text.data(), recognise_special, ids);
    }
  });
}

std::string Tokenizer::decode(std::span<const int32_t> ids, DecodeOptions options) const {
  std::string out;
  tokenizer::TokenDecoder::State state;
  for (const int32_t id : ids) {
    if (!has_token(id)) continue;
    const bool special = impl_->is_special(id);
    if (special && options.skip_special) continue;
    impl_->decoder.append(impl_->vocabulary(), id, special, state, out);
  }
  return out;
}

int64_t Tokenizer::vocab_size() const { return impl_->vocabulary().size(); }
bool Tokenizer::has_token(int64_t id) const { return impl_->vocabulary().has(id); }
std::optional<int32_t> Tokenizer::token_id(std::string_view text) const {
  return impl_->vocabulary().find(text);
}
const std::string& Tokenizer::token_text(int32_t id) const {
  return has_token(id) ? impl_->vocabulary().text(id) : kNoText;
}
const std::string& Tokenizer::token_bytes(int32_t id) const {
  return has_token(id) ? impl_->decoder.bytes(id) : kNoText;
}
bool Tokenizer::is_special(int32_t id) const { return impl_->is_special(id); }
std::optional<int32_t> Tokenizer::bos_id() const { return impl_->bos; }
std::optional<int32_t> Tokenizer::eos_id() const { return impl_->eos; }

std::vector<int32_t> Tokenizer::added_tokens() const {
  std::vector<int32_t> ids;
  for (const auto& [id, special] : impl_->added) ids.push_back(id);
  return ids;
}

int64_t Tokenizer::merge_count() const { return impl_->bpe.merge_count(); }
std::string Tokenizer::kind() const { return impl_->kind; }

const std::string& Tokenizer::to_json() const {
  if (impl_->sentencepiece)
    throw_error<UnsupportedError>(
        "[tokenizer] expected a tokenizer that came from a tokenizer.json; got a SentencePiece "
        "model; "
        "save it as tokenizer.model");
  return impl_->source;
}

void Tokenizer::save(const fs::path& path) const {
  const char* name = impl_->sentencepiece ? "tokenizer.model" : "tokenizer.json";
  write_file_atomically(heirloom::is_directory(path) ? path / name : path, impl_->source);
}

std::string StreamDecoder::push(int32_t id) {
  const Tokenizer::Impl& impl = *tokenizer_.impl_;
  if (!tokenizer_.has_token(id)) return {};
  const bool special = impl.is_special(id);
  if (special && options_.skip_special) return {};
  tokenizer::TokenDecoder::State state{first_, stripped_};
  impl.decoder.append(impl.vocabulary(), id, special, state, pending_);
  first_ = state.first;
  stripped_ = state.stripped;
  // Only the last three bytes can belong to a character that is still to come.
  size_t complete = pending_.size();
  for (size_t n = 1; n <= 3 && n <= pending_.size(); ++n)
    if (is_unfinished_char(std::string_view(pending_).substr(pending_.size() - n)))
      complete = pending_.size() - n;
  std::string out = replace_invalid_utf8(std::string_view(pending_).substr(0, complete));
  pending_.erase(0, complete);
  return out;
}

std::string StreamDecoder::flush() {
  std::string out = replace_invalid_utf8(pending_);
  pending_.clear();
  first_ = true;
  stripped_ = 0;
  return out;
}

}  // namespace heirloom
