// SPDX-License-Identifier: Apache-2.0
//
// Matrix products by cuBLASLt: see gemm.cu.
#include "heirloom/kernels/gemm.h"

#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <memory>
#include <mutex>
#include <set>
#include <unordered_map>
#include <vector>

#include "heirloom/core/device_runtime.h"
#include "heirloom/core/log.h"
#include "kernels/cuda/error.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/plan/gemm_cache.h"

namespace heirloom::cuda {
namespace {

constexpr size_t kWorkspaceBytes = size_t{32} << 20;
constexpr int kMaxDevices = 64;
constexpr int kProposals = 8;

cudaStream_t native(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }

void check_blas(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw_error<DeviceError>("[cuda] expected {} to succeed; got {} ({})", what,
                           cublasLtGetStatusString(status), cublasLtGetStatusName(status));
}

int alignment_of(const void* data) {
  const auto address = reinterpret_cast<uintptr_t>(data);
  return static_cast<int>(std::min<uintptr_t>(16, address == 0 ? 16 : address & (~address + 1)));
}
int alignment_of(const void* data, int64_t stride, Dtype dtype) {
  const int64_t bytes = stride * dtype_size(dtype);
  return std::min(alignment_of(data), static_cast<int>(std::min<int64_t>(16, bytes & -bytes)));
}

// What tells one product from another, within this process.
struct Problem {
  GemmArgs args;  ///< pointers are null; row strides as the library takes them
  Dtype dtype = Dtype::kFloat32;
  int a_alignment = 0, b_alignment = 0, c_alignment = 0;  ///< of the pointers alone

  Dtype output() const { return args.c_is_accumulate_dtype ? Dtype::kFloat32 : dtype; }
  std::array<int64_t, 15> words(bool bias) const {
    return {args.m,
            args.n,
            args.k,
            args.lda,
            args.ldb,
            args.ldc,
            args.transpose_a,
            args.transpose_b,
            bias,
            args.accumulate,
            args.tf32,
            static_cast<int64_t>(dtype) * 8 + static_cast<int64_t>(output()),
            a_alignment,
            b_alignment,
            c_alignment};
  }
};

struct HashWords {
  size_t operator()(const std::array<int64_t, 15>& words) const {
    uint64_t hash = 0;
    for (const int64_t word : words) {
      hash = (hash ^ static_cast<uint64_t>(word)) * 0x9e3779b97f4a7c15ull;
      hash ^= hash >> 29;
    }
    return hash;
  }
};

cudaDataType data_type(Dtype dtype) { return dtype == Dtype::kBFloat16 ? CUDA_R_16BF : CUDA_R_32F; }

// The library's descriptors of one product; "A" is our B and "B" our A.
class Descriptors {
 public:
  Descriptors(const Problem& p, const void* bias) {
    const GemmArgs& a = p.args;
    const bool tf32 = a.tf32 && p.dtype == Dtype::kFloat32;
    check_blas(cublasLtMatmulDescCreate(
                   &desc_, tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F, CUDA_R_32F),
               "describing a product");
    const int32_t transpose_a = a.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    const int32_t transpose_b = a.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    set(CUBLASLT_MATMUL_DESC_TRANSA, transpose_a);
    set(CUBLASLT_MATMUL_DESC_TRANSB, transpose_b);
    if (bias != nullptr) {
      const uint32_t epilogue = CUBLASLT_EPILOGUE_BIAS;
      set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
      set_bias(bias);
    }
    layout(&a_, p.dtype, a.transpose_b ? a.k : a.n, a.transpose_b ? a.n : a.k, a.ldb);
    layout(&b_, p.dtype, a.transpose_a ? a.m : a.k, a.transpose_a ? a.k : a.m, a.lda);
    layout(&c_, p.output(), a.n, a.m, a.ldc);
  }
  ~Descriptors() {
    for (cublasLtMatrixLayout_t one : {a_, b_, c_}) {
      if (one != nullptr) static_cast<void>(cublasLtMatrixLayoutDestroy(one));
    }
    if (desc_ != nullptr) static_cast<void>(cublasLtMatmulDescDestroy(desc_));
  }
  Descriptors(const Descriptors&) = delete;

