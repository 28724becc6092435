#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds every importer of the command line to damaged and hostile files.

Usage: tests/scripts/damaged_files.py [--binary build/release/heirloom] [--seed 0] [--trials 20] [--cases N] [--data DIR]
                                      [--every-command] [--only TEXT]

Small sources of every kind (model directories of each family, in one file and in shards, float32, float16 and bfloat16;
GGUF; llama2.c; tokenizers), and those under --data where it is there, are damaged on purpose: a list of clear damages, and
--trials random ones (flipped bytes, cuts, repeated runs) per file. Each is given to one command that reads it, drawn by the
seed, or with --every-command to all of them: convert, uptrain, perplexity, generate, info, kv, tokenizer.

Clear damage must end in exit code 2, 3 or 4 with one line on stderr ("heirloom: ...", a config's problems one per line
below it) that names the file and says what was expected; random damage may also succeed. Either way: no signal, no report of
a sanitizer, nothing left of an output that failed, at most 10 s of CPU time and 2 GB of memory. A sanitizer's build is the
one to run this with: cmake --preset sanitize.
"""

import argparse
import collections
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from damages import (CONFIG, DEVICE, DIRECTORY, FORMAT, GENERATION, IMPORT, LONG_LINK, LOOP, PIPE, SPARSE, WEIGHTS, all_nan, config_damages,
                     gguf_damages, index_damages, llama2c_damages, llama2c_tokenizer_damages, random_damage, safetensors_damages,
                     tokenizer_damages)
from model_files import (Gguf, Numbers, field, llama2c_file, llama2c_tokenizer, model_files, sentencepiece_model, split_image,
                         varint)

CPU_SECONDS, WALL_SECONDS, MEMORY = 10, 300, 2 << 30
LONGEST_TALK = 16384
MODEL, GGUF, LLAMA2C, TOKENIZER = "model directory", "gguf", "llama2.c", "tokenizer"
TEXT = ("tokenizer info", "tokenizer encode", "generate text", "perplexity text")

# files: name -> bytes, or one of the names above; refused: the damage is clear; names: what the message must name.
Case = collections.namedtuple("Case", "kind what files commands refused names")


class Failure(Exception):
    pass


def expect(condition, message):
    if not condition:
        raise Failure(message)


def clear_cases(numbers, generator):
    def case(kind, what, files, commands, refused, *names):
        return Case(kind, what, files, commands, refused, names)

    plain = model_files("llama", "F32", numbers)
    for kind, dtype in (("llama", "F32"), ("mistral", "BF16"), ("qwen2", "F16"), ("qwen3", "BF16"), ("gpt2", "F32"), ("gpt_neox", "F16"), ("heirloom", "BF16")):
        files = model_files(kind, dtype, numbers)
        yield case(MODEL, f"{kind}: undamaged", files, CONFIG, None)
        yield case(MODEL, f"{kind}: weights of NaN", files | {"model.safetensors": all_nan(files["model.safetensors"])}, FORMAT, False)
        for what, text, commands in config_damages(json.loads(files["config.json"])):
            refused = bool(commands)
            yield case(MODEL, f"{kind} config: {what}", files | {"config.json": text}, commands or CONFIG, refused,
                       "config.json" if commands == CONFIG else "model")
        damages = list(safetensors_damages(files["model.safetensors"]))
        if kind not in ("llama", "gpt2", "heirloom"):
            damages = generator.sample(damages, 25)
        for what, image, commands in damages:
            yield case(MODEL, f"{kind} weights: {what}", files | {"model.safetensors": image}, commands, True, "model")
        yield case(MODEL, f"{kind}: no weights", {k: v for k, v in files.items() if k != "model.safetensors"}, WEIGHTS, True, "model")
        other = model_files("gpt2" if kind != "gpt2" else "llama", dtype, numbers)
        yield case(MODEL, f"{kind}: another model's weights", files | {"model.safetensors": other["model.safetensors"]}, WEIGHTS, True, "model")
    for kind, dtype in (("llama", "F16"), ("gpt2", "F32"), ("heirloom", "BF16")):
        files = model_files(kind, dtype, numbers, shards=3)
        yield case(MODEL, f"{kind} in shards: undamaged", files, CONFIG, None)
        for what, changes in index_damages(files):
            commands = WEIGHTS if what in ("weight_map: empty", "without an index") else FORMAT  # info shows what is there
            yield case(MODEL, f"{kind} in shards: {what}", files | changes, commands, True, "model")
        shard = sorted(files)[-2]
        for what, image, commands in generator.sample(list(safetensors_damages(files["model-00002-of-00003.safetensors"])), 25):
            yield case(MODEL, f"{kind} in shards: {shard}: {what}", files | {"model-00002-of-00003.safetensors": image}, commands, True, "model")
    for text, refused in GENERATION:
        yield case(MODEL, f"generation_config.json: {str(text)[:40]}", plain | {"generation_config.json": text}, ("generate",), refused,
                   "generation_config.json")
    yield case(MODEL, "an empty directory", {}, CONFIG, True, "model")
    yield case(MODEL, "nothing", None, CONFIG, True, "model")

    yield case(GGUF, "undamaged", {"model.gguf": Gguf(numbers).image()}, IMPORT, None)
    yield case(GGUF, "Q8_0, undamaged", {"model.gguf": Gguf(numbers, quantised=True).image()}, IMPORT, None)
    for what, image in gguf_damages(numbers):
        yield case(GGUF, what, {"model.gguf": image}, IMPORT, True, "model.gguf")
    yield case(GGUF, "nothing", None, IMPORT, True, "model.gguf")

    tokens = llama2c_tokenizer()
    for version in (0, 1):
        image = llama2c_file(version, numbers)
        yield case(LLAMA2C, f"version {version}, undamaged", {"model.bin": image, "tokenizer.bin": tokens}, IMPORT, None)
        untied = llama2c_file(version, numbers, tied=False)
        yield case(LLAMA2C, f"version {version}, untied", {"model.bin": untied, "tokenizer.bin": tokens}, IMPORT, None)
        for what, damaged in llama2c_damages(image, version):
            yield case(LLAMA2C, f"version {version}: {what}", {"model.bin": damaged, "tokenizer.bin": tokens}, IMPORT, True, "model.bin")
    for what, damaged in llama2c_tokenizer_damages(tokens):
        yield case(LLAMA2C, f"tokenizer.bin: {what}", {"model.bin": image, "tokenizer.bin": damaged}, IMPORT, True, "tokenizer.bin")

    yield case(TOKENIZER, "tokenizer.json, undamaged", plain, TEXT, None)
    for what, text, refused in tokenizer_damages():
        # A normaliser shows what it does when it runs, which is after the file has been read.
        names = () if "grows" in what else ("tokenizer.json",)
        yield case(TOKENIZER, f"tokenizer.json: {what}", plain | {"tokenizer.json": text}, TEXT if names else TEXT[1:], refused, *names)
    pieces = {k: v for k, v in plain.items() if k != "tokenizer.json"} | {"tokenizer.model": sentencepiece_model()}
    yield case(TOKENIZER, "tokenizer.model, undamaged", pieces, TEXT, None)
    for what, data in (("empty", b""), ("cut", pieces["tokenizer.model"][:-3]), ("text", b"no protobuf"), ("zeros", bytes(1000)), ("ones", b"\xff" * 1000),
                       ("no pieces", field(2, field(3, 2))), ("unigram", pieces["tokenizer.model"] + field(2, field(3, 1))),
                       ("a piece of no text", field(1, field(2, 0.0)) + pieces["tokenizer.model"]),
                       ("a piece of type 99", field(1, field(1, b"x") + field(3, 99)) + pieces["tokenizer.model"]),
                       ("a piece twice", pieces["tokenizer.model"] + field(1, field(1, b"t"))), ("a long field", varint(10) + varint(2**63)),
                       ("a byte piece of no byte", pieces["tokenizer.model"] + field(1, field(1, b"<0xZZ>") + field(3, 6))),
                       ("a broken map", pieces["tokenizer.model"] + field(3, field(2, b"\xff" * 20))), (DIRECTORY, DIRECTORY), (LOOP, LOOP), (DEVICE, DEVICE),
                       (SPARSE, SPARSE)):
        yield case(TOKENIZER, f"tokenizer.model: {what}", pieces | {"tokenizer.model": data}, TEXT, True, "tokenizer.model")
    trie = struct.pack("<I", 8) + struct.pack("<2I", 0xFFFFFFFF, 0xFFFFFFFF) + b"x"
    yield case(TOKENIZER, "tokenizer.model: a map of no sense", pieces | {"tokenizer.model": pieces["tokenizer.model"] + field(3, field(2, trie))}, TEXT, False)


def data_sources(data):
    """(kind, name, files, the damageable ones) under --data."""
    for folder in sorted(data.glob("golden_hf/*")):
        files = {f.name: f.read_bytes() for f in folder.iterdir() if f.suffix == ".safetensors" or f.name.endswith("config.json") or f.name.endswith("index.json")}
        if "config.json" in files:
            yield MODEL, folder.name, files, [n for n in files if n != "generation_config.json"], FORMAT
    vocabulary = data / "models/tok512.bin"
    for file in sorted(data.glob("models/*.bin")):
        if "tok" in file.stem or file.stat().st_size > 8 << 20:
            continue
        files = {"model.bin": file.read_bytes()}
        wanted = abs(struct.unpack("<i", files["model.bin"][20:24])[0])
        if vocabulary.exists() and wanted == 512:
            files["tokenizer.bin"] = vocabulary.read_bytes()
        yield LLAMA2C, file.name, files, list(files), IMPORT
    for file in sorted(data.glob("models/*.model")):
        yield TOKENIZER, file.name, {"tokenizer.model": file.read_bytes()}, ["tokenizer.model"], TEXT[:2]


def random_cases(numbers, generator, trials, data):
    sources = []
    for kind, dtype in (("llama", "F32"), ("qwen3", "BF16"), ("gpt2", "F16"), ("gpt_neox", "BF16"), ("heirloom", "F32")):
        sources.append((MODEL, kind, model_files(kind, dtype, numbers), ["config.json", "model.safetensors"], FORMAT))
    sharded = model_files("llama", "F32", numbers, shards=2)
    sources.append((MODEL, "llama in shards", sharded, [n for n in sharded if n.startswith("model")], FORMAT))
    sources.append((GGUF, "gguf", {"model.gguf": Gguf(numbers).image()}, ["model.gguf"], IMPORT))
    sources.append((GGUF, "gguf of Q8_0", {"model.gguf": Gguf(numbers, quantised=True).image()}, ["model.gguf"], IMPORT))
    for version in (0, 1):
        files = {"model.bin": llama2c_file(version, numbers), "tokenizer.bin": llama2c_tokenizer()}
        sources.append((LLAMA2C, f"llama2.c {version}", files, list(files), IMPORT))
    plain = model_files("llama", "F32", numbers)
    sources.append((TOKENIZER, "tokenizer.json", plain, ["tokenizer.json"], TEXT))
    pieces = {k: v for k, v in plain.items() if k != "tokenizer.json"} | {"tokenizer.model": sentencepiece_model()}
    sources.append((TOKENIZER, "tokenizer.model", pieces, ["tokenizer.model"], TEXT))
    if data:
        sources += data_sources(data)
    for kind, name, files, damageable, commands in sources:
        for _ in range(trials):
            target = generator.choice(damageable)
            what, damaged = random_damage(files[target], generator)
            yield Case(kind, f"{name}: {target}: {what}", files | {target: damaged}, commands, False, ())


# ---------------------------------------------------------------------------------------------------------------- running


def write_file(path, content):
    if content is None:
        return
    if content == DIRECTORY:
        path.mkdir()
    elif content == LOOP:
        path.symlink_to(path.name)
    elif content == DEVICE:
        path.symlink_to("/dev/zero")
    elif content == LONG_LINK:
        path.symlink_to("y" * 300)
    elif content == PIPE:
        os.mkfifo(path)
    elif content == SPARSE:
        with open(path, "wb") as file:
            file.truncate(1 << 40)
    else:
        path.write_bytes(content)


class Runner:
    def __init__(self, binary, folder):
        self.binary, self.folder = str(binary), folder
        self.runs, self.seconds, self.memory, self.codes = 0, 0.0, 0, collections.Counter()
        (folder / "tokens.jsonl").write_text('{"tokens": [1, 5, 9, 20, 33, 41, 7]}\n{"tokens": [4, 6, 8]}\n')
        (folder / "prompts.jsonl").write_text('{"tokens": [1, 5, 9]}\n{"id": "b", "tokens": [7]}\n')
        (folder / "text.jsonl").write_text('{"text": "the ant, then the aaaa"}\n')
        (folder / "text.txt").write_text("the ant then aaaaaaaaaaaaaaaaaaaaaaaaaaab\n")
        (folder / "train.bin").write_bytes(struct.pack("<256i", 20240520, 1, 101, *([0] * 253)) + struct.pack("<101H", *range(101)))
        (folder / "run.json").write_text(json.dumps({
            "data": {"train": str(folder / "train.bin")}, "train": {"steps": 1, "batch_size": 1, "sequence_length": 8},
            "optimizer": {"lr": 0.001}}))
        self.environment = dict(os.environ)
        self.environment.setdefault("ASAN_OPTIONS", "max_allocation_size_mb=2048:allocator_may_return_null=0:detect_leaks=0:exitcode=99")
        self.environment.setdefault("UBSAN_OPTIONS", "print_stacktrace=1:halt_on_error=1:exitcode=99")

    def arguments(self, command, case, work):
        """The command line, and what it writes."""
        source = work / {MODEL: "model", GGUF: "model/model.gguf", LLAMA2C: "model/model.bin", TOKENIZER: "model"}[case.kind]
        out = work / "out"
        extra = ["--tokenizer", str(work / "model/tokenizer.bin")] if case.kind == LLAMA2C and "tokenizer.bin" in (case.files or {}) else []
        common = ["--threads", "1", "--quiet"]
        lines = {
            "convert": ["convert", "--from", source, "--out", out] + extra,
            "uptrain": ["uptrain", "--from", source, "--config", self.folder / "run.json", "--output", out] + extra,
            "perplexity": ["perplexity", "--model", source, "--data", self.folder / "tokens.jsonl", "--dump-nll", out],
            "generate": ["generate", "--model", source, "--prompts", self.folder / "prompts.jsonl", "--out", out, "--max-new-tokens", "3"],
            "info": ["info", "--model", source, "--json", out],
            "kv": ["kv", "--model", source, "--json", out],
            "tokenizer info": ["tokenizer", "info", source, "--json", out],
            "tokenizer encode": ["tokenizer", "encode", "--tokenizer", source, "--in", self.folder / "text.jsonl", "--out", out],
            "generate text": ["generate", "--model", source, "--prompt", "the ant", "--max-new-tokens", "3"],
            "perplexity text": ["perplexity", "--model", source, "--data", self.folder / "text.txt", "--dump-nll", out],
        }
        return [self.binary] + [str(a) for a in lines[command]] + (common if not command.startswith("tokenizer") else [])

    def convert(self, *arguments):
        result = subprocess.run([self.binary, "convert", *map(str, arguments), "--quiet"], stdin=subprocess.DEVNULL, capture_output=True,
                                env=self.environment, text=True, timeout=WALL_SECONDS)
        self.runs += 1
        self.codes[result.returncode] += 1
        return result

    def check_outputs(self, numbers):
        """What convert writes over, and what it leaves alone."""
        work = self.folder / "outputs"
        model, inner = work / "model", work / "outer" / "model"
        for folder in (model, inner):
            folder.mkdir(parents=True)
            for name, content in model_files("llama", "F32", numbers).items():
                write_file(folder / name, content)

        def contents():
            return {str(f.relative_to(work)): f.read_bytes() for f in sorted(work.rglob("*")) if f.is_file()}

        def refused(what, *arguments):
            before, result = contents(), self.convert(*arguments)
            expect(result.returncode == 2 and result.stderr.startswith("heirloom: ") and result.stderr.count("\n") == 1,
                   f"{what}: expected exit code 2 and one line; got {result.returncode}: {result.stderr}")
            expect(contents() == before, f"{what}: expected nothing changed; got another {work}")

        refused("an --out that holds something", "--from", inner, "--out", model)
        refused("an --out that is the source", "--from", model, "--out", model)
        refused("an --out that is a file", "--from", model, "--out", model / "config.json")
        refused("an --out that is another file", "--from", inner, "--out", model / "config.json", "--overwrite")
        refused("an --out around the source", "--from", inner, "--out", work / "outer", "--overwrite")
        refused("an --out that is the source's file", "--from", model / "model.safetensors", "--out", model / "model.safetensors", "--overwrite")
        (work / "gguf").mkdir()
        (work / "gguf/a.gguf").write_bytes(Gguf(numbers).image())
        refused("an --out around the .gguf", "--from", work / "gguf/a.gguf", "--out", work / "gguf", "--overwrite")
        refused("a plan that the source cannot have", "--from", model, "--out", model, "--overwrite", "--kv-heads", "3")
        weights = (model / "model.safetensors").read_bytes()
        (model / "model.safetensors").write_bytes(weights[:-1])
        before, result = contents(), self.convert("--from", model, "--out", model, "--overwrite")
        expect(result.returncode == 3 and contents() == before, f"expected a damaged source left as it is; got {result.returncode}: {result.stderr}")
        (model / "model.safetensors").write_bytes(weights)
        # In place: the same weights, whatever their order in the file.
        result = self.convert("--from", model, "--out", model, "--overwrite")
        expect(result.returncode == 0, f"expected a conversion in place; got {result.returncode}: {result.stderr}")

        def tensors(image):
            header, data = split_image(image)
            return {name: (h["dtype"], h["shape"], data[slice(*h["data_offsets"])]) for name, h in header.items() if name != "__metadata__"}
        expect(tensors((model / "model.safetensors").read_bytes()) == tensors(weights), "expected the same weights after a conversion in place")
        expect(sorted(f.name for f in work.iterdir()) == ["gguf", "model", "outer"], f"expected nothing beside the model; got {list(work.iterdir())}")

    def run(self, case, command):
        """Runs it in a fresh folder and holds it to the promise; raises Failure."""
        work = self.folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        if case.files is not None:
            (work / "model").mkdir()
            for name, content in case.files.items():
                write_file(work / "model" / name, content)
        arguments = self.arguments(command, case, work)
        with open(self.folder / "stdout", "wb") as out, open(self.folder / "stderr", "wb") as err:
            begin = time.monotonic()
            process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=self.environment, cwd=work)
            pid = 0
            while pid == 0:
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                if pid == 0:
                    if time.monotonic() - begin > WALL_SECONDS or self.resident(process.pid) > 2 * MEMORY:
                        process.kill()
                        os.waitpid(process.pid, 0)
                        process.returncode = -9
                        raise Failure(f"stopped after {time.monotonic() - begin:.0f} s\n    {' '.join(arguments)}")
                    time.sleep(0.002)
            process.returncode = os.waitstatus_to_exitcode(status)
        self.runs += 1
        self.codes[process.returncode] += 1
        seconds, memory = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
        self.seconds, self.memory = max(self.seconds, seconds), max(self.memory, memory)
        talk = (self.folder / "stderr").read_bytes().decode(errors="replace")
        try:
            expect(seconds <= CPU_SECONDS, f"expected at most {CPU_SECONDS} s of CPU time; got {seconds:.1f}")
            expect(memory <= MEMORY, f"expected at most {MEMORY >> 20} MiB; got {memory >> 20}")
            self.check(case, process.returncode, talk, work)
        except Failure as failure:
            raise Failure(f"{failure}\n    {' '.join(arguments)}\n    exit {process.returncode}: {talk[:3000].rstrip()}") from None

    @staticmethod
    def resident(pid):
        try:
            return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):
            return 0

    @staticmethod
    def check(case, code, talk, work):
        expect(code >= 0, f"expected no signal; got {-code}")
        expect("Sanitizer" not in talk and "runtime error" not in talk, "expected no report of a sanitizer; got one")
        if case.refused is None:
            expect(code == 0, "expected success with what is undamaged; got a refusal")
        if code == 1 and not case.refused and "finite" in talk:
            return  # training with weights of NaN
        expect(code in (0, 2, 3, 4) and not (case.refused and code == 0), "expected exit code 2, 3 or 4; got another")
        left = sorted(p.name for p in work.iterdir() if p.name != "model")
        if code == 0:
            expect(set(left) <= {"out"}, f"expected only the output; got {left}")
            return
        expect(not left, f"expected nothing left of the output; got {left}")
        expect(talk.endswith("\n") and len(talk) <= LONGEST_TALK, f"expected a short message; got {len(talk)} characters")
        first, *others = talk[:-1].split("\n")
        expect(first.startswith("heirloom: "), "expected one line that starts with 'heirloom: '")
        expect(not others or re.search(r": \d+ problems$", first) and all(line.startswith("  ") for line in others),
               f"expected one line, or a list of problems; got {len(others)} more")
        expect(not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", talk), "expected no control characters in the message")
        if case.refused and code != 4:
            expect(re.search(r"expected|cannot|missing|unknown", talk), "expected a message that says what was expected")
            for name in case.names:
                expect(name in talk, f"expected a message that names {name}")


def main():
    root = Path(__file__).resolve().parent.parent.parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=os.environ.get("HEIRLOOM_BINARY", root / "build/release/heirloom"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=20, help="random damages per source")
    parser.add_argument("--cases", type=int, help="clear damages, drawn by the seed [all]")
    parser.add_argument("--data", default=os.environ.get("HEIRLOOM_TEST_DATA"), help="sources of others [HEIRLOOM_TEST_DATA]")
    parser.add_argument("--every-command", action="store_true", help="each damage to every command that reads it")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--list", action="store_true", help="name the cases and run nothing")
    arguments = parser.parse_args()
    data = Path(arguments.data) if arguments.data and Path(arguments.data).is_dir() else None
    generator, numbers = random.Random(arguments.seed), Numbers(arguments.seed)
    begin, failures, cases = time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory(prefix="heirloom-damaged-files-") as name:
        runner = Runner(Path(arguments.binary).resolve(), Path(name))
        try:
            if not arguments.list and not arguments.only:
                runner.check_outputs(numbers)
        except Failure as failure:
            failures += 1
            print(f"damaged_files: convert --out: {failure}", file=sys.stderr, flush=True)
        clear = clear_cases(numbers, random.Random(arguments.seed))
        if arguments.cases is not None:
            clear = list(clear)
            clear = [clear[i] for i in sorted(generator.sample(range(len(clear)), min(arguments.cases, len(clear))))]
        for maker in (clear, random_cases(numbers, generator, arguments.trials, data)):
            for case in maker:
                drawn = random.Random(f"{arguments.seed} {case.kind} {case.what}").choice(case.commands)
                if arguments.only not in f"{case.kind}: {case.what}":
                    continue
                cases += 1
                if arguments.list:
                    print(f"{case.kind}: {case.what}: {', '.join(case.commands)}")
                    continue
                for command in case.commands if arguments.every_command or case.refused is None else (drawn,):
                    try:
                        runner.run(case, command)
                    except Failure as failure:
                        failures += 1
                        print(f"damaged_files: {case.kind}: {case.what}: {command} (seed {arguments.seed}): {failure}", file=sys.stderr, flush=True)
    if failures:
        print(f"damaged_files: {failures} of {runner.runs} runs failed ({cases} cases, {time.monotonic() - begin:.0f} s)", file=sys.stderr)
        return 1
    print(f"damaged_files: {cases} cases, {runner.runs} runs, exit codes {dict(sorted(runner.codes.items()))}; at most {runner.seconds:.1f} s of "
          f"CPU time and {runner.memory >> 20} MiB ({time.monotonic() - begin:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
