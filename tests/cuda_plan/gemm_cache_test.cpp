// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/plan/gemm_cache.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "heirloom/core/log.h"
#include "heirloom/io/file.h"

namespace heirloom::cuda {
namespace {

class GemmCacheTest : public testing::Test {
 protected:
  void SetUp() override {
    path_ = fs::temp_directory_path() / ("gemm_cache_test." + std::to_string(getpid()));
    fs::remove(path_);
    set_log_sink([this](LogLevel level, const std::string& text) {
      if (level == LogLevel::kWarning) warnings_.push_back(text);
    });
  }
  void TearDown() override {
    set_log_sink({});
    fs::remove(path_);
  }
  fs::path path_;
  std::vector<std::string> warnings_;
};

GemmKey key() {
  GemmKey k;
  k.device = "NVIDIA H200";
  k.library = 130100;
  k.m = 4096;
  k.n = 768;
  k.k = 3072;
  k.input = k.output = Dtype::kBFloat16;
  k.a_alignment = k.b_alignment = k.c_alignment = 16;
  return k;
}

constexpr GemmAlgorithm kFirst{1, 2, 0xffffffffffffffffull, 0, 5, 6, 7, 0x0123456789abcdefull};
constexpr GemmAlgorithm kSecond{9, 9, 9, 9, 9, 9, 9, 9};

TEST_F(GemmCacheTest, KeysTellEveryFieldApart) {
  std::vector<GemmKey> keys(16, key());
  keys[1].device = "NVIDIA H100";
  keys[2].library = 130200;
  keys[3].m = 1;
  keys[4].n = 1;
  keys[5].k = 1;
  keys[6].transpose_a = true;
  keys[7].transpose_b = true;
  keys[8].input = Dtype::kFloat32;
  keys[9].output = Dtype::kFloat32;
  keys[10].bias = true;
  keys[11].accumulate = true;
  keys[12].tf32 = true;
  keys[13].a_alignment = 2;
  keys[14].b_alignment = 2;
  keys[15].c_alignment = 2;
  GemmCache cache;
  for (const GemmKey& k : keys) cache.set(k.text(), kFirst);
  EXPECT_EQ(16u, cache.entries().size());
}

TEST_F(GemmCacheTest, WhatIsWrittenIsRead) {
  EXPECT_TRUE(GemmCache::read(path_).entries().empty());
  GemmCache cache;
  cache.set(key().text(), kFirst);
  cache.set("another", kSecond);
  cache.write(path_);
  const GemmCache again = GemmCache::read(path_);
  EXPECT_EQ(cache.entries(), again.entries());
  ASSERT_NE(nullptr, again.find(key().text()));
  EXPECT_EQ(kFirst, *again.find(key().text()));
  EXPECT_EQ(nullptr, again.find("a third"));
  EXPECT_TRUE(warnings_.empty());
}

TEST_F(GemmCacheTest, MergingKeepsWhatIsThere) {
  GemmCache mine, theirs;
  mine.set("both", kFirst);
  theirs.set("both", kSecond);
  theirs.set("theirs", kSecond);
  mine.merge(theirs);
  EXPECT_EQ(kFirst, *mine.find("both"));
  EXPECT_EQ(kSecond, *mine.find("theirs"));
}

TEST_F(GemmCacheTest, DamageAndOtherFormatsAreIgnoredWithAWarning) {
  GemmCache cache;
  cache.set(key().text(), kFirst);
  cache.write(path_);
  const std::string good = read_file(path_);
  std::vector<std::string> bad = {"",
                                  "\n",
                                  "something else\n",
                                  good.substr(0, good.size() - 1),
                                  good.substr(0, good.size() / 2),
                                  good + "x"};
  for (size_t at = 0; at < good.size(); at += 7) {
    bad.push_back(good);
    bad.back()[at] = static_cast<char>(bad.back()[at] ^ 1);
  }
  for (const std::string& text : bad) {
    write_file_atomically(path_, text);
    warnings_.clear();
    EXPECT_TRUE(GemmCache::read(path_).entries().empty()) << text;
    ASSERT_EQ(1u, warnings_.size()) << text;
    EXPECT_NE(std::string::npos, warnings_[0].find("[gemm] expected pinned algorithms in"));
  }
}

}  // namespace
}  // namespace heirloom::cuda
