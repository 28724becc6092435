// SPDX-License-Identifier: Apache-2.0
#include <set>
#include <utility>

#include "gguf_config.h"
#include "gguf_tokenizer.h"
#include "heirloom/convert/import.h"
#include "heirloom/core/error.h"
#include "heirloom/model/checkpoint.h"
#include "heirloom/tokenizer/tokenizer.h"
#include "mapped_source.h"

namespace heirloom {
namespace {

constexpr std::pair<const char*, const char*> kModelNames[] = {
    {"model.embed_tokens", "token_embd"},
    {"model.embed_positions", "position_embd"},
    {"model.norm", "output_norm"},
    {"lm_head", "output"},
};
constexpr std::pair<const char*, const char*> kBlockNames[] = {
    {"input_layernorm", "attn_norm"},    {"post_attention_layernorm", "ffn_norm"},
    {"self_attn.q_proj", "attn_q"},      {"self_attn.k_proj", "attn_k"},
    {"self_attn.v_proj", "attn_v"},      {"self_attn.o_proj", "attn_output"},
    {"self_attn.q_norm", "attn_q_norm"}, {"self_attn.k_norm", "attn_k_norm"},
    {"mlp.gate_proj", "ffn_gate"},       {"mlp.up_proj", "ffn_up"},
    {"mlp.down_proj", "ffn_down"},
};
constexpr std::string_view kLayerPrefix = "model.layers.";

/// "model.layers.3.mlp.up_proj.weight" -> "blk.3.ffn_up.weight"
std::string gguf_name(const std::string& ours) {
  const size_t dot = ours.rfind('.');  // before weight or bias
  const std::string kind = ours.substr(dot);
  std::string_view stem = std::string_view(ours).substr(0, dot);
  std::string layer;
  if (stem.starts_with(kLayerPrefix)) {
    stem.remove_prefix(kLayerPrefix.size());
    layer = stem.substr(0, stem.find('.'));
    stem.remove_prefix(layer.size() + 1);
    for (const auto& [our, theirs] : kBlockNames) {
      if (stem == our) return "blk." + layer + "." + theirs + kind;
    }
  }
  for (const auto& [our, theirs] : kModelNames) {
    if (stem == our) return theirs + kind;
  }
  throw_error<InternalError>("[gguf] expected a name that GGUF knows; got {}", ours);
}

TensorPlace place_of(const ModelConfig& config, bool interleaved, bool merged,
                     const TensorShape& ours) {
  TensorPlace place{gguf_name(ours.name), {}, 0, false};
  if (interleaved && is_query_or_key(ours.name)) {
    place.row = [dim = config.head_dim](int64_t row) { return interleaved_row(row, dim); };
  }
  if (!merged) return place;
  const int64_t q = config.num_attention_heads * config.head_dim,
                kv = config.num_key_value_heads * config.head_dim;
  const std::pair<std::string_view, int64_t> begins[] = {
      {".attn_q.", 0}, {".attn_k.", q}, {".attn_v.", q + kv}};
  for (const auto& [part, begin] : begins) {
    const size_t at = place.tensor.find(part);
    if (at == std::string::npos) continue;
    place.tensor.replace(at, part.size(), ".attn_qkv.");
    place.begin = begin;
  }
  return place;
}

bool is_buffer(const std::string& name) {
  return name == "rope_freqs.weight" || name.ends_with(".attn_rot_embd") ||
         name.ends_with(".attn_rot_embd.weight");
}

const GgufTensor& find_tensor(const GgufFile& file, const FileTensor& wanted) {
  const std::string origin = file.path().string();
  const auto it = file.tensors().find(wanted.name);
  if (it == file.tensors().end()) {
    throw_error<FormatError>("[gguf] expected tensor {}; got {} tensors without it; {}",
                             wanted.name, file.tensors().size(), origin);
  }
  const GgufTensor& tensor = it->second;
  if (tensor.shape != wanted.shape) {
    throw_error<FormatError>("[gguf] expected tensor {} of shape ({}); got ({}); {}", wanted.name,
                             fmt::join(wanted.shape, ", "), fmt::join(tensor.shape, ", "), origin);
  }
  if (is_quantised(tensor.type) && tensor.shape.size() != 2) {
    throw_error<FormatError>(
        "[gguf] expected a vector as F32, F16 or BF16; got {} in tensor {}; {}",
        gguf_type_name(tensor.type), wanted.name, origin);
  }
  wanted.check_rows();
  return tensor;
}

}  // namespace

ImportedModel import_gguf(const fs::path& path, const fs::path& tokenizer) {
  const auto file = std::make_shared<const GgufFile>(path);
  const std::string origin = path.string();
  const GgufMetadata& metadata = file->metadata();
  const ModelConfig config = gguf_config(metadata, file->tensors());
  // A block has at least 9 tensors: no plan is made for layers that are not there.
  if (config.num_hidden_layers > static_cast<int64_t>(file->tensors().size())) {
    throw_error<FormatError>("[gguf] expected the tensors of {} blocks; got {} tensors; {}",
                             config.num_hidden_layers, file->tensors().size(), origin);
  }
  ImportedModel model;
  model.config = checked_config(config, origin);

  const std::string architecture = metadata.text("general.architecture");
  const bool interleaved = architecture == "llama";
  const bool merged = file->tensors().contains("blk.0.attn_qkv.weight");
  std::map<std::string, MappedTensor> tensors;
  std::set<std::string> seen;
  for (const FileTensor& wanted :
       file_tensors(tensor_shapes(model.config), [&](const TensorShape& ours) {
         return place_of(model.config, interleaved, merged, ours);
       })) {
    const GgufTensor& stored = find_tensor(*file, wanted);
    seen.insert(wanted.name);
    for (const FileTensor::Part& part : wanted.parts) {
      MappedTensor& tensor = tensors[part.ours.name];
      tensor = {part.ours.shape, stored.type, stored.data, {}};
      if (!wanted.plain()) tensor.row = [part](int64_t row) { return part.row(row); };
    }
  }
  for (const auto& [name, tensor] : file->tensors()) {
    const bool tied_head = name == "output.weight" && model.config.tie_word_embeddings;
    if (seen.contains(name) || is_buffer(name) || tied_head) continue;
    throw_error<FormatError>("[gguf] expected only tensors of a {} model; got {} ({}); {}",
                             architecture, name, fmt::join(tensor.shape, ", "), origin);
  }
  model.weights = std::make_unique<MappedSource>(file, origin, std::move(tensors));
  if (!tokenizer.empty()) {
    Tokenizer::load(tokenizer);
    model.files = tokenizer_files(tokenizer);
    return model;
  }
  model.tokenizer_json = gguf_tokenizer_json(metadata);
  if (!model.tokenizer_json.empty()) {
    Tokenizer::from_json(model.tokenizer_json, "the tokenizer of " + origin);  // it can be loaded
  }
  return model;
}

}  // namespace heirloom
