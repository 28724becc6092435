// SPDX-License-Identifier: Apache-2.0
#include "heirloom/ops/cross_entropy.h"

#include "heirloom/kernels/cross_entropy.h"
#include "heirloom/ops/linear.h"

namespace heirloom {

void cross_entropy_loss(Context& context, const Variable& x, const Parameter& head,
                        const int32_t* targets, double scale, double* nll) {
  const Dtype dtype = x.value.dtype();
  const int64_t n = x.value.dim(0), v = head.value.dim(0);
  Tensor dx;
  if (recording(context)) dx = context.allocate(x.value.shape(), dtype);
  const int64_t chunk = loss_chunk_rows(context.target());
  for (int64_t begin = 0; begin < n; begin += chunk) {
    const int64_t end = std::min(n, begin + chunk);
    const Tensor rows = x.value.rows(begin, end);
    const Tensor logits = linear_accumulate_dtype(context, rows, head.value);
    Tensor dlogits;
    if (recording(context)) {
      // In place where the dtypes agree: each row is read before it is overwritten.
      dlogits = logits.dtype() == dtype ? logits : context.allocate({end - begin, v}, dtype);
    }
    CrossEntropyArgs args;
    args.logits = logits.data();
    args.targets = targets + begin;
    args.nll = nll + begin;
    args.dlogits = dlogits.data();
    args.n = end - begin;
    args.v = v;
    args.scale = scale;
    context.run(cross_entropy_table(), cross_entropy_cost, dtype, args);
    if (recording(context)) {
      if (head.grad.defined()) linear_backward_weight(context, dlogits, rows, head.grad);
      linear_backward_input(context, dlogits, head.value, dx.rows(begin, end));
    }
  }
  if (recording(context)) {
    context.tape->record([dx = std::move(dx), slot = x.slot, tape = context.tape](
                             Context& c) mutable { tape->deliver(c, slot, std::move(dx)); });
  }
}

}  // namespace heirloom
