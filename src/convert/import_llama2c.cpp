// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include "heirloom/convert/import.h"
#include "heirloom/core/error.h"
#include "heirloom/tokenizer/tokenizer.h"
#include "llama2c.h"
#include "mapped_source.h"

namespace heirloom {
namespace {

ModelConfig config_of(const Llama2cImage& image) {
  ModelConfig c;
  c.model_type = "llama";
  c.kept = Json::object();
  c.vocab_size = image.vocab;
  c.hidden_size = image.dim;
  c.intermediate_size = image.hidden_dim;
  c.num_hidden_layers = image.layers;
  c.num_attention_heads = image.heads;
  c.num_key_value_heads = image.kv_heads;
  c.head_dim = image.dim / image.heads;
  c.max_position_embeddings = image.seq_len;
  c.norm_eps = 1e-5;
  c.rope_theta = 10000;
  c.tie_word_embeddings = image.tied;
  if (image.vocab > 2) {
    c.bos_token_id = 1;
    c.eos_token_ids = {2};
  }
  return c;
}

std::string tokenizer_of(const fs::path& path, int64_t vocab) {
  std::string text;
  if (path.extension() == ".json") {
    text = read_file(path);
  } else {
    const MappedFile file(path);
    std::vector<std::string> storage;
    text = scored_pieces_json(parse_llama2c_tokenizer(file.bytes(), vocab, storage, path.string()),
                              path.string());
  }
  const Tokenizer tokenizer = Tokenizer::from_json(text, path.string());
  if (tokenizer.vocab_size() > vocab) {
    throw_error<FormatError>(
        "[llama2.c] expected a tokenizer of at most {} tokens; got {}; {}; is "
        "it this model's?",
        vocab, tokenizer.vocab_size(), path.string());
  }
  return text;
}

}  // namespace

ImportedModel import_llama2c(const fs::path& model, const fs::path& tokenizer) {
  const auto file = std::make_shared<const MappedFile>(model);
  const std::string origin = model.string();
  const Llama2cImage image = parse_llama2c(file->bytes(), origin);
  ImportedModel out;
  out.config = checked_config(config_of(image), origin);
  std::map<std::string, MappedTensor> tensors;
  for (const TensorShape& ours : tensor_shapes(out.config)) {
    const auto it = image.tensors.find(ours.name);
    HEIRLOOM_ASSERT(it != image.tensors.end() && it->second.shape == ours.shape);
    MappedTensor& tensor = tensors[ours.name];
    tensor = {ours.shape, GgufType::kF32, it->second.data, {}};
    if (is_query_or_key(ours.name)) {
      tensor.row = [dim = out.config.head_dim](int64_t row) { return interleaved_row(row, dim); };
    }
  }
  HEIRLOOM_ASSERT(tensors.size() == image.tensors.size());
  out.weights = std::make_unique<MappedSource>(file, origin, std::move(tensors));
  if (!tokenizer.empty()) out.tokenizer_json = tokenizer_of(tokenizer, image.vocab);
  return out;
}

}  // namespace heirloom
