// SPDX-License-Identifier: Apache-2.0
#include "llama2c.h"

#include <cmath>
#include <cstring>
#include <optional>

#include "heirloom/core/error.h"

namespace heirloom {
namespace {

constexpr uint32_t kMagic = 0x616B3432;  // "ak42"
constexpr size_t kHeaderBytes = 28, kLongHeaderBytes = 256;
constexpr int64_t kMaxLayers = 4096, kMaxWidth = 1 << 22;
constexpr int32_t kMaxTokenBytes = 1024;

template <class T>
T load(std::span<const std::byte> image, size_t at) {
  T value;
  std::memcpy(&value, image.data() + at, sizeof value);
  return value;
}

/// A tensor of every layer, or one of the model, in the order of the file. An empty name is passed
/// over.
struct Section {
  std::string name;
  std::vector<int64_t> shape;
  bool per_layer = false;
};

std::vector<Section> sections_of(const Llama2cImage& m) {
  const int64_t kv_dim = m.dim / m.heads * m.kv_heads;
  const auto layer = [](const char* name, std::vector<int64_t> shape) {
    return Section{name, std::move(shape), true};
  };
  const Section embedding{"model.embed_tokens.weight", {m.vocab, m.dim}},
      norm{"model.norm.weight", {m.dim}}, head{"lm_head.weight", {m.vocab, m.dim}},
      rotation{"", {2, m.seq_len, m.dim / m.heads / 2}};
  const Section attention_norm = layer("input_layernorm", {m.dim}),
                ffn_norm = layer("post_attention_layernorm", {m.dim});
  const std::vector<Section> attention = {
      layer("self_attn.q_proj", {m.dim, m.dim}), layer("self_attn.k_proj", {kv_dim, m.dim}),
      layer("self_attn.v_proj", {kv_dim, m.dim}), layer("self_attn.o_proj", {m.dim, m.dim})};
  const std::vector<Section> mlp = {layer("mlp.gate_proj", {m.hidden_dim, m.dim}),
                                    layer("mlp.down_proj", {m.dim, m.hidden_dim}),
                                    layer("mlp.up_proj", {m.hidden_dim, m.dim})};
  std::vector<Section> all;
  const auto add = [&](const std::vector<Section>& more) {
    all.insert(all.end(), more.begin(), more.end());
  };
  if (m.version == 0) {
    add({embedding, attention_norm});
    add(attention);
    add({ffn_norm});
    add(mlp);
    add({norm, rotation});
  } else {
    add({attention_norm, ffn_norm, norm, embedding});
    add(attention);
    add(mlp);
  }
  if (!m.tied) add({head});
  return all;
}

/// Float32 elements of all sections. The bounds of the header keep the sum far below 2^127.
__extension__ using Wide = __int128;
Wide count_elements(const std::vector<Section>& sections, int64_t layers) {
  Wide total = 0;
  for (const Section& s : sections) {
    Wide count = s.per_layer ? layers : 1;
    for (const int64_t dim : s.shape) count *= dim;
    total += count;
  }
  return total;
}

void read_fields(std::span<const std::byte> image, size_t at, Llama2cImage& m) {
  int32_t fields[7];
  std::memcpy(fields, image.data() + at, sizeof fields);
  m.dim = fields[0];
  m.hidden_dim = fields[1];
  m.layers = fields[2];
  m.heads = fields[3];
  m.kv_heads = fields[4];
  m.vocab = fields[5];
  m.seq_len = fields[6];
}

void check_fields(const Llama2cImage& m, const std::string& origin) {
  const auto within = [](int64_t value, int64_t high) { return value >= 1 && value <= high; };
  if (within(m.dim, kMaxWidth) && within(m.hidden_dim, kMaxWidth) && within(m.layers, kMaxLayers) &&
      within(m.heads, m.dim) && m.dim % m.heads == 0 && m.dim / m.heads % 2 == 0 &&
      within(m.kv_heads, m.heads) && m.heads % m.kv_heads == 0 && m.vocab >= 1 && m.seq_len >= 1) {
    return;
  }
  throw_error<FormatError>(
      "[llama2.c] expected a header of seven plausible sizes; got dim {}, hidden_dim {}, layers "
      "{}, heads {}, kv_heads {}, vocab {}, seq_len {}; {}; this is no model of llama2.c",
      m.dim, m.hidden_dim, m.layers, m.heads, m.kv_heads, m.vocab, m.seq_len, origin);
}

/// Where the data starts.
size_t read_header(std::span<const std::byte> image, const std::string& origin, Llama2cImage& m) {
  if (image.size() < kHeaderBytes) {
    throw_error<FormatError>("[llama2.c] expected a header of {} bytes; got a file of {}; {}",
                             kHeaderBytes, image.size(), origin);
  }
  if (load<uint32_t>(image, 0) != kMagic) {
    read_fields(image, 0, m);
    m.tied = m.vocab > 0;
    m.vocab = std::abs(m.vocab);
    check_fields(m, origin);
    return kHeaderBytes;
  }
  m.version = load<int32_t>(image, 4);
  if (m.version == 2) {
    throw_error<UnsupportedError>(
        "[llama2.c] expected float32 weights (version 0 or 1); got version 2 (int8); {}; export "
        "the model again with --version 1",
        origin);
  }
  if (m.version != 1 || image.size() < kLongHeaderBytes) {
    throw_error<FormatError>(
        "[llama2.c] expected version 1 and a header of {} bytes; got version "
        "{} in {} bytes; {}",
        kLongHeaderBytes, m.version, image.size(), origin);
  }
  read_fields(image, 8, m);
  check_fields(m, origin);
  const auto tied = load<uint8_t>(image, 8 + kHeaderBytes);
  if (tied > 1) {
    throw_error<FormatError>("[llama2.c] expected 0 or 1 for a shared classifier; got {}; {}", tied,
                             origin);
  }
  m.tied = tied == 1;
  return kLongHeaderBytes;
}

}  // namespace

Llama2cImage parse_llama2c(std::span<const std::byte> image, const std::string& origin) {
  Llama2cImage m;
  size_t at = read_header(image, origin, m);
  const std::vector<Section> sections = sections_of(m);
  const Wide elements = count_elements(sections, m.layers);
  if (elements * 4 != static_cast<Wide>(image.size() - at)) {
    throw_error<FormatError>(
        "[llama2.c] expected {:.0f} float32 weights behind the header (dim {}, hidden_dim {}, "
        "layers {}, heads {}, kv_heads {}, vocab {}, seq_len {}); got {} bytes; {}; the file is "
        "cut "
        "short or no model of llama2.c",
        static_cast<double>(elements), m.dim, m.hidden_dim, m.layers, m.heads, m.kv_heads, m.vocab,
        m.seq_len, image.size() - at, origin);
  }
  for (const Section& s : sections) {
    size_t bytes = sizeof(float);
    for (const int64_t dim : s.shape) bytes *= static_cast<size_t>(dim);
    for (int64_t layer = 0; layer < (s.per_layer ? m.layers : 1); ++layer) {
      const auto data = image.subspan(at, bytes);
      at += bytes;
      if (s.name.empty()) continue;
      const std::string name =
          s.per_layer ? fmt::format("model.layers.{}.{}.weight", layer, s.name) : s.name;
      m.tensors[name] = {s.shape, data};
    }
  }
  return m;
}

namespace {

/// "<0x0A>"
bool is_byte_piece(std::string_view piece) {
  const auto hex = [](char c) { return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'F'); };
  return piece.size() == 6 && piece.starts_with("<0x") && piece[5] == '>' && hex(piece[3]) &&
         hex(piece[4]);
}

std::string with_space_symbol(std::string_view token) {
  std::string piece;
  for (const char c : token) {
    if (c == ' ') {
      piece += "\xE2\x96\x81";
    } else {
      piece += c;
    }
  }
  return piece;
}

}  // namespace

