// SPDX-License-Identifier: Apache-2.0
#include "heirloom/model/load.h"

#include "heirloom/core/device_runtime.h"
#include "heirloom/kernels/kernel_table.h"
#include "heirloom/model/checkpoint.h"

namespace heirloom {

std::unique_ptr<Transformer> load_model(const fs::path& directory, const Device& device,
                                        Dtype dtype) {
  if (!heirloom::is_directory(directory)) {
    throw_error<IoError>(
        "[model] expected a directory with config.json and model.safetensors; got {}; {}",
        heirloom::exists(directory) ? "something else" : "nothing", directory.string());
  }
  const ModelConfig config = read_model_config(directory.string());
  return load_model(config, *open_weights(directory, config), device, dtype);
}

std::unique_ptr<Transformer> load_model(const ModelConfig& config, const WeightSource& weights,
                                        const Device& device, Dtype dtype) {
  register_kernels();
  const int64_t needed = count_parameters(config).total() * dtype_size(dtype);
  const int64_t available = device_runtime(device.kind).available_bytes(device.index);
  if (needed > available) {
    constexpr double kGiB = 1 << 30;
    throw_error<OutOfMemoryError>(
        "[memory] expected at most {:.1f} GiB, which are available; got {:.1f} GiB of weights in "
        "{}; {}; use a smaller model or a narrower --dtype",
        static_cast<double>(available) / kGiB, static_cast<double>(needed) / kGiB,
        dtype_name(dtype), weights.origin());
  }
  auto model = std::make_unique<Transformer>(config, device, dtype);
  load_weights(weights, model->parameters(), model->parameters().data(), dtype);
  return model;
}

}  // namespace heirloom
