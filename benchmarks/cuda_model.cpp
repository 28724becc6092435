// SPDX-License-Identifier: Apache-2.0
//
// What the CUDA kernels ask of a memory system, modelled by the emulator (tests/cuda_emulator/src/
// instrument.h): each operation once, at the widths of real models and few rows, in an instrumented
// build. Prints JSON, for tools/kernel_table.py:
//   cases   per operation, dtype and shape: modelled DRAM bytes beside the operation's own cost, and
//           per kernel sectors and wavefronts used and ideal, with the lines that are off;
//   models  the cost of every operation of a training step at full size, by the same formulas.
// Ends with 1 when the emulator found anything wrong in a kernel.
#include <fmt/format.h>

#include <cmath>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "heirloom/core/device_runtime.h"
#include "heirloom/kernels/activation.h"
#include "heirloom/kernels/attention.h"
#include "heirloom/kernels/cross_entropy.h"
#include "heirloom/kernels/elementwise.h"
#include "heirloom/kernels/embedding.h"
#include "heirloom/kernels/gemm.h"
#include "heirloom/kernels/head_split.h"
#include "heirloom/kernels/norm.h"
#include "heirloom/kernels/optimizer.h"
#include "tests/cuda_emulator/src/instrument.h"

namespace heirloom {
namespace {

using emulator::Space;

class Device {
 public:
  Device() : runtime_(device_runtime(DeviceKind::kCuda)), stream_(runtime_.stream(0)) {}
  ~Device() { release(); }

  Stream stream() const { return stream_; }
  void synchronize() { runtime_.synchronize(stream_); }
  void release() {
    for (void* p : held_) runtime_.release(0, p);
    held_.clear();
  }
  template <class T>
  T* upload(const std::vector<T>& values) {
    const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
    void* data = runtime_.allocate(0, bytes);
    held_.push_back(data);
    runtime_.copy_to_device(data, values.data(), bytes, stream_);
    return static_cast<T*>(data);
  }
  /// n values of a dtype, some between -1 and 1.
  void* numbers(int64_t n, Dtype dtype) {
    if (dtype == Dtype::kFloat64) return upload(make<double>(n));
    if (dtype == Dtype::kFloat32) return upload(make<float>(n));
    std::vector<bfloat16> values(static_cast<size_t>(n));
    const std::vector<float> wide = make<float>(n);
    for (size_t i = 0; i < values.size(); ++i) values[i] = bfloat16(wide[i]);
    return upload(values);
  }
  void* zeros(int64_t n, Dtype dtype) {
    return upload(std::vector<unsigned char>(static_cast<size_t>(n * dtype_size(dtype))));
  }

