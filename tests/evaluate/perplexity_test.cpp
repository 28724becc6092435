// SPDX-License-Identifier: Apache-2.0
#include "heirloom/evaluate/perplexity.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <random>

#include "evaluate/tiny_model.h"
#include "heirloom/kernels/kernel_table.h"
#include "heirloom/model/load.h"
#include "heirloom/ops/kv_store.h"
#include "io/temporary_directory.h"

namespace heirloom {
namespace {

using test::TemporaryDirectory;

SequenceSet random_sequences(const std::vector<int64_t>& lengths, bool lines = true) {
  std::mt19937 random(3);
  std::uniform_int_distribution<int32_t> token(0, 299);
  SequenceSet set;
  set.name = "data.jsonl";
  for (const int64_t length : lengths) {
    for (int64_t t = 0; t < length; ++t) set.tokens.push_back(token(random));
    set.begins.push_back(static_cast<int64_t>(set.tokens.size()));
    if (lines) set.lines.push_back(set.count());
  }
  return set;
}

/// nll of every token from the second on, one sequence by itself in float64, the softmax written
/// out.
std::vector<double> direct_nll(Transformer& model, std::span<const int32_t> tokens) {
  const auto n = static_cast<int64_t>(tokens.size()) - 1;
  if (n < 1) return {};
  std::vector<int32_t> positions(static_cast<size_t>(n));
  for (int64_t t = 0; t < n; ++t) positions[static_cast<size_t>(t)] = static_cast<int32_t>(t);
  AttentionSequence s;
  s.queries = s.keys = n;
  Arena arena(Device{});
  Context context{arena};
  model.ensure_positions(n);
  ActivationKvStore store(model.stream_specs(), model.dtype(), n, {s});
  const Variable hidden = model.hidden(context, {tokens.data(), positions.data(), n}, store);
  const Tensor logits = model.logits(context, hidden.value);
  const int64_t v = logits.dim(1);
  std::vector<double> nll;
  for (int64_t t = 0; t < n; ++t) {
    const double* row = logits.as<double>() + t * v;
    double sum = 0;
    for (int64_t j = 0; j < v; ++j) sum += std::exp(row[j]);
    nll.push_back(std::log(sum) - row[tokens[static_cast<size_t>(t) + 1]]);
  }
  return nll;
}

class PerplexityTest : public testing::Test {
 protected:
  PerplexityTest() { register_kernels(); }

  static std::vector<std::vector<double>> windows_of(Transformer& model, const SequenceSet& set,
                                                     const PerplexityOptions& options,
                                                     PerplexityResult* result = nullptr) {
    std::vector<std::vector<double>> all;
    PerplexityHooks hooks;
    hooks.on_window = [&](std::span<const double> nll) {
      all.emplace_back(nll.begin(), nll.end());
    };
    const PerplexityResult r = evaluate_perplexity(model, set, options, hooks);
    if (result != nullptr) *result = r;
    return all;
  }
};

void expect_near(const std::vector<double>& got, const std::vector<double>& expected,
                 double tolerance) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], tolerance) << i;
}

TEST_F(PerplexityTest, PackedSequencesEqualEachByItself) {
  const SequenceSet set = random_sequences({9, 1, 31, 2, 0, 17, 24, 30});
  for (const char* position : {"rope", "learned"}) {
    Json config = test::tiny_config_json();
    config["position"] = position;
    const auto model = test::tiny_model(config, 0.2, Dtype::kFloat64);
    PerplexityResult result;
    const auto got = windows_of(*model, set, {.tokens_per_pass = 40}, &result);
    ASSERT_EQ(got.size(), 8u) << "a line for every sequence, those without a target too";
    double sum = 0;
    for (int64_t i = 0; i < set.count(); ++i) {
      const auto expected = direct_nll(*model, set.sequence(i));
      expect_near(got[static_cast<size_t>(i)], expected, 1e-10);
      for (const double x : expected) sum += x;
    }
    EXPECT_EQ(result.tokens, set.scorable());
    EXPECT_NEAR(result.nll_sum, sum, 1e-9);
    EXPECT_NEAR(result.perplexity(), std::exp(sum / static_cast<double>(result.tokens)), 1e-9);
    EXPECT_NEAR(result.bits_per_byte(100), sum / std::log(2.0) / 100, 1e-9);
    EXPECT_NEAR(result.word_perplexity(200), std::exp(sum / 200), 1e-9);
    EXPECT_GT(result.nll_mean(), 0);
  }
}

