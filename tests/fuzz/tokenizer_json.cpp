// SPDX-License-Identifier: Apache-2.0
//
// Tokenizer files: a tokenizer.json, or (when it does not start with '{') a SentencePiece model.
// What loads must encode, decode and stream any bytes without a fault.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

#include "heirloom/core/error.h"
#include "heirloom/tokenizer/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace heirloom;
  std::string file(reinterpret_cast<const char*>(data), size);
  try {
    const Tokenizer tokenizer = !file.empty() && file[0] == '{'
                                    ? Tokenizer::from_json(file, "fuzz")
                                    : Tokenizer::from_sentencepiece(file, "fuzz");
    const std::string tail = file.substr(file.size() - std::min<size_t>(file.size(), 200));
    for (const std::string& text :
         {std::string("Hello  w\xC3\xB6rld\n\xFF\xE2\x82 123 <s>"), tail}) {
      const auto ids = tokenizer.encode(text, {.add_special = true});
      for (const int32_t id : ids)
        if (!tokenizer.has_token(id)) __builtin_trap();
      tokenizer.decode(ids);
      StreamDecoder stream(tokenizer);
      for (const int32_t id : ids) stream.push(id);
      stream.flush();
    }
  } catch (const Error&) {
  }
  return 0;
}
