// SPDX-License-Identifier: Apache-2.0
#include "heirloom/ops/embedding.h"

#include "heirloom/kernels/embedding.h"

namespace heirloom {

Variable embedding(Context& context, const TokenBatch& batch, const Parameter& table,
                   const Parameter* position_table) {
  EmbeddingForwardArgs args;
  args.tokens = batch.tokens;
  args.positions = batch.positions;
  args.table = table.value.data();
  args.position_table = position_table ? position_table->value.data() : nullptr;
  args.n = batch.n;
  args.c = table.value.dim(1);
  Tensor x = context.allocate({args.n, args.c}, table.value.dtype());
  args.x = x.data();
  context.run(embedding_forward_table(), embedding_forward_cost, table.value.dtype(), args);
  Variable out = result(context, std::move(x));
  if (recording(context)) {
    context.tape->record(
        [batch, table = &table, position_table, slot = out.slot, tape = context.tape](Context& c) {
          const Tensor dx = tape->take(slot);
          if (!dx.defined() || !table->grad.defined()) return;
          EmbeddingBackwardArgs b;
          b.tokens = batch.tokens;
          b.positions = batch.positions;
          b.token_order = batch.token_order;
          b.position_order = batch.position_order;
          b.dx = dx.data();
          b.dtable = table->grad.data();
          b.dposition_table = position_table ? position_table->grad.data() : nullptr;
          b.n = batch.n;
          b.c = dx.dim(1);
          c.run(embedding_backward_table(), embedding_backward_cost, dx.dtype(), b);
        });
  }
  return out;
}

Tensor gather_rows(Context& context, const Tensor& x, const int32_t* indices, int64_t n) {
  EmbeddingForwardArgs args;
  args.tokens = indices;
  args.table = x.data();
  args.n = n;
  args.c = x.dim(1);
  Tensor y = context.allocate({n, args.c}, x.dtype());
  args.x = y.data();
  context.run(embedding_forward_table(), embedding_forward_cost, x.dtype(), args);
  return y;
}

}  // namespace heirloom
