"""A small GPT in PyTorch: fused queries, keys and values, AdamW, gradients clipped by their norm.

python gpt_pt.py --steps 20 --autocast
"""

import argparse
from contextlib import nullcontext

import numpy as np
import torch
from text import CHARACTERS, batches
from torch import nn
from torch.nn import functional
from weights import HEADS, LAYERS, LENGTH, WIDTH, initial

import harness


class Block(nn.Module):
    """Attention, then two dense layers; each reads a norm of what it adds to."""

    def __init__(self, epsilon):
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, eps=epsilon)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH, eps=epsilon)
        self.wide = nn.Linear(WIDTH, 4 * WIDTH)
        self.narrow = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        b, t, _ = x.shape
        parts = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        q, k, v = (p.view(b, t, HEADS, -1).transpose(1, 2) for p in parts)  # [B, heads, T, d]
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, t, WIDTH))
        return x + self.narrow(functional.gelu(self.wide(self.norm2(x))))


class GPT(nn.Module):
    """Embeddings of characters and places, blocks, a norm, logits."""

    def __init__(self, epsilon):
        super().__init__()
        self.tokens = nn.Embedding(len(CHARACTERS), WIDTH)
        self.places = nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block(epsilon) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH, eps=epsilon)
        self.head = nn.Linear(WIDTH, len(CHARACTERS), bias=False)

    def forward(self, x):
        h = self.tokens(x) + self.places(torch.arange(x.shape[1]))
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


def ported(weights):
    """The weights in the names and layouts of this program."""
    found = {"tokens.weight": weights["tokens"], "places.weight": weights["places"]}
    found["head.weight"] = weights["head"].T

    def norm(name, p):
        found[f"{name}.weight"], found[f"{name}.bias"] = p["scale"], p["bias"]

    def dense(name, *parts):
        found[f"{name}.weight"] = np.concatenate([p["kernel"].T for p in parts])
        found[f"{name}.bias"] = np.concatenate([p["bias"] for p in parts])

    norm("norm", weights["norm"])
    for i, p in enumerate(weights["blocks"]):
        dense(f"blocks.{i}.qkv", p["query"], p["key"], p["value"])
        for name in ("out", "wide", "narrow"):
            dense(f"blocks.{i}.{name}", p[name])
        norm(f"blocks.{i}.norm1", p["norm1"])
        norm(f"blocks.{i}.norm2", p["norm2"])
    return {name: torch.tensor(array) for name, array in found.items()}


def main():
    """Train for some steps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--epsilon", type=float, default=1e-5, help="of the layer norms")
    parser.add_argument("--autocast", action="store_true", help="matrix products in bfloat16")
    given = parser.parse_args()
    model = GPT(given.epsilon)
    model.load_state_dict(ported(initial()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    low = torch.autocast("cpu", torch.bfloat16) if given.autocast else nullcontext()
    with harness.record(model, optimizer) as rec:
        for x, y in batches(given.steps):
            with rec.step(x=torch.tensor(x), y=torch.tensor(y).long()) as (x, y):
                with low:
                    logits = model(x)
                    loss = functional.cross_entropy(logits.flatten(0, 1), y.flatten())
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                rec.log(loss=loss)
            print(f"loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
