// SPDX-License-Identifier: Apache-2.0
#include "methods.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "heirloom/core/error.h"
#include "heirloom/io/json.h"
#include "svd.h"

namespace heirloom {
namespace {

int64_t own_count(const LayerRoutes& r) { return static_cast<int64_t>(r.own_values.size()); }

/// The columns of the out projection that query head `head` writes through.
auto out_block(Matrix& out, const LayerRoutes& r, int64_t head) {
  return out.middleCols(head * r.head_dim, r.head_dim);
}

void pool_values(const LayerRoutes& r, LayerWeights& w) {
  w.value = pool_heads(w.value, own_count(r), r.head_dim);
  if (w.value_bias.size() > 0) w.value_bias = pool_heads(w.value_bias, own_count(r), r.head_dim);
}

const char* refuse_uneven(const LayerRoutes& r) {
  return r.kv_heads % own_count(r) == 0 ? nullptr
                                        : "averaging needs the same number of heads in every group";
}

std::string describe_mean(const LayerRoutes& r) {
  return fmt::format("mean of {}", r.kv_heads / own_count(r));
}

std::string mean_v(const LayerRoutes& r, const LayerStatistics&, LayerWeights& w) {
  pool_values(r, w);
  return describe_mean(r);
}

/// The out projection of own KV head number j is the mean over the heads that were pooled into it,
/// query head by query head; that of routed heads is zero, so that they start silent.
std::string mean_vo(const LayerRoutes& r, const LayerStatistics&, LayerWeights& w) {
  pool_values(r, w);
  const int64_t pooled = r.kv_heads / own_count(r), queries = r.query_heads / r.kv_heads;
  Matrix out = Matrix::Zero(w.out.rows(), w.out.cols());
  for (int64_t j = 0; j < own_count(r); ++j) {
    for (int64_t q = 0; q < queries; ++q) {
      auto to = out_block(out, r, r.own_values[static_cast<size_t>(j)] * queries + q);
      for (int64_t i = 0; i < pooled; ++i) {
        to += out_block(w.out, r, (j * pooled + i) * queries + q);
      }
      to /= static_cast<double>(pooled);
    }
  }
  w.out = std::move(out);
  return describe_mean(r);
}

/// The own_count heads of largest norm, in their order; of equal ones the first.
std::vector<int64_t> top_heads(const LayerRoutes& r, const LayerStatistics& statistics) {
  std::vector<int64_t> heads(static_cast<size_t>(r.kv_heads));
  std::iota(heads.begin(), heads.end(), int64_t{0});
  std::stable_sort(heads.begin(), heads.end(), [&](int64_t a, int64_t b) {
    return statistics.value_norms[static_cast<size_t>(a)] >
           statistics.value_norms[static_cast<size_t>(b)];
  });
  heads.resize(r.own_values.size());
  std::sort(heads.begin(), heads.end());
  return heads;
}

std::string describe_top(const LayerRoutes& r) {
  return fmt::format("{} of largest norm", own_count(r));
}

std::string describe_kept(const std::vector<int64_t>& heads) {
  return fmt::format("{} {}", heads.size() == 1 ? "head" : "heads", fmt::join(heads, ", "));
}

const char* refuse_nothing(const LayerRoutes&) { return nullptr; }

void keep_values(const LayerRoutes& r, const std::vector<int64_t>& heads, LayerWeights& w) {
  const int64_t d = r.head_dim;
  Matrix value(own_count(r) * d, w.value.cols());
  Vector bias(w.value_bias.size() > 0 ? own_count(r) * d : 0);
  for (int64_t j = 0; j < own_count(r); ++j) {
    const int64_t from = heads[static_cast<size_t>(j)] * d;
    value.middleRows(j * d, d) = w.value.middleRows(from, d);
    if (bias.size() > 0) bias.segment(j * d, d) = w.value_bias.segment(from, d);
  }
  w.value = std::move(value);
  w.value_bias = std::move(bias);
}

std::string top_v(const LayerRoutes& r, const LayerStatistics& statistics, LayerWeights& w) {
  const std::vector<int64_t> heads = top_heads(r, statistics);
  keep_values(r, heads, w);
  return describe_kept(heads);
}

std::string top_vo(const LayerRoutes& r, const LayerStatistics& statistics, LayerWeights& w) {
  const std::vector<int64_t> heads = top_heads(r, statistics);
  keep_values(r, heads, w);
  const int64_t queries = r.query_heads / r.kv_heads;
  Matrix out = Matrix::Zero(w.out.rows(), w.out.cols());
  for (size_t j = 0; j < heads.size(); ++j) {
    for (int64_t q = 0; q < queries; ++q) {
      out_block(out, r, r.own_values[j] * queries + q) =
          out_block(w.out, r, heads[j] * queries + q);
    }
  }
  w.out = std::move(out);
  return describe_kept(heads);
}

const char* refuse_grouped(const LayerRoutes& r) {
  return r.kv_heads == r.query_heads
             ? nullptr
             : "a rank of W_O W_V has no meaning where several query heads share a value head; use "
               "a mean or top method";
}

std::string describe_svd(const LayerRoutes& r) {
  return fmt::format("rank {} of W_O W_V", own_count(r) * r.head_dim);
}

/// W_O W_V = U S V^T cut to rank n = own heads * D: W_V' = sqrt(S) V^T, W_O' = U sqrt(S) in the
/// columns of the own heads and zero elsewhere; the bias becomes the one whose image under W_O' is
/// nearest to W_O b.
std::string svd(const LayerRoutes& r, const LayerStatistics&, LayerWeights& w) {
  const int64_t d = r.head_dim, n = own_count(r) * d;
  const SingularValues s = thin_svd(w.out * w.value);
  const int64_t rank = std::min<int64_t>(n, s.values.size());
  const Vector root = s.values.head(rank).cwiseSqrt();
  const double tiny = root.size() > 0 ? 1e-12 * root(0) : 0.0;
  const Vector inverse = root.unaryExpr([tiny](double x) { return x > tiny ? 1 / x : 0.0; });
  const Matrix left = s.u.leftCols(rank) * root.asDiagonal();
  if (w.value_bias.size() > 0) {
    const Vector image = w.out * w.value_bias;
    w.value_bias = Vector::Zero(n);
    w.value_bias.head(rank) = inverse.asDiagonal() * (s.u.leftCols(rank).transpose() * image);
  }
  w.value = Matrix::Zero(n, w.value.cols());
  w.value.topRows(rank) = root.asDiagonal() * s.v.leftCols(rank).transpose();
  w.out = Matrix::Zero(w.out.rows(), w.out.cols());
  for (int64_t j = 0; j < own_count(r); ++j) {
    const int64_t columns = std::clamp<int64_t>(rank - j * d, 0, d);
    out_block(w.out, r, r.own_values[static_cast<size_t>(j)]).leftCols(columns) =
        left.middleCols(j * d, columns);
  }
  const double all = s.values.squaredNorm();
  const double kept = s.values.head(rank).squaredNorm();
  return fmt::format("{}, {:.3g} % of its square", describe_svd(r),
                     100 * (all > 0 ? kept / all : 1));
}

}  // namespace

const std::vector<ConvertMethod>& convert_methods() {
  static const std::vector<ConvertMethod> methods = {
      {"mean-v", "own values are means of adjacent heads; the out projection stays", false,
       refuse_uneven, describe_mean, mean_v},
      {"mean-vo", "means of values and of their out projections; routed heads start silent", true,
       refuse_uneven, describe_mean, mean_vo},
      {"top-v", "the value heads of largest norm; the out projection stays", false, refuse_nothing,
       describe_top, top_v},
      {"top-vo",
       "the value heads of largest norm with their out projections; routed heads start silent",
       true, refuse_nothing, describe_top, top_vo},
      {"svd",
       "the best approximation of W_O W_V of the rank that the own heads have; routed heads "
       "start silent",
       true, refuse_grouped, describe_svd, svd},
  };
  return methods;
}

const ConvertMethod& find_convert_method(const std::string& name) {
  std::vector<std::string> names;
  for (const ConvertMethod& method : convert_methods()) {
    if (name == method.name) return method;
    names.emplace_back(method.name);
  }
  const std::string near = name.size() > 60 ? "" : nearest_key(name, names);
  throw_error<ConfigError>("[convert] method: expected one of {}; got \"{}\"{}",
                           fmt::join(names, ", "), name,
                           near.empty() ? "" : fmt::format("; did you mean {}?", near));
}

Matrix pool_heads(const Matrix& rows, int64_t heads, int64_t head_dim) {
  const int64_t group = rows.rows() / (heads * head_dim);
  HEIRLOOM_ASSERT(group * heads * head_dim == rows.rows());
  Matrix pooled = Matrix::Zero(heads * head_dim, rows.cols());
  for (int64_t j = 0; j < heads; ++j) {
    auto to = pooled.middleRows(j * head_dim, head_dim);
    for (int64_t i = 0; i < group; ++i) {
      to += rows.middleRows((j * group + i) * head_dim, head_dim);
    }
    to /= static_cast<double>(group);
  }
  return pooled;
}

}  // namespace heirloom
