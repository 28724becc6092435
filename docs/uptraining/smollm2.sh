#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: docs/uptraining/smollm2.sh SmolLM2-135M-Instruct.Q4_1.gguf TRAIN.txt VALIDATION.txt
# The second example of docs/uptraining.md: a published model, converted by each method without training, and one conversion
# uptrained for STEPS (40) steps of 1,024 tokens; beside it the original trained by the same steps, since books are new to it
# too. Runs lie in build/smollm2 (OUT); what is finished is not done again.
set -euo pipefail
[ $# -eq 3 ] || { sed -n '3p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
heirloom=$(realpath "${HEIRLOOM:-$here/../../build/release/heirloom}")
gguf=$(realpath "$1") train=$(realpath "$2") validation=$(realpath "$3")
out=${OUT:-$here/../../build/smollm2}
threads=${THREADS:-0}
steps=${STEPS:-40}
mkdir -p "$out" && cd "$out"

[ -s original/model.safetensors ] || "$heirloom" convert --from "$gguf" --out original --quiet
for split in train validation; do
  [ -s $split.bin.json ] ||
    "$heirloom" data prepare --tokenizer original --in "${!split}" --separator '<|endoftext|>' --out $split.bin --quiet
done

# uptrain RUN SHARING METHOD STEPS: 0 steps only evaluate what was converted.
uptrain() {
  [ -s "$1.json" ] || "$heirloom" uptrain --from original --kv-sharing "$2" --method "$3" --output "$1" --threads "$threads" \
    --set train.steps="$4" --config "$here/smollm2.json" --quiet --json "$1.json" > /dev/null
}
third='{"scheme": "skipv1", "ratio": 0.66666667}'   # of 3 value heads a layer keeps 1
two_thirds='{"scheme": "skipv1", "ratio": 0.33333333}'
uptrain skipv1 "$third" mean-v "$steps"
uptrain control none mean-v "$steps"
for method in mean-vo top-v top-vo; do uptrain skipv1-$method "$third" $method 0; done
uptrain skipv1-two-top-v "$two_thirds" top-v 0
uptrain cla-v '{"scheme": "cla-v", "group": 2}' mean-v 0
python3 - skipv1 control skipv1-mean-vo skipv1-top-v skipv1-top-vo skipv1-two-top-v cla-v << 'PYTHON'
import json, sys
print(f"{'run':<20} {'KV bytes/token':>14} {'original':>9} {'converted':>9} {'uptrained':>9}")
for name in sys.argv[1:]:
    run = json.load(open(name + ".json"))
    loss = run["validation_loss"]
    print(f"{name:<20} {run['conversion']['after']['kv_bytes_per_token']:>14} {loss['original']:9.4f} {loss['converted']:9.4f} {loss['uptrained']:9.4f}")
PYTHON
