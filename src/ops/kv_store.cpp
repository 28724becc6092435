// SPDX-License-Identifier: Apache-2.0
#include "heirloom/ops/kv_store.h"

namespace heirloom {
namespace {

void* column_address(const Tensor& matrix, int64_t column) {
  // On the meta device there is no memory; any non-null address says "wanted".
  static char meta_address;
  if (matrix.data() == nullptr) return &meta_address;
  return static_cast<std::byte*>(matrix.data()) + column * dtype_size(matrix.dtype());
}

}  // namespace

KvHeadGrad KvStore::gradient_target(Context&, const KvRef&) {
  throw_error<InternalError>("[kv store] a cache gathers no gradients");
}
KvHeadGrad KvStore::gathered(const KvRef&) {
  throw_error<InternalError>("[kv store] a cache gathers no gradients");
}

ActivationKvStore::ActivationKvStore(std::vector<KvStreamSpec> specs, Dtype dtype, int64_t rows,
                                     std::vector<AttentionSequence> sequences,
                                     const AttentionSequence* device_sequences)
    : specs_(std::move(specs)),
      states_(specs_.size()),
      dtype_(dtype),
      rows_(rows),
      sequences_(std::move(sequences)),
      device_sequences_(device_sequences) {
  for (size_t s = 0; s < specs_.size(); ++s) {
    states_[s].written.assign(static_cast<size_t>(specs_[s].width / specs_[s].head_dim), 0);
  }
}

Tensor ActivationKvStore::stream(Context& context, int32_t index) {
  State& state = states_[static_cast<size_t>(index)];
  if (!state.value.defined()) {
    state.value = context.allocate({rows_, specs_[static_cast<size_t>(index)].width}, dtype_);
  }
  return state.value;
}

void ActivationKvStore::written_and_read(int32_t index) {
  if (!specs_[static_cast<size_t>(index)].shared)
    states_[static_cast<size_t>(index)].value = Tensor();
}

KvHeadGrad ActivationKvStore::gradient_target(Context& context, const KvRef& ref) {
  KvHeadGrad target;
  const auto claim = [&](int32_t stream, int64_t column, void*& data, bool& add) {
    State& state = states_[static_cast<size_t>(stream)];
    const KvStreamSpec& spec = specs_[static_cast<size_t>(stream)];
    if (!state.gradient.defined()) {
      state.gradient =
          context.allocate({rows_, spec.width}, spec.shared ? accumulate_dtype(dtype_) : dtype_);
    }
    data = column_address(state.gradient, column);
    add = state.written[static_cast<size_t>(column / spec.head_dim)] == 1;
    target.row_stride = spec.width;
    target.is_accumulate_dtype = state.gradient.dtype() != dtype_;
  };
  if (ref.stream >= 0) claim(ref.stream, ref.column, target.data, target.add);
  if (ref.second_stream >= 0)
    claim(ref.second_stream, ref.second_column, target.second, target.add_second);
  return target;
}

void ActivationKvStore::mark_written(const KvRef& ref) {
  const auto mark = [&](int32_t stream, int64_t column) {
    states_[static_cast<size_t>(stream)]
        .written[static_cast<size_t>(column / specs_[static_cast<size_t>(stream)].head_dim)] = 1;
  };
  if (ref.stream >= 0) mark(ref.stream, ref.column);
  if (ref.second_stream >= 0) mark(ref.second_stream, ref.second_column);
}

KvHeadGrad ActivationKvStore::gathered(const KvRef& ref) {
  const State& state = states_[static_cast<size_t>(ref.stream)];
  const KvStreamSpec& spec = specs_[static_cast<size_t>(ref.stream)];
  KvHeadGrad gradient;
  if (state.written[static_cast<size_t>(ref.column / spec.head_dim)] == 0) return gradient;
  gradient.data = column_address(state.gradient, ref.column);
  gradient.row_stride = spec.width;
  gradient.is_accumulate_dtype = state.gradient.dtype() != dtype_;
  return gradient;
}

void ActivationKvStore::finish_backward(int32_t index) {
  State& state = states_[static_cast<size_t>(index)];
  state.value = Tensor();
  state.gradient = Tensor();
  std::fill(state.written.begin(), state.written.end(), uint8_t{0});
}

}  // namespace heirloom
