// SPDX-License-Identifier: Apache-2.0
//
// heirloom_kernels_bench [substring]: every CPU kernel at the shapes of LLaMA-60M training (2048
// tokens). One row per case: median, spread (quartiles over median), GB/s and GFLOP/s by cost(),
// and the larger fraction of the roofs measured just before.
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "heirloom/core/rng.h"
#include "heirloom/kernels/activation.h"
#include "heirloom/kernels/cross_entropy.h"
#include "heirloom/kernels/elementwise.h"
#include "heirloom/kernels/embedding.h"
#include "heirloom/kernels/gemm.h"
#include "heirloom/kernels/head_split.h"
#include "heirloom/kernels/norm.h"
#include "heirloom/kernels/optimizer.h"
#include "roofs.h"

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

}  // namespace
}  // namespace heirloom::bench

int main(int argc, char** argv) {
  using namespace heirloom;
  register_cpu_kernels();
  bench::Bench b(argc > 1 ? argv[1] : "");
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16}) bench::bench_gemm(b, dtype);
}
