// SPDX-License-Identifier: Apache-2.0
#include "src/convert/llama2c.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

#include "convert/import_support.h"
#include "heirloom/convert/import.h"
#include "heirloom/core/error.h"
#include "heirloom/evaluate/perplexity.h"
#include "heirloom/evaluate/sequences.h"
#include "heirloom/model/checkpoint.h"
#include "io/temporary_directory.h"
#include "support/gguf_writer.h"

namespace heirloom {
namespace {

using test::Floats;
using test::floats_of;
using test::pieces;
using test::raw;
using test::TemporaryDirectory;
using test::Texts;

struct Llama2cSizes {
  int32_t dim = 8, hidden = 6, layers = 2, heads = 2, kv_heads = 1, vocab = 5, seq_len = 3;
};

std::string header(const Llama2cSizes& s) {
  return raw(s.dim) + raw(s.hidden) + raw(s.layers) + raw(s.heads) + raw(s.kv_heads) +
         raw(s.vocab) + raw(s.seq_len);
}

/// `count` numbers, each one more than the last.
std::string run_of(float& next, int count) {
  std::string out;
  for (int i = 0; i < count; ++i) out += raw(next++);
  return out;
}

/// Version 0; weights are numbered in the order of the file.
std::string version0(const Llama2cSizes& s) {
  float next = 0;
  const int kv = s.dim / s.heads * s.kv_heads, vocab = std::abs(s.vocab);
  std::string out = header(s);
  out += run_of(next, (vocab + s.layers) * s.dim);  // embedding, attention norms
  for (const int rows : {s.dim, kv, kv, s.dim}) out += run_of(next, s.layers * rows * s.dim);
  out += run_of(next, s.layers * s.dim * (1 + 3 * s.hidden));  // ffn norms, w1, w2, w3
  out += run_of(next, s.dim + s.seq_len * s.dim / s.heads);    // final norm, cosines, sines
  if (s.vocab < 0) out += run_of(next, vocab * s.dim);
  return out;
}

std::string version1(const Llama2cSizes& s, bool tied, int32_t version = 1) {
  float next = 0;
  const int kv = s.dim / s.heads * s.kv_heads;
  std::string out = raw<uint32_t>(0x616B3432) + raw(version) + header(s);
  out += tied ? '\1' : '\0';
  out.resize(256);
  out += run_of(next, (2 * s.layers + 1 + s.vocab) * s.dim);
  out += run_of(next, s.layers * s.dim * (2 * s.dim + 2 * kv + 3 * s.hidden));
  if (!tied) out += run_of(next, s.vocab * s.dim);
  return out;
}

ImportedModel import_image(const std::string& image, const std::string& tokenizer = "") {
  const TemporaryDirectory dir;
  write_file_atomically(dir / "m.bin", image);
  if (tokenizer.empty()) return import_llama2c(dir / "m.bin");
  write_file_atomically(dir / "t.bin", tokenizer);
  return import_llama2c(dir / "m.bin", dir / "t.bin");
}

TEST(ImportLlama2c, Version0) {
  for (const bool tied : {true, false}) {
    Llama2cSizes s;
    if (!tied) s.vocab = -s.vocab;
    const ImportedModel m = import_image(version0(s));
    EXPECT_EQ(m.config.model_type, "llama");
    EXPECT_EQ(m.config.vocab_size, 5);
    EXPECT_EQ(m.config.head_dim, 4);
    EXPECT_EQ(m.config.num_key_value_heads, 1);
    EXPECT_EQ(m.config.max_position_embeddings, 3);
    EXPECT_EQ(m.config.norm_eps, 1e-5);
    EXPECT_EQ(m.config.tie_word_embeddings, tied);
    // 40 embedding, 16 attention norms, then q: 2 layers of 64.
    const Floats q = floats_of(m, "model.layers.1.self_attn.q_proj.weight");
    EXPECT_EQ(q[0], 40 + 16 + 64);
    EXPECT_EQ(q[8], 40 + 16 + 64 + 16);  // our row 1 is row 2 of the file
    EXPECT_EQ(q[16], 40 + 16 + 64 + 8);
    EXPECT_EQ(q[8 * 5 + 3], 40 + 16 + 64 + 8 * 6 + 3);
    const float k = 40 + 16 + 128, ffn = k + 2 * 64 + 128, gate = ffn + 16;
    EXPECT_EQ(floats_of(m, "model.layers.0.self_attn.k_proj.weight")[8], k + 16);
    EXPECT_EQ(floats_of(m, "model.layers.0.self_attn.v_proj.weight")[8], k + 64 + 8);
    EXPECT_EQ(floats_of(m, "model.layers.1.post_attention_layernorm.weight")[0], ffn + 8);
    EXPECT_EQ(floats_of(m, "model.layers.1.mlp.gate_proj.weight")[0], gate + 48);
    EXPECT_EQ(floats_of(m, "model.layers.0.mlp.down_proj.weight")[0], gate + 96);
    EXPECT_EQ(floats_of(m, "model.layers.0.mlp.up_proj.weight")[0], gate + 192);
    EXPECT_EQ(floats_of(m, "model.norm.weight")[0], gate + 288);
    EXPECT_EQ(m.weights->entries().count("lm_head.weight"), tied ? 0u : 1u);
    if (!tied) {
      EXPECT_EQ(floats_of(m, "lm_head.weight")[0], gate + 288 + 8 + 12);
    }
  }
}

TEST(ImportLlama2c, Version1) {
  for (const bool tied : {true, false}) {
    const ImportedModel m = import_image(version1({}, tied));
    EXPECT_EQ(m.config.tie_word_embeddings, tied);
    EXPECT_EQ(floats_of(m, "model.layers.1.input_layernorm.weight")[0], 8);
    EXPECT_EQ(floats_of(m, "model.layers.0.post_attention_layernorm.weight")[0], 16);
    EXPECT_EQ(floats_of(m, "model.norm.weight")[0], 32);
    EXPECT_EQ(floats_of(m, "model.embed_tokens.weight")[0], 40);
    EXPECT_EQ(floats_of(m, "model.layers.0.self_attn.q_proj.weight")[8], 80 + 16);
    EXPECT_EQ(floats_of(m, "model.layers.0.mlp.gate_proj.weight")[0], 80 + 2 * (64 * 2 + 32 * 2));
  }
}

TEST(ImportLlama2c, DamageIsRefused) {
  const std::string good = version0({});
  for (const size_t size : {size_t{0}, size_t{27}, size_t{28}, good.size() - 1, good.size() - 4}) {
    EXPECT_THROW(import_image(good.substr(0, size)), FormatError) << size;
  }
  EXPECT_THROW(import_image(good + "1234"), FormatError);
  for (size_t field = 0; field < 7; ++field) {
    for (const int32_t bad : {0, INT32_MIN, INT32_MAX, 7}) {
      std::string image = good;
      image.replace(4 * field, 4, raw(bad));
      EXPECT_THROW(import_image(image), FormatError) << field << " " << bad;
    }
  }
  const std::string later = version1({}, true);
  for (const size_t size : {size_t{4}, size_t{100}, later.size() - 4}) {
    EXPECT_THROW(import_image(later.substr(0, size)), FormatError) << size;
  }
  EXPECT_THROW(import_image(version1({}, true, 3)), FormatError);
  EXPECT_THROW(import_image(version1({}, true, 0)), FormatError);
  EXPECT_THROW(import_image(version1({}, true, 2)), UnsupportedError);
  std::string flag = later;
  flag[36] = 2;
  EXPECT_THROW(import_image(flag), FormatError);
}

std::string token(float score, const std::string& text) {
  return raw(score) + raw(static_cast<int32_t>(text.size())) + text;
}

TEST(ImportLlama2c, Tokenizer) {
  Llama2cSizes s;
  s.vocab = 9;
  const std::string head = raw<int32_t>(7) + token(0, "<unk>") + token(0, "\n<s>\n") +
                           token(0, "\n</s>\n") + token(0, "<0x0A>");
  const std::string t =
      head + token(-4, " ") + token(-5, "a") + token(-6, "b") + token(-1, " a") + token(-2, "ab");
  const ImportedModel m = import_image(version0(s), t);
  EXPECT_EQ(pieces(m, "ab\n", true), (Texts{"<s>",
                                            "\xE2\x96\x81"
                                            "a",
                                            "b", "<0x0A>"}));
  const Tokenizer tokenizer = Tokenizer::from_json(m.tokenizer_json, "test");
  EXPECT_EQ(tokenizer.vocab_size(), 9);
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("a ab\nb")), "a ab\nb");
  EXPECT_TRUE(tokenizer.is_special(2));

