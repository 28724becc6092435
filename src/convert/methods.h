// SPDX-License-Identifier: Apache-2.0
//
// How the values of a layer that keeps some of its own heads are made: a method is one function over
// the plan, the layer's weights and their statistics.
#pragma once

#include <Eigen/Core>
#include <string>
#include <vector>

#include "heirloom/model/kv_plan.h"

namespace heirloom {

/// Rows = outputs, as in checkpoints.
using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Vector = Eigen::VectorXd;

/// Weights that turn a layer's input into what it adds to the residual stream, in float64.
struct LayerWeights {
  Matrix value;       ///< (own value heads * D, C)
  Vector value_bias;  ///< (own value heads * D), or empty
  Matrix out;         ///< (C, H * D)
};

/// What methods choose by; measured before the layer is changed.
struct LayerStatistics {
  std::vector<double> value_norms;  ///< of every value head's weight, Frobenius
};

/// The layer after conversion.
struct LayerRoutes {
  int64_t query_heads = 0, kv_heads = 0, head_dim = 0;
  std::vector<int64_t> own_values;  ///< KV head positions that the layer projects itself, ascending
};

struct ConvertMethod {
  const char* name;
  const char* summary;
  bool changes_out;
  /// Why it cannot serve this layer, or nullptr.
  const char* (*refusal)(const LayerRoutes& routes);
  /// What it will do, in words.
  std::string (*describe)(const LayerRoutes& routes);
  /// From all kv_heads value heads to the own ones, in their order; returns what was done, in words.
  /// Not called where the layer keeps all or none.
  std::string (*apply)(const LayerRoutes& routes, const LayerStatistics& statistics,
                       LayerWeights& weights);
};

const std::vector<ConvertMethod>& convert_methods();
/// ConfigError names the nearest.
const ConvertMethod& find_convert_method(const std::string& name);

/// Averages runs of rows.rows() / (heads * D) adjacent heads: (n * D, C) to (heads * D, C).
Matrix pool_heads(const Matrix& rows, int64_t heads, int64_t head_dim);

}  // namespace heirloom
