// SPDX-License-Identifier: Apache-2.0
#include "src/report/chart.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace heirloom::report {
namespace {

const double kNaN = std::numeric_limits<double>::quiet_NaN();

TEST(EscapeHtml, MarkupAndBrokenText) {
  EXPECT_EQ(escape_html("<a b='c' d=\"e\">&amp;"),
            "&lt;a b=&#39;c&#39; d=&quot;e&quot;&gt;&amp;amp;");
  EXPECT_EQ(escape_html("gr\xC3\xBC\xC3\x9F \xE2\x82\xAC \xF0\x9F\x99\x82"),
            "gr\xC3\xBC\xC3\x9F \xE2\x82\xAC \xF0\x9F\x99\x82");
  const std::string bad = "\xEF\xBF\xBD";
  EXPECT_EQ(escape_html("\xff"), bad);
  EXPECT_EQ(escape_html("\xC3"), bad);                      // cut short
  EXPECT_EQ(escape_html("\xC0\xAF"), bad + bad);            // overlong
  EXPECT_EQ(escape_html("\xED\xA0\x80"), bad + bad + bad);  // a surrogate
  EXPECT_EQ(escape_html("\xE2<"), bad + "&lt;");            // must not swallow the markup
  EXPECT_EQ(escape_html(std::string("a\0b\x1b\x7f", 5)), "a" + bad + "b" + bad + bad);
  EXPECT_EQ(escape_html("\xC2\x9B\xC2\xA0"), bad + "\xC2\xA0");
  EXPECT_EQ(escape_html("a\tb\nc"), "a\tb\nc");
}

TEST(Downsample, KeepsExtremesOrderAndLimit) {
  std::vector<Point> points;
  for (int i = 0; i < 100000; ++i) points.push_back({double(i), std::sin(i * 0.001)});
  points[12345].y = 50.0;
  points[54321].y = -50.0;
  const std::vector<Point> out = downsample(points, 1000);
  EXPECT_LE(out.size(), 1000u);
  EXPECT_GE(out.size(), 900u);
  double low = 0, high = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    if (i > 0) {
      ASSERT_GT(out[i].x, out[i - 1].x);
    }
    ASSERT_EQ(out[i].y, points[static_cast<size_t>(out[i].x)].y);
    low = std::min(low, out[i].y);
    high = std::max(high, out[i].y);
  }
  EXPECT_EQ(high, 50.0);
  EXPECT_EQ(low, -50.0);
}

TEST(Downsample, ShortCurvesStayAndGapsRemain) {
  const std::vector<Point> few = {{1, 2}, {2, kNaN}, {3, 4}};
  EXPECT_EQ(downsample(few, 3).size(), 3u);
  std::vector<Point> gap;
  for (int i = 0; i < 1000; ++i) gap.push_back({double(i), i >= 400 && i < 600 ? kNaN : 1.0});
  const std::vector<Point> out = downsample(gap, 20);
  EXPECT_TRUE(std::any_of(out.begin(), out.end(), [](const Point& p) { return std::isnan(p.y); }));
  EXPECT_TRUE(downsample({}, 10).empty());
}

TEST(RunningMedian, FollowsALineWithoutLagAndKeepsTheEnds) {
  std::vector<Point> line;
  for (int i = 0; i <= 1000; ++i) line.push_back({double(i), 3.0 * i});
  const std::vector<Point> out = running_median(line, 20, 100);
  EXPECT_EQ(out.front().x, 0.0);
  EXPECT_EQ(out.back().x, 1000.0);
  EXPECT_LE(out.size(), 102u);
  for (const Point& p : out) {
    if (p.x > 980) break;
    EXPECT_NEAR(p.y, 3.0 * p.x, 1e-9);
  }
  EXPECT_NEAR(out.back().y, 3.0 * 990, 1e-9);  // one-sided: the median of 980..1000
}

TEST(RunningMedian, IgnoresSpikesAndKeepsGaps) {
  std::vector<Point> points;
  for (int i = 0; i < 200; ++i)
    points.push_back({double(i), i == 50 ? 1e300 : i == 60 ? kNaN : 1.0});
  const std::vector<Point> out = running_median(points, 5, 1000);
  ASSERT_EQ(out.size(), 200u);
  EXPECT_TRUE(std::isnan(out[60].y));
  EXPECT_EQ(out[50].y, 1.0);
  EXPECT_EQ(out[62].y, 1.0);
  EXPECT_TRUE(running_median({}, 3, 10).empty());
  EXPECT_EQ(out[199].y, 1.0);
}

