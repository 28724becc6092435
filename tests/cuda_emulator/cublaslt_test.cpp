// SPDX-License-Identifier: Apache-2.0
//
// The emulator's cuBLASLt against a product in double, and its refusals; then the library's gemm on it.
#include <cublasLt.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <set>
#include <vector>

#include "heirloom/core/dtype.h"

namespace {

using heirloom::bfloat16;

constexpr size_t kWorkspace = 8 << 20;

#define ASSERT_OK(call) ASSERT_EQ(cudaSuccess, call) << cudaGetErrorString(cudaPeekAtLastError())
#define ASSERT_BLAS(call) ASSERT_EQ(CUBLAS_STATUS_SUCCESS, call)

struct Matrix {
  cudaDataType type = CUDA_R_32F;
  int64_t rows = 0, columns = 0, leading = 0;
  bool row_major = false;
  int64_t offset = 0;  // elements in front
  int batches = 1;
  int64_t batch_stride = 0;
  std::vector<double> values{};  // as stored
  void* memory = nullptr;
  cublasLtMatrixLayout_t layout = nullptr;

  size_t element() const { return type == CUDA_R_16BF ? 2 : 4; }
  char* data() const {
    return static_cast<char*>(memory) + static_cast<size_t>(offset) * element();
  }
  int64_t count() const {
    return (batches - 1) * batch_stride + leading * ((row_major ? rows : columns) - 1) +
           (row_major ? columns : rows);
  }
  int64_t at(int64_t i, int64_t j, int z = 0) const {
    return z * batch_stride + (row_major ? i * leading + j : j * leading + i);
  }

  void make(unsigned seed) {
    const auto n = static_cast<size_t>(count());
    values.resize(n);
    std::vector<char> host(n * element());
    for (size_t i = 0; i < n; ++i) {
      seed = seed * 1664525u + 1013904223u;
      float x = static_cast<float>(static_cast<int>(seed >> 8) % 2001 - 1000) / 1000.0f;
      if (type == CUDA_R_16BF) {
        const bfloat16 rounded(x);
        x = static_cast<float>(rounded);
        std::memcpy(&host[2 * i], &rounded, 2);
      } else {
        std::memcpy(&host[4 * i], &x, 4);
      }
      values[i] = static_cast<double>(x);
    }
    const size_t bytes = (n + static_cast<size_t>(offset)) * element();
    ASSERT_OK(cudaMalloc(&memory, bytes));
    ASSERT_OK(cudaMemcpy(data(), host.data(), host.size(), cudaMemcpyHostToDevice));
    ASSERT_BLAS(cublasLtMatrixLayoutCreate(&layout, type, static_cast<uint64_t>(rows),
                                           static_cast<uint64_t>(columns), leading));
    if (row_major) {
      const int32_t order = CUBLASLT_ORDER_ROW;
      ASSERT_BLAS(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_ORDER, &order,
                                                   sizeof order));
    }
    if (batches > 1) {
      ASSERT_BLAS(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
                                                   &batches, sizeof batches));
      ASSERT_BLAS(cublasLtMatrixLayoutSetAttribute(
          layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &batch_stride, sizeof batch_stride));
    }
  }
  std::vector<double> fetch() const {
    const auto n = static_cast<size_t>(count());
    std::vector<char> host(n * element());
    EXPECT_EQ(cudaSuccess, cudaMemcpy(host.data(), data(), host.size(), cudaMemcpyDeviceToHost));
    std::vector<double> out(n);
    for (size_t i = 0; i < n; ++i) {
      if (type == CUDA_R_16BF) {
        bfloat16 x;
        std::memcpy(&x, &host[2 * i], 2);
        out[i] = static_cast<double>(static_cast<float>(x));
      } else {
        float x;
        std::memcpy(&x, &host[4 * i], 4);
        out[i] = static_cast<double>(x);
      }
    }
    return out;
  }
  void destroy() {
    EXPECT_EQ(cudaSuccess, cudaFree(memory));
    EXPECT_EQ(CUBLAS_STATUS_SUCCESS, cublasLtMatrixLayoutDestroy(layout));
  }
};

double gelu(double x) {
  return 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
}
double gelu_derivative(double x) {
  const double h = 1e-5;
  return (gelu(x + h) - gelu(x - h)) / (2 * h);
}

