#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tools/check_layers.py finds what it is there to find, and accepts what is allowed."""

import subprocess
import sys
import tempfile
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent.parent.parent / "tools" / "check_layers.py"
LICENCE = "// SPDX-License-Identifier: Apache-2.0\n"

FINE = {
    "include/heirloom/core/dtype.h": LICENCE,
    "include/heirloom/core/tensor.h": LICENCE,
    "include/heirloom/io/json.h": LICENCE + '#include "heirloom/core/dtype.h"\n',
    "include/heirloom/kernels/norm.h": LICENCE + '#include "heirloom/core/dtype.h"\n',
    "include/heirloom/train/trainer.h": LICENCE + '#include "heirloom/io/json.h"\n',
    "include/heirloom/decode/engine.h": LICENCE,
    "kernels/cpu/norm.cpp": LICENCE + '#include "heirloom/kernels/norm.h"\n#include "kernels/cpu/simd.h"\n',
    "kernels/cpu/simd.h": LICENCE,
    "src/train/private.h": LICENCE,
    "src/train/trainer.cpp": LICENCE + '#include "private.h"\n',
    "src/model/kv_plan.cpp": LICENCE + 'bool b = scheme == "skipv1";\n',
    "src/core/device.cpp": LICENCE + "#ifdef HEIRLOOM_CUDA\n#endif\n",
    "tools/heirloom/train.cpp": LICENCE + '#include "heirloom/train/trainer.h"\n#include "heirloom/decode/engine.h"\n',
}
# Each file alone, added to the fine ones, has to give an error in this line.
WRONG = {
    "core looks up": ("src/core/a.cpp", '#include "heirloom/io/json.h"\n', 2),
    "train sees decode": ("src/train/a.cpp", '\n#include "heirloom/decode/engine.h"\n', 3),
    "a kernel sees tensors": ("kernels/cpu/a.cpp", '#include "heirloom/core/tensor.h"\n', 2),
    "past the kernel tables": ("src/train/a.cpp", '#include "kernels/cpu/simd.h"\n', 2),
    "another layer's private header": ("src/decode/a.cpp", '#include "../train/private.h"\n', 2),
    "no such header": ("src/train/a.cpp", '#include "heirloom/train/absent.h"\n', 2),
    "CUDA condition": ("src/train/a.cpp", "#if defined(HEIRLOOM_CUDA)\n#endif\n", 2),
    "variant by name": ("src/train/a.cpp", 'bool b = name == "yoco-v";\n', 2),
    "unknown layer": ("src/extra/a.cpp", '#include "heirloom/io/json.h"\n', 2),
}


def check(files):
    with tempfile.TemporaryDirectory() as name:
        for path, text in files.items():
            file = Path(name) / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        result = subprocess.run([sys.executable, SCRIPT, name], capture_output=True, text=True, check=False)
        return result.returncode, result.stdout


def main():
    failures = []
    code, out = check(FINE)
    if code != 0:
        failures.append(f"expected the fine tree to pass; got {code}: {out}")
    for name, (path, text, line) in WRONG.items():
        code, out = check(FINE | {path: LICENCE + text})
        if code != 1 or f"{path}:{line}: " not in out or " 1 errors" not in out:
            failures.append(f"{name}: expected one error at {path}:{line}; got {code}: {out}")
    code, out = check(FINE | {"src/core/a.cpp": "int a;\n"})
    if code != 1 or "src/core/a.cpp:1: " not in out:
        failures.append(f"no licence: expected an error; got {code}: {out}")
    code, out = check({})
    if code != 1:
        failures.append("an empty tree: expected an error; got none")
    print("\n".join(failures) or f"check_layers_test: {len(WRONG) + 3} cases passed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
