// SPDX-License-Identifier: Apache-2.0
#include "sampling.h"

#include "heirloom/core/error.h"
#include "heirloom/decode/engine.h"
#include "heirloom/decode/full_forward.h"

namespace heirloom::cli {

std::function<Sample(Transformer&, int64_t step)> sampling_hook(const RunConfig& config) {
  auto tokenizer = std::make_shared<Tokenizer>(Tokenizer::load(config.data.tokenizer));
  if (tokenizer->vocab_size() > config.model.vocab_size) {
    throw_error<ConfigError>(
        "[data.tokenizer] expected at most the model's {} tokens; got {} in {}",
        config.model.vocab_size, tokenizer->vocab_size(), config.data.tokenizer);
  }
  return [tokenizer, &config](Transformer& model, int64_t step) {
    GenerationRequest request;
    request.id = "sample";
    request.prompt = tokenizer->encode(config.train.sample_prompt);
    if (request.prompt.empty()) request.prompt.push_back(tokenizer->eos_id().value_or(0));
    request.max_new_tokens = config.train.sample_tokens;
    request.sampling.temperature = 0.8;
    request.sampling.top_k = 40;
    request.sampling.seed = config.train.seed;
    Sample sample{step, config.train.sample_prompt, ""};
    if (model.device().kind != DeviceKind::kCpu) {  // no cache and no decode kernels there yet
      const std::vector<int32_t> tokens =
          continue_by_full_forward(model, request.prompt, request.max_new_tokens, request.sampling,
                                   config.model.eos_token_ids);
      sample.text = tokenizer->decode(tokens, {.skip_special = true});
      return sample;
    }
    EngineOptions options;
    options.max_sequences = 1;
    options.max_tokens = static_cast<int64_t>(request.prompt.size()) + request.max_new_tokens;
    options.eos = config.model.eos_token_ids;
    Engine engine(model, tokenizer.get(), options);
    bool given = false;
    engine.run(
        [&]() -> std::optional<GenerationRequest> {
          if (std::exchange(given, true)) return std::nullopt;
          return request;
        },
        [&](const GenerationResult& result) {
          sample.text = result.error.empty() ? result.text.value_or("") : result.error;
        });
    return sample;
  };
}

}  // namespace heirloom::cli
