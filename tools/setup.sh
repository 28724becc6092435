#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: tools/setup.sh [--minimal]
# Installs the Debian/Ubuntu packages that building and testing need, and does nothing when they are all there.
# --minimal leaves out what only tests need (ccache, clang, clang-format): enough for tools/quickstart.sh.
set -euo pipefail

packages=(
  g++ cmake ninja-build pkg-config python3
  libdnnl-dev          # matrix products
  ocl-icd-opencl-dev   # nothing here uses OpenCL, but Debian's oneDNN package looks for it
  libcli11-dev         # command line
  libeigen3-dev        # singular values, for conversion
  nlohmann-json3-dev libfmt-dev libpcre2-dev libutf8proc-dev libzstd-dev zlib1g-dev
  libgtest-dev libgmock-dev
  bible-kjv            # the quickstart's text
)
# Formatting is checked with version 14: other versions lay code out differently.
test_packages=(ccache clang libclang-rt-14-dev clang-format-14)

case "${1:-}" in
  "") packages+=("${test_packages[@]}") ;;
  --minimal) ;;
  *)
    echo "usage: tools/setup.sh [--minimal]" >&2
    exit 2
    ;;
esac

missing=()
for package in "${packages[@]}"; do
  state=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2> /dev/null || true)
  [ "$state" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  echo "setup: all ${#packages[@]} packages are there"
  exit 0
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo > /dev/null; then
    echo "setup: expected root or sudo, to install ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi
echo "setup: installing ${missing[*]}"
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300)
"${apt[@]}" update || echo "setup: apt-get update failed; trying with the lists that are there" >&2
"${apt[@]}" install -y --no-install-recommends "${missing[@]}" > /dev/null
echo "setup: done"
