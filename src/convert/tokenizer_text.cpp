// SPDX-License-Identifier: Apache-2.0
#include "tokenizer_text.h"

#include <algorithm>
#include <tuple>
#include <unordered_map>

#include "heirloom/core/error.h"

namespace heirloom {
namespace {

constexpr size_t kMaxPieceBytes = 1024;
// Published vocabularies have two or three merges per piece.
constexpr size_t kMaxMergeGrowth = 16;
constexpr size_t kFreeMergeBytes = 1 << 20;
constexpr const char* kSpace = "\xE2\x96\x81";

/// As JSON, which holds valid UTF-8 only.
std::string quote(std::string_view text) {
  try {
    return Json(text).dump();
  } catch (const Json::exception&) {
    throw_error<FormatError>("[tokenizer] expected tokens in UTF-8; got {}",
                             dump_json(Json(text.substr(0, 100))));
  }
}

bool starts_character(char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; }

size_t characters(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), starts_character));
}

struct ScoredMerge {
  double score;
  std::string_view left, right;
  size_t left_id, right_id;
};

std::vector<std::pair<std::string_view, std::string_view>> merges_of(const ScoredPieces& model,
                                                                     const std::string& origin) {
  using Type = ScoredPieces::Type;
  const auto joins = [&](size_t id) {
    const Type type = model.types[id];
    return type == Type::kNormal || type == Type::kUserDefined || type == Type::kUnused;
  };
  std::unordered_map<std::string_view, size_t> ids;
  size_t bytes = 0;
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    const std::string_view piece = model.pieces[id];
    bytes += piece.size();
    if (piece.empty() || piece.size() > kMaxPieceBytes || !ids.emplace(piece, id).second) {
      throw_error<FormatError>(
          "[tokenizer] expected distinct pieces of 1 to {} bytes; got {} as "
          "number {}; {}",
          kMaxPieceBytes, piece.empty() ? "an empty one" : dump_json(Json(piece.substr(0, 100))),
          id, origin);
    }
  }
  std::vector<ScoredMerge> merges;
  size_t merge_bytes = 0;
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    if (!joins(id)) continue;
    const std::string_view piece = model.pieces[id];
    for (size_t cut = 1; cut < piece.size(); ++cut) {
      if (!starts_character(piece[cut])) continue;
      const auto left = ids.find(piece.substr(0, cut));
      if (left == ids.end() || !joins(left->second)) continue;
      const auto right = ids.find(piece.substr(cut));
      if (right == ids.end() || !joins(right->second)) continue;
      merges.push_back({model.scores[id], left->first, right->first, left->second, right->second});
      merge_bytes += piece.size();
    }
    if (merge_bytes > kMaxMergeGrowth * bytes + kFreeMergeBytes) {
      throw_error<FormatError>(
          "[tokenizer] expected at most {} bytes of merges for {} bytes of pieces; got more; {}",
          kMaxMergeGrowth * bytes + kFreeMergeBytes, bytes, origin);
    }
  }
  // Descending in all of it. What is left equal are ways to one piece of one length: there are none.
  const auto key = [](const ScoredMerge& m) {
    return std::tuple(m.score, characters(m.left), characters(m.right), m.left_id, m.right_id);
  };
  std::sort(merges.begin(), merges.end(),
            [&](const ScoredMerge& a, const ScoredMerge& b) { return key(a) > key(b); });
  std::vector<std::pair<std::string_view, std::string_view>> out;
  out.reserve(merges.size());
  for (const ScoredMerge& m : merges) out.emplace_back(m.left, m.right);
  return out;
}

}  // namespace

void TokenizerText::add_token(std::string_view content, int64_t id, bool special) {
  added_tokens.push_back({{"id", id},
                          {"content", content},
                          {"single_word", false},
                          {"lstrip", false},
                          {"rstrip", false},
                          {"normalized", false},
                          {"special", special}});
}

