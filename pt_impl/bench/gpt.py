"""A stock GPT in PyTorch that trains for some steps, recorded or not, and says how long each took.

python -m pt_impl.bench.gpt LAYERS WIDTH HEADS LENGTH STEPS LEVEL TRACE, where LEVEL is "bare", or
that of a trace. It prints JSON: seconds of every step, and of what comes after the last one.
"""

import json
import sys
import time
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn import functional

import harness
from harness.runs.processes import processors

ROWS, CHARACTERS = 8, 65


class Block(nn.Module):
    """Attention, then two dense layers; each reads a norm of what it adds to."""

    def __init__(self, width, heads):
        """`width` is a multiple of `heads`."""
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        """The block's output [B, T, width]."""
        b, t, d = x.shape
        parts = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        q, k, v = (p.view(b, t, self.heads, -1).transpose(1, 2) for p in parts)  # [B, heads, T, d]
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, t, d))
        return x + self.narrow(functional.gelu(self.wide(self.norm2(x))))


class GPT(nn.Module):
    """Embeddings of characters and places, blocks, a norm, logits."""

    def __init__(self, layers, width, heads, length):
        """`length` is that of a row."""
        super().__init__()
        self.tokens, self.places = nn.Embedding(CHARACTERS, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CHARACTERS, bias=False)

    def forward(self, x):
        """Logits [B, T, characters] of tokens [B, T]."""
        h = self.tokens(x) + self.places(torch.arange(x.shape[1]))
        return self.head(self.norm(self.blocks(h)))


def train(layers, width, heads, length, steps, level, trace):
    """Train; the seconds of every step, and those after the last."""
    torch.set_num_threads(processors())
    torch.manual_seed(1)
    model = GPT(layers, width, heads, length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    bare, seconds = level == "bare", []
    recorder = nullcontext() if bare else harness.record(model, optimizer, out=trace, level=level)
    with recorder as rec:
        for _ in range(steps):
            text = torch.randint(CHARACTERS, (ROWS, length + 1))
            x, y = text[:, :-1], text[:, 1:]
            began = time.perf_counter()
            with nullcontext((x, y)) if bare else rec.step(x=x, y=y) as (x, y):
                loss = functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                if not bare:
                    rec.log(loss=loss)
            seconds.append(time.perf_counter() - began)
        ended = time.perf_counter()
    return seconds, time.perf_counter() - ended


if __name__ == "__main__":
    *sizes, level, trace = sys.argv[1:]
    seconds, tail = train(*map(int, sizes), level, trace)
    print(json.dumps({"seconds": seconds, "tail": tail}))
