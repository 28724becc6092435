// SPDX-License-Identifier: Apache-2.0
//
// llama2.c's files, little-endian.
//
//   version 0   int32 dim, hidden_dim, layers, heads, kv_heads, vocab (negative: untied), seq_len;
//               float32: embedding | attention norms | wq | wk | wv | wo | ffn norms | w1 | w2 | w3
//               | final norm | cosines, sines (seq_len x head_dim / 2 each) | [head]
//               where "wq" means that of all layers
//   version 1   "ak42" as a big-endian word, int32 1, the same seven (vocab positive), uint8 tied,
//               zeros up to 256; float32: attention norms | ffn norms | final norm | embedding | wq
//               | wk | wv | wo | w1 | w2 | w3 | [head]
//
// w1 is the gate, w3 the up projection; rows of wq and wk are in the order of interleaved rotation.
//
// Source: https://github.com/karpathy/llama2.c (export.py, run.c)
#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "tokenizer_text.h"

namespace heirloom {

struct Llama2cImage {
  int version = 0;
  int64_t dim = 0, hidden_dim = 0, layers = 0, heads = 0, kv_heads = 0, vocab = 0, seq_len = 0;
  bool tied = false;
  struct Tensor {
    std::vector<int64_t> shape;
    std::span<const std::byte> data;  ///< float32, not aligned
  };
  std::map<std::string, Tensor> tensors;  ///< under our names; q and k rows as the file has them
};

/// The image must outlive the result. FormatError where the header is not plausible or does not
/// explain the image's size to the byte; UnsupportedError for version 2 (int8).
Llama2cImage parse_llama2c(std::span<const std::byte> image, const std::string& origin);

/// tokenizer.bin: int32 longest token, then per token float32 score, int32 bytes, the bytes; ids 0,
/// 1, 2 are unknown, bos and eos. `storage` holds what the pieces point into.
ScoredPieces parse_llama2c_tokenizer(std::span<const std::byte> image, int64_t vocab,
                                     std::vector<std::string>& storage, const std::string& origin);

}  // namespace heirloom
