// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <nlohmann/json.hpp>

#include "heirloom/core/error.h"
#include "tokenizer_impl.h"

namespace heirloom::tokenizer {
namespace {

// Sorted objects: the vocabulary has 100,000 keys, which an order-preserving object would search
// one by one.
using Node = nlohmann::json;

constexpr size_t kMaxSteps = 64;
constexpr int kMaxDepth = 64;
constexpr size_t kMaxAddedTokenBytes = 4096;

/// One object of the file, with its place for messages.
class Part {
 public:
  Part(const Node& node, std::string place, const std::string& origin)
      : node_(node), place_(std::move(place)), origin_(origin) {
    if (!node.is_object()) fail("an object", node.type_name());
  }
  [[noreturn]] void fail(const std::string& expected, const std::string& got) const {
    throw_error<FormatError>("[tokenizer] expected {}; got {}; {} of {}", expected, got, place_,
                             origin_);
  }
  const Node* find(const std::string& key) const {
    const auto it = node_.find(key);
    return it == node_.end() || it->is_null() ? nullptr : &*it;
  }
  const Node& at(const std::string& key) const {
    const Node* value = find(key);
    if (value == nullptr) fail("a key '" + key + "'", "none");
    return *value;
  }
  std::string text(const std::string& key) const { return as_text(at(key), key); }
  std::string text_or(const std::string& key, const std::string& fallback) const {
    const Node* value = find(key);
    return value == nullptr ? fallback : as_text(*value, key);
  }
  bool flag(const std::string& key, bool fallback) const {
    const Node* value = find(key);
    if (value == nullptr) return fallback;
    if (!value->is_boolean()) fail("true or false for '" + key + "'", value->type_name());
    return value->get<bool>();
  }
  int64_t integer(const std::string& key) const { return as_integer(at(key), key); }
  int64_t as_integer(const Node& value, const std::string& key) const {
    if (!value.is_number_integer() ||
        (value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX))
      fail("an integer for '" + key + "'",
           value.dump(-1, ' ', true, Node::error_handler_t::replace));
    return value.get<int64_t>();
  }
  const Node& array(const std::string& key) const {
    const Node& value = at(key);
    if (!value.is_array()) fail("an array for '" + key + "'", value.type_name());
    return value;
  }
  Part child(const std::string& key) const { return {at(key), place_ + "." + key, origin_}; }
  Part element(const Node& node, const std::string& name) const {
    return {node, place_ + "." + name, origin_};
  }
  const std::string& origin() const { return origin_; }
  Regex regex(const std::string& pattern, Regex::Kind kind = Regex::Kind::kPattern) const {
    try {
      return Regex(pattern, kind);
    } catch (const FormatError& e) {
      throw_error<FormatError>("{}; {} of {}", e.what(), place_, origin_);
    }
  }

