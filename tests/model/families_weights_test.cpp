// SPDX-License-Identifier: Apache-2.0
//
// The families of transformers: where their files keep each tensor.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <cstring>

#include "heirloom/core/error.h"
#include "heirloom/kernels/kernel_table.h"
#include "heirloom/model/checkpoint.h"
#include "heirloom/model/families/family.h"
#include "heirloom/model/load.h"
#include "heirloom/model/transformer.h"
#include "io/temporary_directory.h"
#include "tiny_families.h"

namespace heirloom {
namespace {

using testing::expect_written_back;
using testing::kFamilies;
using testing::meaning;
using testing::parse;
using testing::tiny;

struct Place {
  const char* ours;
  const char* theirs;
  bool transposed;
  std::vector<int64_t> rows;  ///< of theirs, for our rows 0, 1, ...
};

void expect_places(const Json& json, const std::vector<Place>& places) {
  const ModelConfig config = parse(json);
  const ModelFamily& family = *find_model_family(config.model_type);
  for (const Place& place : places) {
    const TensorPlace got = family.place(config, {place.ours, {1, 1}});
    EXPECT_EQ(got.tensor, place.theirs) << place.ours;
    EXPECT_EQ(got.transposed, place.transposed) << place.ours;
    for (size_t r = 0; r < place.rows.size(); ++r) {
      const auto row = static_cast<int64_t>(r);
      EXPECT_EQ(got.row ? got.row(row) : got.begin + row, place.rows[r]) << place.ours << " " << r;
    }
  }
}

TEST(Families, PlacesOfGpt2) {
  expect_places(
      tiny("gpt2"),
      {{"model.embed_tokens.weight", "transformer.wte.weight", false, {0, 1}},
       {"model.embed_positions.weight", "transformer.wpe.weight", false, {0, 1}},
       {"model.norm.bias", "transformer.ln_f.bias", false, {0, 1}},
       {"lm_head.weight", "lm_head.weight", false, {0, 1}},
       {"model.layers.0.input_layernorm.weight", "transformer.h.0.ln_1.weight", false, {0}},
       {"model.layers.11.post_attention_layernorm.bias", "transformer.h.11.ln_2.bias", false, {0}},
       {"model.layers.1.self_attn.q_proj.weight",
        "transformer.h.1.attn.c_attn.weight",
        true,
        {0, 1}},
       {"model.layers.1.self_attn.k_proj.weight",
        "transformer.h.1.attn.c_attn.weight",
        true,
        {12, 13}},
       {"model.layers.1.self_attn.v_proj.weight",
        "transformer.h.1.attn.c_attn.weight",
        true,
        {24, 25}},
       {"model.layers.1.self_attn.q_proj.bias", "transformer.h.1.attn.c_attn.bias", false, {0}},
       {"model.layers.1.self_attn.v_proj.bias",
        "transformer.h.1.attn.c_attn.bias",
        false,
        {24, 25}},
       {"model.layers.0.self_attn.o_proj.weight", "transformer.h.0.attn.c_proj.weight", true, {0}},
       {"model.layers.0.self_attn.o_proj.bias", "transformer.h.0.attn.c_proj.bias", false, {0}},
       {"model.layers.0.mlp.up_proj.weight", "transformer.h.0.mlp.c_fc.weight", true, {0}},
       {"model.layers.0.mlp.down_proj.weight", "transformer.h.0.mlp.c_proj.weight", true, {0}},
       {"model.layers.0.mlp.down_proj.bias", "transformer.h.0.mlp.c_proj.bias", false, {0}}});
  EXPECT_THROW(find_model_family("gpt2")->place(parse(tiny("gpt2")),
                                                {"model.layers.0.mlp.gate_proj.weight", {1, 1}}),
               InternalError);
}

TEST(Families, PlacesOfGptNeox) {
  // Three heads of 8 dims: q, k and v of head 0 are rows 0, 8 and 16, of head 1 rows 24, 32, 40.
  const std::string inner = "gpt_neox.layers.1.", qkv = inner + "attention.query_key_value.";
  const std::string weight = qkv + "weight", bias = qkv + "bias";
  const std::vector<int64_t> q = {0, 1, 2, 3, 4, 5, 6, 7, 24, 25},
                             k = {8, 9, 10, 11, 12, 13, 14, 15, 32, 33},
                             v = {16, 17, 18, 19, 20, 21, 22, 23, 40, 41};
  expect_places(
      tiny("gpt_neox"),
      {{"model.embed_tokens.weight", "gpt_neox.embed_in.weight", false, {0, 1}},
       {"model.norm.bias", "gpt_neox.final_layer_norm.bias", false, {0, 1}},
       {"lm_head.weight", "embed_out.weight", false, {0, 1}},
       {"model.layers.0.input_layernorm.weight",
        "gpt_neox.layers.0.input_layernorm.weight",
        false,
        {0}},
       {"model.layers.0.post_attention_layernorm.bias",
        "gpt_neox.layers.0.post_attention_layernorm.bias",
        false,
        {0}},
       {"model.layers.1.self_attn.q_proj.weight", weight.c_str(), false, q},
       {"model.layers.1.self_attn.k_proj.weight", weight.c_str(), false, k},
       {"model.layers.1.self_attn.v_proj.weight", weight.c_str(), false, v},
       {"model.layers.1.self_attn.q_proj.bias", bias.c_str(), false, q},
       {"model.layers.1.self_attn.v_proj.bias", bias.c_str(), false, v},
       {"model.layers.0.self_attn.o_proj.weight",
        "gpt_neox.layers.0.attention.dense.weight",
        false,
        {0}},
       {"model.layers.0.mlp.up_proj.bias", "gpt_neox.layers.0.mlp.dense_h_to_4h.bias", false, {0}},
       {"model.layers.0.mlp.down_proj.weight",
        "gpt_neox.layers.0.mlp.dense_4h_to_h.weight",
        false,
        {0}}});
}

/// Every element's bits tell it from the others.
void number_weights(Transformer& model) {
  auto* data = static_cast<float*>(model.parameters().data());
  for (int64_t i = 0; i < model.parameters().elements(); ++i) {
    data[i] = static_cast<float>(i + 1) * 0.125f;
  }
}

/// The tiny model of a family, its weights numbered, written into `directory`.
std::unique_ptr<Transformer> write_numbered(const std::string& family,
                                            const std::filesystem::path& directory) {
  auto model = std::make_unique<Transformer>(parse(tiny(family)), Device{}, Dtype::kFloat32);
  number_weights(*model);
  write_model(directory, model->config(), model->parameters(), model->parameters().data(),
              Dtype::kFloat32, Dtype::kFloat32, {});
  return model;
}

std::vector<float> floats(const StoredTensor& tensor) {
  std::vector<float> values(tensor.data.size() / sizeof(float));
  std::memcpy(values.data(), tensor.data.data(), tensor.data.size());
  return values;
}

/// A tensor of ours, as the model holds it.
std::vector<float> ours(const Transformer& model, const std::string& name) {
  const auto* data = static_cast<const float*>(model.parameters().data());
  for (const NamedParameter& p : model.parameters().all()) {
    for (const ParameterSlice& slice : p.slices) {
      if (slice.name != name) continue;
      std::vector<float> values;
      for (int64_t r = slice.begin; r < slice.end; ++r) {
        const float* row = data + p.offset + r * p.columns();
        values.insert(values.end(), row, row + p.own_columns());
      }
      return values;
    }
  }
  ADD_FAILURE() << "no " << name;
  return {};
}

TEST(Families, WeightsComeBackBitForBit) {
  register_kernels();
  for (const std::string family : kFamilies) {
    SCOPED_TRACE(family);
    const test::TemporaryDirectory directory;
    const auto model = write_numbered(family, directory.path());
    const auto again = load_model(directory.path(), Device{}, Dtype::kFloat32);
    EXPECT_EQ(meaning(again->config()), meaning([&] {
                ModelConfig config = model->config();
                config.stored_dtype = "float32";
                return config;
              }()));
    for (const TensorShape& shape : tensor_shapes(model->parameters())) {
      EXPECT_EQ(ours(*again, shape.name), ours(*model, shape.name)) << shape.name;
    }
  }
}

TEST(Families, FilesOfGpt2HoldColumnsOfQueriesKeysAndValues) {
  register_kernels();
  const test::TemporaryDirectory directory;
  const auto model = write_numbered("gpt2", directory.path());
  const SafetensorsFile file(directory / "model.safetensors");
  const StoredTensor& merged = file.tensors().at("transformer.h.1.attn.c_attn.weight");
  EXPECT_EQ(merged.shape, (std::vector<int64_t>{12, 36}));
  const std::vector<float> values = floats(merged);
  size_t part = 0;
  for (const char* kind : {"q", "k", "v"}) {
    const auto w = ours(*model, fmt::format("model.layers.1.self_attn.{}_proj.weight", kind));
    for (size_t out = 0; out < 12; ++out) {
      for (size_t in = 0; in < 12; ++in) {
        ASSERT_EQ(values[in * 36 + part * 12 + out], w[out * 12 + in]);
      }
    }
    ++part;
  }
  const StoredTensor& up = file.tensors().at("transformer.h.0.mlp.c_fc.weight");
  EXPECT_EQ(up.shape, (std::vector<int64_t>{12, 48}));
  EXPECT_EQ(floats(up)[1], ours(*model, "model.layers.0.mlp.up_proj.weight")[12]);
  EXPECT_EQ(file.tensors().size(), 4u + 2u * 12u);  // wte, wpe, ln_f; no head
}

TEST(Families, FilesOfGptNeoxHoldHeadByHead) {
  register_kernels();
  const test::TemporaryDirectory directory;
  const auto model = write_numbered("gpt_neox", directory.path());
  const SafetensorsFile file(directory / "model.safetensors");
  const StoredTensor& merged =
      file.tensors().at("gpt_neox.layers.0.attention.query_key_value.weight");
  EXPECT_EQ(merged.shape, (std::vector<int64_t>{72, 24}));
  const std::vector<float> values = floats(merged);
  size_t part = 0;
  for (const char* kind : {"q", "k", "v"}) {
    const auto w = ours(*model, fmt::format("model.layers.0.self_attn.{}_proj.weight", kind));
    for (size_t head = 0; head < 3; ++head) {
      for (size_t d = 0; d < 8; ++d) {
        for (size_t in = 0; in < 24; ++in) {
          ASSERT_EQ(values[((head * 3 + part) * 8 + d) * 24 + in], w[(head * 8 + d) * 24 + in]);
        }
      }
    }
    ++part;
  }
  EXPECT_TRUE(file.tensors().contains("embed_out.weight"));
}

/// Rewrites a model's file under other names, with further tensors.
void rename_tensors(const std::filesystem::path& path, const std::string& prefix,
                    const std::vector<std::string>& further) {
  const SafetensorsFile file(path);
  std::vector<TensorToWrite> tensors;
  for (const auto& [name, stored] : file.tensors()) {
    const std::string bare = name.starts_with(prefix) ? name.substr(prefix.size()) : name;
    tensors.push_back({bare, stored.dtype, stored.shape, [&stored = stored](const auto& out) {
                         out(stored.data.data(), stored.data.size());
                       }});
  }
  for (const std::string& name : further) {
    tensors.push_back({name, "F32", {1}, [](const auto& out) {
                         const float zero = 0;
                         out(&zero, sizeof(zero));
                       }});
  }
  write_safetensors(path.string() + ".new", tensors);
  std::filesystem::rename(path.string() + ".new", path);
}

TEST(Families, BareModelsAndTheirBuffers) {
  register_kernels();
  struct Case {
    const char *family, *prefix;
    std::vector<std::string> buffers;
    const char* stray;
  };
  const Case cases[] = {
      {"gpt2", "transformer.", {"h.0.attn.bias", "h.1.attn.masked_bias"}, "h.2.ln_1.bias"},
      {"gpt_neox",
       "gpt_neox.",
       {"layers.0.attention.bias", "layers.0.attention.masked_bias",
        "layers.1.attention.rotary_emb.inv_freq"},
       "layers.2.input_layernorm.bias"},
      {"qwen3", "model.", {"layers.0.self_attn.rotary_emb.inv_freq"}, "layers.2.mlp.bias"}};
  for (const Case& c : cases) {
    SCOPED_TRACE(c.family);
    const test::TemporaryDirectory directory;
    const auto model = write_numbered(c.family, directory.path());
    const std::filesystem::path file = directory / "model.safetensors";
    rename_tensors(file, c.prefix, c.buffers);
    const auto again = load_model(directory.path(), Device{}, Dtype::kFloat32);
    for (const TensorShape& shape : tensor_shapes(model->parameters())) {
      ASSERT_EQ(ours(*again, shape.name), ours(*model, shape.name)) << shape.name;
    }
    rename_tensors(file, "", {c.stray});
    EXPECT_THROW(load_model(directory.path(), Device{}, Dtype::kFloat32), FormatError);
  }
}

TEST(Families, SizesOfAConfigAreHeldToTheFileBeforeTheyCost) {
  register_kernels();
  for (const char* name : {"gpt2", "gpt_neox"}) {
    SCOPED_TRACE(name);
    const test::TemporaryDirectory directory;
    const auto model = write_numbered(name, directory.path());
    // 2^34 rows in all, of which the file holds none.
    ModelConfig huge = model->config();
    huge.num_hidden_layers = 4096;
    huge.intermediate_size = int64_t{1} << 22;
    const auto begin = std::chrono::steady_clock::now();
    EXPECT_THROW(open_weights(directory.path(), huge), FormatError);
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
  }
}

TEST(Families, GoldenModelsOfTransformers) {
  const char* root = std::getenv("HEIRLOOM_TEST_DATA");
  const std::filesystem::path golden =
      std::filesystem::path(root == nullptr ? "" : root) / "golden_hf";
  if (root == nullptr || !std::filesystem::is_directory(golden)) {
    GTEST_SKIP() << "models of transformers: HEIRLOOM_TEST_DATA names no folder with golden_hf";
  }
  register_kernels();
  for (const auto& entry : std::filesystem::directory_iterator(golden)) {
    if (!std::filesystem::exists(entry.path() / "config.json")) continue;
    SCOPED_TRACE(entry.path().filename().string());
    expect_written_back(read_json_file((entry.path() / "config.json").string()));
    const auto model = load_model(entry.path(), Device{}, Dtype::kFloat32);
    const test::TemporaryDirectory directory;
    write_model(directory.path(), model->config(), model->parameters(), model->parameters().data(),
                Dtype::kFloat32, Dtype::kFloat32, {});
    const SafetensorsModel first(entry.path()), second(directory.path());
    for (const auto& [name, stored] : first.tensors()) {
      ASSERT_TRUE(second.tensors().contains(name)) << name;
      EXPECT_EQ(second.tensors().at(name).shape, stored.shape) << name;
      std::vector<double> values(static_cast<size_t>(
          stored.data.size() / static_cast<size_t>(safetensors_dtype_size(stored.dtype))));
      to_doubles(stored.dtype, stored.data, values.data());
      const std::vector<float> written = floats(second.tensors().at(name));
      EXPECT_TRUE(std::equal(written.begin(), written.end(), values.begin(), values.end())) << name;
    }
    EXPECT_EQ(first.tensors().size(), second.tensors().size());
  }
}

}  // namespace
}  // namespace heirloom
