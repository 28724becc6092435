#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Kills `heirloom train` at random moments and holds the resumed runs to the uninterrupted one, bit for bit.

Usage: tests/scripts/kill_resume.py [--binary build/release/heirloom] [--kills 50] [--seed 0] [--dtype float32] [--uptrain]

One tiny run goes to its end undisturbed. Then, --kills times, the same run starts in a fresh folder, is killed with
SIGKILL at a random moment (one time in three its resumption is killed too), and is resumed until it finishes. After
every kill each checkpoint under its own name must be complete; at the end metrics.jsonl (loss, grad_norm, lr, tokens,
val_loss of every step, each once), final/ and the last checkpoint must equal the undisturbed run's. Last, SIGTERM,
SIGINT and SIGUSR1 must each save, exit with 75, and resume to the same end. With --uptrain the run is `heirloom uptrain`
from a plain model: conversion, reference losses and training.
"""

import argparse
import filecmp
import json
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VOCABULARY = 96
MODEL = {
    "model_type": "heirloom", "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 64,
    "kv_sharing": {"scheme": "skipv1", "ratio": 0.5},
}
STEP_KEYS = ("loss", "grad_norm", "lr", "tokens")


class Failure(Exception):
    pass


def expect(condition, message):
    if not condition:
        raise Failure(message)


def write_shard(path, tokens, generator):
    with open(path, "wb") as file:
        file.write(struct.pack("<256i", 20240520, 1, tokens, *([0] * 253)))
        file.write(struct.pack(f"<{tokens}H", *(generator.randrange(VOCABULARY) for _ in range(tokens))))


def write_config(folder, dtype, generator):
    write_shard(folder / "train.bin", 20_001, generator)
    write_shard(folder / "validation.bin", 2_001, generator)
    config = {
        "model": MODEL,
        "data": {"train": str(folder / "train.bin"), "validation": str(folder / "validation.bin")},
        "output": str(folder / "source"),
        "train": {"steps": 40, "batch_size": 8, "micro_batch_size": 4, "sequence_length": 64, "seed": 7, "dtype": dtype,
                  "eval_every": 10, "eval_batches": 2, "dropout": {"embedding": 0.1, "attention": 0.1, "residual": 0.1}},
        "optimizer": {"lr": 0.003},
        "schedule": {"name": "cosine", "warmup_steps": 5},
    }
    path = folder / "run.json"
    path.write_text(json.dumps(config))
    return path


class Runner:
    def __init__(self, binary, config, command):
        self.command = [str(binary), *command, "--config", str(config), "--threads", "1", "--quiet"]

    @classmethod
    def training(cls, binary, config):
        return cls(binary, config, ["train"])

    @classmethod
    def uptraining(cls, binary, config):
        """Of a model that the same config trains for three steps, without sharing."""
        plain = ["--set", "model.kv_sharing={\"scheme\": \"none\"}", "--set", "train.steps=3"]
        subprocess.run([str(binary), "train", "--config", str(config), "--threads", "1", "--quiet", *plain], check=True)
        run = json.loads(config.read_text())
        source = Path(run.pop("output")) / "final"
        run["convert"] = {"kv_sharing": run.pop("model")["kv_sharing"], "method": "mean-v"}
        config.write_text(json.dumps(run))
        return cls(binary, config, ["uptrain", "--from", str(source)])

    def start(self, output, save_every):
        return subprocess.Popen(
            self.command + ["--set", f"output={output}", "--set", f"train.save_every={save_every}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def finish(self, output, save_every):
        process = self.start(output, save_every)
        _, talk = process.communicate(timeout=120)
        expect(process.returncode == 0, f"expected exit code 0; got {process.returncode}: {talk.decode().strip()}")


def metric_lines(run):
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def numbers(run):
    """{("step", 1): (loss, ...), ("evaluation", 0): ...} of a finished run."""
    found = {}
    for line in metric_lines(run):
        if "loss" in line:
            key, value = ("step", line["step"]), tuple(line[name] for name in STEP_KEYS)
        elif "val_loss" in line:
            key, value = ("evaluation", line["step"]), line["val_loss"]
        else:
            continue
        expect(key not in found, f"expected one line per step in metrics.jsonl; got {key} twice")
        found[key] = value
    return found


def check_checkpoints(run):
    """Every checkpoint under its own name holds all files of complete.json in their sizes. Returns how many there are."""
    count = 0
    for checkpoint in sorted((run / "checkpoints").glob("step-*")):
        marker = checkpoint / "complete.json"
        expect(marker.is_file(), f"expected complete.json in {checkpoint.name}; got none")
        files = json.loads(marker.read_text())["files"]
        expect({"config.json", "model.safetensors", "optimizer.safetensors", "trainer.json"} <= files.keys(),
               f"expected weights, moments, config and position in {checkpoint.name}; got {sorted(files)}")
        for name, entry in files.items():
            size = (checkpoint / name).stat().st_size if (checkpoint / name).exists() else None
            expect(size == entry["bytes"], f"expected {entry['bytes']} bytes in {checkpoint.name}/{name}; got {size}")
        count += 1
    return count


def check_final(run, reference):
    final = run / "final"
    if final.exists():
        for file in (reference / "final").iterdir():
            expect((final / file.name).is_file(), f"expected final/{file.name}: final/ is complete or absent; got none")


def check_equal(run, reference):
    check_checkpoints(run)
    ours, theirs = numbers(run), numbers(reference)
    for key in sorted(theirs.keys() | ours.keys()):
        expect(ours.get(key) == theirs.get(key), f"expected {key} = {theirs.get(key)} ({STEP_KEYS}); got {ours.get(key)}")
    last = max(path.name for path in (reference / "checkpoints").glob("step-*"))
    for name in ("final/model.safetensors", f"checkpoints/{last}/model.safetensors",
                 f"checkpoints/{last}/optimizer.safetensors"):
        expect((run / name).is_file(), f"expected {name}; got none")
        expect(filecmp.cmp(run / name, reference / name, shallow=False), f"expected {name} to be the same bytes; it is not")


def kill_trial(runner, run, reference, duration, generator):
    """Returns the steps after which the run was killed."""
    save_every = generator.randint(1, 3)
    kills = 2 if generator.random() < 1 / 3 else 1
    moments = []
    for _ in range(kills):
        process = runner.start(run, save_every)
        try:
            process.wait(timeout=generator.uniform(0.05, 1.0) * duration)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stderr.close()
        check_checkpoints(run)
        check_final(run, reference)
        steps = [line["step"] for line in metric_lines(run) if "loss" in line]
        moments.append(max(steps, default=0))
    runner.finish(run, save_every)
    check_equal(run, reference)
    return moments


def signal_trial(runner, run, reference, number):
    process = runner.start(run, 1000)
    deadline = time.monotonic() + 60
    while process.poll() is None and sum("loss" in line for line in metric_lines(run)) < 2:
        expect(time.monotonic() < deadline, "expected two steps within a minute; got none")
        time.sleep(0.002)
    process.send_signal(number)
    _, talk = process.communicate(timeout=60)
    name = signal.Signals(number).name
    expect(process.returncode == 75, f"expected exit code 75 after {name}; got {process.returncode}: {talk.decode().strip()}")
    steps = max(line["step"] for line in metric_lines(run) if "loss" in line)
    expect(check_checkpoints(run) == 1, f"expected one checkpoint after {name}; got {check_checkpoints(run)}")
    expect((run / "checkpoints" / f"step-{steps:08d}").is_dir(), f"expected a checkpoint of step {steps} after {name}")
    runner.finish(run, 1000)
    check_equal(run, reference)
    return steps


def main():
    root = Path(__file__).resolve().parent.parent.parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=os.environ.get("HEIRLOOM_BINARY", root / "build/release/heirloom"))
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--uptrain", action="store_true")
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="heirloom-kill-resume-") as name:
        folder = Path(name)
        start = Runner.uptraining if arguments.uptrain else Runner.training
        runner = start(arguments.binary, write_config(folder, arguments.dtype, generator))
        reference = folder / "reference"
        begin = time.monotonic()
        runner.finish(reference, 2)
        duration = time.monotonic() - begin
        where, killed = "the undisturbed run", []
        try:
            expect(len(numbers(reference)) == 40 + 5, f"expected 40 steps and 5 evaluations; got {len(numbers(reference))} lines")
            check_equal(reference, reference)
            for trial in range(arguments.kills):
                where = f"kill {trial}"
                killed += kill_trial(runner, folder / f"kill-{trial}", reference, duration, generator)
            inside = sum(0 < step < 40 for step in killed)
            where = "the kills"
            expect(arguments.kills < 20 or inside >= arguments.kills // 4,
                   f"expected a fair share of kills between the first and the last step; got {inside} of {len(killed)}")
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                where = signal.Signals(number).name
                signal_trial(runner, folder / where, reference, number)
        except Failure as failure:
            print(f"kill_resume: {where} (seed {arguments.seed}): {failure}", file=sys.stderr)
            return 1
    print(f"kill_resume: {len(killed)} kills ({inside} between the first and the last step of 40) and 3 signals; every resumed "
          f"run equals the undisturbed one ({time.monotonic() - begin:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
