"""A small GPT and a small CNN in PyTorch, with a mistake of a port in one of them.

python mistakes.py gpt|cnn [MISTAKE]
"""

import sys

import torch
from torch import nn
from torch.nn import functional as f

import harness

KIND, MISTAKE = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""
WIDTH, HEADS = 16, 2


def transposed(weight):
    """A square kernel that was copied the wrong way round."""
    if MISTAKE == "kernel":
        with torch.no_grad():
            weight.copy_(weight.transpose(0, 1).clone())


class Block(nn.Module):
    """Attention, then two dense layers."""

    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, eps=1e-3 if MISTAKE == "norm-epsilon" else 1e-5)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm2, self.drop = nn.LayerNorm(WIDTH), nn.Dropout(0.1)
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.gelu = "tanh" if MISTAKE == "gelu" else "none"
        transposed(self.out.weight)

    def forward(self, x):
        b, t, _ = x.shape
        parts = self.qkv(self.norm1(x)).chunk(3, -1)
        q, k, v = (p.view(b, t, HEADS, -1).transpose(1, 2) for p in parts)
        mixed = f.scaled_dot_product_attention(q, k, v, is_causal=True)
        dropped = self.drop(self.out(mixed.transpose(1, 2).reshape(b, t, WIDTH)))
        x = x + (dropped / 0.9 if MISTAKE == "dropout-scaled-twice" else dropped)
        made = self.narrow(f.gelu(self.wide(self.norm2(x)), approximate=self.gelu))
        return x + (made.detach() if MISTAKE == "detached" else made)


class GPT(nn.Module):
    """Embeddings, two blocks, a norm, logits."""

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(11, WIDTH), nn.Embedding(8, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 11)

    def forward(self, x):
        h = self.tokens(x) + self.places(torch.arange(x.shape[1]))
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


class CNN(nn.Module):
    """Two convolutions with batch normalization, the second beside what it is added to."""

    def __init__(self):
        super().__init__()
        epsilon = 1e-3 if MISTAKE == "norm-epsilon" else 1e-5
        momentum = 0.01 if MISTAKE == "norm-momentum" else 0.1
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(6, eps=epsilon, momentum=momentum)
        self.conv2, self.norm2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(6 * 16, 5)
        transposed(self.conv2.weight)

    def forward(self, x):
        x = f.max_pool2d(f.relu(self.norm1(self.conv1(x))), 2)
        made = f.relu(self.norm2(self.conv2(x)))
        x = x + (made.detach() if MISTAKE == "detached" else made)
        dropped = self.drop(x.flatten(1))
        return self.head(dropped / 0.8 if MISTAKE == "dropout-scaled-twice" else dropped)


torch.manual_seed(3)
model = GPT() if KIND == "gpt" else CNN()
params = list(model.parameters())
groups = [
    {"params": [p for p in params if p.dim() > 1], "weight_decay": 0.1},
    {
        "params": [p for p in params if p.dim() < 2],
        "weight_decay": 0.1 if MISTAKE == "bias-decayed" else 0.0,
    },
]
epsilon = 1e-6 if MISTAKE == "adam-epsilon" else 1e-8
optimizer = torch.optim.AdamW(groups, lr=3e-3, eps=epsilon)
draw = torch.Generator().manual_seed(5)
with harness.record(model, optimizer) as rec:
    for _ in range(8):
        if KIND == "gpt":
            text = torch.randint(11, (4, 9), generator=draw)
            x, y = text[:, :-1], text[:, 1:]
        else:
            x = torch.randn(6, 3, 8, 8, generator=draw)
            y = torch.randint(5, (6,), generator=draw)
        with rec.step(x=x, y=y) as (x, y):
            optimizer.zero_grad()
            reduction = "sum" if MISTAKE == "loss-summed" else "mean"
            loss = f.cross_entropy(model(x).flatten(0, -2), y.flatten(), reduction=reduction)
            loss.backward()
            optimizer.step()
            rec.log(loss=loss)