 private:
  std::string as_text(const Node& value, const std::string& key) const {
    if (!value.is_string()) fail("a string for '" + key + "'", value.type_name());
    return value.get<std::string>();
  }
  const Node& node_;
  std::string place_;
  const std::string& origin_;
};

Node parse(std::string_view text, const std::string& origin) {
  const auto limit_depth = [&](int depth, Node::parse_event_t, Node&) {
    if (depth > kMaxDepth)
      throw_error<FormatError>("[tokenizer] expected at most {} levels of nesting; got more; {}",
                               kMaxDepth, origin);
    return true;
  };
  if (text.find('\0') != std::string_view::npos)  // the parser would take it for the end
    throw_error<FormatError>("[tokenizer] expected JSON; got a NUL byte; {}", origin);
  try {
    return Node::parse(text, limit_depth);
  } catch (const Node::exception& e) {
    throw_error<FormatError>("[tokenizer] expected JSON; got: {}; {}", e.what(), origin);
  }
}

/// {"String": s} or {"Regex": r}.
Regex read_pattern(const Part& part) {
  if (part.find("String") != nullptr) {
    const std::string text = part.text("String");
    if (text.empty()) part.fail("a pattern", "an empty string");
    return part.regex(text, Regex::Kind::kLiteral);
  }
  return part.regex(part.text("Regex"));
}

/// Replace, of normalizers and decoders alike: a literal or a pattern.
template <class Add>
void read_replace(const Part& part, Add&& add) {
  const Part pattern = part.child("pattern");
  if (pattern.find("String") != nullptr) {
    if (pattern.text("String").empty()) pattern.fail("a pattern", "an empty string");
    add(ReplaceText{pattern.text("String"), part.text("content")});
  } else {
    add(ReplaceMatches{read_pattern(pattern), part.text("content")});
  }
}

void read_normalizer(const Part& part, size_t& steps, Normalizer& out) {
  if (++steps > kMaxSteps) part.fail("at most 64 normalizers", "more");
  const std::string type = part.text("type");
  if (type == "Sequence") {
    for (const Node& n : part.array("normalizers"))
      read_normalizer(part.element(n, "normalizers"), steps, out);
  } else if (type == "NFC") {
    out.add(NormalForm::kNfc);
  } else if (type == "NFD") {
    out.add(NormalForm::kNfd);
  } else if (type == "NFKC") {
    out.add(NormalForm::kNfkc);
  } else if (type == "NFKD") {
    out.add(NormalForm::kNfkd);
  } else if (type == "Prepend") {
    out.add(Prepend{part.text("prepend")});
  } else if (type == "Replace") {
    read_replace(part, [&](auto step) { out.add(std::move(step)); });
  } else if (type == "Strip") {
    out.add(StripSpaces{part.flag("strip_left", true), part.flag("strip_right", true)});
  } else {
    part.fail("a normalizer of NFC, NFD, NFKC, NFKD, Prepend, Replace, Strip or Sequence", type);
  }
}

SplitBehavior read_behavior(const Part& part, const std::string& fallback) {
  const std::string name = part.text_or("behavior", fallback);
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  part.fail("a split behavior", name);
}

/// "prepend_scheme", or the older "add_prefix_space".
Metaspace::PrependScheme read_prepend_scheme(const Part& part) {
  const std::string scheme =
      part.text_or("prepend_scheme", part.flag("add_prefix_space", true) ? "always" : "never");
  if (scheme == "always") return Metaspace::PrependScheme::kAlways;
  if (scheme == "first") return Metaspace::PrependScheme::kFirst;
  if (scheme == "never") return Metaspace::PrependScheme::kNever;
  part.fail("a prepend_scheme of always, first or never", scheme);
}

std::string read_replacement(const Part& part) {
  const std::string text = part.text_or("replacement", "\xE2\x96\x81");
  if (text.empty()) part.fail("a replacement character", "none");
  return text;
}

void read_pre_tokenizer(const Part& part, size_t& steps, PreTokenizer& out) {
  if (++steps > kMaxSteps) part.fail("at most 64 pre-tokenizers", "more");
  const std::string type = part.text("type");
  const auto split = [&](const char* pattern, SplitBehavior behavior, bool invert = false) {
    out.add(Split{Regex(pattern), behavior, invert});
  };
  if (type == "Sequence") {
    for (const Node& n : part.array("pretokenizers"))
      read_pre_tokenizer(part.element(n, "pretokenizers"), steps, out);
  } else if (type == "ByteLevel") {
    if (part.flag("add_prefix_space", true)) out.add(PrefixSpace{});
    if (part.flag("use_regex", true)) split(kGpt2Pattern, SplitBehavior::kIsolated);
    out.add(SpellBytes{});
  } else if (type == "Split") {
    out.add(Split{read_pattern(part.child("pattern")), read_behavior(part, "Isolated"),
                  part.flag("invert", false)});
  } else if (type == "Digits") {
    split(R"(\p{N})", part.flag("individual_digits", false) ? SplitBehavior::kIsolated
                                                            : SplitBehavior::kContiguous);
  } else if (type == "Punctuation") {
    split(R"([!-\/:-@\[-`{-~\p{P}])", read_behavior(part, "Isolated"));
  } else if (type == "Whitespace") {
    split(R"(\w+|[^\w\s]+)", SplitBehavior::kRemoved, true);
  } else if (type == "WhitespaceSplit") {
    split(R"(\s)", SplitBehavior::kRemoved);
  } else if (type == "Metaspace") {
    Metaspace meta{read_replacement(part), read_prepend_scheme(part), std::nullopt};
    if (part.flag("split", true)) meta.split = part.regex(meta.replacement, Regex::Kind::kLiteral);
    out.add(std::move(meta));
  } else {
    part.fail(
        "a pre-tokenizer of ByteLevel, Split, Digits, Punctuation, Whitespace, WhitespaceSplit, "
        "Metaspace or Sequence",
        type);
  }
}

void read_decoder(const Part& part, size_t& steps, bool& fused, TokenDecoder& out) {
  if (++steps > kMaxSteps) part.fail("at most 64 decoders", "more");
  const std::string type = part.text("type");
  if (fused && type != "Sequence" && type != "Strip" && type != "Fuse")
    part.fail("only Strip after the tokens are joined", type);
  if (type == "Sequence") {
    for (const Node& n : part.array("decoders"))
      read_decoder(part.element(n, "decoders"), steps, fused, out);
  } else if (type == "ByteLevel") {
    out.add(UnspellBytes{});
    fused = true;
  } else if (type == "ByteFallback") {
    out.add(UnspellFallback{});
  } else if (type == "Fuse") {
    fused = true;
  } else if (type == "Replace") {
    read_replace(part, [&](auto step) { out.add(std::move(step)); });
  } else if (type == "Strip") {
    const int64_t start = part.integer("start"), stop = part.integer("stop");
    if (start < 0 || stop < 0 || part.text("content").empty() || (fused && stop != 0))
      part.fail("a Strip of some character, and after Fuse only from the start",
                fmt::format("start {}, stop {}", start, stop));
    if (fused) {
      out.strip_front(part.text("content"), static_cast<size_t>(start), false);
    } else {
      out.add(
          StripToken{part.text("content"), static_cast<size_t>(start), static_cast<size_t>(stop)});
    }
  } else if (type == "Metaspace") {
    out.add(UnMetaspace{read_replacement(part),
                        read_prepend_scheme(part) != Metaspace::PrependScheme::kNever});
  } else {
    part.fail("a decoder of ByteLevel, ByteFallback, Fuse, Replace, Strip, Metaspace or Sequence",
              type);
  }
}

/// Appends what the "single" template has around its sequence.
void read_template(const Part& part, Tokenizer::Impl& impl) {
  bool after = false;
  static const Node kNone = Node::object();
  const Node* special_tokens = part.find("special_tokens");
  const Part known(special_tokens != nullptr ? *special_tokens : kNone,
                   "post_processor.special_tokens", part.origin());
  for (const Node& n : part.array("single")) {
    const Part item = part.element(n, "single");
    if (item.find("Sequence") != nullptr) {
      if (after) item.fail("one sequence in the template", "two");
      after = true;
      continue;
    }
    const std::string name = item.child("SpecialToken").text("id");
    for (const Node& id : known.child(name).array("ids")) {
      const int64_t value = known.as_integer(id, "ids");
      if (!impl.vocabulary().has(value))
        part.fail("ids of known tokens", fmt::format("{} for '{}'", value, name));
      (after ? impl.suffix : impl.prefix).push_back(static_cast<int32_t>(value));
    }
  }
  if (!after) part.fail("a template with a sequence", "none");
}

void read_post_processor(const Part& part, size_t& steps, Tokenizer::Impl& impl) {
  if (++steps > kMaxSteps) part.fail("at most 64 post-processors", "more");
  const std::string type = part.text("type");
  if (type == "Sequence") {
    for (const Node& n : part.array("processors"))
      read_post_processor(part.element(n, "processors"), steps, impl);
  } else if (type == "TemplateProcessing") {
    read_template(part, impl);
  } else if (type == "BertProcessing" || type == "RobertaProcessing") {
    const auto id_of = [&](const std::string& key) {
      const Node& pair = part.array(key);
      const int64_t id = pair.size() == 2 ? part.as_integer(pair[1], key) : -1;
      if (!impl.vocabulary().has(id))
        part.fail("[token, id] for '" + key + "'", fmt::format("id {}", id));
      return static_cast<int32_t>(id);
    };
    impl.prefix.push_back(id_of("cls"));
    impl.suffix.push_back(id_of("sep"));
  } else if (type != "ByteLevel") {  // ByteLevel moves offsets only
    part.fail(
        "a post-processor of TemplateProcessing, ByteLevel, BertProcessing, RobertaProcessing or "
        "Sequence",
        type);
  }
}

std::vector<AddedToken> read_added_tokens(const Part& root) {
  std::vector<AddedToken> tokens;
  if (root.find("added_tokens") == nullptr) return tokens;
  for (const Node& n : root.array("added_tokens")) {
    const Part part = root.element(n, "added_tokens");
    AddedToken token;
    token.content = part.text("content");
    const int64_t id = part.integer("id");
    if (token.content.empty() || token.content.size() > kMaxAddedTokenBytes || id < 0 ||
        id > INT32_MAX)
      part.fail("added tokens of 1 to 4096 bytes with an id",
                fmt::format("{} bytes with id {}", token.content.size(), id));
    token.id = static_cast<int32_t>(id);
    token.special = part.flag("special", false);
    token.single_word = part.flag("single_word", false);
    token.lstrip = part.flag("lstrip", false);
    token.rstrip = part.flag("rstrip", false);
    token.normalized = part.flag("normalized", !token.special);
    tokens.push_back(std::move(token));
  }
  return tokens;
}

/// The vocabulary of the model and of the added tokens. An added token that the model knows has the
/// model's id.
Vocabulary read_vocabulary(const Part& model, std::vector<AddedToken>& added) {
  const Part entries = model.child("vocab");
  const Node& table = model.at("vocab");
  const size_t expected = table.size() + added.size();
  Vocabulary vocabulary;
  for (const auto& [token, id] : table.items())
    vocabulary.add(token, entries.as_integer(id, token), expected, model.origin());
  for (AddedToken& token : added) {
    if (const auto known = vocabulary.find(token.content)) {
      token.id = *known;
    } else if (vocabulary.has(token.id)) {
      vocabulary.rename(token.id, token.content);
    } else {
      vocabulary.add(token.content, token.id, expected, model.origin());
    }
  }
  return vocabulary;
}

void read_merges(const Part& model, BpeModel& bpe) {
  for (const Node& merge : model.array("merges")) {
    const auto bad = [&] {
      model.fail("merges as \"a b\" or [\"a\", \"b\"]",
                 merge.dump(-1, ' ', true, Node::error_handler_t::replace));
    };
    if (merge.is_string()) {
      const std::string& text = merge.get_ref<const std::string&>();
      const size_t space = text.find(' ');
      if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) bad();
      bpe.add_merge(std::string_view(text).substr(0, space),
                    std::string_view(text).substr(space + 1), model.origin());
    } else {
      if (!merge.is_array() || merge.size() != 2 || !merge[0].is_string() || !merge[1].is_string())
        bad();
      bpe.add_merge(merge[0].get_ref<const std::string&>(), merge[1].get_ref<const std::string&>(),
                    model.origin());
    }
  }
  bpe.finish();
}

BpeModel read_model(const Part& part, bool bytes, std::vector<AddedToken>& added) {
  const std::string type = part.text_or("type", part.find("merges") != nullptr ? "BPE" : "none");
  if (type != "BPE")
    throw_error<UnsupportedError>("[tokenizer] expected a model of type BPE; got {}; {}", type,
                                  part.origin());
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (!part.text_or(key, "").empty()) part.fail(std::string("no ") + key, part.text(key));
  Vocabulary vocabulary = read_vocabulary(part, added);
  BpeOptions options;
  options.bytes = bytes;
  options.byte_fallback = part.flag("byte_fallback", false);
  options.fuse_unk = part.flag("fuse_unk", false);
  options.ignore_merges = part.flag("ignore_merges", false);
  if (part.find("unk_token") != nullptr) {
    options.unk = vocabulary.find(part.text("unk_token"));
    if (!options.unk) part.fail("an unk_token of the vocabulary", part.text("unk_token"));
  }
  BpeModel bpe(std::move(vocabulary), options);
  read_merges(part, bpe);
  return bpe;
}

}  // namespace

