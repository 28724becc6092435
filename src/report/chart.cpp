// SPDX-License-Identifier: Apache-2.0
#include "chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "heirloom/report/progress.h"

namespace heirloom::report {
namespace {

constexpr size_t kMaxPoints = 1000;
constexpr size_t kMaxDots = 60;
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

/// The length of the well-formed UTF-8 sequence at the front of `s`, 0 when there is none.
size_t utf8_length(std::string_view s) {
  const auto at = [&](size_t i) { return static_cast<unsigned char>(s[i]); };
  const unsigned char lead = at(0);
  if (lead < 0x80) return 1;
  const size_t length = lead >= 0xC2 && lead <= 0xDF   ? 2
                        : lead >= 0xE0 && lead <= 0xEF ? 3
                        : lead >= 0xF0 && lead <= 0xF4 ? 4
                                                       : 0;
  if (length == 0 || s.size() < length) return 0;
  for (size_t i = 1; i < length; ++i)
    if ((at(i) & 0xC0) != 0x80) return 0;
  if ((lead == 0xE0 && at(1) < 0xA0) || (lead == 0xED && at(1) > 0x9F) ||
      (lead == 0xF0 && at(1) < 0x90) || (lead == 0xF4 && at(1) > 0x8F))
    return 0;
  return length;
}

/// Five significant digits are more than a screen shows and keep the page small.
double rounded(double value) {
  if (value == 0.0 || !std::isfinite(value)) return value;
  const double scale = std::pow(10.0, 4.0 - std::floor(std::log10(std::fabs(value))));
  if (!std::isfinite(scale) || scale == 0.0) return value;
  return std::round(value * scale) / scale;
}

struct Frame {
  double left, top, width, height;
  Range x, y;
  double px(double value) const { return left + width * (value - x.lo) / (x.hi - x.lo); }
  double py(double value) const { return top + height * (1.0 - (value - y.lo) / (y.hi - y.lo)); }
};

/// Just outside the frame, where the clip path hides it: spikes that the range leaves out must not
/// overflow the SVG.
double clamped_py(const Frame& f, double value) {
  return std::clamp(f.py(value), f.top - 50.0, f.top + f.height + 50.0);
}

std::string path_data(const Frame& frame, const std::vector<Point>& points) {
  std::string d;
  bool pen_down = false;
  for (const Point& p : points) {
    if (!std::isfinite(p.y)) {
      pen_down = false;
      continue;
    }
    d +=
        fmt::format("{}{:.1f} {:.1f}", pen_down ? "L" : "M", frame.px(p.x), clamped_py(frame, p.y));
    pen_down = true;
  }
  return d;
}

std::string render_legend(const Chart& chart) {
  size_t entries = chart.levels.size();
  for (const Curve& curve : chart.curves) entries += curve.faint ? 0 : 1;
  if (entries < 2) return "";
  std::string out = "<ul class=\"legend\">";
  for (const Curve& curve : chart.curves) {
    if (curve.faint) continue;
    out += fmt::format("<li><i class=\"b{}\"></i>{}</li>", curve.colour, escape_html(curve.name));
  }
  for (const Level& level : chart.levels) {
    out += fmt::format("<li><i class=\"level\"></i>{} <b>{:.4g}</b></li>", escape_html(level.name),
                       level.value);
  }
  return out + "</ul>";
}

std::string render_axes(const Frame& f, const std::vector<double>& xs,
                        const std::vector<double>& ys) {
  const auto step = [](const std::vector<double>& t) { return t.size() > 1 ? t[1] - t[0] : t[0]; };
  const double bottom = f.top + f.height, right = f.left + f.width;
  std::string out = "<g class=\"grid\">";
  for (const double y : ys)
    out += fmt::format("<path d=\"M{:.1f} {:.1f}H{:.1f}\"/>", f.left, f.py(y), right);
  out +=
      fmt::format("</g><path class=\"axis\" d=\"M{:.1f} {:.1f}H{:.1f}\"/>", f.left, bottom, right);
  out += "<g class=\"ticks y\">";
  for (const double y : ys) {
    out += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\">{}</text>", f.left - 8, f.py(y) + 3.5,
                       tick_label(y, step(ys)));
  }
  out += "</g><g class=\"ticks x\">";
  for (const double x : xs) {
    out += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\">{}</text>", f.px(x), bottom + 17,
                       tick_label(x, step(xs)));
  }
  return out + "</g>";
}

std::string render_curve(const Frame& frame, const Curve& curve, const std::vector<Point>& points) {
  const std::string name = escape_html(curve.name);
  std::string out =
      fmt::format("<path class=\"line s{}{}\" d=\"{}\"><title>{}</title></path>", curve.colour,
                  curve.faint ? " faint" : "", path_data(frame, points), name);
  if (points.size() == 1 || (curve.marked && points.size() <= kMaxDots)) {
    for (const Point& p : points) {
      if (!std::isfinite(p.y)) continue;
      out += fmt::format("<circle class=\"dot d{}\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"2.5\"/>",
                         curve.colour, frame.px(p.x), clamped_py(frame, p.y));
    }
  }
  return out;
}

}  // namespace

