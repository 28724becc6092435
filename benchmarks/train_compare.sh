#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: benchmarks/train_compare.sh [--rounds 3] [--steps 8] [--model llama-60m] [--shapes "256x8 1024x2"]
#                                    [--dtypes "float32 bfloat16"] [--threads 2] [--python python3]
# Training tokens/s of `heirloom train` and of PyTorch (benchmarks/peers/train_torch.py, eager and compiled; --python names an
# interpreter that has torch), on a random shard. The programs take turns within each round, so that a clock that moves moves
# all of them; each number is the median of all measured steps. Shapes are TOKENSxSEQUENCES. Files: build/train-compare/.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
rounds=3 steps=8 model=llama-60m shapes="256x8 1024x2" dtypes="float32 bfloat16" threads=2 python=python3
while [ $# -gt 0 ]; do
  case "$1" in
    --rounds | --steps | --model | --shapes | --dtypes | --threads | --python)
      declare "${1#--}=${2:?$1 wants a value}"
      shift 2
      ;;
    *)
      sed -n '3,7s/^# //p' "$0" >&2
      exit 2
      ;;
  esac
done
heirloom=${HEIRLOOM_BINARY:-$root/build/release/heirloom}
warmup=3
work=$root/build/train-compare
rm -rf "$work"
mkdir -p "$work"
export OMP_NUM_THREADS=$threads

python3 - "$work/random.bin" "$root/configs/models/$model.json" << 'PYTHON'
import json, random, struct, sys
tokens, vocabulary = 200_000, json.load(open(sys.argv[2]))["vocab_size"]
with open(sys.argv[1], "wb") as file:
    file.write(struct.pack("<256i", 20240520, 1, tokens, *([0] * 253)))
    file.write(struct.pack(f"<{tokens}H", *(random.randrange(vocabulary) for _ in range(tokens))))
PYTHON

ours() {  # ours PRESET LENGTH BATCH DTYPE ROUND: the tokens_per_second of each measured step
  local run=$work/$1-$2x$3-$4-$5
  "$heirloom" train --preset "$1" --set "data.train=$work/random.bin" --set "output=$run" --set "train.dtype=$4" \
    --set "train.steps=$((warmup + steps))" --set "train.batch_size=$3" --set train.micro_batch_size=0 \
    --set "train.sequence_length=$2" --set optimizer.grad_clip=1.0 --set optimizer.weight_decay=0.1 \
    --threads "$threads" --quiet
  sed -n 's/.*"tokens_per_second": *\([0-9.e+]*\).*/\1/p' "$run/metrics.jsonl" | tail -n +$((warmup + 1))
  rm -rf "$run"
}
peer() {  # peer MODE LENGTH BATCH DTYPE
  "$python" "$root/benchmarks/peers/train_torch.py" --mode "$1" --dtype "$4" --steps "$steps" --warmup "$warmup" \
    --sequence-length "$2" --batch-size "$3" --threads "$threads" --model "$root/configs/models/$model.json" |
    tee -a "$work/torch.jsonl" | sed -n 's/.*"tokens_per_second": \([0-9.e+]*\).*/\1/p'
}

for round in $(seq "$rounds"); do
  for dtype in $dtypes; do
    for shape in $shapes; do
      length=${shape%x*} batch=${shape#*x}
      echo "round $round of $rounds: $dtype, $shape" >&2
      ours "$model" "$length" "$batch" "$dtype" "$round" >> "$work/$dtype-$shape-heirloom"
      ours "$model-skipv1" "$length" "$batch" "$dtype" "$round" >> "$work/$dtype-$shape-skipv1"
      peer eager "$length" "$batch" "$dtype" >> "$work/$dtype-$shape-eager"
      peer compile "$length" "$batch" "$dtype" >> "$work/$dtype-$shape-compile"
    done
  done
done

median() { sort -g "$1" | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
printf '%s training, tokens/s, %s threads, medians over %s rounds of %s steps\n' "$model" "$threads" "$rounds" "$steps"
printf '%-10s %-10s %10s %10s %12s %14s %16s\n' dtype "T x B" heirloom skipv1 "torch eager" "torch compile" "against better"
for dtype in $dtypes; do
  for shape in $shapes; do
    a=$(median "$work/$dtype-$shape-heirloom") s=$(median "$work/$dtype-$shape-skipv1")
    e=$(median "$work/$dtype-$shape-eager") c=$(median "$work/$dtype-$shape-compile")
    awk -v d="$dtype" -v t="${shape/x/ x }" -v a="$a" -v s="$s" -v e="$e" -v c="$c" \
      'BEGIN { printf "%-10s %-10s %10.0f %10.0f %12.0f %14.0f %15.2fx\n", d, t, a, s, e, c, a / (e > c ? e : c) }'
  done
done
