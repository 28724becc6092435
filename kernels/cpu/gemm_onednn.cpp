// SPDX-License-Identifier: Apache-2.0
//
// Computes     C = op(A) op(B) [+ bias] [+ C], by oneDNN's matmul primitive; the only file that
//              knows oneDNN (2.x and 3.x).
// Shapes       A (M,K), B (K,N), C (M,N), bias (N); each of A and B may be stored transposed.
// Layout       plain strided matrices; nothing is repacked by us.
// Saved        -
// Work         oneDNN's own partition over OpenMP's threads.
// Bytes        read MK + KN (+ N bias) (+ MN accumulating), write MN
// FLOPs        2 MNK (+ MN bias)
// Precision    products and sums in float32, one rounding to the output.
// Determinism  on AVX-512, where alone it is used, oneDNN's results do not depend on the number of
//              threads or on where in a call a row stands; tests hold it to that. (Its AVX2 code
//              does neither: gemm_packed.cpp is used there.)
// Limits       AVX-512 with bfloat16. One call at a time (they share scratch memory); concurrent
//              callers wait.
// Source       -
#include <omp.h>

#include <dnnl.hpp>
#include <mutex>
#include <unordered_map>

#include "heirloom/core/error.h"
#include "heirloom/kernels/gemm.h"
#include "kernels/cpu/scratch.h"

namespace heirloom::cpu {
namespace {

constexpr size_t kCacheEntries = 512;

/// Everything that a primitive is built for.
struct GemmKey {
  int64_t m, n, k, lda, ldb, ldc;
  int threads;
  Dtype in, out;
  bool transpose_a, transpose_b, bias, accumulate;

  bool operator==(const GemmKey&) const = default;
};

struct GemmKeyHash {
  size_t operator()(const GemmKey& key) const {
    uint64_t h = 0;
    const auto mix = [&h](uint64_t x) {
      h = (h ^ x) * 0x9E3779B97F4A7C15ull;
      h ^= h >> 29;
    };
    for (const int64_t x : {key.m, key.n, key.k, key.lda, key.ldb, key.ldc}) {
      mix(static_cast<uint64_t>(x));
    }
    mix(static_cast<uint64_t>(key.threads) << 8 | static_cast<uint64_t>(key.in) << 4 |
        static_cast<uint64_t>(key.out));
    mix((key.transpose_a ? 1u : 0u) | (key.transpose_b ? 2u : 0u) | (key.bias ? 4u : 0u) |
        (key.accumulate ? 8u : 0u));
    return static_cast<size_t>(h);
  }
};

/// A primitive with the memory objects its calls point at new data.
struct GemmPrimitive {
  dnnl::matmul matmul;
  dnnl::memory a, b, bias, c, scratchpad;
  size_t scratchpad_bytes = 0;
};

dnnl::memory::data_type onednn_type(Dtype dtype) {
  return dtype == Dtype::kBFloat16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
}

dnnl::memory::desc matrix(int64_t rows, int64_t cols, int64_t ld, bool transposed, Dtype dtype) {
  const dnnl::memory::dims strides =
      transposed ? dnnl::memory::dims{1, ld} : dnnl::memory::dims{ld, 1};
  return {{rows, cols}, onednn_type(dtype), strides};
}

class Gemm {
 public:
  void run(const GemmArgs& args, Dtype in, Dtype out) {
    const std::lock_guard lock(mutex_);
    try {
      multiply(args, in, out);
    } catch (const dnnl::error& e) {
      throw_error<DeviceError>("[gemm] oneDNN failed with status {} ({}); m {} n {} k {} {} -> {}",
                               static_cast<int>(e.status), e.what(), args.m, args.n, args.k,
                               dtype_name(in), dtype_name(out));
    }
  }

 private:
  void multiply(const GemmArgs& args, Dtype in, Dtype out) {
    GemmPrimitive* p = find(args, in, out);
    p->a.set_data_handle(const_cast<void*>(args.a));
    p->b.set_data_handle(const_cast<void*>(args.b));
    p->c.set_data_handle(args.c);
    dnnl_exec_arg_t exec[5] = {
        {DNNL_ARG_SRC, p->a.get()}, {DNNL_ARG_WEIGHTS, p->b.get()}, {DNNL_ARG_DST, p->c.get()}};
    int count = 3;
    if (args.bias) {
      p->bias.set_data_handle(const_cast<void*>(args.bias));
      exec[count++] = {DNNL_ARG_BIAS, p->bias.get()};
    }
    const ScratchLease scratch(p->scratchpad_bytes);
    if (p->scratchpad_bytes > 0) {
      p->scratchpad.set_data_handle(scratch.data());
      exec[count++] = {DNNL_ARG_SCRATCHPAD, p->scratchpad.get()};
    }
    dnnl::error::wrap_c_api(dnnl_primitive_execute(p->matmul.get(), stream_.get(), count, exec),
                            "execute");
  }

