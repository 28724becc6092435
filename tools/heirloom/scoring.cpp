// SPDX-License-Identifier: Apache-2.0
#include "scoring.h"

#include <fmt/format.h>

#include "heirloom/core/device_runtime.h"
#include "heirloom/core/error.h"
#include "heirloom/report/progress.h"

namespace heirloom::cli {

PerplexityOptions window_options(const ModelConfig& config, int64_t context, int64_t stride,
                                 const char* command) {
  PerplexityOptions options;
  options.context = context;
  options.stride = stride > 0 ? stride : context;
  if (options.stride > options.context) {
    throw_error<ConfigError>(
        "[{}] expected --stride of at most --context ({}); got {}", command,
        options.context > 0 ? fmt::format("{}", options.context) : "none: whole lines",
        options.stride);
  }
  if (config.position == PositionKind::kLearned &&
      options.context > config.max_position_embeddings) {
    throw_error<ConfigError>(
        "[{}] expected --context of at most {} (the model's learned positions); got {}", command,
        config.max_position_embeddings, options.context);
  }
  return options;
}

void check_scoring_memory(const ModelConfig& config, const Device& device, Dtype dtype,
                          const SequenceSet& data, const PerplexityOptions& options) {
  int64_t longest = 0;
  for (int64_t i = 0; i < data.count(); ++i) {
    longest = std::max(longest, static_cast<int64_t>(data.sequence(i).size()) - 1);
  }
  if (options.context > 0) longest = std::min(longest, options.context);
  const int64_t rows = std::max(longest, std::min(options.tokens_per_pass, data.scorable()));
  const int64_t needed = perplexity_memory(config, dtype, rows, longest, device);
  const int64_t available = device_runtime(device.kind).available_bytes(device.index);
  if (needed > available) {
    throw_error<OutOfMemoryError>(
        "[memory] {} needed for the weights in {} and a pass of {} tokens; {} are available; use a "
        "smaller --context or --batch, or --dtype bfloat16",
        format_bytes(static_cast<double>(needed)), dtype_name(dtype), rows,
        format_bytes(static_cast<double>(available)));
  }
}

}  // namespace heirloom::cli