class CublasLtTest : public testing::Test {
 protected:
  void SetUp() override {
    heirloom::emulator::reset_runtime();
    ASSERT_BLAS(cublasLtCreate(&handle_));
    ASSERT_OK(cudaMalloc(&workspace_, kWorkspace));
    describe(CUBLAS_COMPUTE_32F);
    ASSERT_BLAS(cublasLtMatmulPreferenceCreate(&preference_));
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kWorkspace});
  }
  void TearDown() override {
    EXPECT_EQ(CUBLAS_STATUS_SUCCESS, cublasLtMatmulDescDestroy(desc_));
    EXPECT_EQ(CUBLAS_STATUS_SUCCESS, cublasLtMatmulPreferenceDestroy(preference_));
    EXPECT_EQ(CUBLAS_STATUS_SUCCESS, cublasLtDestroy(handle_));
    EXPECT_EQ(cudaSuccess, cudaFree(workspace_));
  }
  void describe(cublasComputeType_t compute) {
    if (desc_ != nullptr) {
      ASSERT_BLAS(cublasLtMatmulDescDestroy(desc_));
    }
    ASSERT_BLAS(cublasLtMatmulDescCreate(&desc_, compute, CUDA_R_32F));
  }
  template <class Value>
  void set(cublasLtMatmulDescAttributes_t attribute, Value value) {
    ASSERT_BLAS(cublasLtMatmulDescSetAttribute(desc_, attribute, &value, sizeof value));
  }
  template <class Value>
  void prefer(cublasLtMatmulPreferenceAttributes_t attribute, Value value) {
    ASSERT_BLAS(cublasLtMatmulPreferenceSetAttribute(preference_, attribute, &value, sizeof value));
  }
  void prefer_alignment(uint32_t bytes) {
    for (const auto attribute :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
      prefer(attribute, bytes);
    }
  }
  std::vector<cublasLtMatmulHeuristicResult_t> proposals(const Matrix& a, const Matrix& b,
                                                         const Matrix& d, int wanted = 16) {
    std::vector<cublasLtMatmulHeuristicResult_t> results(static_cast<size_t>(wanted));
    int found = 0;
    static_cast<void>(cublasLtMatmulAlgoGetHeuristic(handle_, desc_, a.layout, b.layout, d.layout,
                                                     d.layout, preference_, wanted, results.data(),
                                                     &found));
    results.resize(static_cast<size_t>(found));
    return results;
  }
  cublasStatus_t multiply(const Matrix& a, const Matrix& b, const Matrix& d, float alpha = 1,
                          float beta = 0, const cublasLtMatmulAlgo_t* algorithm = nullptr) {
    return cublasLtMatmul(handle_, desc_, &alpha, a.data(), a.layout, b.data(), b.layout, &beta,
                          d.data(), d.layout, d.data(), d.layout, algorithm, workspace_, kWorkspace,
                          nullptr);
  }

  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulDesc_t desc_ = nullptr;
  cublasLtMatmulPreference_t preference_ = nullptr;
  void* workspace_ = nullptr;
};