  void set_bias(const void* bias) { set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias); }

  /// The proposals, best guess first; none where the library has no kernel for the product.
  std::vector<cublasLtMatmulHeuristicResult_t> propose(cublasLtHandle_t handle, const Problem& p,
                                                       int wanted) const {
    cublasLtMatmulPreference_t preference = nullptr;
    check_blas(cublasLtMatmulPreferenceCreate(&preference), "describing a preference");
    const std::unique_ptr<std::remove_pointer_t<cublasLtMatmulPreference_t>,
                          cublasStatus_t (*)(cublasLtMatmulPreference_t)>
        owner(preference, cublasLtMatmulPreferenceDestroy);
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      check_blas(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value),
                 "stating a preference");
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kWorkspaceBytes});
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
           uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<uint32_t>(p.b_alignment));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<uint32_t>(p.a_alignment));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<uint32_t>(p.c_alignment));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<uint32_t>(p.c_alignment));
    std::vector<cublasLtMatmulHeuristicResult_t> results(static_cast<size_t>(wanted));
    int found = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
        handle, desc_, a_, b_, c_, c_, preference, wanted, results.data(), &found);
    if (status != CUBLAS_STATUS_NOT_SUPPORTED) check_blas(status, "asking for an algorithm");
    results.resize(static_cast<size_t>(found));
    std::erase_if(results, [](const auto& r) { return r.state != CUBLAS_STATUS_SUCCESS; });
    return results;
  }

  /// True iff the library still takes the algorithm for this product.
  bool accepts(cublasLtHandle_t handle, const cublasLtMatmulAlgo_t& algorithm) const {
    cublasLtMatmulHeuristicResult_t result{};
    return cublasLtMatmulAlgoCheck(handle, desc_, a_, b_, c_, c_, &algorithm, &result) ==
               CUBLAS_STATUS_SUCCESS &&
           result.workspaceSize <= kWorkspaceBytes;
  }

  void run(cublasLtHandle_t handle, const GemmArgs& args, bool add,
           const cublasLtMatmulAlgo_t& algorithm, void* workspace, cudaStream_t stream) const {
    const float alpha = 1, beta = add ? 1 : 0;
    check_blas(cublasLtMatmul(handle, desc_, &alpha, args.b, a_, args.a, b_, &beta, args.c, c_,
                              args.c, c_, &algorithm, workspace, kWorkspaceBytes, stream),
               "a matrix product");
  }

 private:
  template <class Value>
  void set(cublasLtMatmulDescAttributes_t attribute, const Value& value) {
    check_blas(cublasLtMatmulDescSetAttribute(desc_, attribute, &value, sizeof value),
               "describing a product");
  }
  static void layout(cublasLtMatrixLayout_t* out, Dtype dtype, int64_t rows, int64_t columns,
                     int64_t leading) {
    check_blas(cublasLtMatrixLayoutCreate(out, data_type(dtype), static_cast<uint64_t>(rows),
                                          static_cast<uint64_t>(columns), leading),
               "describing a matrix");
  }

  cublasLtMatmulDesc_t desc_ = nullptr;
  cublasLtMatrixLayout_t a_ = nullptr, b_ = nullptr, c_ = nullptr;
};

GemmAlgorithm to_words(const cublasLtMatmulAlgo_t& algorithm) {
  static_assert(sizeof(cublasLtMatmulAlgo_t) == sizeof(GemmAlgorithm));
  GemmAlgorithm words;
  std::copy(std::begin(algorithm.data), std::end(algorithm.data), words.begin());
  return words;
}
cublasLtMatmulAlgo_t from_words(const GemmAlgorithm& words) {
  cublasLtMatmulAlgo_t algorithm;
  std::copy(words.begin(), words.end(), algorithm.data);
  return algorithm;
}

