// SPDX-License-Identifier: Apache-2.0
#include "heirloom/ops/activation.h"

namespace heirloom {

Variable activation(Context& context, const Variable& x, ActivationKind kind) {
  const int64_t n = x.value.dim(0),
                f = kind == ActivationKind::kSwiglu ? x.value.dim(1) / 2 : x.value.dim(1);
  Tensor y = context.allocate({n, f}, x.value.dtype());
  ActivationForwardArgs args;
  args.kind = kind;
  args.x = x.value.data();
  args.y = y.data();
  args.n = n;
  args.f = f;
  context.run(activation_forward_table(), activation_forward_cost, x.value.dtype(), args);
  Variable out = result(context, std::move(y));
  if (recording(context)) {
    context.tape->record([x, kind, f, slot = out.slot, tape = context.tape](Context& c) {
      const Tensor dy = tape->take(slot);
      if (!dy.defined()) return;
      Tensor dx = c.allocate(x.value.shape(), x.value.dtype());
      ActivationBackwardArgs b;
      b.kind = kind;
      b.x = x.value.data();
      b.dy = dy.data();
      b.dx = dx.data();
      b.n = dy.dim(0);
      b.f = f;
      c.run(activation_backward_table(), activation_backward_cost, dy.dtype(), b);
      tape->deliver(c, x.slot, std::move(dx));
    });
  }
  return out;
}

}  // namespace heirloom
