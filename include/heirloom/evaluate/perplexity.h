// SPDX-License-Identifier: Apache-2.0
//
// Perplexity: how surprised a model is by text it did not see. Every scored token's negative log
// likelihood (nats) is computed once, with the context that its window gives, and summed in
// float64.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "heirloom/evaluate/sequences.h"
#include "heirloom/model/batch.h"
#include "heirloom/model/transformer.h"

namespace heirloom {

/// A stretch of one sequence: inputs [begin, begin + inputs), targets one later, of which the last
/// `scored` count.
struct Window {
  int64_t begin = 0;
  int64_t inputs = 0;
  int64_t scored = 0;
  friend bool operator==(const Window&, const Window&) = default;
};

/// Windows over a sequence of `tokens`: window k reads inputs [kS, kS + C), cut at the end of the
/// sequence, and scores those targets that no earlier window did. So every token from the second on
/// is scored exactly once. ArgumentError unless 1 <= stride <= context.
std::vector<Window> plan_windows(int64_t tokens, int64_t context, int64_t stride);

struct PerplexityOptions {
  int64_t context = 0;  ///< C in tokens; 0: every sequence is one window, whatever its length
  int64_t stride = 0;   ///< 0: context
  /// Windows run together, packed without padding, up to this many tokens (one window at least):
  /// this bounds the activations.
  int64_t tokens_per_pass = 2048;
};

struct PerplexityResult {
  int64_t tokens = 0;  ///< scored
  double nll_sum = 0;  ///< nats

  double nll_mean() const;
  double perplexity() const;
  /// Over `bytes` and `words` of the original text.
  double bits_per_byte(int64_t bytes) const;
  double word_perplexity(int64_t words) const;
};

struct PerplexityHooks {
  /// The scored nlls of each window, in order; an empty span for a sequence with nothing to score.
  std::function<void(std::span<const double>)> on_window;
  /// After every pass: what is done, and the number of tokens that will be scored in all.
  std::function<void(const PerplexityResult& so_far, int64_t total)> on_pass;
};

/// Scores every sequence from its second token on. With learned positions, a window longer than the
/// model's max_position_embeddings is a FormatError that names the sequence's line (or, for one
/// stream, a ConfigError). A window's numbers do not depend on what is packed beside it, up to the
/// rounding of matrix products.
PerplexityResult evaluate_perplexity(Transformer& model, const SequenceSet& data,
                                     const PerplexityOptions& options,
                                     const PerplexityHooks& hooks = {});

/// Bytes that scoring needs: weights in `dtype`, rope tables for windows of `longest` tokens, and
/// the activations of a pass of `rows` tokens. Nothing is allocated.
int64_t perplexity_memory(const ModelConfig& config, Dtype dtype, int64_t rows, int64_t longest,
                          const Device& device = {});

}  // namespace heirloom
