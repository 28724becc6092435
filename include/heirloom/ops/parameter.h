// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "heirloom/core/tensor.h"

namespace heirloom {

/// A weight as ops see it: its value in the compute dtype and, when it trains, a gradient in the
/// accumulate dtype that ops add to.
struct Parameter {
  Tensor value;
  Tensor grad;  ///< undefined: frozen
};

}  // namespace heirloom
