// SPDX-License-Identifier: Apache-2.0
#include "heirloom/ops/tape.h"

#include "heirloom/ops/elementwise.h"

namespace heirloom {

Tape::~Tape() {
  while (!nodes_.empty()) {
    nodes_.back()->~Node();
    nodes_.pop_back();
  }
}

int32_t Tape::new_slot() {
  slots_.emplace_back();
  return static_cast<int32_t>(slots_.size()) - 1;
}

void Tape::deliver(Context& context, int32_t slot, Tensor gradient) {
  if (slot < 0) return;
  Tensor& held = slots_[static_cast<size_t>(slot)];
  if (!held.defined()) {
    held = std::move(gradient);
    return;
  }
  if (!held.unique()) {
    Tensor copy = context.allocate(held.shape(), held.dtype());
    convert_into(context, held, copy);
    held = std::move(copy);
  }
  add_into(context, gradient, held);
}

Tensor Tape::take(int32_t slot) {
  return slot < 0 ? Tensor() : std::exchange(slots_[static_cast<size_t>(slot)], Tensor());
}

void Tape::backward(Context& context) {
  while (!nodes_.empty()) {
    Node* node = nodes_.back();
    nodes_.pop_back();
    node->run(context);
    node->~Node();
  }
}

}  // namespace heirloom
