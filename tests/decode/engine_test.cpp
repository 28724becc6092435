// SPDX-License-Identifier: Apache-2.0
//
// Every sharing scheme, generating: prefill and decode against the composed twin, bytes in the
// cache, independence of the batch.
#include <gtest/gtest.h>

#include <set>

#include "heirloom/decode/engine.h"
#include "support/variants.h"

namespace heirloom::testing {
namespace {

std::vector<int32_t> prompt_of(int64_t length, uint64_t seed, int64_t vocab) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < length; ++i) {
    tokens.push_back(static_cast<int32_t>(mix_key(seed, static_cast<uint64_t>(i)) %
                                          static_cast<uint64_t>(vocab)));
  }
  return tokens;
}

GenerationRequest request_of(const std::string& id, std::vector<int32_t> prompt,
                             int64_t new_tokens) {
  GenerationRequest r;
  r.id = id;
  r.prompt = std::move(prompt);
  r.max_new_tokens = new_tokens;
  r.logprobs = true;
  r.sampling.temperature = 0;
  return r;
}

std::map<std::string, GenerationResult> generate(Engine& engine,
                                                 std::vector<GenerationRequest> requests) {
  std::map<std::string, GenerationResult> results;
  size_t at = 0;
  engine.run(
      [&]() -> std::optional<GenerationRequest> {
        return at < requests.size() ? std::optional(requests[at++]) : std::nullopt;
      },
      [&](GenerationResult r) { results[r.id] = std::move(r); });
  return results;
}

EngineOptions options_for(int64_t sequences, int64_t tokens) {
  EngineOptions o;
  o.max_sequences = sequences;
  o.max_tokens = tokens;
  return o;
}

class EngineVariantTest : public ::testing::TestWithParam<Variant> {
 protected:
  static void SetUpTestSuite() { register_kernels(); }
};

TEST_P(EngineVariantTest, PrefillAndDecodeEqualTheFullForward) {
  const ModelConfig config = variant_config(GetParam());
  Transformer model(config, Device{}, Dtype::kFloat64);
  const Twin twin(config, random_weights(model.parameters(), 1));
  put_weights(model.parameters(), twin.weights);
  // Lengths around a cache block and a prefill chunk.
  std::vector<GenerationRequest> requests;
  for (const int64_t length : {1, 63, 64, 65, 140}) {
    requests.push_back(
        request_of(std::to_string(length), prompt_of(length, 3, config.vocab_size), 9));
  }
  Engine engine(model, nullptr, options_for(3, 160));
  const auto results = generate(engine, requests);
  ASSERT_EQ(results.size(), requests.size());
  for (const GenerationRequest& r : requests) {
    const GenerationResult& result = results.at(r.id);
    ASSERT_EQ(result.error, "");
    ASSERT_EQ(result.tokens.size(), 9u);
    std::vector<int32_t> all = r.prompt;
    all.insert(all.end(), result.tokens.begin(), result.tokens.end());
    const Twin::Rows logits = twin.logits(all);
    for (size_t i = 0; i < 9; ++i) {
      const std::vector<double>& z = logits[r.prompt.size() + i - 1];
      EXPECT_EQ(result.tokens[i],
                static_cast<int32_t>(std::max_element(z.begin(), z.end()) - z.begin()))
          << "prompt of " << r.id << ", new token " << i;
      // The engine's logits pass through float32 on their way to the sampler.
      EXPECT_NEAR(result.logprobs[i], Twin::log_probability(z, result.tokens[i]), 2e-6);
    }
  }
}

TEST_P(EngineVariantTest, CacheHoldsExactlyTheBytesOfTheFormula) {
  const ModelConfig config = variant_config(GetParam());
  Transformer model(config, Device{}, Dtype::kFloat64);
  put_weights(model.parameters(), random_weights(model.parameters(), 1));
  Engine engine(model, nullptr, options_for(2, 96));
  PagedKvCache& cache = engine.cache();
  constexpr uint64_t kUnwritten = 0x7ff8dead7ff8beef;  // a NaN that no computation gives
  for (size_t s = 0; s < cache.stream_count(); ++s) {
    const Tensor& stream = cache.stream(static_cast<int32_t>(s));
    std::fill_n(static_cast<uint64_t*>(stream.data()), stream.numel(), kUnwritten);
  }
  generate(engine, {request_of("a", prompt_of(70, 1, config.vocab_size), 20),
                    request_of("b", prompt_of(5, 2, config.vocab_size), 4)});
  int64_t written = 0;
  for (size_t s = 0; s < cache.stream_count(); ++s) {
    const Tensor& stream = cache.stream(static_cast<int32_t>(s));
    const int64_t padding = kKvBlockTokens * stream.dim(1);  // block 0 belongs to nobody
    const uint64_t* words = static_cast<const uint64_t*>(stream.data());
    int64_t here = 0;
    for (int64_t i = padding; i < stream.numel(); ++i) here += words[i] != kUnwritten;
    EXPECT_EQ(here * 8, engine.statistics().streams[s].used_bytes) << "stream " << s;
    written += here;
  }
  // A token is cached when it is fed: all but the last generated one.
  const int64_t tokens = (70 + 20 - 1) + (5 + 4 - 1);
  EXPECT_EQ(engine.statistics().cached_tokens, tokens);
  EXPECT_EQ(written, tokens * model.layout().elements_per_token());
  const Json report = kv_report(config, model.layout(), Dtype::kFloat64);
  EXPECT_EQ(written * 8, tokens * report.at("bytes_per_token").get<int64_t>());
}

