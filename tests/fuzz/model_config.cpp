// SPDX-License-Identifier: Apache-2.0
//
// Any config.json: it is refused with an Error, or everything that follows from it holds together.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "heirloom/core/error.h"
#include "heirloom/model/kv_layout.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace heirloom;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  ModelConfig config;
  try {
    config = parse_model_config(parse_json(text, "input", JsonComments::kAllowed), "input");
  } catch (const InternalError&) {
    throw;
  } catch (const Error&) {
    return 0;
  }
  const Json written = model_config_json(config);
  HEIRLOOM_ASSERT(model_config_json(parse_model_config(written, "written")) == written);
  HEIRLOOM_ASSERT(count_parameters(config).total() > 0);
  constexpr int64_t kEnoughHeads = 1 << 12;
  if (config.num_hidden_layers * config.num_key_value_heads > kEnoughHeads) return 0;
  const KvLayout layout = build_kv_layout(config, build_kv_plan(config));
  const Json report = kv_report(config, layout, Dtype::kFloat32);
  HEIRLOOM_ASSERT(report["bytes_per_token"] == 4 * layout.elements_per_token());
  HEIRLOOM_ASSERT(layout.read_elements_per_token_resident() <= layout.read_elements_per_token());
  rope_tables(config, 2);
  return 0;
}
