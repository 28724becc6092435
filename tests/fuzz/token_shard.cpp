// SPDX-License-Identifier: Apache-2.0
// The layout of an accepted shard must cover its image exactly. The first byte chooses the file's
// name.
#include <cstdint>
#include <cstdlib>

#include "heirloom/core/error.h"
#include "heirloom/data/token_shard.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace heirloom;
  if (size == 0) return 0;
  try {
    const auto image = std::as_bytes(std::span(data + 1, size - 1));
    const ShardLayout layout = parse_shard(image, data[0] % 2 != 0 ? "a.bin" : "a");
    const int64_t end = layout.offset + layout.tokens * layout.token_bytes;
    if (layout.tokens < 0 || end != static_cast<int64_t>(image.size())) std::abort();
  } catch (const FormatError&) {
  }
  return 0;
}
