#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The committed figures of the CUDA kernels: what the compiler says of each, what the emulator models, what is predicted.

Usage: tools/kernel_table.py [--check] [--model PROGRAM] [--nvcc NVCC] [--cache FOLDER] [--skip-compiler | --skip-model]

Without --check, writes benchmarks/kernels_cuda.json and benchmarks/kernels_cuda.md anew. With it, compares with the
committed JSON and prints what got worse (exit code 1):
  - spills in a kernel that the model runs (a hot one), or more registers than recorded;
  - sectors / ideal or wavefronts / ideal above 1.05, unless EXPLAINED says why and the figure is no worse than recorded;
  - modelled DRAM bytes further than 5 % from the operation's cost(), unless explained in the same way.

Compiled figures: nvcc -Xptxas -v for sm_90a, cached by the content of the sources. Modelled figures: the program
benchmarks/cuda_model.cpp of an instrumented emulated build (heirloom_cuda_model). --skip-compiler and --skip-model keep
the recorded figures of that part. Nothing here is measured on a device, and the table says so.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks/kernels_cuda.json"
TABLE = ROOT / "benchmarks/kernels_cuda.md"
KERNELS = ROOT / "kernels/cuda"

# Why a figure of an operation may be off. The figure itself is recorded and must not get worse.
EXPLAINED = {
    ("attention_backward", "bytes"): "two passes (over queries, over keys) that each read q, k, v and dout; cost() counts them once",
    ("column_sum", "bytes"): "partial sums of each chunk of rows go both ways beside the tensor",
    ("norm_backward", "bytes"): "partial sums of each chunk of rows go both ways beside the tensors",
    ("activation_forward", "sectors"): "odd F only: rows begin in the middle of a sector and are read element by element",
    ("activation_backward", "sectors"): "odd F only: as forward",
}
TOLERANCE = 0.05

# Nominal and modelled rates for predictions. H100 SXM: 3.35 TB/s nominal, 85 % of it expected. H200: 4.3 TB/s is a copy's
# rate, of which streaming kernels reach 90 %. GEMM: cuBLAS reaches 790 TFLOP/s bfloat16 on either, our shapes 90 % of it.
# Attention on mma.sync, causal, head width 64, S 1024: what FlashAttention-2 reaches on H100; its backward has five products
# where ours, in two passes without atomics, has seven.
DEVICES = {"H100": {"bytes_per_s": 0.85 * 3.35e12}, "H200": {"bytes_per_s": 0.90 * 4.3e12}}
FLOPS = {"gemm": 0.9 * 790e12, "attention_forward": 229e12, "attention_backward": 150e12 * 5 / 7}

# An H100's multiprocessor.
SM = {"registers": 65536, "threads": 2048, "warps": 64, "blocks": 32, "shared": 228 * 1024, "reserved": 1024}


def canonical_scopes(name):
    return re.sub(r"\(anonymous namespace\)::|_GLOBAL__N__\w+::|_INTERNAL_\w+::", "", name)


def short_name(demangled):
    """ "void heirloom::cuda::(anonymous namespace)::rows_kernel<float, 4>(Params)" -> "rows_kernel<float, 4>"."""
    name = canonical_scopes(demangled)
    depth, begin, end = 0, 0, len(name)
    for i, c in enumerate(name):
        depth += (c == "<") - (c == ">")
        if depth:
            continue
        if c == "(":
            end = i
            break
        if c == " " or (c == ":" and name[i - 1] == ":"):
            begin = i + 1
    return name[begin:end]


def canonical(name):
    """Names as g++ and nvcc both spell them."""
    name = canonical_scopes(name)
    name = re.sub(r"heirloom::(\w+::)*", "", name)
    return name.replace("(bool)1", "true").replace("(bool)0", "false").replace("(int)", "").replace(" ", "")


def content_hash(source):
    """Of a file and of everything of this tree that it includes."""
    h, done, queue = hashlib.sha256(), set(), [source]
    while queue:
        path = queue.pop()
        if path in done:
            continue
        done.add(path)
        text = path.read_bytes()
        h.update(str(path.relative_to(ROOT)).encode() + b"\0" + text)
        for name in sorted(set(re.findall(rb'^\s*#include "([^"]+)"', text, re.M))):
            found = [p for p in (path.parent / name.decode(), ROOT / name.decode(), ROOT / "include" / name.decode()) if p.exists()]
            queue += found[:1]
    return h.hexdigest()[:16]