TEST_F(CublasLtTest, ProductsMatchDoubles) {
  struct Types {
    cudaDataType input, output;
  };
  unsigned seed = 1;
  for (const Types& types : {Types{CUDA_R_32F, CUDA_R_32F}, Types{CUDA_R_16BF, CUDA_R_16BF},
                             Types{CUDA_R_16BF, CUDA_R_32F}}) {
    for (int variant = 0; variant < 64; ++variant) {
      const bool ta = variant & 1, tb = variant & 2, row_a = variant & 4, row_d = variant & 8;
      const bool wide = variant & 16, batched = variant & 32;
      const int64_t m = 5 + variant % 7 * 3, n = 3 + variant % 5 * 4, k = 1 + variant % 11 * 9;
      const int batches = batched ? 3 : 1;
      const int64_t extra = wide ? 3 : 0;
      Matrix a{types.input, ta ? k : m, ta ? m : k, 0, row_a};
      Matrix b{types.input, tb ? n : k, tb ? k : n, 0, false};
      Matrix d{types.output, m, n, 0, row_d};
      for (Matrix* x : {&a, &b, &d}) {
        x->leading = (x->row_major ? x->columns : x->rows) + extra;
        x->batches = batches;
        x->batch_stride = batched ? x->leading * (x->row_major ? x->rows : x->columns) + extra : 0;
        x->offset = extra;
        x->make(seed++);
      }
      const int32_t op_a = ta ? CUBLAS_OP_T : CUBLAS_OP_N, op_b = tb ? CUBLAS_OP_T : CUBLAS_OP_N;
      set(CUBLASLT_MATMUL_DESC_TRANSA, op_a);
      set(CUBLASLT_MATMUL_DESC_TRANSB, op_b);
      prefer_alignment(wide ? static_cast<uint32_t>(a.element()) : 256);
      const float alpha = 0.5f, beta = variant % 3 == 0 ? 0.0f : 2.0f;
      const auto all = proposals(a, b, d);
      ASSERT_FALSE(all.empty());
      const auto& chosen = all[static_cast<size_t>(variant) % all.size()];
      ASSERT_BLAS(multiply(a, b, d, alpha, beta, &chosen.algo));
      const std::vector<double> got = d.fetch();
      std::vector<double> expected = d.values;
      for (int z = 0; z < batches; ++z) {
        for (int64_t i = 0; i < m; ++i) {
          for (int64_t j = 0; j < n; ++j) {
            double sum = 0;
            for (int64_t p = 0; p < k; ++p) {
              sum += a.values[static_cast<size_t>(ta ? a.at(p, i, z) : a.at(i, p, z))] *
                     b.values[static_cast<size_t>(tb ? b.at(j, p, z) : b.at(p, j, z))];
            }
            double& e = expected[static_cast<size_t>(d.at(i, j, z))];
            e = 0.5 * sum + static_cast<double>(beta) * e;
          }
        }
      }
      const double tolerance = types.output == CUDA_R_16BF ? 1.0 / 256 : 1e-6;
      for (size_t i = 0; i < got.size(); ++i) {
        ASSERT_NEAR(expected[i], got[i], tolerance * (std::abs(expected[i]) + 1))
            << "variant " << variant << " element " << i;
      }
      for (Matrix* x : {&a, &b, &d}) x->destroy();
    }
  }
}

TEST_F(CublasLtTest, EpiloguesMatchTheirFormulas) {
  Matrix a{CUDA_R_32F, 9, 6, 9}, b{CUDA_R_32F, 6, 7, 6}, d{CUDA_R_32F, 9, 7, 9};
  Matrix bias{CUDA_R_32F, 9, 1, 9}, aux{CUDA_R_32F, 9, 7, 11};
  unsigned seed = 7;
  for (Matrix* x : {&a, &b, &d, &bias, &aux}) x->make(seed++);
  const auto* bias_data = static_cast<const void*>(bias.data());
  void* aux_data = aux.data();
  set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias_data);
  set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, aux_data);
  set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, aux.leading);
  for (const cublasLtEpilogue_t epilogue :
       {CUBLASLT_EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_RELU,
        CUBLASLT_EPILOGUE_RELU_BIAS, CUBLASLT_EPILOGUE_GELU, CUBLASLT_EPILOGUE_GELU_BIAS,
        CUBLASLT_EPILOGUE_DGELU, CUBLASLT_EPILOGUE_GELU_AUX, CUBLASLT_EPILOGUE_GELU_AUX_BIAS}) {
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, static_cast<uint32_t>(epilogue));
    ASSERT_BLAS(multiply(a, b, d));
    const std::vector<double> got = d.fetch(), kept = aux.fetch();
    for (int64_t i = 0; i < 9; ++i) {
      for (int64_t j = 0; j < 7; ++j) {
        double x = 0;
        for (int64_t p = 0; p < 6; ++p) {
          x +=
              a.values[static_cast<size_t>(a.at(i, p))] * b.values[static_cast<size_t>(b.at(p, j))];
        }
        if (epilogue & CUBLASLT_EPILOGUE_BIAS) x += bias.values[static_cast<size_t>(i)];
        const double before = x;
        if (epilogue == CUBLASLT_EPILOGUE_DGELU) {
          x *= gelu_derivative(aux.values[static_cast<size_t>(aux.at(i, j))]);
        } else if (epilogue & CUBLASLT_EPILOGUE_GELU) {
          x = gelu(x);
        } else if (epilogue & CUBLASLT_EPILOGUE_RELU) {
          x = std::max(x, 0.0);
        }
        ASSERT_NEAR(x, got[static_cast<size_t>(d.at(i, j))], 3e-6) << epilogue;
        if (epilogue == CUBLASLT_EPILOGUE_GELU_AUX || epilogue == CUBLASLT_EPILOGUE_GELU_AUX_BIAS) {
          ASSERT_NEAR(before, kept[static_cast<size_t>(aux.at(i, j))], 3e-6);
        }
      }
    }
  }
  for (Matrix* x : {&a, &b, &d, &bias, &aux}) x->destroy();
}

