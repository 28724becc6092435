// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>

#include "convert/import_support.h"
#include "heirloom/convert/import.h"
#include "heirloom/core/error.h"
#include "io/temporary_directory.h"
#include "support/gguf_writer.h"

namespace heirloom {
namespace {

using test::Floats;
using test::floats_of;
using test::GgufWriter;
using test::pieces;
using test::raw;
using test::TemporaryDirectory;
using test::Texts;

/// Element (r, c) is base + 100 r + c.
Floats numbered(uint64_t rows, uint64_t columns, float base) {
  Floats values;
  for (uint64_t r = 0; r < rows; ++r) {
    for (uint64_t c = 0; c < columns; ++c) {
      values.push_back(base + static_cast<float>(100 * r + c));
    }
  }
  return values;
}

/// Rows of numbered(), by number.
Floats rows_of(std::initializer_list<int> rows, int columns, float base) {
  Floats values;
  for (const int r : rows) {
    for (int c = 0; c < columns; ++c) values.push_back(base + static_cast<float>(100 * r + c));
  }
  return values;
}

/// A file under construction: hidden 8, 2 heads, 1 KV head, head_dim 4, 1 block, 6 tokens, MLP 32.
struct File {
  explicit File(const char* architecture) : arch(architecture) {
    w.add("general.architecture", architecture);
    add("embedding_length", 8).add("block_count", 1).add("feed_forward_length", 32);
    add("attention.head_count", 2).add("context_length", 64);
  }
  template <class T>
  File& add(const std::string& key, T value) {
    w.add(arch + "." + key, value);
    return *this;
  }
  File& matrix(const std::string& name, uint64_t rows, uint64_t columns, float base = 0) {
    w.floats(name, {columns, rows}, numbered(rows, columns, base));
    return *this;
  }
  File& vector(const std::string& name, uint64_t size, float base = 0) {
    w.floats(name, {size}, numbered(size, 1, base));
    return *this;
  }
  ImportedModel import() const {
    const TemporaryDirectory dir;
    write_file_atomically(dir / "m.gguf", w.image());
    return import_gguf(dir / "m.gguf");
  }

