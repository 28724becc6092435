// SPDX-License-Identifier: Apache-2.0
//
// heirloom_kernels_bench [substring]: the CPU kernels at the shapes of LLaMA-60M training (2048
// tokens). One row per case: median, spread (quartiles over median), GB/s and GFLOP/s by cost(),
// and the larger fraction of the roofs measured just before (memory: a copy; data in cache exceeds it).
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "benchmarks/roofs.h"
#include "heirloom/core/rng.h"
#include "heirloom/kernels/activation.h"
#include "heirloom/kernels/cross_entropy.h"
#include "heirloom/kernels/elementwise.h"
#include "heirloom/kernels/embedding.h"
#include "heirloom/kernels/gemm.h"
#include "heirloom/kernels/head_split.h"
#include "heirloom/kernels/norm.h"
#include "heirloom/kernels/optimizer.h"

namespace heirloom::bench {
namespace {

constexpr int64_t kTokens = 2048, kWidth = 512, kMlp = 1376, kVocabulary = 32000;
constexpr int64_t kHeads = 8, kHeadDim = 64;

/// Random bytes that read as small numbers in any dtype.
std::vector<char> random_buffer(int64_t count, Dtype dtype) {
  std::vector<char> bytes(static_cast<size_t>(count * dtype_size(dtype)));
  for (int64_t i = 0; i < count; ++i) {
    const auto bits = philox(1, {static_cast<uint32_t>(i), 0, 0, 0})[0];
    const float x = uniform_from_bits(bits) - 0.5f;
    const bfloat16 narrow(x);
    const void* from = dtype == Dtype::kBFloat16 ? static_cast<const void*>(&narrow) : &x;
    std::memcpy(bytes.data() + i * dtype_size(dtype), from, static_cast<size_t>(dtype_size(dtype)));
  }
  return bytes;
}

class Bench {
 public:
  explicit Bench(std::string filter) : filter_(std::move(filter)), roofs_(measure_roofs()) {
    std::printf(
        "%s, %d threads; roofs: float32 %.0f, bfloat16 %.0f GFLOP/s, read %.1f, copy %.1f GB/s\n",
        cpu_kernel_isa().c_str(), omp_get_max_threads(), roofs_.float32_flops * 1e-9,
        roofs_.bfloat16_flops * 1e-9, roofs_.read_bytes * 1e-9, roofs_.copy_bytes * 1e-9);
    std::printf("%-58s %9s %6s %8s %9s %6s\n", "kernel", "median us", "spread", "GB/s", "GFLOP/s",
                "roof");
  }

  void run(const std::string& name, Dtype dtype, const KernelCost& cost,
           const std::function<void()>& call) {
    const std::string title = name + " " + dtype_name(dtype);
    if (title.find(filter_) == std::string::npos) return;
    call();
    std::vector<double> times;
    const auto start = std::chrono::steady_clock::now();
    const auto elapsed = [&start] {
      return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    };
    while (times.size() < 5 || (elapsed() < 0.5 && times.size() < 200)) {
      const double before = elapsed();
      call();
      times.push_back(elapsed() - before);
    }
    std::sort(times.begin(), times.end());
    const double median = times[times.size() / 2];
    const double spread = (times[times.size() * 3 / 4] - times[times.size() / 4]) / median;
    const double roof = dtype == Dtype::kBFloat16 ? roofs_.bfloat16_flops : roofs_.float32_flops;
    const double of_compute = cost.flops / median / roof;
    const double of_memory = cost.bytes() / median / roofs_.copy_bytes;
    std::printf("%-58s %9.0f %5.0f%% %8.1f %9.1f %5.0f%% %s\n", title.c_str(), median * 1e6,
                spread * 100, cost.bytes() / median * 1e-9, cost.flops / median * 1e-9,
                std::max(of_compute, of_memory) * 100,
                of_compute > of_memory ? "compute" : "memory");
    std::fflush(stdout);
  }

