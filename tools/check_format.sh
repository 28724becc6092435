#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: tools/check_format.sh [--fix]
# Holds every C++ file to .clang-format with clang-format 14 (others lay code out differently); --fix rewrites the files.
set -euo pipefail
cd "$(dirname "$0")/.."
format=clang-format-14
if ! command -v $format > /dev/null; then
  echo "format: expected clang-format-14; tools/setup.sh installs it" >&2
  exit 1
fi
mode=(--dry-run -Werror)
case "${1:-}" in
  "") ;;
  --fix) mode=(-i) ;;
  *)
    echo "usage: tools/check_format.sh [--fix]" >&2
    exit 2
    ;;
esac
folders=()
for folder in include src kernels tools tests benchmarks; do
  if [ -d "$folder" ]; then folders+=("$folder"); fi
done
find "${folders[@]}" -type f \( -name '*.h' -o -name '*.hpp' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \) -print0 |
  sort -z | xargs -0 -r -n 8 -P "$(nproc)" $format "${mode[@]}"
echo "format: fine"
