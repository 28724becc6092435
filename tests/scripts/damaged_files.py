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
import copy
import json
import math
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

CPU_SECONDS, WALL_SECONDS, MEMORY = 10, 300, 2 << 30
LONGEST_TALK = 16384
DIRECTORY, LOOP, DEVICE, LONG_LINK = "a directory", "a link to itself", "a link to /dev/zero", "a link to a long name"
SPARSE, PIPE = "a sparse file of 1 TB", "a pipe"
MODEL, GGUF, LLAMA2C, TOKENIZER = "model directory", "gguf", "llama2.c", "tokenizer"
IMPORT = ("convert", "uptrain")
WEIGHTS = IMPORT + ("perplexity", "generate")
FORMAT = WEIGHTS + ("info",)
CONFIG = FORMAT + ("kv",)
TEXT = ("tokenizer info", "tokenizer encode", "generate text", "perplexity text")

# files: name -> bytes, or one of the names above; refused: the damage is clear; names: what the message must name.
Case = collections.namedtuple("Case", "kind what files commands refused names")


class Failure(Exception):
    pass


def expect(condition, message):
    if not condition:
        raise Failure(message)


# ---------------------------------------------------------------------------------------------------------------- sources

VOCABULARY, WIDTH, HEADS, KV_HEADS, HEAD, MLP, LAYERS, POSITIONS = 300, 32, 4, 2, 8, 40, 2, 64
DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


