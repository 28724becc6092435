// SPDX-License-Identifier: Apache-2.0
//
// gemm on (emulated) CUDA: strides of every kind, bias by epilogue and apart, empty sums, captures, and
// which algorithm runs. Values of ordinary problems are tests/kernels' affair.
#include "heirloom/kernels/gemm.h"

#include <cublasLt.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "heirloom/core/device_runtime.h"
#include "heirloom/core/error.h"
#include "heirloom/kernels/kernel_table.h"
#include "kernels/cuda/plan/gemm_cache.h"

namespace heirloom::cuda {
void register_gemm();
void register_runtime();
namespace {

/// Rows of `stride` elements on the device, beginning `offset` elements behind a 256-byte boundary.
class DeviceMatrix {
 public:
  DeviceMatrix(Dtype dtype, int64_t rows, int64_t columns, int64_t stride, int64_t offset,
               unsigned seed)
      : dtype_(dtype), columns_(columns), stride_(stride) {
    const int64_t count = rows == 0 ? 0 : (rows - 1) * stride + columns;
    values_.resize(static_cast<size_t>(count));
    for (float& x : values_) {
      seed = seed * 1664525u + 1013904223u;
      x = static_cast<float>(static_cast<int>(seed >> 8) % 2001 - 1000) / 1000.0f;
      if (dtype == Dtype::kBFloat16) x = static_cast<float>(bfloat16(x));
    }
    memory_ = runtime().allocate(0, (count + offset) * dtype_size(dtype));
    data_ = static_cast<char*>(memory_) + offset * dtype_size(dtype);
    upload();
  }
  ~DeviceMatrix() { runtime().release(0, memory_); }
  DeviceMatrix(const DeviceMatrix&) = delete;

  static DeviceRuntime& runtime() { return device_runtime(DeviceKind::kCuda); }
  void* data() const { return data_; }
  float at(int64_t i, int64_t j) const { return values_[static_cast<size_t>(i * stride_ + j)]; }
  std::vector<float>& values() { return values_; }
  void upload() {
    if (dtype_ == Dtype::kBFloat16) {
      const std::vector<bfloat16> rounded(values_.begin(), values_.end());
      runtime().copy_to_device(data_, rounded.data(), bytes(), runtime().stream(0));
    } else {
      runtime().copy_to_device(data_, values_.data(), bytes(), runtime().stream(0));
    }
  }
  std::vector<float> fetch() const {
    std::vector<float> out(values_.size());
    if (dtype_ == Dtype::kBFloat16) {
      std::vector<bfloat16> raw(values_.size());
      runtime().copy_to_host(raw.data(), data_, bytes(), runtime().stream(0));
      for (size_t i = 0; i < raw.size(); ++i) out[i] = static_cast<float>(raw[i]);
    } else {
      runtime().copy_to_host(out.data(), data_, bytes(), runtime().stream(0));
    }
    return out;
  }

 private:
  int64_t bytes() const { return static_cast<int64_t>(values_.size()) * dtype_size(dtype_); }
  Dtype dtype_;
  int64_t columns_, stride_;
  std::vector<float> values_;
  void* memory_ = nullptr;
  void* data_ = nullptr;
};

class GemmTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    register_runtime();
    register_gemm();
  }
  void SetUp() override {
    file_ = std::filesystem::temp_directory_path() / ("gemm_test." + std::to_string(getpid()));
    std::filesystem::remove(file_);
  }
  void TearDown() override { std::filesystem::remove(file_); }
  static void gemm(const GemmArgs& args, Dtype dtype) {
    gemm_table().get(DeviceKind::kCuda, dtype)(args, DeviceMatrix::runtime().stream(0));
  }
  std::filesystem::path file_;
};

