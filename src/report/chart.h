// SPDX-License-Identifier: Apache-2.0
//
// Line charts as inline SVG. Colours are CSS classes (s0, s1, ...), so that the page's style
// decides them for light and dark.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "heirloom/io/json.h"

namespace heirloom::report {

struct Point {
  double x = 0.0;
  double y = 0.0;  ///< NaN: the curve is interrupted here
};

struct Curve {
  std::string name;
  std::vector<Point> points;  ///< by rising x
  int colour = 0;
  bool faint = false;   ///< drawn thin behind the others, not in the legend
  bool marked = false;  ///< a dot on every point, where there are few
};

struct Level {
  std::string name;
  double value = 0.0;
};

struct Chart {
  std::string title;
  std::string unit;  ///< of y, behind the title; may be empty
  std::vector<Curve> curves;
  std::vector<Level> levels;
  int width = 520;  ///< of the view box; the page scales it
  int height = 240;
  bool from_zero = false;  ///< the y axis includes 0
};

/// `text` for element content and quoted attributes: markup characters become entities; invalid
/// UTF-8 and control characters (tab and newline aside) become U+FFFD.
std::string escape_html(std::string_view text);

/// At most `limit` points: buckets of equal count, of each its lowest and highest point in their
/// order.
std::vector<Point> downsample(const std::vector<Point>& points, size_t limit);

/// Median over 2 * half + 1 points, without lag, at about `limit` evenly spaced places and the last
/// one; near the start the window shrinks on both sides, at the end on one. Interruptions stay, and
/// do not enter the median.
std::vector<Point> running_median(const std::vector<Point>& points, size_t half, size_t limit);

/// Round values (1, 2 or 5 times a power of ten apart) inside [lo, hi], about `count` of them.
std::vector<double> nice_ticks(double lo, double hi, int count);

/// The label of a tick of an axis whose ticks are `step` apart: 0.25, 120, 12k, 4e-4.
std::string tick_label(double value, double step);

/// The range of y that a chart shows: all of it, or without outliers when they would flatten
/// everything else.
struct Range {
  double lo = 0.0;
  double hi = 1.0;
};
Range visible_range(const std::vector<Curve>& curves, const std::vector<Level>& levels,
                    bool from_zero);

/// A <figure> with title, legend and the SVG; appends to `data` what the page's script needs for
/// tooltips. Empty when no curve has a finite point.
std::string render_chart(const Chart& chart, Json& data);

}  // namespace heirloom::report
