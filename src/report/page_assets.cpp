// SPDX-License-Identifier: Apache-2.0
#include "page_assets.h"

namespace heirloom::report {

const std::string_view kPageStyle = R"css(
:root { color-scheme: light dark;
  --page: #ffffff; --ink: #1f2430; --quiet: #667085; --rule: #e4e7ec; --panel: #f8f9fb; --grid: #eceff3;
  --c0: #2f6fde; --c1: #d9622b; --c2: #2a9461; --c3: #9a4fc4; --c4: #b8860b; --c5: #c43d6b; --c6: #1d8fa3; --c7: #6b7280; }
@media (prefers-color-scheme: dark) { :root {
  --page: #14171c; --ink: #dfe3ea; --quiet: #8d96a5; --rule: #2b313b; --panel: #1b1f26; --grid: #252b34;
  --c0: #6ea0ff; --c1: #f0905f; --c2: #5cc796; --c3: #c48be6; --c4: #dcb04a; --c5: #ec7da3; --c6: #56bfd2; --c7: #9ca3af; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 40px 28px 80px; max-width: 1120px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif; }
h1 { margin: 0; font-size: 27px; font-weight: 650; letter-spacing: -.01em; line-height: 1.25; }
h2 { margin: 44px 0 14px; font-size: 18px; font-weight: 650; }
h3 { margin: 0; font-size: 14px; font-weight: 600; }
h3 small { color: var(--quiet); font-weight: 400; font-size: 12.5px; margin-left: 4px; }
.subtitle, .note { color: var(--quiet); margin: 4px 0 0; }
.note { font-size: 13px; }
.charts { display: grid; grid-template-columns: 1fr 1fr; gap: 26px 24px; margin-top: 8px; }
.charts .wide { grid-column: 1 / -1; }
@media (max-width: 760px) { .charts { grid-template-columns: 1fr; } .charts > .chart { max-width: 560px; } }
.chart { margin: 0; position: relative; min-width: 0; }
figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; align-items: baseline; gap: 2px 20px; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 0; padding: 0; font-size: 12.5px; color: var(--quiet); }
.legend b { color: var(--ink); font-weight: 500; font-variant-numeric: tabular-nums; }
.legend i { display: inline-block; width: 16px; height: 3px; border-radius: 2px; margin-right: 6px; vertical-align: 3px; }
.legend i.level { height: 0; border-top: 2px dashed var(--quiet); border-radius: 0; }
svg { display: block; width: 100%; height: auto; margin-top: 6px; overflow: visible; }
svg text { font: 11px system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; fill: var(--quiet);
  font-variant-numeric: tabular-nums; }
.ticks.x text { text-anchor: middle; } .ticks.y text { text-anchor: end; }
.grid path { stroke: var(--grid); fill: none; } .axis { stroke: var(--rule); fill: none; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.line.faint { stroke-width: 1; opacity: .28; }
path.level { stroke: var(--quiet); stroke-width: 1.3; stroke-dasharray: 5 4; fill: none; }
.hover path { stroke: var(--quiet); opacity: .5; fill: none; }
.tip { position: absolute; pointer-events: none; z-index: 2; padding: 6px 10px; border: 1px solid var(--rule); border-radius: 6px;
  background: var(--page); box-shadow: 0 3px 12px rgb(0 0 0 / .14); font-size: 12.5px; line-height: 1.45; white-space: nowrap; }
.tip table { width: auto; margin: 0; } .tip td { border: 0; padding: 0 0 0 10px; } .tip td:first-child { padding-left: 0; }
.tip i { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 6px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; min-width: 40%; }
th, td { text-align: left; padding: 5px 20px 5px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { color: var(--quiet); font-weight: 500; font-size: 12.5px; white-space: nowrap; }
th.n, td.n { text-align: right; white-space: nowrap; }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: 7px 14px; align-items: center; margin: 14px 0 18px;
  font-size: 13.5px; max-width: 780px; font-variant-numeric: tabular-nums; }
.bars span:nth-child(3n) { text-align: right; }
.bar { height: 14px; border-radius: 3px; background: var(--c0); min-width: 2px; } .bar.base { background: var(--c7); opacity: .55; }
details { margin: 14px 0; } summary { cursor: pointer; color: var(--quiet); font-size: 13.5px; }
pre { background: var(--panel); border: 1px solid var(--rule); border-radius: 6px; padding: 12px 16px; overflow-x: auto;
  font: 12.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
.sample { display: grid; grid-template-columns: 92px 1fr; gap: 2px 18px; padding: 10px 0; border-bottom: 1px solid var(--rule); }
.sample span { color: var(--quiet); font-size: 13px; font-variant-numeric: tabular-nums; padding-top: 1px; }
.sample p { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; } .sample em { font-style: normal; color: var(--quiet); }
footer { margin-top: 56px; color: var(--quiet); font-size: 12.5px; }
.s0 { stroke: var(--c0); } .s1 { stroke: var(--c1); } .s2 { stroke: var(--c2); } .s3 { stroke: var(--c3); }
.s4 { stroke: var(--c4); } .s5 { stroke: var(--c5); } .s6 { stroke: var(--c6); } .s7 { stroke: var(--c7); }
.d0 { fill: var(--c0); } .d1 { fill: var(--c1); } .d2 { fill: var(--c2); } .d3 { fill: var(--c3); }
.d4 { fill: var(--c4); } .d5 { fill: var(--c5); } .d6 { fill: var(--c6); } .d7 { fill: var(--c7); }
.b0 { background: var(--c0); } .b1 { background: var(--c1); } .b2 { background: var(--c2); } .b3 { background: var(--c3); }
.b4 { background: var(--c4); } .b5 { background: var(--c5); } .b6 { background: var(--c6); } .b7 { background: var(--c7); }
@media print { body { max-width: none; padding: 0; } .chart, .sample { break-inside: avoid; } }
)css";

const std::string_view kPageScript = R"js(
'use strict';
const charts = JSON.parse(document.getElementById('chart-data').textContent);
const make = (parent, tag, attributes) => {
  const svg = parent instanceof SVGElement;
  const node = svg ? document.createElementNS('http://www.w3.org/2000/svg', tag) : document.createElement(tag);
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  return parent.appendChild(node);
};
const nearest = (xs, x) => {
  let lo = 0, hi = xs.length - 1;
  while (hi - lo > 1) { const mid = (lo + hi) >> 1; if (xs[mid] < x) lo = mid; else hi = mid; }
  return hi < 0 ? -1 : Math.abs(xs[lo] - x) <= Math.abs(xs[hi] - x) ? lo : hi;
};
const show = v => v === 0 || (Math.abs(v) >= 0.01 && Math.abs(v) < 1e6)
  ? v.toLocaleString('en', {maximumSignificantDigits: 5}) : v.toExponential(2);
for (const figure of document.querySelectorAll('[data-chart]')) {
  const chart = charts[figure.dataset.chart], [left, top, width, height] = chart.box;
  const svg = figure.querySelector('svg'), hover = svg.querySelector('.hover');
  let tip = null;
  const leave = () => { hover.replaceChildren(); if (tip) tip.remove(); tip = null; };
  svg.addEventListener('pointerleave', leave);
  svg.addEventListener('pointermove', event => {
    leave();
    const area = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / area.width;
    const x = chart.x[0] + ((event.clientX - area.left) * scale - left) / width * (chart.x[1] - chart.x[0]);
    if (x < chart.x[0] || x > chart.x[1]) return;
    const hits = chart.series.map(s => ({s, i: nearest(s.x, x)})).filter(h => h.i >= 0);
    if (!hits.length) return;
    const at = hits.map(h => h.s.x[h.i]).reduce((a, b) => Math.abs(a - x) <= Math.abs(b - x) ? a : b);
    const px = v => left + width * (v - chart.x[0]) / (chart.x[1] - chart.x[0]);
    const py = v => top + height * (1 - (v - chart.y[0]) / (chart.y[1] - chart.y[0]));
    make(hover, 'path', {d: `M${px(at)} ${top}V${top + height}`});
    tip = make(figure, 'div', {class: 'tip'});
    make(tip, 'div', {}).textContent = 'step ' + at.toLocaleString('en');
    const table = make(tip, 'table', {});
    for (const {s, i} of hits) {
      const y = py(s.y[i]);
      if (y >= top && y <= top + height) make(hover, 'circle', {class: 'd' + s.colour, r: 3, cx: px(s.x[i]), cy: y});
      const row = make(table, 'tr', {}), name = make(row, 'td', {});
      make(name, 'i', {class: 'b' + s.colour});
      name.append(s.name);
      make(row, 'td', {class: 'n'}).textContent = show(s.y[i]);
    }
    const box = figure.getBoundingClientRect(), gap = 14;
    const anchor = area.left - box.left + px(at) / scale;
    tip.style.top = (area.top - box.top + top / scale + 4) + 'px';
    tip.style.left = (anchor + gap + tip.offsetWidth > box.width ? anchor - gap - tip.offsetWidth : anchor + gap) + 'px';
  });
}
)js";

}  // namespace heirloom::report
