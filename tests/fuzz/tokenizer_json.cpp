// SPDX-License-Identifier: Apache-2.0
//
// Tokenizer files: a tokenizer.json, or (when it does not start with '{') a SentencePiece model.
#include <cstddef>
#include <cstdint>
#include <string>

#include "heirloom/core/error.h"
#include "use_tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace heirloom;
  std::string file(reinterpret_cast<const char*>(data), size);
  try {
    const Tokenizer tokenizer = !file.empty() && file[0] == '{'
                                    ? Tokenizer::from_json(file, "fuzz")
                                    : Tokenizer::from_sentencepiece(file, "fuzz");
    use_tokenizer(tokenizer, file);
  } catch (const Error&) {
  }
  return 0;
}