// The library's state on one device.
class Library {
 public:
  Library() {
    int device = 0;
    check(cudaGetDevice(&device), "asking for the device");
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, device), "asking for a device's properties");
    device_name_ = properties.name;
    check_blas(cublasLtCreate(&handle_), "starting cuBLASLt");
    check(cudaMalloc(&workspace_, kWorkspaceBytes), "allocating the workspace of products");
  }

  void multiply(const GemmArgs& args, Dtype dtype, cudaStream_t stream) {
    const std::lock_guard lock(mutex_);
    const Problem problem = describe(args, dtype);
    const void* bias = fused_bias(args, dtype);
    Plan& plan = plan_of(problem, bias);
    if (bias != nullptr) plan.descriptors->set_bias(bias);
    plan.descriptors->run(handle_, args, problem.args.accumulate, plan.algorithm, workspace_,
                          stream);
  }

  /// Bias that the epilogue adds; null when there is none or it must be added otherwise.
  static const void* fused_bias(const GemmArgs& args, Dtype dtype) {
    const bool same_type = !args.c_is_accumulate_dtype || dtype == Dtype::kFloat32;
    return same_type && alignment_of(args.bias) == 16 ? args.bias : nullptr;
  }

  void tune(const std::vector<GemmProblem>& problems, const std::string& cache_file, Stream stream,
            bool emulated) {
    const std::lock_guard lock(mutex_);
    GemmCache cache;
    if (!cache_file.empty()) cache = GemmCache::read(cache_file);
    bool changed = false;
    for (const GemmProblem& one : problems) {
      if (one.args.m <= 0 || one.args.n <= 0 || one.args.k <= 0) continue;
      const Problem problem = describe(one.args, one.dtype);
      const void* bias = fused_bias(one.args, one.dtype);
      const std::string key = key_of(problem, bias != nullptr).text();
      if (pinned_.count(key) != 0) continue;
      const Descriptors descriptors(problem, bias);
      const GemmAlgorithm* known = cache.find(key);
      if (known != nullptr && descriptors.accepts(handle_, from_words(*known))) {
        pinned_[key] = *known;
        continue;
      }
      if (!measure(problem, descriptors, bias != nullptr, native(stream), emulated,
                   &pinned_[key])) {
        pinned_.erase(key);
        continue;
      }
      cache.set(key, pinned_[key]);
      changed = true;
    }
    plans_.clear();
    if (!changed || cache_file.empty()) return;
    // Another process may have added to the file meanwhile.
    cache.merge(GemmCache::read(cache_file));
    cache.write(cache_file);
  }

 private:
  struct Plan {
    std::unique_ptr<Descriptors> descriptors;
    cublasLtMatmulAlgo_t algorithm{};
  };

  static Problem describe(const GemmArgs& args, Dtype dtype) {
    Problem p;
    p.args = args;
    p.dtype = dtype;
    p.args.a = p.args.b = p.args.bias = nullptr;
    p.args.c = nullptr;
    p.args.accumulate = args.accumulate || (args.bias != nullptr && !fused_bias(args, dtype));
    // The stride of a single row says nothing, but the library wants a row to fit in it.
    const auto fit = [](int64_t stride, int64_t rows, int64_t columns) {
      return rows == 1 ? std::max(stride, columns) : stride;
    };
    p.args.lda = args.transpose_a ? fit(args.lda, args.k, args.m) : fit(args.lda, args.m, args.k);
    p.args.ldb = args.transpose_b ? fit(args.ldb, args.n, args.k) : fit(args.ldb, args.k, args.n);
    p.args.ldc = fit(args.ldc, args.m, args.n);
    p.a_alignment = alignment_of(args.a);
    p.b_alignment = alignment_of(args.b);
    p.c_alignment = alignment_of(args.c);
    return p;
  }

  GemmKey key_of(const Problem& p, bool bias) const {
    GemmKey key;
    key.device = device_name_;
    key.library = cublasLtGetVersion();
    key.m = p.args.m;
    key.n = p.args.n;
    key.k = p.args.k;
    key.transpose_a = p.args.transpose_a;
    key.transpose_b = p.args.transpose_b;
    key.input = p.dtype;
    key.output = p.output();
    key.bias = bias;
    key.accumulate = p.args.accumulate;
    key.tf32 = p.args.tf32 && p.dtype == Dtype::kFloat32;
    const auto with_stride = [](int alignment, int64_t stride, Dtype dtype) {
      return std::min(alignment, alignment_of(nullptr, stride, dtype));
    };
    key.a_alignment = with_stride(p.a_alignment, p.args.lda, p.dtype);
    key.b_alignment = with_stride(p.b_alignment, p.args.ldb, p.dtype);
    key.c_alignment = with_stride(p.c_alignment, p.args.ldc, p.output());
    return key;
  }

  Plan& plan_of(const Problem& problem, const void* bias) {
    Plan& plan = plans_[problem.words(bias != nullptr)];
    if (plan.descriptors != nullptr) return plan;
    auto descriptors = std::make_unique<Descriptors>(problem, bias);
    auto pinned = pinned_.find(key_of(problem, bias != nullptr).text());
    // A bias costs next to nothing: what is the fastest without it will do.
    if (pinned == pinned_.end()) pinned = pinned_.find(key_of(problem, false).text());
    if (pinned != pinned_.end() && descriptors->accepts(handle_, from_words(pinned->second))) {
      plan.algorithm = from_words(pinned->second);
    } else {
      const auto proposals = descriptors->propose(handle_, problem, 1);
      if (proposals.empty()) {
        throw_error<UnsupportedError>("[gemm] expected a product that cuBLASLt {} computes; got {}",
                                      cublasLtGetVersion(),
                                      key_of(problem, bias != nullptr).text());
      }
      plan.algorithm = proposals[0].algo;
    }
    plan.descriptors = std::move(descriptors);
    return plan;
  }

  /// The fastest of the library's proposals. False, with a warning, when scratch memory or
  /// proposals lack.
  bool measure(const Problem& problem, const Descriptors& descriptors, bool bias,
               cudaStream_t stream, bool emulated, GemmAlgorithm* best) {
    GemmArgs args = problem.args;
    const int64_t a_rows = args.transpose_a ? args.k : args.m;
    const int64_t b_rows = args.transpose_b ? args.n : args.k;
    Scratch a(problem.dtype, a_rows * args.lda, problem.a_alignment, stream);
    Scratch b(problem.dtype, b_rows * args.ldb, problem.b_alignment, stream);
    Scratch c(problem.output(), args.m * args.ldc, problem.c_alignment, stream);
    Scratch bias_values(problem.dtype, bias ? args.n : 1, 16, stream);
    const auto proposals = descriptors.propose(handle_, problem, kProposals);
    if (!a || !b || !c || !bias_values || proposals.empty()) {
      log(LogLevel::kWarning,
          fmt::format("[gemm] expected memory to time a product in; got too little; its algorithm "
                      "is the library's guess: {}",
                      key_of(problem, bias).text()));
      return false;
    }
    args.a = a.data();
    args.b = b.data();
    args.c = c.data();
    // A shared descriptor would do, but its bias pointer belongs to others.
    Descriptors own(problem, bias ? bias_values.data() : nullptr);
    const Event start, stop;
    float best_time = 0;
    bool found = false;
    for (const auto& proposal : proposals) {
      // An emulated clock says the same every time.
      const size_t warm_up = emulated ? 0 : 2, runs = emulated ? 1 : 7;
      std::vector<float> times;
      for (size_t i = 0; i < warm_up + runs; ++i) {
        check(cudaEventRecord(start.event, stream), "recording an event");
        own.run(handle_, args, args.accumulate, proposal.algo, workspace_, stream);
        check(cudaEventRecord(stop.event, stream), "recording an event");
        check(cudaEventSynchronize(stop.event), "timing a product");
        float milliseconds = 0;
        check(cudaEventElapsedTime(&milliseconds, start.event, stop.event), "timing a product");
        if (i >= warm_up) times.push_back(milliseconds);
      }
      std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
      const float median = times[times.size() / 2];
      if (!found || median < best_time) {
        found = true;
        best_time = median;
        *best = to_words(proposal.algo);
      }
    }
    return found;
  }

  struct Event {
    cudaEvent_t event = nullptr;
    Event() { check(cudaEventCreate(&event), "creating an event"); }
    ~Event() { static_cast<void>(cudaEventDestroy(event)); }
    Event(const Event&) = delete;
  };

  // Device memory of a given alignment and no better one; false when there was no room.
  class Scratch {
   public:
    Scratch(Dtype dtype, int64_t count, int alignment, cudaStream_t stream) {
      const size_t bytes = static_cast<size_t>(count * dtype_size(dtype)) + 16;
      if (cudaMalloc(&memory_, bytes) != cudaSuccess) {
        static_cast<void>(cudaGetLastError());
        memory_ = nullptr;
        return;
      }
      data_ = static_cast<char*>(memory_) + alignment % 16;
      fill_gemm_scratch(data_, dtype, count, {stream});
    }
    ~Scratch() { static_cast<void>(cudaFree(memory_)); }
    Scratch(const Scratch&) = delete;
    explicit operator bool() const { return memory_ != nullptr; }
    void* data() const { return data_; }

   private:
    void* memory_ = nullptr;
    void* data_ = nullptr;
  };

  std::mutex mutex_;
  std::string device_name_;
  cublasLtHandle_t handle_ = nullptr;
  void* workspace_ = nullptr;
  std::unordered_map<std::array<int64_t, 15>, Plan, HashWords> plans_;
  std::unordered_map<std::string, GemmAlgorithm> pinned_;
};