ScoredPieces parse_llama2c_tokenizer(std::span<const std::byte> image, int64_t vocab,
                                     std::vector<std::string>& storage, const std::string& origin) {
  size_t at = 4;
  // A token takes 8 bytes at least.
  if (image.size() < at || vocab < 3 || (image.size() - at) / 8 < static_cast<size_t>(vocab)) {
    throw_error<FormatError>(
        "[llama2.c] expected a tokenizer of {} tokens (3 at least); got a file "
        "of {} bytes; {}; is it this model's?",
        vocab, image.size(), origin);
  }
  ScoredPieces model;
  storage.clear();
  storage.reserve(static_cast<size_t>(vocab));
  for (int64_t id = 0; id < vocab; ++id) {
    const size_t rest = image.size() - at;
    const auto score = rest < 8 ? NAN : load<float>(image, at);
    const auto length = rest < 8 ? -1 : load<int32_t>(image, at + 4);
    if (std::isnan(score) || length < 0 || length > kMaxTokenBytes ||
        static_cast<size_t>(length) > rest - 8) {
      throw_error<FormatError>(
          "[llama2.c] expected token {} of {} as a score and up to {} bytes; got score {}, length "
          "{} with {} bytes to the end of the file; {}; is it this model's?",
          id, vocab, kMaxTokenBytes, score, length, rest, origin);
    }
    const std::string_view token(reinterpret_cast<const char*>(image.data()) + at + 8,
                                 static_cast<size_t>(length));
    at += 8 + static_cast<size_t>(length);
    constexpr const char* kFirst[] = {"<unk>", "<s>", "</s>"};
    storage.push_back(id < 3 ? kFirst[id] : with_space_symbol(token));
    model.scores.push_back(static_cast<double>(score));
    model.types.push_back(id == 0                ? ScoredPieces::Type::kUnknown
                          : id < 3               ? ScoredPieces::Type::kControl
                          : is_byte_piece(token) ? ScoredPieces::Type::kByte
                                                 : ScoredPieces::Type::kNormal);
  }
  if (at != image.size()) {
    throw_error<FormatError>(
        "[llama2.c] expected the tokenizer to end with token {}; got {} bytes "
        "behind it; {}; is it this model's?",
        vocab - 1, image.size() - at, origin);
  }
  model.pieces.assign(storage.begin(), storage.end());
  model.frame.first = 1;
  return model;
}

}  // namespace heirloom