TEST_F(CublasLtTest, Tf32RoundsItsInputs) {
  Matrix a{CUDA_R_32F, 8, 32, 8}, b{CUDA_R_32F, 32, 8, 32}, d{CUDA_R_32F, 8, 8, 8};
  unsigned seed = 3;
  for (Matrix* x : {&a, &b, &d}) x->make(seed++);
  ASSERT_BLAS(multiply(a, b, d));
  const std::vector<double> exact = d.fetch();
  describe(CUBLAS_COMPUTE_32F_FAST_TF32);
  ASSERT_BLAS(multiply(a, b, d));
  const std::vector<double> rounded = d.fetch();
  double difference = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    difference = std::max(difference, std::abs(exact[i] - rounded[i]));
  }
  EXPECT_GT(difference, 1e-5);
  EXPECT_LT(difference, 1e-2);
  for (Matrix* x : {&a, &b, &d}) x->destroy();
}

TEST_F(CublasLtTest, TheOrderOfSumsDependsOnShapeAndAlgorithmOnly) {
  // D's columns are the rows of a row-major product: its M.
  std::set<std::vector<double>> by_algorithm, by_shape;
  for (const int64_t columns : {1, 2, 3, 4, 8, 16, 33}) {
    Matrix a{CUDA_R_32F, 16, 256, 16}, b{CUDA_R_32F, 256, columns, 256},
        d{CUDA_R_32F, 16, columns, 16};
    a.make(1);
    b.make(2);
    d.make(3);
    const auto all = proposals(a, b, d);
    ASSERT_GE(all.size(), 8u);
    for (const auto& one : all) {
      ASSERT_BLAS(multiply(a, b, d, 1, 0, &one.algo));
      std::vector<double> first = d.fetch();
      ASSERT_BLAS(multiply(a, b, d, 1, 0, &one.algo));
      ASSERT_EQ(first, d.fetch());
      first.resize(16);
      if (columns == 4) by_algorithm.insert(first);
      if (one.algo.data[1] == 6) by_shape.insert(first);
    }
    for (Matrix* x : {&a, &b, &d}) x->destroy();
  }
  EXPECT_GT(by_algorithm.size(), 2u);
  EXPECT_GT(by_shape.size(), 2u);
}

TEST_F(CublasLtTest, RefusesWhatTheLibraryRefuses) {
  Matrix a{CUDA_R_32F, 8, 12, 8}, b{CUDA_R_32F, 12, 4, 12}, d{CUDA_R_32F, 8, 4, 8};
  Matrix wrong{CUDA_R_32F, 9, 4, 9}, halves{CUDA_R_16BF, 12, 4, 12}, odd{CUDA_R_32F, 8, 4, 9};
  Matrix shifted{CUDA_R_32F, 8, 4, 8, false, 1};
  unsigned seed = 5;
  for (Matrix* x : {&a, &b, &d, &wrong, &halves, &odd, &shifted}) x->make(seed++);
  EXPECT_EQ(CUBLAS_STATUS_INVALID_VALUE, multiply(a, b, wrong)) << "shapes";
  EXPECT_EQ(CUBLAS_STATUS_NOT_SUPPORTED, multiply(a, halves, d)) << "types";
  EXPECT_TRUE(proposals(a, halves, d).empty());

  // The alignment that is asked for decides which algorithms there are, and which may run.
  const size_t aligned = proposals(a, b, d).size();
  const auto vector_algorithm = proposals(a, b, d)[0];
  prefer_alignment(4);
  EXPECT_LT(proposals(a, b, d).size(), aligned);
  prefer_alignment(256);
  EXPECT_EQ(CUBLAS_STATUS_INVALID_VALUE, multiply(a, b, shifted)) << "the default says 256 bytes";
  cublasLtMatmulHeuristicResult_t result;
  int taken = 0;
  for (const auto& one : proposals(a, b, d)) {
    const bool checked =
        cublasLtMatmulAlgoCheck(handle_, desc_, a.layout, b.layout, odd.layout, odd.layout,
                                &one.algo, &result) == CUBLAS_STATUS_SUCCESS;
    EXPECT_EQ(checked, multiply(a, b, odd, 1, 0, &one.algo) == CUBLAS_STATUS_SUCCESS);
    taken += checked;
  }
  EXPECT_GT(taken, 0);
  EXPECT_LT(taken, static_cast<int>(aligned));

  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{0});
  for (const auto& one : proposals(a, b, d)) EXPECT_EQ(0u, one.workspaceSize);
  cublasLtMatmulAlgo_t garbage = vector_algorithm.algo;
  garbage.data[0] ^= 1;
  EXPECT_EQ(CUBLAS_STATUS_INVALID_VALUE,
            cublasLtMatmulAlgoCheck(handle_, desc_, a.layout, b.layout, d.layout, d.layout,
                                    &garbage, &result));
  describe(CUBLAS_COMPUTE_64F);
  EXPECT_EQ(CUBLAS_STATUS_NOT_SUPPORTED, multiply(a, b, d));
  describe(CUBLAS_COMPUTE_32F);
  set(CUBLASLT_MATMUL_DESC_EPILOGUE, static_cast<uint32_t>(CUBLASLT_EPILOGUE_BIAS));
  EXPECT_EQ(CUBLAS_STATUS_INVALID_VALUE, multiply(a, b, d)) << "no bias pointer";
  int32_t short_value = 0;
  EXPECT_EQ(CUBLAS_STATUS_INVALID_VALUE,
            cublasLtMatmulDescSetAttribute(desc_, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &short_value,
                                           sizeof short_value));
  for (Matrix* x : {&a, &b, &d, &wrong, &halves, &odd, &shifted}) x->destroy();
}

