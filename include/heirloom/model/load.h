// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "heirloom/io/file.h"
#include "heirloom/model/transformer.h"
#include "heirloom/model/weight_source.h"

namespace heirloom {

/// The model of a model directory, its weights in `dtype` on `device`, ready to run: kernels are
/// registered. IoError when there is no such directory, ConfigError for its config.json,
/// FormatError for its weights, OutOfMemoryError before anything is allocated where they cannot fit,
/// UnsupportedError for a model or device that this build does not run.
std::unique_ptr<Transformer> load_model(const fs::path& directory, const Device& device,
                                        Dtype dtype);
/// The same of weights that are open already.
std::unique_ptr<Transformer> load_model(const ModelConfig& config, const WeightSource& weights,
                                        const Device& device, Dtype dtype);

}  // namespace heirloom
