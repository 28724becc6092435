#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: docs/uptraining/run.sh TRAIN.txt VALIDATION.txt [SEED...]
# The worked example of docs/uptraining.md, [1 2 3] by default: for every seed an MHA model and SkipV1Former from scratch, the
# MHA model converted by every method, and uptrained for 5, 10 and 15 % of its steps. Texts are files of books, separated by a
# line <|endoftext|>. Runs lie in build/uptraining (OUT); whatever is finished is not done again, so the script can be stopped
# and started at will. Each seed ends in docs/uptraining/results/seed-N.json; summary.py makes the tables of them.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '3,4p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
heirloom=$(realpath "${HEIRLOOM:-$here/../../build/release/heirloom}")
train=$(realpath "$1") validation=$(realpath "$2")
shift 2
seeds=("${@:-1 2 3}")
out=${OUT:-$here/../../build/uptraining}
threads=${THREADS:-0}
sharing='{"scheme": "skipv1", "ratio": 0.5}'
mkdir -p "$out" && cd "$out"

prepare() {  # prepare TEXT SHARD
  [ -s "$2.json" ] || "$heirloom" data prepare --tokenizer tokenizer --in "$1" --separator '<|endoftext|>' --out "$2" --quiet
}
[ -s tokenizer/tokenizer.json ] ||
  "$heirloom" tokenizer train --in "$train" --separator '<|endoftext|>' --vocab-size 2048 --out tokenizer --quiet
prepare "$train" train.bin
prepare "$validation" validation.bin

pretrain() {  # pretrain RUN SEED SHARING
  "$heirloom" train --config "$here/pretrain.json" --set output="$1" --set train.seed="$2" --set model.kv_sharing="$3" \
    --threads "$threads" --quiet
}
uptrain() {  # uptrain RUN OPTION...
  local run=$1
  shift
  [ -s "$run.json" ] || "$heirloom" uptrain --from "$seed_dir/mha/final" --from-scratch "$seed_dir/skipv1" \
    --kv-sharing "$sharing" --output "$run" --threads "$threads" --quiet --json "$run.json" "$@" > /dev/null
}

for seed in ${seeds[@]}; do
  seed_dir=seed-$seed
  pretrain $seed_dir/mha "$seed" '{"scheme": "none"}'
  pretrain $seed_dir/skipv1 "$seed" "$sharing"
  for method in mean-v mean-vo top-v top-vo svd; do
    uptrain $seed_dir/$method-0 --method $method --set train.steps=0
  done
  for share in 05 10 15; do uptrain $seed_dir/mean-v-$share --share 0.$share; done
  python3 "$here/summary.py" collect $seed_dir "$here/results/seed-$seed.json"
done
python3 "$here/summary.py" tables "$here"/results/seed-*.json
python3 "$here/summary.py" chart "$here/../images/uptraining.svg" "$here"/results/seed-*.json
