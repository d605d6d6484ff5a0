"""What the stock models of all frameworks share: the windows of a run, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator

from harness.data import corpus
from harness.errors import HarnessError
from harness.spec import RunSpec


def windows(run: RunSpec) -> Iterator[tuple[int, float, corpus.Window]]:
    """Every step of a run with its learning rate and its window."""
    batches = corpus.Batches(corpus.load_tokens(run.tokens), run.train, run.eos)
    for step in range(run.start, run.steps + 1):
        window = batches.window(step)
        decays = max(window.epoch - run.train.flat_epochs, 0)
        yield step, run.train.lr / run.train.lr_decay**decays, window


def check(run: RunSpec) -> None:
    """Refuse what the stock models do not do. Raises HarnessError."""
    train = run.train
    if train.optimizer != "sgd" or train.clip != "global_norm" or train.weight_decay:
        raise HarnessError("the stock models know sgd, clipped by global norm, without decay")
