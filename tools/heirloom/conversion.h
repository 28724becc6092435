// SPDX-License-Identifier: Apache-2.0
//
// What `convert` and `uptrain` share: the options that name a plan and a method, and how a
// conversion is shown.
#pragma once

#include "command.h"
#include "heirloom/convert/convert.h"
#include "heirloom/model/transformer.h"

namespace heirloom::cli {

/// A scheme as the command line gives it: a JSON object, or a scheme's bare name. Null for "".
Json parse_kv_sharing(const std::string& text);

/// "mean-v: ...", one line per method.
std::string convert_methods_help();

/// Source and result side by side, and what became of each layer (equal neighbours in one row).
void print_conversion(const ModelConfig& from, const ConversionPlan& plan);
Json conversion_json(const ModelConfig& from, const ConversionPlan& plan,
                     const ConvertOptions& options);

/// ConfigError where `out`, which is going to be written, is or holds one of `sources` (empty ones are
/// passed over), which would be lost. `option` names it in the message. kAllowed: a directory may be its own source.
enum class InPlace : uint8_t { kRefused, kAllowed };
void check_sources_stay(const fs::path& out, const std::vector<std::string>& sources,
                        const char* option, InPlace in_place);

/// The model on `device`, ready to run.
std::unique_ptr<Transformer> load_imported(const ImportedModel& model, const Device& device,
                                           Dtype dtype);

}  // namespace heirloom::cli
