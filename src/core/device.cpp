// SPDX-License-Identifier: Apache-2.0
#include "heirloom/core/device.h"

#include "heirloom/core/error.h"

namespace heirloom {

std::string device_name(const Device& device) {
  switch (device.kind) {
    case DeviceKind::kCpu:
      return "cpu";
    case DeviceKind::kCuda:
      return fmt::format("cuda:{}", device.index);
    case DeviceKind::kMeta:
      return "meta";
  }
  return "?";
}

Device parse_device(const std::string& text) {
  if (text == "cpu") return {DeviceKind::kCpu, 0};
  if (text == "cuda") return {DeviceKind::kCuda, 0};
  if (text.size() > 5 && text.size() < 9 && text.starts_with("cuda:") &&
      text.find_first_not_of("0123456789", 5) == std::string::npos) {
    return {DeviceKind::kCuda, std::stoi(text.substr(5))};
  }
  throw_error<ConfigError>("[device] expected cpu, cuda or cuda:N; got \"{}\"", text);
}

}  // namespace heirloom
