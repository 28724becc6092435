// SPDX-License-Identifier: Apache-2.0
#include "mapped_source.h"

#include <cstring>
#include <utility>

#include "heirloom/core/error.h"
#include "heirloom/model/families/family.h"

namespace heirloom {

MappedSource::MappedSource(std::shared_ptr<const void> owner, std::string origin,
                           std::map<std::string, MappedTensor> tensors)
    : owner_(std::move(owner)), origin_(std::move(origin)), tensors_(std::move(tensors)) {
  for (const auto& [name, tensor] : tensors_) {
    entries_[name] = {tensor.shape,
                      is_quantised(tensor.type) ? "F32" : gguf_type_name(tensor.type)};
  }
}

std::span<const std::byte> MappedSource::read(const std::string& name,
                                              std::vector<std::byte>& buffer) const {
  const MappedTensor& tensor = tensors_.at(name);
  const bool quantised = is_quantised(tensor.type);
  if (!tensor.row && !quantised) return tensor.data;
  const auto rows = static_cast<size_t>(tensor.shape[0]);
  const auto columns = static_cast<size_t>(tensor.shape.size() == 2 ? tensor.shape[1] : 1);
  const GgufBlock block = gguf_block(tensor.type);
  const size_t row_bytes =
      columns / static_cast<size_t>(block.elements) * static_cast<size_t>(block.bytes);
  const size_t out_bytes = quantised ? columns * sizeof(float) : row_bytes;
  HEIRLOOM_ASSERT(row_bytes > 0);
  buffer.resize(rows * out_bytes);
  std::vector<float> values(quantised ? columns : 0);
  for (size_t r = 0; r < rows; ++r) {
    const auto from = tensor.row ? static_cast<size_t>(tensor.row(static_cast<int64_t>(r))) : r;
    const auto bytes = tensor.data.subspan(from * row_bytes, row_bytes);
    const void* source = bytes.data();
    if (quantised) {
      dequantise(tensor.type, bytes, values.data());
      source = values.data();
    }
    std::memcpy(buffer.data() + r * out_bytes, source, out_bytes);
  }
  return buffer;
}

bool is_query_or_key(const std::string& our_name) {
  return our_name.find(".self_attn.q_proj.") != std::string::npos ||
         our_name.find(".self_attn.k_proj.") != std::string::npos;
}

ModelConfig checked_config(const ModelConfig& config, const std::string& origin) {
  if (find_model_family(config.model_type) == nullptr) {
    throw_error<UnsupportedError>("[import] expected a model of type {}; got {}; {}",
                                  fmt::join(model_family_names(), ", "), config.model_type, origin);
  }
  try {
    ModelConfig checked = parse_model_config(model_config_json(config), origin);
    checked.kept = Json::object();
    return checked;
  } catch (const ConfigError& e) {
    throw_error<FormatError>("[import] expected a model that a {} config can say; got: {}; {}",
                             config.model_type, e.what(), origin);
  }
}

}  // namespace heirloom
