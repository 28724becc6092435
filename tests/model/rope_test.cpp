// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "heirloom/core/error.h"
#include "heirloom/model/config.h"

namespace heirloom {
namespace {

ModelConfig rope_config(int64_t head_dim, double theta) {
  ModelConfig config;
  config.head_dim = head_dim;
  config.rope_theta = theta;
  config.max_position_embeddings = 128;
  return config;
}

/// The angle per position of every pair, from the tables at position 1 (angles stay below pi).
std::vector<double> frequencies(const ModelConfig& config) {
  const RopeTables tables = rope_tables(config, 2);
  std::vector<double> result;
  for (int64_t i = 0; i < tables.half_dim; ++i) {
    const auto at = static_cast<size_t>(tables.half_dim + i);
    result.push_back(std::atan2(tables.sines[at], tables.cosines[at]));
  }
  return result;
}

void expect_near(const std::vector<double>& got, const std::vector<double>& expected) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_NEAR(got[i], expected[i], 1e-12 + 1e-9 * expected[i]) << i;
  }
}

TEST(Rope, PlainAndPartial) {
  ModelConfig config = rope_config(8, 10000);
  expect_near(frequencies(config), {1, 0.1, 0.01, 0.001});
  const RopeTables tables = rope_tables(config, 3);
  EXPECT_EQ(tables.positions, 3);
  EXPECT_EQ(tables.half_dim, 4);
  EXPECT_DOUBLE_EQ(tables.cosines[0], 1);
  EXPECT_DOUBLE_EQ(tables.cosines[2 * 4 + 1], std::cos(0.2));
  EXPECT_DOUBLE_EQ(tables.sines[2 * 4 + 2], std::sin(0.02));
  config.partial_rotary_factor = 0.5;
  EXPECT_EQ(config.rotary_dim(), 4);
  expect_near(frequencies(config), {1, 0.01});  // the exponent's denominator is the rotary dim
  config.position = PositionKind::kLearned;
  EXPECT_EQ(config.rotary_dim(), 0);
  EXPECT_TRUE(rope_tables(config, 4).cosines.empty());
  EXPECT_THROW(rope_tables(config, -1), ArgumentError);
}

TEST(Rope, LatentAttentionRotatesItsRopeKey) {
  ModelConfig config = rope_config(64, 10000);
  config.latent.kv_lora_rank = 32;
  config.latent.qk_rope_head_dim = 4;
  expect_near(frequencies(config), {1, 0.01});
}

TEST(Rope, Linear) {
  ModelConfig config = rope_config(8, 10000);
  config.rope_scaling.type = "linear";
  config.rope_scaling.factor = 4;
  expect_near(frequencies(config), {0.25, 0.025, 0.0025, 0.00025});
}

TEST(Rope, Llama3) {
  ModelConfig config = rope_config(8, 10000);
  config.rope_scaling.type = "llama3";
  config.rope_scaling.factor = 8;
  config.rope_scaling.original_max_position_embeddings = 128;
  // Wavelengths 6.28, 62.8, 628, 6283 against 128/4 = 32 and 128/1 = 128: kept, between, divided,
  // divided.
  const double smooth = (128 / (2 * std::numbers::pi / 0.1) - 1) / 3;
  expect_near(frequencies(config), {1, (1 - smooth) * 0.1 / 8 + smooth * 0.1, 0.01 / 8, 0.001 / 8});
}

TEST(Rope, Yarn) {
  ModelConfig config = rope_config(8, 10000);
  config.rope_scaling.type = "yarn";
  config.rope_scaling.factor = 4;
  config.rope_scaling.beta_fast = 4;
  config.rope_scaling.beta_slow = 1;
  config.rope_scaling.original_max_position_embeddings = 1000;
  // dim(r) = 8 ln(1000 / (2 pi r)) / (2 ln 10000): 1.60 for r = 4, 2.20 for r = 1, so low 1, high
  // 3; pair 2 is half way.
  expect_near(frequencies(config), {1, 0.1, 0.01 * (0.5 / 4 + 0.5), 0.001 / 4});
  config.rope_scaling.truncate = false;  // pair 2 is at (2 - dim(4)) / (dim(1) - dim(4))
  const auto dim = [](double turns) {
    return 4 * std::log(1000 / (2 * std::numbers::pi * turns)) / std::log(10000);
  };
  const double ramp = (2 - dim(4)) / (dim(1) - dim(4));
  expect_near(frequencies(config), {1, 0.1, 0.01 * (ramp / 4 + 1 - ramp), 0.001 / 4});
  config.rope_scaling.truncate = true;
  const double factor = 0.1 * std::log(4.0) + 1;
  EXPECT_DOUBLE_EQ(rope_tables(config, 1).cosines[0], factor);
  const RopeTables tables = rope_tables(config, 2);
  EXPECT_NEAR(tables.sines[4], std::sin(1.0) * factor, 1e-12);

  config.rope_scaling.mscale = 2;
  config.rope_scaling.mscale_all_dim = 0.5;
  EXPECT_DOUBLE_EQ(rope_tables(config, 1).cosines[0],
                   (0.2 * std::log(4.0) + 1) / (0.05 * std::log(4.0) + 1));
  config.rope_scaling.attention_factor = 1.25;
  EXPECT_DOUBLE_EQ(rope_tables(config, 1).cosines[0], 1.25);
}

TEST(Rope, YarnFallsBackToMaxPositions) {
  ModelConfig config = rope_config(8, 10000);
  config.rope_scaling.type = "yarn";
  config.rope_scaling.factor = 2;
  config.max_position_embeddings = 1000;
  ModelConfig named = config;
  named.rope_scaling.original_max_position_embeddings = 1000;
  EXPECT_EQ(rope_tables(config, 3).sines, rope_tables(named, 3).sines);
  named.rope_scaling.original_max_position_embeddings = 10;
  EXPECT_NE(rope_tables(config, 3).sines, rope_tables(named, 3).sines);
}

}  // namespace
}  // namespace heirloom
