// SPDX-License-Identifier: Apache-2.0
#include "heirloom/report/html_report.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <string>

namespace heirloom {
namespace {

size_t count(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}
bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

RunSeries series(const std::string& name, int64_t steps) {
  RunSeries run;
  run.name = name;
  for (int64_t s = 1; s <= steps; ++s) {
    const double t = static_cast<double>(s) / static_cast<double>(steps);
    run.metrics.push_back({{"step", s},
                           {"loss", 3 + 7 / (1 + 40 * t) + 0.1 * std::sin(double(s * s % 97))},
                           {"lr", 1e-3 * t},
                           {"grad_norm", 1 / (1 + t)},
                           {"tokens", s * 1024},
                           {"tokens_per_second", 50000 + s % 7},
                           {"mfu", nullptr},
                           {"seconds", 0.02}});
    if (s % (steps / 10 + 1) == 0) run.metrics.push_back({{"step", s}, {"val_loss", 3.5 - t}});
  }
  return run;
}

RunReport example() {
  RunReport report;
  report.title = "skipv1-mini";
  report.runs = {series("skipv1-mini", 400)};
  report.config = {{"model", "skipv1-mini"}, {"output", "runs/<b>"}};
  report.kv = {{"scheme", "skipv1"},
               {"elements_per_token", 1664},
               {"bytes_per_token", 3328},
               {"dtype", "bfloat16"},
               {"streams",
                {{{"layer", 1},
                  {"kind", "v"},
                  {"heads", 2},
                  {"elements_per_token", 128},
                  {"shared", true},
                  {"readers", {1, 2, 3, 4}}}}},
               {"read_bytes_per_token_per_step", 4096},
               {"baseline_elements_per_token", 2048},
               {"reduction", 0.1875}};
  report.tables = {{"Parameters", {"tensor", "shape", "count"}, {{"embed", "32 x 8", "256"}}, ""}};
  report.samples = {{100, "Once upon", " a time"}};
  report.reference_lines = {{"original", 2.9}};
  return report;
}

/// Open and closed elements balance, as a browser's strict parser would want; void elements aside.
void expect_balanced(const std::string& html) {
  const std::set<std::string> void_elements = {"meta", "!DOCTYPE"};
  std::vector<std::string> open;
  for (size_t at = html.find('<'); at != std::string::npos; at = html.find('<', at)) {
    const size_t end = html.find('>', at);
    ASSERT_NE(end, std::string::npos);
    std::string tag = html.substr(at + 1, end - at - 1);
    at = end;
    if (tag.back() == '/') continue;
    const bool closing = tag[0] == '/';
    if (closing) tag.erase(0, 1);
    tag = tag.substr(0, tag.find_first_of(" \n"));
    if (void_elements.count(tag)) continue;
    if (closing) {
      ASSERT_FALSE(open.empty()) << tag;
      ASSERT_EQ(open.back(), tag);
      open.pop_back();
    } else {
      open.push_back(tag);
      if (tag == "script" || tag == "style") at = html.find("</" + tag, at);
    }
  }
  EXPECT_TRUE(open.empty());
}

TEST(HtmlReport, HoldsEverySection) {
  const std::string html = render_html(example());
  for (const char* part :
       {"<h1>skipv1-mini</h1>", "Final figures", "Training loss", "Validation loss",
        "Learning rate", "Gradient norm", "Throughput", "KV cache per token", "18.8% less",
        "3.25 KiB in bfloat16", "1\u20134", "Parameters", "Once upon</em> a time", "original",
        "&quot;model&quot;: &quot;skipv1-mini&quot;", "runs/&lt;b&gt;", "50.0k tok/s", "410k",
        "8.0s"})
    EXPECT_TRUE(has(html, part)) << part;
  EXPECT_EQ(count(html, "<svg"), 5u);
  EXPECT_EQ(count(html, "<path class=\"level\""), 2u);
  expect_balanced(html);
}

TEST(HtmlReport, LoadsNothingFromOutside) {
  const std::string html = render_html(example());
  for (const char* part : {"src=", "href=", "@import", "https:", "fetch(", "<link", "<iframe"})
    EXPECT_FALSE(has(html, part)) << part;
  EXPECT_EQ(count(html, "url("), count(html, "url(#clip"));
  EXPECT_EQ(count(html, "http:"), 1u) << "only the SVG namespace of the script";
  EXPECT_TRUE(has(html, "default-src 'none'"));
}

TEST(HtmlReport, EscapesEverythingFromOutside) {
  const std::string evil = "</script><script>alert(1)</script><img src=x onerror='x'>\"&\xff";
  RunReport report = example();
  report.title = report.subtitle = evil;
  report.runs[0].name = evil;
  report.runs.push_back(series(evil, 300));
  report.config = {{evil, evil}};
  report.kv["scheme"] = report.kv["dtype"] = evil;
  report.kv["streams"][0]["kind"] = report.kv["streams"][0]["layer"] = evil;
  report.tables = {{evil, {evil}, {{evil}}, evil}};
  report.samples = {{1, evil, evil}};
  report.reference_lines = {{evil, 3.0}};
  const std::string html = render_html(report);
  EXPECT_FALSE(has(html, "<script>alert"));
  EXPECT_FALSE(has(html, "<img"));
  EXPECT_FALSE(has(html, "\xff"));
  EXPECT_EQ(count(html, "<script"), 2u);
  EXPECT_EQ(count(html, "</script"), 2u);
  EXPECT_GE(count(html, "&lt;script&gt;alert"), 12u);
  expect_balanced(html);
}

TEST(HtmlReport, AnEmptyRunSaysSo) {
  RunReport report;
  report.title = "nothing yet";
  EXPECT_TRUE(has(render_html(report), "No steps are recorded yet"));
  report.runs = {{"empty", {}}};
  const std::string html = render_html(report);
  EXPECT_TRUE(has(html, "No steps are recorded yet"));
  EXPECT_FALSE(has(html, "<svg"));
  EXPECT_FALSE(has(html, "Configuration"));
  expect_balanced(html);
}

TEST(HtmlReport, LongRunsStaySmall) {
  RunReport report;
  report.title = "long";
  report.runs = {series("long", 100000)};
  const std::string html = render_html(report);
  EXPECT_LT(html.size(), 600u * 1024);
  EXPECT_TRUE(has(html, "80k"));
  // The script's data holds no curve over the limit.
  const std::string open = "id=\"chart-data\">";
  const size_t begin = html.find(open) + open.size();
  const Json data = parse_json(html.substr(begin, html.find("</script", begin) - begin), "page");
  ASSERT_EQ(data.size(), 5u);
  for (const Json& chart : data)
    for (const Json& curve : chart["series"]) {
      EXPECT_LE(curve["x"].size(), 1000u);
      EXPECT_EQ(curve["x"].size(), curve["y"].size());
    }
}

TEST(HtmlReport, OneStepAndMetricsWithoutSense) {
  RunReport report;
  report.title = "odd";
  report.runs = {{"one", {Json{{"step", 1}, {"loss", 10.5}}}}};
  EXPECT_TRUE(has(render_html(report), "<circle"));
  report.runs = {{"odd",
                  {Json(17), Json(nullptr), Json{{"loss", 3}}, Json{{"step", "x"}, {"loss", 1}},
                   Json{{"step", 3}, {"loss", nullptr}}, Json{{"step", 2}, {"loss", "high"}},
                   Json{{"step", 4}, {"loss", 1e308}}, Json{{"step", 5}, {"loss", -1e308}}}}};
  const std::string html = render_html(report);
  expect_balanced(html);
  EXPECT_FALSE(has(html, "nan"));
  report.kv = {{"streams", {1, {{"readers", "x"}}}}, {"elements_per_token", "many"}};
  expect_balanced(render_html(report));
}

TEST(HtmlReport, OverlaysSeveralRuns) {
  RunReport report = example();
  report.runs.clear();
  for (int i = 0; i < 10; ++i) report.runs.push_back(series("run " + std::to_string(i), 300));
  const std::string html = render_html(report);
  for (int i = 0; i < 10; ++i)
    EXPECT_GE(count(html, "run " + std::to_string(i)), 6u) << "legends, table and data";
  EXPECT_FALSE(has(html, "each step</li>"));
  expect_balanced(html);
}

}  // namespace
}  // namespace heirloom