  for (size_t size = 1; size < t.size(); ++size) {
    EXPECT_THROW(import_image(version0(s), t.substr(0, size)), FormatError) << size;
  }
  EXPECT_THROW(import_image(version0(s), t + "x"), FormatError);
  EXPECT_THROW(import_image(version0({}), t), FormatError);  // another model's
  EXPECT_THROW(import_image(version0(s), head + token(NAN, " ") + t.substr(head.size() + 9)),
               FormatError);
  EXPECT_THROW(import_image(version0(s), head + token(-4, "\x80") + t.substr(head.size() + 9)),
               FormatError);
  EXPECT_THROW(import_image(version0(s), head + token(-4, "") + t.substr(head.size() + 9)),
               FormatError);
}

// ---- published files

/// A file below HEIRLOOM_TEST_DATA; empty when there is none.
fs::path data_file(const std::string& name) {
  const char* root = std::getenv("HEIRLOOM_TEST_DATA");
  if (root == nullptr || !fs::exists(fs::path(root) / name)) return {};
  return fs::path(root) / name;
}

struct Published {
  const char *model, *tokenizer;
  double loss;  ///< nats per token on TinyStories, an upper bound
};

class PublishedLlama2c : public testing::TestWithParam<Published> {};

TEST_P(PublishedLlama2c, PredictsItsKindOfText) {
  const fs::path model = data_file(std::string("data/models/") + GetParam().model),
                 text = data_file(
                     "data/text/tinystories_samples/moe-routing-bench_tinystories_val.txt");
  if (model.empty() || text.empty())
    GTEST_SKIP() << "HEIRLOOM_TEST_DATA holds no " << GetParam().model;
  const TemporaryDirectory dir;
  const ImportedModel imported =
      import_llama2c(model, data_file(std::string("data/models/") + GetParam().tokenizer));
  write_file_atomically(dir / "tokenizer.json", imported.tokenizer_json);
  write_file_atomically(dir / "text.txt", read_file(text).substr(0, 6000));
  register_kernels();
  Transformer transformer(imported.config, Device{}, Dtype::kFloat32);
  load_weights(*imported.weights, transformer.parameters(), transformer.parameters().data(),
               Dtype::kFloat32);
  SequenceOptions options;
  options.tokenizer = dir.path();
  options.vocab_size = imported.config.vocab_size;
  const SequenceSet set = read_sequences(dir / "text.txt", options);
  const auto result = evaluate_perplexity(transformer, set, {.context = 256});
  const double loss = result.nll_mean();
  EXPECT_LT(loss, GetParam().loss);
  EXPECT_GT(loss, 1);
}