TEST_F(PerplexityTest, LowerPrecisionsAreNear) {
  const SequenceSet set = random_sequences({30, 12});
  const Json config = test::tiny_config_json();
  const auto exact = test::tiny_model(config, 0.2, Dtype::kFloat64);
  const double mean = evaluate_perplexity(*exact, set, {}).nll_mean();
  // The weights of the float32 model are the float64 ones, rounded.
  const auto single = test::tiny_model(config, 0.2, Dtype::kFloat32);
  EXPECT_NEAR(evaluate_perplexity(*single, set, {}).nll_mean(), mean, 1e-4);
  const auto half = test::tiny_model(config, 0.2, Dtype::kBFloat16);
  EXPECT_NEAR(evaluate_perplexity(*half, set, {}).nll_mean(), mean, 0.1);
}

TEST_F(PerplexityTest, ZeroWeightsGiveTheSizeOfTheVocabulary) {
  const auto model = test::tiny_model(test::tiny_config_json(), 0, Dtype::kFloat32);
  const PerplexityResult r = evaluate_perplexity(*model, random_sequences({20}), {});
  EXPECT_NEAR(r.perplexity(), 300, 1e-3);
}

TEST_F(PerplexityTest, SlidingEqualsItsWindowsRunOneByOne) {
  const auto model = test::tiny_model(test::tiny_config_json(), 0.2, Dtype::kFloat64);
  const SequenceSet set = random_sequences({75}, false);
  const int64_t context = 16;
  for (const int64_t stride : {1, 5, 16}) {
    const auto got =
        windows_of(*model, set, {.context = context, .stride = stride, .tokens_per_pass = 50});
    size_t k = 0;
    for (int64_t begin = 0, scored = 0; scored < 74; begin += stride, ++k) {
      const int64_t end = std::min<int64_t>(begin + context, 74);
      std::vector<double> window =
          direct_nll(*model, set.sequence(0).subspan(static_cast<size_t>(begin),
                                                     static_cast<size_t>(end - begin + 1)));
      window.erase(window.begin(), window.end() - (end - scored));
      ASSERT_LT(k, got.size());
      expect_near(got[k], window, 1e-10);
      scored = end;
    }
    EXPECT_EQ(got.size(), k);
  }
}

TEST_F(PerplexityTest, TheBudgetChangesNothing) {
  const auto model = test::tiny_model(test::tiny_config_json(), 0.2, Dtype::kFloat64);
  const SequenceSet set = random_sequences({40, 3, 29, 31});
  const double expected = evaluate_perplexity(*model, set, {.tokens_per_pass = 4096}).nll_sum;
  for (const int64_t budget : {1, 30, 33, 64}) {
    EXPECT_NEAR(evaluate_perplexity(*model, set, {.tokens_per_pass = budget}).nll_sum, expected,
                1e-9);
  }
}

TEST_F(PerplexityTest, LearnedPositionsBoundTheLength) {
  Json config = test::tiny_config_json();
  config["position"] = "learned";
  const auto model = test::tiny_model(config, 0.2, Dtype::kFloat32);
  EXPECT_NO_THROW(evaluate_perplexity(*model, random_sequences({3, 33}), {}));
  try {
    evaluate_perplexity(*model, random_sequences({3, 34}), {});
    FAIL();
  } catch (const FormatError& e) {
    EXPECT_NE(std::string(e.what()).find("data.jsonl:2"), std::string::npos) << e.what();
  }
  EXPECT_NO_THROW(evaluate_perplexity(*model, random_sequences({3, 34}), {.context = 32}));
  EXPECT_THROW(evaluate_perplexity(*model, random_sequences({90}, false), {.context = 33}),
               ConfigError);
}

