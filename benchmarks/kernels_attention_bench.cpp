// SPDX-License-Identifier: Apache-2.0
//
// attention and linear_rows against the roofs of the same run: products against fused
// multiply-adds, streaming against plain reads. Counters: GFLOP/s (visible pairs only), GB/s, and
// "of_roof", the fraction of the roof that binds. Threads: OMP_NUM_THREADS.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "benchmarks/roofs.h"
#include "heirloom/core/rng.h"
#include "heirloom/kernels/attention.h"
#include "heirloom/kernels/gemm.h"

namespace heirloom {
namespace {

const bench::Roofs& roofs() {
  static const bench::Roofs measured = bench::measure_roofs();
  return measured;
}

template <class T>
std::vector<T> random_values(int64_t n, uint64_t key) {
  std::vector<T> v(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; i += 4) {
    const auto words = philox(key, {static_cast<uint32_t>(i), 0, 0, 0});
    for (int64_t k = 0; k < std::min<int64_t>(4, n - i); ++k) {
      v[static_cast<size_t>(i + k)] =
          static_cast<T>(2 * uniform_from_bits(words[static_cast<size_t>(k)]) - 1);
    }
  }
  return v;
}

enum class Bound { kCompute, kMemory };

void report(benchmark::State& state, const KernelCost& cost, Bound bound) {
  const double roof = bound == Bound::kCompute ? roofs().float32_flops : roofs().read_bytes;
  const double work = bound == Bound::kCompute ? cost.flops : cost.bytes();
  using benchmark::Counter;
  state.counters["GFLOP/s"] = Counter(cost.flops * 1e-9, Counter::kIsIterationInvariantRate);
  state.counters["GB/s"] = Counter(cost.bytes() * 1e-9, Counter::kIsIterationInvariantRate);
  state.counters["roof"] = roof * 1e-9;
  state.counters["of_roof"] = Counter(work / roof, Counter::kIsIterationInvariantRate);
}

template <class T>
struct Attention {
  Attention(int64_t batch, int64_t queries, int64_t keys, int64_t h, int64_t g, int64_t d) {
    q = random_values<T>(batch * queries * h * d, 1),
    dout = random_values<T>(batch * queries * h * d, 2);
    k = random_values<T>(batch * keys * g * d, 3), v = random_values<T>(batch * keys * g * d, 4);
    o.resize(q.size()), dq.resize(q.size()), dk.resize(k.size()), dv.resize(v.size());
    lse.resize(static_cast<size_t>(batch * queries * h));
    for (int64_t b = 0; b < batch; ++b) {
      sequences.push_back(
          {b * queries, queries, keys, b * keys, nullptr, static_cast<uint32_t>(b)});
    }
    for (int64_t i = 0; i < g; ++i) {
      k_heads.push_back({k.data() + i * d, nullptr, g * d});
      v_heads.push_back({v.data() + i * d, nullptr, g * d});
      dk_heads.push_back({dk.data() + i * d, nullptr, g * d, true, false, false});
      dv_heads.push_back({dv.data() + i * d, nullptr, g * d, true, false, false});
    }
    args.forward = {q.data(),
                    o.data(),
                    lse.data(),
                    k_heads.data(),
                    v_heads.data(),
                    sequences.data(),
                    batch,
                    h,
                    g,
                    d,
                    d,
                    h * d,
                    h * d,
                    1 / std::sqrt(static_cast<double>(d)),
                    0,
                    {}};
    args.dout = dout.data(), args.dq = dq.data(), args.dk = dk_heads.data(),
    args.dv = dv_heads.data();
  }
  std::vector<T> q, k, v, o, dout, dq;
  std::vector<float> lse, dk, dv;
  std::vector<AttentionSequence> sequences;
  std::vector<KvHead> k_heads, v_heads;
  std::vector<KvHeadGrad> dk_heads, dv_heads;
  AttentionBackwardArgs args;
};

template <class T>
void attention_forward_bench(benchmark::State& state) {
  Attention<T> a(state.range(0), state.range(1), state.range(1), state.range(2), state.range(3),
                 state.range(4));
  const auto kernel = attention_forward_table().get(DeviceKind::kCpu, kDtypeOf<T>);
  for (auto _ : state) kernel(a.args.forward, {});
  report(state, attention_forward_cost(a.args.forward, kDtypeOf<T>), Bound::kCompute);
}
template <class T>
void attention_backward_bench(benchmark::State& state) {
  Attention<T> a(state.range(0), state.range(1), state.range(1), state.range(2), state.range(3),
                 state.range(4));
  attention_forward_table().get(DeviceKind::kCpu, kDtypeOf<T>)(a.args.forward, {});
  const auto kernel = attention_backward_table().get(DeviceKind::kCpu, kDtypeOf<T>);
  for (auto _ : state) kernel(a.args, {});
  report(state, attention_backward_cost(a.args, kDtypeOf<T>), Bound::kCompute);
}
template <class T>
void attention_decode_bench(benchmark::State& state) {
  Attention<T> a(state.range(0), 1, state.range(1), state.range(2), state.range(3), state.range(4));
  const auto kernel = attention_decode_table().get(DeviceKind::kCpu, kDtypeOf<T>);
  for (auto _ : state) kernel(a.args.forward, {});
  report(state, attention_forward_cost(a.args.forward, kDtypeOf<T>), Bound::kMemory);
}

/// Layers of a model in turn, 256 MiB and more, so that no weight is found in a cache.
template <class T>
void linear_rows_bench(benchmark::State& state) {
  const int64_t rows = state.range(0), in = state.range(1), out = state.range(2);
  const int64_t layers = (int64_t{256} << 20) / (in * out * static_cast<int64_t>(sizeof(T))) + 1;
  const auto x = random_values<T>(rows * in, 1), weight = random_values<T>(layers * in * out, 2);
  std::vector<T> y(static_cast<size_t>(rows * out));
  LinearRowsArgs args{x.data(), weight.data(), nullptr, y.data(), rows, in, out, in, out, false};
  const auto kernel = linear_rows_table().get(DeviceKind::kCpu, kDtypeOf<T>);
  KernelCost cost = linear_rows_cost(args, kDtypeOf<T>);
  for (auto _ : state) {
    for (int64_t layer = 0; layer < layers; ++layer) {
      args.weight = weight.data() + layer * in * out;
      kernel(args, {});
    }
  }
  const double n = static_cast<double>(layers);
  report(state, {cost.bytes_read * n, cost.bytes_written * n, cost.flops * n}, Bound::kMemory);
}

void training_shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"B", "T", "H", "G", "D"})->Unit(benchmark::kMillisecond)->UseRealTime();
  b->Args({8, 256, 8, 8, 64})
      ->Args({2, 1024, 8, 8, 64})
      ->Args({1, 1024, 8, 2, 64})
      ->Args({1, 4096, 8, 8, 128});
}
void decode_shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"B", "S", "H", "G", "D"})->Unit(benchmark::kMillisecond)->UseRealTime();
  b->Args({1, 65536, 8, 8, 64})->Args({32, 2048, 8, 8, 64})->Args({32, 8192, 8, 2, 64});
}
void linear_shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"rows", "in", "out"})->Unit(benchmark::kMillisecond)->UseRealTime();
  for (const int64_t rows : {1, 8, 32}) {
    b->Args({rows, 512, 1536})
        ->Args({rows, 1376, 512})
        ->Args({rows, 512, 32000})
        ->Args({rows, 4096, 4096});
  }
}
BENCHMARK(attention_forward_bench<float>)->Apply(training_shapes);
BENCHMARK(attention_forward_bench<bfloat16>)->Apply(training_shapes);
BENCHMARK(attention_backward_bench<float>)->Apply(training_shapes);
BENCHMARK(attention_backward_bench<bfloat16>)->Apply(training_shapes);
BENCHMARK(attention_decode_bench<float>)->Apply(decode_shapes);
BENCHMARK(attention_decode_bench<bfloat16>)->Apply(decode_shapes);
BENCHMARK(linear_rows_bench<float>)->Apply(linear_shapes);
BENCHMARK(linear_rows_bench<bfloat16>)->Apply(linear_shapes);

}  // namespace
}  // namespace heirloom

int main(int argc, char** argv) {
  heirloom::register_kernels();
  benchmark::AddCustomContext("cpu_kernels", heirloom::cpu_kernel_isa());
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
