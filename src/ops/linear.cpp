// SPDX-License-Identifier: Apache-2.0
#include "heirloom/ops/linear.h"

#include "heirloom/kernels/elementwise.h"
#include "heirloom/kernels/gemm.h"
#include "heirloom/kernels/norm.h"

namespace heirloom {
namespace {

/// The meta device has no memory, but a bias is a bias.
const void* address_of(const Tensor& bias) {
  static const char meta_address = 0;
  return bias.data() ? bias.data() : &meta_address;
}

void run_gemm(Context& context, Dtype dtype, GemmArgs args) {
  args.tf32 = context.tf32;
  if (context.gemms) context.gemms->push_back({args, dtype});
  context.run(gemm_table(), gemm_cost, dtype, args);
}

Tensor product(Context& context, const Tensor& x, const Tensor& weight, const Tensor* bias,
               Dtype out_dtype) {
  HEIRLOOM_CHECK(x.shape().rank() == 2 && weight.shape().rank() == 2 && x.dim(1) == weight.dim(1),
                 "[linear] expected x (N, in) and weight (out, in); got {} and {}", x.shape().str(),
                 weight.shape().str());
  HEIRLOOM_CHECK(x.dtype() == weight.dtype(), "[linear] expected one dtype; got x {} and weight {}",
                 dtype_name(x.dtype()), dtype_name(weight.dtype()));
  const int64_t n = x.dim(0), in = x.dim(1), out = weight.dim(0);
  Tensor y = context.allocate({n, out}, out_dtype);
  if (context.phase == Phase::kDecode) {
    LinearRowsArgs args;
    args.x = x.data();
    args.weight = weight.data();
    args.bias = bias ? bias->data() : nullptr;
    args.y = y.data();
    args.rows = n;
    args.in = in;
    args.out = out;
    args.x_stride = x.row_stride();
    args.y_stride = out;
    args.y_is_accumulate_dtype = out_dtype != x.dtype();
    context.run(linear_rows_table(), linear_rows_cost, x.dtype(), args);
  } else {
    GemmArgs args;
    args.a = x.data();
    args.b = weight.data();
    args.c = y.data();
    args.bias = bias ? address_of(*bias) : nullptr;
    args.m = n;
    args.n = out;
    args.k = in;
    args.lda = x.row_stride();
    args.ldb = in;
    args.ldc = out;
    args.transpose_b = true;
    args.c_is_accumulate_dtype = out_dtype != x.dtype();
    run_gemm(context, x.dtype(), args);
  }
  return y;
}

}  // namespace

void linear_backward_input(Context& context, const Tensor& dy, const Tensor& weight,
                           const Tensor& dx) {
  GemmArgs args;
  args.a = dy.data();
  args.b = weight.data();
  args.c = dx.data();
  args.m = dy.dim(0);
  args.n = weight.dim(1);
  args.k = weight.dim(0);
  args.lda = dy.row_stride();
  args.ldb = weight.dim(1);
  args.ldc = dx.row_stride();
  run_gemm(context, dy.dtype(), args);
}

void linear_backward_weight(Context& context, const Tensor& dy, const Tensor& x,
                            const Tensor& dweight) {
  GemmArgs args;
  args.a = dy.data();
  args.b = x.data();
  args.c = dweight.data();
  args.m = dweight.dim(0);
  args.n = dweight.dim(1);
  args.k = x.dim(0);
  args.lda = dy.row_stride();
  args.ldb = x.row_stride();
  args.ldc = dweight.dim(1);
  args.transpose_a = true;
  args.c_is_accumulate_dtype = dweight.dtype() != dy.dtype();
  args.accumulate = true;
  run_gemm(context, dy.dtype(), args);
}

Variable linear(Context& context, const Variable& x, const Parameter& weight,
                const Parameter* bias) {
  Variable y = result(context, product(context, x.value, weight.value,
                                       bias ? &bias->value : nullptr, x.value.dtype()));
  if (recording(context)) {
    context.tape->record(
        [x, weight = &weight, bias, slot = y.slot, tape = context.tape](Context& c) {
          const Tensor dy = tape->take(slot);
          if (!dy.defined()) return;
          if (weight->grad.defined()) linear_backward_weight(c, dy, x.value, weight->grad);
          if (bias && bias->grad.defined()) {
            ColumnSumArgs args;
            args.dy = dy.data();
            args.db = bias->grad.data();
            args.n = dy.dim(0);
            args.c = dy.dim(1);
            const Tensor workspace =
                c.allocate({reduction_chunks(args.n, c.target()), args.c}, bias->grad.dtype());
            args.workspace = workspace.data();
            c.run(column_sum_table(), column_sum_cost, dy.dtype(), args);
          }
          if (x.slot >= 0) {
            Tensor dx = c.allocate(x.value.shape(), x.value.dtype());
            linear_backward_input(c, dy, weight->value, dx);
            tape->deliver(c, x.slot, std::move(dx));
          }
        });
  }
  return y;
}

Tensor linear_accumulate_dtype(Context& context, const Tensor& x, const Tensor& weight) {
  return product(context, x, weight, nullptr, accumulate_dtype(x.dtype()));
}

}  // namespace heirloom
