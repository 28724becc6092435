# SPDX-License-Identifier: Apache-2.0
"""Damages of model and tokenizer files, for damaged_files.py: each is a name, the files as damaged, which commands read them and
whether they must be refused."""

import copy
import json
import math
import struct

from model_files import (BYTES, HEAD, VOCABULARY, WIDTH, Gguf, gguf_string, llama2c_tokenizer, safetensors_image, split_image,
                         tokenizer_json, with_header)

# What may stand in place of a file.
DIRECTORY, LOOP, DEVICE, LONG_LINK = "a directory", "a link to itself", "a link to /dev/zero", "a link to a long name"
SPARSE, PIPE = "a sparse file of 1 TB", "a pipe"

# Commands that read a part of a model.
IMPORT = ("convert", "uptrain")
WEIGHTS = IMPORT + ("perplexity", "generate")
FORMAT = WEIGHTS + ("info",)
CONFIG = FORMAT + ("kv",)

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