TEST_F(GemmTest, AnyStridesTransposesTypesAndBiases) {
  unsigned seed = 1;
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16}) {
    for (int variant = 0; variant < 192; ++variant) {
      GemmArgs args;
      args.transpose_a = variant & 1;
      args.transpose_b = variant & 2;
      args.c_is_accumulate_dtype = variant & 4;
      args.accumulate = variant % 3 == 1;
      const bool bias = variant % 3 == 2;
      const int64_t extra = variant & 8 ? 3 : variant & 16 ? 8 : 0, offset = variant & 32 ? 1 : 0;
      args.m = variant % 5 == 0 ? 1 : 3 + variant % 7 * 4;
      args.n = variant % 13 == 0 ? 1 : 8 + variant % 6 * 5;
      args.k = variant % 11 == 3 ? 0 : 1 + variant % 9 * 8;
      args.lda = (args.transpose_a ? args.m : args.k) + extra;
      args.ldb = (args.transpose_b ? args.k : args.n) + extra;
      args.ldc = args.n + extra;
      const Dtype output = args.c_is_accumulate_dtype ? Dtype::kFloat32 : dtype;
      const DeviceMatrix a(dtype, args.transpose_a ? args.k : args.m,
                           args.transpose_a ? args.m : args.k, args.lda, offset, seed++);
      const DeviceMatrix b(dtype, args.transpose_b ? args.n : args.k,
                           args.transpose_b ? args.k : args.n, args.ldb, offset, seed++);
      DeviceMatrix c(output, args.m, args.n, args.ldc, offset, seed++);
      const DeviceMatrix v(dtype, 1, args.n, args.n, variant & 64 ? 1 : 0, seed++);
      args.a = a.data();
      args.b = b.data();
      args.c = c.data();
      args.bias = bias ? v.data() : nullptr;
      gemm(args, dtype);
      const std::vector<float> got = c.fetch();
      for (size_t index = 0; index < got.size(); ++index) {
        const int64_t i = static_cast<int64_t>(index) / args.ldc;
        const int64_t j = static_cast<int64_t>(index) % args.ldc;
        double expected = static_cast<double>(c.values()[index]);
        if (j < args.n) {
          if (!args.accumulate) expected = bias ? static_cast<double>(v.at(0, j)) : 0;
          for (int64_t p = 0; p < args.k; ++p) {
            expected += static_cast<double>(args.transpose_a ? a.at(p, i) : a.at(i, p)) *
                        static_cast<double>(args.transpose_b ? b.at(j, p) : b.at(p, j));
          }
        }
        const double tolerance = output == Dtype::kBFloat16 ? 1.0 / 256 : 2e-6;
        ASSERT_NEAR(expected, static_cast<double>(got[index]), tolerance * (std::abs(expected) + 1))
            << dtype_name(dtype) << " variant " << variant << " (" << i << ", " << j << ")";
      }
    }
  }
}

TEST_F(GemmTest, NothingToDoIsNothingDone) {
  const int64_t before = emulator::kernels_run();
  GemmArgs args;
  args.k = 4;
  args.n = 4;
  gemm(args, Dtype::kFloat32);
  std::swap(args.m, args.n);
  gemm(args, Dtype::kBFloat16);
  args.k = 0;
  args.n = 4;
  args.accumulate = true;
  gemm(args, Dtype::kFloat32);
  DeviceMatrix::runtime().synchronize(DeviceMatrix::runtime().stream(0));
  EXPECT_EQ(before, emulator::kernels_run());
}

GemmArgs large(const DeviceMatrix& a, const DeviceMatrix& b, const DeviceMatrix& c, int64_t m) {
  GemmArgs args;
  args.a = a.data();
  args.b = b.data();
  args.c = c.data();
  args.m = m;
  args.n = 64;
  args.k = 256;
  args.lda = 256;
  args.ldb = 64;
  args.ldc = 64;
  return args;
}

TEST_F(GemmTest, Tf32OnlyWhenAskedFor) {
  const DeviceMatrix a(Dtype::kFloat32, 16, 256, 256, 0, 1), b(Dtype::kFloat32, 256, 64, 64, 0, 2);
  const DeviceMatrix c(Dtype::kFloat32, 16, 64, 64, 0, 3);
  GemmArgs args = large(a, b, c, 16);
  gemm(args, Dtype::kFloat32);
  const std::vector<float> exact = c.fetch();
  args.tf32 = true;
  gemm(args, Dtype::kFloat32);
  float difference = 0;
  const std::vector<float> rounded = c.fetch();
  for (size_t i = 0; i < exact.size(); ++i) {
    difference = std::max(difference, std::abs(exact[i] - rounded[i]));
  }
  EXPECT_GT(difference, 1e-4f);
  EXPECT_LT(difference, 1e-1f);
}

