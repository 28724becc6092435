// SPDX-License-Identifier: Apache-2.0
//
// The tape: an op that runs with one leaves a node behind; `backward` runs the nodes in reverse. A
// node is a closure over the tensors its backward reads, so a buffer lives exactly until the last
// node that needs it has run. Nodes and gradient slots are made anew every step, in the same order.
#pragma once

#include <memory_resource>
#include <utility>
#include <vector>

#include "heirloom/ops/context.h"

namespace heirloom {

/// A tensor and the slot that its gradient gathers in (-1: no gradient is wanted).
struct Variable {
  Tensor value;
  int32_t slot = -1;
};

class Tape {
 public:
  Tape() = default;
  ~Tape();
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  /// A new, empty gradient slot.
  int32_t new_slot();

  /// Hands a gradient to a slot. An empty slot adopts the tensor; a filled one adds it, in place
  /// where it alone holds its buffer. A tensor may be delivered to several slots: the first later
  /// addition copies.
  void deliver(Context& context, int32_t slot, Tensor gradient);

  /// Takes what a slot gathered, leaving it empty; undefined when nothing arrived.
  Tensor take(int32_t slot);

  /// Records the backward of an op: called once, as backward(Context&).
  template <class Backward>
  void record(Backward backward) {
    struct Concrete final : Node {
      explicit Concrete(Backward b) : f(std::move(b)) {}
      void run(Context& context) override { f(context); }
      Backward f;
    };
    void* place = memory_.allocate(sizeof(Concrete), alignof(Concrete));
    nodes_.push_back(new (place) Concrete(std::move(backward)));
  }

  /// Runs all nodes, last first, each destroyed (its tensors released) as soon as it has run.
  void backward(Context& context);

 private:
  struct Node {
    virtual ~Node() = default;
    virtual void run(Context& context) = 0;
  };
  std::pmr::monotonic_buffer_resource memory_{1 << 16};
  std::vector<Node*> nodes_;
  std::vector<Tensor> slots_;
};

/// True when ops on this context must leave a node behind.
inline bool recording(const Context& context) { return context.tape != nullptr; }

/// The value as an op result, with a slot when recording.
inline Variable result(Context& context, Tensor value) {
  return {std::move(value), recording(context) ? context.tape->new_slot() : -1};
}

/// A recompute segment: runs `forward(context, inputs) -> std::vector<Variable>` without recording,
/// keeps only the inputs, and runs it again, recorded, when backward arrives. Recomputed values
/// equal the first ones bit for bit.
template <class Forward>
std::vector<Variable> segment(Context& context, const std::vector<Variable>& inputs,
                              Forward forward) {
  if (!recording(context)) return forward(context, inputs);
  std::vector<Variable> outputs;
  {
    Context silent = context;
    silent.tape = nullptr;
    outputs = forward(silent, inputs);
  }
  std::vector<int32_t> slots;
  for (Variable& output : outputs) slots.push_back(output.slot = context.tape->new_slot());
  context.tape->record(
      [inputs, slots, forward = std::move(forward), outer = context.tape](Context& c) {
        Tape tape;
        Context inner = c;
        inner.tape = &tape;
        std::vector<Variable> replayed = inputs;
        for (Variable& input : replayed) {
          if (input.slot >= 0) input.slot = tape.new_slot();
        }
        {
          const std::vector<Variable> again = forward(inner, replayed);
          for (size_t i = 0; i < slots.size(); ++i) {
            if (Tensor g = outer->take(slots[i]); g.defined())
              tape.deliver(inner, again[i].slot, std::move(g));
          }
        }
        tape.backward(inner);
        for (size_t i = 0; i < inputs.size(); ++i) {
          if (inputs[i].slot < 0) continue;
          if (Tensor g = tape.take(replayed[i].slot); g.defined())
            outer->deliver(c, inputs[i].slot, std::move(g));
        }
      });
  return outputs;
}

}  // namespace heirloom