 private:
  template <class T>
  std::vector<T> make(int64_t n) {
    std::vector<T> values(static_cast<size_t>(n));
    for (T& x : values) {
      state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
      x = static_cast<T>(static_cast<double>(state_ >> 40) * 0x1p-23 - 1.0);
    }
    return values;
  }
  DeviceRuntime& runtime_;
  Stream stream_;
  std::vector<void*> held_;
  uint64_t state_ = 1;
};

class Report {
 public:
  void measure(const std::string& operation, Dtype dtype, const std::string& shape,
               const KernelCost& cost, Device& device, const std::function<void()>& run) {
    device.synchronize();
    emulator::take_traffic();
    run();
    device.synchronize();
    std::string kernels;
    uint64_t read = 0, written = 0;
    for (const emulator::KernelTraffic& t : emulator::take_traffic()) {
      read += t.dram_read;
      written += t.dram_written;
      std::string lines;
      for (const emulator::LineTraffic& l : t.lines) {
        if (l.atomic || static_cast<double>(l.used) <= 1.05 * static_cast<double>(l.ideal))
          continue;
        lines += fmt::format(
            R"({}{{"line": "{}", "space": "{}", "access": "{}", "bytes": {}, "accesses": {}, "used": {}, "ideal": {}}})",
            lines.empty() ? "" : ", ", l.line, l.space == Space::kGlobal ? "global" : "shared",
            l.matrix  ? "ldmatrix"
            : l.write ? "write"
                      : "read",
            l.bytes, l.accesses, l.used, l.ideal);
      }
      kernels += fmt::format(
          R"({}
      {{"name": "{}", "launches": {}, "blocks": {}, "threads": {}, "dynamic_shared": {}, "dram_read": {}, "dram_written": {}, "sectors": {}, "ideal_sectors": {}, "wavefronts": {}, "ideal_wavefronts": {}, "off": [{}]}})",
          kernels.empty() ? "" : ",", t.kernel, t.launches, t.blocks, t.threads, t.shared_bytes,
          t.dram_read, t.dram_written, t.used(Space::kGlobal), t.ideal(Space::kGlobal),
          t.used(Space::kShared), t.ideal(Space::kShared), lines);
    }
    cases_ += fmt::format(
        R"({}
    {{"operation": "{}", "dtype": "{}", "shape": "{}", "dram_read": {}, "dram_written": {}, "cost_read": {:.0f}, "cost_written": {:.0f}, "kernels": [{}]}})",
        cases_.empty() ? "" : ",", operation, dtype_name(dtype), shape, read, written,
        cost.bytes_read, cost.bytes_written, kernels);
    const auto found = emulator::take_report();
    if (!found.empty()) {
      failed_ = true;
      std::fprintf(stderr, "%s %s %s:\n%s", operation.c_str(), dtype_name(dtype), shape.c_str(),
                   emulator::format(found).c_str());
    }
    device.release();
  }
  void operation(const std::string& name, int64_t calls, const KernelCost& cost) {
    operations_ += fmt::format(
        R"({}
      {{"operation": "{}", "calls": {}, "bytes_read": {:.0f}, "bytes_written": {:.0f}, "flops": {:.0f}}})",
        operations_.empty() ? "" : ",", name, calls, cost.bytes_read, cost.bytes_written,
        cost.flops);
  }
  void end_model(const std::string& name, int64_t tokens) {
    models_ += fmt::format(R"({}
    {{"model": "{}", "tokens": {}, "operations": [{}]}})",
                           models_.empty() ? "" : ",", name, tokens, operations_);
    operations_.clear();
  }
  int print() const {
    std::printf("{\n  \"cases\": [%s],\n  \"models\": [%s]\n}\n", cases_.c_str(), models_.c_str());
    return failed_ ? 1 : 0;
  }

 private:
  std::string cases_, models_, operations_;
  bool failed_ = false;
};

template <class Args>
auto call(KernelTable<Args>& table, Dtype dtype, const Args& args, Device& device) {
  return [&table, dtype, args, &device] {
    table.get(DeviceKind::kCuda, dtype)(args, device.stream());
  };
}

void norms(Report& report, Device& d, Dtype t, int64_t n, int64_t c) {
  const Dtype a = accumulate_dtype(t);
  const std::string shape = fmt::format("N {}, C {}", n, c);
  NormForwardArgs f{.residual = d.numbers(n * c, t),
                    .delta = d.numbers(n * c, t),
                    .x_out = d.zeros(n * c, t),
                    .weight = d.numbers(c, t),
                    .y = d.zeros(n * c, t),
                    .rstd = d.zeros(n, a),
                    .n = n,
                    .c = c};
  report.measure("norm_forward", t, shape, norm_forward_cost(f, t), d,
                 call(norm_forward_table(), t, f, d));
  NormBackwardArgs b{
      .dy = d.numbers(n * c, t),
      .dresidual = d.numbers(n * c, t),
      .x = d.numbers(n * c, t),
      .weight = d.numbers(c, t),
      .rstd = d.numbers(n, a),
      .dx = d.zeros(n * c, t),
      .dweight = d.zeros(c, a),
      .workspace =
          d.zeros(norm_backward_workspace_bytes(n, c, t, DeviceKind::kCuda) / dtype_size(a), a),
      .n = n,
      .c = c};
  report.measure("norm_backward", t, shape, norm_backward_cost(b, t), d,
                 call(norm_backward_table(), t, b, d));
}

