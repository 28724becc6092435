// SPDX-License-Identifier: Apache-2.0
//
// Every sharing scheme, trained: values and gradients against the composed twin, recomputation,
// checkpoints.
#include <gtest/gtest.h>

#include <numbers>

#include "heirloom/model/checkpoint.h"
#include "heirloom/ops/tape.h"
#include "support/variants.h"

namespace heirloom::testing {
namespace {

constexpr int64_t kSequences = 2, kLength = 11;

struct Batch {
  std::vector<int32_t> tokens, targets, positions;
  std::vector<AttentionSequence> sequences;
};

Batch make_batch(int64_t vocab) {
  Batch b;
  for (int64_t i = 0; i < kSequences * kLength; ++i) {
    b.tokens.push_back(
        static_cast<int32_t>(mix_key(3, static_cast<uint64_t>(i)) % static_cast<uint64_t>(vocab)));
    b.targets.push_back(i % 7 == 5 ? -1
                                   : static_cast<int32_t>(mix_key(4, static_cast<uint64_t>(i)) %
                                                          static_cast<uint64_t>(vocab)));
    b.positions.push_back(static_cast<int32_t>(i % kLength));
  }
  for (int64_t s = 0; s < kSequences; ++s) {
    AttentionSequence a;
    a.query_row = a.key_row = s * kLength;
    a.queries = a.keys = kLength;
    a.dropout_sequence = static_cast<uint32_t>(s);
    b.sequences.push_back(a);
  }
  return b;
}

struct Trained {
  std::vector<double> nll;
  std::vector<std::byte> gradients;
};

/// One forward and backward pass; the model must hold its weights.
Trained train_once(Transformer& model, const Batch& batch, Recompute recompute,
                   double dropout_rate) {
  const Dtype grad_dtype = accumulate_dtype(model.dtype());
  Trained result;
  result.gradients.assign(
      static_cast<size_t>(model.parameters().elements() * dtype_size(grad_dtype)), std::byte{0});
  result.nll.assign(batch.tokens.size(), NAN);
  model.parameters().attach_gradients(result.gradients.data());
  model.ensure_positions(kLength);
  Arena arena(Device{});
  arena.poison(true);
  Tape tape;
  Context context{arena, &tape};
  context.dropout = {dropout_rate, dropout_rate, dropout_rate, 99, 0, kLength};
  const int64_t n = static_cast<int64_t>(batch.tokens.size());
  ActivationKvStore store(model.stream_specs(), model.dtype(), n, batch.sequences);
  model.loss(context, {batch.tokens.data(), batch.positions.data(), n}, store, batch.targets.data(),
             0.5, result.nll.data(), recompute);
  tape.backward(context);
  return result;
}

double twin_loss(const Twin& twin, const Batch& batch) {
  double sum = 0;
  for (int64_t s = 0; s < kSequences; ++s) {
    const auto part = [&](const std::vector<int32_t>& v) {
      return std::vector<int32_t>(v.begin() + s * kLength, v.begin() + (s + 1) * kLength);
    };
    sum += twin.nll(part(batch.tokens), part(batch.targets));
  }
  return sum;
}

class VariantTest : public ::testing::TestWithParam<Variant> {
 protected:
  static void SetUpTestSuite() { register_kernels(); }
};

TEST_P(VariantTest, ValuesAndGradientsEqualTheTwin) {
  const ModelConfig config = variant_config(GetParam());
  Transformer model(config, Device{}, Dtype::kFloat64);
  Twin twin(config, random_weights(model.parameters(), 1));
  put_weights(model.parameters(), twin.weights);
  const Batch batch = make_batch(config.vocab_size);
  const Trained trained = train_once(model, batch, Recompute::kNone, 0);
  double sum = 0;
  for (const double nll : trained.nll) sum += nll;
  const double expected = twin_loss(twin, batch);
  EXPECT_NEAR(sum, expected, 1e-11 * std::abs(expected));

  // One random direction per stored tensor, the twin's central difference against the model's
  // gradient.
  for (const NamedParameter& p : model.parameters().all()) {
    for (const ParameterSlice& s : p.slices) {
      std::vector<double>& w = twin.weights.at(s.name);
      const std::vector<double> kept = w;
      const double* gradient = p.grad.as<double>() + s.begin * p.columns();
      double along = 0, norm = 0;
      std::vector<double> direction(w.size());
      for (size_t i = 0; i < w.size(); ++i) {
        const auto bits =
            philox(7, {static_cast<uint32_t>(i), static_cast<uint32_t>(hash_name(s.name)), 0, 0});
        direction[i] = normals_from_bits(bits[0], bits[1])[0];
        along += 2 * gradient[i] * direction[i];  // the pass scaled the loss by one half
        norm += 4 * gradient[i] * gradient[i];
      }
      const double h = 1e-5;
      for (size_t i = 0; i < w.size(); ++i) w[i] = kept[i] + h * direction[i];
      const double up = twin_loss(twin, batch);
      for (size_t i = 0; i < w.size(); ++i) w[i] = kept[i] - h * direction[i];
      const double down = twin_loss(twin, batch);
      w = kept;
      EXPECT_NEAR(along, (up - down) / (2 * h),
                  1e-7 * (1 + std::sqrt(norm) * std::sqrt(static_cast<double>(w.size()))))
          << s.name;
    }
  }
}

double gradient_at(const NamedParameter& p, int64_t i) {
  return p.grad.dtype() == Dtype::kFloat64 ? p.grad.as<double>()[i]
                                           : static_cast<double>(p.grad.as<float>()[i]);
}

/// || a - b || / || b || of the gradients over all parameters.
double gradient_distance(const ParameterStore& a, const ParameterStore& b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.all().size(); ++i) {
    for (int64_t j = 0; j < a.all()[i].numel(); ++j) {
      const double x = gradient_at(a.all()[i], j), y = gradient_at(b.all()[i], j);
      difference += (x - y) * (x - y);
      norm += y * y;
    }
  }
  return std::sqrt(difference / norm);
}

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

// The yardstick is what rounding the weights alone does to the float64 model: a step in the narrow
// dtype rounds about as many activations as there are weights on a path, so it may err a few times
// as much. A wrong kernel errs by orders more.
TEST_P(VariantTest, LowPrecisionErrsAsRoundedWeightsDo) {
  const ModelConfig config = variant_config(GetParam());
  const Batch batch = make_batch(config.vocab_size);
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16}) {
    Transformer low(config, Device{}, dtype), exact(config, Device{}, Dtype::kFloat64);
    Transformer rounded(config, Device{}, Dtype::kFloat64);
    auto weights = random_weights(low.parameters(), 1);
    put_weights(low.parameters(), weights);
    put_weights(exact.parameters(), weights);
    for (auto& [name, w] : weights) {
      for (double& x : w) {
        const float narrow = static_cast<float>(x);
        x = dtype == Dtype::kFloat32 ? narrow : static_cast<float>(bfloat16(narrow));
      }
    }
    put_weights(rounded.parameters(), weights);
    const Trained a = train_once(low, batch, Recompute::kNone, 0);
    const Trained b = train_once(exact, batch, Recompute::kNone, 0);
    const Trained yardstick = train_once(rounded, batch, Recompute::kNone, 0);
    // float32 also sums in float32, which bfloat16's sums do not feel.
    const double factor = dtype == Dtype::kFloat32 ? 32 : 8;
    EXPECT_LT(largest_difference(a.nll, b.nll), factor * largest_difference(yardstick.nll, b.nll))
        << dtype_name(dtype);
    EXPECT_LT(gradient_distance(low.parameters(), exact.parameters()),
              factor * gradient_distance(rounded.parameters(), exact.parameters()))
        << dtype_name(dtype);
  }
}

