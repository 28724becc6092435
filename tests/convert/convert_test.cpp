// SPDX-License-Identifier: Apache-2.0
//
// Conversions, held to plain loops over the tensors that were written and read back.
#include "heirloom/convert/convert.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "evaluate/tiny_model.h"
#include "heirloom/evaluate/perplexity.h"
#include "heirloom/model/load.h"
#include "io/temporary_directory.h"

namespace heirloom {
namespace {

using test::TemporaryDirectory;

struct Tensor64 {
  std::vector<int64_t> shape;
  std::vector<double> values;
  std::string dtype;
  std::vector<std::byte> bytes;
  int64_t columns() const { return shape.size() == 2 ? shape[1] : 1; }
  double at(int64_t row, int64_t column = 0) const {
    return values[static_cast<size_t>(row * columns() + column)];
  }
};

std::map<std::string, Tensor64> read_tensors(const fs::path& directory) {
  const SafetensorsModel model(directory);
  std::map<std::string, Tensor64> tensors;
  for (const auto& [name, stored] : model.tensors()) {
    Tensor64 t{stored.shape, {}, stored.dtype, {stored.data.begin(), stored.data.end()}};
    t.values.resize(static_cast<size_t>(stored.numel()));
    to_doubles(stored.dtype, stored.data, t.values.data());
    tensors[name] = std::move(t);
  }
  return tensors;
}

/// Of 60 tokens, in float64: two models compute the same where theirs are equal.
double nll_sum(const fs::path& model) {
  SequenceSet data;
  for (int32_t i = 0; i < 60; ++i) data.tokens.push_back(i * i % 40);
  data.begins = {0, 60};
  return evaluate_perplexity(*load_model(model, {}, Dtype::kFloat64), data, {}).nll_sum;
}

std::string attention(int64_t layer, const std::string& rest) {
  return fmt::format("model.layers.{}.self_attn.{}", layer, rest);
}

/// A source of 3 layers, C 32, D 8, with biases and random values everywhere.
class ConvertTest : public testing::Test {
 protected:
  static constexpr int64_t kHeadDim = 8, kWidth = 32, kLayers = 3;

  Json config(int64_t heads, int64_t kv_heads) const {
    return {{"model_type", "heirloom"},        {"vocab_size", 40},
            {"hidden_size", kWidth},           {"intermediate_size", 24},
            {"num_hidden_layers", kLayers},    {"num_attention_heads", heads},
            {"num_key_value_heads", kv_heads}, {"head_dim", kHeadDim},
            {"max_position_embeddings", 64},   {"attention_bias", true}};
  }

  /// Writes a source whose every element is drawn; `edit` may change one tensor's value at (row, column).
  using Edit =
      std::function<double(const std::string& name, int64_t row, int64_t column, double x)>;
  fs::path write_source(const Json& json, const std::string& dtype = "F32", const Edit& edit = {}) {
    ModelConfig model = parse_model_config(json, "test");
    model.stored_dtype = dtype == "F16" ? "float16" : dtype == "BF16" ? "bfloat16" : "float32";
    const fs::path directory = folder_ / fmt::format("source-{}", sources_++);
    fs::create_directories(directory);
    write_model_files(directory, model, test::byte_tokenizer_json());
    std::vector<TensorToWrite> tensors;
    for (const TensorShape& shape : tensor_shapes(model)) {
      std::vector<double> values;
      for (int64_t r = 0; r < shape.rows(); ++r) {
        for (int64_t c = 0; c < shape.columns(); ++c) {
          const double x = 0.6 * std::sin(static_cast<double>(++drawn_) * 12.9898);
          values.push_back(edit ? edit(shape.name, r, c, x) : x);
        }
      }
      std::vector<std::byte> bytes(values.size() *
                                   static_cast<size_t>(safetensors_dtype_size(dtype)));
      from_doubles(dtype, values, bytes.data());
      tensors.push_back({shape.name, dtype, shape.shape,
                         [bytes](const ElementsOut& out) { out(bytes.data(), bytes.size()); }});
    }
    write_safetensors(directory / "model.safetensors", tensors);
    return directory;
  }

  ConversionPlan convert(const fs::path& from, const fs::path& to, const std::string& sharing,
                         const std::string& method, int64_t kv_heads = 0) {
    ConvertOptions options;
    if (!sharing.empty()) options.kv_sharing = Json::parse(sharing);
    options.method = method;
    options.kv_heads = kv_heads;
    const ImportedModel model = import_directory(from);
    ConversionPlan plan = plan_conversion(model.config, options);
    convert_model(model, plan, options, to);
    return plan;
  }

