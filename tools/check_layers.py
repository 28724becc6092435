#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds the source tree to the layer ladder of CONTRIBUTING.md.

Usage: tools/check_layers.py [ROOT]

Errors (file:line: message, exit code 1): an include that does not point downwards; CUDA preprocessor conditions
outside the two files that may have them; a variant asked for by its name outside the plan builders and the config; a
source file without its licence line. Warnings: files that have grown too long.
"""

import re
import sys
from pathlib import Path

# layer: the layers that it may include besides itself.
LADDER = {
    "core": "",
    "io": "core",
    "tokenizer": "core io",
    "data": "core io tokenizer",
    "report": "core io",
    "distributed": "core",
    "kernels": "core",
    "ops": "core kernels",
    "nn": "core kernels ops",
    "model": "core io kernels ops nn",
    "train": "core io tokenizer data report distributed kernels ops nn model",
    "decode": "core io tokenizer kernels ops nn model",
    "evaluate": "core io tokenizer data kernels ops nn model",
    "convert": "core io tokenizer kernels ops nn model",
    "analyze": "core io tokenizer data kernels ops nn model",
}
LADDER = {layer: set(below.split()) | {layer} for layer, below in LADDER.items()}

# What the implementations below kernels/ may see.
KERNEL_CORE_HEADERS = {"dtype.h", "device.h", "device_runtime.h", "error.h", "log.h", "rng.h"}
# Where a build with and without CUDA may differ: the device file and the header that wraps PTX.
CUDA_CONDITION_FILES = {"src/core/device.cpp", "kernels/cuda/common/ptx.cuh"}
# Where variants have names: the plan builders, the config and its dialects.
NAMING_FILES = re.compile(r"src/model/((kv_plan|config)\w*|families/\w+)\.(cpp|h)")
SCHEMES = "skipv1|skipkv1|skipv1-yoco|yoco|yoco-v|cla|cla-v|svformer|resformer|neutreno|denseformer"

INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"')
CUDA_CONDITION = re.compile(r"^\s*#\s*(if|ifdef|ifndef|elif)\b.*(CUDA|NVCC|EMULATED)")
SCHEME_COMPARED = re.compile(
    rf'[=!]=\s*"({SCHEMES})"|"({SCHEMES})"\s*[=!]=|\bvariant\s*[=!]=|kv_sharing\.scheme\s*[=!]=')
LICENCE = "SPDX-License-Identifier: Apache-2.0"

CODE_SUFFIXES = {".h", ".hpp", ".cpp", ".cu", ".cuh"}
MAX_LINES, MAX_KERNEL_LINES = 600, 900


def layer_of(path):
    """('include'|'src', 'ops') -> 'ops'; None where the ladder does not apply."""
    parts = path.parts
    if parts[:2] == ("include", "heirloom"):
        return parts[2] if len(parts) > 3 else None
    return parts[1] if parts[0] == "src" and len(parts) > 2 else None


def include_problem(root, path, target):
    """Why `path` may not include "target"; None when it may."""
    if path.parts[0] in ("tools", "benchmarks"):
        return None
    parts = target.split("/")
    local = (root / path).parent / target
    if parts[0] != "heirloom":
        if local.is_file():
            home = local.resolve().relative_to(root)
        elif (root / target).is_file():
            home = Path(target)
        else:
            return "names no file beside this one or below the root"
        if path.parts[0] == "kernels":
            return None if home.parts[0] == "kernels" else "leaves kernels/"
        if home.parts[0] == "kernels":
            return "reaches into kernels/, past the kernel tables"
        here, there = layer_of(path), layer_of(home)
        return None if here == there else f"reaches into the private headers of {there or home}"
    if not (root / "include" / target).is_file():
        return "names no public header"
    there = parts[1]
    if path.parts[0] == "kernels":
        if there == "kernels" or (there == "core" and parts[2] in KERNEL_CORE_HEADERS):
            return None
        if target == "heirloom/io/file.h" and path.parts[1:3] == ("cuda", "plan"):
            return None  # the file of pinned algorithms
        return f"kernels/ sees heirloom/kernels and heirloom/core/{{{','.join(sorted(KERNEL_CORE_HEADERS))}}} only"
    here = layer_of(path)
    if here not in LADDER:
        return f"{here} is not a layer of tools/check_layers.py"
    if there in LADDER[here]:
        return None
    return f"{here} may include {', '.join(sorted(LADDER[here]))} only"


def check(root, path, errors, warnings):
    name = path.as_posix()
    try:
        lines = (root / path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        errors.append(f"{name}:1: expected UTF-8")
        return
    if not any(LICENCE in line for line in lines[:3]):
        errors.append(f"{name}:1: expected '{LICENCE}' in the first lines")
    if path.suffix not in CODE_SUFFIXES:
        return
    limit = MAX_KERNEL_LINES if path.parts[0] == "kernels" else MAX_LINES
    if len(lines) > limit:
        warnings.append(f"{name}:{limit}: {len(lines)} lines; past {limit} a file is asking to be two")
    if path.parts[0] == "tests":
        return
    for number, line in enumerate(lines, 1):
        include = INCLUDE.match(line)
        if include:
            problem = include_problem(root, path, include[1])
            if problem:
                errors.append(f'{name}:{number}: includes "{include[1]}": {problem}')
        elif CUDA_CONDITION.match(line) and name not in CUDA_CONDITION_FILES:
            errors.append(f"{name}:{number}: a CUDA condition outside {', '.join(sorted(CUDA_CONDITION_FILES))}")
        elif SCHEME_COMPARED.search(line.split("//")[0]) and not NAMING_FILES.fullmatch(name):
            errors.append(f"{name}:{number}: asks for a variant by name outside src/model/{{kv_plan*,config*,families/}}; "
                          "ask the plan or the layout what it needs instead")


def main():
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent).resolve()
    errors, warnings, count = [], [], 0
    for folder in ("include", "src", "kernels", "tools", "tests", "benchmarks"):
        for file in sorted((root / folder).rglob("*")):
            if file.is_file() and file.suffix in CODE_SUFFIXES | {".sh", ".py"}:
                count += 1
                check(root, file.relative_to(root), errors, warnings)
    for message in warnings:
        print(f"warning: {message}")
    for message in errors:
        print(message)
    if count == 0:
        print(f"{root}: expected source files; found none")
        return 1
    print(f"layers: {count} files, {len(errors)} errors, {len(warnings)} warnings")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