void activations(Report& report, Device& d, Dtype t, int64_t n, int64_t f,
                 ActivationKind kind = ActivationKind::kSwiglu) {
  const int64_t width = kind == ActivationKind::kSwiglu ? 2 * f : f;
  const std::string shape =
      fmt::format("{}N {}, F {}", kind == ActivationKind::kSwiglu ? "" : "GELU, ", n, f);
  ActivationForwardArgs forward{
      .kind = kind, .x = d.numbers(n * width, t), .y = d.zeros(n * f, t), .n = n, .f = f};
  report.measure("activation_forward", t, shape, activation_forward_cost(forward, t), d,
                 call(activation_forward_table(), t, forward, d));
  ActivationBackwardArgs backward{.kind = kind,
                                  .x = d.numbers(n * width, t),
                                  .dy = d.numbers(n * f, t),
                                  .dx = d.zeros(n * width, t),
                                  .n = n,
                                  .f = f};
  report.measure("activation_backward", t, shape, activation_backward_cost(backward, t), d,
                 call(activation_backward_table(), t, backward, d));
}

void elementwise(Report& report, Device& d, Dtype t, int64_t n, int64_t c) {
  const Dtype a = accumulate_dtype(t);
  const std::string shape = fmt::format("N {}, C {}", n, c);
  AddArgs add{.x = d.numbers(n * c, t),
              .y = d.numbers(n * c, a),
              .rows = n,
              .cols = c,
              .x_stride = c,
              .y_stride = c,
              .y_is_accumulate_dtype = true};
  report.measure("add", t, shape, add_cost(add, t), d, call(add_table(), t, add, d));
  ColumnSumArgs sum{.dy = d.numbers(n * c, t),
                    .db = d.zeros(c, a),
                    .workspace = d.zeros(reduction_chunks(n, DeviceKind::kCuda) * c, a),
                    .n = n,
                    .c = c};
  report.measure("column_sum", t, shape, column_sum_cost(sum, t), d,
                 call(column_sum_table(), t, sum, d));
  DropoutArgs dropout{.x = d.numbers(n * c, t),
                      .y = d.zeros(n * c, t),
                      .n = n,
                      .c = c,
                      .sequence_length = n / 2,
                      .rate = 0.2,
                      .key = 7};
  report.measure("dropout", t, shape, dropout_cost(dropout, t), d,
                 call(dropout_table(), t, dropout, d));
}

void embeddings(Report& report, Device& d, Dtype t, int64_t n, int64_t c, int64_t vocabulary) {
  std::vector<int32_t> tokens(static_cast<size_t>(n)), order(static_cast<size_t>(n));
  // Every token once, so that rows of the table are read as often as the cost says.
  for (int64_t i = 0; i < n; ++i) {
    tokens[static_cast<size_t>(i)] = static_cast<int32_t>((n - 1 - i) * (vocabulary / n));
    order[static_cast<size_t>(i)] = static_cast<int32_t>(n - 1 - i);
  }
  const std::string shape = fmt::format("N {}, C {}, V {}", n, c, vocabulary);
  EmbeddingForwardArgs f{.tokens = d.upload(tokens),
                         .table = d.numbers(vocabulary * c, t),
                         .x = d.zeros(n * c, t),
                         .n = n,
                         .c = c};
  report.measure("embedding_forward", t, shape, embedding_forward_cost(f, t), d,
                 call(embedding_forward_table(), t, f, d));
  EmbeddingBackwardArgs b{.tokens = d.upload(tokens),
                          .dx = d.numbers(n * c, t),
                          .dtable = d.zeros(vocabulary * c, accumulate_dtype(t)),
                          .n = n,
                          .c = c,
                          .token_order = d.upload(order)};
  report.measure("embedding_backward", t, shape, embedding_backward_cost(b, t), d,
                 call(embedding_backward_table(), t, b, d));
}

void losses(Report& report, Device& d, Dtype t, int64_t n, int64_t v) {
  std::vector<int32_t> targets(static_cast<size_t>(n));
  for (size_t i = 0; i < targets.size(); ++i)
    targets[i] = static_cast<int32_t>(i * 997 % static_cast<size_t>(v));
  CrossEntropyArgs a{.logits = d.numbers(n * v, accumulate_dtype(t)),
                     .targets = d.upload(targets),
                     .nll = static_cast<double*>(d.zeros(n, Dtype::kFloat64)),
                     .dlogits = d.zeros(n * v, t),
                     .n = n,
                     .v = v,
                     .scale = 1.0 / static_cast<double>(n)};
  report.measure("cross_entropy", t, fmt::format("N {}, V {}", n, v), cross_entropy_cost(a, t), d,
                 call(cross_entropy_table(), t, a, d));
}