class Numbers:
    """Small values, by the seed; each dtype's bytes."""

    def __init__(self, seed):
        self.generator = random.Random(seed)
        self.values = [self.generator.uniform(-0.2, 0.2) for _ in range(4096)]

    def bytes(self, count, dtype):
        start = self.generator.randrange(len(self.values))
        values = (self.values[start:] + self.values * (count // len(self.values) + 1))[:count]
        if dtype == "F16":
            return struct.pack(f"<{count}e", *values)
        single = struct.pack(f"<{count}f", *values)
        return single if dtype == "F32" else b"".join(single[i + 2:i + 4] for i in range(0, 4 * count, 4))


def safetensors_image(tensors, metadata=None):
    """tensors: name -> (dtype, shape, bytes)"""
    header, offset = {"__metadata__": metadata or {"format": "pt"}}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    return with_header(header, b"".join(data for _, _, data in tensors.values()))


def with_header(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def split_image(image):
    length = struct.unpack("<Q", image[:8])[0]
    return json.loads(image[8:8 + length]), image[8 + length:]


def llama_shapes(kind):
    """Of the families that share these names; own_values: the value heads that a layer projects."""
    shapes = {"model.embed_tokens.weight": [VOCABULARY, WIDTH], "model.norm.weight": [WIDTH], "lm_head.weight": [VOCABULARY, WIDTH]}
    for i in range(LAYERS):
        own_values = KV_HEADS // 2 if kind == "heirloom" and i > 0 else KV_HEADS
        base = f"model.layers.{i}."
        rows = {"q": HEADS * HEAD, "k": KV_HEADS * HEAD, "v": own_values * HEAD}
        for name, n in rows.items():
            shapes[f"{base}self_attn.{name}_proj.weight"] = [n, WIDTH]
            if kind == "qwen2":
                shapes[f"{base}self_attn.{name}_proj.bias"] = [n]
        shapes[f"{base}self_attn.o_proj.weight"] = [WIDTH, HEADS * HEAD]
        if kind == "qwen3":
            shapes[f"{base}self_attn.q_norm.weight"] = shapes[f"{base}self_attn.k_norm.weight"] = [HEAD]
        for name, shape in (("gate", [MLP, WIDTH]), ("up", [MLP, WIDTH]), ("down", [WIDTH, MLP])):
            shapes[f"{base}mlp.{name}_proj.weight"] = shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{base}{name}.weight"] = [WIDTH]
    return shapes


def gpt2_shapes():
    shapes = {"transformer.wte.weight": [VOCABULARY, WIDTH], "transformer.wpe.weight": [POSITIONS, WIDTH],
              "transformer.ln_f.weight": [WIDTH], "transformer.ln_f.bias": [WIDTH]}
    for i in range(LAYERS):
        base = f"transformer.h.{i}."
        for name, columns, rows in (("attn.c_attn", WIDTH, 3 * WIDTH), ("attn.c_proj", WIDTH, WIDTH),
                                    ("mlp.c_fc", WIDTH, 4 * WIDTH), ("mlp.c_proj", 4 * WIDTH, WIDTH)):
            shapes[f"{base}{name}.weight"], shapes[f"{base}{name}.bias"] = [columns, rows], [rows]
        for name in ("ln_1", "ln_2"):
            shapes[f"{base}{name}.weight"] = shapes[f"{base}{name}.bias"] = [WIDTH]
    return shapes


def gpt_neox_shapes():
    shapes = {"gpt_neox.embed_in.weight": [VOCABULARY, WIDTH], "embed_out.weight": [VOCABULARY, WIDTH],
              "gpt_neox.final_layer_norm.weight": [WIDTH], "gpt_neox.final_layer_norm.bias": [WIDTH]}
    for i in range(LAYERS):
        base = f"gpt_neox.layers.{i}."
        for name, rows, columns in (("attention.query_key_value", 3 * WIDTH, WIDTH), ("attention.dense", WIDTH, WIDTH),
                                    ("mlp.dense_h_to_4h", 4 * WIDTH, WIDTH), ("mlp.dense_4h_to_h", WIDTH, 4 * WIDTH)):
            shapes[f"{base}{name}.weight"], shapes[f"{base}{name}.bias"] = [rows, columns], [rows]
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{base}{name}.weight"] = shapes[f"{base}{name}.bias"] = [WIDTH]
    return shapes


def config_of(kind, dtype):
    common = {"model_type": kind, "vocab_size": VOCABULARY, "torch_dtype": DTYPE_NAMES[dtype], "bos_token_id": 1, "eos_token_id": 2}
    if kind == "gpt2":
        return {**common, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": POSITIONS, "n_inner": None,
                "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}
    common |= {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
               "max_position_embeddings": POSITIONS, "tie_word_embeddings": False}
    if kind == "gpt_neox":
        return {**common, "intermediate_size": 4 * WIDTH, "layer_norm_eps": 1e-5, "hidden_act": "gelu", "rotary_pct": 0.25,
                "rotary_emb_base": 10000, "use_parallel_residual": True, "attention_bias": True}
    common |= {"intermediate_size": MLP, "num_key_value_heads": KV_HEADS, "head_dim": HEAD, "rope_theta": 10000.0}
    if kind == "heirloom":
        return {**common, "norm_eps": 1e-6, "kv_sharing": {"scheme": "skipv1", "ratio": 0.5}}
    if kind == "mistral":
        common["sliding_window"] = 16
    return {**common, "hidden_act": "silu", "rms_norm_eps": 1e-6}


def byte_characters():
    """GPT-2's names of the 256 bytes."""
    plain = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    others = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(others)) for b in range(256)]


def tokenizer_json():
    tokens = ["<|endoftext|>"] + byte_characters()
    merges = [["t", "h"], ["th", "e"], ["i", "n"], ["\u0120", "a"], ["a", "n"]]
    tokens += ["".join(pair) for pair in merges]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {"version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": byte_level,
            "post_processor": byte_level, "decoder": byte_level,
            "added_tokens": [{"id": 0, "content": "<|endoftext|>", "single_word": False, "lstrip": False, "rstrip": False,
                              "normalized": False, "special": True}],
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                      "vocab": {token: id for id, token in enumerate(tokens)}, "merges": merges}}


def varint(n):
    out = b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def field(number, value):
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


PIECES = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + ["\u2581", "t", "h", "e", "a", "n", "th", "\u2581the", "an"]


def sentencepiece_model():
    out = b""
    for i, piece in enumerate(PIECES):
        kind = 2 if i == 0 else 3 if i < 3 else 6 if i < 259 else 1
        out += field(1, field(1, piece.encode()) + field(2, -float(i)) + field(3, kind))
    return out + field(2, field(3, 2) + field(35, 1)) + field(3, field(1, b"identity") + field(3, 1) + field(4, 0) + field(5, 1))


def llama2c_tokenizer(count=VOCABULARY):
    pieces = [p.replace("\u2581", " ") for p in PIECES] + [f"w{i}" for i in range(count - len(PIECES))]
    out = struct.pack("<i", max(len(p.encode()) for p in pieces))
    for i, piece in enumerate(pieces[:count]):
        data = piece.encode()
        out += struct.pack("<fi", -float(i), len(data)) + data
    return out


def model_files(kind, dtype, numbers, shards=1):
    shapes = gpt2_shapes() if kind == "gpt2" else gpt_neox_shapes() if kind == "gpt_neox" else llama_shapes(kind)
    tensors = {name: (dtype, shape, numbers.bytes(math.prod(shape), dtype)) for name, shape in shapes.items()}
    files = {"config.json": json.dumps(config_of(kind, dtype)).encode(),
             "generation_config.json": b'{"temperature": 0.8, "top_k": 10}',
             "tokenizer.json": json.dumps(tokenizer_json()).encode()}
    if shards == 1:
        return files | {"model.safetensors": safetensors_image(tensors)}
    names, index = list(tensors), {}
    for k in range(shards):
        shard = f"model-{k + 1:05}-of-{shards:05}.safetensors"
        part = names[k * len(names) // shards:(k + 1) * len(names) // shards]
        files[shard] = safetensors_image({name: tensors[name] for name in part})
        index |= {name: shard for name in part}
    return files | {"model.safetensors.index.json": json.dumps({"metadata": {"total_size": 0}, "weight_map": index}).encode()}


def llama2c_file(version, numbers, tied=True):
    header = struct.pack("<7i", WIDTH, MLP, LAYERS, HEADS, KV_HEADS, VOCABULARY if tied or version else -VOCABULARY, POSITIONS)
    kv = WIDTH // HEADS * KV_HEADS
    count = VOCABULARY * WIDTH * (1 if tied else 2) + WIDTH
    count += LAYERS * (2 * WIDTH + 2 * WIDTH * WIDTH + 2 * kv * WIDTH + 3 * MLP * WIDTH)
    if version == 0:
        return header + numbers.bytes(count + POSITIONS * WIDTH // HEADS, "F32")
    header = struct.pack("<Ii", 0x616B3432, 1) + header + bytes([tied])
    return header.ljust(256, b"\0") + numbers.bytes(count, "F32")


def gguf_string(text):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


class Gguf:
    """pairs: (key, type, bytes); tensors: [name, dims innermost first, type, bytes, offset or None]."""
    MODEL = {"llama": "llama"}

    def __init__(self, numbers, quantised=False):
        self.version, self.magic, self.alignment, self.tail = 3, b"GGUF", 32, b""
        self.counts = None
        self.pairs = []
        self.text("general.architecture", "llama")
        for key, value in (("embedding_length", WIDTH), ("block_count", LAYERS), ("feed_forward_length", 64),
                           ("attention.head_count", HEADS), ("attention.head_count_kv", KV_HEADS), ("context_length", POSITIONS),
                           ("rope.dimension_count", HEAD), ("vocab_size", VOCABULARY)):
            self.number("llama." + key, value)
        self.real("llama.attention.layer_norm_rms_epsilon", 1e-5)
        self.real("llama.rope.freq_base", 10000.0)
        tokens = PIECES + [f"w{i}" for i in range(VOCABULARY - len(PIECES))]
        self.text("tokenizer.ggml.model", "llama")
        self.array("tokenizer.ggml.tokens", 8, b"".join(map(gguf_string, tokens)), len(tokens))
        self.array("tokenizer.ggml.scores", 6, struct.pack(f"<{len(tokens)}f", *(-float(i) for i in range(len(tokens)))), len(tokens))
        types = [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259)
        self.array("tokenizer.ggml.token_type", 5, struct.pack(f"<{len(types)}i", *types), len(types))
        for key, value in (("bos", 1), ("eos", 2), ("unknown", 0)):
            self.number(f"tokenizer.ggml.{key}_token_id", value)
        self.tensors = []

        def add(name, *dims):
            matrix = len(dims) == 2 and quantised
            data = b"".join(struct.pack("<e", 0.01) + bytes(32) for _ in range(math.prod(dims) // 32)) if matrix \
                else numbers.bytes(math.prod(dims), "F32")
            self.tensors.append([name, list(dims), 8 if matrix else 0, data, None])
        add("token_embd.weight", WIDTH, VOCABULARY)
        add("output_norm.weight", WIDTH)
        add("output.weight", WIDTH, VOCABULARY)
        for i in range(LAYERS):
            for name, *dims in (("attn_norm", WIDTH), ("attn_q", WIDTH, WIDTH), ("attn_k", WIDTH, KV_HEADS * HEAD),
                                ("attn_v", WIDTH, KV_HEADS * HEAD), ("attn_output", WIDTH, WIDTH), ("ffn_norm", WIDTH),
                                ("ffn_gate", WIDTH, 64), ("ffn_up", WIDTH, 64), ("ffn_down", 64, WIDTH)):
                add(f"blk.{i}.{name}.weight", *dims)

    def pair(self, key, kind, data):
        self.pairs = [p for p in self.pairs if p[0] != key] + [(key, kind, data)]

    def number(self, key, value):
        self.pair(key, 4, struct.pack("<I", value))

    def real(self, key, value):
        self.pair(key, 6, struct.pack("<f", value))

    def text(self, key, value):
        self.pair(key, 8, gguf_string(value))

    def array(self, key, kind, data, count):
        self.pair(key, 9, struct.pack("<IQ", kind, count) + data)

    def image(self):
        counts = self.counts or (len(self.tensors), len(self.pairs))
        out = self.magic + struct.pack("<IQQ", self.version, *counts)
        for key, kind, data in self.pairs:
            out += gguf_string(key) + struct.pack("<I", kind) + data
        body = b""
        for name, dims, kind, data, offset in self.tensors:
            body = body.ljust(-(-len(body) // self.alignment) * self.alignment, b"\0")
            out += gguf_string(name) + struct.pack("<I", len(dims)) + b"".join(struct.pack("<Q", d) for d in dims)
            out += struct.pack("<IQ", kind, len(body) if offset is None else offset)
            body += data
        out = out.ljust(-(-len(out) // self.alignment) * self.alignment, b"\0")
        return out + body.ljust(-(-len(body) // self.alignment) * self.alignment, b"\0") + self.tail


# ---------------------------------------------------------------------------------------------------------------- damages

NOT_A_FILE = (DIRECTORY, LOOP, LONG_LINK)


def cuts(image, places):
    return sorted({p for p in places if 0 <= p < len(image)})


def safetensors_damages(image):
    """(what, image or one of NOT_A_FILE, refused by: FORMAT or WEIGHTS)"""
    length = struct.unpack("<Q", image[:8])[0]
    header, data = split_image(image)
    names = [name for name in header if name != "__metadata__"]
    ends = [8 + length + header[name]["data_offsets"][1] for name in names]
    for cut in cuts(image, [0, 1, 7, 8, 9, 8 + length // 2, 7 + length, 8 + length, 9 + length, len(image) - 1] + ends[::5]):
        yield f"cut to {cut} bytes", image[:cut], FORMAT
    yield "a byte more", image + b"\0", FORMAT
    for lie in (0, 1, length - 1, length + 1, len(image) - 7, 10**8 + 1, 2**31, 2**32 + length, 2**63 - 1, 2**63, 2**64 - 1, 2**64 - 8):
        yield f"a header length of {lie}", struct.pack("<Q", lie) + image[8:], FORMAT
    text = image[8:8 + length]
    for what, header_text in (("a list as header", b"[]"), ("null as header", b"null"), ("an empty header", b"{}"),
                              ("no JSON as header", b"\x80\x02}q\x00."), ("a header not of UTF-8", text.replace(b"weight", b"we\xffght", 1)),
                              ("a NUL in the header", text.replace(b"weight", b"we\0ght", 1)),
                              ("a deep header", b'{"a":' * 100000 + b"1" + b"}" * 100000), ("a deep list", b"[" * 300000),
                              ("NaN in the header", text.replace(b'"shape": [', b'"shape": [NaN, ', 1)),
                              ("a name twice", text[:-1] + b"," + text[1:]), ("a comma more", text[:-1] + b",}"),
                              ("a line break in a name", text.replace(names[0].encode(), b"a\\nb\\u001b[31m", 1)),
                              ("a long name", text.replace(names[0].encode(), b"x" * 200000, 1))):
        weights_only = what in ("a line break in a name", "a long name")
        yield what, with_header(header_text, data), WEIGHTS if weights_only else FORMAT

    def edit(change):
        edited = copy.deepcopy(header)
        return with_header(json.dumps(change(edited) or edited).encode(), data)

    def entry(position, **fields):
        return edit(lambda h: h[names[position]].update(fields))

    first, second, last = (header[names[i]]["data_offsets"] for i in (0, 1, -1))
    size = BYTES[header[names[0]]["dtype"]]
    for what, offsets in (("overlapping", [first[0], first[1]]), ("a hole", [second[0] + size, second[1] + size]),
                          ("an offset past the end", [second[0] + len(data), second[1] + len(data)]),
                          ("reversed offsets", second[::-1]), ("a negative offset", [-8, second[1]]),
                          ("a fraction", [second[0] + 0.5, second[1]]), ("text", [str(second[0]), second[1]]),
                          ("one offset", second[:1]), ("offsets near 2^63", [2**63 - 16, 2**63 - 1]),
                          ("offsets near 2^64", [2**64 - 16, 2**64 - 1]), ("a huge offset", [0, 10**30]), ("null", None), ("an object", {})):
        yield f"offsets: {what}", entry(1, data_offsets=offsets), FORMAT
    yield "the last past the end", entry(-1, data_offsets=[last[0], last[1] + size]), FORMAT
    shape = header[names[0]]["shape"]
    for what, value in (("2^62 x 4", [2**62, 4]), ("2^63 - 1", [2**63 - 1]), ("2^63", [2**63]), ("0 x 2^63 - 1", [0, 2**63 - 1]),
                        ("negative", [-1] + shape[1:]), ("overflow to zero", [2**32, 2**32]), ("a fraction", [1.5]), ("text", ["3"]),
                        ("null", None), ("10^5 dims", [1] * 100000 + [7]), ("one less", [shape[0] - 1] + shape[1:])):
        yield f"shape: {what}", entry(0, shape=value), FORMAT
    matrix = next((i for i, name in enumerate(names) if len(header[name]["shape"]) == 2 and len(set(header[name]["shape"])) == 2), None)
    if matrix is not None:
        rows, columns = header[names[matrix]]["shape"]
        yield "shape: swapped", entry(matrix, shape=[columns, rows]), WEIGHTS
        yield "shape: flat", entry(matrix, shape=[rows * columns]), WEIGHTS
        yield "shape: of rank 3", entry(matrix, shape=[1, rows, columns]), WEIGHTS
        yield "shape: a scalar's", entry(matrix, shape=[]), FORMAT
    twins = {2: ("I16", "U16"), 4: ("I32", "U32"), 8: ("I64", "U64")}[size]
    for dtype in twins:
        yield f"dtype {dtype}", entry(0, dtype=dtype), WEIGHTS
    for dtype in ("F8_E4M3", "F8_E5M2", "BOOL", "I8", "U8"):
        yield f"dtype {dtype}", entry(0, dtype=dtype), FORMAT
        yield f"dtype {dtype}, as long", entry(0, dtype=dtype, shape=[size * shape[0]] + shape[1:]), WEIGHTS
    for dtype in ("", "f32", "F4", "F128", "C64", "F32\n", 32, None, ["F32"], "x" * 100000):
        yield f"dtype {str(dtype)[:9]!r}", entry(0, dtype=dtype), FORMAT
    yield "an entry with another key", entry(0, extra=1), FORMAT
    for what, value in (("null", None), ("a list", []), ("text", "x"), ("empty", {})):
        yield f"an entry: {what}", edit(lambda h, v=value: h.update({names[0]: v})), FORMAT
    for what, value in (("a list", []), ("numbers", {"a": 1}), ("text", "x"), ("nested", {"a": {"b": "c"}})):
        yield f"metadata: {what}", edit(lambda h, v=value: h.update({"__metadata__": v})), FORMAT
    tensors = {name: (header[name]["dtype"], header[name]["shape"], data[slice(*header[name]["data_offsets"])]) for name in names}
    without = {name: tensor for name, tensor in tensors.items() if name != names[1]}
    yield "a tensor missing", safetensors_image(without), WEIGHTS
    yield "no tensors", safetensors_image({}), WEIGHTS
    yield "a tensor more", safetensors_image(tensors | {"model.layers.9.mlp.up_proj.weight": ("F32", [1], bytes(4))}), WEIGHTS
    yield "an empty tensor more", safetensors_image(tensors | {"empty": ("F32", [0, 4], b"")}), WEIGHTS
    yield "a tensor renamed", safetensors_image({("?" if n == names[1] else n): t for n, t in tensors.items()}), WEIGHTS
    yield "a tensor without a name", safetensors_image({("" if n == names[1] else n): t for n, t in tensors.items()}), WEIGHTS
    dtype, shape, stored = tensors[names[0]]
    yield "a tensor emptied", safetensors_image(tensors | {names[0]: (dtype, [0] + shape[1:], b"")}), WEIGHTS
    yield "100000 tensors more", safetensors_image(tensors | {f"t{i}": ("F32", [0], b"") for i in range(100000)}), WEIGHTS
    for what in NOT_A_FILE + (DEVICE, SPARSE, PIPE):
        yield what, what, FORMAT


def all_nan(image):
    header, data = split_image(image)
    return with_header(header, b"\xff" * len(data))


def index_damages(files):
    """(what, changed files)"""
    name = "model.safetensors.index.json"
    index = json.loads(files[name])
    tensors = list(index["weight_map"])
    shards = sorted(set(index["weight_map"].values()))

    def changed(**fields):
        return {name: json.dumps({**index, **fields}).encode()}

    def moved(tensor, shard):
        return changed(weight_map={**index["weight_map"], tensor: shard})

    for what, text in (("empty", b""), ("no JSON", b"weight_map"), ("a list", b"[]"), ("null", b"null"), ("without weight_map", b"{}"),
                       ("cut", files[name][:-9]), ("not UTF-8", files[name].replace(b"weight", b"\xfe", 2)), ("deep", b"[" * 200000),
                       ("a key twice", files[name].replace(b'{"metadata"', b'{"weight_map": {}, "metadata"', 1))):
        yield f"index: {what}", {name: text}
    for what, value in (("a list", []), ("null", None), ("empty", {}), ("numbers", {t: 1 for t in tensors}), ("text", "x")):
        yield f"weight_map: {what}", changed(weight_map=value)
    yield "a tensor in another shard", moved(tensors[0], shards[-1])
    yield "a tensor in no shard", changed(weight_map={t: s for t, s in index["weight_map"].items() if t != tensors[0]})
    yield "a tensor that is nowhere", moved("nowhere", shards[0])
    for target in ("../x", "/etc/passwd", "..", ".", "", "sub/model.safetensors", "config.json", "model-9.safetensors", "x" * 300,
                   "x" * 100000, "a\nb", "model.safetensors\0", "model.safetensors.index.json", "\ud800"):
        yield f"a shard named {target[:20]!r}", moved(tensors[0], target)
    for shard in (shards[0], shards[-1]):
        yield f"without {shard}", {shard: None}
        for what in NOT_A_FILE:
            yield f"{shard}: {what}", {shard: what}
    yield "shards swapped", {shards[0]: files[shards[1]], shards[1]: files[shards[0]]}
    yield "one shard twice", {shards[0]: files[shards[1]]}
    yield "without an index", {name: None}
    for what in NOT_A_FILE + (DEVICE, SPARSE):
        yield f"index: {what}", {name: what}


GPT2_KEYS = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
             "max_position_embeddings": "n_positions", "intermediate_size": "n_inner"}


def config_damages(config):
    """(what, config.json, refused by, or () where nothing must)"""
    text = json.dumps(config).encode()
    kind = config["model_type"]
    for cut in cuts(text, [0, 1, len(text) // 3, len(text) - 1]):
        yield f"cut to {cut} bytes", text[:cut], CONFIG
    for what, damaged in (("a list", b"[]"), ("null", b"null"), ("text", b'"llama"'), ("an empty object", b"{}"), ("NUL bytes", bytes(100)),
                          ("a brace more", text + b"}"), ("not UTF-8", text.replace(b"model_type", b"model\xc3\x28type")),
                          ("UTF-16", text.decode().encode("utf-16")), ("NaN", text.replace(str(VOCABULARY).encode(), b"NaN", 1)),
                          ("1e999", text.replace(str(VOCABULARY).encode(), b"1e999", 1)),
                          ("1e-999", text.replace(str(VOCABULARY).encode(), b"1e-999", 1)),
                          ("infinity", text.replace(str(VOCABULARY).encode(), b"-Infinity", 1)),
                          ("hexadecimal", text.replace(str(VOCABULARY).encode(), b"0x12C", 1)),
                          ("a comment", b"// " + text), ("a key twice", text[:-1] + b"," + text[1:]),
                          ("deep lists", text[:-1] + b', "x": ' + b"[" * 100000 + b"]" * 100000 + b"}"),
                          ("deep objects", b'{"a":' * 100000 + b"1" + b"}" * 100000)):
        yield what, damaged, CONFIG
    for what in NOT_A_FILE + (DEVICE, SPARSE, None):
        yield what or "missing", what, CONFIG

    def changed(key, value):
        return json.dumps({**config, key: value}).encode()

    for value in (7, None, [], {}, True, "", "Llama", "bert", "llama\n", "x" * 100000, "\u2028"):
        yield f"model_type {str(value)[:9]!r}", changed("model_type", value), CONFIG
    sizes = ["vocab_size"] + [GPT2_KEYS[k] if kind == "gpt2" else k for k in GPT2_KEYS]
    sizes += [k for k in ("num_key_value_heads", "head_dim") if k in config]
    for key in sizes:
        for value in (0, -1, -2**63, 2**31, 2**63 - 1, 2**63, 2**64 - 1, 10**30, 1e308, 1.5, "32", [32], {}, True, "x" * 10000):
            yield f"{key} {str(value)[:12]!r}", changed(key, value), CONFIG
        if key != "max_position_embeddings":  # rotary: no tensor has them
            yield f"{key} one more", changed(key, (config[key] or 4 * WIDTH) + 1), WEIGHTS
    # Within the bounds of a config, each and all together: terabytes.
    huge = {"vocab_size": 2**31 - 1, "hidden_size": 2**20, "num_hidden_layers": 4096, "num_attention_heads": 4096,
            "intermediate_size": 2**22, "max_position_embeddings": 2**31 - 1, "num_key_value_heads": 256, "head_dim": 4096}
    huge = {(GPT2_KEYS.get(k, k) if kind == "gpt2" else k): v for k, v in huge.items()}
    for key, value in huge.items():
        if key not in config:
            continue
        yield f"huge: {key}", changed(key, value), () if key == "max_position_embeddings" else WEIGHTS
    for parts in (("vocab_size", "hidden_size", "n_embd"), tuple(huge), ("num_hidden_layers", "n_layer", "intermediate_size", "n_inner")):
        yield f"huge: {', '.join(k for k in parts if k in config)}", \
            json.dumps({**config, **{k: v for k, v in huge.items() if k in parts and k in config}}).encode(), WEIGHTS
    for key, values in {"tie_word_embeddings": (1, "true", []), "bos_token_id": (-1, 2**63, "1", 1.5, {}, [1]),
                        "eos_token_id": (-1, [1, -1], [[1]], {}, [1] * 100000), "torch_dtype": ("int8", 16, "float128", []),
                        "dtype": ("F32", 1), "rope_theta": (0, -1, "x", [], True), "rms_norm_eps": (-1, "x", [], 1e300),
                        "norm_eps": (-1, "x"), "layer_norm_epsilon": (-1, "x"), "layer_norm_eps": (-1, []),
                        "hidden_act": ("relu", 1, []), "activation_function": ("relu", 1), "rotary_pct": (-1, 2, 1e-9, "x"),
                        "rope_scaling": ([], "x", {"type": "x"}, {"rope_type": "yarn"}, {"rope_type": "linear", "factor": 0},
                                         {"rope_type": "linear", "factor": -1}),
                        "sliding_window": (0, -1, "x", 2**63), "kv_sharing": (1, [], "x", {}, {"scheme": "x"}, {"scheme": "skipv1", "ratio": 2},
                                                                             {"scheme": "skipv1", "ratio": -1}, {"scheme": "skipv1", "ratio": 0.3},
                                                                             {"scheme": "cla", "group": 0}, {"scheme": "cla", "group": 2**62},
                                                                             {"scheme": "yoco", "start": 99}, {"scheme": "explicit"},
                                                                             {"scheme": "explicit", "keys": [], "values": []},
                                                                             {"scheme": "explicit", "keys": [["own"] * 2] * 2, "values": [["own"] * 2, [[9, 0]] * 2]},
                                                                             {"scheme": "explicit", "keys": [["own"] * 2] * 2, "values": [["own"] * 2, [[1, -1]] * 2]},
                                                                             {"scheme": "explicit", "keys": [["own"] * 2] * 2, "values": [["own"] * 2, [[2**63, 2**64 - 1]] * 2]},
                                                                             {"scheme": "split", "keys": {"scheme": "split"}}),
                        "value_residual": (1, {"mode": "x"}), "unknown_key": (1,), "attention": ({"kind": "x"}, [])}.items():
        foreign = key in ("kv_sharing", "value_residual", "unknown_key", "attention") and kind != "heirloom"
        if foreign or key not in config and key not in ("dtype", "rope_scaling", "value_residual", "unknown_key", "attention") or \
                key == "rope_scaling" and kind in ("gpt2", "gpt_neox"):
            continue
        for value in values:
            yield f"{key} {str(value)[:40]}", changed(key, value), CONFIG
    if kind == "heirloom":
        deep = {"scheme": "none"}
        for _ in range(60):
            deep = {"scheme": "split", "keys": deep, "values": deep if _ < 3 else {"scheme": "none"}}
        yield "kv_sharing split 60 deep", changed("kv_sharing", deep), CONFIG
        yield "a long unknown key", changed("x" * 300000, 1), CONFIG
        yield "an unknown key of two lines", changed("a\nb\x1b[31m", 1), CONFIG
    yield "100000 keys", json.dumps({**config, **{f"k{i}": i for i in range(100000)}}).encode(), CONFIG


def gguf_damages(numbers):
    """(what, image)"""
    good = Gguf(numbers)
    image = good.image()
    data = len(image) - sum(-(-len(t[3]) // 32) * 32 for t in good.tensors)
    for cut in cuts(image, [0, 3, 4, 8, 16, 23, 24, 25, data - 1, data, data + 1, len(image) - 32] + [data * i // 16 for i in range(16)]):
        yield f"cut to {cut} bytes", image[:cut]
    for what in NOT_A_FILE + (DEVICE, SPARSE):
        yield what, what

    def changed(change):
        g = copy.deepcopy(good)
        change(g)
        return g.image()

    def set_field(name, value):
        return changed(lambda g: setattr(g, name, value))

    yield "other magic", set_field("magic", b"GGML")
    for version in (0, 1, 4, 2**32 - 1, 3 << 24):
        yield f"version {version}", set_field("version", version)
    tensors, pairs = len(good.tensors), len(good.pairs)
    for counts in ((tensors, pairs + 1), (tensors + 1, pairs), (tensors - 1, pairs), (tensors, pairs - 1), (0, pairs), (tensors, 0),
                   (2**63, pairs), (2**64 - 1, pairs), (tensors, 2**63), (tensors, 2**64 - 1), (2**32, 2**32)):
        yield f"counts {counts}", set_field("counts", counts)
    yield "a page behind it", set_field("tail", bytes(4096))

    def pair(key, kind, data):
        return changed(lambda g: g.pair(key, kind, data))

    for kind in (13, 99, 2**32 - 1):
        yield f"a value of type {kind}", pair("x", kind, bytes(8))
    for length in (2**31, 2**63 - 1, 2**63, 2**64 - 1, 2**64 - 8):
        yield f"a string of {length} bytes", pair("x", 8, struct.pack("<Q", length))
        yield f"an array of {length} strings", pair("x", 9, struct.pack("<IQ", 8, length))
        yield f"an array of {length} doubles", pair("x", 9, struct.pack("<IQ", 12, length))
    yield "an array of arrays", pair("x", 9, struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 4, 0))
    yield "a bool of 2", pair("x", 7, b"\2")
    yield "a key twice", changed(lambda g: g.pairs.append(g.pairs[0]))
    yield "an empty key", pair("", 4, bytes(4))
    yield "a long key", pair("x" * 100000, 4, bytes(4))
    yield "a key not of UTF-8", changed(lambda g: g.pairs.append((b"\xff\xfe", 4, bytes(4))))
    for alignment in (0, 3, 2**20 + 1, 2**31, 2**32 - 1):
        yield f"alignment {alignment}", changed(lambda g, a=alignment: g.number("general.alignment", a))
    yield "alignment 4096, not kept", changed(lambda g: g.number("general.alignment", 4096))
    yield "alignment as text", changed(lambda g: g.text("general.alignment", "32"))
    for key in ("embedding_length", "block_count", "feed_forward_length", "attention.head_count", "attention.head_count_kv", "context_length"):
        full = "llama." + key
        for value in (0, 2**31, 2**32 - 1, 2000000000) if key != "context_length" else (0, 2**32 - 1):
            yield f"{key} {value}", changed(lambda g, k=full, v=value: g.number(k, v))
        yield f"{key} as text", changed(lambda g, k=full: g.text(k, "2"))
        yield f"{key} as an array", changed(lambda g, k=full: g.array(k, 4, bytes(8), 2))
        yield f"{key} negative", pair(full, 11, struct.pack("<q", -1))
        yield f"{key} of 2^63", pair(full, 10, struct.pack("<Q", 2**63))
        if key != "attention.head_count_kv":
            yield f"without {key}", changed(lambda g, k=full: setattr(g, "pairs", [p for p in g.pairs if p[0] != k]))
    for key in ("rope.freq_base", "attention.layer_norm_rms_epsilon"):
        for value in (math.nan, math.inf, -1.0):
            yield f"{key} {value}", changed(lambda g, k=key, v=value: g.real("llama." + k, v))
    yield "rotation of NaN", changed(lambda g: (g.real("llama.rope.scaling.factor", math.nan)))
    for value in (0, 3, 2**31, 2**32 - 1, 6):
        yield f"rope.dimension_count {value}", changed(lambda g, v=value: g.number("llama.rope.dimension_count", v))
    for name, value in (("general.architecture", "mamba"), ("general.architecture", "llama\n"), ("general.architecture", ""),
                        ("tokenizer.ggml.model", "unigram")):
        yield f"{name} {value!r}", changed(lambda g, n=name, v=value: g.text(n, v))
    yield "an architecture of a number", changed(lambda g: g.number("general.architecture", 3))
    yield "experts", changed(lambda g: g.number("llama.expert_count", 8))
    yield "one of two parts", changed(lambda g: g.number("split.count", 2))
    for key in ("tokens", "scores", "token_type"):
        yield f"tokenizer {key} as numbers of one", changed(lambda g, k=key: g.array("tokenizer.ggml." + k, 4, bytes(4), 1))
        yield f"tokenizer {key} as text", changed(lambda g, k=key: g.text("tokenizer.ggml." + k, "x"))
    yield "scores of NaN", changed(lambda g: g.array("tokenizer.ggml.scores", 6, b"\xff\xff\xff\x7f" * VOCABULARY, VOCABULARY))
    yield "tokens alike", changed(lambda g: g.array("tokenizer.ggml.tokens", 8, gguf_string("a") * VOCABULARY, VOCABULARY))
    yield "more tokens than rows", changed(lambda g: g.array("tokenizer.ggml.tokens", 8, gguf_string("a") * (VOCABULARY + 1), VOCABULARY + 1))
    yield "an end of text out of range", changed(lambda g: g.number("tokenizer.ggml.eos_token_id", VOCABULARY))

    def tensor(position, **fields):
        def change(g):
            for i, name in enumerate(("name", "dims", "type", "data", "offset")):
                if name in fields:
                    g.tensors[position][i] = fields[name]
        return changed(change)

    for dims in ([], [0, 4], [1] * 5, [2**32 - 1] * 5, [2**63], [2**62, 4], [2**32, 2**32], [2**64 - 1, 1], [WIDTH], [VOCABULARY, WIDTH],
                 [WIDTH, VOCABULARY, 1], [WIDTH + 1, VOCABULARY], [WIDTH, VOCABULARY - 1]):
        yield f"dims {dims}"[:60], tensor(0, dims=dims)
    for kind, name in ((12, "Q4_K"), (14, "Q6_K"), (16, "IQ2_XXS"), (24, "I8"), (26, "I32"), (4, "a removed type"), (99, "no type"),
                       (2**32 - 1, "no type"), (1, "F16, of other length"), (8, "Q8_0, of other length")):
        yield f"type {kind} ({name})", tensor(0, type=kind)
    yield "a quantised vector", tensor(1, type=8, data=bytes(34))
    for offset in (1, 31, 2**31 * 32, 2**63, 2**64 - 32, 0, 32):
        yield f"offset {offset}", tensor(2, offset=offset)
    yield "a tensor twice", changed(lambda g: g.tensors.append(g.tensors[1]))
    yield "a tensor missing", changed(lambda g: g.tensors.pop(5))
    yield "a tensor more", changed(lambda g: g.tensors.append(["blk.9.ffn_up.weight", [1], 0, bytes(4), None]))
    for name in ("", "x", "x" * 1000, "a\nb", "x" * 100000):
        yield f"a tensor named {name[:9]!r}", tensor(4, name=name)
    yield "frequency factors of NaN", changed(lambda g: g.tensors.append(["rope_freqs.weight", [HEAD // 2], 0, b"\xff" * 16, None]))
    yield "frequency factors of zero", changed(lambda g: g.tensors.append(["rope_freqs.weight", [HEAD // 2], 0, bytes(16), None]))
    yield "too few frequency factors", changed(lambda g: g.tensors.append(["rope_freqs.weight", [1], 0, bytes(4), None]))


def llama2c_damages(image, version):
    header = 256 if version else 28
    for cut in cuts(image, [0, 1, 3, 4, 27, 28, 29, 35, 36, 255, 256, header, header + 1, len(image) // 2, len(image) - 4, len(image) - 1]):
        yield f"cut to {cut} bytes", image[:cut]
    yield "a weight more", image + bytes(4)
    yield "a byte more", image + b"\0"
    first = 8 if version else 0
    for i, name in enumerate(("dim", "hidden_dim", "layers", "heads", "kv_heads", "vocab", "seq_len")):
        for value in (0, -1, 3, 2**31 - 1, -2**31, 1 << 22, 4096):
            at = first + 4 * i
            if version == 0 or name != "seq_len" or value < 1:  # nothing has them in version 1
                yield f"{name} {value}", image[:at] + struct.pack("<i", value) + image[at + 4:]
    if version == 1:
        for value in (0, 2, 3, -1, 2**31 - 1):
            yield f"version {value}", image[:4] + struct.pack("<i", value) + image[8:]
        yield "a flag of 2", image[:36] + b"\2" + image[37:]
        yield "a flag of the other form", image[:36] + b"\0" + image[37:]
    for what in NOT_A_FILE + (DEVICE, SPARSE):
        yield what, what


def llama2c_tokenizer_damages(image):
    for cut in cuts(image, [0, 3, 4, 8, 11, 12, len(image) // 2, len(image) - 1]):
        yield f"cut to {cut} bytes", image[:cut]
    yield "a byte more", image + b"\0"
    yield "a token less", llama2c_tokenizer(VOCABULARY - 1)
    for value in (-1, -2**31, 2**31 - 1, 1025, 0x7FFFFFF0):
        yield f"a token of {value} bytes", image[:8] + struct.pack("<i", value) + image[12:]
    yield "a score of NaN", image[:4] + struct.pack("<f", math.nan) + image[8:]
    for what in NOT_A_FILE + (DEVICE, SPARSE):
        yield what, what


def tokenizer_damages():
    """(what, tokenizer.json, refused)"""
    good = tokenizer_json()
    text = json.dumps(good).encode()
    for cut in cuts(text, [0, 1, len(text) // 2, len(text) - 1]):
        yield f"cut to {cut} bytes", text[:cut], True
    for what, damaged in (("a list", b"[]"), ("null", b"null"), ("an empty object", b"{}"), ("not UTF-8", text.replace(b"type", b"ty\xff", 1)),
                          ("deep", b'{"model":' * 100000 + b"1" + b"}" * 100000), ("a key twice", text[:-1] + b"," + text[1:])):
        yield what, damaged, what != "a key twice"
    for what in NOT_A_FILE + (DEVICE, SPARSE):
        yield what, what, True

    def changed(section, **fields):
        c = copy.deepcopy(good)
        (c[section] if section else c).update(fields)
        return json.dumps(c).encode()

    for key in ("model", "added_tokens", "pre_tokenizer", "decoder", "normalizer", "post_processor"):
        for value in (1, "x", [1], {"type": "Magic"}, {"type": 3}):
            yield f"{key} {value}", changed("", **{key: value}), True
    vocabulary = good["model"]["vocab"]
    for what, value in (("null", None), ("a list", []), ("ids of text", {**vocabulary, "t": "1"}), ("negative ids", {**vocabulary, "t": -1}),
                        ("an id of 2^31", {**vocabulary, "t": 2**31}), ("an id of 2^63", {**vocabulary, "t": 2**63}),
                        ("an id of 10^30", {**vocabulary, "t": 10**30}), ("a fraction", {**vocabulary, "t": 1.5}),
                        ("an id twice", {**vocabulary, "t": vocabulary["h"]})):
        yield f"vocab: {what}", changed("model", vocab=value), True
    for what, value in (("null", None), ("numbers", [1]), ("of one", [["t"]]), ("unknown", [["t", "unknown"]]), ("unknown product", [["t", "t"]]),
                        ("text", "t h"), ("one word", ["th"]), ("objects", [{}])):
        yield f"merges: {what}", changed("model", merges=value), what == "unknown" or what in ("numbers", "of one", "text", "objects")
    token = good["added_tokens"][0]
    for what, value in (("negative", {**token, "id": -1}), ("of 2^31", {**token, "id": 2**31}), ("of 2^63", {**token, "id": 2**63}),
                        ("without content", {"id": 0}), ("of numbers", {**token, "content": 1}), ("of other id", {**token, "id": 5})):
        yield f"an added token {what}", changed("", added_tokens=[value]), what != "of other id"
    for what, pattern in (("open", "(a"), ("of nested repeats", "(a*)*(b*)*$"), ("long", "(" * 100000), ("of text", 1), ("a huge repeat", "(a{1,60000}){1,60000}"),
                          ("recursive", "(?R)?a(?R)?"), ("with a callout", "(?C1)a")):
        step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        yield f"a pattern {what}", changed("", pre_tokenizer=step), what in ("open", "of text", "long", "a huge repeat")
    deep = {"type": "NFC"}
    for _ in range(100):
        deep = {"type": "Sequence", "normalizers": [deep]}
    yield "100 sequences deep", changed("", normalizer=deep), True
    growing = {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}] * 8}
    yield "a normaliser that grows", changed("", normalizer=growing), True
    for what, processor in (("an unknown token", {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}], "pair": [], "special_tokens": {}}),
                            ("no ids", {"type": "TemplateProcessing", "single": 1}),
                            ("ids out of range", {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                                                  "pair": [], "special_tokens": {"x": {"id": "x", "ids": [2**40], "tokens": ["x"]}}})):
        yield f"a template of {what}", changed("", post_processor=processor), True


GENERATION = [(b"", True), (b"[", True), (b"\xff{}", True), (b'{"temperature": "hot"}', True), (b'{"temperature": -1}', True),
              (b'{"top_k": 1e300}', True), (b'{"top_k": -1}', True), (b'{"top_k": 2.5}', False), (b'{"top_p": 2}', True),
              (b'{"repetition_penalty": 0}', True), (b"[1]", False), (b"null", False), (b'{"temperature": null}', False),
              (DIRECTORY, True), (LOOP, True), (DEVICE, True), (SPARSE, True)]


def random_damage(image, generator):
    data = bytearray(image)
    kind = generator.randrange(4)
    # Half of the places are in the first 2 kB, where headers are.
    def place():
        return generator.randrange(min(len(data), 2048) if generator.random() < 0.5 else len(data))
    if kind == 0:
        return "cut", bytes(data[:place()])
    if kind == 1:
        begin, length = place(), generator.randrange(1, 64)
        return "a run repeated", bytes(data[:begin + length] + data[begin:])
    if kind == 2:
        begin = place()
        return "a run removed", bytes(data[:begin] + data[begin + generator.randrange(1, 64):])
    count = generator.choice((1, 1, 2, 8, 64))
    for _ in range(count):
        data[place()] = generator.choice((0, 1, 0x7F, 0x80, 0xFF, ord('"'), ord("9"), generator.randrange(256)))
    return f"{count} bytes changed", bytes(data)


# ------------------------------------------------------------------------------------------------------------------ cases


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
