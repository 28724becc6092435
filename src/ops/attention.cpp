// SPDX-License-Identifier: Apache-2.0
#include "heirloom/ops/attention.h"

#include "heirloom/core/rng.h"

namespace heirloom {
namespace {

const std::byte* at_column(const Tensor& matrix, int64_t column) {
  return matrix.data()
             ? static_cast<const std::byte*>(matrix.data()) + column * dtype_size(matrix.dtype())
             : nullptr;
}

struct HeadColumns {
  int64_t query, key, value;  // first column of each group in the merged projection
};

HeadColumns head_columns(const AttentionSpec& spec) {
  const int64_t keys = spec.heads * spec.qk_dim;
  return {0, keys, keys + static_cast<int64_t>(spec.own_keys.size()) * spec.qk_dim};
}

void split_heads_backward(Context& c, const Tensor& dq, const Variable& merged,
                          const AttentionSpec& spec, const QkNorm& norm, const RopeAngles& rope,
                          const int32_t* positions, KvStore& store, Tape& tape) {
  const Dtype dtype = merged.value.dtype();
  const int64_t d = spec.qk_dim;
  const HeadColumns columns = head_columns(spec);
  const bool rotate = rope.rotary_dim > 0;
  std::vector<HeadGradRoute> routes;
  for (int64_t h = 0; h < spec.heads; ++h) {
    HeadGradRoute r;
    r.column = columns.query + h * d;
    if (dq.defined()) r.data = at_column(dq, h * d);
    r.row_stride = spec.heads * d;
    r.rotate = rotate;
    if (norm.query) {
      r.norm_weight = norm.query->value.data();
      r.dnorm_weight = norm.query->grad.data();
    }
    routes.push_back(r);
  }
  const auto add_own = [&](const KvRef& ref, int64_t column, bool is_key) {
    const KvHeadGrad g = store.gathered(ref);
    HeadGradRoute r;
    r.column = column;
    r.data = g.data;
    r.row_stride = g.row_stride;
    r.is_accumulate_dtype = g.is_accumulate_dtype;
    r.rotate = is_key && rotate;
    if (is_key && norm.key) {
      r.norm_weight = norm.key->value.data();
      r.dnorm_weight = norm.key->grad.data();
    }
    routes.push_back(r);
  };
  for (size_t i = 0; i < spec.own_keys.size(); ++i) {
    add_own(spec.own_keys[i], columns.key + static_cast<int64_t>(i) * d, true);
  }
  for (size_t i = 0; i < spec.own_values.size(); ++i) {
    add_own(spec.own_values[i], columns.value + static_cast<int64_t>(i) * spec.v_dim, false);
  }
  Tensor dmerged = c.allocate(merged.value.shape(), dtype);
  HeadSplitBackwardArgs args;
  args.merged = merged.value.data();
  args.dmerged = dmerged.data();
  args.routes = routes.data();
  args.route_count = static_cast<int64_t>(routes.size());
  args.n = merged.value.dim(0);
  args.width = merged.value.dim(1);
  args.head_dim = d;
  args.positions = positions;
  args.cosines = rope.cosines.data();
  args.sines = rope.sines.data();
  args.rotary_dim = rope.rotary_dim;
  args.style = rope.style;
  args.eps = norm.eps;
  Tensor workspace;
  if (norm.query) {
    const Dtype sum_dtype = accumulate_dtype(dtype);
    const int64_t bytes =
        head_split_backward_workspace_bytes(args.n, args.route_count, d, dtype, c.target());
    workspace = c.allocate({bytes / dtype_size(sum_dtype)}, sum_dtype);
    args.workspace = workspace.data();
  }
  c.run(head_split_backward_table(), head_split_backward_cost, dtype, args);
  for (const int32_t s : spec.streams) store.finish_backward(s);
  tape.deliver(c, merged.slot, std::move(dmerged));
}

}  // namespace

Variable split_heads(Context& context, const Variable& merged, const AttentionSpec& spec,
                     const QkNorm& norm, const RopeAngles& rope, const int32_t* positions,
                     KvStore& store) {
  const Dtype dtype = merged.value.dtype();
  const int64_t n = merged.value.dim(0), d = spec.qk_dim;
  HEIRLOOM_CHECK(merged.value.dim(1) == spec.merged_width(),
                 "[split_heads] expected {} columns; got {}", spec.merged_width(),
                 merged.value.shape().str());
  HEIRLOOM_CHECK(spec.qk_dim == spec.v_dim, "[split_heads] expected one head width; got {} and {}",
                 spec.qk_dim, spec.v_dim);
  const HeadColumns columns = head_columns(spec);
  const bool rotate = rope.rotary_dim > 0;
  Tensor q = context.allocate({n, spec.heads * d}, dtype);
  std::vector<HeadRoute> routes;
  for (int64_t h = 0; h < spec.heads; ++h) {
    HeadRoute r;
    r.column = columns.query + h * d;
    r.data = const_cast<std::byte*>(at_column(q, h * d));
    r.row_stride = spec.heads * d;
    r.rotate = rotate;
    if (norm.query) r.norm_weight = norm.query->value.data();
    routes.push_back(r);
  }
  const auto add_own = [&](const KvRef& ref, int64_t column, bool is_key) {
    const Tensor stream = store.stream(context, ref.stream);
    HeadRoute r;
    r.column = column;
    r.data = const_cast<std::byte*>(at_column(stream, ref.column));
    r.row_stride = stream.row_stride();
    r.rotate = is_key && rotate;
    r.to_slots = store.slots() != nullptr;
    if (is_key && norm.key) r.norm_weight = norm.key->value.data();
    routes.push_back(r);
  };
  for (size_t i = 0; i < spec.own_keys.size(); ++i) {
    add_own(spec.own_keys[i], columns.key + static_cast<int64_t>(i) * d, true);
  }
  for (size_t i = 0; i < spec.own_values.size(); ++i) {
    add_own(spec.own_values[i], columns.value + static_cast<int64_t>(i) * spec.v_dim, false);
  }
  HeadSplitForwardArgs args;
  args.merged = merged.value.data();
  args.routes = routes.data();
  args.route_count = static_cast<int64_t>(routes.size());
  args.n = n;
  args.width = merged.value.dim(1);
  args.head_dim = d;
  args.positions = positions;
  args.slots = store.slots();
  args.cosines = rope.cosines.data();
  args.sines = rope.sines.data();
  args.rotary_dim = rope.rotary_dim;
  args.style = rope.style;
  args.eps = norm.eps;
  context.run(head_split_forward_table(), head_split_forward_cost, dtype, args);

  Variable out = result(context, std::move(q));
  if (recording(context)) {
    // Backward needs the merged projection itself only for qk_norm; without it the buffer is let go
    // here.
    Variable kept = merged;
    if (!norm.query) kept.value = Tensor(nullptr, merged.value.shape(), dtype, context.device());
    context.tape->record([kept = std::move(kept), spec = &spec, norm, rope, positions,
                          store = &store, slot = out.slot, tape = context.tape](Context& c) {
      split_heads_backward(c, tape->take(slot), kept, *spec, norm, rope, positions, *store, *tape);
    });
  }
  return out;
}

Variable attend(Context& context, const Variable& q, const AttentionSpec& spec, KvStore& store,
                uint64_t layer_key) {
  const Dtype dtype = q.value.dtype();
  const int64_t n = q.value.dim(0);
  Tensor o = context.allocate({n, spec.heads * spec.v_dim}, dtype);
  Tensor lse;
  if (recording(context)) lse = context.allocate({n, spec.heads}, accumulate_dtype(dtype));

  struct Heads {
    std::vector<KvHead> k, v;
    std::vector<Tensor> streams;  // keeps what the addresses point into alive
  };
  Heads heads;
  const auto view = [&](const KvRef& ref) {
    KvHead head;
    if (ref.stream < 0) return head;
    const Tensor& first = heads.streams.emplace_back(store.stream(context, ref.stream));
    head.data = at_column(first, ref.column);
    head.row_stride = first.row_stride();
    if (ref.second_stream >= 0) {
      head.second = at_column(heads.streams.emplace_back(store.stream(context, ref.second_stream)),
                              ref.second_column);
    }
    return head;
  };
  for (const KvRef& ref : spec.keys) heads.k.push_back(view(ref));
  for (const KvRef& ref : spec.values) heads.v.push_back(view(ref));

  AttentionForwardArgs args;
  args.q = q.value.data();
  args.o = o.data();
  args.lse = lse.data();
  args.k = heads.k.data();
  args.v = heads.v.data();
  args.sequences = store.sequences().data();
  args.sequence_count = static_cast<int64_t>(store.sequences().size());
  args.device_sequences = store.device_sequences();
  args.heads = spec.heads;
  args.kv_heads = spec.kv_heads;
  args.qk_dim = spec.qk_dim;
  args.v_dim = spec.v_dim;
  args.q_stride = spec.heads * spec.qk_dim;
  args.o_stride = spec.heads * spec.v_dim;
  args.scale = spec.scale;
  args.window = spec.window;
  args.dropout.rate = context.dropout.attention;
  args.dropout.key = context.dropout.step_key ? layer_key : mix_key(context.dropout.key, layer_key);
  args.dropout.step_key = context.dropout.step_key;
  context.run(
      context.phase == Phase::kDecode ? attention_decode_table() : attention_forward_table(),
      attention_forward_cost, dtype, args);

  Variable out = result(context, o);
  if (recording(context)) {
    context.tape->record([heads = std::move(heads), args, q, o = std::move(o), lse = std::move(lse),
                          spec = &spec, store = &store, slot = out.slot,
                          tape = context.tape](Context& c) mutable {
      const Tensor dout = tape->take(slot);
      if (!dout.defined()) return;
      args.k = heads.k.data();
      args.v = heads.v.data();
      Tensor dq = c.allocate(q.value.shape(), q.value.dtype());
      std::vector<KvHeadGrad> dk, dv;
      for (const KvRef& ref : spec->keys) dk.push_back(store->gradient_target(c, ref));
      for (const KvRef& ref : spec->values) dv.push_back(store->gradient_target(c, ref));
      AttentionBackwardArgs b;
      b.forward = args;
      b.dout = dout.data();
      b.dq = dq.data();
      b.dk = dk.data();
      b.dv = dv.data();
      Tensor workspace;
      const Dtype sum_dtype = accumulate_dtype(dout.dtype());
      if (const int64_t bytes = attention_backward_workspace_bytes(q.value.dim(0), spec->heads,
                                                                   dout.dtype(), c.target())) {
        workspace = c.allocate({bytes / dtype_size(sum_dtype)}, sum_dtype);
        b.workspace = workspace.data();
      }
      c.run(attention_backward_table(), attention_backward_cost, dout.dtype(), b);
      for (const KvRef& ref : spec->keys) store->mark_written(ref);
      for (const KvRef& ref : spec->values) store->mark_written(ref);
      tape->deliver(c, q.slot, std::move(dq));
    });
  }
  for (const int32_t s : spec.streams) store.written_and_read(s);
  return out;
}

}  // namespace heirloom
