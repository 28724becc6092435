// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "heirloom/io/gguf.h"

namespace heirloom {

/// The tokenizer in a GGUF file's metadata as the text of a tokenizer.json; "" when it holds none.
/// tokenizer.ggml.model "gpt2" (byte-level BPE) and "llama" (SentencePiece BPE); an UnsupportedError
/// names others, and pre-tokenizers (tokenizer.ggml.pre) that are not known. FormatError for arrays
/// that do not fit together.
std::string gguf_tokenizer_json(const GgufMetadata& metadata);

}  // namespace heirloom
