// SPDX-License-Identifier: Apache-2.0
// Every tensor of an accepted image must lie inside it, have the bytes its shape says, and together
// they must cover it.
#include <cstdint>
#include <cstdlib>

#include "heirloom/core/error.h"
#include "heirloom/io/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace heirloom;
  const auto image = std::as_bytes(std::span(data, size));
  std::map<std::string, StoredTensor> tensors;
  std::map<std::string, std::string> metadata;
  try {
    parse_safetensors(image, "fuzz", tensors, metadata);
  } catch (const FormatError&) {
    return 0;
  }
  size_t covered = 0;
  unsigned sum = 0;
  for (const auto& [name, tensor] : tensors) {
    const auto bytes = static_cast<size_t>(tensor.numel() * safetensors_dtype_size(tensor.dtype));
    if (bytes != tensor.data.size()) std::abort();
    for (const std::byte b : tensor.data) sum += static_cast<unsigned>(b);
    covered += bytes;
  }
  uint64_t header = 0;
  std::memcpy(&header, data, 8);
  if (8 + header + covered != size) std::abort();
  static volatile unsigned sink;
  sink = sum;
  return 0;
}
