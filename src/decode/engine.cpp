// SPDX-License-Identifier: Apache-2.0
#include "heirloom/decode/engine.h"

#include <chrono>

#include "heirloom/core/memory.h"
#include "heirloom/core/rng.h"

namespace heirloom {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

int64_t cache_blocks(const Transformer& model, const EngineOptions& options) {
  const int64_t block = PagedKvCache::block_bytes(model.layout(), model.dtype());
  if (options.cache_bytes > 0) return std::max<int64_t>(1, options.cache_bytes / block);
  const int64_t wanted =
      options.max_sequences * PagedKvCache::blocks_for(std::max<int64_t>(options.max_tokens, 1));
  return std::max<int64_t>(1, std::min(wanted, available_memory() / 2 / block));
}

}  // namespace

const char* finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kLength:
      return "length";
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kEos:
      return "eos";
  }
  return "?";
}

struct Engine::Sequence {
  Sequence(GenerationRequest r, const Tokenizer* tokenizer)
      : request(std::move(r)), tokens(request.prompt) {
    key = hash_name(request.id);
    request.sampling.logprob = request.logprobs;
    if (tokenizer) decoder.emplace(*tokenizer, DecodeOptions{.skip_special = true});
  }
  int64_t prompt_size() const { return static_cast<int64_t>(request.prompt.size()); }
  bool prefilled() const { return cached >= prompt_size(); }
  int64_t slot(int64_t position) const {
    return blocks[static_cast<size_t>(position / kKvBlockTokens)] * kKvBlockTokens +
           position % kKvBlockTokens;
  }
  AttentionSequence attention(int64_t query_row, int64_t queries, int64_t keys) const {
    AttentionSequence s;
    s.query_row = query_row;
    s.queries = queries;
    s.keys = keys;
    s.blocks = blocks.data();
    return s;
  }

  GenerationRequest request;
  std::vector<int32_t> tokens;  // prompt and generated
  std::vector<int32_t> blocks;
  int64_t cached = 0;  // positions whose keys and values are in the cache
  uint64_t key = 0;
  GenerationResult result;
  std::optional<StreamDecoder> decoder;
  std::string text;
  size_t streamed = 0;  // bytes of text already handed to on_text
  bool finished = false;
};

Engine::Engine(Transformer& model, const Tokenizer* tokenizer, EngineOptions options)
    : model_(model),
      tokenizer_(tokenizer),
      options_(std::move(options)),
      cache_(model.layout(), model.dtype(), cache_blocks(model, options_)),
      arena_(model.device()) {
  for (size_t s = 0; s < model.layout().streams.size(); ++s) {
    const KvStream& stream = model.layout().streams[s];
    statistics_.streams.push_back(
        {stream.layer + 1, stream_kind_name(stream.kind), cache_.allocated_bytes(s), 0});
  }
}

Engine::~Engine() = default;

std::string Engine::reject_reason(const GenerationRequest& request) const {
  const ModelConfig& config = model_.config();
  const int64_t size = static_cast<int64_t>(request.prompt.size());
  if (size == 0) return "[prompt] expected at least one token; got an empty prompt";
  for (int64_t i = 0; i < size; ++i) {
    const int32_t token = request.prompt[static_cast<size_t>(i)];
    if (token < 0 || token >= config.vocab_size) {
      return fmt::format("[prompt] expected token ids below {}; got {} at position {}",
                         config.vocab_size, token, i);
    }
  }
  if (config.position == PositionKind::kLearned && size + 1 > config.max_position_embeddings) {
    return fmt::format("[prompt] expected fewer than {} tokens (learned positions); got {}",
                       config.max_position_embeddings, size);
  }
  if (PagedKvCache::blocks_for(size + request.max_new_tokens) > cache_.blocks()) {
    return fmt::format(
        "[prompt] expected at most {} tokens with max_new_tokens to fit the KV cache; got {} + {}",
        cache_.blocks() * kKvBlockTokens, size, request.max_new_tokens);
  }
  return {};
}

