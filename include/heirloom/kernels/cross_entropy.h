// SPDX-License-Identifier: Apache-2.0
//
// cross_entropy: nll[i] = logsumexp(logits[i]) - logits[i, target[i]] for rows of V logits in A,
// and its gradient. Rows with target < 0 are not scored: nll 0, gradient 0.
#pragma once

#include "heirloom/kernels/kernel_table.h"

namespace heirloom {

struct CrossEntropyArgs {
  const void* logits = nullptr;      ///< (N, V) A, contiguous
  const int32_t* targets = nullptr;  ///< (N)
  double* nll = nullptr;             ///< (N), nats
  void* dlogits = nullptr;  ///< (N, V) T: scale * (softmax - onehot); null in evaluation; may alias
                            ///< logits where T is A
  int64_t n = 0, v = 0;
  double scale = 1;  ///< 1 / tokens of the whole step
};
KernelTable<CrossEntropyArgs>& cross_entropy_table();
KernelCost cross_entropy_cost(const CrossEntropyArgs&, Dtype);

}  // namespace heirloom
