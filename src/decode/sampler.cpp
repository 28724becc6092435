// SPDX-License-Identifier: Apache-2.0
#include "heirloom/decode/sampler.h"

#include <cmath>
#include <numeric>

#include "heirloom/core/rng.h"

namespace heirloom {
namespace {

int32_t argmax(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) -
                              logits.begin());  // the first of equals
}

double log_sum_exp(std::span<const float> logits, float top) {
  double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x) - top);
  return top + std::log(sum);
}

void penalise(std::span<float> logits, double penalty, std::span<const int32_t> seen) {
  std::vector<int32_t> once(seen.begin(), seen.end());
  std::sort(once.begin(), once.end());
  once.erase(std::unique(once.begin(), once.end()), once.end());
  for (const int32_t token : once) {
    float& x = logits[static_cast<size_t>(token)];
    x = static_cast<float>(x > 0 ? x / penalty : x * penalty);
  }
}

}  // namespace

SampledToken sample_token(std::span<float> logits, const SamplingOptions& options,
                          std::span<const int32_t> seen, uint64_t sequence_key, int64_t index) {
  const std::vector<float> own =
      options.logprob ? std::vector<float>(logits.begin(), logits.end()) : std::vector<float>();
  const auto finish = [&](int32_t token) {
    if (!options.logprob) return SampledToken{token, 0};
    const double normaliser = log_sum_exp(own, *std::max_element(own.begin(), own.end()));
    return SampledToken{token, static_cast<double>(own[static_cast<size_t>(token)]) - normaliser};
  };
  if (options.repetition_penalty != 1.0) penalise(logits, options.repetition_penalty, seen);
  if (options.temperature <= 0) return finish(argmax(logits));

  // Candidates from most to least likely; ties by id, so that cuts are well defined.
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto more_likely = [&](int32_t a, int32_t b) {
    const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  };
  size_t kept = order.size();
  if (options.top_k > 0) kept = std::min(kept, static_cast<size_t>(options.top_k));
  const bool cut_by_mass = options.top_p < 1 || options.min_p > 0;
  if (kept < order.size()) {
    std::partial_sort(order.begin(), order.begin() + static_cast<ptrdiff_t>(kept), order.end(),
                      more_likely);
  } else if (cut_by_mass) {
    std::sort(order.begin(), order.end(), more_likely);
  }
  const float top = logits[static_cast<size_t>(argmax(logits))];
  std::vector<double> weights(kept);
  double total = 0;
  for (size_t i = 0; i < kept; ++i) {
    total += weights[i] = std::exp(
        (static_cast<double>(logits[static_cast<size_t>(order[i])]) - top) / options.temperature);
  }
  if (options.top_p < 1) {
    double mass = 0;
    size_t n = 0;
    while (n < kept && (n == 0 || mass < options.top_p * total)) mass += weights[n++];
    kept = n;
  }
  if (options.min_p > 0) {
    size_t n = 1;
    while (n < kept && weights[n] >= options.min_p * weights[0]) ++n;
    kept = n;
  }
  total = std::accumulate(weights.begin(), weights.begin() + static_cast<ptrdiff_t>(kept), 0.0);

  const auto bits =
      philox(mix_key(options.seed, sequence_key),
             {static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), 0, 0});
  const double u = (static_cast<double>(bits[0]) * 0x1p32 + static_cast<double>(bits[1])) * 0x1p-64;
  double left = u * total;
  for (size_t i = 0; i < kept; ++i) {
    left -= weights[i];
    if (left < 0) return finish(order[i]);
  }
  return finish(order[kept - 1]);
}

}  // namespace heirloom
