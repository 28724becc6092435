// SPDX-License-Identifier: Apache-2.0
//
// Micro-batches, initial values, the optimizer and the memory plan.
#include "heirloom/train/step.h"
#include "heirloom/core/memory.h"

#include <gtest/gtest.h>

#include <cmath>

#include "heirloom/train/optimizer.h"
#include "train/tiny_run.h"

namespace heirloom {
namespace {
using namespace test;

struct Initial {
  explicit Initial(const Json& config, Dtype dtype = Dtype::kFloat32)
      : model(parse_model_config(config, "test"), Device{}, dtype) {
    const ThreadCount threads(1);
    initialize(model.parameters(), 9, {0.02, 0.5}, model.parameters().data(), dtype);
    for (const NamedParameter& p : model.parameters().all()) {
      for (const ParameterSlice& s : p.slices) {
        std::vector<double>& values = tensors[s.name];
        for (int64_t i = s.begin * p.columns(); i < s.end * p.columns(); ++i) {
          values.push_back(dtype == Dtype::kFloat64 ? p.value.as<double>()[i]
                                                    : static_cast<double>(p.value.as<float>()[i]));
        }
      }
    }
  }
  Transformer model;
  std::map<std::string, std::vector<double>> tensors;
};

TEST(InitialValues, DoNotDependOnThePlan) {
  Json mha = tiny_model_json();
  mha["kv_sharing"] = {{"scheme", "none"}};
  const Initial full(mha);
  for (const char* sharing :
       {R"({"scheme": "skipv1"})", R"({"scheme": "skipv1", "injection": "dynamic"})",
        R"({"scheme": "skipkv1", "ratio": 0.25})", R"({"scheme": "cla"})"}) {
    Json config = mha;
    config["kv_sharing"] = Json::parse(sharing);
    const Initial other(config);
    const size_t head = 4 * 16;  // head_dim x hidden_size
    for (const auto& [name, values] : other.tensors) {
      const bool key = has(name, "k_proj"), value = has(name, "v_proj");
      const std::vector<double>& whole = full.tensors.at(name);
      if (!key && !value) {
        EXPECT_EQ(values, whole) << name;
        continue;
      }
      const int64_t layer = name.at(std::string("model.layers.").size()) - '0';
      const std::vector<int64_t> own =
          key ? other.model.plan().own_key_heads(layer) : other.model.plan().own_value_heads(layer);
      ASSERT_EQ(values.size(), own.size() * head) << name;
      for (size_t i = 0; i < own.size(); ++i) {
        const auto from = whole.begin() + own[i] * static_cast<ptrdiff_t>(head);
        EXPECT_TRUE(std::equal(from, from + static_cast<ptrdiff_t>(head),
                               values.begin() + static_cast<ptrdiff_t>(i * head)))
            << sharing << " " << name << " head " << own[i];
      }
    }
  }
}

TEST(InitialValues, HaveTheirSpreadAndDiffer) {
  const Initial a(tiny_model_json(), Dtype::kFloat64);
  const auto spread = [](const std::vector<double>& v) {
    double squares = 0;
    for (const double x : v) squares += x * x;
    return std::sqrt(squares / static_cast<double>(v.size()));
  };
  EXPECT_NEAR(spread(a.tensors.at("model.embed_tokens.weight")), 0.02, 0.002);
  EXPECT_NEAR(spread(a.tensors.at("model.layers.1.mlp.gate_proj.weight")), 0.02, 0.002);
  EXPECT_NEAR(spread(a.tensors.at("model.layers.1.mlp.down_proj.weight")), 0.01, 0.001)
      << "writes the residual";
  EXPECT_NEAR(spread(a.tensors.at("model.layers.2.self_attn.o_proj.weight")), 0.01, 0.0015);
  EXPECT_EQ(a.tensors.at("model.norm.weight"), std::vector<double>(16, 1.0));
  EXPECT_NE(a.tensors.at("model.layers.0.self_attn.q_proj.weight"),
            a.tensors.at("model.layers.1.self_attn.q_proj.weight"));
  // float32 is the float64 value rounded.
  const Initial narrow(tiny_model_json());
  for (const auto& [name, values] : a.tensors) {
    for (size_t i = 0; i < values.size(); ++i) {
      ASSERT_EQ(narrow.tensors.at(name)[i], static_cast<double>(static_cast<float>(values[i])))
          << name;
    }
  }
}

/// nll of a hand-filled batch of one document.
std::vector<double> document_nll(Transformer& model, const std::vector<int32_t>& tokens,
                                 const std::vector<int32_t>& targets) {
  MicroBatch batch(1, static_cast<int64_t>(tokens.size()));
  batch.tokens = tokens;
  batch.targets = targets;
  Arena arena(Device{});
  arena.poison(true);
  evaluation_pass(Context{arena}, model, on_host(batch.host()));
  return batch.nll;
}

TEST(MicroBatch, CausalDocumentsEqualDocumentsOnTheirOwn) {
  register_kernels();
  const TemporaryDirectory directory;
  write_shard(directory / "a.bin", 8 * 20 + 1, 5);
  const TokenDataset data({directory / "a.bin"}, 20, kVocab);
  for (const bool learned : {false, true}) {
    Json config = tiny_model_json();
    if (learned) config["position"] = "learned";
    Transformer model(parse_model_config(config, "test"), Device{}, Dtype::kFloat64);
    initialize(model.parameters(), 4, {0.3, 1}, model.parameters().data(), Dtype::kFloat64);
    model.ensure_positions(20);
    MicroBatch batch(4, 20);
    batch.begin(0);
    for (int64_t b = 0; b < 4; ++b) batch.load(b, data, b + 1, DocumentMask::kCausal, {kEos});
    EXPECT_GT(batch.sequences.size(), 8u);
    Arena arena(Device{});
    evaluation_pass(Context{arena}, model, on_host(batch.host()));
    std::vector<double> apart;
    size_t begin = 0;
    for (size_t i = 0; i < batch.tokens.size(); ++i) {
      EXPECT_EQ(batch.positions[i], static_cast<int32_t>(i - begin));
      if (batch.tokens[i] != kEos && (i + 1) % 20 != 0) continue;
      const auto part = [&](const std::vector<int32_t>& v) {
        return std::vector<int32_t>(v.begin() + static_cast<ptrdiff_t>(begin),
                                    v.begin() + static_cast<ptrdiff_t>(i + 1));
      };
      const std::vector<double> nll = document_nll(model, part(batch.tokens), part(batch.targets));
      apart.insert(apart.end(), nll.begin(), nll.end());
      begin = i + 1;
    }
    ASSERT_EQ(apart.size(), batch.nll.size());
    for (size_t i = 0; i < apart.size(); ++i) EXPECT_NEAR(apart[i], batch.nll[i], 1e-12) << i;
    // Without the mask tokens see what stands before their document.
    batch.begin(0);
    for (int64_t b = 0; b < 4; ++b) batch.load(b, data, b + 1, DocumentMask::kNone, {kEos});
    EXPECT_EQ(batch.sequences.size(), 4u);
    evaluation_pass(Context{arena}, model, on_host(batch.host()));
    double difference = 0;
    for (size_t i = 0; i < apart.size(); ++i)
      difference = std::max(difference, std::abs(apart[i] - batch.nll[i]));
    EXPECT_GT(difference, 1e-3);
  }
}

TEST(MicroBatch, PaddingIsNotScored) {
  register_kernels();
  const TemporaryDirectory directory;
  write_shard(directory / "a.bin", 33, 5);
  const TokenDataset data({directory / "a.bin"}, 16, kVocab);
  Transformer model(parse_model_config(tiny_model_json(), "test"), Device{}, Dtype::kFloat64);
  initialize(model.parameters(), 4, {0.3, 1}, model.parameters().data(), Dtype::kFloat64);
  model.ensure_positions(16);
  std::vector<std::byte> gradients(static_cast<size_t>(model.parameters().elements() * 8));
  model.parameters().attach_gradients(gradients.data());
  const auto run = [&](int64_t count) {
    MicroBatch batch(count, 16);
    batch.begin(0);
    batch.load(0, data, 1, DocumentMask::kNone, {});
    for (int64_t b = 1; b < count; ++b) batch.load_padding(b);
    std::fill(gradients.begin(), gradients.end(), std::byte{0});
    Arena arena(Device{});
    arena.poison(true);
    train_pass(Context{arena}, model, on_host(batch.host()), 0.125, Recompute::kNone);
    for (int64_t i = 16; i < 16 * count; ++i) EXPECT_EQ(batch.nll[static_cast<size_t>(i)], 0.0);
    std::vector<double> all(batch.nll.begin(), batch.nll.begin() + 16);
    const double* g = reinterpret_cast<const double*>(gradients.data());
    all.insert(all.end(), g, g + model.parameters().elements());
    return all;
  };
  const std::vector<double> alone = run(1), padded = run(3);
  for (size_t i = 0; i < alone.size(); ++i) ASSERT_NEAR(alone[i], padded[i], 1e-13) << i;
}

TEST(Optimizer, EqualsAScalarLoop) {
  register_kernels();
  for (const Dtype dtype : {Dtype::kFloat64, Dtype::kFloat32, Dtype::kBFloat16}) {
    for (const bool decay_embeddings : {true, false}) {
      Json config = tiny_model_json();
      config["position"] = "learned";
      config["mlp_bias"] = true;
      Transformer model(parse_model_config(config, "test"), Device{}, dtype);
      const OptimizerConfig o{0.01, 0.8, 0.9, 1e-6, 0.3, 0.7, decay_embeddings};
      Optimizer optimizer(model.parameters(), o);
      initialize(model.parameters(), 1, {0.2, 1}, optimizer.weights(), optimizer.weights_dtype());
      optimizer.publish_weights();
      const bool wide = optimizer.weights_dtype() == Dtype::kFloat64;
      ASSERT_EQ(wide, dtype == Dtype::kFloat64);
      const auto weight = [&](int64_t i) {
        return wide ? static_cast<double*>(optimizer.weights())[i]
                    : static_cast<double>(static_cast<float*>(optimizer.weights())[i]);
      };
      struct Element {
        double w, m = 0, v = 0, decay = 0;
        int64_t at;
      };
      std::vector<Element> twin;
      for (const NamedParameter& p : model.parameters().all()) {
        const std::string& name = p.slices[0].name;
        const bool vector = has(name, "norm") || has(name, ".bias"),
                   embedding = has(name, "embed_");
        for (int64_t i = 0; i < p.numel(); ++i) {
          twin.push_back({weight(p.offset + i), 0, 0,
                          vector || (embedding && !decay_embeddings) ? 0 : 0.3, p.offset + i});
        }
      }
      for (int64_t step = 1; step <= 5; ++step) {
        optimizer.zero_gradients();
        double squares = 0;
        size_t k = 0;
        std::vector<double> gradients;
        for (const NamedParameter& p : model.parameters().all()) {
          for (int64_t i = 0; i < p.numel(); ++i, ++k) {
            const uint32_t bits =
                philox(static_cast<uint64_t>(step), {static_cast<uint32_t>(k), 0, 0, 0})[0];
            const float g = uniform_from_bits(bits) - 0.5f;
            if (wide)
              p.grad.as<double>()[i] = static_cast<double>(g);
            else
              p.grad.as<float>()[i] = g;
            gradients.push_back(static_cast<double>(g));
            squares += gradients.back() * gradients.back();
          }
        }
        const double lr = 0.01 * static_cast<double>(step);
        optimizer.prepare(step, lr, 1);
        optimizer.update();
        const double norm = optimizer.gradient_norm();
        ASSERT_NEAR(norm, std::sqrt(squares), 1e-6 * norm);
        const double scale = std::min(1.0, 0.7 / (norm + 1e-6));
        EXPECT_LT(scale, 0.5) << "clipping is at work";
        for (size_t i = 0; i < twin.size(); ++i) {
          Element& e = twin[i];
          const double g = gradients[i] * scale;
          e.m = 0.8 * e.m + 0.2 * g;
          e.v = 0.9 * e.v + 0.1 * g * g;
          const double m = e.m / (1 - std::pow(0.8, step)), v = e.v / (1 - std::pow(0.9, step));
          e.w -= lr * (m / (std::sqrt(v) + 1e-6) + e.decay * e.w);
        }
      }
      for (const Element& e : twin) ASSERT_NEAR(weight(e.at), e.w, wide ? 1e-13 : 2e-6) << e.at;
      if (dtype == Dtype::kBFloat16) {
        for (const NamedParameter& p : model.parameters().all()) {
          for (int64_t i = 0; i < p.numel(); ++i) {
            ASSERT_EQ(p.value.as<bfloat16>()[i].bits,
                      bfloat16(static_cast<float>(weight(p.offset + i))).bits);
          }
        }
      }
    }
  }
}

TEST(Memory, StateFollowsTheDtype) {
  const TemporaryDirectory directory;
  const Json json = tiny_run_json(directory);
  for (const char* dtype : {"float32", "bfloat16", "float64"}) {
    const RunConfig c = with(json, {std::string("train.dtype=") + dtype});
    const RunMemory m = plan_step(c, 4).memory;
    Transformer model(c.model, Device{DeviceKind::kMeta, 0}, c.train.dtype);
    const int64_t n = model.parameters().elements(),
                  wide = c.train.dtype == Dtype::kFloat64 ? 8 : 4;
    EXPECT_EQ(m.weights, n * dtype_size(c.train.dtype));
    EXPECT_EQ(m.master, c.train.dtype == Dtype::kBFloat16 ? 4 * n : 0);
    EXPECT_EQ(m.gradients, wide * n);
    EXPECT_EQ(m.moments, 2 * wide * n);
    EXPECT_GE(m.activations, m.activations_floor);
    EXPECT_GT(m.activations_floor, 0);
  }
}

TEST(Memory, RecomputationAndSmallerMicroBatchesNeedLess) {
  const TemporaryDirectory directory;
  Json json = tiny_run_json(directory);
  json["model"]["num_hidden_layers"] = 8;
  json["train"]["sequence_length"] = 32;
  const RunConfig stored = with(json, {}), again = with(json, {"train.recompute=true"});
  const StepPlan a = plan_step(stored, 4), b = plan_step(again, 4);
  EXPECT_LT(b.memory.activations_floor, a.memory.activations_floor);
  EXPECT_LT(plan_step(stored, 1).memory.activations, a.memory.activations);
  EXPECT_EQ(a.flops_per_token, b.flops_per_token) << "MFU does not count recomputation";
  EXPECT_GT(b.cost.flops, a.cost.flops);
}

TEST(Memory, ARunThatCannotFitIsRefused) {
  const TemporaryDirectory directory;
  const Json json = tiny_run_json(directory);
  const RunConfig c = with(json, {"train.batch_size=12"});
  const StepPlan plan = plan_step(c, 12);
  EXPECT_NO_THROW(check_memory(c, plan, plan.memory.total()));
  // Room for 4 but not for 6: the largest divisor of 12 that fits is named.
  const int64_t four = plan_step(c, 4).memory.total(), six = plan_step(c, 6).memory.total();
  ASSERT_LT(four, six);
  const auto refused = [&](int64_t limit) {
    return problem<OutOfMemoryError>([&] { check_memory(c, plan, limit); });
  };
  const std::string text = refused(six - 1);
  EXPECT_TRUE(has(text, "with train.micro_batch_size 12") &&
              has(text, "train.micro_batch_size 4 fits"))
      << text;
  EXPECT_TRUE(has(refused(six), "train.micro_batch_size 6 fits"));
  EXPECT_TRUE(has(refused(plan.memory.total() - 1), "train.micro_batch_size 6 fits"));
  EXPECT_TRUE(has(refused(1), "no micro-batch fits; try train.recompute true"));
  TrainerOptions options;
  options.memory_limit = six - 1;
  EXPECT_THROW(train_quietly(c, options), OutOfMemoryError);
  EXPECT_FALSE(fs::exists(c.output)) << "refused before anything is written";
}

}  // namespace
}  // namespace heirloom
