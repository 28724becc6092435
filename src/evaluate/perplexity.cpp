// SPDX-License-Identifier: Apache-2.0
#include "heirloom/evaluate/perplexity.h"

#include <cmath>
#include <numbers>
#include <numeric>

#include "heirloom/ops/kv_store.h"

namespace heirloom {
namespace {

/// Windows packed behind one another for one forward pass.
class Pass {
 public:
  int64_t rows() const { return static_cast<int64_t>(tokens_.size()); }
  bool empty() const { return tokens_.empty(); }

  void clear() {
    tokens_.clear();
    targets_.clear();
    positions_.clear();
    sequences_.clear();
  }

  void add(std::span<const int32_t> sequence, const Window& window) {
    AttentionSequence s;
    s.query_row = s.key_row = rows();
    s.queries = s.keys = window.inputs;
    sequences_.push_back(s);
    const int64_t first_scored = window.inputs - window.scored;
    for (int64_t t = 0; t < window.inputs; ++t) {
      const auto i = static_cast<size_t>(window.begin + t);
      tokens_.push_back(sequence[i]);
      targets_.push_back(t < first_scored ? -1 : sequence[i + 1]);
      positions_.push_back(static_cast<int32_t>(t));
    }
  }

  HostBatch host() {
    nll_.assign(tokens_.size(), 0);
    HostBatch batch;
    batch.tokens = tokens_;
    batch.targets = targets_;
    batch.positions = positions_;
    batch.sequences = sequences_;
    batch.nll = nll_;
    return batch;
  }

  static void run(Context context, Transformer& model, const DeviceBatch& batch) {
    ActivationKvStore store(model.stream_specs(), model.dtype(), batch.rows.n,
                            {batch.sequences.begin(), batch.sequences.end()},
                            batch.device_sequences);
    model.loss(context, batch.rows, store, batch.targets, 1, batch.nll);
  }

  /// The scored nlls of each window, in order.
  template <class Visit>
  void visit(std::span<const double> nll, Visit visit_window) const {
    for (const AttentionSequence& s : sequences_) {
      const auto begin = static_cast<size_t>(s.query_row), n = static_cast<size_t>(s.queries);
      size_t first = 0;
      while (first < n && targets_[begin + first] < 0) ++first;
      visit_window(nll.subspan(begin + first, n - first));
    }
  }

 private:
  std::vector<int32_t> tokens_, targets_, positions_;
  std::vector<AttentionSequence> sequences_;
  std::vector<double> nll_;
};

void check_positions(const ModelConfig& config, const SequenceSet& data, int64_t i,
                     int64_t inputs) {
  if (config.position != PositionKind::kLearned || inputs <= config.max_position_embeddings) return;
  if (data.lines.empty()) {
    throw_error<ConfigError>(
        "[perplexity] expected windows of at most {} tokens (learned positions); got {}; use "
        "--context",
        config.max_position_embeddings, inputs);
  }
  throw_error<FormatError>(
      "[perplexity] expected sequences of at most {} tokens (the model's learned positions and one "
      "target); got {}; {}:{}; use --context to score longer ones in windows",
      config.max_position_embeddings + 1, inputs + 1, data.name,
      data.lines[static_cast<size_t>(i)]);
}

}  // namespace

std::vector<Window> plan_windows(int64_t tokens, int64_t context, int64_t stride) {
  HEIRLOOM_CHECK(stride >= 1 && stride <= context,
                 "[perplexity] expected 1 <= stride <= context; got stride {} and context {}",
                 stride, context);
  std::vector<Window> windows;
  const int64_t last = tokens - 1;  // inputs [0, last) have a target
  for (int64_t begin = 0, scored = 0; scored < last; begin += stride) {
    const int64_t end = std::min(last, begin + context);
    windows.push_back({begin, end - begin, end - scored});
    scored = end;
  }
  return windows;
}

double PerplexityResult::nll_mean() const { return nll_sum / static_cast<double>(tokens); }
double PerplexityResult::perplexity() const { return std::exp(nll_mean()); }
double PerplexityResult::bits_per_byte(int64_t bytes) const {
  return nll_sum / std::numbers::ln2 / static_cast<double>(bytes);
}
double PerplexityResult::word_perplexity(int64_t words) const {
  return std::exp(nll_sum / static_cast<double>(words));
}

PerplexityResult evaluate_perplexity(Transformer& model, const SequenceSet& data,
                                     const PerplexityOptions& options,
                                     const PerplexityHooks& hooks) {
  HEIRLOOM_CHECK(options.tokens_per_pass > 0,
                 "[perplexity] expected at least one token per pass; got {}",
                 options.tokens_per_pass);
  const auto windows_of = [&](int64_t i) {
    const auto tokens = static_cast<int64_t>(data.sequence(i).size());
    const int64_t context = options.context > 0 ? options.context : std::max<int64_t>(tokens, 1);
    return plan_windows(tokens, context, options.stride > 0 ? options.stride : context);
  };
  int64_t longest = 0;
  for (int64_t i = 0; i < data.count(); ++i) {
    const auto inputs = static_cast<int64_t>(data.sequence(i).size()) - 1;
    const int64_t window = options.context > 0 ? std::min(inputs, options.context) : inputs;
    check_positions(model.config(), data, i, window);
    longest = std::max(longest, window);
  }
  model.ensure_positions(longest);

  const int64_t total = data.scorable();
  PerplexityResult result;
  Arena arena(model.device());
  BatchTransfer transfer(model.device(), 1);
  Pass pass;
  const auto flush = [&] {
    if (pass.empty()) return;
    Pass::run(Context{arena}, model, transfer.send(pass.host(), 0, 0, false, 0));
    transfer.receive(0);
    transfer.finish([&](std::span<const double> losses) {
      pass.visit(losses, [&](std::span<const double> nll) {
        result.tokens += static_cast<int64_t>(nll.size());
        result.nll_sum = std::accumulate(nll.begin(), nll.end(), result.nll_sum);
        if (hooks.on_window) hooks.on_window(nll);
      });
    });
    pass.clear();
    if (hooks.on_pass) hooks.on_pass(result, total);
  };
  for (int64_t i = 0; i < data.count(); ++i) {
    const std::vector<Window> windows = windows_of(i);
    for (const Window& window : windows) {
      if (pass.rows() + window.inputs > options.tokens_per_pass) flush();
      pass.add(data.sequence(i), window);
    }
    if (windows.empty() && hooks.on_window) {
      flush();
      hooks.on_window({});
    }
  }
  flush();
  return result;
}

int64_t perplexity_memory(const ModelConfig& config, Dtype dtype, int64_t rows, int64_t longest,
                          const Device& device) {
  const Device meta = meta_device(device);
  Transformer model(config, meta, dtype);
  if (config.position == PositionKind::kRope) model.ensure_positions(longest);
  const std::vector<int32_t> sequence(static_cast<size_t>(rows + 1), 0);
  Pass pass;
  pass.add(sequence, {0, rows, rows});
  Arena arena(meta);
  Pass::run(Context{arena}, model, on_host(pass.host()));
  return model.parameters().elements() * dtype_size(dtype) + model.rope_table_bytes() +
         arena.peak_bytes();
}

}  // namespace heirloom