  GemmPrimitive* find(const GemmArgs& args, Dtype in, Dtype out) {
    const GemmKey key{args.m,
                      args.n,
                      args.k,
                      args.lda,
                      args.ldb,
                      args.ldc,
                      omp_get_max_threads(),
                      in,
                      out,
                      args.transpose_a,
                      args.transpose_b,
                      args.bias != nullptr,
                      args.accumulate};
    if (const auto found = cache_.find(key); found != cache_.end()) return &found->second;

    const auto a = matrix(args.m, args.k, args.lda, args.transpose_a, in);
    const auto b = matrix(args.k, args.n, args.ldb, args.transpose_b, in);
    const auto c = matrix(args.m, args.n, args.ldc, false, out);
    const dnnl::memory::desc bias =
        args.bias ? matrix(1, args.n, args.n, false, in) : dnnl::memory::desc();
    dnnl::primitive_attr attr;
    attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (args.accumulate) {
      dnnl::post_ops sum;
      sum.append_sum(1.0f);
      attr.set_post_ops(sum);
    }
#if DNNL_VERSION_MAJOR >= 3
    const dnnl::matmul::primitive_desc pd =
        args.bias ? dnnl::matmul::primitive_desc(engine_, a, b, bias, c, attr, true)
                  : dnnl::matmul::primitive_desc(engine_, a, b, c, attr, true);
#else
    const dnnl::matmul::primitive_desc pd(
        args.bias ? dnnl::matmul::desc(a, b, bias, c) : dnnl::matmul::desc(a, b, c), attr, engine_,
        true);
#endif
    if (!pd.get(true)) {
      throw_error<DeviceError>("[gemm] expected a oneDNN matmul; got none for m {} n {} k {} {}",
                               args.m, args.n, args.k, dtype_name(in));
    }
    GemmPrimitive p;
    p.matmul = dnnl::matmul(pd);
    p.a = dnnl::memory(a, engine_, DNNL_MEMORY_NONE);
    p.b = dnnl::memory(b, engine_, DNNL_MEMORY_NONE);
    p.c = dnnl::memory(c, engine_, DNNL_MEMORY_NONE);
    if (args.bias) p.bias = dnnl::memory(bias, engine_, DNNL_MEMORY_NONE);
    p.scratchpad_bytes = pd.scratchpad_desc().get_size();
    if (p.scratchpad_bytes > 0) {
      p.scratchpad = dnnl::memory(pd.scratchpad_desc(), engine_, DNNL_MEMORY_NONE);
    }
    if (cache_.size() >= kCacheEntries) cache_.clear();
    return &cache_.emplace(key, std::move(p)).first->second;
  }

  std::mutex mutex_;
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
  std::unordered_map<GemmKey, GemmPrimitive, GemmKeyHash> cache_;
};

/// C = bias or 0, for K = 0.
template <class T, class Out>
void fill_without_products(const GemmArgs& args) {
  if (args.accumulate) return;
  for (int64_t i = 0; i < args.m; ++i) {
    Out* c = static_cast<Out*>(args.c) + i * args.ldc;
    for (int64_t j = 0; j < args.n; ++j) {
      const float bias = args.bias ? static_cast<float>(static_cast<const T*>(args.bias)[j]) : 0.0f;
      c[j] = static_cast<Out>(bias);
    }
  }
}

template <class T>
void gemm(const GemmArgs& args, Stream) {
  if (args.m == 0 || args.n == 0) return;
  const Dtype out = args.c_is_accumulate_dtype ? Dtype::kFloat32 : kDtypeOf<T>;
  if (args.k == 0) {
    out == Dtype::kFloat32 ? fill_without_products<T, float>(args)
                           : fill_without_products<T, T>(args);
    return;
  }
  static Gemm* const engine = new Gemm;  // lives as long as OpenMP's threads: never destroyed
  engine->run(args, kDtypeOf<T>, out);
}

}  // namespace

void register_gemm_onednn() {
  gemm_table().set(DeviceKind::kCpu, Dtype::kFloat32, gemm<float>);
  gemm_table().set(DeviceKind::kCpu, Dtype::kBFloat16, gemm<bfloat16>);
}

}  // namespace heirloom::cpu