def compile_file(source, nvcc, cache):
    log = cache / f"{source.stem}-{content_hash(source)}.txt"
    if not log.exists():
        command = [nvcc, "-std=c++20", "-O3", "--expt-relaxed-constexpr", "-gencode", "arch=compute_90a,code=sm_90a",
                   "-Xptxas", "-v", "-I", KERNELS / "nvcc", "-I", ROOT / "include", "-I", ROOT, "-cubin", "-o", "/dev/null", source]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"kernel_table: nvcc failed on {source}:\n{done.stderr[-4000:]}")
        demangled = subprocess.run(["c++filt"], input=done.stderr + done.stdout, capture_output=True, text=True).stdout
        for old in cache.glob(f"{source.stem}-*.txt"):
            old.unlink()
        log.write_text(demangled)
    return source, log.read_text()


def compiled_figures(nvcc, cache, jobs):
    """{kernel: {file, registers, spill_stores, spill_loads, stack, static_shared, barriers}}"""
    cache.mkdir(parents=True, exist_ok=True)
    sources = sorted(KERNELS.rglob("*.cu"))
    with ThreadPoolExecutor(jobs) as pool:
        logs = list(pool.map(lambda s: compile_file(s, nvcc, cache), sources))
    kernels = {}
    for source, text in logs:
        name = None
        for line in text.splitlines():
            if m := re.search(r"Compiling entry function '(.+)' for 'sm_90a'", line):
                name = canonical(short_name(m[1]))
                kernels[name] = {"file": str(source.relative_to(ROOT))}
            elif name and (m := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line)):
                if "stack" not in kernels[name]:
                    kernels[name].update(stack=int(m[1]), spill_stores=int(m[2]), spill_loads=int(m[3]))
            elif name and (m := re.search(r"Used (\d+) registers", line)):
                shared = re.search(r"(\d+) bytes smem", line)
                kernels[name].update(registers=int(m[1]), static_shared=int(shared[1]) if shared else 0)
                name = None
    return kernels