std::string TokenizerText::dump() const {
  Json frame = Json::object();
  frame["version"] = "1.0";
  frame["truncation"] = nullptr;
  frame["padding"] = nullptr;
  frame["added_tokens"] = added_tokens;
  frame["normalizer"] = normalizer;
  frame["pre_tokenizer"] = pre_tokenizer;
  frame["post_processor"] = post_processor;
  frame["decoder"] = decoder;
  frame["model"] = model;
  // The vocabulary is written by hand: an ordered object searches all its keys for each new one.
  std::string text = dump_json(frame);
  text.resize(text.size() - 2);  // the ends of the model and of the file
  text += ",\"vocab\":{";
  for (const auto& [token, id] : vocabulary) {
    text += quote(token) + ":" + std::to_string(id) + ",";
  }
  if (!vocabulary.empty()) text.pop_back();
  text += "},\"merges\":[";
  const bool pairs = std::any_of(merges.begin(), merges.end(), [](const auto& merge) {
    return merge.first.find(' ') != std::string_view::npos ||
           merge.second.find(' ') != std::string_view::npos;
  });
  for (const auto& [left, right] : merges) {
    text += pairs ? dump_json(Json::array({left, right}))
                  : dump_json(Json(std::string(left).append(" ").append(right)));
    text += ',';
  }
  if (!merges.empty()) text.pop_back();
  text += "]}}\n";
  return text;
}

Json template_processor(const SpecialFrame& frame, const std::vector<std::string_view>& tokens,
                        const std::string& origin) {
  if (!frame.first && !frame.last) return nullptr;
  Json special = Json::object();
  const auto item = [&](int64_t id, int type) -> Json {
    if (id < 0 || static_cast<size_t>(id) >= tokens.size()) {
      throw_error<FormatError>("[tokenizer] expected bos and eos from 0 to {}; got {}; {}",
                               tokens.size(), id, origin);
    }
    const std::string name(tokens[static_cast<size_t>(id)]);
    special[name] = {{"id", name}, {"ids", {id}}, {"tokens", {name}}};
    return {{"SpecialToken", {{"id", name}, {"type_id", type}}}};
  };
  const auto sequence = [&](const char* name, int type) {
    Json items = Json::array();
    if (frame.first) items.push_back(item(*frame.first, type));
    items.push_back({{"Sequence", {{"id", name}, {"type_id", type}}}});
    if (frame.last) items.push_back(item(*frame.last, type));
    return items;
  };
  const Json single = sequence("A", 0);
  Json pair = single;
  for (const Json& part : sequence("B", 1)) pair.push_back(part);
  return {{"type", "TemplateProcessing"},
          {"single", single},
          {"pair", pair},
          {"special_tokens", special}};
}

std::string scored_pieces_json(const ScoredPieces& model, const std::string& origin) {
  using Type = ScoredPieces::Type;
  HEIRLOOM_ASSERT(model.scores.size() == model.pieces.size() &&
                  model.types.size() == model.pieces.size());
  TokenizerText text;
  Json unknown;
  bool has_bytes = false;
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    const std::string_view piece = model.pieces[id];
    const Type type = model.types[id];
    text.vocabulary.emplace_back(piece, static_cast<int64_t>(id));
    has_bytes = has_bytes || type == Type::kByte;
    if (type == Type::kUnknown && unknown.is_null()) unknown = piece;
    if (type == Type::kUnknown || type == Type::kControl || type == Type::kUserDefined) {
      text.add_token(piece, static_cast<int64_t>(id), type != Type::kUserDefined);
    }
  }
  text.merges = merges_of(model, origin);
  Json normalizers = Json::array();
  if (model.space_prefix) normalizers.push_back({{"type", "Prepend"}, {"prepend", kSpace}});
  normalizers.push_back({{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kSpace}});
  text.normalizer = {{"type", "Sequence"}, {"normalizers", normalizers}};
  Json decoders = Json::array();
  decoders.push_back({{"type", "Replace"}, {"pattern", {{"String", kSpace}}}, {"content", " "}});
  decoders.push_back({{"type", "ByteFallback"}});
  decoders.push_back({{"type", "Fuse"}});
  if (model.space_prefix) {
    decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  }
  text.decoder = {{"type", "Sequence"}, {"decoders", decoders}};
  text.post_processor = template_processor(model.frame, model.pieces, origin);
  text.model = {{"type", "BPE"},
                {"dropout", nullptr},
                {"unk_token", unknown},
                {"continuing_subword_prefix", nullptr},
                {"end_of_word_suffix", nullptr},
                {"fuse_unk", true},
                {"byte_fallback", has_bytes}};
  return text.dump();
}

}  // namespace heirloom
