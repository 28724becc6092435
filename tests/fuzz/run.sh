#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: tests/fuzz/run.sh SECONDS [TARGET...]
# Builds the fuzz targets with clang++ in build/fuzz and runs each for SECONDS from its seeds, as many at once as there are
# cores. What it finds on the way is kept in build/fuzz/corpus/<target>; an input that crashes is left in build/fuzz/crashes,
# and the script fails.
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

mkdir -p "$build/crashes"
fuzz() {  # fuzz TARGET: in the background; its verdict is in the exit code
  local target=$1 dictionary=()
  if [ -f "$root/tests/fuzz/$target.dict" ]; then dictionary=(-dict="$root/tests/fuzz/$target.dict"); fi
  mkdir -p "$build/corpus/$target"
  "$build/heirloom_fuzz_$target" -max_total_time="$seconds" -max_len=65536 -timeout=20 -rss_limit_mb=2048 \
    -print_final_stats=1 "${dictionary[@]}" -artifact_prefix="$build/crashes/$target-" \
    "$build/corpus/$target" "$root/tests/fuzz/corpus/$target" > "$build/$target.log" 2>&1
}

# As many at once as there are cores.
declare -A running=()
failed=()
cores=$(nproc)
for ((next = 0; next < ${#targets[@]} || ${#running[@]} > 0;)); do
  if ((next < ${#targets[@]} && ${#running[@]} < cores)); then
    fuzz "${targets[next]}" &
    running[$!]=${targets[next++]}
    continue
  fi
  code=0
  wait -n -p finished "${!running[@]}" || code=$?
  target=${running[$finished]}
  unset "running[$finished]"
  if [ $code -eq 0 ]; then
    echo "$target, $seconds s: $(sed -n 's/^stat::number_of_executed_units: *//p' "$build/$target.log") inputs"
  else
    tail -n 60 "$build/$target.log"
    failed+=("$target")
  fi
done
if [ ${#failed[@]} -gt 0 ]; then
  echo "fuzzing failed: ${failed[*]}; inputs are in $build/crashes" >&2
  exit 1
fi
echo "fuzzing passed: ${targets[*]}"