  /// The tensors named are there and differ; all others keep their bytes, shape and dtype.
  void expect_only_changed(const std::map<std::string, Tensor64>& before,
                           const std::map<std::string, Tensor64>& after,
                           const std::vector<std::string>& changed) {
    EXPECT_EQ(before.size(), after.size());
    for (const auto& [name, tensor] : before) {
      ASSERT_TRUE(after.contains(name)) << name;
      const bool may = std::find(changed.begin(), changed.end(), name) != changed.end();
      EXPECT_EQ(after.at(name).dtype, tensor.dtype) << name;
      EXPECT_EQ(after.at(name).bytes == tensor.bytes, !may) << name;
    }
  }

  TemporaryDirectory folder_;
  int sources_ = 0;
  int64_t drawn_ = 0;
};

constexpr const char* kSkipV1 = R"({"scheme": "skipv1", "ratio": 0.5})";

std::vector<std::string> value_tensors() {
  return {attention(1, "v_proj.weight"), attention(1, "v_proj.bias"), attention(2, "v_proj.weight"),
          attention(2, "v_proj.bias")};
}

std::vector<std::string> value_and_out_tensors() {
  std::vector<std::string> names = value_tensors();
  names.push_back(attention(1, "o_proj.weight"));
  names.push_back(attention(2, "o_proj.weight"));
  return names;
}

TEST_F(ConvertTest, MeanVAveragesAdjacentValueHeads) {
  for (const char* dtype : {"F32", "BF16", "F16"}) {
    const fs::path source = write_source(config(4, 4), dtype);
    const fs::path result = folder_ / (std::string("result-") + dtype);
    const ConversionPlan plan = convert(source, result, kSkipV1, "mean-v");
    const auto before = read_tensors(source), after = read_tensors(result);
    expect_only_changed(before, after, value_tensors());
    for (const std::string& name : value_tensors()) {
      const Tensor64 &was = before.at(name), &is = after.at(name);
      ASSERT_EQ(is.shape[0], 2 * kHeadDim);
      for (int64_t j = 0; j < 2; ++j) {
        for (int64_t i = 0; i < kHeadDim; ++i) {
          for (int64_t c = 0; c < was.columns(); ++c) {
            double mean =
                (was.at(2 * j * kHeadDim + i, c) + was.at((2 * j + 1) * kHeadDim + i, c)) / 2;
            std::byte stored[4];
            from_doubles(dtype, std::span(&mean, 1), stored);
            double rounded = 0;
            to_doubles(dtype,
                       std::span<const std::byte>(
                           stored, static_cast<size_t>(safetensors_dtype_size(dtype))),
                       &rounded);
            EXPECT_EQ(is.at(j * kHeadDim + i, c), rounded) << name;
          }
        }
      }
    }
    EXPECT_EQ(plan.layers[0].values, "as they were");
    EXPECT_EQ(plan.layers[1].values, "mean of 2");
    EXPECT_EQ(plan.layers[2].values_before, 4);
    EXPECT_EQ(plan.layers[2].values_after, 2);
    EXPECT_EQ(read_model_config(result.string()).stored_dtype,
              read_model_config(source.string()).stored_dtype);
    EXPECT_EQ(read_file(result / "tokenizer.json"), read_file(source / "tokenizer.json"));
  }
}

/// 8 query heads on 4 KV heads: query head 2g + q of the pooled KV head j is the mean of those of
/// KV heads 2j and 2j + 1.
TEST_F(ConvertTest, MeanVoAveragesOutBlocksOfThePooledGroups) {
  const fs::path source = write_source(config(8, 4)), result = folder_ / "result";
  convert(source, result, kSkipV1, "mean-vo");
  const auto before = read_tensors(source), after = read_tensors(result);
  expect_only_changed(before, after, value_and_out_tensors());
  for (const int64_t layer : {1, 2}) {
    const Tensor64& was = before.at(attention(layer, "o_proj.weight"));
    const Tensor64& is = after.at(attention(layer, "o_proj.weight"));
    for (int64_t row = 0; row < kWidth; ++row) {
      for (int64_t head = 0; head < 8; ++head) {
        const int64_t j = head / 2, q = head % 2;
        for (int64_t i = 0; i < kHeadDim; ++i) {
          const auto block = [&](int64_t kv) { return was.at(row, (kv * 2 + q) * kHeadDim + i); };
          const double expected = j < 2 ? (block(2 * j) + block(2 * j + 1)) / 2 : 0.0;
          EXPECT_NEAR(is.at(row, head * kHeadDim + i), expected, 1e-7);
        }
      }
    }
  }
}

/// Norms 1, 4, 2, 3 (and a tie for layer 3): heads 1 and 3, in that order.
TEST_F(ConvertTest, TopKeepsTheHeadsOfLargestNormInTheirOrder) {
  const double scales[2][4] = {{1, 4, 2, 3}, {2, 1, 2, 2}};
  const auto edit = [&](const std::string& name, int64_t row, int64_t column, double x) {
    if (name.find("v_proj.weight") == std::string::npos) return x;
    const int64_t layer = name[13] - '0', head = row / kHeadDim;
    if (layer == 0) return x;
    const double base = std::cos(static_cast<double>((row % kHeadDim) * kWidth + column));
    return scales[layer - 1][head] * base;
  };
  const fs::path source = write_source(config(4, 4), "F32", edit);
  const int64_t kept[2][2] = {{1, 3}, {0, 2}};
  for (const bool with_out : {false, true}) {
    const fs::path result = folder_ / (with_out ? "top-vo" : "top-v");
    const ConversionPlan plan = convert(source, result, kSkipV1, with_out ? "top-vo" : "top-v");
    EXPECT_EQ(plan.layers[1].values, "heads 1, 3");
    EXPECT_EQ(plan.layers[2].values, "heads 0, 2");
    const auto before = read_tensors(source), after = read_tensors(result);
    expect_only_changed(before, after, with_out ? value_and_out_tensors() : value_tensors());
    for (const int64_t layer : {1, 2}) {
      for (const char* kind : {"v_proj.weight", "v_proj.bias"}) {
        const Tensor64 &was = before.at(attention(layer, kind)),
                       &is = after.at(attention(layer, kind));
        for (int64_t r = 0; r < 2 * kHeadDim; ++r) {
          const int64_t from = kept[layer - 1][r / kHeadDim] * kHeadDim + r % kHeadDim;
          for (int64_t c = 0; c < was.columns(); ++c) EXPECT_EQ(is.at(r, c), was.at(from, c));
        }
      }
      if (!with_out) continue;
      const Tensor64 &was = before.at(attention(layer, "o_proj.weight")),
                     &is = after.at(attention(layer, "o_proj.weight"));
      for (int64_t row = 0; row < kWidth; ++row) {
        for (int64_t c = 0; c < 4 * kHeadDim; ++c) {
          const int64_t head = c / kHeadDim;
          const double expected =
              head < 2 ? was.at(row, kept[layer - 1][head] * kHeadDim + c % kHeadDim) : 0.0;
          EXPECT_EQ(is.at(row, c), expected);
        }
      }
    }
  }
}

/// W_O and W_V built so that W_O W_V = sum of s_i u_i v_i^T with known, distinct s: what is left is
/// the sum of the terms with the largest 16, and b becomes the coefficients of W_O b under them.
TEST_F(ConvertTest, SvdKeepsTheLargestSingularDirections) {
  // Columns of a Householder reflection are orthonormal.
  const auto orthonormal = [](int64_t i, int64_t j, double tilt) {
    const auto w = [tilt](int64_t k) { return 1 + tilt * static_cast<double>(k % 5); };
    double square = 0;
    for (int64_t k = 0; k < kWidth; ++k) square += w(k) * w(k);
    return (i == j ? 1.0 : 0.0) - 2 * w(i) * w(j) / square;
  };
  const auto singular = [](int64_t i) { return 0.1 + static_cast<double>((i * 7) % kWidth); };
  const auto edit = [&](const std::string& name, int64_t row, int64_t column, double x) {
    if (name.ends_with("v_proj.weight")) return singular(row) * orthonormal(column, row, 0.3);
    if (name.ends_with("o_proj.weight")) return orthonormal(row, column, -0.4);
    return x;
  };
  const fs::path source = write_source(config(4, 4), "F32", edit), result = folder_ / "result";
  convert(source, result, kSkipV1, "svd");
  const auto before = read_tensors(source), after = read_tensors(result);
  expect_only_changed(before, after, value_and_out_tensors());
  std::vector<double> sorted;
  for (int64_t i = 0; i < kWidth; ++i) sorted.push_back(singular(i));
  std::sort(sorted.rbegin(), sorted.rend());
  const double smallest_kept = sorted[2 * kHeadDim - 1];
  for (const int64_t layer : {1, 2}) {
    const Tensor64& value = after.at(attention(layer, "v_proj.weight"));
    const Tensor64& out = after.at(attention(layer, "o_proj.weight"));
    const Tensor64& bias = after.at(attention(layer, "v_proj.bias"));
    const Tensor64& bias_before = before.at(attention(layer, "v_proj.bias"));
    for (int64_t row = 0; row < kWidth; ++row) {
      for (int64_t column = 0; column < kWidth; ++column) {
        double expected = 0, product = 0;
        for (int64_t i = 0; i < kWidth; ++i) {
          if (singular(i) < smallest_kept) continue;
          expected += singular(i) * orthonormal(row, i, -0.4) * orthonormal(column, i, 0.3);
        }
        for (int64_t k = 0; k < 2 * kHeadDim; ++k) product += out.at(row, k) * value.at(k, column);
        EXPECT_NEAR(product, expected, 2e-5) << row << ' ' << column;
      }
      double expected = 0, image = 0;
      for (int64_t i = 0; i < kWidth; ++i) {
        if (singular(i) >= smallest_kept) expected += orthonormal(row, i, -0.4) * bias_before.at(i);
      }
      for (int64_t k = 0; k < 2 * kHeadDim; ++k) image += out.at(row, k) * bias.at(k);
      EXPECT_NEAR(image, expected, 2e-6);
      for (int64_t c = 2 * kHeadDim; c < 4 * kHeadDim; ++c) EXPECT_EQ(out.at(row, c), 0);
    }
    // Both factors carry the root of the singular values.
    for (int64_t k = 0; k < 2 * kHeadDim; ++k) {
      double rows = 0, columns = 0;
      for (int64_t c = 0; c < kWidth; ++c) {
        rows += value.at(k, c) * value.at(k, c);
        columns += out.at(c, k) * out.at(c, k);
      }
      EXPECT_NEAR(rows, sorted[static_cast<size_t>(k)], 1e-4);
      EXPECT_NEAR(columns, sorted[static_cast<size_t>(k)], 1e-4);
    }
  }
}

/// A model whose KV heads are equal in pairs computes the same with half of them.
TEST_F(ConvertTest, PoolingEqualHeadsChangesNothing) {
  const auto edit = [&](const std::string& name, int64_t row, int64_t column, double x) {
    if (name.find("k_proj") == std::string::npos && name.find("v_proj") == std::string::npos)
      return x;
    const int64_t pair_row = row / (2 * kHeadDim) * kHeadDim + row % kHeadDim;
    return 0.4 * std::cos(static_cast<double>(pair_row * 31 + column * 7 + name[13]));
  };
  Json json = config(4, 4);
  json["hidden_size"] = kWidth;
  const fs::path source = write_source(json, "F32", edit), result = folder_ / "result";
  const ConversionPlan plan = convert(source, result, "", "mean-v", 2);
  EXPECT_EQ(plan.config.num_key_value_heads, 2);
  EXPECT_EQ(plan.layers[0].keys, "mean of 2");
  const double a = nll_sum(source), b = nll_sum(result);
  EXPECT_NEAR(a, b, 1e-4 * std::abs(a));
}

TEST_F(ConvertTest, LayersWithoutOwnHeadsDropTheirs) {
  const fs::path source = write_source(config(4, 4)), result = folder_ / "result";
  const ConversionPlan plan =
      convert(source, result, R"({"scheme": "yoco", "start": 2})", "mean-v");
  const auto before = read_tensors(source), after = read_tensors(result);
  for (const auto& [name, tensor] : before) {
    const bool dropped =
        name.starts_with(attention(2, "k_proj")) || name.starts_with(attention(2, "v_proj"));
    EXPECT_EQ(after.contains(name), !dropped) << name;
    if (!dropped) {
      EXPECT_EQ(after.at(name).bytes, tensor.bytes) << name;
    }
  }
  EXPECT_EQ(plan.layers[2].keys, "dropped");
  EXPECT_EQ(plan.layers[1].keys, "as they were");
}

TEST_F(ConvertTest, KeysOfSkipkv1ArePooled) {
  const fs::path source = write_source(config(4, 4)), result = folder_ / "result";
  convert(source, result, R"({"scheme": "skipkv1"})", "top-v");
  const auto before = read_tensors(source), after = read_tensors(result);
  const Tensor64 &was = before.at(attention(1, "k_proj.weight")),
                 &is = after.at(attention(1, "k_proj.weight"));
  ASSERT_EQ(is.shape, (std::vector<int64_t>{2 * kHeadDim, kWidth}));
  for (int64_t r = 0; r < 2 * kHeadDim; ++r) {
    const int64_t first = r / kHeadDim * 2 * kHeadDim + r % kHeadDim;
    EXPECT_NEAR(is.at(r, 3), (was.at(first, 3) + was.at(first + kHeadDim, 3)) / 2, 1e-7);
  }
}

/// Own heads need not come first: an explicit plan's out blocks go to where its own heads are.
TEST_F(ConvertTest, OwnHeadsAnywhere) {
  const fs::path source = write_source(config(4, 4)), result = folder_ / "result";
  const std::string own = R"(["own", "own", "own", "own"])";
  const std::string mixed = R"([[1, 0], "own", [1, 2], "own"])";
  convert(
      source, result,
      fmt::format(R"({{"scheme": "explicit", "keys": [{0}, {0}, {0}], "values": [{0}, {1}, {0}]}})",
                  own, mixed),
      "top-vo");
  const auto before = read_tensors(source), after = read_tensors(result);
  const Tensor64 &was = before.at(attention(1, "o_proj.weight")),
                 &is = after.at(attention(1, "o_proj.weight"));
  // What stands in blocks 1 and 3 are two of the old blocks, in their order; 0 and 2 are silent.
  std::vector<int64_t> from;
  for (const int64_t block : {1, 3}) {
    for (int64_t old = 0; old < 4; ++old) {
      bool equal = true;
      for (int64_t r = 0; r < kWidth; ++r) {
        for (int64_t i = 0; i < kHeadDim; ++i) {
          equal = equal && is.at(r, block * kHeadDim + i) == was.at(r, old * kHeadDim + i);
        }
      }
      if (equal) from.push_back(old);
    }
  }
  ASSERT_EQ(from.size(), 2u);
  EXPECT_LT(from[0], from[1]);
  EXPECT_EQ(is.at(0, 0), 0);
  EXPECT_EQ(is.at(5, 2 * kHeadDim + 1), 0);
  EXPECT_EQ(after.at(attention(2, "v_proj.weight")).bytes,
            before.at(attention(2, "v_proj.weight")).bytes);
}

TEST_F(ConvertTest, RefusalsSayWhy) {
  const auto refused = [&](const Json& source, const std::string& sharing,
                           const std::string& method, int64_t kv_heads,
                           const std::string& expected) {
    ConvertOptions options;
    if (!sharing.empty()) options.kv_sharing = Json::parse(sharing);
    options.method = method;
    options.kv_heads = kv_heads;
    try {
      plan_conversion(parse_model_config(source, "test"), options);
      ADD_FAILURE() << "expected: " << expected;
    } catch (const ConfigError& e) {
      EXPECT_NE(std::string(e.what()).find(expected), std::string::npos) << e.what();
    }
  };
  refused(config(4, 4), R"({"scheme": "skipv1", "ratio": 0.25})", "mean-v", 0,
          "averaging needs the same number of heads in every group");
  refused(config(8, 4), kSkipV1, "svd", 0, "no meaning where several query heads share");
  refused(config(4, 4), kSkipV1, "mean", 0, "did you mean mean-v");
  refused(config(4, 4), "", "mean-v", 3, "expected a divisor of the model's 4 KV heads");
  refused(config(4, 4), R"({"scheme": "skipv1", "ratio": 0.3})", "mean-v", 0, "kv_sharing.ratio");
  Json shared = config(4, 4);
  shared["kv_sharing"] = Json::parse(kSkipV1);
  refused(shared, R"({"scheme": "yoco"})", "mean-v", 0, "project all their own keys and values");
  refused(shared, "", "mean-v", 2, "project all their own keys and values");
}

TEST_F(ConvertTest, FormatKeepsTheFunction) {
  Json json = config(4, 2);
  json["rope_style"] = "interleaved";
  json["attention_bias"] = false;
  const fs::path source = write_source(json), result = folder_ / "result";
  ConvertOptions options;
  options.model_type = "llama";
  const ImportedModel model = import_directory(source);
  ConversionPlan plan = plan_conversion(model.config, options);
  convert_model(model, plan, options, result);
  EXPECT_EQ(read_model_config(result.string()).model_type, "llama");
  const double a = nll_sum(source), b = nll_sum(result);
  EXPECT_NEAR(a, b, 1e-9 * std::abs(a));

  options.model_type = "gpt2";
  EXPECT_THROW(plan_conversion(model.config, options), ConfigError);

  // Keys that are made anew stand in the same order as queries that are not.
  const auto pooled = [&](const std::string& type, const fs::path& to) {
    options.model_type = type;
    options.kv_heads = 1;
    ConversionPlan pooling = plan_conversion(model.config, options);
    convert_model(model, pooling, options, to);
    return nll_sum(to);
  };
  const double as_heirloom = pooled("heirloom", folder_ / "pooled-heirloom");
  EXPECT_NEAR(pooled("llama", folder_ / "pooled-llama"), as_heirloom, 1e-9 * as_heirloom);
  EXPECT_GT(std::abs(as_heirloom - a), 1e-6);
}

TEST_F(ConvertTest, DtypeRoundsOnce) {
  const fs::path source = write_source(config(4, 4)), result = folder_ / "result";
  ConvertOptions options;
  options.dtype = "bfloat16";
  const ImportedModel model = import_directory(source);
  ConversionPlan plan = plan_conversion(model.config, options);
  convert_model(model, plan, options, result);
  EXPECT_EQ(read_model_config(result.string()).stored_dtype, "bfloat16");
  const auto before = read_tensors(source), after = read_tensors(result);
  for (const auto& [name, tensor] : before) {
    ASSERT_EQ(after.at(name).dtype, "BF16");
    for (size_t i = 0; i < tensor.values.size(); ++i) {
      EXPECT_EQ(
          after.at(name).values[i],
          static_cast<double>(static_cast<float>(bfloat16(static_cast<float>(tensor.values[i])))));
    }
  }
}

/// Whatever fails on the way, the target stays as it was.
TEST_F(ConvertTest, CompleteOrAbsent) {
  const fs::path source = write_source(config(4, 4)), result = folder_ / "result";
  fs::create_directories(result);
  test::write_text(result / "mine.txt", "keep");
  ImportedModel model = import_directory(source);
  model.files["more.txt"] = folder_ / "is-not-there";
  ConvertOptions options;
  options.kv_sharing = Json::parse(kSkipV1);
  ConversionPlan plan = plan_conversion(model.config, options);
  EXPECT_THROW(convert_model(model, plan, options, result), IoError);
  EXPECT_EQ(read_file(result / "mine.txt"), "keep");
  EXPECT_EQ(folder_.names(), (std::set<std::string>{"source-0", "result"}));
}

TEST(Half, RoundsToNearestEven) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const std::byte stored[2] = {std::byte(bits & 0xFF), std::byte(bits >> 8)};
    double value = 0;
    to_doubles("F16", stored, &value);
    std::byte again[2];
    from_doubles("F16", std::span(&value, 1), again);
    if (std::isnan(value)) continue;
    ASSERT_EQ(again[0], stored[0]) << bits;
    ASSERT_EQ(again[1], stored[1]) << bits;
  }
  const auto rounded = [](double x) {
    std::byte stored[2];
    from_doubles("F16", std::span(&x, 1), stored);
    double value = 0;
    to_doubles("F16", stored, &value);
    return value;
  };
  EXPECT_EQ(rounded(1 + 0x1p-11), 1);                      // a tie goes to the even neighbour
  EXPECT_EQ(rounded(1 + 0x1p-11 + 0x1p-40), 1 + 0x1p-10);  // no tie, though it is one in float32
  EXPECT_EQ(rounded(1 + 3 * 0x1p-11), 1 + 0x1p-9);
  EXPECT_EQ(rounded(65519.9), 65504);
  EXPECT_EQ(rounded(65520), std::numeric_limits<double>::infinity());
  EXPECT_EQ(rounded(0x1p-25), 0);
  EXPECT_EQ(rounded(0x1.8p-24), 0x1p-23);
  EXPECT_EQ(rounded(-0x1.1p-25), -0x1p-24);
}

}  // namespace
}  // namespace heirloom
