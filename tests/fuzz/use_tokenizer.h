// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <string>

#include "heirloom/tokenizer/tokenizer.h"

namespace heirloom {

/// What loads must encode, decode and stream any bytes without a fault; `file` lends some.
inline void use_tokenizer(const Tokenizer& tokenizer, const std::string& file) {
  const std::string tail = file.substr(file.size() - std::min<size_t>(file.size(), 200));
  for (const std::string& text : {std::string("Hello  w\xC3\xB6rld\n\xFF\xE2\x82 123 <s>"), tail}) {
    const auto ids = tokenizer.encode(text, {.add_special = true});
    for (const int32_t id : ids)
      if (!tokenizer.has_token(id)) __builtin_trap();
    tokenizer.decode(ids);
    StreamDecoder stream(tokenizer);
    for (const int32_t id : ids) stream.push(id);
    stream.flush();
  }
}

}  // namespace heirloom
