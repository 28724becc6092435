// SPDX-License-Identifier: Apache-2.0
//
// A file of its own: Eigen's divide and conquer is slow to compile.
#include "svd.h"

#include <Eigen/SVD>

namespace heirloom {

SingularValues thin_svd(const Eigen::MatrixXd& a) {
  const Eigen::BDCSVD<Eigen::MatrixXd> s(a, Eigen::ComputeThinU | Eigen::ComputeThinV);
  return {s.matrixU(), s.matrixV(), s.singularValues()};
}

}  // namespace heirloom
