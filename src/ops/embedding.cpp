// SPDX-License-Identifier: Apache-2.0
#include "heirloom/ops/embedding.h"

#include "heirloom/kernels/embedding.h"

namespace heirloom {

Variable embedding(Context& context, const int32_t* tokens, const int32_t* positions, int64_t n,
                   const Parameter& table, const Parameter* position_table) {
  EmbeddingForwardArgs args;
  args.tokens = tokens;
  args.positions = positions;
  args.table = table.value.data();
  args.position_table = position_table ? position_table->value.data() : nullptr;
  args.n = n;
  args.c = table.value.dim(1);
  Tensor x = context.allocate({n, args.c}, table.value.dtype());
  args.x = x.data();
  context.run(embedding_forward_table(), embedding_forward_cost, table.value.dtype(), args);
  Variable out = result(context, std::move(x));
  if (recording(context)) {
    context.tape->record(
        [args, table = &table, position_table, slot = out.slot, tape = context.tape](Context& c) {
          const Tensor dx = tape->take(slot);
          if (!dx.defined() || !table->grad.defined()) return;
          EmbeddingBackwardArgs b;
          b.tokens = args.tokens;
          b.positions = args.positions;
          b.dx = dx.data();
          b.dtable = table->grad.data();
          b.dposition_table = position_table ? position_table->grad.data() : nullptr;
          b.n = args.n;
          b.c = args.c;
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
