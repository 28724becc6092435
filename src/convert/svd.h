// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>

namespace heirloom {

/// a = u diag(values) v^T, values descending; as many columns as the smaller side has.
struct SingularValues {
  Eigen::MatrixXd u, v;
  Eigen::VectorXd values;
};
SingularValues thin_svd(const Eigen::MatrixXd& a);

}  // namespace heirloom
