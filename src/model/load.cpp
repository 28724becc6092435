// SPDX-License-Identifier: Apache-2.0
#include "heirloom/model/load.h"

#include "heirloom/kernels/kernel_table.h"
#include "heirloom/model/checkpoint.h"

namespace heirloom {

std::unique_ptr<Transformer> load_model(const fs::path& directory, const Device& device,
                                        Dtype dtype) {
  if (!fs::is_directory(directory)) {
    throw_error<IoError>(
        "[model] expected a directory with config.json and model.safetensors; got {}; {}",
        fs::exists(directory) ? "something else" : "nothing", directory.string());
  }
  register_kernels();
  auto model = std::make_unique<Transformer>(read_model_config(directory.string()), device, dtype);
  load_weights(directory, model->config(), model->parameters(), model->parameters().data(), dtype);
  return model;
}

}  // namespace heirloom
