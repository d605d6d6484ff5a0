"""The bare matrix products of a step, by PyTorch: a limit for whatever computes the step."""

import sys

import torch

from harness.bench.products import shapes
from harness.side.serving import main


def train(run, report):
    """Compute the products once a step, into memory that is there."""
    torch.set_num_threads(run.threads)
    kind = getattr(torch, run.train.dtype)
    todo = []
    for count, m, k, n in shapes(run.model, run.train):
        weight = torch.randn(k, n, dtype=kind)  # one for all timesteps
        for _ in range(count):
            todo.append((torch.randn(m, k, dtype=kind), weight, torch.empty(m, n, dtype=kind)))
    for step in range(run.start, run.steps + 1):
        for a, b, out in todo:
            torch.mm(a, b, out=out)
        report(step=step, loss=0.0)


if __name__ == "__main__":
    sys.exit(main(train))
