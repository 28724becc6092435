// SPDX-License-Identifier: Apache-2.0
//
// Computes     C = op(A) op(B) [+ bias] [+ C], by oneDNN's matmul primitive; the only file that
// knows oneDNN (2.x and 3.x). Shapes       A (M,K), B (K,N), C (M,N), bias (N); each of A and B may
// be stored transposed. Layout       plain strided matrices; nothing is repacked by us. Saved -
// Work         oneDNN's own partition over OpenMP's threads.
// Bytes        read MK + KN (+ N bias) (+ MN accumulating), write MN
// FLOPs        2 MNK (+ MN bias)
// Precision    products and sums in float32, one rounding to the output. Without native bfloat16
// (no AVX-512) oneDNN 2.x has no
//              bfloat16 matmul: operands are then widened into scratch and multiplied in float32.
// Determinism  oneDNN's blocking depends on shape, strides and the number of threads it was built
// for; tests hold results
//              bit-equal over threads and over the position of a row within a call.
// Limits       one call at a time (they share scratch memory); concurrent callers wait.
// Source       -
#include <omp.h>

#include <cstdlib>
#include <cstring>
#include <dnnl.hpp>
#include <memory>
#include <mutex>
#include <tuple>
#include <unordered_map>

#include "heirloom/core/error.h"
#include "heirloom/kernels/gemm.h"

namespace heirloom::cpu {
namespace {

constexpr size_t kCacheEntries = 512;
constexpr size_t kScratchAlignment = 4096;

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

/// Grow-only memory, page aligned.
class Scratch {
 public:
  void* get(size_t bytes) {
    if (bytes > capacity_) {
      const size_t rounded =
          (bytes + kScratchAlignment - 1) / kScratchAlignment * kScratchAlignment;
      memory_.reset(std::aligned_alloc(kScratchAlignment, rounded));
      capacity_ = memory_ ? rounded : 0;
      if (!memory_) {
        throw_error<OutOfMemoryError>("[gemm] expected {} bytes of scratch memory; got none",
                                      bytes);
      }
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> memory_;
  size_t capacity_ = 0;
};

class Gemm {
 public:
  void run(const GemmArgs& args, Dtype in, Dtype out) {
    const std::lock_guard lock(mutex_);
    try {
      if (in == Dtype::kBFloat16 && !native_bfloat16_) {
        run_widened(args, out);
      } else if (!multiply(args, in, out)) {
        native_bfloat16_ = false;
        run_widened(args, out);
      }
    } catch (const dnnl::error& e) {
      throw_error<DeviceError>("[gemm] oneDNN failed with status {} ({}); m {} n {} k {} {} -> {}",
                               static_cast<int>(e.status), e.what(), args.m, args.n, args.k,
                               dtype_name(in), dtype_name(out));
    }
  }

 private:
  /// False where oneDNN has no bfloat16 matmul for this processor.
  bool multiply(const GemmArgs& args, Dtype in, Dtype out) {
    GemmPrimitive* p = find(args, in, out);
    if (!p) return false;
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
    if (p->scratchpad_bytes > 0) {
      p->scratchpad.set_data_handle(scratchpad_.get(p->scratchpad_bytes));
      exec[count++] = {DNNL_ARG_SCRATCHPAD, p->scratchpad.get()};
    }
    dnnl::error::wrap_c_api(dnnl_primitive_execute(p->matmul.get(), stream_.get(), count, exec),
                            "execute");
    return true;
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
      if (in == Dtype::kBFloat16) return nullptr;
      throw_error<DeviceError>("[gemm] expected a oneDNN matmul; got none for m {} n {} k {}",
                               args.m, args.n, args.k);
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

  /// bfloat16 in terms of float32: widens A, B, bias (and C) into scratch memory.
  void run_widened(const GemmArgs& args, Dtype out) {
    const int64_t a_rows = args.transpose_a ? args.k : args.m,
                  a_cols = args.transpose_a ? args.m : args.k;
    const int64_t b_rows = args.transpose_b ? args.n : args.k,
                  b_cols = args.transpose_b ? args.k : args.n;
    const bool narrow = out == Dtype::kBFloat16;
    const int64_t a_size = a_rows * a_cols, b_size = b_rows * b_cols;
    const int64_t bias_size = args.bias ? args.n : 0, c_size = narrow ? args.m * args.n : 0;
    float* a = static_cast<float*>(
        widened_.get(static_cast<size_t>(a_size + b_size + bias_size + c_size) * sizeof(float)));
    float* b = a + a_size;
    float* bias = b + b_size;
    float* c = bias + bias_size;
    widen(args.a, args.lda, a_rows, a_cols, a);
    widen(args.b, args.ldb, b_rows, b_cols, b);
    GemmArgs wide = args;
    wide.a = a;
    wide.b = b;
    wide.lda = a_cols;
    wide.ldb = b_cols;
    if (args.bias) {
      widen(args.bias, args.n, 1, args.n, bias);
      wide.bias = bias;
    }
    if (narrow) {
      if (args.accumulate) widen(args.c, args.ldc, args.m, args.n, c);
      wide.c = c;
      wide.ldc = args.n;
    }
    multiply(wide, Dtype::kFloat32, Dtype::kFloat32);
    if (!narrow) return;
    bfloat16* to = static_cast<bfloat16*>(args.c);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < args.m; ++i) {
      for (int64_t j = 0; j < args.n; ++j) to[i * args.ldc + j] = bfloat16(c[i * args.n + j]);
    }
  }

  static void widen(const void* from, int64_t ld, int64_t rows, int64_t cols, float* to) {
    const bfloat16* x = static_cast<const bfloat16*>(from);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < cols; ++j) to[i * cols + j] = static_cast<float>(x[i * ld + j]);
    }
  }

  std::mutex mutex_;
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
  std::unordered_map<GemmKey, GemmPrimitive, GemmKeyHash> cache_;
  Scratch scratchpad_, widened_;
  bool native_bfloat16_ = true;
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

/// `wide` false: oneDNN is held to AVX2, as the rest of the kernels are.
void register_gemm(bool wide) {
  if (!wide) dnnl::set_max_cpu_isa(dnnl::cpu_isa::avx2);
  gemm_table().set(DeviceKind::kCpu, Dtype::kFloat32, gemm<float>);
  gemm_table().set(DeviceKind::kCpu, Dtype::kBFloat16, gemm<bfloat16>);
}

}  // namespace heirloom::cpu