/// H heads of q, k and v each: merged rows there, each head at its own place here.
void head_splits(Report& report, Device& d, Dtype t, int64_t n, int64_t heads, int64_t dim) {
  const Dtype a = accumulate_dtype(t);
  const int64_t width = 3 * heads * dim;
  auto* out = static_cast<char*>(d.zeros(n * width, t));
  auto* gradients = static_cast<char*>(d.numbers(n * width, t));
  std::vector<HeadRoute> routes;
  std::vector<HeadGradRoute> gradient_routes;
  for (int64_t h = 0; h < 3 * heads; ++h) {
    // q, k and v each as one (N, heads, dim) tensor.
    const int64_t part = h / heads, first = part * n * heads * dim + h % heads * dim;
    HeadRoute f;
    f.column = h * dim;
    f.data = out + first * dtype_size(t);
    f.row_stride = heads * dim;
    f.rotate = part < 2;
    routes.push_back(f);
    HeadGradRoute b;
    b.column = f.column;
    b.data = gradients + first * dtype_size(t);
    b.row_stride = f.row_stride;
    b.rotate = f.rotate;
    gradient_routes.push_back(b);
  }
  std::vector<int32_t> positions(static_cast<size_t>(n));
  for (size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<int32_t>(i);
  const auto count = static_cast<int64_t>(routes.size());
  const std::string shape = fmt::format("N {}, H {} (q, k, v), D {}", n, heads, dim);
  HeadSplitForwardArgs f{.merged = d.numbers(n * width, t),
                         .routes = routes.data(),
                         .route_count = count,
                         .n = n,
                         .width = width,
                         .head_dim = dim,
                         .positions = d.upload(positions),
                         .cosines = d.numbers(n * dim / 2, a),
                         .sines = d.numbers(n * dim / 2, a),
                         .rotary_dim = dim};
  HeadSplitBackwardArgs b{.dmerged = d.zeros(n * width, t),
                          .routes = gradient_routes.data(),
                          .route_count = count,
                          .n = n,
                          .width = width,
                          .head_dim = dim,
                          .positions = f.positions,
                          .cosines = f.cosines,
                          .sines = f.sines,
                          .rotary_dim = dim};
  report.measure("head_split_forward", t, shape, head_split_forward_cost(f, t), d,
                 call(head_split_forward_table(), t, f, d));
  // `measure` gave the memory back.
  b.positions = d.upload(positions);
  b.cosines = d.numbers(n * dim / 2, a);
  b.sines = d.numbers(n * dim / 2, a);
  b.dmerged = d.zeros(n * width, t);
  auto* again = static_cast<char*>(d.numbers(n * width, t));
  for (HeadGradRoute& r : gradient_routes) {
    r.data = again + (static_cast<const char*>(r.data) - gradients);
  }
  report.measure("head_split_backward", t, shape, head_split_backward_cost(b, t), d,
                 call(head_split_backward_table(), t, b, d));
}

struct AttentionShape {
  int64_t sequences = 1, length = 0, heads = 0, kv_heads = 0, dim = 0;
  double dropout = 0;
};

class Attention {
 public:
  Attention(const AttentionShape& s, Dtype t, Device* d) : shape_(s) {
    const int64_t n = s.sequences * s.length, size = dtype_size(t);
    const auto numbers = [&](int64_t count, Dtype dtype) -> char* {
      return d ? static_cast<char*>(d->numbers(count, dtype)) : nullptr;
    };
    char* k = numbers(n * s.kv_heads * s.dim, t);
    char* v = numbers(n * s.kv_heads * s.dim, t);
    char* dk = numbers(n * s.kv_heads * s.dim, t);
    char* dv = numbers(n * s.kv_heads * s.dim, t);
    static char anything;  // costs look only whether a pointer is null
    for (int64_t g = 0; g < s.kv_heads; ++g) {
      const int64_t at = g * s.dim * size, stride = s.kv_heads * s.dim;
      k_.push_back({d ? k + at : &anything, nullptr, stride});
      v_.push_back({d ? v + at : &anything, nullptr, stride});
      KvHeadGrad grad;
      grad.row_stride = stride;
      grad.data = d ? dk + at : &anything;
      dk_.push_back(grad);
      grad.data = d ? dv + at : &anything;
      dv_.push_back(grad);
    }
    for (int64_t i = 0; i < s.sequences; ++i) {
      sequences_.push_back({.query_row = i * s.length,
                            .queries = s.length,
                            .keys = s.length,
                            .key_row = i * s.length,
                            .dropout_sequence = static_cast<uint32_t>(i)});
    }
    const int64_t stride = s.heads * s.dim;
    forward = {.q = numbers(n * stride, t),
               .o = d ? d->numbers(n * stride, t) : nullptr,
               .lse = d ? d->numbers(n * s.heads, accumulate_dtype(t)) : &anything,
               .k = k_.data(),
               .v = v_.data(),
               .sequences = sequences_.data(),
               .sequence_count = s.sequences,
               .heads = s.heads,
               .kv_heads = s.kv_heads,
               .qk_dim = s.dim,
               .v_dim = s.dim,
               .q_stride = stride,
               .o_stride = stride,
               .scale = 1.0 / std::sqrt(static_cast<double>(s.dim)),
               .dropout = {.rate = s.dropout, .key = 3}};
    if (d) forward.device_sequences = d->upload(sequences_);
    backward = {.forward = forward, .dk = dk_.data(), .dv = dv_.data()};
    if (d) {
      backward.dout = d->numbers(n * stride, t);
      backward.dq = d->zeros(n * stride, t);
      const int64_t bytes = attention_backward_workspace_bytes(n, s.heads, t, DeviceKind::kCuda);
      if (bytes > 0) backward.workspace = d->zeros(bytes, Dtype::kFloat32);
    }
  }
  AttentionForwardArgs forward;
  AttentionBackwardArgs backward;
  std::string text() const {
    return fmt::format("B {}, S {}, H {}, G {}, D {}{}", shape_.sequences, shape_.length,
                       shape_.heads, shape_.kv_heads, shape_.dim,
                       shape_.dropout > 0 ? ", dropout" : "");
  }

 private:
  AttentionShape shape_;
  std::vector<KvHead> k_, v_;
  std::vector<KvHeadGrad> dk_, dv_;
  std::vector<AttentionSequence> sequences_;
};

void attention(Report& report, Device& d, Dtype t, const AttentionShape& shape) {
  {
    const Attention a(shape, t, &d);
    report.measure("attention_forward", t, a.text(), attention_forward_cost(a.forward, t), d,
                   call(attention_forward_table(), t, a.forward, d));
  }
  const Attention a(shape, t, &d);
  report.measure("attention_backward", t, a.text(), attention_backward_cost(a.backward, t), d,
                 call(attention_backward_table(), t, a.backward, d));
}

void optimizer(Report& report, Device& d, Dtype t, bool narrow) {
  const Dtype a = accumulate_dtype(t), state = narrow ? t : a;
  std::vector<OptimizerSegment> segments(2);
  const int64_t sizes[] = {3 * kOptimizerRun, kOptimizerRun / 2};
  for (size_t i = 0; i < 2; ++i) {
    const int64_t n = sizes[i];
    segments[i] = {.master = narrow ? nullptr : d.numbers(n, a),
                   .weight = narrow || t != a ? d.numbers(n, t) : nullptr,
                   .grad = d.numbers(n, a),
                   .m = d.numbers(n, state),
                   .v = d.zeros(n, state),
                   .n = n,
                   .weight_decay = 0.1};
  }
  const int64_t runs = number_runs(segments.data(), 2);
  const std::string shape =
      fmt::format("{} parameters{}", sizes[0] + sizes[1], narrow ? ", narrow" : "");
  AdamwArgs host{
      .segments = segments.data(), .segment_count = 2, .runs = runs, .narrow_state = narrow};
  const KernelCost cost = adamw_cost(host, t);
  AdamwArgs args = host;
  args.segments = d.upload(segments);
  args.scalars = d.upload(std::vector<AdamwScalars>{
      {.lr = 1e-3, .bias_correction1 = 0.1, .bias_correction2 = 0.05, .rounding_key = 5}});
  SumSquaresArgs squares{.segments = segments.data(), .segment_count = 2, .runs = runs};
  const KernelCost squares_cost = sum_squares_cost(squares, t);
  squares.segments = args.segments;
  squares.workspace = static_cast<double*>(d.zeros(runs, Dtype::kFloat64));
  squares.result = static_cast<double*>(d.zeros(1, Dtype::kFloat64));
  if (!narrow) {
    const auto both = [&] {
      sum_squares_table().get(DeviceKind::kCuda, t)(squares, d.stream());
      d.synchronize();
    };
    Device none;  // the memory stays for adamw
    report.measure("sum_squares", t, shape, squares_cost, none, both);
  }
  report.measure("adamw", t, shape, cost, d, call(adamw_table(), t, args, d));
}

struct Model {
  const char* name;
  int64_t layers, width, hidden, heads, parameters;
};

// One micro-batch of `tokens` in sequences of `length`, bfloat16; one optimizer step beside it.
void full_size(Report& report, const Model& m, int64_t tokens, int64_t length) {
  const Dtype t = Dtype::kBFloat16;
  const int64_t n = tokens, c = m.width, f = m.hidden, v = 32000, layers = m.layers;
  static char anything;
  void* some = &anything;
  const auto gemm = [&](const char* name, int64_t calls, int64_t rows, int64_t columns, int64_t k,
                        bool gradient = false) {
    report.operation(name, calls,
                     gemm_cost({.m = rows,
                                .n = columns,
                                .k = k,
                                .c_is_accumulate_dtype = gradient,
                                .accumulate = gradient},
                               t));
  };
  NormForwardArgs norm{.delta = some, .rstd = some, .n = n, .c = c};
  report.operation("norm_forward", 2 * layers + 1, norm_forward_cost(norm, t));
  NormBackwardArgs dnorm{.dresidual = some, .n = n, .c = c};
  report.operation("norm_backward", 2 * layers + 1, norm_backward_cost(dnorm, t));
  ActivationForwardArgs act{.n = n, .f = f};
  report.operation("activation_forward", layers, activation_forward_cost(act, t));
  ActivationBackwardArgs dact{.n = n, .f = f};
  report.operation("activation_backward", layers, activation_backward_cost(dact, t));
  const int64_t dim = c / m.heads;
  std::vector<HeadRoute> routes(static_cast<size_t>(3 * m.heads));
  std::vector<HeadGradRoute> grads(routes.size());
  for (size_t i = 0; i < routes.size(); ++i) {
    routes[i].rotate = grads[i].rotate = i < 2 * static_cast<size_t>(m.heads);
    routes[i].data = some;
    grads[i].data = some;
  }
  HeadSplitForwardArgs split{.routes = routes.data(),
                             .route_count = 3 * m.heads,
                             .n = n,
                             .head_dim = dim,
                             .rotary_dim = dim};
  report.operation("head_split_forward", layers, head_split_forward_cost(split, t));
  HeadSplitBackwardArgs merge{.routes = grads.data(),
                              .route_count = 3 * m.heads,
                              .n = n,
                              .head_dim = dim,
                              .rotary_dim = dim};
  report.operation("head_split_backward", layers, head_split_backward_cost(merge, t));
  const Attention a({n / length, length, m.heads, m.heads, dim, 0}, t, nullptr);
  report.operation("attention_forward", layers, attention_forward_cost(a.forward, t));
  report.operation("attention_backward", layers, attention_backward_cost(a.backward, t));
  gemm("gemm forward", layers, n, 3 * c, c);
  gemm("gemm forward", layers, n, c, c);
  gemm("gemm forward", layers, n, 2 * f, c);
  gemm("gemm forward", layers, n, c, f);
  gemm("gemm backward, inputs", layers, n, c, 3 * c);
  gemm("gemm backward, inputs", layers, n, c, c);
  gemm("gemm backward, inputs", layers, n, c, 2 * f);
  gemm("gemm backward, inputs", layers, n, f, c);
  gemm("gemm backward, weights", layers, 3 * c, c, n, true);
  gemm("gemm backward, weights", layers, c, c, n, true);
  gemm("gemm backward, weights", layers, 2 * f, c, n, true);
  gemm("gemm backward, weights", layers, c, f, n, true);
  report.operation("gemm logits", 1,
                   gemm_cost({.m = n, .n = v, .k = c, .c_is_accumulate_dtype = true}, t));
  gemm("gemm backward, inputs", 1, n, c, v);
  gemm("gemm backward, weights", 1, v, c, n, true);
  CrossEntropyArgs loss{.dlogits = some, .n = n, .v = v};
  report.operation("cross_entropy", 1, cross_entropy_cost(loss, t));
  EmbeddingForwardArgs embedding{.n = n, .c = c};
  report.operation("embedding_forward", 1, embedding_forward_cost(embedding, t));
  EmbeddingBackwardArgs dembedding{.n = n, .c = c};
  report.operation("embedding_backward", 1, embedding_backward_cost(dembedding, t));
  OptimizerSegment all{.master = some, .weight = some, .n = m.parameters};
  const int64_t runs = number_runs(&all, 1);
  report.operation("sum_squares, per step", 1,
                   sum_squares_cost({.segments = &all, .segment_count = 1, .runs = runs}, t));
  report.operation("adamw, per step", 1,
                   adamw_cost({.segments = &all, .segment_count = 1, .runs = runs}, t));
  report.end_model(m.name, tokens);
}

int run() {
  register_cuda_kernels();
  if (!emulator::instrumented()) {
    std::fputs("cuda_model: expected a build with HEIRLOOM_EMULATOR_INSTRUMENTED\n", stderr);
    return 2;
  }
  emulator::watch_traffic(true);
  Report report;
  Device device;
  for (const Dtype t : {Dtype::kBFloat16, Dtype::kFloat32}) {
    norms(report, device, t, 8192, 512);
    for (const int64_t c : {768, 1024, 2048}) norms(report, device, t, 512, c);
    norms(report, device, t, 64, 16384);
    for (const int64_t f : {1376, 2048, 2736, 5461, 5464}) activations(report, device, t, 64, f);
    activations(report, device, t, 64, 3072, ActivationKind::kGelu);
    elementwise(report, device, t, 512, 1024);
    embeddings(report, device, t, 256, 768, 1024);
    losses(report, device, t, 8, 32000);
    losses(report, device, t, 8, 50257);
    head_splits(report, device, t, 128, 8, 64);
    head_splits(report, device, t, 64, 4, 128);
    attention(report, device, t, {1, 512, 2, 2, 64, 0});
    attention(report, device, t, {1, 512, 2, 2, 64, 0.2});
    attention(report, device, t, {1, 256, 2, 2, 80, 0});
    attention(report, device, t, {1, 256, 2, 1, 128, 0});
    optimizer(report, device, t, false);
    if (t == Dtype::kBFloat16) optimizer(report, device, t, true);
  }
  constexpr int64_t kTokens = 16384, kLength = 1024;
  const auto parameters = [](int64_t layers, int64_t c, int64_t f) {
    return layers * (4 * c * c + 3 * c * f + 2 * c) + 2 * 32000 * c + c;
  };
  for (Model m :
       {Model{"LLaMA 60M", 8, 512, 1376, 8, 0}, Model{"LLaMA 130M", 12, 768, 2048, 12, 0},
        Model{"LLaMA 350M", 24, 1024, 2736, 16, 0}, Model{"LLaMA 1.3B", 24, 2048, 5461, 32, 0}}) {
    m.parameters = parameters(m.layers, m.width, m.hidden);
    full_size(report, m, kTokens, kLength);
  }
  return report.print();
}

}  // namespace
}  // namespace heirloom

int main() {
  try {
    return heirloom::run();
  } catch (const std::exception& e) {
    std::fprintf(stderr, "cuda_model: %s\n", e.what());
    return 2;
  }
}
