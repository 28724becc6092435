// SPDX-License-Identifier: Apache-2.0
#include "heirloom/io/field_reader.h"

#include "heirloom/core/error.h"
#include "heirloom/core/log.h"

namespace heirloom {
namespace {

constexpr size_t kMaxShown = 50;
constexpr size_t kMaxKeys = 4096;
constexpr size_t kMaxLine = 600;

const Json& empty_object() {
  static const Json empty = Json::object();
  return empty;
}

}  // namespace

void Problems::note(const std::string& key, const std::string& text) {
  keys_.insert(key);
  if (++count_ > kMaxShown) return;
  lines_.push_back(one_line(key.empty() ? text : key + ": " + text, kMaxLine));
}

bool Problems::fine(std::initializer_list<const char*> keys) const {
  for (const char* key : keys) {
    if (keys_.count(key) > 0) return false;
  }
  return true;
}

void Problems::throw_if_any() const {
  if (count_ == 0) return;
  if (count_ == 1) throw_error<ConfigError>("[config] {}: {}", origin_, lines_[0]);
  std::string text = fmt::format("[config] {}: {} problems", origin_, count_);
  for (const std::string& line : lines_) text += "\n  " + line;
  if (count_ > kMaxShown) text += fmt::format("\n  and {} more", count_ - kMaxShown);
  throw ConfigError(text);
}

std::string quote_json(const Json& value) {
  constexpr size_t kMaxQuoted = 60;
  if (value.is_structured() && value.size() > 16) {
    return fmt::format("{} of {}", value.is_array() ? "an array" : "an object", value.size());
  }
  std::string text = dump_json(value);
  if (text.size() <= kMaxQuoted) return text;
  size_t cut = kMaxQuoted;
  while (cut > 0 && (static_cast<unsigned char>(text[cut]) & 0xC0u) == 0x80u) --cut;
  return text.substr(0, cut) + "...";
}

FieldReader::FieldReader(const Json& object, std::string path, Problems& problems)
    : object_(object.is_object() && object.size() <= kMaxKeys ? object : empty_object()),
      path_(std::move(path)),
      problems_(problems) {
  if (!object.is_object()) {
    problems_.add(path_, "expected an object; got {}", quote_json(object));
  } else if (object.size() > kMaxKeys) {
    problems_.add(path_, "expected at most {} keys; got {}", kMaxKeys, object.size());
  }
}

bool FieldReader::has(const std::string& key) const { return object_.contains(key); }

const Json* FieldReader::take(const std::string& key) {
  known_.insert(key);
  const auto it = object_.find(key);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

int64_t FieldReader::integer(const std::string& key, std::optional<int64_t> fallback, int64_t low,
                             int64_t high) {
  const Json* value = take(key);
  if (value == nullptr) {
    if (!fallback) {
      problems_.add(path_of(key), "expected an integer from {} to {}; it is missing", low, high);
    }
    return fallback.value_or(low);
  }
  const bool whole = value->is_number_integer();
  const bool fits = whole && !(value->is_number_unsigned() &&
                               value->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX));
  const int64_t number = fits ? value->get<int64_t>() : 0;
  if (!fits || number < low || number > high) {
    problems_.add(path_of(key), "expected an integer from {} to {}; got {}", low, high,
                  quote_json(*value));
    return fallback.value_or(low);
  }
  return number;
}

double FieldReader::number(const std::string& key, std::optional<double> fallback,
                           NumberRange range) {
  const Json* value = take(key);
  const auto expected = [&] {
    return range.above_low ? fmt::format("a number above {} and at most {}", range.low, range.high)
                           : fmt::format("a number from {} to {}", range.low, range.high);
  };
  if (value == nullptr) {
    if (!fallback) problems_.add(path_of(key), "expected {}; it is missing", expected());
    return fallback.value_or(range.high);
  }
  const double number = value->is_number() ? value->get<double>() : 0;
  const bool inside =
      (range.above_low ? number > range.low : number >= range.low) && number <= range.high;
  if (!value->is_number() || !inside) {
    problems_.add(path_of(key), "expected {}; got {}", expected(), quote_json(*value));
    return fallback.value_or(range.high);
  }
  return number;
}

bool FieldReader::boolean(const std::string& key, bool fallback) {
  const Json* value = take(key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) {
    problems_.add(path_of(key), "expected true or false; got {}", quote_json(*value));
    return fallback;
  }
  return value->get<bool>();
}

std::string FieldReader::choice(const std::string& key, std::optional<std::string> fallback,
                                std::span<const char* const> allowed) {
  const Json* value = take(key);
  if (value == nullptr && fallback) return *fallback;
  if (value != nullptr && value->is_string()) {
    for (const char* name : allowed) {
      if (value->get_ref<const std::string&>() == name) return name;
    }
  }
  std::vector<std::string> names(allowed.begin(), allowed.end());
  std::string hint;
  if (value != nullptr && value->is_string()) {
    const std::string near = nearest_key(value->get_ref<const std::string&>(), names);
    if (!near.empty()) hint = fmt::format("; did you mean \"{}\"?", near);
  }
  problems_.add(path_of(key), "expected one of {}; {}{}", fmt::join(names, ", "),
                value == nullptr ? "it is missing" : "got " + quote_json(*value), hint);
  return fallback.value_or(allowed.front());
}

const Json* FieldReader::object(const std::string& key) {
  const Json* value = take(key);
  if (value == nullptr || value->is_object()) return value;
  problems_.add(path_of(key), "expected an object; got {}", quote_json(*value));
  return nullptr;
}

void FieldReader::reject_unknown(std::span<const char* const> candidates) {
  std::vector<std::string> names(known_.begin(), known_.end());
  names.insert(names.end(), candidates.begin(), candidates.end());
  constexpr size_t kLongKey = 60;
  for (const auto& [key, value] : object_.items()) {
    if (known_.count(key) > 0) continue;
    const std::string near = key.size() > kLongKey ? "" : nearest_key(key, names);
    std::string hint;
    if (!near.empty()) {
      hint = fmt::format("; did you mean \"{}\"?", near);
    } else if (names.size() <= 8) {
      hint = fmt::format("; known here: {}", fmt::join(names, ", "));
    }
    problems_.add(path_, "unknown key {}{}", quote_json(Json(key)), hint);
  }
}

void FieldReader::copy_unknown(Json& to) const {
  for (const auto& [key, value] : object_.items()) {
    if (known_.count(key) == 0) to[key] = value;
  }
}

}  // namespace heirloom
