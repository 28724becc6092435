#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: tools/quickstart.sh
# The whole way in minutes on 2 cores: builds Heirloom, takes a real text (the King James Bible), trains a tokenizer and two
# small models on it, plain multi-head attention and SkipV1Former, with the same seed and data order, and compares validation
# loss, perplexity, KV cache, speed and text. Everything lands in quickstart/; a second run keeps what is there and continues
# where the first was stopped.
#
# QUICKSTART_STEPS (600): training steps of each model.   QUICKSTART_OUT (quickstart/): where the files go.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
steps=${QUICKSTART_STEPS:-600}
out=${QUICKSTART_OUT:-$root/quickstart}
heirloom=$root/build/release/heirloom
models=(mha skipv1)
dtype=float32
if grep -qw avx512_bf16 /proc/cpuinfo; then dtype=bfloat16; fi  # twice the speed where the processor multiplies it
export CCACHE_DIR=${CCACHE_DIR:-$root/.cache/ccache}  # nothing is written outside the checkout

step() { printf '\n[%3d s] %s\n' $SECONDS "$1"; }
quietly() {  # quietly LOG COMMAND...: shows the output only on a terminal, or when the command fails
  local log=$1
  shift
  if [ -t 1 ]; then
    "$@"
  elif ! "$@" > "$log" 2>&1; then
    cat "$log" >&2
    return 1
  fi
}
mkdir -p "$out"

step "Installing what is missing"
"$root/tools/setup.sh" --minimal

step "Building build/release/heirloom"
cd "$root"
quietly "$out/configure.log" cmake --preset release
quietly "$out/build.log" cmake --build --preset release --target heirloom
cd "$out"

step "Text: the King James Bible, a paragraph per chapter; nine books are held out"
if [ ! -s validation.txt ]; then
  # Lines are "Ge1:2 And the earth was without form ...".
  bible -f 'gen1:1-rev22:21' | awk '
    BEGIN { split("Ruth Est Lam Hos Jonah Mark Gal Jas 1Jn", names); for (i in names) held_out[names[i]] = 1 }
    {
      match($0, /^[0-9]?[A-Za-z]+/)
      file = (substr($0, 1, RLENGTH) in held_out) ? "validation.part" : "train.part"
      chapter = substr($0, 1, index($0, ":"))
      sub(/^[^ ]* /, "")
      printf "%s%s", !begun[file]++ ? "" : chapter == last ? " " : "\n\n", $0 > file
      last = chapter
    }'
  mv train.part train.txt
  mv validation.part validation.txt
fi
wc -c train.txt validation.txt | awk '$2 != "total" { printf "  %-15s %4.1f MB\n", $2, $1 / 1e6 }'

step "Tokenizer: byte-level BPE with 2048 tokens, and token shards"
if [ ! -s tokenizer/tokenizer.json ]; then
  "$heirloom" tokenizer train --in train.txt --vocab-size 2048 --out tokenizer
fi
for split in train validation; do
  if [ ! -s $split.bin.json ]; then
    "$heirloom" data prepare --tokenizer tokenizer --in $split.txt --out $split.bin --quiet
  fi
done

for model in "${models[@]}"; do
  step "Training $model: $steps steps of 1024 tokens in $dtype"
  sharing='{"scheme": "none"}'
  if [ $model = skipv1 ]; then sharing='{"scheme": "skipv1", "ratio": 0.5}'; fi
  cat > $model.json << JSON
{
  "model": {
    "model_type": "heirloom", "vocab_size": 2048, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6,
    "num_attention_heads": 6, "max_position_embeddings": 512, "tie_word_embeddings": true,
    "bos_token_id": 0, "eos_token_id": 0, "kv_sharing": $sharing
  },
  "data": {"train": "train.bin", "validation": "validation.bin", "tokenizer": "tokenizer"},
  "train": {
    "steps": $steps, "batch_size": 8, "sequence_length": 128, "seed": 1, "dtype": "$dtype",
    "eval_every": 200, "eval_batches": 0, "save_every": 100, "keep": 1, "sample_prompt": "And the LORD said unto Moses,"
  },
  "optimizer": {"lr": 3e-3, "weight_decay": 0.1, "grad_clip": 1.0},
  "schedule": {"name": "cosine", "warmup_ratio": 0.1, "min_lr_ratio": 0.1},
  "output": "$model"
}
JSON
  "$heirloom" train --config $model.json --dry-run --json $model.plan.json --quiet
  "$heirloom" train --config $model.json
done

step "Perplexity on the held-out books, text from three prompts, KV cache"
cat > prompts.jsonl << 'JSONL'
{"id": "moses", "prompt": "And the LORD said unto Moses,"}
{"id": "king", "prompt": "Now it came to pass in the days of the king"}
{"id": "blessed", "prompt": "Blessed are"}
JSONL
for model in "${models[@]}"; do
  "$heirloom" perplexity --model $model/final --data validation.txt --context 128 --stride 64 --quiet --json $model.perplexity.json > /dev/null
  rm -f $model.generated.jsonl
  "$heirloom" generate --model $model/final --prompts prompts.jsonl --out $model.generated.jsonl --max-new-tokens 48 \
    --temperature 0.7 --top-k 40 --seed 1 --quiet --json $model.generate.json
  "$heirloom" kv --model $model/final --json $model.kv.json --quiet > /dev/null
done

step "Result"
python3 - "${models[@]}" << 'PYTHON'
import json, statistics, sys

def read(name):
    with open(name, encoding="utf-8") as file:
        return json.load(file)

def lines(name):
    with open(name, encoding="utf-8") as file:
        return [json.loads(line) for line in file]

titles = {"mha": "multi-head attention", "skipv1": "SkipV1Former"}
row = "{:<21} {:>11} {:>10} {:>10} {:>14} {:>12} {:>11} {:>11}"
print(row.format("model", "parameters", "val. loss", "perplexity", "KV bytes/token", "KV reduction", "train tok/s", "gen. tok/s"))
for model in sys.argv[1:]:
    metrics = lines(f"{model}/metrics.jsonl")
    loss = [m["val_loss"] for m in metrics if "val_loss" in m][-1]
    speed = statistics.median(m["tokens_per_second"] for m in metrics if "tokens_per_second" in m)
    kv = read(f"{model}.kv.json")
    print(row.format(titles[model], f'{read(f"{model}.plan.json")["parameters"]["total"]:,}', f"{loss:.4f}",
                     f'{read(f"{model}.perplexity.json")["perplexity"]:.2f}', f'{kv["bytes_per_token"]:,}',
                     f'{100 * kv["reduction"]:.1f} %', f"{speed:,.0f}",
                     f'{read(f"{model}.generate.json")["decode_tokens_per_second"]:,.0f}'))
prompts = {p["id"]: p["prompt"] for p in lines("prompts.jsonl")}
for model in sys.argv[1:]:
    print(f"\n{titles[model]}:")
    for answer in sorted(lines(f"{model}.generated.jsonl"), key=lambda a: list(prompts).index(a["id"])):
        print("  " + " ".join((prompts[answer["id"]] + answer["text"]).split()))
PYTHON
printf '\nLoss curves: %s/{mha,skipv1}/report.html. Models: %s/{mha,skipv1}/final. Done in %d s.\n' "$out" "$out" $SECONDS