  std::string arch;
  GgufWriter w;
};

constexpr uint32_t kF16 = 1, kQ8_0 = 8;

/// A llama block without the tensors that `without` names.
File llama(const std::string& without = "") {
  File f("llama");
  f.add("attention.head_count_kv", 1).add("attention.layer_norm_rms_epsilon", 1e-5f);
  f.add("rope.freq_base", 50000.0f).add("rope.dimension_count", 4);
  f.matrix("token_embd.weight", 6, 8).vector("output_norm.weight", 8, 1);
  f.vector("blk.0.attn_norm.weight", 8, 2).vector("blk.0.ffn_norm.weight", 8, 3);
  f.matrix("blk.0.attn_q.weight", 8, 8, 0.25f).matrix("blk.0.attn_k.weight", 4, 8, 0.5f);
  f.matrix("blk.0.attn_v.weight", 4, 8, 0.75f).matrix("blk.0.attn_output.weight", 8, 8);
  f.matrix("blk.0.ffn_up.weight", 32, 8);
  std::string half;
  for (int i = 0; i < 32 * 8; ++i) half += raw(static_cast<uint16_t>(0x3C00 + i));
  f.w.tensor("blk.0.ffn_gate.weight", {8, 32}, kF16, half);
  std::string blocks;
  for (int r = 0; r < 8; ++r) {
    blocks += raw<uint16_t>(0x3800);  // 0.5
    for (int c = 0; c < 32; ++c) blocks += static_cast<char>(r * 10 - c);
  }
  if (without != "blk.0.ffn_down.weight") {
    f.w.tensor("blk.0.ffn_down.weight", {32, 8}, kQ8_0, blocks);
  }
  return f;
}

template <class E>
std::string message(const File& file) {
  try {
    file.import();
  } catch (const E& e) {
    return e.what();
  }
  return "";
}

#define EXPECT_REFUSED(E, file, text)                                   \
  do {                                                                  \
    const std::string found = message<E>(file);                         \
    EXPECT_NE(found.find(text), std::string::npos) << "got: " << found; \
  } while (0)

TEST(ImportGguf, Llama) {
  const ImportedModel m = llama().import();
  const ModelConfig& c = m.config;
  EXPECT_EQ(c.model_type, "llama");
  EXPECT_EQ(c.vocab_size, 6);
  EXPECT_EQ(c.hidden_size, 8);
  EXPECT_EQ(c.intermediate_size, 32);
  EXPECT_EQ(c.num_hidden_layers, 1);
  EXPECT_EQ(c.num_attention_heads, 2);
  EXPECT_EQ(c.num_key_value_heads, 1);
  EXPECT_EQ(c.head_dim, 4);
  EXPECT_EQ(c.max_position_embeddings, 64);
  EXPECT_EQ(c.norm_eps, 1e-5);  // not the nearest float32
  EXPECT_EQ(c.rope_theta, 50000);
  EXPECT_TRUE(c.tie_word_embeddings);
  EXPECT_FALSE(c.attention_bias);
  EXPECT_EQ(m.tokenizer_json, "");
  EXPECT_EQ(m.weights->entries().size(), 11u);

  // Interleaved rows 0 1 2 3 hold dims 0 2 1 3 of the half-split head.
  EXPECT_EQ(floats_of(m, "model.layers.0.self_attn.q_proj.weight"),
            rows_of({0, 2, 1, 3, 4, 6, 5, 7}, 8, 0.25f));
  EXPECT_EQ(floats_of(m, "model.layers.0.self_attn.k_proj.weight"), rows_of({0, 2, 1, 3}, 8, 0.5f));
  EXPECT_EQ(floats_of(m, "model.layers.0.self_attn.v_proj.weight"), numbered(4, 8, 0.75f));
  EXPECT_EQ(floats_of(m, "model.norm.weight"), numbered(8, 1, 1));
  EXPECT_EQ(floats_of(m, "model.layers.0.input_layernorm.weight"), numbered(8, 1, 2));
  EXPECT_EQ(floats_of(m, "model.layers.0.post_attention_layernorm.weight"), numbered(8, 1, 3));

  const auto& entries = m.weights->entries();
  EXPECT_EQ(entries.at("model.layers.0.mlp.gate_proj.weight").dtype, "F16");
  EXPECT_EQ(entries.at("model.layers.0.mlp.gate_proj.weight").shape, (std::vector<int64_t>{32, 8}));
  EXPECT_EQ(floats_of(m, "model.layers.0.mlp.gate_proj.weight")[255],
            1 + 255.0f / 1024);  // 0x3CFF
  EXPECT_EQ(entries.at("model.layers.0.mlp.down_proj.weight").dtype, "F32");
  const Floats down = floats_of(m, "model.layers.0.mlp.down_proj.weight");
  ASSERT_EQ(down.size(), 256u);
  EXPECT_EQ(down[0], 0);
  EXPECT_EQ(down[3 * 32 + 31], -0.5f);
  EXPECT_EQ(down[7 * 32 + 1], 34.5f);
}

TEST(ImportGguf, LlamaBiasesArePermutedToo) {
  File f = llama();
  f.vector("blk.0.attn_q.bias", 8).vector("blk.0.attn_k.bias", 4).vector("blk.0.attn_v.bias", 4);
  f.vector("blk.0.attn_output.bias", 8).matrix("output.weight", 6, 8, 7);
  const ImportedModel m = f.import();
  EXPECT_TRUE(m.config.attention_bias);
  EXPECT_FALSE(m.config.tie_word_embeddings);
  EXPECT_EQ(floats_of(m, "model.layers.0.self_attn.q_proj.bias"),
            (Floats{0, 200, 100, 300, 400, 600, 500, 700}));
  EXPECT_EQ(floats_of(m, "model.layers.0.self_attn.v_proj.bias"), (Floats{0, 100, 200, 300}));
  EXPECT_EQ(floats_of(m, "lm_head.weight"), numbered(6, 8, 7));
}

TEST(ImportGguf, QwenRowsStandInOrder) {
  for (const char* arch : {"qwen2", "qwen3"}) {
    const bool v3 = std::string(arch) == "qwen3";
    File f(arch);
    f.add("attention.head_count_kv", 1).add("attention.layer_norm_rms_epsilon", 1e-6f);
    f.add("attention.key_length", 6).add("attention.value_length", 6);
    f.matrix("token_embd.weight", 6, 8).vector("output_norm.weight", 8);
    f.vector("blk.0.attn_norm.weight", 8).vector("blk.0.ffn_norm.weight", 8);
    f.matrix("blk.0.attn_q.weight", 12, 8, 0.5f).matrix("blk.0.attn_k.weight", 6, 8);
    f.matrix("blk.0.attn_v.weight", 6, 8).matrix("blk.0.attn_output.weight", 8, 12);
    f.matrix("blk.0.ffn_up.weight", 32, 8).matrix("blk.0.ffn_gate.weight", 32, 8);
    f.matrix("blk.0.ffn_down.weight", 8, 32);
    if (v3) {
      f.vector("blk.0.attn_q_norm.weight", 6, 0.5f).vector("blk.0.attn_k_norm.weight", 6);
    } else {
      f.vector("blk.0.attn_q.bias", 12).vector("blk.0.attn_k.bias", 6);
      f.vector("blk.0.attn_v.bias", 6);
    }
    const ImportedModel m = f.import();
    EXPECT_EQ(m.config.model_type, arch);
    EXPECT_EQ(m.config.head_dim, 6);
    EXPECT_EQ(m.config.qk_norm, v3);
    EXPECT_EQ(m.config.attention_bias, !v3);
    EXPECT_FALSE(m.config.attention_out_bias);
    EXPECT_EQ(floats_of(m, "model.layers.0.self_attn.q_proj.weight"), numbered(12, 8, 0.5f));
    if (v3) {
      EXPECT_EQ(floats_of(m, "model.layers.0.self_attn.q_norm.weight"), numbered(6, 1, 0.5f));
    }
  }
}

File gpt(const char* arch) {
  File f(arch);
  f.add("attention.layer_norm_epsilon", 1e-5f);
  f.matrix("token_embd.weight", 6, 8);
  f.vector("output_norm.weight", 8).vector("output_norm.bias", 8, 1);
  f.vector("blk.0.attn_norm.weight", 8).vector("blk.0.attn_norm.bias", 8);
  f.vector("blk.0.ffn_norm.weight", 8).vector("blk.0.ffn_norm.bias", 8);
  f.matrix("blk.0.attn_qkv.weight", 24, 8, 0.5f).vector("blk.0.attn_qkv.bias", 24);
  f.matrix("blk.0.attn_output.weight", 8, 8).vector("blk.0.attn_output.bias", 8);
  f.matrix("blk.0.ffn_up.weight", 32, 8, 0.25f).vector("blk.0.ffn_up.bias", 32);
  f.matrix("blk.0.ffn_down.weight", 8, 32).vector("blk.0.ffn_down.bias", 8);
  return f;
}

void expect_split_qkv(const ImportedModel& m) {
  EXPECT_EQ(floats_of(m, "model.layers.0.self_attn.q_proj.weight"), numbered(8, 8, 0.5f));
  EXPECT_EQ(floats_of(m, "model.layers.0.self_attn.k_proj.weight"), numbered(8, 8, 800.5f));
  EXPECT_EQ(floats_of(m, "model.layers.0.self_attn.v_proj.weight"), numbered(8, 8, 1600.5f));
  EXPECT_EQ(floats_of(m, "model.layers.0.self_attn.k_proj.bias"), numbered(8, 1, 800));
  EXPECT_EQ(floats_of(m, "model.layers.0.mlp.up_proj.weight"), numbered(32, 8, 0.25f));
}

TEST(ImportGguf, Gpt2) {
  File f = gpt("gpt2");
  f.matrix("position_embd.weight", 64, 8, 0.125f);
  for (const bool stored_head : {false, true}) {
    if (stored_head) f.matrix("output.weight", 6, 8);
    const ImportedModel m = f.import();
    EXPECT_EQ(m.config.model_type, "gpt2");
    EXPECT_EQ(m.config.position, PositionKind::kLearned);
    EXPECT_EQ(m.config.norm, NormKind::kLayer);
    EXPECT_EQ(m.config.mlp, ActivationKind::kGeluTanh);
    EXPECT_TRUE(m.config.tie_word_embeddings);
    EXPECT_TRUE(m.config.norm_bias && m.config.mlp_bias && m.config.attention_out_bias);
    expect_split_qkv(m);
    EXPECT_EQ(floats_of(m, "model.embed_positions.weight"), numbered(64, 8, 0.125f));
    EXPECT_EQ(floats_of(m, "model.norm.bias"), numbered(8, 1, 1));
  }
}

TEST(ImportGguf, GptNeox) {
  File f = gpt("gptneox");
  f.matrix("output.weight", 6, 8, 9).add("rope.dimension_count", 2);
  f.add("use_parallel_residual", true);
  const ImportedModel m = f.import();
  EXPECT_EQ(m.config.model_type, "gpt_neox");
  EXPECT_EQ(m.config.rotary_dim(), 2);
  EXPECT_TRUE(m.config.parallel_residual);
  EXPECT_EQ(m.config.mlp, ActivationKind::kGelu);
  EXPECT_EQ(m.config.norm_eps, 1e-5);
  expect_split_qkv(m);
  EXPECT_EQ(floats_of(m, "lm_head.weight"), numbered(6, 8, 9));
}

TEST(ImportGguf, RopeScaling) {
  File linear = llama();
  linear.add("rope.scaling.type", "linear").add("rope.scaling.factor", 4.0f);
  EXPECT_EQ(linear.import().config.rope_scaling.type, "linear");
  EXPECT_EQ(linear.import().config.rope_scaling.factor, 4);
  File yarn = llama();
  yarn.add("rope.scaling.type", "yarn").add("rope.scaling.factor", 2.0f);
  yarn.add("rope.scaling.original_context_length", 32);
  const RopeScaling s = yarn.import().config.rope_scaling;
  EXPECT_EQ(s.type, "yarn");
  EXPECT_EQ(s.factor, 2);
  EXPECT_EQ(s.original_max_position_embeddings, 32);
  File none = llama();
  none.add("rope.scaling.type", "none").add("rope.scaling.factor", 2.0f);
  EXPECT_EQ(none.import().config.rope_scaling.type, "");
  File other = llama();
  other.add("rope.scaling.type", "longrope");
  EXPECT_REFUSED(UnsupportedError, other, "longrope");
}

TEST(ImportGguf, Llama31FrequencyFactorsBecomeTheirScaling) {
  const auto with = [](const Floats& factors, int original) {
    File f = llama();
    f.w.floats("rope_freqs.weight", {factors.size()}, factors);
    if (original > 0) f.add("rope.scaling.original_context_length", original);
    return f;
  };
  // theta 50000 and head_dim 4: wavelengths 2 pi and 2 pi sqrt(50000) = 1404.96. With an original
  // context of 8192 both are kept (below 2048); with 2048 the second is on the ramp: smooth =
  // (2048 / 1404.96 - 1) / 3 = 0.152557..., divisor 1 / ((1 - smooth) / 8 + smooth).
  const double wave = 2 * M_PI * std::sqrt(50000.0), smooth = (2048 / wave - 1) / 3;
  const double ramp = 1 / ((1 - smooth) / 8 + smooth);
  EXPECT_NEAR(ramp, 3.87, 0.01);
  EXPECT_EQ(with({1, 1}, 0).import().config.rope_scaling.type, "");
  // With 1024 the second wave is beyond: the largest divisor is the factor itself.
  const RopeScaling s = with({1, 8}, 1024).import().config.rope_scaling;
  EXPECT_EQ(s.type, "llama3");
  EXPECT_EQ(s.factor, 8);
  EXPECT_EQ(s.low_freq_factor, 1);
  EXPECT_EQ(s.high_freq_factor, 4);
  EXPECT_EQ(s.original_max_position_embeddings, 1024);
  EXPECT_REFUSED(UnsupportedError, with({1, 8}, 4096), "rope_freqs.weight");
  EXPECT_EQ(with({1, 8}, 0).import().config.rope_scaling.original_max_position_embeddings, 64);
  EXPECT_REFUSED(UnsupportedError, with({2, 8}, 1024), "rope_freqs.weight");
  EXPECT_REFUSED(UnsupportedError, with({1, static_cast<float>(ramp)}, 2048), "rope_freqs.weight");
  EXPECT_REFUSED(UnsupportedError, with({1, NAN}, 1024), "rope_freqs.weight");
  EXPECT_REFUSED(FormatError, with({1, 1, 1}, 0), "2 float32 values");
}

TEST(ImportGguf, WhatDoesNotFitIsRefusedByName) {
  EXPECT_REFUSED(FormatError, llama("blk.0.ffn_down.weight"), "blk.0.ffn_down.weight");
  EXPECT_REFUSED(FormatError, llama().vector("blk.0.extra.weight", 3), "blk.0.extra.weight");
  EXPECT_REFUSED(FormatError, llama().matrix("output.weight", 5, 8), "(6, 8); got (5, 8)");
  EXPECT_REFUSED(FormatError, llama().vector("blk.0.attn_q.bias", 8), "attention");
  EXPECT_REFUSED(FormatError, File("llama"), "token_embd.weight");
  EXPECT_REFUSED(UnsupportedError, File("gemma3"), "gemma3");
  EXPECT_REFUSED(UnsupportedError, llama().add("expert_count", 8), "mixture of experts");
  File split = llama();
  split.w.add("split.count", 2);
  EXPECT_REFUSED(UnsupportedError, split, "llama-gguf-split");
  EXPECT_REFUSED(UnsupportedError, llama().add("attention.value_length", 8), "values as long");
  File eos = llama();
  eos.w.add("tokenizer.ggml.eos_token_id", 6);
  EXPECT_REFUSED(FormatError, eos, "eos_token_id from 0 to 5; got 6");
  File tokens = llama();
  tokens.w.add("tokenizer.ggml.tokens", std::vector<std::string>(7, "x"));
  EXPECT_REFUSED(FormatError, tokens, "at most the 6 tokens");

  File sizes("llama");
  sizes.add("attention.head_count_kv", 0).matrix("token_embd.weight", 6, 8);
  EXPECT_REFUSED(FormatError, sizes, "head_count_kv from 1");
  File rope("llama");
  rope.add("rope.dimension_count", 2).matrix("token_embd.weight", 6, 8);
  EXPECT_REFUSED(UnsupportedError, rope, "rope.dimension_count of 4; got 2");
  File odd("llama");
  odd.add("attention.head_count_kv", 2).add("attention.key_length", 3);
  odd.matrix("token_embd.weight", 6, 8);
  EXPECT_REFUSED(FormatError, odd, "head_dim");
}

TEST(ImportGguf, HugeBlockCountAllocatesNothing) {
  GgufWriter w;
  w.add("general.architecture", "llama").add("llama.embedding_length", 8);
  w.add("llama.block_count", 2000000000).add("llama.feed_forward_length", 8);
  w.add("llama.attention.head_count", 2).add("llama.context_length", 8);
  w.floats("token_embd.weight", {8, 1}, Floats(8));
  const TemporaryDirectory dir;
  write_file_atomically(dir / "m.gguf", w.image());
  EXPECT_THROW(import_gguf(dir / "m.gguf"), FormatError);
}

// ---- tokenizers

/// The tensors of one block with half as many KV heads, under a table of `tokens` rows.
void add_block(File& f, size_t tokens) {
  f.matrix("token_embd.weight", tokens, 8).vector("output_norm.weight", 8);
  f.vector("blk.0.attn_norm.weight", 8).vector("blk.0.ffn_norm.weight", 8);
  f.matrix("blk.0.attn_q.weight", 8, 8).matrix("blk.0.attn_k.weight", 4, 8);
  f.matrix("blk.0.attn_v.weight", 4, 8).matrix("blk.0.attn_output.weight", 8, 8);
  f.matrix("blk.0.ffn_up.weight", 32, 8).matrix("blk.0.ffn_gate.weight", 32, 8);
  f.matrix("blk.0.ffn_down.weight", 8, 32);
}

/// A byte-level vocabulary: the printable part of ASCII, a space and a few merges.
File byte_level(const char* pre) {
  File f("llama");
  f.add("attention.head_count_kv", 1);
  std::vector<std::string> tokens = {"<|end|>", "<tool>"};
  for (char c = '!'; c <= '~'; ++c) tokens.emplace_back(1, c);
  tokens.insert(tokens.end(),
                {"\xC4\xA0", "he", "ll", "hell", "hello", "\xC4\xA0h", "12", "[PAD]"});
  std::vector<int32_t> types(tokens.size(), 1);
  types.front() = 3;
  types[1] = 4;
  types.back() = 5;
  f.w.add("tokenizer.ggml.model", "gpt2").add("tokenizer.ggml.tokens", tokens);
  f.w.array("tokenizer.ggml.token_type", 5, types);
  f.w.add("tokenizer.ggml.merges",
          std::vector<std::string>{"h e", "l l", "he ll", "hell o", "\xC4\xA0 h", "1 2"});
  if (pre != nullptr) f.w.add("tokenizer.ggml.pre", pre);
  add_block(f, tokens.size());
  f.w.add("tokenizer.ggml.bos_token_id", 0);
  return f;
}

TEST(ImportGguf, ByteLevelTokenizer) {
  const ImportedModel m = byte_level("gpt-2").import();
  const Tokenizer t = Tokenizer::from_json(m.tokenizer_json, "test");
  EXPECT_EQ(t.kind(), "byte-level BPE");
  EXPECT_EQ(pieces(m, "hello hello12"), (Texts{"hello", "\xC4\xA0", "hello", "12"}));
  EXPECT_EQ(pieces(m, "<|end|>h<tool>"), (Texts{"<|end|>", "h", "<tool>"}));
  EXPECT_TRUE(t.is_special(0));
  EXPECT_FALSE(t.is_special(1));
  EXPECT_EQ(t.added_tokens(), (std::vector<int32_t>{0, 1}));
  EXPECT_FALSE(t.token_id("[PAD]").has_value());
  EXPECT_EQ(t.decode(t.encode("he said hell")), "he said hell");
  EXPECT_EQ(pieces(m, "h", true), Texts{"h"});  // no bos unless asked for
}

TEST(ImportGguf, PreTokenizersByName) {
  EXPECT_EQ(pieces(byte_level("smollm").import(), "12"), (Texts{"1", "2"}));
  EXPECT_EQ(pieces(byte_level("qwen2").import(), "12"), (Texts{"1", "2"}));
  EXPECT_EQ(pieces(byte_level("dolma2").import(), "12"), (Texts{"12"}));
  EXPECT_EQ(pieces(byte_level(nullptr).import(), "12"), (Texts{"12"}));
  EXPECT_EQ(pieces(byte_level("llama-bpe").import(), "12", true), (Texts{"<|end|>", "12"}));
  EXPECT_REFUSED(UnsupportedError, byte_level("tekken"), "got tekken");
  File bos = byte_level("gpt-2");
  bos.w.add("tokenizer.ggml.add_bos_token", true);
  EXPECT_EQ(pieces(bos.import(), "h", true), (Texts{"<|end|>", "h"}));
  File without = byte_level("llama-bpe");
  without.w.add("tokenizer.ggml.add_bos_token", false);
  EXPECT_EQ(pieces(without.import(), "h", true), (Texts{"h"}));
  File eos = byte_level("gpt-2");
  eos.w.add("tokenizer.ggml.add_eos_token", true).add("tokenizer.ggml.eos_token_id", 1);
  EXPECT_EQ(pieces(eos.import(), "h", true), (Texts{"h", "<tool>"}));
}

TEST(ImportGguf, DamagedTokenizers) {
  const auto changed = [](auto&& change) {
    File f = llama();
    change(f.w);
    return f;
  };
  const Texts six = {"<unk>", "<s>", "</s>", "a", "b", "ab"};
  EXPECT_REFUSED(FormatError, changed([](GgufWriter& w) { w.add("tokenizer.ggml.model", "gpt2"); }),
                 "tokenizer.ggml.tokens; got none");
  const auto base = [&](GgufWriter& w, const char* model) -> GgufWriter& {
    return w.add("tokenizer.ggml.model", model).add("tokenizer.ggml.tokens", six);
  };
  EXPECT_REFUSED(UnsupportedError, changed([&](GgufWriter& w) { base(w, "t5"); }), "got t5");
  EXPECT_REFUSED(FormatError, changed([&](GgufWriter& w) { base(w, "gpt2"); }), "merges; got none");
  EXPECT_REFUSED(FormatError, changed([&](GgufWriter& w) {
                   base(w, "gpt2").add("tokenizer.ggml.merges", Texts{"ab"});
                 }),
                 "merges of two tokens");
  EXPECT_REFUSED(FormatError, changed([&](GgufWriter& w) {
                   base(w, "gpt2").add("tokenizer.ggml.merges", Texts{"a c"});
                 }),
                 "'c'");
  EXPECT_REFUSED(FormatError, changed([&](GgufWriter& w) {
                   base(w, "gpt2").array<int32_t>("tokenizer.ggml.token_type", 5, {1, 1});
                 }),
                 "of 6 tokens; got 2");
  EXPECT_REFUSED(
      FormatError, changed([&](GgufWriter& w) {
        base(w, "gpt2").array<int32_t>("tokenizer.ggml.token_type", 5, {1, 1, 1, 1, 1, 7});
      }),
      "from 1 to 6; got 7");
  EXPECT_REFUSED(FormatError, changed([&](GgufWriter& w) { base(w, "llama"); }), "scores");
  EXPECT_REFUSED(FormatError, changed([&](GgufWriter& w) {
                   base(w, "llama").array<float>("tokenizer.ggml.scores", 6, {0, 0, 0, 0, 0, NAN});
                 }),
                 "NaN");
  EXPECT_REFUSED(FormatError, changed([&](GgufWriter& w) {
                   base(w, "llama").array<float>("tokenizer.ggml.scores", 6, Floats(6));
                   w.add("tokenizer.ggml.bos_token_id", 9);
                 }),
                 "bos_token_id");
  EXPECT_REFUSED(FormatError, changed([](GgufWriter& w) {
                   w.add("tokenizer.ggml.model", "llama");
                   w.add("tokenizer.ggml.tokens", Texts{"a", "b", "a"});
                   w.array<float>("tokenizer.ggml.scores", 6, Floats(3));
                 }),
                 "distinct pieces");
}

TEST(ImportGguf, SentencePieceTokenizer) {
  // Scores make "ab" before "bc", whatever their order in the vocabulary.
  const Texts tokens = {"<unk>",
                        "<s>",
                        "</s>",
                        "<0x41>",
                        "\xE2\x96\x81",
                        "a",
                        "b",
                        "c",
                        "bc",
                        "ab",
                        "abc",
                        "\xE2\x96\x81"
                        "a"};
  const Floats scores = {0, 0, 0, 0, -10, -11, -12, -13, -2, -1, -3, -4};
  const std::vector<int32_t> types = {2, 3, 3, 6, 1, 1, 1, 1, 1, 1, 1, 1};
  File f("llama");
  f.w.add("tokenizer.ggml.model", "llama").add("tokenizer.ggml.tokens", tokens);
  f.w.array("tokenizer.ggml.scores", 6, scores).array("tokenizer.ggml.token_type", 5, types);
  f.w.add("tokenizer.ggml.bos_token_id", 1).add("tokenizer.ggml.eos_token_id", 2);
  f.add("attention.head_count_kv", 1);
  add_block(f, tokens.size());
  const ImportedModel m = f.import();
  const Json json = parse_json(m.tokenizer_json, "test");
  EXPECT_EQ(json["model"]["merges"], (Json{"a b", "b c", "ab c", "a bc", "\xE2\x96\x81 a"}));
  EXPECT_EQ(json["model"]["unk_token"], "<unk>");
  EXPECT_EQ(json["model"]["byte_fallback"], true);
  EXPECT_EQ(m.config.bos_token_id, 1);
  EXPECT_EQ(m.config.eos_token_ids, std::vector<int64_t>{2});
  EXPECT_EQ(pieces(m, "abc", true), (Texts{"<s>", "\xE2\x96\x81", "abc"}));
  EXPECT_EQ(pieces(m, "aA"), (Texts{"\xE2\x96\x81"
                                    "a",
                                    "<0x41>"}));
  EXPECT_EQ(pieces(m, "a</s>zz"), (Texts{"\xE2\x96\x81"
                                         "a",
                                         "</s>", "\xE2\x96\x81", "<unk>"}));
  const Tokenizer t = Tokenizer::from_json(m.tokenizer_json, "test");
  EXPECT_EQ(t.decode(t.encode("ab cA")), "ab cA");
  f.w.add("tokenizer.ggml.add_space_prefix", false).add("tokenizer.ggml.add_bos_token", false);
  EXPECT_EQ(pieces(f.import(), "abc", true), Texts{"abc"});
}

}  // namespace
}  // namespace heirloom