 private:
  std::string filter_;
  Roofs roofs_;
};

struct GemmCase {
  const char* name;
  int64_t m, n, k;
  bool transpose_a, transpose_b, wide_output, accumulate;
};

void bench_gemm(Bench& bench, Dtype dtype) {
  std::vector<GemmCase> cases;
  const struct {
    const char* name;
    int64_t out, in;
  } layers[] = {{"gate+up", 2 * kMlp, kWidth},
                {"down", kWidth, kMlp},
                {"qkv", 3 * kWidth, kWidth},
                {"o", kWidth, kWidth},
                {"logits", kVocabulary, kWidth}};
  for (const auto& layer : layers) {
    const bool head = layer.out == kVocabulary;
    cases.push_back({layer.name, kTokens, layer.out, layer.in, false, true, head, false});
    cases.push_back({layer.name, kTokens, layer.in, layer.out, false, false, false, false});
    cases.push_back({layer.name, layer.out, layer.in, kTokens, true, false, true, true});
  }
  for (const GemmCase& c : cases) {
    const Dtype out = c.wide_output ? Dtype::kFloat32 : dtype;
    const auto a = random_buffer(c.m * c.k, dtype), b = random_buffer(c.k * c.n, dtype);
    auto result = random_buffer(c.m * c.n, out);
    GemmArgs args;
    args.a = a.data();
    args.b = b.data();
    args.c = result.data();
    args.m = c.m;
    args.n = c.n;
    args.k = c.k;
    args.lda = c.transpose_a ? c.m : c.k;
    args.ldb = c.transpose_b ? c.k : c.n;
    args.ldc = c.n;
    args.transpose_a = c.transpose_a;
    args.transpose_b = c.transpose_b;
    args.c_is_accumulate_dtype = c.wide_output;
    args.accumulate = c.accumulate;
    char name[96];
    std::snprintf(name, sizeof name, "gemm %s %s (%ld,%ld,%ld)", c.name,
                  c.transpose_b   ? "forward"
                  : c.transpose_a ? "dW"
                                  : "dX",
                  static_cast<long>(c.m), static_cast<long>(c.n), static_cast<long>(c.k));
    const auto f = gemm_table().get(DeviceKind::kCpu, dtype);
    bench.run(name, dtype, gemm_cost(args, dtype), [&] { f(args, {}); });
  }
}

template <class Args>
void bench_call(Bench& bench, const char* name, Dtype dtype, const Args& args,
                KernelTable<Args>& table, KernelCost (*cost)(const Args&, Dtype)) {
  const auto f = table.get(DeviceKind::kCpu, dtype);
  bench.run(name, dtype, cost(args, dtype), [&] { f(args, {}); });
}

void bench_norm(Bench& bench, Dtype dtype) {
  const int64_t count = kTokens * kWidth;
  auto x = random_buffer(count, dtype), delta = random_buffer(count, dtype);
  auto y = random_buffer(count, dtype), weight = random_buffer(kWidth, dtype);
  auto rstd = random_buffer(kTokens, Dtype::kFloat32);
  auto dweight = random_buffer(kWidth, Dtype::kFloat32);
  std::vector<char> workspace(
      static_cast<size_t>(norm_backward_workspace_bytes(kTokens, kWidth, dtype)));
  NormForwardArgs f;
  f.residual = f.x_out = x.data();
  f.delta = delta.data();
  f.weight = weight.data();
  f.y = y.data();
  f.rstd = rstd.data();
  f.n = kTokens;
  f.c = kWidth;
  bench_call(bench, "norm_forward rms, residual (2048,512)", dtype, f, norm_forward_table(),
             norm_forward_cost);
  NormBackwardArgs b;
  b.dy = b.dx = y.data();
  b.dresidual = delta.data();
  b.x = x.data();
  b.weight = weight.data();
  b.rstd = rstd.data();
  b.dweight = dweight.data();
  b.workspace = workspace.data();
  b.n = kTokens;
  b.c = kWidth;
  bench_call(bench, "norm_backward rms (2048,512)", dtype, b, norm_backward_table(),
             norm_backward_cost);
}

void bench_activation(Bench& bench, Dtype dtype) {
  const std::pair<ActivationKind, const char*> kinds[] = {{ActivationKind::kSwiglu, "swiglu"},
                                                          {ActivationKind::kGelu, "gelu"},
                                                          {ActivationKind::kGeluTanh, "gelu_tanh"}};
  for (const auto& [kind, name] : kinds) {
    const int64_t width = kind == ActivationKind::kSwiglu ? 2 * kMlp : kMlp;
    const auto x = random_buffer(kTokens * width, dtype);
    auto y = random_buffer(kTokens * kMlp, dtype), dx = random_buffer(kTokens * width, dtype);
    ActivationForwardArgs f;
    f.kind = kind;
    f.x = x.data();
    f.y = y.data();
    f.n = kTokens;
    f.f = kMlp;
    bench_call(bench, (std::string("activation_forward ") + name + " (2048,1376)").c_str(), dtype,
               f, activation_forward_table(), activation_forward_cost);
    ActivationBackwardArgs b;
    b.kind = kind;
    b.x = x.data();
    b.dy = y.data();
    b.dx = dx.data();
    b.n = kTokens;
    b.f = kMlp;
    bench_call(bench, (std::string("activation_backward ") + name + " (2048,1376)").c_str(), dtype,
               b, activation_backward_table(), activation_backward_cost);
  }
}

void bench_head_split(Bench& bench, Dtype dtype) {
  const int64_t width = 3 * kHeads * kHeadDim, size = dtype_size(dtype);
  auto merged = random_buffer(kTokens * width, dtype),
       split = random_buffer(kTokens * width, dtype);
  const auto cosines = random_buffer(kTokens * kHeadDim / 2, Dtype::kFloat32);
  std::vector<int32_t> positions(kTokens);
  for (int64_t i = 0; i < kTokens; ++i) positions[static_cast<size_t>(i)] = static_cast<int32_t>(i);
  std::vector<HeadRoute> routes;
  std::vector<HeadGradRoute> grads;
  for (int64_t h = 0; h < 3 * kHeads; ++h) {
    HeadRoute route;
    route.column = h * kHeadDim;
    route.data = split.data() + (h / kHeads * kTokens * kHeads + h % kHeads) * kHeadDim * size;
    route.row_stride = kHeads * kHeadDim;
    route.rotate = h < 2 * kHeads;
    routes.push_back(route);
    HeadGradRoute grad;
    grad.column = route.column;
    grad.data = route.data;
    grad.row_stride = route.row_stride;
    grad.rotate = route.rotate;
    grads.push_back(grad);
  }
  HeadSplitForwardArgs f;
  f.merged = merged.data();
  f.routes = routes.data();
  f.route_count = 3 * kHeads;
  f.n = kTokens;
  f.width = width;
  f.head_dim = f.rotary_dim = kHeadDim;
  f.positions = positions.data();
  f.cosines = f.sines = cosines.data();
  bench_call(bench, "head_split_forward rope (2048,24x64)", dtype, f, head_split_forward_table(),
             head_split_forward_cost);
  HeadSplitBackwardArgs b;
  b.merged = b.dmerged = merged.data();
  b.routes = grads.data();
  b.route_count = 3 * kHeads;
  b.n = kTokens;
  b.width = width;
  b.head_dim = b.rotary_dim = kHeadDim;
  b.positions = positions.data();
  b.cosines = b.sines = cosines.data();
  bench_call(bench, "head_split_backward rope (2048,24x64)", dtype, b, head_split_backward_table(),
             head_split_backward_cost);
}

void bench_ends(Bench& bench, Dtype dtype) {
  const auto table = random_buffer(kVocabulary * kWidth, dtype);
  auto x = random_buffer(kTokens * kWidth, dtype);
  auto dtable = random_buffer(kVocabulary * kWidth, Dtype::kFloat32);
  std::vector<int32_t> tokens(kTokens);
  for (size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = static_cast<int32_t>(i * 7919 % kVocabulary);
  EmbeddingForwardArgs f;
  f.tokens = tokens.data();
  f.table = table.data();
  f.x = x.data();
  f.n = kTokens;
  f.c = kWidth;
  bench_call(bench, "embedding_forward (2048,512)", dtype, f, embedding_forward_table(),
             embedding_forward_cost);
  EmbeddingBackwardArgs b;
  b.tokens = tokens.data();
  b.dx = x.data();
  b.dtable = dtable.data();
  b.n = kTokens;
  b.c = kWidth;
  bench_call(bench, "embedding_backward (2048,512)", dtype, b, embedding_backward_table(),
             embedding_backward_cost);

  const int64_t rows = 512;
  const auto logits = random_buffer(rows * kVocabulary, Dtype::kFloat32);
  auto dlogits = random_buffer(rows * kVocabulary, dtype);
  std::vector<double> nll(rows);
  CrossEntropyArgs c;
  c.logits = logits.data();
  c.targets = tokens.data();
  c.nll = nll.data();
  c.dlogits = dlogits.data();
  c.n = rows;
  c.v = kVocabulary;
  bench_call(bench, "cross_entropy with gradient (512,32000)", dtype, c, cross_entropy_table(),
             cross_entropy_cost);
}

void bench_elementwise(Bench& bench, Dtype dtype) {
  const int64_t count = kTokens * kMlp;
  const auto x = random_buffer(count, dtype);
  auto y = random_buffer(count, Dtype::kFloat32);
  AddArgs a;
  a.x = x.data();
  a.y = y.data();
  a.rows = kTokens;
  a.cols = a.x_stride = a.y_stride = kMlp;
  a.y_is_accumulate_dtype = true;
  bench_call(bench, "add into float32 (2048,1376)", dtype, a, add_table(), add_cost);
  std::vector<char> workspace(static_cast<size_t>(reduction_chunks(kTokens) * kMlp * 4));
  ColumnSumArgs s;
  s.dy = x.data();
  s.db = y.data();
  s.workspace = workspace.data();
  s.n = kTokens;
  s.c = kMlp;
  bench_call(bench, "column_sum (2048,1376)", dtype, s, column_sum_table(), column_sum_cost);
  DropoutArgs d;
  d.x = x.data();
  d.y = y.data();
  d.n = kTokens;
  d.c = kMlp;
  d.sequence_length = 256;
  d.rate = 0.1;
  bench_call(bench, "dropout (2048,1376)", dtype, d, dropout_table(), dropout_cost);
}

void bench_optimizer(Bench& bench, Dtype dtype) {
  const int64_t n = kVocabulary * kWidth;
  auto w = random_buffer(n, Dtype::kFloat32), m = w, v = w, grad = w;
  auto copy = random_buffer(n, dtype);
  OptimizerSegment segment;
  segment.master = w.data();
  segment.weight = dtype == Dtype::kFloat32 ? nullptr : copy.data();
  segment.m = m.data();
  segment.v = v.data();
  segment.grad = grad.data();
  segment.n = n;
  AdamwArgs a;
  a.segments = &segment;
  a.segment_count = 1;
  a.lr = 1e-6;
  bench_call(bench, "adamw (16384000)", dtype, a, adamw_table(), adamw_cost);
  double result = 0;
  SumSquaresArgs s;
  s.segments = &segment;
  s.segment_count = 1;
  s.result = &result;
  bench_call(bench, "sum_squares (16384000)", dtype, s, sum_squares_table(), sum_squares_cost);
}

}  // namespace
}  // namespace heirloom::bench

int main(int argc, char** argv) {
  using namespace heirloom;
  register_kernels();
  bench::Bench b(argc > 1 ? argv[1] : "");
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16}) {
    bench::bench_gemm(b, dtype);
    bench::bench_norm(b, dtype);
    bench::bench_activation(b, dtype);
    bench::bench_head_split(b, dtype);
    bench::bench_ends(b, dtype);
    bench::bench_elementwise(b, dtype);
    bench::bench_optimizer(b, dtype);
  }
}
