// SPDX-License-Identifier: Apache-2.0
//
// Model directories in and out: config.json, model.safetensors (or its shards), tokenizer.json,
// generation_config.json.
#pragma once

#include "heirloom/io/safetensors.h"
#include "heirloom/model/config.h"
#include "heirloom/model/weight_source.h"
#include "heirloom/nn/parameter_store.h"

namespace heirloom {

/// Reads every tensor of the model into `flat`, a buffer of parameters.elements() in `dtype` on the
/// parameters' device. A missing tensor, or one of another shape, is a FormatError that names it.
void load_weights(const WeightSource& source, const ParameterStore& parameters, void* flat,
                  Dtype dtype);
/// The same from a model directory (open_weights says what is refused).
void load_weights(const fs::path& directory, const ModelConfig& config,
                  const ParameterStore& parameters, void* flat, Dtype dtype);

/// A buffer on the parameters' device, laid out as they are, under a prefix: weights (""), or optimizer moments
/// ("m.", "v.").
struct FlatTensors {
  std::string prefix;
  void* data = nullptr;
  Dtype dtype = Dtype::kFloat32;
};

/// Writes one safetensors file of all parameters in each of `flats`, stored as `stored`; returns
/// its content hash.
std::string save_flat(const fs::path& file, const ParameterStore& parameters,
                      const std::vector<FlatTensors>& flats, Dtype stored);
/// Reads it back; the file must hold exactly these tensors, bit for bit where dtypes agree.
void load_flat(const fs::path& file, const ParameterStore& parameters,
               const std::vector<FlatTensors>& flats);

/// What makes text of a model's tokens, by the name that it has in a model directory: all such files
/// of a directory, or the one file that `path` is (a tokenizer.json or a SentencePiece .model).
std::map<std::string, fs::path> tokenizer_files(const fs::path& path);

/// Writes config.json, generation_config.json and, where it is not empty, tokenizer.json.
void write_model_files(const fs::path& directory, const ModelConfig& config,
                       const std::string& tokenizer_json);

/// Writes config.json, generation_config.json, the weights as the config's family keeps them and,
/// where `tokenizer` names a file or directory, its files, into an existing directory. Returns the
/// content hash of the weights.
std::string write_model(const fs::path& directory, ModelConfig config,
                        const ParameterStore& parameters, const void* flat, Dtype dtype,
                        Dtype stored, const fs::path& tokenizer);

}  // namespace heirloom