bool Engine::admit(const Next& next, const Done& done) {
  while (static_cast<int64_t>(active_.size()) < options_.max_sequences) {
    if (!waiting_) waiting_ = next();
    if (!waiting_) return false;
    GenerationRequest& request = *waiting_;
    if (model_.config().position == PositionKind::kLearned) {
      request.max_new_tokens =
          std::min(request.max_new_tokens, model_.config().max_position_embeddings -
                                               static_cast<int64_t>(request.prompt.size()));
    }
    if (std::string reason = reject_reason(request); !reason.empty()) {
      GenerationResult result;
      result.id = request.id;
      result.error = std::move(reason);
      waiting_.reset();
      done(std::move(result));
      continue;
    }
    const int64_t longest = static_cast<int64_t>(request.prompt.size()) + request.max_new_tokens;
    const int64_t blocks = PagedKvCache::blocks_for(longest);
    if (blocks > cache_.free_blocks()) return true;  // waits until somebody finishes
    auto sequence = std::make_unique<Sequence>(std::move(request), tokenizer_);
    waiting_.reset();
    sequence->result.id = sequence->request.id;
    sequence->blocks = cache_.take(blocks);
    sequence->finished = sequence->request.max_new_tokens <= 0;
    model_.ensure_positions(longest);
    ++statistics_.sequences;
    active_.push_back(std::move(sequence));
  }
  return true;
}

void Engine::prefill() {
  struct Piece {
    Sequence* sequence;
    int64_t begin, count, row;
  };
  std::vector<Piece> pieces;
  int64_t rows = 0;
  for (const auto& sequence : active_) {
    if (rows == kPrefillRows) break;
    if (sequence->prefilled() || sequence->finished) continue;
    const int64_t count = std::min(kPrefillRows - rows, sequence->prompt_size() - sequence->cached);
    pieces.push_back({sequence.get(), sequence->cached, count, rows});
    rows += count;
  }
  if (pieces.empty()) return;
  const Clock::time_point start = Clock::now();
  std::vector<int32_t> tokens(kPrefillRows, 0), positions(kPrefillRows, 0);
  std::vector<int64_t> slots(kPrefillRows, cache_.padding_slot());
  std::vector<AttentionSequence> sequences, wanted_sequences;
  std::vector<int32_t> wanted_rows, wanted_positions;
  std::vector<Sequence*> ready;
  for (const Piece& p : pieces) {
    for (int64_t i = 0; i < p.count; ++i) {
      const size_t row = static_cast<size_t>(p.row + i);
      tokens[row] = p.sequence->tokens[static_cast<size_t>(p.begin + i)];
      positions[row] = static_cast<int32_t>(p.begin + i);
      slots[row] = p.sequence->slot(p.begin + i);
    }
    const int64_t keys = p.begin + p.count;
    sequences.push_back(p.sequence->attention(p.row, p.count, keys));
    if (keys == p.sequence->prompt_size()) {
      wanted_sequences.push_back(
          p.sequence->attention(static_cast<int64_t>(wanted_rows.size()), 1, keys));
      wanted_rows.push_back(static_cast<int32_t>(p.row + p.count - 1));
      wanted_positions.push_back(static_cast<int32_t>(keys - 1));
      ready.push_back(p.sequence);
    }
    p.sequence->cached = keys;
  }
  CacheKvStore store(cache_, std::move(slots), std::move(sequences));
  Context context{arena_};
  context.phase = Phase::kPrefill;
  const WantedRows wanted{wanted_rows, wanted_positions, wanted_sequences};
  const Variable hidden = model_.hidden(context, {tokens.data(), positions.data(), kPrefillRows},
                                        store, Recompute::kNone, &wanted);
  statistics_.prefill_tokens += rows;
  statistics_.cached_tokens += rows;
  statistics_.upper_rows += static_cast<int64_t>(wanted_rows.size());
  if (!ready.empty()) take_logits(context, hidden.value, ready);
  statistics_.prefill_seconds += seconds_since(start);
}

