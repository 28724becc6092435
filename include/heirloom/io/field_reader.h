// SPDX-License-Identifier: Apache-2.0
//
// Reading an untrusted JSON object field by field: every problem is noted, none stops the reading,
// so that a person sees all of them at once. A field with a problem takes an in-range stand-in.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "heirloom/io/json.h"

namespace heirloom {

class Problems {
 public:
  explicit Problems(std::string origin) : origin_(std::move(origin)) {}
  template <class... Args>
  void add(const std::string& key, fmt::format_string<Args...> format, Args&&... args) {
    note(key, fmt::format(format, std::forward<Args>(args)...));
  }
  bool empty() const { return count_ == 0; }
  /// No problem was noted for any of these keys: checks across fields ask before they compare
  /// stand-ins.
  bool fine(std::initializer_list<const char*> keys) const;
  /// One ConfigError with all problems, one per line.
  void throw_if_any() const;

 private:
  void note(const std::string& key, const std::string& text);
  std::string origin_;
  std::vector<std::string> lines_;
  std::set<std::string> keys_;
  size_t count_ = 0;
};

/// A value as messages quote it: its JSON, cut short.
std::string quote_json(const Json& value);

struct NumberRange {
  double low, high;
  bool above_low = false;  ///< low itself is out
};

/// In every getter a null counts as absent, and an absent field without a fallback is a problem.
class FieldReader {
 public:
  FieldReader(const Json& object, std::string path, Problems& problems);

  int64_t integer(const std::string& key, std::optional<int64_t> fallback, int64_t low,
                  int64_t high);
  double number(const std::string& key, std::optional<double> fallback, NumberRange range);
  bool boolean(const std::string& key, bool fallback);
  std::string choice(const std::string& key, std::optional<std::string> fallback,
                     std::span<const char* const> allowed);
  /// The field when it is an object; nullptr when absent or no object (the latter a problem).
  const Json* object(const std::string& key);
  /// The field whatever it is, marked as read; nullptr when absent or null.
  const Json* take(const std::string& key);
  /// Present, null included.
  bool has(const std::string& key) const;
  /// Marks a key as known without reading it.
  void allow(const std::string& key) { known_.insert(key); }

  std::string path_of(const std::string& key) const {
    return path_.empty() ? key : path_ + "." + key;
  }
  Problems& problems() { return problems_; }
  const Json& json() const { return object_; }

  /// Keys that nothing asked for. `candidates`: further names that an unknown key may have meant.
  void reject_unknown(std::span<const char* const> candidates = {});
  /// Copies the keys that nothing asked for.
  void copy_unknown(Json& to) const;

 private:
  const Json& object_;
  std::string path_;
  Problems& problems_;
  std::set<std::string> known_;
};

}  // namespace heirloom
