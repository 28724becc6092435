// SPDX-License-Identifier: Apache-2.0
#include "heirloom/model/transformer.h"

#include <cmath>
#include <numeric>

#include "heirloom/ops/cross_entropy.h"
#include "heirloom/ops/elementwise.h"
#include "heirloom/ops/embedding.h"
#include "heirloom/ops/linear.h"

namespace heirloom {
namespace {

constexpr uint64_t kEmbeddingDropoutSite = 0;

/// A store seen by layers that only read: another list of sequences over the same streams.
class ReadOnlyView final : public KvStore {
 public:
  ReadOnlyView(KvStore& store, std::span<const AttentionSequence> sequences)
      : store_(store), sequences_(sequences) {}
  Tensor stream(Context& context, int32_t index) override { return store_.stream(context, index); }
  std::span<const AttentionSequence> sequences() const override { return sequences_; }

 private:
  KvStore& store_;
  std::span<const AttentionSequence> sequences_;
};

KvRef ref_of(const KvAddress& a) {
  return {static_cast<int32_t>(a.stream), a.column, static_cast<int32_t>(a.second_stream),
          a.second_column};
}

ParameterSlice whole(std::string name, int64_t rows, InitKind init = InitKind::kNormal) {
  ParameterSlice s;
  s.name = std::move(name);
  s.end = rows;
  s.init = init;
  return s;
}

/// Rows of one projection of the merged matrix: `heads` runs of head_dim rows after those already
/// there.
void append_heads(std::vector<ParameterSlice>& slices, std::string name, std::vector<int64_t> heads,
                  int64_t head_dim, InitKind init) {
  if (heads.empty()) return;
  ParameterSlice s;
  s.name = std::move(name);
  s.begin = slices.empty() ? 0 : slices.back().end;
  s.end = s.begin + static_cast<int64_t>(heads.size()) * head_dim;
  s.init = init;
  s.rows_per_head = head_dim;
  s.heads = std::move(heads);
  slices.push_back(std::move(s));
}

/// Widths that are no multiple of 8 (16 bytes of bfloat16) are rounded up to one of 64; narrow ones
/// stay, where the padding would be a part worth counting.
int64_t padded_width(int64_t f) { return f % 8 == 0 || f < 1024 ? f : (f + 63) / 64 * 64; }

std::vector<int64_t> iota(int64_t n) {
  std::vector<int64_t> v(static_cast<size_t>(n));
  std::iota(v.begin(), v.end(), int64_t{0});
  return v;
}

}  // namespace

Transformer::Transformer(ModelConfig config, const Device& device, Dtype dtype)
    : config_(std::move(config)),
      plan_(build_kv_plan(config_)),
      layout_(build_kv_layout(config_, plan_)) {
  if (config_.latent.kv_lora_rank > 0 || config_.value_residual.mode != "none" ||
      config_.neutreno_lambda != 0 || config_.depth_weighted_average) {
    throw_error<UnsupportedError>(
        "[model] expected softmax attention without value_residual, neutreno or "
        "depth_weighted_average; got a config "
        "that asks for one of these, which this version reads and counts (heirloom kv) but does "
        "not run");
  }
  build();
  parameters_.allocate(device, dtype);
}

void Transformer::build() {
  const ModelConfig& c = config_;
  const int64_t width = c.hidden_size, d = c.head_dim;
  const auto norm = [&](const std::string& name) {
    NormModule m;
    m.kind = c.norm;
    m.eps = c.norm_eps;
    m.weight = &parameters_.add({width}, {whole(name + ".weight", width, InitKind::kOnes)});
    if (c.norm_bias)
      m.bias = &parameters_.add({width}, {whole(name + ".bias", width, InitKind::kZeros)});
    return m;
  };
  // The MLP's own width and what it has in memory: a width like the paper's 5461 would leave every
  // other row of activations off the 16-byte lines that vector and matrix units want.
  const int64_t f = c.intermediate_size, f_padded = padded_width(f);
  const auto linear_module = [&](const std::string& name, int64_t out, int64_t in, bool bias,
                                 bool writes_residual, int64_t in_padded = 0) {
    LinearModule m;
    ParameterSlice slice = whole(name + ".weight", out);
    slice.writes_residual = writes_residual;
    NamedParameter& weight = parameters_.add({out, in_padded ? in_padded : in}, {std::move(slice)});
    weight.stored_columns = in;
    m.weight = &weight;
    if (bias) m.bias = &parameters_.add({out}, {whole(name + ".bias", out, InitKind::kZeros)});
    return m;
  };
  NamedParameter& table =
      parameters_.add({c.vocab_size, width}, {whole("model.embed_tokens.weight", c.vocab_size)});
  table.is_embedding = true;
  embedding_ = head_ = &table;
  if (c.position == PositionKind::kLearned) {
    NamedParameter& p =
        parameters_.add({c.max_position_embeddings, width},
                        {whole("model.embed_positions.weight", c.max_position_embeddings)});
    p.is_embedding = true;
    position_embedding_ = &p;
  }
  for (int64_t l = 0; l < c.num_hidden_layers; ++l) {
    const std::string base = fmt::format("model.layers.{}.", l), attention = base + "self_attn.";
    BlockModule b;
    b.layer = l;
    b.parallel_residual = c.parallel_residual;
    b.attention_norm = norm(base + "input_layernorm");

    AttentionSpec& spec = b.attention.spec;
    spec.heads = c.num_attention_heads;
    spec.kv_heads = c.num_key_value_heads;
    spec.qk_dim = spec.v_dim = d;
    spec.scale = 1 / std::sqrt(static_cast<double>(d));
    spec.window = c.sliding_window;
    const std::vector<int64_t> own_keys = plan_.own_key_heads(l),
                               own_values = plan_.own_value_heads(l);
    const size_t layer = static_cast<size_t>(l);
    for (const int64_t g : own_keys)
      spec.own_keys.push_back(ref_of(layout_.keys[layer][static_cast<size_t>(g)]));
    for (const int64_t g : own_values)
      spec.own_values.push_back(ref_of(layout_.values[layer][static_cast<size_t>(g)]));
    for (const KvAddress& a : layout_.keys[layer]) spec.keys.push_back(ref_of(a));
    for (const KvAddress& a : layout_.values[layer]) spec.values.push_back(ref_of(a));
    for (const int64_t s : layout_.streams_of(l)) spec.streams.push_back(static_cast<int32_t>(s));

    const auto merged_slices = [&](const char* kind, InitKind init) {
      std::vector<ParameterSlice> slices;
      append_heads(slices, attention + "q_proj." + kind, iota(c.num_attention_heads), d, init);
      append_heads(slices, attention + "k_proj." + kind, own_keys, d, init);
      append_heads(slices, attention + "v_proj." + kind, own_values, d, init);
      return slices;
    };
    b.attention.merged.weight =
        &parameters_.add({spec.merged_width(), width}, merged_slices("weight", InitKind::kNormal));
    if (c.attention_bias) {
      b.attention.merged.bias =
          &parameters_.add({spec.merged_width()}, merged_slices("bias", InitKind::kZeros));
    }
    if (c.qk_norm) {
      b.attention.qk_norm.eps = c.norm_eps;
      b.attention.qk_norm.query =
          &parameters_.add({d}, {whole(attention + "q_norm.weight", d, InitKind::kOnes)});
      if (!own_keys.empty()) {
        b.attention.qk_norm.key =
            &parameters_.add({d}, {whole(attention + "k_norm.weight", d, InitKind::kOnes)});
      }
    }
    b.attention.out = linear_module(attention + "o_proj", width, spec.heads * spec.v_dim,
                                    c.attention_out_bias, true);

    b.mlp_norm = norm(base + "post_attention_layernorm");
    b.mlp.kind = c.mlp;
    if (c.mlp == ActivationKind::kSwiglu) {
      const auto gate_up = [&](const char* kind, InitKind init) {
        std::vector<ParameterSlice> slices{whole(base + "mlp.gate_proj." + kind, f, init),
                                           whole(base + "mlp.up_proj." + kind, f, init)};
        slices[0].end = f;
        slices[1].begin = f_padded;
        slices[1].end = f_padded + f;
        return slices;
      };
      b.mlp.up.weight =
          &parameters_.add({2 * f_padded, width}, gate_up("weight", InitKind::kNormal));
      if (c.mlp_bias)
        b.mlp.up.bias = &parameters_.add({2 * f_padded}, gate_up("bias", InitKind::kZeros));
    } else {
      b.mlp.up.weight =
          &parameters_.add({f_padded, width}, {whole(base + "mlp.up_proj.weight", f)});
      if (c.mlp_bias) {
        b.mlp.up.bias =
            &parameters_.add({f_padded}, {whole(base + "mlp.up_proj.bias", f, InitKind::kZeros)});
      }
    }
    b.mlp.down = linear_module(base + "mlp.down_proj", width, f, c.mlp_bias, true, f_padded);
    blocks_.push_back(std::move(b));
  }
  final_norm_ = norm("model.norm");
  if (!c.tie_word_embeddings) {
    NamedParameter& p =
        parameters_.add({c.vocab_size, width}, {whole("lm_head.weight", c.vocab_size)});
    p.is_embedding = false;
    head_ = &p;
  }
}

std::vector<KvStreamSpec> Transformer::stream_specs() const {
  std::vector<KvStreamSpec> specs;
  for (const KvStream& s : layout_.streams) specs.push_back({s.width, s.head_dim, s.shared});
  return specs;
}

void Transformer::ensure_positions(int64_t positions) {
  if (config_.position == PositionKind::kLearned) {
    if (positions > config_.max_position_embeddings) {
      throw_error<ConfigError>(
          "[model] expected at most {} positions (learned, max_position_embeddings); got {}",
          config_.max_position_embeddings, positions);
    }
    return;
  }
  if (positions <= rope_positions_) return;
  const int64_t half = config_.rotary_dim() / 2;
  const Dtype dtype = accumulate_dtype(parameters_.dtype());
  rope_.rotary_dim = config_.rotary_dim();
  rope_.style = config_.rope_style;
  rope_positions_ = positions;
  void *cosines = nullptr, *sines = nullptr;
  if (device().kind != DeviceKind::kMeta) {
    const RopeTables tables = rope_tables(config_, positions);
    const int64_t count = positions * half;
    const int64_t bytes = count * dtype_size(dtype);
    DeviceMemory memory(device(), 2 * bytes);
    cosines = memory.data();
    sines = memory.data() + bytes;
    const auto fill = [&](const std::vector<double>& from, void* to) {
      const std::vector<float> narrow(from.begin(), from.end());
      const void* source = dtype == Dtype::kFloat64 ? static_cast<const void*>(from.data())
                                                    : static_cast<const void*>(narrow.data());
      device_runtime(device().kind).copy_to_device(to, source, bytes, device_stream(device()));
    };
    fill(tables.cosines, cosines);
    fill(tables.sines, sines);
    rope_memory_ = std::move(memory);
  }
  rope_.cosines = Tensor(cosines, {positions, half}, dtype, device());
  rope_.sines = Tensor(sines, {positions, half}, dtype, device());
}

int64_t Transformer::rope_table_bytes() const {
  return rope_.rotary_dim ? 2 * rope_.cosines.bytes() : 0;
}

Variable Transformer::hidden(Context& context, const TokenBatch& batch, KvStore& store,
                             Recompute recompute, const WantedRows* wanted) {
  HEIRLOOM_ASSERT(wanted == nullptr || !recording(context));
  Residual state;
  state.residual = embedding(context, batch, *embedding_, position_embedding_);
  state.residual =
      dropout(context, state.residual, context.dropout.embedding, kEmbeddingDropoutSite);

  const int64_t last_writer = wanted ? layout_.last_writing_layer() : config_.num_hidden_layers - 1;
  for (int64_t l = 0; l <= last_writer; ++l) {
    const BlockModule& block = blocks_[static_cast<size_t>(l)];
    if (recompute == Recompute::kBlock && recording(context)) {
      const auto forward = [this, &block, positions = batch.positions, &store](
                               Context& c, const std::vector<Variable>& in) {
        Residual out = run_block(c, block, {in[0], in.size() > 1 ? in[1] : Variable()}, rope_,
                                 positions, store);
        return std::vector<Variable>{std::move(out.residual), std::move(out.delta)};
      };
      std::vector<Variable> inputs{std::move(state.residual)};
      if (state.delta.value.defined()) inputs.push_back(std::move(state.delta));
      std::vector<Variable> outputs = segment(context, inputs, forward);
      inputs.clear();
      state = {std::move(outputs[0]), std::move(outputs[1])};
    } else {
      state = run_block(context, block, std::exchange(state, {}), rope_, batch.positions, store);
    }
  }
  if (wanted == nullptr) return run_norm(context, final_norm_, state).y;

  const int64_t rows = static_cast<int64_t>(wanted->rows.size());
  if (rows == 0) return {};
  const Phase phase = std::exchange(context.phase, Phase::kDecode);
  state.residual.value = gather_rows(context, state.residual.value, wanted->rows.data(), rows);
  state.delta.value = gather_rows(context, state.delta.value, wanted->rows.data(), rows);
  ReadOnlyView view(store, wanted->sequences);
  for (int64_t l = last_writer + 1; l < config_.num_hidden_layers; ++l) {
    state = run_block(context, blocks_[static_cast<size_t>(l)], std::exchange(state, {}), rope_,
                      wanted->positions.data(), view);
  }
  Variable y = run_norm(context, final_norm_, state).y;
  context.phase = phase;
  return y;
}

void Transformer::loss(Context& context, const TokenBatch& batch, KvStore& store,
                       const int32_t* targets, double scale, double* nll, Recompute recompute) {
  const Variable y = hidden(context, batch, store, recompute);
  cross_entropy_loss(context, y, *head_, targets, scale, nll);
}

Tensor Transformer::logits(Context& context, const Tensor& hidden) {
  return linear_accumulate_dtype(context, hidden, head_->value);
}

}  // namespace heirloom