TEST_P(VariantTest, RecomputedEqualsStoredBitForBit) {
  const ModelConfig config = variant_config(GetParam());
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16}) {
    Transformer model(config, Device{}, dtype);
    put_weights(model.parameters(), random_weights(model.parameters(), 2));
    const Batch batch = make_batch(config.vocab_size);
    for (const double rate : {0.0, 0.2}) {
      const Trained stored = train_once(model, batch, Recompute::kNone, rate);
      const Trained again = train_once(model, batch, Recompute::kBlock, rate);
      EXPECT_EQ(stored.nll, again.nll) << dtype_name(dtype) << " dropout " << rate;
      EXPECT_TRUE(stored.gradients == again.gradients) << dtype_name(dtype) << " dropout " << rate;
    }
  }
}

TEST_P(VariantTest, CheckpointRoundTripKeepsEveryBit) {
  const ModelConfig config = variant_config(GetParam());
  Transformer model(config, Device{}, Dtype::kFloat32);
  put_weights(model.parameters(), random_weights(model.parameters(), 5));
  const fs::path directory = fs::path(::testing::TempDir()) / ("round_trip_" + GetParam().name);
  fs::create_directories(directory);
  write_model(directory, config, model.parameters(), model.parameters().data(), Dtype::kFloat32,
              Dtype::kFloat32, {});
  const ModelConfig read = read_model_config(directory.string());
  Transformer copy(read, Device{}, Dtype::kFloat32);
  load_weights(directory, read, copy.parameters(), copy.parameters().data(), Dtype::kFloat32);
  ASSERT_EQ(copy.parameters().elements(), model.parameters().elements());
  EXPECT_EQ(0, std::memcmp(copy.parameters().data(), model.parameters().data(),
                           static_cast<size_t>(model.parameters().elements() * 4)));
  EXPECT_EQ(copy.plan().keys, model.plan().keys);
  EXPECT_EQ(copy.plan().values, model.plan().values);
  EXPECT_EQ(count_parameters(read).total(), model.parameters().count());
  fs::remove_all(directory);
}