TEST_F(CublasLtTest, AProductBeyondItsMemoryFails) {
  Matrix a{CUDA_R_32F, 8, 12, 8}, b{CUDA_R_32F, 12, 4, 12}, d{CUDA_R_32F, 8, 4, 8};
  for (Matrix* x : {&a, &b, &d}) x->make(1);
  Matrix larger = b;
  larger.columns = 5;
  ASSERT_BLAS(cublasLtMatrixLayoutCreate(&larger.layout, CUDA_R_32F, 12, 5, 12));
  Matrix wide{CUDA_R_32F, 8, 5, 8};
  wide.make(1);
  ASSERT_BLAS(multiply(a, larger, wide));
  EXPECT_EQ(cudaErrorIllegalAddress, cudaDeviceSynchronize());
  EXPECT_NE(std::string(heirloom::emulator::last_failure()).find("cublasLtMatmul: B has 240 bytes"),
            std::string::npos)
      << heirloom::emulator::last_failure();
  heirloom::emulator::reset_runtime();
  ASSERT_BLAS(cublasLtMatrixLayoutDestroy(larger.layout));
  for (Matrix* x : {&a, &b, &d, &wide}) x->destroy();
}

TEST_F(CublasLtTest, ProductsAreCaptured) {
  Matrix a{CUDA_R_32F, 8, 12, 8}, b{CUDA_R_32F, 12, 4, 12}, d{CUDA_R_32F, 8, 4, 8};
  for (Matrix* x : {&a, &b, &d}) x->make(1);
  ASSERT_OK(cudaDeviceSynchronize());
  cudaStream_t stream;
  ASSERT_OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  ASSERT_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  const float one = 1, zero = 0;
  ASSERT_BLAS(cublasLtMatmul(handle_, desc_, &one, a.data(), a.layout, b.data(), b.layout, &zero,
                             d.data(), d.layout, d.data(), d.layout, nullptr, workspace_,
                             kWorkspace, stream));
  cudaGraph_t graph;
  ASSERT_OK(cudaStreamEndCapture(stream, &graph));
  EXPECT_EQ(d.values, d.fetch());
  cudaGraphExec_t executable;
  ASSERT_OK(cudaGraphInstantiate(&executable, graph));
  ASSERT_OK(cudaGraphLaunch(executable, stream));
  ASSERT_OK(cudaStreamSynchronize(stream));
  const std::vector<double> replayed = d.fetch();
  ASSERT_BLAS(multiply(a, b, d));
  EXPECT_EQ(d.fetch(), replayed);
  ASSERT_OK(cudaGraphExecDestroy(executable));
  ASSERT_OK(cudaGraphDestroy(graph));
  ASSERT_OK(cudaStreamDestroy(stream));
  for (Matrix* x : {&a, &b, &d}) x->destroy();
}

}  // namespace
