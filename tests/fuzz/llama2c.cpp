// SPDX-License-Identifier: Apache-2.0
// The first byte says what the rest is: a model, whose tensors must lie inside it and hold what
// their shapes say, or a tokenizer.bin, which must become JSON.
#include "../../src/convert/llama2c.h"

#include <cstdint>
#include <cstdlib>

#include "heirloom/core/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace heirloom;
  if (size == 0) return 0;
  const auto bytes = std::as_bytes(std::span(data + 1, size - 1));
  try {
    if (data[0] % 2 == 0) {
      const Llama2cImage image = parse_llama2c(bytes, "fuzz");
      size_t total = 0;
      for (const auto& [name, tensor] : image.tensors) {
        size_t elements = 1;
        for (const int64_t dim : tensor.shape) elements *= static_cast<size_t>(dim);
        if (elements * sizeof(float) != tensor.data.size() || tensor.data.data() < bytes.data() ||
            tensor.data.data() + tensor.data.size() > bytes.data() + bytes.size()) {
          std::abort();
        }
        total += tensor.data.size();
      }
      if (total > bytes.size()) std::abort();
    } else {
      std::vector<std::string> storage;
      const ScoredPieces pieces = parse_llama2c_tokenizer(bytes, 3 + data[0] / 2, storage, "fuzz");
      parse_json(scored_pieces_json(pieces, "fuzz"), "tokenizer");
    }
  } catch (const FormatError&) {
  } catch (const UnsupportedError&) {
  }
  return 0;
}
