#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""PyTorch's training speed on the shapes of a LLaMA preset: the peer of `heirloom train`.

Usage: python benchmarks/peers/train_torch.py --mode eager|compile --dtype float32|bfloat16 [--steps N] [--warmup N]
       [--model configs/models/llama-60m.json] [--batch-size 8] [--sequence-length 256] [--threads 2]

Written as a PyTorch user would tune it: scaled_dot_product_attention, fused AdamW with clipping at 1.0, gradients set to
None, bfloat16 through autocast with float32 master weights. RMSNorm, rotary embedding (half-split) and SwiGLU compute what
transformers' LlamaForCausalLM computes, without its bookkeeping. The random tokens of each step are drawn outside the
clock. Prints one JSON line: the median step's tokens_per_second, its spread (quartiles / median), and the rate of one
matrix product of the model's own size in the same dtype in the same process.
"""

import argparse
import json
import statistics
import time
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn


class RMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(x.dtype)


def rotate_half(x):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((-b, a), dim=-1)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, inner = config["hidden_size"], config["intermediate_size"]
        self.heads = config["num_attention_heads"]
        self.kv_heads = config["num_key_value_heads"]
        self.head_dim = width // self.heads
        self.input_norm = RMSNorm(width, config["rms_norm_eps"])
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, self.kv_heads * self.head_dim, bias=False)
        self.v = nn.Linear(width, self.kv_heads * self.head_dim, bias=False)
        self.o = nn.Linear(width, width, bias=False)
        self.post_norm = RMSNorm(width, config["rms_norm_eps"])
        self.gate = nn.Linear(width, inner, bias=False)
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x, cos, sin):
        batch, length, width = x.shape
        h = self.input_norm(x)
        q = self.q(h).view(batch, length, self.heads, self.head_dim).transpose(1, 2)
        k = self.k(h).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v(h).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        cos, sin = cos.to(q.dtype), sin.to(q.dtype)
        q = q * cos + rotate_half(q) * sin
        k = k * cos + rotate_half(k) * sin
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.kv_heads != self.heads)
        x = x + self.o(y.transpose(1, 2).reshape(batch, length, width))
        h = self.post_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    def __init__(self, config, length):
        super().__init__()
        width = config["hidden_size"]
        head_dim = width // config["num_attention_heads"]
        self.embedding = nn.Embedding(config["vocab_size"], width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config["num_hidden_layers"]))
        self.norm = RMSNorm(width, config["rms_norm_eps"])
        self.head = nn.Linear(width, config["vocab_size"], bias=False)
        frequency = config["rope_theta"] ** (-torch.arange(0, head_dim, 2) / head_dim)
        angle = torch.outer(torch.arange(length), frequency).repeat(1, 2)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens, targets):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def median_and_spread(values):
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return middle, (high - low) / middle


def product_rate(rows, inner, columns, dtype, repeats=20):
    """FLOP/s of the median [rows, inner] x [inner, columns]."""
    a, b = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        F.linear(a, b)
        times.append(time.perf_counter() - begin)
    return 2.0 * rows * inner * columns / statistics.median(times)


def main():
    root = Path(__file__).resolve().parent.parent.parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=("eager", "compile"), default="eager")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=10, help="measured steps")
    parser.add_argument("--warmup", type=int, default=3, help="steps before the clock runs")
    parser.add_argument("--model", default=root / "configs/models/llama-60m.json")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    config = json.loads(Path(arguments.model).read_text())
    batch, length = arguments.batch_size, arguments.sequence_length
    model = Llama(config, length)
    parameters = sum(p.numel() for p in model.parameters())
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
                                  lr=1e-3, betas=(0.9, 0.95), eps=1e-8, fused=True)
    loss_of = torch.compile(model) if arguments.mode == "compile" else model
    bfloat16 = arguments.dtype == "bfloat16"

    def step():
        tokens = torch.randint(config["vocab_size"], (batch, length + 1))
        begin = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16) if bfloat16 else nullcontext():
            loss = loss_of(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value = loss.item()
        return time.perf_counter() - begin, value

    for _ in range(arguments.warmup):
        step()
    results = [step() for _ in range(arguments.steps)]
    seconds, spread = median_and_spread([time_taken for time_taken, _ in results])
    rate = product_rate(batch * length, config["hidden_size"], config["intermediate_size"],
                        torch.bfloat16 if bfloat16 else torch.float32)
    print(json.dumps({
        "program": f"PyTorch {torch.__version__}", "mode": arguments.mode, "dtype": arguments.dtype,
        "batch_size": batch, "sequence_length": length, "threads": arguments.threads, "parameters": parameters,
        "steps": arguments.steps, "tokens_per_second": round(batch * length / seconds, 1), "spread": round(spread, 3),
        "matmul_gflops": round(rate / 1e9, 1), "loss": round(results[-1][1], 3)}))


if __name__ == "__main__":
    main()