INSTANTIATE_TEST_SUITE_P(Models, PublishedLlama2c,
                         testing::Values(Published{"stories260K.bin", "tok512.bin", 1.5},
                                         Published{"llama2xs_model.bin", "tok512.bin", 2.2}),
                         [](const auto& instance) {
                           const std::string name = instance.param.model;
                           return name.substr(0, name.find_first_of("_."));
                         });

TEST(ImportLlama2c, TokenizerEqualsTheSentencePieceModelItCameFrom) {
  const fs::path binary = data_file("data/tokenizers/llama2/tokenizer.bin"),
                 original = data_file("data/tokenizers/llama2/tokenizer.model"),
                 text = data_file("data/text/wikitext-2/test.txt");
  if (binary.empty() || original.empty() || text.empty()) {
    GTEST_SKIP() << "HEIRLOOM_TEST_DATA holds no llama2 tokenizer";
  }
  const MappedFile file(binary);
  std::vector<std::string> storage;
  const std::string json = scored_pieces_json(
      parse_llama2c_tokenizer(file.bytes(), 32000, storage, binary.string()), binary.string());
  const Tokenizer ours = Tokenizer::from_json(json, "tokenizer.bin"),
                  theirs = Tokenizer::load(original);
  std::string sample = read_file(text).substr(0, 200000);
  sample += "\n  spaces   \t na\xC3\xAFve \xE6\x97\xA5\xE6\x9C\xAC \xF0\x9F\x98\x80 123\n";
  size_t at = 0, lines = 0;
  while (at < sample.size()) {
    const size_t end = std::min(sample.find('\n', at), sample.size() - 1) + 1;
    const std::string line = sample.substr(at, end - at);
    // The .model takes spelled control symbols for text.
    ASSERT_EQ(ours.encode(line, {false, true}), theirs.encode(line, {false, true})) << line;
    at = end;
    ++lines;
  }
  EXPECT_GT(lines, 100u);
}

}  // namespace
}  // namespace heirloom
