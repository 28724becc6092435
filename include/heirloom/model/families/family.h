// SPDX-License-Identifier: Apache-2.0
//
// A family is one model_type: how its config.json is read into a ModelConfig and written back, and
// where its files keep each tensor. One file per family in src/model/families, one line in the list of families.cpp.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "heirloom/model/config.h"
#include "heirloom/model/weight_source.h"

namespace heirloom {

class FieldReader;

struct ModelFamily {
  const char* model_type;
  /// Fills `config` from the fields that the family knows; problems go to the reader. What it
  /// leaves unread becomes ModelConfig::kept where `keeps_unknown_keys`, else an unknown key is a
  /// problem.
  void (*read)(FieldReader& fields, ModelConfig& config);
  /// The family's fields, without model_type and kept keys. ConfigError where the family cannot
  /// express the config.
  Json (*write)(const ModelConfig& config);
  bool keeps_unknown_keys;
  /// Where a tensor of ours lies in the family's files; nullptr: under its own name, as it is.
  TensorPlace (*place)(const ModelConfig& config, const TensorShape& ours) = nullptr;
  /// What the names of a model with its head begin with; files of the bare model leave it out.
  const char* prefix = "model.";
  /// Ends of names that are no weights: rope tables, attention masks.
  std::vector<const char*> buffers = {"rotary_emb.inv_freq"};
};

/// nullptr when there is none.
const ModelFamily* find_model_family(std::string_view model_type);
std::vector<std::string> model_family_names();

}  // namespace heirloom
