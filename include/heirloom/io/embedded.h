// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <string>

namespace heirloom {

/// The JSON files below configs/, compiled into the binary: "models/llama-60m" -> text. Written
/// once, in configs/.
const std::map<std::string, std::string>& embedded_configs();

}  // namespace heirloom