TEST_F(PerplexityTest, RopeScoresPastTheModelsPositions) {
  const auto model = test::tiny_model(test::tiny_config_json(), 0.2, Dtype::kFloat64);
  const SequenceSet set = random_sequences({50});
  expect_near(windows_of(*model, set, {})[0], direct_nll(*model, set.sequence(0)), 1e-10);
}

TEST_F(PerplexityTest, MemoryGrowsWithThePass) {
  const ModelConfig config = parse_model_config(test::tiny_config_json(), "test");
  const int64_t small = perplexity_memory(config, Dtype::kFloat32, 64, 64);
  const int64_t large = perplexity_memory(config, Dtype::kFloat32, 4096, 64);
  EXPECT_GT(small, count_parameters(config).total() * 4);
  EXPECT_GT(large - small, 4032 * 32 * 4);
}

TEST_F(PerplexityTest, LoadedModelsEqualTheWrittenOnes) {
  TemporaryDirectory folder;
  const Json config = test::tiny_config_json();
  test::write_tiny_model(folder / "model", config, 0.2);
  const SequenceSet set = random_sequences({20});
  const auto written = test::tiny_model(config, 0.2, Dtype::kFloat32);
  const auto loaded = load_model(folder / "model", Device{}, Dtype::kFloat32);
  EXPECT_EQ(evaluate_perplexity(*loaded, set, {}).nll_sum,
            evaluate_perplexity(*written, set, {}).nll_sum);
  EXPECT_THROW(load_model(folder / "nothing", Device{}, Dtype::kFloat32), IoError);
}

/// Models with expected values from an independent float64 implementation.
class GoldenTest : public testing::TestWithParam<const char*> {};

TEST_P(GoldenTest, NllEqualsTheRecordedOne) {
  const char* root = std::getenv("HEIRLOOM_TEST_DATA");
  if (root == nullptr)
    GTEST_SKIP() << "golden model " << GetParam() << ": HEIRLOOM_TEST_DATA is unset";
  const fs::path folder = fs::path(root) / "golden" / GetParam();
  const Json expected = read_json_file((folder / "expected.json").string())["nll"];
  SequenceOptions reading;
  reading.vocab_size = read_model_config(folder.string()).vocab_size;
  const SequenceSet set = read_sequences(folder / "tokens.jsonl", reading);
  for (const auto& [dtype, tolerance] :
       {std::pair(Dtype::kFloat64, 2e-8), std::pair(Dtype::kFloat32, 2e-5),
        std::pair(Dtype::kBFloat16, 6e-2)}) {
    const auto model = load_model(folder, Device{}, dtype);
    size_t i = 0;
    PerplexityHooks hooks;
    hooks.on_window = [&](std::span<const double> nll) {
      ASSERT_LT(i, expected.size());
      SCOPED_TRACE(fmt::format("{} sequence {}", dtype_name(dtype), i));
      expect_near({nll.begin(), nll.end()}, expected[i].get<std::vector<double>>(), tolerance);
      ++i;
    };
    evaluate_perplexity(*model, set, {}, hooks);
    EXPECT_EQ(i, expected.size());
  }
}

std::string test_name(const testing::TestParamInfo<const char*>& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenTest,
                         testing::Values("cla", "cla-v", "explicit", "gpt2", "gqa", "mha", "mqa",
                                         "qk-norm", "skipkv1", "skipv0", "skipv1", "skipv1-25",
                                         "skipv1-dynamic", "skipv1-gpt2", "skipv1-gqa",
                                         "skipv1-odd-even", "skipv1-pooling", "skipv1-yoco",
                                         "skipv2", "split", "svformer", "tied-interleaved", "yoco",
                                         "yoco-v"),
                         test_name);

}  // namespace
}  // namespace heirloom
