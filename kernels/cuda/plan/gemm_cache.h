// SPDX-License-Identifier: Apache-2.0
//
// Which algorithm of cuBLASLt was found to be the fastest for a product, kept in a file between
// runs: pinned, so that a run's sums have one order whatever else the library would propose.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

#include "heirloom/core/dtype.h"

namespace heirloom::cuda {

/// Everything that a choice may depend on. Alignments are in bytes, of pointers and row strides
/// together, 16 at most.
struct GemmKey {
  std::string device;
  uint64_t library = 0;
  int64_t m = 0, n = 0, k = 0;
  bool transpose_a = false, transpose_b = false;
  Dtype input = Dtype::kFloat32, output = Dtype::kFloat32;
  bool bias = false, accumulate = false, tf32 = false;
  int a_alignment = 0, b_alignment = 0, c_alignment = 0;

  /// One line: "m=8 n=16 k=32 ta=0 tb=1 in=bfloat16 ... library=130100 device=NVIDIA H200".
  std::string text() const;
};

/// cublasLtMatmulAlgo_t's words.
using GemmAlgorithm = std::array<uint64_t, 8>;

class GemmCache {
 public:
  /// Empty when there is no such file. One of another format or with damage is ignored with a
  /// warning.
  static GemmCache read(const std::filesystem::path& path);
  /// Complete or not at all. IoError when the system refuses.
  void write(const std::filesystem::path& path) const;

  const GemmAlgorithm* find(const std::string& key) const;
  void set(const std::string& key, const GemmAlgorithm& algorithm) { entries_[key] = algorithm; }
  /// Takes what `other` has and this has not.
  void merge(const GemmCache& other) {
    entries_.insert(other.entries_.begin(), other.entries_.end());
  }
  const std::map<std::string, GemmAlgorithm>& entries() const { return entries_; }

 private:
  std::map<std::string, GemmAlgorithm> entries_;
};

}  // namespace heirloom::cuda