TEST_F(GemmTest, ACapturedProductReplays) {
  DeviceRuntime& runtime = DeviceMatrix::runtime();
  const Stream stream = runtime.stream(0);
  const DeviceMatrix a(Dtype::kBFloat16, 24, 256, 256, 0, 1),
      b(Dtype::kBFloat16, 256, 64, 64, 0, 2);
  DeviceMatrix c(Dtype::kFloat32, 24, 64, 64, 0, 3);
  const DeviceMatrix bias(Dtype::kBFloat16, 1, 64, 64, 0, 4);
  GemmArgs args = large(a, b, c, 24);
  args.c_is_accumulate_dtype = true;
  args.bias = bias.data();
  gemm(args, Dtype::kBFloat16);
  const std::vector<float> eager = c.fetch();
  c.upload();
  runtime.synchronize(stream);

  runtime.begin_capture(stream);
  gemm(args, Dtype::kBFloat16);
  const Graph graph = runtime.end_capture(stream);
  EXPECT_EQ(c.values(), c.fetch());
  runtime.launch(graph, stream);
  EXPECT_EQ(eager, c.fetch());
  runtime.destroy(graph);

  // A capture that an error cut short does not stop the next one.
  runtime.begin_capture(stream);
  EXPECT_THROW(runtime.synchronize(stream), DeviceError);
  EXPECT_THROW(static_cast<void>(runtime.end_capture(stream)), DeviceError);
  runtime.begin_capture(stream);
  EXPECT_THROW(runtime.allocate(0, 64), DeviceError);
  runtime.begin_capture(stream);
  runtime.destroy(runtime.end_capture(stream));
}

TEST_F(GemmTest, TuningPinsTheFastestForGood) {
  const DeviceMatrix a(Dtype::kFloat32, 40, 256, 256, 0, 1), b(Dtype::kFloat32, 256, 64, 64, 0, 2);
  const DeviceMatrix c(Dtype::kFloat32, 40, 64, 64, 0, 3);
  std::vector<GemmProblem> problems;
  for (const int64_t m : {int64_t{1}, int64_t{2}, int64_t{3}, int64_t{17}, int64_t{40}}) {
    problems.push_back({large(a, b, c, m), Dtype::kFloat32});
    gemm(problems.back().args, Dtype::kFloat32);
  }
  const std::vector<float> untuned = c.fetch();
  problems.push_back(problems.back());  // again: one entry
  problems.push_back({});               // nothing
  tune_gemms({DeviceKind::kCuda, 0}, problems, file_.string());
  const GemmCache cache = GemmCache::read(file_);
  ASSERT_EQ(5u, cache.entries().size());
  std::vector<std::vector<float>> tuned;
  for (size_t i = 0; i < 5; ++i) {
    gemm(problems[i].args, Dtype::kFloat32);
    tuned.push_back(c.fetch());
  }
  EXPECT_NE(untuned, tuned.back()) << "some product's order of sums is another one now";
  for (size_t i = 0; i < untuned.size(); ++i) ASSERT_NEAR(untuned[i], tuned.back()[i], 1e-4f);

  // A file that names algorithms decides: not what is measured.
  const int64_t before = emulator::kernels_run();
  tune_gemms({DeviceKind::kCuda, 0}, problems, file_.string());
  EXPECT_EQ(before, emulator::kernels_run());
  EXPECT_EQ(cache.entries(), GemmCache::read(file_).entries());
}

