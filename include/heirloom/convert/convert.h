// SPDX-License-Identifier: Apache-2.0
//
// Checkpoint surgery: a model whose layers project all their own keys and values, rewritten for
// another KV plan. Sources: SkipV1Former arXiv 2510.16807, sections 5.1 and C (uptraining, figure
// 10); pooling of KV heads: GQA, Ainslie et al., arXiv 2305.13245, section 2.1.
//
// What happens to a layer follows from its two plans:
//   keys, and values under a method that pools: adjacent heads are averaged where the number of
//     heads before is a multiple of that after, weights and biases alike;
//   a layer that keeps all its heads stays as it is; one without own heads drops them;
//   values of a layer that keeps some: the method decides, and whether it touches the out projection.
// Everything else keeps its bits.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "heirloom/convert/import.h"
#include "heirloom/io/file.h"
#include "heirloom/model/kv_plan.h"
#include "heirloom/model/weight_source.h"

namespace heirloom {

struct ConvertOptions {
  Json kv_sharing;                ///< as in a config; null: as it is
  int64_t kv_heads = 0;           ///< KV heads of the result; 0: as many as there are
  std::string method = "mean-v";  ///< of convert_method_names()
  std::string
      model_type;     ///< of the result; empty: the source's where it can say it, else heirloom
  std::string dtype;  ///< "float32", "bfloat16", "float16"; empty: each tensor keeps its own
};

/// What happened to one layer (1-based in text).
struct LayerChange {
  int64_t layer = 0;                                                             ///< 0-based
  int64_t keys_before = 0, keys_after = 0, values_before = 0, values_after = 0;  ///< own KV heads
  std::string keys, values, out;  ///< "as it was", "mean of 2", "heads 0, 3", "dropped", ...
};

struct ConversionPlan {
  ModelConfig config;  ///< of the result
  std::vector<LayerChange> layers;
};

/// The result's config and what becomes of every layer, before anything is written. ConfigError for
/// a plan, a number of heads, a method or a model_type that does not fit the model, with the reason.
ConversionPlan plan_conversion(const ModelConfig& from, const ConvertOptions& options);

/// Writes the converted model into `directory` (complete or absent), tokenizer and generation
/// settings with it. Where a method chose by the weights, the plan's layers then say what.
void convert_model(const ImportedModel& from, ConversionPlan& plan, const ConvertOptions& options,
                   const fs::path& directory);

std::vector<std::string> convert_method_names();
/// One line on what a method does.
std::string convert_method_summary(const std::string& name);

}  // namespace heirloom
