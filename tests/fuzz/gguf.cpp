// SPDX-License-Identifier: Apache-2.0
// Every tensor of an accepted image must lie inside it, apart from the others, with the bytes its
// shape says; what metadata says of a model and its tokenizer is refused or read.
#include <cstdint>
#include <cstdlib>

#include "../../src/convert/gguf_config.h"
#include "../../src/convert/gguf_tokenizer.h"
#include "heirloom/core/error.h"

namespace {

volatile float sink;

/// One row of each tensor, as its values.
void read_rows(const heirloom::GgufImage& image, std::span<const std::byte> bytes) {
  size_t total = 0;
  for (const auto& [name, tensor] : image.tensors) {
    const heirloom::GgufBlock block = heirloom::gguf_block(tensor.type);
    int64_t elements = 1;
    for (const int64_t dim : tensor.shape) elements *= dim;
    const auto size = static_cast<size_t>(elements / block.elements * block.bytes);
    if (size != tensor.data.size() || tensor.data.data() < bytes.data() ||
        tensor.data.data() + size > bytes.data() + bytes.size()) {
      std::abort();
    }
    total += size;
    const int64_t columns = tensor.shape.back();
    std::vector<float> row(static_cast<size_t>(columns));
    heirloom::dequantise(
        tensor.type, tensor.data.first(static_cast<size_t>(columns / block.elements * block.bytes)),
        row.data());
    sink = row.back();
  }
  if (total > bytes.size()) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace heirloom;
  const auto bytes = std::as_bytes(std::span(data, size));
  try {
    const GgufImage image = parse_gguf(bytes, "fuzz");
    read_rows(image, bytes);
    for (const auto part : {0, 1}) {
      try {
        if (part == 0) {
          parse_json(gguf_tokenizer_json(image.metadata) + " ", "tokenizer");
        } else {
          gguf_config(image.metadata, image.tensors);
        }
      } catch (const FormatError&) {
      } catch (const UnsupportedError&) {
      }
    }
  } catch (const FormatError&) {
  } catch (const UnsupportedError&) {
  }
  return 0;
}