void Engine::decode() {
  std::vector<Sequence*> ready;
  for (const auto& sequence : active_) {
    if (sequence->prefilled() && !sequence->finished) ready.push_back(sequence.get());
  }
  if (ready.empty()) return;
  const Clock::time_point start = Clock::now();
  std::vector<int32_t> tokens, positions;
  std::vector<int64_t> slots;
  std::vector<AttentionSequence> sequences;
  for (Sequence* s : ready) {
    tokens.push_back(s->tokens[static_cast<size_t>(s->cached)]);
    positions.push_back(static_cast<int32_t>(s->cached));
    slots.push_back(s->slot(s->cached));
    sequences.push_back(s->attention(static_cast<int64_t>(sequences.size()), 1, s->cached + 1));
    ++s->cached;
  }
  const int64_t rows = static_cast<int64_t>(ready.size());
  CacheKvStore store(cache_, std::move(slots), std::move(sequences));
  Context context{arena_};
  context.phase = Phase::kDecode;
  const Variable hidden = model_.hidden(context, {tokens.data(), positions.data(), rows}, store);
  statistics_.decode_rows += rows;
  statistics_.decode_tokens += rows;
  statistics_.cached_tokens += rows;
  take_logits(context, hidden.value, ready);
  statistics_.decode_seconds += seconds_since(start);
}

void Engine::take_logits(Context& context, const Tensor& hidden,
                         const std::vector<Sequence*>& sequences) {
  context.phase = Phase::kDecode;
  const Tensor logits = model_.logits(context, hidden);
  const int64_t v = logits.dim(1);
  std::vector<float> row(static_cast<size_t>(v));
  for (size_t i = 0; i < sequences.size(); ++i) {
    const int64_t first = static_cast<int64_t>(i) * v;
    if (logits.dtype() == Dtype::kFloat64) {
      const double* from = logits.as<double>() + first;
      std::transform(from, from + v, row.begin(), [](double x) { return static_cast<float>(x); });
    } else {
      std::copy_n(logits.as<float>() + first, v, row.begin());
    }
    append_token(*sequences[i], row);
  }
}

void Engine::append_token(Sequence& s, std::span<float> logits) {
  const int64_t index = static_cast<int64_t>(s.result.tokens.size());
  const SampledToken sampled = sample_token(logits, s.request.sampling, s.tokens, s.key, index);
  s.tokens.push_back(sampled.token);
  s.result.tokens.push_back(sampled.token);
  if (s.request.logprobs) s.result.logprobs.push_back(sampled.logprob);
  const bool eos = !s.request.ignore_eos && std::find(options_.eos.begin(), options_.eos.end(),
                                                      sampled.token) != options_.eos.end();
  if (eos) {
    s.finished = true;
    s.result.reason = FinishReason::kEos;
  } else if (s.decoder) {
    s.text += s.decoder->push(sampled.token);
  }
  if (!s.finished && index + 1 >= s.request.max_new_tokens) {
    s.finished = true;
    s.result.reason = FinishReason::kLength;
  }
  if (s.finished && s.decoder) s.text += s.decoder->flush();
  size_t longest_stop = 0;
  for (const std::string& stop : s.request.stop) {
    longest_stop = std::max(longest_stop, stop.size());
    const size_t at = s.text.find(stop, s.streamed);
    if (at == std::string::npos) continue;
    s.text.resize(at);
    s.finished = true;
    s.result.reason = FinishReason::kStop;
  }
  // What might be the beginning of a stop string is held back.
  const size_t safe =
      s.finished ? s.text.size()
                 : s.text.size() - std::min(s.text.size(), longest_stop ? longest_stop - 1 : 0);
  if (safe > s.streamed) {
    if (on_text_) on_text_(s.request.id, s.text.substr(s.streamed, safe - s.streamed));
    s.streamed = safe;
  }
}

void Engine::run(const Next& next, const Done& done, const OnText& on_text,
                 const std::function<bool()>& stop) {
  on_text_ = on_text;
  while (!(stop && stop())) {
    admit(next, done);
    if (active_.empty()) break;
    prefill();
    decode();
    for (auto& sequence : active_) {
      if (!sequence->finished) continue;
      const KvLayout& layout = model_.layout();
      for (size_t i = 0; i < layout.streams.size(); ++i) {
        statistics_.streams[i].used_bytes +=
            sequence->cached * layout.streams[i].width * dtype_size(model_.dtype());
      }
      cache_.give_back(sequence->blocks);
      if (tokenizer_) sequence->result.text = std::move(sequence->text);
      done(std::move(sequence->result));
      sequence.reset();
    }
    std::erase_if(active_, [](const auto& s) { return s == nullptr; });
  }
  active_.clear();
}

}  // namespace heirloom
