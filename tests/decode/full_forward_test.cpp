// SPDX-License-Identifier: Apache-2.0
#include "heirloom/decode/full_forward.h"

#include <gtest/gtest.h>

#include "heirloom/decode/engine.h"
#include "support/devices.h"
#include "support/variants.h"

namespace heirloom::testing {
namespace {

const std::vector<int32_t> kPrompt = {3, 1, 4, 1, 5, 9, 2, 6};

SamplingOptions greedy() {
  SamplingOptions s;
  s.temperature = 0;
  return s;
}

Variant variant_named(const std::string& name) {
  for (const Variant& v : variants()) {
    if (v.name == name) return v;
  }
  ADD_FAILURE() << name;
  return {};
}

std::vector<int32_t> by_engine(Transformer& model, int64_t tokens) {
  EngineOptions options;
  options.max_sequences = 1;
  options.max_tokens = 64;
  Engine engine(model, nullptr, options);
  std::vector<int32_t> result;
  bool given = false;
  engine.run(
      [&]() -> std::optional<GenerationRequest> {
        if (std::exchange(given, true)) return std::nullopt;
        GenerationRequest r;
        r.id = "x";
        r.prompt = kPrompt;
        r.max_new_tokens = tokens;
        r.sampling = greedy();
        return r;
      },
      [&](const GenerationResult& r) { result = r.tokens; });
  return result;
}

TEST(FullForward, ContinuesAsTheEngineDoes) {
  register_kernels();
  for (const char* name : {"mha", "skipv1_yoco", "gpt2"}) {
    const ModelConfig config = variant_config(variant_named(name));
    Transformer model(config, Device{}, Dtype::kFloat64);
    put_weights(model.parameters(), random_weights(model.parameters(), 1));
    const std::vector<int32_t> tokens = by_engine(model, 12);
    ASSERT_EQ(tokens.size(), 12u);
    EXPECT_EQ(continue_by_full_forward(model, kPrompt, 12, greedy(), {}), tokens) << name;
    // An eos ends it and is its last token.
    const std::vector<int32_t> cut =
        continue_by_full_forward(model, kPrompt, 12, greedy(), {tokens[5]});
    const auto first = std::find(tokens.begin(), tokens.end(), tokens[5]);
    EXPECT_EQ(cut, std::vector<int32_t>(tokens.begin(), first + 1)) << name;
  }
}

TEST(FullForward, ContinuesOnCudaAsOnTheCpu) {
  HEIRLOOM_SKIP_WITHOUT_CUDA();
  const ModelConfig config = variant_config(variant_named("skipv1_gqa"));
  Transformer cpu(config, Device{}, Dtype::kFloat32);
  put_weights(cpu.parameters(), random_weights(cpu.parameters(), 1));
  Transformer cuda(config, test::kCuda, Dtype::kFloat32);
  device_runtime(DeviceKind::kCuda)
      .copy_to_device(cuda.parameters().data(), cpu.parameters().data(),
                      cpu.parameters().elements() * 4, device_stream(test::kCuda));
  EXPECT_EQ(continue_by_full_forward(cuda, kPrompt, 6, greedy(), {}),
            continue_by_full_forward(cpu, kPrompt, 6, greedy(), {}));
}

TEST(FullForward, RefusesAnEmptyPrompt) {
  register_kernels();
  Transformer model(variant_config(variants()[0]), Device{}, Dtype::kFloat32);
  EXPECT_THROW(continue_by_full_forward(model, {}, 1, greedy(), {}), ArgumentError);
}

}  // namespace
}  // namespace heirloom::testing