INSTANTIATE_TEST_SUITE_P(Schemes, VariantTest, ::testing::ValuesIn(variants()),
                         [](const ::testing::TestParamInfo<Variant>& test) {
                           return test.param.name;
                         });

TEST(Identities, GqaEqualsMhaWithRepeatedWeights) {
  register_kernels();
  const ModelConfig gqa =
      variant_config({"gqa", R"({"num_key_value_heads": 2, "kv_sharing": {"scheme": "skipv1"}})"});
  const ModelConfig mha = variant_config({"mha", R"({"kv_sharing": {"scheme": "skipv1"}})"});
  Transformer narrow(gqa, Device{}, Dtype::kFloat64), wide(mha, Device{}, Dtype::kFloat64);
  auto weights = random_weights(narrow.parameters(), 11);
  put_weights(narrow.parameters(), weights);
  for (auto& [name, w] : weights) {
    if (name.find("k_proj") == std::string::npos && name.find("v_proj") == std::string::npos)
      continue;
    const size_t head = static_cast<size_t>(gqa.head_dim * gqa.hidden_size);
    std::vector<double> repeated;
    for (size_t h = 0; h < w.size() / head; ++h) {
      for (int copy = 0; copy < 2; ++copy) {
        repeated.insert(repeated.end(), w.begin() + static_cast<ptrdiff_t>(h * head),
                        w.begin() + static_cast<ptrdiff_t>((h + 1) * head));
      }
    }
    w = std::move(repeated);
  }
  put_weights(wide.parameters(), weights);
  const Batch batch = make_batch(gqa.vocab_size);
  const Trained a = train_once(narrow, batch, Recompute::kNone, 0),
                b = train_once(wide, batch, Recompute::kNone, 0);
  for (size_t i = 0; i < a.nll.size(); ++i) EXPECT_NEAR(a.nll[i], b.nll[i], 1e-12);
}

}  // namespace
}  // namespace heirloom::testing
