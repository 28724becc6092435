#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tools/kernel_table.py: names, occupancy, and what its gate lets pass."""

import copy
import importlib.util
import unittest
from pathlib import Path

PATH = Path(__file__).resolve().parent.parent.parent / "tools/kernel_table.py"
spec = importlib.util.spec_from_file_location("kernel_table", PATH)
kernel_table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernel_table)


def record(operation="adamw", **ratios):
    kernel = {"name": "k<float>", "launches": 1, "blocks": 1, "threads": 256, "dynamic_shared": 0}
    case = {"operation": operation, "dtype": "float32", "shape": "N 1", "kernels": [kernel],
            "ratios": {"bytes": 1.0, "sectors": 1.0, "wavefronts": None, **ratios}}
    return {"kernels": {"k<float>": {"registers": 40, "spill_stores": 0, "spill_loads": 0, "static_shared": 0}}, "cases": [case],
            "models": []}


class KernelTableTest(unittest.TestCase):
    def test_names_of_both_compilers_agree(self):
        name = lambda s: kernel_table.canonical(kernel_table.short_name(s))
        nvcc = "void heirloom::cuda::_GLOBAL__N__1a2b_7_norm_cu_00::rows_kernel<heirloom::bfloat16, (int)4, (bool)1>(heirloom::P)"
        self.assertEqual(name(nvcc), "rows_kernel<bfloat16,4,true>")
        self.assertEqual(name(nvcc), kernel_table.canonical("rows_kernel<heirloom::bfloat16, 4, true>"))
        self.assertEqual(name("heirloom::cuda::(anonymous namespace)::end_kernel(heirloom::cuda::(anonymous namespace)::P)"), "end_kernel")

    def test_occupancy(self):
        self.assertEqual(kernel_table.occupancy(32, 256, 0), (8, 1.0))
        self.assertEqual(kernel_table.occupancy(255, 128, 0)[0], 2)
        self.assertEqual(kernel_table.occupancy(128, 128, 100 * 1024)[0], 2)

    def test_the_same_figures_pass(self):
        self.assertEqual(kernel_table.compare(record(), record()), [])

    def test_worse_figures_fail(self):
        for change in ("registers", "spill_stores", "spill_loads"):
            new = record()
            new["kernels"]["k<float>"][change] += 1
            self.assertEqual(len(kernel_table.compare(record(), new)), 1, change)
        for ratios in ({"bytes": 1.06}, {"bytes": 0.9}, {"sectors": 1.06}, {"wavefronts": 2.0}):
            self.assertEqual(len(kernel_table.compare(record(), record(**ratios))), 1, ratios)
        self.assertEqual(kernel_table.compare(record(), record(bytes=1.04)), [])

    def test_explained_figures_must_not_get_worse(self):
        old = record("attention_backward", bytes=1.5)
        self.assertEqual(kernel_table.compare(old, copy.deepcopy(old)), [])
        self.assertEqual(len(kernel_table.compare(old, record("attention_backward", bytes=1.6))), 1)

    def test_what_disappears_is_noticed(self):
        new = record()
        new["cases"][0]["shape"] = "N 2"
        self.assertEqual(len(kernel_table.compare(record(), new)), 1)
        new = record()
        new["kernels"] = {}
        self.assertEqual(len(kernel_table.compare(record(), new)), 1)


if __name__ == "__main__":
    unittest.main()
