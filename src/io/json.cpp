// SPDX-License-Identifier: Apache-2.0
#include "heirloom/io/json.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <unordered_set>
#include <utility>

#include "heirloom/core/error.h"
#include "heirloom/io/file.h"

namespace heirloom {
namespace {

constexpr size_t kMaxDepth = 256;

/// A pointer that reports how far the lexer has read: the SAX interface itself gives no positions.
class TrackingIterator {
 public:
  using iterator_category = std::forward_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  TrackingIterator(const char* at, const char** furthest) : at_(at), furthest_(furthest) {}
  reference operator*() const { return *at_; }
  TrackingIterator& operator++() {
    *furthest_ = ++at_;
    return *this;
  }
  TrackingIterator operator++(int) {
    TrackingIterator old = *this;
    ++*this;
    return old;
  }
  friend bool operator==(const TrackingIterator& a, const TrackingIterator& b) {
    return a.at_ == b.at_;
  }

 private:
  const char* at_;
  const char** furthest_;
};

/// Builds the value itself: ordered_json's own insertion searches the whole object per key, which
/// is quadratic in a vocabulary of 100,000 entries.
class Builder final : public nlohmann::json_sax<Json> {
 public:
  bool null() override { return add(Json(nullptr)); }
  bool boolean(bool value) override { return add(Json(value)); }
  bool number_integer(number_integer_t value) override { return add(Json(value)); }
  bool number_unsigned(number_unsigned_t value) override { return add(Json(value)); }
  bool number_float(number_float_t value, const string_t&) override { return add(Json(value)); }
  bool string(string_t& value) override { return add(Json(std::move(value))); }
  bool binary(binary_t&) override { return fail("binary data"); }

  bool start_object(size_t) override { return open(true); }
  bool start_array(size_t) override { return open(false); }
  bool end_object() override {
    Frame frame = pop();
    Json value = Json::object();
    auto& object = value.get_ref<Json::object_t&>();
    object.reserve(frame.members.size());
    for (auto& [name, member] : frame.members) {
      object.emplace_back(std::move(name), std::move(member));
    }
    return add(std::move(value));
  }
  bool end_array() override { return add(Json(std::move(pop().elements))); }
  bool key(string_t& name) override {
    Frame& frame = frames_.back();
    constexpr size_t kSmall = 16;
    bool repeated = false;
    if (frame.members.size() < kSmall) {
      repeated = std::any_of(frame.members.begin(), frame.members.end(),
                             [&](const auto& member) { return member.first == name; });
    } else {
      if (frame.names.empty()) {
        for (const auto& member : frame.members) frame.names.insert(member.first);
      }
      repeated = !frame.names.insert(name).second;
    }
    if (repeated)
      return fail(fmt::format("the key \"{}\" twice in one object", name.substr(0, 200)));
    frame.members.emplace_back(std::move(name), Json());
    return true;
  }
  bool parse_error(size_t, const std::string&, const Json::exception& error) override {
    std::string text = error.what();
    if (const size_t column = text.find(", column "); column != std::string::npos) {
      if (const size_t colon = text.find(": ", column); colon != std::string::npos) {
        text.erase(0, colon + 2);
      }
    }
    if (text.size() > 300) text = text.substr(0, 300) + "...";
    return fail(std::move(text));
  }

  Json take() { return std::move(root_); }
  const std::string& problem() const { return problem_; }

 private:
  struct Frame {
    bool is_object;
    std::vector<std::pair<std::string, Json>> members;
    Json::array_t elements;
    std::unordered_set<std::string> names;
  };

  bool open(bool is_object) {
    if (frames_.size() == kMaxDepth) {
      return fail(fmt::format("more than {} nested arrays and objects", kMaxDepth));
    }
    frames_.push_back(Frame{is_object, {}, {}, {}});
    return true;
  }
  Frame pop() {
    Frame frame = std::move(frames_.back());
    frames_.pop_back();
    return frame;
  }
  bool add(Json&& value) {
    if (frames_.empty()) {
      root_ = std::move(value);
    } else if (frames_.back().is_object) {
      frames_.back().members.back().second = std::move(value);
    } else {
      frames_.back().elements.push_back(std::move(value));
    }
    return true;
  }
  bool fail(std::string problem) {
    problem_ = std::move(problem);
    return false;
  }

  std::vector<Frame> frames_;
  Json root_;
  std::string problem_;
};

[[noreturn]] void throw_at(std::string_view text, size_t offset, const std::string& problem,
                           const std::string& origin, int64_t first_line) {
  const std::string_view before = text.substr(0, offset);
  const int64_t line = first_line + std::count(before.begin(), before.end(), '\n');
  const size_t newline = before.rfind('\n');
  const size_t column = newline == std::string_view::npos ? offset + 1 : offset - newline;
  throw_error<FormatError>("[json] expected valid JSON; got {}; at {}:{}:{}", problem, origin, line,
                           column);
}

}  // namespace

Json parse_json(std::string_view text, const std::string& origin, JsonComments comments,
                int64_t first_line) {
  // The lexer takes a NUL for the end of its input.
  if (const size_t nul = text.find('\0'); nul != std::string_view::npos) {
    throw_at(text, nul, "a NUL byte", origin, first_line);
  }
  Builder builder;
  const char* furthest = text.data();
  const bool parsed =
      Json::sax_parse(TrackingIterator(text.data(), &furthest),
                      TrackingIterator(text.data() + text.size(), &furthest), &builder,
                      Json::input_format_t::json, true, comments == JsonComments::kAllowed);
  if (!parsed) {
    const auto read = static_cast<size_t>(furthest - text.data());
    throw_at(text, read == 0 ? 0 : read - 1, builder.problem(), origin, first_line);
  }
  return builder.take();
}

Json read_json_file(const std::string& path, JsonComments comments) {
  return parse_json(read_file(path), path, comments);
}

std::string dump_json(const Json& value, int indent) {
  return value.dump(indent, ' ', false, Json::error_handler_t::replace);
}

std::string nearest_key(std::string_view key, std::span<const std::string> candidates) {
  std::string best;
  size_t best_distance = std::max<size_t>(2, key.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    std::vector<size_t> row(candidate.size() + 1);
    for (size_t j = 0; j < row.size(); ++j) row[j] = j;
    for (size_t i = 0; i < key.size(); ++i) {
      size_t diagonal = row[0];
      row[0] = i + 1;
      for (size_t j = 0; j < candidate.size(); ++j) {
        const size_t substituted = diagonal + (key[i] == candidate[j] ? 0 : 1);
        diagonal = row[j + 1];
        row[j + 1] = std::min({substituted, row[j] + 1, diagonal + 1});
      }
    }
    if (row.back() < best_distance) {
      best_distance = row.back();
      best = candidate;
    }
  }
  return best;
}

}  // namespace heirloom