TEST_P(EngineVariantTest, ResultsDoNotDependOnTheBatch) {
  const ModelConfig config = variant_config(GetParam());
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16}) {
    Transformer model(config, Device{}, dtype);
    put_weights(model.parameters(), random_weights(model.parameters(), 1));
    std::vector<GenerationRequest> requests;
    for (const int64_t length : {2, 17, 64, 129, 30}) {
      requests.push_back(
          request_of(std::to_string(length), prompt_of(length, 5, config.vocab_size), 12));
      requests.back().sampling.temperature = length == 17 ? 0.9 : 0.0;
    }
    Engine together(model, nullptr, options_for(5, 150));
    const auto batch = generate(together, requests);
    for (const GenerationRequest& r : requests) {
      Engine alone(model, nullptr, options_for(1, 150));
      const GenerationResult single = generate(alone, {r}).at(r.id);
      EXPECT_EQ(single.tokens, batch.at(r.id).tokens) << dtype_name(dtype) << " prompt of " << r.id;
      EXPECT_EQ(single.logprobs, batch.at(r.id).logprobs)
          << dtype_name(dtype) << " prompt of " << r.id;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Schemes, EngineVariantTest, ::testing::ValuesIn(variants()),
                         [](const ::testing::TestParamInfo<Variant>& test) {
                           return test.param.name;
                         });

Variant variant_named(const std::string& name) {
  for (const Variant& v : variants()) {
    if (v.name == name) return v;
  }
  throw std::logic_error(name);
}

TEST(Engine, DecodeRunsOneRowPerNewTokenWhateverThePrefix) {
  register_kernels();
  const ModelConfig config = variant_config(variant_named("skipv1"));
  Transformer model(config, Device{}, Dtype::kFloat32);
  put_weights(model.parameters(), random_weights(model.parameters(), 1));
  for (const int64_t length : {1, 200}) {
    Engine engine(model, nullptr, options_for(1, 256));
    generate(engine, {request_of("x", prompt_of(length, 1, config.vocab_size), 30)});
    EXPECT_EQ(engine.statistics().decode_rows,
              29);  // the first new token comes from the prompt's last row
    EXPECT_EQ(engine.statistics().prefill_tokens, length);
  }
}

/// Matrix products of a pass, by the kernels' own cost functions.
double prefill_flops(const ModelConfig& config, int64_t rows, int64_t wanted_rows) {
  const Device meta{DeviceKind::kMeta, 0};
  Transformer model(config, meta, Dtype::kFloat32);
  model.ensure_positions(rows);
  Arena arena(meta);
  KernelCost cost;
  Context context{arena};
  context.cost = &cost;
  std::vector<int32_t> tokens(static_cast<size_t>(rows), 0),
      positions(static_cast<size_t>(rows), 0);
  std::vector<int32_t> wanted(static_cast<size_t>(wanted_rows), static_cast<int32_t>(rows - 1));
  AttentionSequence s;
  s.queries = s.keys = rows;
  std::vector<AttentionSequence> one(static_cast<size_t>(wanted_rows), s);
  for (AttentionSequence& w : one) w.queries = 1;
  ActivationKvStore store(model.stream_specs(), Dtype::kFloat32, rows, {s});
  const WantedRows want{wanted, wanted, one};
  model.hidden(context, {tokens.data(), positions.data(), rows}, store, Recompute::kNone, &want);
  return cost.flops;
}

TEST(Engine, PromptsSkipTheUpperHalfOfYoco) {
  ModelConfig config = variant_config(variant_named("yoco"));
  config.num_hidden_layers = 8;
  const double full = prefill_flops(variant_config(variant_named("mha")), 128, 1) / 5;  // per layer
  const double skipped = prefill_flops(config, 128, 1);
  EXPECT_NEAR(skipped / full, 4,
              0.2);  // four of eight layers run for the prompt, the others for one row
  EXPECT_GT(prefill_flops(config, 128, 128) / full, 6.5);
}

TEST(Engine, StopsAtEosAndAtLength) {
  register_kernels();
  const ModelConfig config = variant_config(variant_named("mha"));
  Transformer model(config, Device{}, Dtype::kFloat32);
  put_weights(model.parameters(), random_weights(model.parameters(), 1));
  Engine plain(model, nullptr, options_for(1, 64));
  const GenerationResult all =
      generate(plain, {request_of("x", prompt_of(4, 9, config.vocab_size), 12)}).at("x");
  EXPECT_EQ(all.reason, FinishReason::kLength);
  EngineOptions options = options_for(1, 64);
  options.eos = {all.tokens[5]};
  const size_t first = static_cast<size_t>(
      std::find(all.tokens.begin(), all.tokens.end(), all.tokens[5]) - all.tokens.begin());
  Engine with_eos(model, nullptr, options);
  const GenerationResult cut =
      generate(with_eos, {request_of("x", prompt_of(4, 9, config.vocab_size), 12)}).at("x");
  EXPECT_EQ(cut.reason, FinishReason::kEos);
  EXPECT_EQ(cut.tokens,
            std::vector<int32_t>(all.tokens.begin(),
                                 all.tokens.begin() + static_cast<ptrdiff_t>(first) + 1));
}

TEST(Engine, BadPromptsAreReportedAndTheOthersRun) {
  register_kernels();
  const ModelConfig config = variant_config(variant_named("gpt2"));
  Transformer model(config, Device{}, Dtype::kFloat32);
  put_weights(model.parameters(), random_weights(model.parameters(), 1));
  Engine engine(model, nullptr, options_for(2, 300));
  const auto results =
      generate(engine, {request_of("empty", {}, 4), request_of("outside", {1, 37}, 4),
                        request_of("long", prompt_of(300, 1, 37), 4), request_of("good", {1, 2}, 4),
                        request_of("edge", prompt_of(250, 1, 37), 40)});
  EXPECT_NE(results.at("empty").error.find("empty prompt"), std::string::npos);
  EXPECT_NE(results.at("outside").error.find("got 37 at position 1"), std::string::npos);
  EXPECT_NE(results.at("long").error.find("learned positions"), std::string::npos);
  EXPECT_EQ(results.at("good").tokens.size(), 4u);
  EXPECT_EQ(results.at("edge").tokens.size(), 6u);  // 256 learned positions end it
}

TEST(Sampler, GreedyTakesTheLowestOfEquals) {
  std::vector<float> logits{1, 3, 3, 2};
  SamplingOptions o;
  o.temperature = 0;
  EXPECT_EQ(sample_token(logits, o, {}, 0, 0).token, 1);
}

TEST(Sampler, CutsKeepWhatTheyShould) {
  const std::vector<float> base{0, 1, 2, 3, 4};
  const auto seen_tokens = [&](SamplingOptions o) {
    std::set<int32_t> seen;
    for (int64_t i = 0; i < 3000; ++i) {
      std::vector<float> logits = base;
      seen.insert(sample_token(logits, o, {}, 5, i).token);
    }
    return seen;
  };
  SamplingOptions o;
  EXPECT_EQ(seen_tokens(o), (std::set<int32_t>{0, 1, 2, 3, 4}));
  o.top_k = 2;
  EXPECT_EQ(seen_tokens(o), (std::set<int32_t>{3, 4}));
  o = {};
  o.top_p = 0.8;  // 0.636 + 0.234 passes 0.8
  EXPECT_EQ(seen_tokens(o), (std::set<int32_t>{3, 4}));
  o = {};
  o.min_p = 0.1;  // exp(-2) = 0.135 stays, exp(-3) = 0.05 goes
  EXPECT_EQ(seen_tokens(o), (std::set<int32_t>{2, 3, 4}));
}

TEST(Sampler, DrawsFollowTheDistribution) {
  const std::vector<float> base{0, 1, 2};
  std::array<int, 3> count{};
  SamplingOptions o;
  o.temperature = 2;
  constexpr int kDraws = 20000;
  for (int i = 0; i < kDraws; ++i) {
    std::vector<float> logits = base;
    ++count[static_cast<size_t>(sample_token(logits, o, {}, 1, i).token)];
  }
  const double z = 1 + std::exp(0.5) + std::exp(1.0);
  for (size_t i = 0; i < 3; ++i) {
    const double p = std::exp(0.5 * static_cast<double>(i)) / z,
                 sigma = std::sqrt(p * (1 - p) / kDraws);
    EXPECT_NEAR(count[i] / static_cast<double>(kDraws), p, 5 * sigma);
  }
}

TEST(Sampler, RepetitionPenaltyPushesSeenTokensDown) {
  SamplingOptions o;
  o.temperature = 0;
  o.repetition_penalty = 2;
  std::vector<float> positive{3, 2}, negative{-1.0f, -1.5f};
  const std::vector<int32_t> seen{0};
  EXPECT_EQ(sample_token(positive, o, seen, 0, 0).token, 1);
  EXPECT_EQ(sample_token(negative, o, seen, 0, 0).token, 1);
}

}  // namespace
}  // namespace heirloom::testing
