// SPDX-License-Identifier: Apache-2.0
#include "heirloom/model/families/family.h"

namespace heirloom {

extern const ModelFamily kHeirloomFamily;
extern const ModelFamily kLlamaFamily, kMistralFamily, kQwen2Family, kQwen3Family;
extern const ModelFamily kGpt2Family, kGptNeoxFamily;

namespace {
constexpr const ModelFamily* kFamilies[] = {&kHeirloomFamily, &kLlamaFamily, &kMistralFamily,
                                            &kQwen2Family,    &kQwen3Family, &kGpt2Family,
                                            &kGptNeoxFamily};
}

const ModelFamily* find_model_family(std::string_view model_type) {
  for (const ModelFamily* family : kFamilies) {
    if (model_type == family->model_type) return family;
  }
  return nullptr;
}

std::vector<std::string> model_family_names() {
  std::vector<std::string> names;
  for (const ModelFamily* family : kFamilies) names.emplace_back(family->model_type);
  return names;
}

}  // namespace heirloom
