// SPDX-License-Identifier: Apache-2.0
//
// What the families of transformers share. A config comes in one of two forms, version 4's
// (rope_theta, rope_scaling, torch_dtype) or version 5's (rope_parameters, dtype), and is written
// back in the one it came in; version 4's when it came from elsewhere, as both versions read that.
// Fields whose form matters stay in ModelConfig::kept, to be seen when writing.
#pragma once

#include <string>

#include "../config_fields.h"
#include "heirloom/model/families/family.h"

namespace heirloom {

/// nullptr when the config did not come with that key.
const Json* kept_field(const ModelConfig& config, const char* key);
/// Keeps a key that is read elsewhere, null included.
void keep_field(FieldReader& fields, ModelConfig& config, const char* key);

/// A problem for every field of a heirloom config that would change the model if it were obeyed and
/// mislead if it were kept. `extra`: fields of other families; false and null change nothing there.
void refuse_foreign(FieldReader& fields, ModelConfig& config, const char* model_type,
                    std::span<const char* const> extra);

/// Absent sizes take defaults, so one that is misspelt would go unnoticed: a problem for an unknown
/// key near an absent one of `sizes`. To be called when everything has been read.
void refuse_misspelt_sizes(FieldReader& fields, std::span<const char* const> sizes);

struct RopeKeys {
  const char* theta = "rope_theta";
  /// nullptr: all dims rotate, whatever the form.
  const char* partial = nullptr;
  double default_partial = 1;
};
void read_rope(FieldReader& fields, ModelConfig& config, const RopeKeys& keys);
void write_rope(const ModelConfig& config, const RopeKeys& keys, Json& json);

void read_dtype(FieldReader& fields, ModelConfig& config);
void write_dtype(const ModelConfig& config, Json& json);

/// One of the names that transformers has for an activation; a problem names the key.
ActivationKind read_activation(FieldReader& fields, ModelConfig& config, const char* key,
                               ActivationKind fallback, std::span<const ActivationKind> allowed);
/// The name it came under where that still is the activation.
Json activation_json(const ModelConfig& config, const char* key);

/// The kept architectures, else the family's own.
Json architectures_json(const ModelConfig& config, const char* architecture);

/// Notes what a family cannot say.
class Expressible {
 public:
  explicit Expressible(const ModelConfig& config);
  void need(bool fits, const char* key);
  /// What no family of transformers can say.
  void need_plain();
  /// One KV head per head, and heads that make up hidden_size.
  void need_full_heads();
  /// LayerNorm and a GELU MLP, all with biases.
  void need_biased_layer_norm();
  void throw_if_any() const { problems_.throw_if_any(); }

 private:
  const ModelConfig& config_;
  Problems problems_;
};

/// "model.layers.3.mlp.down_proj.weight" is layer "3", rest "mlp.down_proj.weight", module
/// "mlp.down_proj", kind "weight". Outside the layers, `layer` is empty and the rest is the name.
struct TensorName {
  std::string layer, rest, module, kind;
};
TensorName split_tensor_name(const std::string& name);

/// A module of ours and the one of a family's files that holds it.
struct ModuleName {
  const char* ours;
  const char* theirs;
  int part = -1;  ///< of q, k, v where one tensor holds all three; -1: the tensor is whole
  bool transposed = false;
};

/// The place of a tensor by its family's modules: `outer` in full, `inner` behind `blocks`, the
/// number of the block and a dot. Its rows lie in order from the first; where `part` tells otherwise
/// is the caller's to say. InternalError for a tensor that the family does not have.
struct NamedPlace {
  TensorPlace place;
  int part;
};
NamedPlace place_by_module(const TensorShape& ours, std::span<const ModuleName> outer,
                           std::span<const ModuleName> inner, const char* blocks);

}  // namespace heirloom
