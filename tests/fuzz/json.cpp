// SPDX-License-Identifier: Apache-2.0
// What parses must print and parse again to the same value. The first byte chooses whether comments
// are allowed.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "heirloom/core/error.h"
#include "heirloom/io/json.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace heirloom;
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  try {
    const Json value = parse_json(
        text, "fuzz", data[0] % 2 != 0 ? JsonComments::kAllowed : JsonComments::kForbidden);
    const std::string printed = dump_json(value);
    if (dump_json(parse_json(printed, "printed")) != printed) std::abort();
  } catch (const FormatError&) {
  }
  return 0;
}
