// SPDX-License-Identifier: Apache-2.0
//
// Batched generation: prompts of any length, as many at once as cache blocks allow, none padded,
// each finished one replaced by the next. What a prompt yields does not depend on the others, to
// the bit: prompts run in chunks of one fixed number of rows, decode sums every product in an order
// fixed by its length alone, and random draws are keyed by the request.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "heirloom/decode/kv_cache.h"
#include "heirloom/decode/sampler.h"
#include "heirloom/model/transformer.h"
#include "heirloom/tokenizer/tokenizer.h"

namespace heirloom {

struct GenerationRequest {
  std::string id;
  std::vector<int32_t> prompt;
  int64_t max_new_tokens = 256;
  SamplingOptions sampling;
  std::vector<std::string> stop;  ///< ends generation; not part of the text
  bool ignore_eos = false;
  bool logprobs = false;
};

enum class FinishReason : uint8_t { kLength, kStop, kEos };
const char* finish_reason_name(FinishReason reason);

struct GenerationResult {
  std::string id;
  std::vector<int32_t> tokens;   ///< new ones; an eos that ended the sequence is the last
  std::vector<double> logprobs;  ///< one per token when asked for
  std::optional<std::string>
      text;  ///< without eos, special tokens and stop string; absent without a tokenizer
  FinishReason reason = FinishReason::kLength;
  std::string error;  ///< not empty: the request could not be run
};

struct EngineOptions {
  int64_t max_sequences = 32;  ///< at once
  int64_t cache_bytes = 0;   ///< of the KV cache; 0: what max_sequences x max_tokens needs, within
                             ///< half the free memory
  int64_t max_tokens = 0;    ///< longest prompt + continuation expected; sizes the cache
  std::vector<int64_t> eos;  ///< token ids that end a sequence
};

/// Streams of the cache and what passed through the model.
struct EngineStatistics {
  struct Stream {
    int64_t layer = 0;  ///< 1-based
    std::string kind;
    int64_t allocated_bytes = 0, used_bytes = 0;
  };
  int64_t sequences = 0;
  int64_t prefill_tokens = 0, decode_tokens = 0;
  double prefill_seconds = 0, decode_seconds = 0;
  int64_t cached_tokens = 0;  ///< positions written, over all sequences
  int64_t decode_rows = 0;  ///< rows that decode steps pushed through the layers: one per new token
  int64_t upper_rows = 0;   ///< rows that ran past the last layer owning a stream during prefill
  std::vector<Stream> streams;
};

/// Rows of a prefill pass, always: the last chunk is filled up with rows nobody reads.
inline constexpr int64_t kPrefillRows = 128;

class Engine {
 public:
  /// `model` and `tokenizer` (may be null) outlive the engine.
  Engine(Transformer& model, const Tokenizer* tokenizer, EngineOptions options);

  using Next = std::function<std::optional<GenerationRequest>()>;
  using Done = std::function<void(GenerationResult)>;
  using OnText = std::function<void(const std::string& id, const std::string& piece)>;

  /// Runs requests from `next` until it is empty; `done` is called once per request as each
  /// finishes. `on_text` (optional) gets text as it appears. `stop` is asked between passes; true
  /// ends the run, unfinished requests are dropped.
  void run(const Next& next, const Done& done, const OnText& on_text = {},
           const std::function<bool()>& stop = {});

  const EngineStatistics& statistics() const { return statistics_; }
  PagedKvCache& cache() { return cache_; }

 private:
  struct Sequence;
  bool admit(const Next& next, const Done& done);
  void prefill();
  void decode();
  void take_logits(Context& context, const Tensor& hidden, const std::vector<Sequence*>& sequences);
  void append_token(Sequence& sequence, std::span<float> logits);
  std::string reject_reason(const GenerationRequest& request) const;

  Transformer& model_;
  const Tokenizer* tokenizer_;
  EngineOptions options_;
  PagedKvCache cache_;
  Arena arena_;
  std::vector<std::unique_ptr<Sequence>> active_;
  std::optional<GenerationRequest> waiting_;
  OnText on_text_;
  EngineStatistics statistics_;

 public:
  ~Engine();
};

}  // namespace heirloom
