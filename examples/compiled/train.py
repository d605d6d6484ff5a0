"""A small network in PyTorch, eager or compiled: does the compiler change what is computed?

python train.py --compile
"""

import argparse

import torch
from torch import nn
from torch.nn import functional

import harness


class Net(nn.Module):
    """Three dense layers with a norm between them."""

    def __init__(self, fast):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(12, 24), nn.LayerNorm(24), nn.Linear(24, 5)
        self.gelu = "tanh" if fast else "none"

    def forward(self, x):
        return self.last(functional.gelu(self.norm(self.first(x)), approximate=self.gelu))


def main():
    """Train for some steps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--fast", action="store_true", help="the approximate GELU")
    given = parser.parse_args()
    torch.manual_seed(1)
    model = Net(given.fast)
    compute = torch.compile(model) if given.compile else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with harness.record(model, optimizer) as rec:
        for _ in range(given.steps):
            with rec.step(x=torch.randn(16, 12), y=torch.randint(5, (16,))) as (x, y):
                loss = functional.cross_entropy(compute(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rec.log(loss=loss)
            print(f"loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