def occupancy(registers, threads, shared):
    """Blocks that one multiprocessor holds, as the CUDA occupancy calculator counts."""
    warps = -(-threads // 32)
    per_warp = -(-registers * 32 // 256) * 256
    blocks = min(SM["blocks"], SM["threads"] // (warps * 32), SM["registers"] // (per_warp * 4) * 4 // warps,
                 SM["shared"] // (-(-(shared + SM["reserved"]) // 128) * 128))
    return blocks, blocks * warps / SM["warps"]


def ratio(used, ideal):
    return round(used / ideal, 4) if ideal else None


def figures_of(case):
    sums = {k: sum(x[k] for x in case["kernels"]) for k in ("sectors", "ideal_sectors", "wavefronts", "ideal_wavefronts")}
    return {
        "bytes": ratio(case["dram_read"] + case["dram_written"], case["cost_read"] + case["cost_written"]),
        "sectors": ratio(sums["sectors"], sums["ideal_sectors"]),
        "wavefronts": ratio(sums["wavefronts"], sums["ideal_wavefronts"]),
    }


def modelled_figures(program, strict):
    done = subprocess.run([program], capture_output=True, text=True)
    if done.returncode != 0:
        print(f"kernel_table: {program} found mistakes in kernels:\n{done.stderr[-4000:]}", file=sys.stderr)
        if strict or done.returncode != 1:
            sys.exit(1)
    model = json.loads(done.stdout)
    for case in model["cases"]:
        case["ratios"] = figures_of(case)
        for kernel in case["kernels"]:
            kernel["name"] = canonical(kernel["name"])
    return model


def predict(operation, device):
    """(microseconds of one call, what bounds it)"""
    name = operation["operation"]
    times = {"bytes": (operation["bytes_read"] + operation["bytes_written"]) / DEVICES[device]["bytes_per_s"]}
    for prefix, rate in FLOPS.items():
        if name.startswith(prefix):
            times["FLOPs"] = operation["flops"] / rate
    bound = max(times, key=times.get)
    return times[bound] * 1e6, bound


def case_key(case):
    return f"{case['operation']} {case['dtype']} {case['shape']}"


def hot_kernels(record):
    """{kernel: (operation, threads, most dynamic shared memory)} of the model's cases."""
    hot = {}
    for case in record["cases"]:
        for kernel in case["kernels"]:
            operation, threads, shared = hot.get(kernel["name"], (case["operation"], 0, 0))
            hot[kernel["name"]] = (operation, max(threads, kernel["threads"]), max(shared, kernel["dynamic_shared"]))
    return hot


def table(record):
    out = [
        "# CUDA kernels: compiled, modelled, predicted",
        "",
        "Written by `tools/kernel_table.py`; do not edit. **Nothing in this file was measured on a device.** Registers, spills and shared",
        "memory are nvcc's (`-Xptxas -v`, sm_90a); occupancy follows from them. Sectors, wavefronts and DRAM bytes are *modelled* by the",
        "emulator (`tests/cuda_emulator/src/instrument.h`: caches that keep everything within a launch and nothing between launches).",
        "Times are *predicted*: the larger of bytes and FLOPs over the rates below.",
        "",
        "## Operations, modelled",
        "",
        "DRAM: modelled bytes / the operation's `cost()`. Sectors, wavefronts: used / ideal over all its instructions (- where it has none).",
        "",
        "| operation | dtype | shape | DRAM | sectors | wavefronts | remark |",
        "|---|---|---|---|---|---|---|",
    ]
    show = lambda x: "-" if x is None else f"{x:.3f}"
    for case in record["cases"]:
        remarks = {EXPLAINED[case["operation"], k] for k, v in case["ratios"].items()
                   if v is not None and abs(v - 1) > TOLERANCE and (case["operation"], k) in EXPLAINED}
        r = case["ratios"]
        out.append(f"| {case['operation']} | {case['dtype']} | {case['shape']} | {show(r['bytes'])} | {show(r['sectors'])} | "
                   f"{show(r['wavefronts'])} | {'; '.join(sorted(remarks))} |")
    out += ["", "## Kernels, compiled", "",
            "Occupancy: blocks per multiprocessor and the share of its 64 warps.", "",
            "| kernel | operation | threads | registers | spilled bytes | shared bytes, static + dynamic | occupancy |",
            "|---|---|---|---|---|---|---|"]
    for name, (operation, threads, shared) in sorted(hot_kernels(record).items(), key=lambda x: (x[1][0], x[0])):
        k = record["kernels"].get(name)
        if k is None:
            out.append(f"| `{name}` | {operation} | {threads} | ? | ? | {shared} | ? |")
            continue
        blocks, share = occupancy(k["registers"], threads, k["static_shared"] + shared)
        out.append(f"| `{name}` | {operation} | {threads} | {k['registers']} | {k['spill_stores']} | {k['static_shared']} + {shared} | "
                   f"{blocks}, {100 * share:.0f} % |")
    out += ["", "## A training step, predicted", "",
            "bfloat16, S 1024, one micro-batch forward and backward, and the optimizer's step (in milliseconds). Rates: bytes at "
            f"{DEVICES['H100']['bytes_per_s'] / 1e12:.2f} TB/s (H100: 85 % of nominal) and {DEVICES['H200']['bytes_per_s'] / 1e12:.2f} TB/s (H200: 90 % of a copy); "
            f"GEMM {FLOPS['gemm'] / 1e12:.0f} TFLOP/s (90 % of cuBLAS's best); attention forward {FLOPS['attention_forward'] / 1e12:.0f}, backward "
            f"{FLOPS['attention_backward'] / 1e12:.0f} TFLOP/s (what mma.sync kernels of this kind reach at this length).", ""]
    for model in record["models"]:
        out += [f"### {model['model']}, {model['tokens']} tokens", "",
                "| operation | calls | MB a call | GFLOP a call | H100 us a call | H200 us a call | bound by | H100 ms | H200 ms |",
                "|---|---|---|---|---|---|---|---|---|"]
        merged = {}
        for o in model["operations"]:
            h100, bound = predict(o, "H100")
            h200, _ = predict(o, "H200")
            m = merged.setdefault(o["operation"], {"calls": 0, "bytes": 0, "flops": 0, "H100": 0, "H200": 0, "bound": bound})
            m["calls"] += o["calls"]
            m["bytes"] += o["calls"] * (o["bytes_read"] + o["bytes_written"])
            m["flops"] += o["calls"] * o["flops"]
            m["H100"] += o["calls"] * h100
            m["H200"] += o["calls"] * h200
        total = {"H100": 0, "H200": 0}
        for name, m in merged.items():
            n = m["calls"]
            out.append(f"| {name} | {n} | {m['bytes'] / n / 1e6:.1f} | {m['flops'] / n / 1e9:.1f} | {m['H100'] / n:.0f} | {m['H200'] / n:.0f} | "
                       f"{m['bound']} | {m['H100'] / 1e3:.2f} | {m['H200'] / 1e3:.2f} |")
            if "per step" not in name:
                total["H100"] += m["H100"]
                total["H200"] += m["H200"]
        rates = {d: model["tokens"] / (t / 1e6) for d, t in total.items()}
        out += [f"| **micro-batch** | | | | | | | **{total['H100'] / 1e3:.2f}** | **{total['H200'] / 1e3:.2f}** |", "",
                f"Predicted, without the optimizer's step: {rates['H100'] / 1e3:.0f}k tokens/s on H100, {rates['H200'] / 1e3:.0f}k on H200.", ""]
    return "\n".join(out)


def compare(old, new):
    worse = []
    hot = hot_kernels(new)
    for name in sorted(hot):
        k, was = new["kernels"].get(name), old["kernels"].get(name)
        if k is None:
            worse.append(f"{name}: the compiler knows no such kernel")
            continue
        if k["spill_stores"] > (was or {}).get("spill_stores", 0) or k["spill_loads"] > (was or {}).get("spill_loads", 0):
            worse.append(f"{name}: expected no more spills than recorded; got {k['spill_stores']} bytes stored, {k['spill_loads']} loaded")
        if was and k["registers"] > was["registers"]:
            worse.append(f"{name}: expected at most {was['registers']} registers; got {k['registers']}")
    recorded = {case_key(c): c["ratios"] for c in old["cases"]}
    for case in new["cases"]:
        key, before = case_key(case), recorded.get(case_key(case), {})
        for figure, value in case["ratios"].items():
            if value is None:
                continue
            off = abs(value - 1) if figure == "bytes" else value - 1
            if off <= TOLERANCE:
                continue
            if (case["operation"], figure) not in EXPLAINED:
                worse.append(f"{key}: expected {figure} within {TOLERANCE:.0%} of ideal; got {value:.3f}")
            elif before.get(figure) is not None and abs(value - 1) > abs(before[figure] - 1) + 0.005:
                worse.append(f"{key}: expected {figure} no further off than {before[figure]:.3f}; got {value:.3f}")
    missing = set(recorded) - {case_key(c) for c in new["cases"]}
    worse += [f"{key}: recorded, but no longer modelled" for key in sorted(missing)]
    return worse


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the record instead of writing it")
    parser.add_argument("--model", type=Path, default=ROOT / "build/cuda-instrumented/benchmarks/heirloom_cuda_model")
    parser.add_argument("--nvcc", default="/usr/local/cuda/bin/nvcc")
    parser.add_argument("--cache", type=Path, default=ROOT / "build/kernel_table")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--skip-compiler", action="store_true", help="keep the recorded compiled figures")
    parser.add_argument("--skip-model", action="store_true", help="keep the recorded modelled figures")
    args = parser.parse_args()

    old = json.loads(RECORD.read_text()) if RECORD.exists() else {"kernels": {}, "cases": [], "models": []}
    new = dict(old)
    if not args.skip_compiler:
        new["kernels"] = compiled_figures(args.nvcc, args.cache, args.jobs)
    if not args.skip_model:
        new.update(modelled_figures(args.model, strict=args.check))
    if args.check:
        worse = compare(old, new)
        for line in worse:
            print(f"kernel_table: {line}")
        return 1 if worse else 0
    for line in compare({"kernels": {}, "cases": [], "models": []}, new):
        print(f"kernel_table: {line}", file=sys.stderr)
    hot = hot_kernels(new)
    for name, kernel in new["kernels"].items():
        kernel["hot"] = name in hot
    head = {"about": "Written by tools/kernel_table.py. Compiled by nvcc for sm_90a, modelled by the emulator; nothing was measured."}
    dump = lambda x: json.dumps(x, separators=(", ", ": "))
    lines = ["{", f'"about": {dump(head["about"])},', '"kernels": {']
    lines.append(",\n".join(f"{dump(k)}: {dump(v)}" for k, v in sorted(new["kernels"].items())))
    lines += ["},", '"cases": [']
    lines.append(",\n".join(dump(c) for c in new["cases"]))
    lines += ["],", '"models": [']
    lines.append(",\n".join(dump(m) for m in new["models"]))
    lines += ["]", "}", ""]
    RECORD.write_text("\n".join(lines))
    TABLE.write_text(table(new))
    return 0


if __name__ == "__main__":
    sys.exit(main())