std::string escape_html(std::string_view text) {
  std::string out;
  out.reserve(text.size() + text.size() / 8);
  while (!text.empty()) {
    const size_t length = utf8_length(text);
    const char c = text[0];
    const auto u = static_cast<unsigned char>(c);
    const bool c1 = length == 2 && u == 0xC2 && static_cast<unsigned char>(text[1]) < 0xA0;
    if (length == 0 || c1 || u == 0x7F || (u < 0x20 && c != '\n' && c != '\t'))
      out += kReplacement;
    else if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '"')
      out += "&quot;";
    else if (c == '\'')
      out += "&#39;";
    else
      out.append(text.substr(0, length));
    text.remove_prefix(std::max<size_t>(length, 1));
  }
  return out;
}

std::vector<Point> downsample(const std::vector<Point>& points, size_t limit) {
  if (points.size() <= limit) return points;
  const size_t buckets = std::max<size_t>(limit / 2, 1);
  std::vector<Point> out;
  out.reserve(2 * buckets);
  for (size_t b = 0; b < buckets; ++b) {
    const size_t begin = points.size() * b / buckets, end = points.size() * (b + 1) / buckets;
    size_t low = end, high = end;
    for (size_t i = begin; i < end; ++i) {
      if (!std::isfinite(points[i].y)) continue;
      if (low == end || points[i].y < points[low].y) low = i;
      if (high == end || points[i].y > points[high].y) high = i;
    }
    if (low == end) {
      out.push_back({points[begin].x, std::numeric_limits<double>::quiet_NaN()});
      continue;
    }
    out.push_back(points[std::min(low, high)]);
    if (low != high) out.push_back(points[std::max(low, high)]);
  }
  return out;
}

std::vector<Point> running_median(const std::vector<Point>& points, size_t half, size_t limit) {
  const size_t n = points.size(), stride = std::max<size_t>(1, n / std::max<size_t>(limit, 1));
  std::vector<Point> out;
  const auto add = [&](size_t i) {
    if (!std::isfinite(points[i].y)) {
      out.push_back(points[i]);
      return;
    }
    const size_t reach = std::min(half, i);
    std::vector<double> window;
    for (size_t j = i - reach; j < std::min(n, i + reach + 1); ++j)
      if (std::isfinite(points[j].y)) window.push_back(points[j].y);
    const auto middle = window.begin() + static_cast<std::ptrdiff_t>(window.size() / 2);
    std::nth_element(window.begin(), middle, window.end());
    out.push_back({points[i].x, *middle});
  };
  for (size_t i = 0; i < n; i += stride) add(i);
  if (n > 0 && (n - 1) % stride != 0) add(n - 1);
  return out;
}

std::vector<double> nice_ticks(double lo, double hi, int count) {
  const double span = hi - lo;
  if (!(span > 0) || !std::isfinite(span)) return {lo};
  const double raw = span / std::max(count, 1);
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  const double mantissa = raw / power;
  const double step = power * (mantissa < 1.5   ? 1.0
                               : mantissa < 3.5 ? 2.0
                               : mantissa < 7.5 ? 5.0
                                                : 10.0);
  if (!(step > 0) || lo + step == lo) return {lo};
  std::vector<double> ticks;
  const double first = std::ceil(lo / step - 1e-9), last = std::floor(hi / step + 1e-9);
  for (double i = first; i <= last && ticks.size() < 50; ++i)
    ticks.push_back(i * step + 0.0);  // no negative zero
  return ticks.empty() ? std::vector<double>{lo} : ticks;
}

std::string tick_label(double value, double step) {
  const double size = std::fabs(step);
  if (value == 0.0 || size == 0.0) return fmt::format("{:g}", value);
  if (std::fabs(value) >= 1e15) return fmt::format("{:.2g}", value);
  if (size < 1e-3) {
    // 4e-04 reads better without the zero.
    const int exponent = static_cast<int>(std::floor(std::log10(std::fabs(value)) + 1e-9));
    return fmt::format("{:.3g}e{}", value / std::pow(10.0, exponent), exponent);
  }
  if (size >= 500) {
    const auto [unit, suffix] = std::fabs(value) >= 1e9   ? std::pair{1e9, "B"}
                                : std::fabs(value) >= 1e6 ? std::pair{1e6, "M"}
                                                          : std::pair{1e3, "k"};
    return fmt::format("{:g}{}", value / unit, suffix);
  }
  const int decimals = std::max(0, static_cast<int>(std::ceil(-std::log10(size) - 1e-9)));
  return fmt::format("{:.{}f}", value, decimals);
}

