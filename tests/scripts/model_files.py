# SPDX-License-Identifier: Apache-2.0
"""Small models and tokenizers in every form that is read, made from nothing: what damaged_files.py damages."""

import json
import math
import random
import struct

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


def add_block(shapes, base, linears, norms):
    """Weights and biases of a block: linears as (name, shape of the weight, outputs)."""
    for name, shape, outputs in linears:
        shapes[f"{base}{name}.weight"], shapes[f"{base}{name}.bias"] = shape, [outputs]
    for name in norms:
        shapes[f"{base}{name}.weight"] = shapes[f"{base}{name}.bias"] = [WIDTH]


def gpt2_shapes():
    shapes = {"transformer.wte.weight": [VOCABULARY, WIDTH], "transformer.wpe.weight": [POSITIONS, WIDTH],
              "transformer.ln_f.weight": [WIDTH], "transformer.ln_f.bias": [WIDTH]}
    for i in range(LAYERS):
        linears = (("attn.c_attn", [WIDTH, 3 * WIDTH], 3 * WIDTH), ("attn.c_proj", [WIDTH, WIDTH], WIDTH),
                   ("mlp.c_fc", [WIDTH, 4 * WIDTH], 4 * WIDTH), ("mlp.c_proj", [4 * WIDTH, WIDTH], WIDTH))
        add_block(shapes, f"transformer.h.{i}.", linears, ("ln_1", "ln_2"))
    return shapes


def gpt_neox_shapes():
    shapes = {"gpt_neox.embed_in.weight": [VOCABULARY, WIDTH], "embed_out.weight": [VOCABULARY, WIDTH],
              "gpt_neox.final_layer_norm.weight": [WIDTH], "gpt_neox.final_layer_norm.bias": [WIDTH]}
    for i in range(LAYERS):
        linears = (("attention.query_key_value", [3 * WIDTH, WIDTH], 3 * WIDTH), ("attention.dense", [WIDTH, WIDTH], WIDTH),
                   ("mlp.dense_h_to_4h", [4 * WIDTH, WIDTH], 4 * WIDTH), ("mlp.dense_4h_to_h", [WIDTH, 4 * WIDTH], WIDTH))
        add_block(shapes, f"gpt_neox.layers.{i}.", linears, ("input_layernorm", "post_attention_layernorm"))
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
