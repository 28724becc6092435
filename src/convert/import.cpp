// SPDX-License-Identifier: Apache-2.0
#include "heirloom/convert/import.h"

#include "heirloom/model/checkpoint.h"

namespace heirloom {

ImportedModel import_directory(const fs::path& path) {
  ImportedModel model;
  model.config = read_model_config(path.string());
  model.weights = open_weights(path, model.config);
  model.files = tokenizer_files(path);
  const fs::path generation = path / "generation_config.json";
  if (heirloom::is_regular_file(generation)) model.files["generation_config.json"] = generation;
  return model;
}

ImportedModel import_model(const fs::path& path, const fs::path& tokenizer) {
  if (heirloom::is_directory(path)) {
    ImportedModel model = import_directory(path);
    if (tokenizer.empty()) return model;
    const auto generation = model.files.extract("generation_config.json");
    model.files = tokenizer_files(tokenizer);
    if (generation) model.files["generation_config.json"] = generation.mapped();
    return model;
  }
  if (!heirloom::exists(path)) {
    throw_error<IoError>("[import] expected a model directory, a .gguf or a .bin; got nothing; {}",
                         path.string());
  }
  const std::string extension = path.extension().string();
  if (extension == ".gguf") return import_gguf(path, tokenizer);
  if (extension == ".bin") {
    const bool sentencepiece = tokenizer.extension() == ".model";
    ImportedModel model = import_llama2c(path, sentencepiece ? fs::path() : tokenizer);
    if (sentencepiece) model.files = tokenizer_files(tokenizer);
    return model;
  }
  throw_error<FormatError>(
      "[import] expected a model directory, a .gguf (GGUF) or a .bin (llama2.c); got {}",
      path.string());
}

}  // namespace heirloom
