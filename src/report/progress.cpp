// SPDX-License-Identifier: Apache-2.0
#include "heirloom/report/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <vector>

namespace heirloom {
namespace {

constexpr double kRedrawSeconds = 0.05;
constexpr int kDefaultColumns = 100;
constexpr int kMaxBar = 24;
constexpr int kMinBar = 8;
constexpr std::string_view kClearToEnd = "\x1b[K";

/// `value` in [0, 1000) with three significant digits.
std::string three_digits(double value) {
  const int decimals = value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
  return fmt::format("{:.{}f}", value, decimals);
}

struct Field {
  std::string text;
  int drop_order;  ///< lower leaves first when the line is too long; 0: never
};

std::vector<Field> step_fields(const StepReport& r) {
  std::vector<Field> fields;
  fields.push_back({fmt::format("loss {:.4f}", r.loss), 0});
  if (!std::isnan(r.lr)) fields.push_back({fmt::format("lr {:.2e}", r.lr), 2});
  if (!std::isnan(r.grad_norm)) {
    fields.push_back({r.grad_norm < 1000 ? fmt::format("norm {:.3f}", r.grad_norm)
                                         : fmt::format("norm {:.2e}", r.grad_norm),
                      1});
  }
  if (std::isfinite(r.tokens_per_second))
    fields.push_back({format_count(r.tokens_per_second) + " tok/s", 4});
  if (std::isfinite(r.mfu)) fields.push_back({fmt::format("mfu {:.1f}%", 100 * r.mfu), 3});
  if (std::isfinite(r.eta_seconds)) fields.push_back({"eta " + format_duration(r.eta_seconds), 5});
  return fields;
}

std::string step_label(const StepReport& r) {
  const std::string total = fmt::format("{}", r.steps);
  return fmt::format("step {:>{}}/{}", r.step, std::max<size_t>(5, total.size()), total);
}

size_t joined_size(const std::vector<Field>& fields) {
  size_t size = 0;
  for (const Field& field : fields) size += 2 + field.text.size();
  return size;
}

}  // namespace

std::string format_duration(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "?";
  if (seconds < 0.9995) return fmt::format("{:.0f}ms", 1000 * seconds);
  if (seconds < 9.95) return fmt::format("{:.1f}s", seconds);
  if (seconds > 1e15) return "?";
  const auto whole = static_cast<int64_t>(std::llround(seconds));
  const int64_t minutes = whole / 60, hours = whole / 3600, days = whole / 86400;
  if (whole < 60) return fmt::format("{}s", whole);
  if (whole < 3600) return fmt::format("{}m{:02}s", minutes, whole % 60);
  if (whole < 86400) return fmt::format("{}h{:02}m", hours, minutes % 60);
  return fmt::format("{}d{:02}h", days, hours % 24);
}

std::string format_count(double count) {
  if (!std::isfinite(count)) return fmt::format("{}", count);
  if (count < 0) return fmt::format("-{}", format_count(-count));
  if (count < 999.5)
    return count == std::floor(count) ? fmt::format("{:.0f}", count) : three_digits(count);
  constexpr std::array<char, 4> kUnits = {'k', 'M', 'B', 'T'};
  size_t unit = 0;
  double value = count / 1000;
  while (value >= 999.5 && unit + 1 < kUnits.size()) value /= 1000, ++unit;
  return three_digits(value) + kUnits[unit];
}

std::string format_bytes(double bytes) {
  if (!std::isfinite(bytes)) return fmt::format("{} B", bytes);
  if (bytes < 0) return fmt::format("-{}", format_bytes(-bytes));
  if (bytes < 1024) return fmt::format("{:.0f} B", bytes);
  constexpr std::array<const char*, 5> kUnits = {"KiB", "MiB", "GiB", "TiB", "PiB"};
  size_t unit = 0;
  double value = bytes / 1024;
  while (value >= 999.5 && unit + 1 < kUnits.size()) value /= 1024, ++unit;
  return three_digits(value) + " " + kUnits[unit];
}

std::string format_step(const StepReport& report) {
  std::string line = step_label(report);
  for (const Field& field : step_fields(report)) line += "  " + field.text;
  return line;
}

std::string format_step_in_place(const StepReport& report, int width) {
  const auto limit = static_cast<size_t>(std::max(width, 0));
  const double done =
      report.steps > 0
          ? std::clamp(static_cast<double>(report.step) / static_cast<double>(report.steps), 0.0,
                       1.0)
          : 0.0;
  const std::string label = step_label(report);
  const std::string percent = fmt::format("{:>3.0f}%", std::floor(100 * done));
  std::vector<Field> fields = step_fields(report);
  const size_t known = fields.size();

  const auto fixed = [&] { return label.size() + 2 + percent.size() + joined_size(fields); };
  while (fixed() > limit) {
    const auto weakest =
        std::min_element(fields.begin(), fields.end(), [](const Field& a, const Field& b) {
          return (a.drop_order ? a.drop_order : 99) < (b.drop_order ? b.drop_order : 99);
        });
    if (weakest->drop_order == 0) break;
    fields.erase(weakest);
  }

  std::string line = label + "  ";
  const size_t bar_frame = 3;  // two brackets and the blank before the percentage
  const bool all_fit = fields.size() == known && limit > fixed() + bar_frame;
  const size_t room = all_fit ? limit - fixed() - bar_frame : 0;
  if (const size_t bar = std::min<size_t>(room, kMaxBar); bar >= kMinBar) {
    const auto filled = static_cast<size_t>(done * static_cast<double>(bar));
    line += '[' + std::string(filled, '=');
    if (filled < bar) line += '>' + std::string(bar - filled - 1, ' ');
    line += "] ";
  }
  line += percent;
  for (const Field& field : fields) line += "  " + field.text;
  if (line.size() > limit) line.resize(limit);
  return line;
}

ProgressLine::ProgressLine(double line_interval_seconds, Style style, int descriptor)
    : descriptor_(descriptor), line_interval_seconds_(line_interval_seconds) {
  const char* term = std::getenv("TERM");
  const bool capable = term != nullptr && *term != '\0' && std::string_view(term) != "dumb";
  in_place_ =
      style == Style::kInPlace || (style == Style::kAuto && capable && ::isatty(descriptor) == 1);
}

ProgressLine::~ProgressLine() { finish(); }

int ProgressLine::columns() const {
  winsize size{};
  if (::ioctl(descriptor_, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return kDefaultColumns;
}

void ProgressLine::emit(std::string_view text) const {
  while (!text.empty()) {
    const ssize_t n = ::write(descriptor_, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return;
    text.remove_prefix(static_cast<size_t>(n));
  }
}

void ProgressLine::update(const StepReport& report) {
  const std::lock_guard lock(mutex_);
  current_ = report;
  const Clock::time_point now = Clock::now();
  const double interval = in_place_ ? kRedrawSeconds : line_interval_seconds_;
  const bool due = !any_written_ || report.step >= report.steps || report.step <= 1 ||
                   std::chrono::duration<double>(now - last_write_).count() >= interval;
  if (in_place_) line_open_ = true;
  if (!due) return;
  any_written_ = true;
  last_write_ = now;
  if (in_place_) {
    // The last column stays free: a character there makes some terminals wrap.
    emit(fmt::format("\r{}{}", format_step_in_place(report, columns() - 1), kClearToEnd));
  } else {
    emit(format_step(report) + "\n");
  }
}

void ProgressLine::note(std::string_view text) {
  std::string clean(text);
  for (char& c : clean) {
    const auto u = static_cast<unsigned char>(c);
    if ((u < 0x20 && c != '\n' && c != '\t') || u == 0x7f) c = '?';
  }
  // U+0080 to U+009F are control characters too; UTF-8 writes them C2 80 to C2 9F.
  for (size_t i = 0; i + 1 < clean.size(); ++i) {
    const auto next = static_cast<unsigned char>(clean[i + 1]);
    if (static_cast<unsigned char>(clean[i]) == 0xC2 && next >= 0x80 && next <= 0x9f)
      clean[i] = clean[i + 1] = '?';
  }
  const std::lock_guard lock(mutex_);
  std::string out;
  if (line_open_) out = fmt::format("\r{}", kClearToEnd);
  out += clean;
  if (out.empty() || out.back() != '\n') out += '\n';
  if (line_open_) out += format_step_in_place(current_, columns() - 1);
  emit(out);
}

void ProgressLine::finish() {
  const std::lock_guard lock(mutex_);
  if (!line_open_) return;
  emit(fmt::format("\r{}{}\n", format_step_in_place(current_, columns() - 1), kClearToEnd));
  line_open_ = false;
  any_written_ = false;
}

}  // namespace heirloom
