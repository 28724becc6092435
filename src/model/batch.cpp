// SPDX-License-Identifier: Apache-2.0
#include "heirloom/model/batch.h"

#include <cstring>

namespace heirloom {
namespace {

/// Byte offsets of a batch's arrays in one block, on the host side and on the device alike. What
/// goes up comes first, in one copy; the losses come last.
struct BlockLayout {
  int64_t step_key, nll, sequences, tokens, targets, positions, token_order, position_order, bytes;
};

BlockLayout block_layout(int64_t rows, int64_t sequences) {
  BlockLayout at{};
  const auto take = [&](int64_t bytes) {
    const int64_t begin = at.bytes;
    at.bytes += (bytes + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
    return begin;
  };
  at.step_key = take(2 * static_cast<int64_t>(sizeof(uint64_t)));
  at.sequences = take(sequences * static_cast<int64_t>(sizeof(AttentionSequence)));
  for (int64_t* offset :
       {&at.tokens, &at.targets, &at.positions, &at.token_order, &at.position_order}) {
    *offset = take(rows * static_cast<int64_t>(sizeof(int32_t)));
  }
  at.nll = take(rows * static_cast<int64_t>(sizeof(double)));
  return at;
}

template <class T>
T* array_at(std::byte* block, int64_t offset) {
  return reinterpret_cast<T*>(block + offset);
}

template <class T>
void put(std::byte* block, int64_t offset, std::span<const T> values) {
  if (!values.empty()) std::memcpy(block + offset, values.data(), values.size_bytes());
}

}  // namespace

DeviceBatch on_host(const HostBatch& batch) {
  DeviceBatch view;
  view.rows = {batch.tokens.data(), batch.positions.data(),
               static_cast<int64_t>(batch.tokens.size())};
  view.targets = batch.targets.data();
  view.nll = batch.nll.data();
  view.sequences = batch.sequences;
  view.device_sequences = batch.sequences.data();
  view.sequence_length = batch.sequence_length;
  view.first_sequence = batch.first_sequence;
  return view;
}

void order_rows(std::span<const int32_t> values, int64_t limit, std::span<int32_t> order) {
  std::vector<int32_t> next(static_cast<size_t>(limit + 1), 0);
  for (const int32_t v : values) ++next[static_cast<size_t>(v) + 1];
  for (size_t v = 1; v < next.size(); ++v) next[v] += next[v - 1];
  for (size_t i = 0; i < values.size(); ++i) {
    order[static_cast<size_t>(next[static_cast<size_t>(values[i])]++)] = static_cast<int32_t>(i);
  }
}

BatchTransfer::BatchTransfer(const Device& device, int64_t slots)
    : device_(device), slots_(static_cast<size_t>(slots)), counts_(static_cast<size_t>(slots), 0) {}

void BatchTransfer::reserve(int64_t rows, int64_t sequences) {
  if (rows <= rows_ && sequences <= sequences_) return;
  wait();
  rows_ = std::max(rows, rows_);
  sequences_ = std::max(sequences, sequences_);
  const int64_t bytes = block_layout(rows_, sequences_).bytes;
  memory_ = DeviceMemory(device_, bytes);
  for (PinnedMemory& slot : slots_) slot = PinnedMemory(device_.kind, bytes);
}

DeviceBatch BatchTransfer::send(const HostBatch& batch, int64_t slot, uint64_t step_key,
                                bool backward, int64_t vocab) {
  DeviceBatch view = on_host(batch);
  host_nll_ = batch.nll;
  if (device_.kind == DeviceKind::kCpu) return view;

  const int64_t rows = view.rows.n, sequences = static_cast<int64_t>(batch.sequences.size());
  reserve(rows, sequences);
  const BlockLayout at = block_layout(rows_, sequences_);
  std::byte* const host = slots_[static_cast<size_t>(slot)].data();
  const uint64_t keys[2] = {step_key, batch.first_sequence};
  put(host, at.step_key, std::span<const uint64_t>(keys));
  put(host, at.sequences, batch.sequences);
  put(host, at.tokens, batch.tokens);
  put(host, at.targets, batch.targets);
  put(host, at.positions, batch.positions);
  if (backward) {
    const auto order = [&](std::span<const int32_t> values, int64_t limit, int64_t offset) {
      order_rows(values, limit, {array_at<int32_t>(host, offset), values.size()});
    };
    order(batch.tokens, vocab, at.token_order);
    int32_t last = 0;
    for (const int32_t p : batch.positions) last = std::max(last, p);
    order(batch.positions, last + 1, at.position_order);
  }
  device_runtime(device_.kind).copy_to_device(memory_.data(), host, at.nll, device_stream(device_));
  counts_[static_cast<size_t>(slot)] = rows;

  std::byte* const device = memory_.data();
  view.rows.tokens = array_at<int32_t>(device, at.tokens);
  view.rows.positions = array_at<int32_t>(device, at.positions);
  if (backward) {
    view.rows.token_order = array_at<int32_t>(device, at.token_order);
    view.rows.position_order = array_at<int32_t>(device, at.position_order);
  }
  view.targets = array_at<int32_t>(device, at.targets);
  view.nll = array_at<double>(device, at.nll);
  view.device_sequences = array_at<AttentionSequence>(device, at.sequences);
  view.step_key = array_at<uint64_t>(device, at.step_key);
  view.first_sequence = 0;
  return view;
}

void BatchTransfer::receive(int64_t slot) {
  if (device_.kind == DeviceKind::kCpu) {
    losses_.emplace_back(host_nll_.begin(), host_nll_.end());
    return;
  }
  const int64_t offset = block_layout(rows_, sequences_).nll;
  device_runtime(device_.kind)
      .copy_to_host(slots_[static_cast<size_t>(slot)].data() + offset, memory_.data() + offset,
                    counts_[static_cast<size_t>(slot)] * static_cast<int64_t>(sizeof(double)),
                    device_stream(device_));
  received_.push_back(slot);
}

void BatchTransfer::wait() {
  if (device_.kind == DeviceKind::kCpu) return;
  device_runtime(device_.kind).synchronize(device_stream(device_));
  const int64_t offset = block_layout(rows_, sequences_).nll;
  for (const int64_t slot : received_) {
    const double* nll = array_at<double>(slots_[static_cast<size_t>(slot)].data(), offset);
    losses_.emplace_back(nll, nll + counts_[static_cast<size_t>(slot)]);
  }
  received_.clear();
}

}  // namespace heirloom