Range visible_range(const std::vector<Curve>& curves, const std::vector<Level>& levels,
                    bool from_zero) {
  std::vector<double> values;
  for (const Curve& curve : curves)
    for (const Point& p : curve.points)
      if (std::isfinite(p.y)) values.push_back(p.y);
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  Range range{values.front(), values.back()};
  const double high = values[(values.size() - 1) * 95 / 100];
  // A short curve is cut only where nothing could be seen otherwise.
  const double tolerated = values.size() >= 100 ? 4.0 : 50.0;
  if (high > range.lo && range.hi - range.lo > tolerated * (high - range.lo))
    range.hi = range.lo + 2 * (high - range.lo);
  for (const Level& level : levels) {
    if (!std::isfinite(level.value)) continue;
    range.lo = std::min(range.lo, level.value);
    range.hi = std::max(range.hi, level.value);
  }
  if (from_zero) range.lo = std::min(range.lo, 0.0), range.hi = std::max(range.hi, 0.0);
  const double span = range.hi - range.lo;
  if (!std::isfinite(span)) return {-1e300, 1e300};
  if (span <= 1e-9 * std::max(std::fabs(range.lo), std::fabs(range.hi)) || span == 0.0) {
    const double margin = range.hi == 0.0 ? 1.0 : 0.1 * std::fabs(range.hi);
    return {range.lo - margin, range.hi + margin};
  }
  return {from_zero && range.lo == 0.0 ? 0.0 : range.lo - 0.04 * span, range.hi + 0.04 * span};
}

std::string render_chart(const Chart& chart, Json& data) {
  Chart shown = chart;
  Range x{std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity()};
  std::erase_if(shown.curves, [](const Curve& curve) {
    return std::none_of(curve.points.begin(), curve.points.end(),
                        [](const Point& p) { return std::isfinite(p.y); });
  });
  if (shown.curves.empty()) return "";
  std::erase_if(shown.levels, [](const Level& level) { return !std::isfinite(level.value); });
  for (const Curve& curve : shown.curves) {
    x.lo = std::min(x.lo, curve.points.front().x);
    x.hi = std::max(x.hi, curve.points.back().x);
  }
  if (x.lo > 0.0 && x.lo <= 0.1 * x.hi) x.lo = 0.0;  // charts side by side share their origin
  if (!(x.hi > x.lo)) x.lo -= 1.0, x.hi += 1.0;

  const Range y = visible_range(shown.curves, shown.levels, shown.from_zero);
  const Frame frame{46.0, 10.0, shown.width - 60.0, shown.height - 38.0, x, y};
  const size_t id = data.size();
  std::string legend = render_legend(shown);
  std::string svg = render_axes(frame, nice_ticks(x.lo, x.hi, shown.width / 90),
                                nice_ticks(y.lo, y.hi, shown.height / 45));
  svg += fmt::format(
      "<clipPath id=\"clip{}\"><rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" "
      "height=\"{:.1f}\"/></clipPath><g clip-path=\"url(#clip{})\">",
      id, frame.left, frame.top, frame.width + 4, frame.height, id);
  for (const Level& level : shown.levels) {
    svg += fmt::format("<path class=\"level\" d=\"M{:.1f} {:.1f}H{:.1f}\"/>", frame.left,
                       frame.py(level.value), frame.left + frame.width);
  }

  const auto drawn_full = std::count_if(shown.curves.begin(), shown.curves.end(),
                                        [](const Curve& curve) { return !curve.faint; });
  Json series = Json::array();
  std::stable_sort(shown.curves.begin(), shown.curves.end(),
                   [](const Curve& a, const Curve& b) { return a.faint > b.faint; });
  for (const Curve& curve : shown.curves) {
    const std::vector<Point> points = downsample(curve.points, kMaxPoints);
    svg += render_curve(frame, curve, points);
    if (curve.faint && drawn_full > 1) continue;  // the tooltip stays short
    Json xs = Json::array(), ys = Json::array();
    for (const Point& p : points) {
      if (!std::isfinite(p.y)) continue;
      xs.push_back(p.x == std::floor(p.x) && std::fabs(p.x) < 1e15 ? Json(static_cast<int64_t>(p.x))
                                                                   : Json(rounded(p.x)));
      ys.push_back(rounded(p.y));
    }
    series.push_back({{"name", curve.name}, {"colour", curve.colour}, {"x", xs}, {"y", ys}});
  }
  svg += "</g>";
  data.push_back({{"box", {frame.left, frame.top, frame.width, frame.height}},
                  {"x", {x.lo, x.hi}},
                  {"y", {y.lo, y.hi}},
                  {"series", series}});
  return fmt::format(
      "<figure class=\"chart\" data-chart=\"{}\"><figcaption><h3>{}{}</h3>{}</figcaption>"
      "<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">{}"
      "<g class=\"hover\"></g></svg></figure>\n",
      id, escape_html(shown.title),
      shown.unit.empty() ? "" : " <small>" + escape_html(shown.unit) + "</small>", legend,
      shown.width, shown.height, escape_html(shown.title), svg);
}

}  // namespace heirloom::report
