// SPDX-License-Identifier: Apache-2.0
#include "heirloom/ops/norm.h"

namespace heirloom {

AddNorm add_norm(Context& context, const Variable& residual, const Variable& delta, NormKind kind,
                 const Parameter& weight, const Parameter* bias, double eps) {
  const Tensor& r = residual.value;
  const int64_t n = r.dim(0), width = r.dim(1);
  const Dtype dtype = r.dtype(), accumulate = accumulate_dtype(dtype);
  const bool has_delta = delta.value.defined();
  HEIRLOOM_CHECK(weight.value.numel() == width, "[norm] expected a weight of {} elements; got {}",
                 width, weight.value.shape().str());
  Tensor x = has_delta ? context.allocate(r.shape(), dtype) : r;
  Tensor y = context.allocate(r.shape(), dtype);
  Tensor mean, rstd;
  if (recording(context)) {
    rstd = context.allocate({n}, accumulate);
    if (kind == NormKind::kLayer) mean = context.allocate({n}, accumulate);
  }
  NormForwardArgs args;
  args.kind = kind;
  args.residual = r.data();
  args.delta = has_delta ? delta.value.data() : nullptr;
  args.x_out = has_delta ? x.data() : nullptr;
  args.weight = weight.value.data();
  args.bias = bias ? bias->value.data() : nullptr;
  args.y = y.data();
  args.mean = mean.data();
  args.rstd = rstd.data();
  args.n = n;
  args.c = width;
  args.eps = eps;
  context.run(norm_forward_table(), norm_forward_cost, dtype, args);

  AddNorm out{result(context, x), result(context, std::move(y))};
  if (recording(context)) {
    context.tape->record([x = std::move(x), mean, rstd, kind, weight = &weight, bias,
                          from = residual.slot, delta = has_delta ? delta.slot : -1,
                          residual_slot = out.residual.slot, y_slot = out.y.slot,
                          tape = context.tape](Context& c) {
      const Tensor dy = tape->take(y_slot);
      Tensor dresidual = tape->take(residual_slot);
      Tensor dx;
      if (!dy.defined()) {
        dx = std::move(dresidual);
      } else {
        // In place on what flows past the norm, unless somebody else still reads it.
        dx = dresidual.unique() ? dresidual : dy.unique() ? dy : c.allocate(dy.shape(), dy.dtype());
        NormBackwardArgs b;
        b.kind = kind;
        b.dy = dy.data();
        b.dresidual = dresidual.defined() ? dresidual.data() : nullptr;
        b.x = x.data();
        b.weight = weight->value.data();
        b.mean = mean.data();
        b.rstd = rstd.data();
        b.dx = dx.data();
        b.n = x.dim(0);
        b.c = x.dim(1);
        Tensor scratch;
        const Dtype sum_dtype = accumulate_dtype(dy.dtype());
        if (!weight->grad.defined())
          scratch = c.allocate({2, b.c}, sum_dtype);  // frozen: sums go nowhere
        b.dweight = weight->grad.defined() ? weight->grad.data() : scratch.data();
        b.dbias = bias && bias->grad.defined() ? bias->grad.data() : nullptr;
        const int64_t bytes = norm_backward_workspace_bytes(b.n, b.c, dy.dtype(), c.target());
        const Tensor workspace = c.allocate({bytes / dtype_size(sum_dtype)}, sum_dtype);
        b.workspace = workspace.data();
        c.run(norm_backward_table(), norm_backward_cost, dy.dtype(), b);
      }
      if (!dx.defined()) return;
      tape->deliver(c, from, dx);
      tape->deliver(c, delta, std::move(dx));
    });
  }
  return out;
}

}  // namespace heirloom
