// SPDX-License-Identifier: Apache-2.0
//
// Model directories in and out: config.json, model.safetensors (or its shards), tokenizer.json,
// generation_config.json.
#pragma once

#include "heirloom/io/safetensors.h"
#include "heirloom/model/config.h"
#include "heirloom/nn/parameter_store.h"

namespace heirloom {

/// Reads every tensor of the model in `directory` into `flat`, a buffer of parameters.elements() in
/// `dtype` on the parameters' device. F32, F16, BF16 and F64 tensors are read. A missing or additional tensor, or one of
/// another shape, is a FormatError that names it.
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

/// Writes config.json, generation_config.json, the weights and, where `tokenizer` names one,
/// tokenizer.json into an existing directory. Returns the content hash of the weights.
std::string write_model(const fs::path& directory, ModelConfig config,
                        const ParameterStore& parameters, const void* flat, Dtype dtype,
                        Dtype stored, const fs::path& tokenizer);

}  // namespace heirloom
