// SPDX-License-Identifier: Apache-2.0
#include "heirloom/kernels/embedding.h"

namespace heirloom {

KernelCost embedding_forward_cost(const EmbeddingForwardArgs& a, Dtype dtype) {
  const double n = static_cast<double>(a.n), nc = n * static_cast<double>(a.c);
  const double size = static_cast<double>(dtype_size(dtype)), tables = a.position_table ? 2 : 1;
  return {tables * (nc * size + 4 * n), nc * size, a.position_table ? nc : 0};
}

KernelCost embedding_backward_cost(const EmbeddingBackwardArgs& a, Dtype dtype) {
  const double n = static_cast<double>(a.n), nc = n * static_cast<double>(a.c);
  const double size = static_cast<double>(dtype_size(dtype)), tables = a.dposition_table ? 2 : 1;
  const double gradient = static_cast<double>(dtype_size(accumulate_dtype(dtype)));
  return {nc * size + tables * (nc * gradient + 4 * n), tables * nc * gradient, tables * nc};
}

}  // namespace heirloom
