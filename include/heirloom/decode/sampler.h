// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace heirloom {

struct SamplingOptions {
  double temperature = 1.0;  ///< 0: greedy, ties to the lowest id
  int64_t top_k = 0;         ///< keep the k most likely tokens; 0: all
  double top_p = 1.0;  ///< keep the smallest set of most likely tokens with this mass (Holtzman et
                       ///< al., 1904.09751)
  double min_p =
      0.0;  ///< drop tokens less likely than min_p times the most likely one (2407.01082)
  double repetition_penalty =
      1.0;  ///< divides positive and multiplies negative logits of seen tokens (CTRL, 1909.05858)
  uint64_t seed = 0;
  bool logprob = false;  ///< compute SampledToken::logprob
};

struct SampledToken {
  int32_t token = 0;
  double logprob =
      0;  ///< natural log, of the model's own distribution (before penalties, temperature and cuts);
          ///< 0 unless options.logprob
};

/// Picks the next token. `logits` (V) is overwritten. `seen`: prompt and generated tokens. The draw
/// is a pure function of (options.seed, sequence_key, index): neighbours, batch size and order do
/// not matter.
SampledToken sample_token(std::span<float> logits, const SamplingOptions& options,
                          std::span<const int32_t> seen, uint64_t sequence_key, int64_t index);

}  // namespace heirloom
