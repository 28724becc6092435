// SPDX-License-Identifier: Apache-2.0
//
// Models of other programs' single files as a model of ours: what they are, their weights under our
// tensor names, and their tokenizer as the text of a tokenizer.json.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "heirloom/io/file.h"
#include "heirloom/model/config.h"
#include "heirloom/model/weight_source.h"

namespace heirloom {

struct ImportedModel {
  ModelConfig config;
  std::unique_ptr<WeightSource> weights;  ///< holds the file mapped
  std::string tokenizer_json;             ///< contents; empty: the file holds none
  std::map<std::string, fs::path> files;  ///< further files of a directory, by name, to be kept
};

/// A GGUF file (io/gguf.h) of architecture llama (Mistral too), qwen2, qwen3, gpt2 or gptneox.
/// Quantised tensors become float32, the values their blocks stand for; others keep their bits.
/// Query and key rows that llama files store for interleaved rotation are put back in the order of
/// half-split rotation. FormatError for what does not fit together, a missing or an additional
/// tensor; UnsupportedError, by name, for architectures, tokenizers and quantisations that this code
/// does not know. `tokenizer`: a tokenizer.json, a SentencePiece .model or a directory with one, in
/// place of the file's own.
ImportedModel import_gguf(const fs::path& path, const fs::path& tokenizer = {});

/// A float32 model of llama2.c: version 0 (no magic; known by a header that explains the file's
/// size to the byte) or 1. `tokenizer`: its tokenizer.bin, or a tokenizer.json that is taken as it
/// is; empty: none. Errors as above; a quantised file (version 2) is an UnsupportedError.
ImportedModel import_llama2c(const fs::path& model, const fs::path& tokenizer = {});

/// A model directory.
ImportedModel import_directory(const fs::path& path);

/// By what `path` is: a directory, a .gguf or a .bin; `tokenizer` in place of its own. IoError or
/// FormatError says what was expected.
ImportedModel import_model(const fs::path& path, const fs::path& tokenizer = {});

}  // namespace heirloom
