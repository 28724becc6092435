#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The figures of docs/uptraining.md.

Usage: summary.py collect SEED_DIR RESULT.json      the losses of one seed's runs (run.sh)
       summary.py tables RESULT.json...             tables over seeds: mean and 95 % interval (Student's t), paired where
                                                    two models share a seed
       summary.py chart FILE.svg RESULT.json...     the validation loss over the share of the original's compute
"""

import json
import math
import statistics
import sys
from pathlib import Path

METHODS = ("mean-v", "mean-vo", "top-v", "top-vo", "svd")
SHARES = {"05": 0.05, "10": 0.10, "15": 0.15}
T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}  # by degrees of freedom


def curve(run):
    """[[step, validation loss], ...]"""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [[line["step"], line["val_loss"]] for line in lines if "val_loss" in line]


def collect(folder, target):
    mha = curve(folder / "mha")
    config = json.loads((folder / "mha/config.json").read_text())
    result = {
        "steps": mha[-1][0],
        "tokens_per_step": config["train"]["batch_size"] * config["train"]["sequence_length"],
        "mha": mha,
        "skipv1": curve(folder / "skipv1"),
        "initial": {method: curve(folder / f"{method}-0")[0][1] for method in METHODS},
        "uptrained": {share: curve(folder / f"mean-v-{share}") for share in SHARES},
        "compute_share": {share: json.loads((folder / f"mean-v-{share}.json").read_text())["share_of_original_compute"]
                          for share in SHARES},
    }
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")


def interval(values):
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    half = T_975[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.3f} ± {half:.3f}"


def signed(values):
    text = interval(values)
    return text if text.startswith("-") else "+" + text


def tables(results):
    final = {"MHA": [r["mha"][-1][1] for r in results], "SkipV1 from scratch": [r["skipv1"][-1][1] for r in results]}
    for share in SHARES:
        compute = statistics.fmean(r["compute_share"][share] for r in results)
        final[f"MHA, mean-v, {int(share)} % of the steps ({100 * compute:.1f} % of the FLOPs)"] = [
            r["uptrained"][share][-1][1] for r in results]

    def minus(values, name):
        return signed([a - b for a, b in zip(values, final[name])])

    print(f"{len(results)} seeds; mean ± half a 95 % interval; differences are paired by seed\n")
    print("| model | validation loss | minus MHA | minus SkipV1 from scratch |\n|---|---|---|---|")
    for name, values in final.items():
        print(f"| {name} | {interval(values)} | {minus(values, 'MHA')} | {minus(values, 'SkipV1 from scratch')} |")
    print("\n| method | loss as converted, before any uptraining | minus MHA |\n|---|---|---|")
    for method in METHODS:
        initial = [r["initial"][method] for r in results]
        print(f"| {method} | {interval(initial)} | {minus(initial, 'MHA')} |")


def chart(path, results):
    """Means over seeds, with the range from the lowest to the highest seed."""
    width, height, left, right, top, bottom = 640, 360, 64, 190, 24, 48
    points = [(0.0, [r["initial"]["mean-v"] for r in results])]
    points += [(100 * statistics.fmean(r["compute_share"][s] for r in results), [r["uptrained"][s][-1][1] for r in results])
               for s in SHARES]
    levels = [("MHA, fully trained", [r["mha"][-1][1] for r in results], "#555"),
              ("SkipV1Former from scratch", [r["skipv1"][-1][1] for r in results], "#1a7f37")]
    losses = [loss for _, values in points for loss in values] + [loss for _, values, _ in levels for loss in values]
    low, high, last = min(losses) - 0.03, max(losses) + 0.03, max(share for share, _ in points) * 1.05

    def x(share):
        return left + (width - left - right) * share / last

    def y(loss):
        return top + (height - top - bottom) * (high - loss) / (high - low)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
           f'<rect width="{width}" height="{height}" fill="white"/>']
    loss = math.ceil(low * 10) / 10
    while loss <= high:
        out.append(f'<path d="M{left} {y(loss):.1f}H{width - right}" stroke="#ddd"/>'
                   f'<text x="{left - 8}" y="{y(loss) + 4:.1f}" text-anchor="end">{loss:.1f}</text>')
        loss += 0.1
    for name, values, colour in levels:
        at = y(statistics.fmean(values))
        out.append(f'<path d="M{left} {at:.1f}H{width - right}" stroke="{colour}" stroke-dasharray="6 4"/>'
                   f'<text x="{width - right + 8}" y="{at + 4:.1f}" fill="{colour}">{name}</text>')
    line = " ".join(f"{x(share):.1f},{y(statistics.fmean(values)):.1f}" for share, values in points)
    out.append(f'<polyline points="{line}" fill="none" stroke="#0550ae" stroke-width="2"/>')
    for share, values in points:
        out.append(f'<path d="M{x(share):.1f} {y(min(values)):.1f}V{y(max(values)):.1f}" stroke="#0550ae"/>'
                   f'<circle cx="{x(share):.1f}" cy="{y(statistics.fmean(values)):.1f}" r="4" fill="#0550ae"/>'
                   f'<text x="{x(share):.1f}" y="{height - bottom + 18}" text-anchor="middle">{share:.1f} %</text>')
    out.append(f'<text x="{x(0) + 10:.1f}" y="{y(statistics.fmean(points[0][1])) + 4:.1f}" fill="#0550ae">converted by mean-v, then uptrained</text>'
               f'<text x="{(left + width - right) / 2}" y="{height - 10}" text-anchor="middle">share of the original\'s compute</text>'
               f'<text x="16" y="{(top + height - bottom) / 2}" text-anchor="middle" '
               f'transform="rotate(-90 16 {(top + height - bottom) / 2})">validation loss (nats per token)</text></svg>')
    path.write_text("\n".join(out) + "\n")


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "collect":
        collect(Path(sys.argv[2]), Path(sys.argv[3]))
    elif len(sys.argv) > 3 and sys.argv[1] == "chart":
        chart(Path(sys.argv[2]), [json.loads(Path(path).read_text()) for path in sys.argv[3:]])
    elif len(sys.argv) > 2 and sys.argv[1] == "tables":
        tables([json.loads(Path(path).read_text()) for path in sys.argv[2:]])
    else:
        sys.exit(__doc__)