TEST(NiceTicks, AreRoundAndInside) {
  EXPECT_EQ(nice_ticks(0, 10, 5), (std::vector<double>{0, 2, 4, 6, 8, 10}));
  EXPECT_EQ(nice_ticks(2.7, 3.4, 4).size(), 4u);
  EXPECT_FALSE(std::signbit(nice_ticks(-0.01, 10, 5)[0]));
  EXPECT_EQ(nice_ticks(5, 5, 4), (std::vector<double>{5}));
  for (const double scale : {1e-300, 1e-12, 1e-4, 1.0, 1e7, 1e300}) {
    const std::vector<double> ticks = nice_ticks(0.13 * scale, 0.97 * scale, 6);
    EXPECT_GE(ticks.size(), 3u) << scale;
    EXPECT_LE(ticks.size(), 12u) << scale;
    for (const double t : ticks) {
      EXPECT_GE(t, 0.13 * scale * (1 - 1e-6));
      EXPECT_LE(t, 0.97 * scale * (1 + 1e-6));
    }
  }
  EXPECT_FALSE(nice_ticks(-1e308, 1e308, 5).empty());
}

TEST(TickLabel, IsShort) {
  EXPECT_EQ(tick_label(0, 0.5), "0");
  EXPECT_EQ(tick_label(2.5, 0.5), "2.5");
  EXPECT_EQ(tick_label(3.0, 0.25), "3.0");
  EXPECT_EQ(tick_label(120, 20), "120");
  EXPECT_EQ(tick_label(12000, 2000), "12k");
  EXPECT_EQ(tick_label(1500, 500), "1.5k");
  EXPECT_EQ(tick_label(2e6, 1e6), "2M");
  EXPECT_EQ(tick_label(8e5, 2e5), "800k");
  EXPECT_EQ(tick_label(1.2e6, 2e5), "1.2M");
  EXPECT_EQ(tick_label(4e-4, 2e-4), "4e-4");
  EXPECT_EQ(tick_label(1e-3, 2e-4), "1e-3");
  EXPECT_EQ(tick_label(-1.2e-300, 2e-301), "-1.2e-300");
}

TEST(VisibleRange, CutsWhatFlattensTheRest) {
  Curve curve;
  for (int i = 0; i < 1000; ++i) curve.points.push_back({double(i), 3.0 + 0.002 * i});
  EXPECT_GE(visible_range({curve}, {}, false).hi, 4.998);
  curve.points[500].y = 1e30;
  const Range cut = visible_range({curve}, {}, false);
  EXPECT_LT(cut.hi, 8.0);
  EXPECT_GT(cut.hi, 4.998);
  const Range with_level = visible_range({curve}, {{"original", 2.0}}, false);
  EXPECT_LT(with_level.lo, 2.0);
  EXPECT_EQ(visible_range({curve}, {}, true).lo, 0.0);
}

TEST(VisibleRange, NeverDegenerate) {
  const auto check = [](double a, double b) {
    Curve curve;
    curve.points = {{0, a}, {1, b}};
    const Range range = visible_range({curve}, {}, false);
    EXPECT_LT(range.lo, range.hi) << a << " " << b;
    EXPECT_TRUE(std::isfinite(range.lo) && std::isfinite(range.hi)) << a << " " << b;
  };
  check(0, 0);
  check(5, 5);
  check(-5, -5);
  check(1e-320, 1e-320);
  check(-1e308, 1e308);
  check(kNaN, kNaN);
}

TEST(RenderChart, EmptyWithoutFinitePoints) {
  Json data = Json::array();
  Chart chart;
  EXPECT_EQ(render_chart(chart, data), "");
  chart.curves.push_back({"x", {{1, kNaN}}, 0, false, false});
  EXPECT_EQ(render_chart(chart, data), "");
  EXPECT_TRUE(data.empty());
}

TEST(RenderChart, BreaksTheLineAtGaps) {
  Json data = Json::array();
  Chart chart;
  chart.curves.push_back({"x", {{1, 1}, {2, 2}, {3, kNaN}, {4, 3}, {5, 4}}, 0, false, false});
  const std::string svg = render_chart(chart, data);
  const size_t d = svg.find(" d=\"", svg.find("class=\"line"));
  const std::string path = svg.substr(d + 4, svg.find('"', d + 4) - d - 4);
  EXPECT_EQ(std::count(path.begin(), path.end(), 'M'), 2);
  EXPECT_EQ(std::count(path.begin(), path.end(), 'L'), 2);
  EXPECT_EQ(data[0]["series"][0]["x"], (Json{1, 2, 4, 5}));
}

}  // namespace
}  // namespace heirloom::report
