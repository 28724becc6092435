// SPDX-License-Identifier: Apache-2.0
#include "heirloom/ops/elementwise.h"

#include "heirloom/core/rng.h"
#include "heirloom/kernels/elementwise.h"

namespace heirloom {
namespace {

void add_or_convert(Context& context, const Tensor& x, const Tensor& y, bool overwrite) {
  HEIRLOOM_CHECK(x.shape() == y.shape(), "[add] expected equal shapes; got {} and {}",
                 x.shape().str(), y.shape().str());
  // The table is named by the compute dtype: the narrower of the two sides.
  const Dtype dtype = x.dtype() == Dtype::kBFloat16 ? x.dtype() : y.dtype();
  AddArgs args;
  args.x = x.data();
  args.y = y.data();
  args.rows = x.shape().rows();
  args.cols = x.shape().cols();
  args.x_stride = x.row_stride();
  args.y_stride = y.row_stride();
  args.x_is_accumulate_dtype = x.dtype() != dtype;
  args.y_is_accumulate_dtype = y.dtype() != dtype;
  args.overwrite = overwrite;
  context.run(add_table(), add_cost, dtype, args);
}

Tensor apply_dropout(Context& context, const Tensor& x, double rate, uint64_t site) {
  Tensor y = context.allocate(x.shape(), x.dtype());
  DropoutArgs args;
  args.x = x.data();
  args.y = y.data();
  args.n = x.shape().rows();
  args.c = x.shape().cols();
  args.sequence_length = context.dropout.sequence_length;
  args.first_sequence = context.dropout.first_sequence;
  args.rate = rate;
  args.key = context.dropout.step_key ? site : mix_key(context.dropout.key, site);
  args.step_key = context.dropout.step_key;
  context.run(dropout_table(), dropout_cost, x.dtype(), args);
  return y;
}

}  // namespace

void add_into(Context& context, const Tensor& x, const Tensor& y) {
  add_or_convert(context, x, y, false);
}
void convert_into(Context& context, const Tensor& x, const Tensor& y) {
  add_or_convert(context, x, y, true);
}

Variable add(Context& context, const Variable& a, const Variable& b) {
  Tensor sum = context.allocate(a.value.shape(), a.value.dtype());
  convert_into(context, a.value, sum);
  add_into(context, b.value, sum);
  Variable y = result(context, std::move(sum));
  if (recording(context)) {
    context.tape->record([a = a.slot, b = b.slot, slot = y.slot, tape = context.tape](Context& c) {
      const Tensor dy = tape->take(slot);
      if (!dy.defined()) return;
      tape->deliver(c, a, dy);
      tape->deliver(c, b, dy);
    });
  }
  return y;
}

Variable dropout(Context& context, const Variable& x, double rate, uint64_t site) {
  if (rate == 0) return x;
  Variable y = result(context, apply_dropout(context, x.value, rate, site));
  if (recording(context)) {
    context.tape->record([x = x.slot, slot = y.slot, rate, site, tape = context.tape](Context& c) {
      const Tensor dy = tape->take(slot);
      if (dy.defined()) tape->deliver(c, x, apply_dropout(c, dy, rate, site));
    });
  }
  return y;
}

}  // namespace heirloom
