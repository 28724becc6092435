#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: tests/fuzz/run.sh SECONDS [TARGET...]
# Builds the fuzz targets with clang++ in build/fuzz and runs each for SECONDS from its seeds. What it finds on the way is kept
# in build/fuzz/corpus/<target>; an input that crashes is left in build/fuzz/crashes, and the script fails.
set -euo pipefail
seconds=${1:?usage: tests/fuzz/run.sh SECONDS [TARGET...]}
shift
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$root/build/fuzz
launcher=()
if command -v ccache > /dev/null; then launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi
generator=()
if command -v ninja > /dev/null; then generator=(-G Ninja); fi
cmake -S "$root/tests/fuzz" -B "$build" "${generator[@]}" -DCMAKE_CXX_COMPILER="${CLANGXX:-clang++}" \
  -DCMAKE_BUILD_TYPE=None "${launcher[@]}" > /dev/null

targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
  for source in "$root"/tests/fuzz/*.cpp; do targets+=("$(basename "$source" .cpp)"); done
fi
cmake --build "$build" --target "${targets[@]/#/heirloom_fuzz_}"

failed=()
mkdir -p "$build/crashes"
for target in "${targets[@]}"; do
  found=$build/corpus/$target
  mkdir -p "$found"
  echo "== $target: $seconds s"
  dictionary=()
  if [ -f "$root/tests/fuzz/$target.dict" ]; then dictionary=(-dict="$root/tests/fuzz/$target.dict"); fi
  log=$build/$target.log
  if "$build/heirloom_fuzz_$target" -max_total_time="$seconds" -max_len=65536 -timeout=20 -rss_limit_mb=2048 \
    -print_final_stats=1 "${dictionary[@]}" -artifact_prefix="$build/crashes/$target-" \
    "$found" "$root/tests/fuzz/corpus/$target" > "$log" 2>&1; then
    grep '^stat::number_of_executed_units\|^stat::new_units' "$log"
  else
    tail -n 60 "$log"
    failed+=("$target")
  fi
done
if [ ${#failed[@]} -gt 0 ]; then
  echo "fuzzing failed: ${failed[*]}; inputs are in $build/crashes" >&2
  exit 1
fi
echo "fuzzing passed: ${targets[*]}"