void read_tokenizer_json(std::string_view text, const std::string& origin, Tokenizer::Impl& impl) {
  const Node file = parse(text, origin);
  const Part root(file, "tokenizer.json", origin);
  size_t steps = 0;
  if (root.find("normalizer") != nullptr)
    read_normalizer(root.child("normalizer"), steps, impl.normalizer);
  steps = 0;
  if (root.find("pre_tokenizer") != nullptr)
    read_pre_tokenizer(root.child("pre_tokenizer"), steps, impl.pre_tokenizer);

  // With ByteLevel last, words stay raw bytes: the model spells them.
  auto& splits = impl.pre_tokenizer.steps();
  const bool bytes = !splits.empty() && std::holds_alternative<SpellBytes>(splits.back());
  if (bytes) splits.pop_back();

  std::vector<AddedToken> added = read_added_tokens(root);
  impl.bpe = read_model(root.child("model"), bytes, added);
  impl.kind = bytes                              ? "byte-level BPE"
              : impl.bpe.options().byte_fallback ? "BPE with byte fallback"
                                                 : "BPE";
  std::vector<bool> raw(static_cast<size_t>(impl.vocabulary().size()));
  for (const AddedToken& token : added) {
    if (!impl.added.emplace(token.id, token.special).second) continue;
    raw[static_cast<size_t>(token.id)] = true;
    if (token.normalized) {
      impl.normalized_tokens.add(token, impl.normalizer.run(token.content));
    } else {
      impl.raw_tokens.add(token, token.content);
    }
  }
  bool fused = false;
  steps = 0;
  if (root.find("decoder") != nullptr) {
    read_decoder(root.child("decoder"), steps, fused, impl.decoder);
  } else {
    impl.decoder.set_separator(" ");
  }
  impl.decoder.finish(impl.vocabulary(), raw);
  steps = 0;
  if (root.find("post_processor") != nullptr)
    read_post_processor(root.child("post_processor"), steps, impl);
}

}  // namespace heirloom::tokenizer