// Of the current device. Never destroyed: the device may be gone before static objects are.
Library& library() {
  static std::mutex mutex;
  static std::array<Library*, kMaxDevices> all{};
  int device = 0;
  check(cudaGetDevice(&device), "asking for the device");
  const std::lock_guard lock(mutex);
  Library*& one = all.at(static_cast<size_t>(device));
  if (one == nullptr) one = new Library;
  return *one;
}

template <class T>
void gemm(const GemmArgs& args, Stream stream) {
  if (args.m == 0 || args.n == 0) return;
  const bool bias_apart = args.bias != nullptr && Library::fused_bias(args, kDtypeOf<T>) == nullptr;
  if ((args.k == 0 && !args.accumulate) || bias_apart) {
    fill_gemm_rows(args, kDtypeOf<T>, stream);
  }
  if (args.k > 0) library().multiply(args, kDtypeOf<T>, native(stream));
}

void tune(int index, const std::vector<GemmProblem>& problems, const std::string& cache_file) {
  DeviceRuntime& runtime = device_runtime(DeviceKind::kCuda);
  const Stream stream = runtime.stream(index);
  library().tune(problems, cache_file, stream, runtime.emulated());
  runtime.synchronize(stream);
}

}  // namespace

void prepare_gemm() { library(); }

void register_gemm() {
  gemm_table().set(DeviceKind::kCuda, Dtype::kFloat32, gemm<float>);
  gemm_table().set(DeviceKind::kCuda, Dtype::kBFloat16, gemm<bfloat16>);
  register_gemm_tuner(DeviceKind::kCuda, tune);
}

}  // namespace heirloom::cuda
