#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: tools/test.sh [--full]
# Installs what is missing, builds, and tests: layering, formatting, the core and the readers of outside files under
# address and undefined-behaviour sanitizers, a few seconds of every fuzz target, the CUDA kernels executed by the emulator
# (plain with one seed; instrumented: races, bounds, uninitialised reads, traffic), and the whole suite in release; its
# summary comes last. At most 25 minutes on 2 cores from a clean clone.
# --full (45 minutes): warnings are errors, the whole suite under the sanitizers, longer fuzzing, 50 kills of a training run
# at random moments, the quickstart at a fraction of its length, the emulated kernels under address sanitizer and with more
# seeds, and, where nvcc is there, the build for GPUs and the table of its registers and spills.
# On a machine with a GPU the CUDA suite runs on it by itself (HEIRLOOM_REQUIRE_CUDA=1: and must).
# Every part runs even when an earlier one has failed; the exit code is 0 only when all have passed.
#
# HEIRLOOM_TEST_DATA: a folder of outside data (models, tokenizers, texts); tests that want it say what they skip without.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"

full=false
case "${1:-}" in
  "") ;;
  --full) full=true ;;
  *)
    echo "usage: tools/test.sh [--full]" >&2
    exit 2
    ;;
esac
if $full; then fuzz_seconds=20 kills=50 strict=ON; else fuzz_seconds=5 kills=0 strict=OFF; fi
export CCACHE_DIR=${CCACHE_DIR:-$root/.cache/ccache}  # nothing is written outside the checkout
export CTEST_OUTPUT_ON_FAILURE=1

failed=()
# part NAME COMMAND...: runs a part, says how long it took, and remembers when it fails.
part() {
  local name=$1 begin=$SECONDS verdict=passed
  shift
  printf '\n== %s\n' "$name"
  "$@" || { verdict=FAILED && failed+=("$name"); }
  printf '== %s: %s (%d s, %d s in all)\n' "$name" "$verdict" $((SECONDS - begin)) $SECONDS
}

build() {  # build PRESET [target...]; ccache shares what presets compile alike
  local preset=$1
  shift
  cmake --preset "$preset" -DHEIRLOOM_WERROR=$strict > /dev/null && cmake --build --preset "$preset" ${1:+--target "$@"}
}

# The tests that read outside bytes, in five binaries; of the model's, those without arithmetic.
reader_tests() {
  local name
  build sanitize heirloom_{core,io,tokenizer,data,model}_tests || return 1
  for name in core io tokenizer data; do
    "build/sanitize/tests/heirloom_${name}_tests" --gtest_brief=1 || return 1
  done
  build/sanitize/tests/heirloom_model_tests --gtest_brief=1 --gtest_filter='-*VariantTest*:Identities*'
}

sanitized_suite() {
  build sanitize && ctest --test-dir build/sanitize --timeout 1200 -j 2
}

quickstart_smoke() {
  rm -rf build/quickstart-smoke
  QUICKSTART_OUT=$root/build/quickstart-smoke QUICKSTART_STEPS=20 tools/quickstart.sh
}

# cuda_tests PRESET NAME...: those tests of a build that run on its CUDA device.
cuda_tests() {
  local preset=$1 name
  shift
  for name in "$@"; do
    HEIRLOOM_TEST_DEVICES=cuda HEIRLOOM_REQUIRE_CUDA=1 HEIRLOOM_BINARY=build/$preset/heirloom \
      "build/$preset/tests/heirloom_${name}_tests" --gtest_brief=1 || return 1
  done
}

# Kernels by themselves, and training, samples and the command line on top of them.
emulated_suite() {
  build cuda-emulated heirloom heirloom_{kernels,cuda_emulator,train,decode,tools}_tests || return 1
  local seed
  for seed in 1 $($full && echo 2 3); do
    HEIRLOOM_EMULATOR_SEED=$seed cuda_tests cuda-emulated kernels cuda_emulator || return 1
  done
  GTEST_FILTER='*Cuda*' cuda_tests cuda-emulated train decode tools
}

instrumented_suite() {
  build cuda-instrumented heirloom_{kernels,cuda_emulator}_tests heirloom_cuda_model &&
    GTEST_FILTER='-RuntimeTest*' cuda_tests cuda-instrumented cuda_emulator kernels &&
    tools/kernel_table.py --check --skip-compiler
}

emulated_sanitized() {
  build cuda-sanitize heirloom_{kernels,cuda_emulator}_tests &&
    cuda_tests cuda-sanitize cuda_emulator kernels
}

nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2> /dev/null || true)
toolkit_build() { build cuda-release heirloom && tools/kernel_table.py --check; }

gpu_suite() {
  build cuda-release heirloom heirloom_{kernels,train,decode,tools}_tests || return 1
  cuda_tests cuda-release kernels && GTEST_FILTER='*Cuda*' cuda_tests cuda-release train decode tools
}

part "setup" tools/setup.sh
part "layers" tools/check_layers.py
part "format" tools/check_format.sh
if $full; then
  part "release build, warnings are errors" build release
  part "suite under sanitizers" sanitized_suite
else
  part "release build" build release
  part "core and readers under sanitizers" reader_tests
fi
part "fuzzing, $fuzz_seconds s each" tests/fuzz/run.sh $fuzz_seconds
if [ $kills -gt 0 ]; then
  part "killed and resumed, $kills times" tests/scripts/kill_resume.py --kills $kills
  part "quickstart, shortened" quickstart_smoke
fi
part "emulated CUDA" emulated_suite
part "emulated CUDA, instrumented" instrumented_suite
if $full; then
  part "emulated CUDA under address sanitizer" emulated_sanitized
  if [ -n "$nvcc" ]; then part "CUDA build and kernel table" toolkit_build; fi
fi
if [ -e /proc/driver/nvidia/version ] && [ -n "$nvcc" ]; then part "CUDA suite on the GPU" gpu_suite; fi

printf '\n'
if [ ${#failed[@]} -gt 0 ]; then
  printf 'FAILED before the suite: %s\n' "${failed[@]}"
else
  echo "passed so far: all other parts; the suite follows"
fi
code=0
ctest --test-dir build/release --timeout 1200 || code=$?
[ ${#failed[@]} -eq 0 ] || code=1
exit $code
