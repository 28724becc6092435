// SPDX-License-Identifier: Apache-2.0
#include "heirloom/decode/full_forward.h"

#include <algorithm>

#include "heirloom/core/device_runtime.h"
#include "heirloom/core/rng.h"
#include "heirloom/model/batch.h"

namespace heirloom {

std::vector<int32_t> continue_by_full_forward(Transformer& model, std::vector<int32_t> prompt,
                                              int64_t max_new_tokens,
                                              const SamplingOptions& sampling,
                                              const std::vector<int64_t>& eos) {
  HEIRLOOM_CHECK(!prompt.empty(), "[generate] expected at least one token; got an empty prompt");
  const Device device = model.device();
  DeviceRuntime& runtime = device_runtime(device.kind);
  const auto vocab = static_cast<size_t>(model.config().vocab_size);
  const size_t first_new = prompt.size();
  std::vector<int32_t> tokens = std::move(prompt);
  std::vector<float> logits(vocab);
  BatchTransfer transfer(device, 1);
  Arena arena(device);
  for (int64_t i = 0; i < max_new_tokens; ++i) {
    const auto n = static_cast<int64_t>(tokens.size());
    model.ensure_positions(n);
    const std::vector<int32_t> targets(tokens.size(), -1);
    std::vector<int32_t> positions(tokens.size());
    for (size_t t = 0; t < positions.size(); ++t) positions[t] = static_cast<int32_t>(t);
    std::vector<double> nll(tokens.size());
    AttentionSequence sequence;
    sequence.queries = sequence.keys = n;
    HostBatch host;
    host.tokens = tokens;
    host.targets = targets;
    host.positions = positions;
    host.sequences = {&sequence, 1};
    host.nll = nll;
    const DeviceBatch batch = transfer.send(host, 0, 0, false, 0);
    ActivationKvStore store(model.stream_specs(), model.dtype(), n, {sequence},
                            batch.device_sequences);
    Context context{arena};
    const Variable hidden = model.hidden(context, batch.rows, store);
    const Tensor last = model.logits(context, hidden.value.rows(n - 1, n));
    if (last.dtype() == Dtype::kFloat64) {
      const double* values = last.as<double>();
      std::transform(values, values + vocab, logits.begin(),
                     [](double x) { return static_cast<float>(x); });
    } else {
      runtime.copy_to_host(logits.data(), last.data(), last.bytes(), device_stream(device));
      runtime.synchronize(device_stream(device));
    }
    const int32_t token = sample_token(logits, sampling, tokens, hash_name("sample"), i).token;
    tokens.push_back(token);
    if (std::find(eos.begin(), eos.end(), token) != eos.end()) break;
  }
  return {tokens.begin() + static_cast<std::ptrdiff_t>(first_new), tokens.end()};
}

}  // namespace heirloom