TEST_F(GemmTest, ABiasTakesTheAlgorithmThatIsPinnedWithoutIt) {
  const DeviceMatrix a(Dtype::kFloat32, 22, 256, 256, 0, 1), b(Dtype::kFloat32, 256, 64, 64, 0, 2);
  const DeviceMatrix c(Dtype::kFloat32, 22, 64, 64, 0, 3), d(Dtype::kFloat32, 22, 64, 64, 0, 4);
  DeviceMatrix zero(Dtype::kFloat32, 1, 64, 64, 0, 5);
  zero.values().assign(64, 0.0f);
  zero.upload();
  // Without a file, too; for some of these shapes the first proposal is not the fastest.
  for (int64_t m = 18; m <= 22; ++m) {
    GemmArgs args = large(a, b, c, m);
    tune_gemms({DeviceKind::kCuda, 0}, {{args, Dtype::kFloat32}}, "");
    gemm(args, Dtype::kFloat32);
    args.bias = zero.data();
    args.c = d.data();
    gemm(args, Dtype::kFloat32);
    std::vector<float> plain = c.fetch(), biased = d.fetch();
    plain.resize(static_cast<size_t>(m * 64));
    biased.resize(plain.size());
    EXPECT_EQ(plain, biased);
  }
}

TEST_F(GemmTest, TheFilesAlgorithmRunsUnlessTheLibraryRefusesIt) {
  const DeviceMatrix a(Dtype::kFloat32, 31, 256, 256, 0, 1), b(Dtype::kFloat32, 256, 64, 64, 0, 2);
  const DeviceMatrix c(Dtype::kFloat32, 31, 64, 64, 0, 3);
  const GemmProblem one{large(a, b, c, 31), Dtype::kFloat32},
      two{large(a, b, c, 30), Dtype::kFloat32};
  const auto key = [](int64_t m) {
    GemmKey k;
    k.device = "emulated CUDA device";
    k.library = cublasLtGetVersion();
    k.m = m;
    k.n = 64;
    k.k = 256;
    k.a_alignment = k.b_alignment = k.c_alignment = 16;
    return k.text();
  };
  // The emulator's words: magic, number, pieces of K, reduction scheme, alignment.
  const GemmAlgorithm slow{0x656d756c61746564, 8, 2, 2, 1, 0, 0, 0};
  const GemmAlgorithm garbage{1, 2, 3, 4, 5, 6, 7, 8};
  GemmCache cache;
  cache.set(key(31), slow);
  cache.set(key(30), garbage);
  cache.write(file_);
  tune_gemms({DeviceKind::kCuda, 0}, {one, two}, file_.string());
  const GemmCache after = GemmCache::read(file_);
  ASSERT_NE(nullptr, after.find(key(31)));
  EXPECT_EQ(slow, *after.find(key(31)));
  ASSERT_NE(nullptr, after.find(key(30)));
  EXPECT_NE(garbage, *after.find(key(30)));
}

TEST_F(GemmTest, TheRuntimeReportsWhatItIs) {
  DeviceRuntime& runtime = DeviceMatrix::runtime();
  EXPECT_EQ(1, runtime.device_count());
  EXPECT_TRUE(runtime.emulated());
  EXPECT_EQ("emulated CUDA device", runtime.description(0));
  EXPECT_THROW(runtime.description(1), DeviceError);
  const int64_t free = runtime.available_bytes(0);
  EXPECT_THROW(runtime.allocate(0, free + 1), OutOfMemoryError);
  void* empty = runtime.allocate(0, 0);
  EXPECT_NE(nullptr, empty);
  runtime.release(0, empty);
  runtime.release(0, nullptr);
  auto* pinned = static_cast<float*>(runtime.allocate_pinned(64));
  pinned[0] = 1;
  void* data = runtime.allocate(0, 64);
  runtime.fill_zero(data, 64, runtime.stream(0));
  runtime.copy_to_host(pinned, data, 64, runtime.stream(0));
  EXPECT_EQ(1, pinned[0]);
  runtime.synchronize(runtime.stream(0));
  EXPECT_EQ(0, pinned[0]);
  runtime.release(0, data);
  runtime.release_pinned(pinned);
}

}  // namespace
}  // namespace heirloom::cuda
