// SPDX-License-Identifier: Apache-2.0
//
// Rope frequencies with the scalings of transformers' configs: linear (position interpolation),
// llama3 (Llama 3.1: long waves interpolated, short ones kept, a ramp between), yarn (arXiv
// 2309.00071: a ramp over dims, and a factor on cosines and sines).
#include <algorithm>
#include <cmath>
#include <numbers>

#include "heirloom/core/error.h"
#include "heirloom/model/config.h"

namespace heirloom {
namespace {

double llama3_frequency(double frequency, const RopeScaling& s) {
  const auto original = static_cast<double>(s.original_max_position_embeddings);
  const double wavelength = 2 * std::numbers::pi / frequency;
  if (wavelength > original / s.low_freq_factor) return frequency / s.factor;
  if (wavelength < original / s.high_freq_factor) return frequency;
  const double smooth =
      (original / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
  return (1 - smooth) * frequency / s.factor + smooth * frequency;
}

/// The dim (of rotary_dim) whose wave turns `rotations` times within the original context.
double yarn_dim(double rotations, double rotary_dim, double theta, double original) {
  return rotary_dim * std::log(original / (rotations * 2 * std::numbers::pi)) /
         (2 * std::log(theta));
}

void scale_yarn(const ModelConfig& c, std::vector<double>& frequencies) {
  const RopeScaling& s = c.rope_scaling;
  const auto original = static_cast<double>(s.original_max_position_embeddings > 0
                                                ? s.original_max_position_embeddings
                                                : c.max_position_embeddings);
  const auto dim = static_cast<double>(c.rotary_dim());
  double low = yarn_dim(s.beta_fast, dim, c.rope_theta, original);
  double high = yarn_dim(s.beta_slow, dim, c.rope_theta, original);
  if (s.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1);
  if (low == high) high += 0.001;
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    frequencies[i] = frequencies[i] / s.factor * ramp + frequencies[i] * (1 - ramp);
  }
}

double yarn_mscale(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

double attention_factor(const RopeScaling& s) {
  if (s.type != "yarn") return 1;
  if (s.attention_factor > 0) return s.attention_factor;
  if (s.mscale > 0 && s.mscale_all_dim > 0) {
    return yarn_mscale(s.factor, s.mscale) / yarn_mscale(s.factor, s.mscale_all_dim);
  }
  return yarn_mscale(s.factor, 1);
}

}  // namespace

RopeTables rope_tables(const ModelConfig& config, int64_t positions) {
  const int64_t dim = config.rotary_dim();
  HEIRLOOM_CHECK(positions >= 0 && dim >= 0 && dim % 2 == 0,
                 "[rope] expected positions >= 0 and an even rotary dim; got {}, {}", positions,
                 dim);
  const RopeScaling& scaling = config.rope_scaling;
  std::vector<double> frequencies(static_cast<size_t>(dim / 2));
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double exponent = 2.0 * static_cast<double>(i) / static_cast<double>(dim);
    frequencies[i] = std::pow(config.rope_theta, -exponent);
    if (scaling.type == "linear") frequencies[i] /= scaling.factor;
    if (scaling.type == "llama3") frequencies[i] = llama3_frequency(frequencies[i], scaling);
  }
  if (scaling.type == "yarn") scale_yarn(config, frequencies);
  const double factor = attention_factor(scaling);
  RopeTables tables;
  tables.positions = positions;
  tables.half_dim = dim / 2;
  tables.cosines.reserve(static_cast<size_t>(positions) * frequencies.size());
  tables.sines.reserve(static_cast<size_t>(positions) * frequencies.size());
  for (int64_t p = 0; p < positions; ++p) {
    for (const double frequency : frequencies) {
      const double angle = static_cast<double>(p) * frequency;
      tables.cosines.push_back(std::cos(angle) * factor);
      tables.sines.push_back(std::sin(angle) * factor);
    }
  }
  return tables;
}

}  // namespace heirloom
