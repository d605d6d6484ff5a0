"""Where a training has come to: all that it needs to go on to the same bits, in one file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.data import weights
from harness.data.corpus import load_tokens, perplexity
from harness.errors import HarnessError
from harness.spec import RunSpec, settings_of
from harness.trace.statistics import digest

PROGRESS = "progress"  # the array that holds it, as JSON


class Epoch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One epoch of a training; losses are means over tokens, in nats.

    `step` is its last; `seconds` what its steps took, without evaluation. `valid` is None where the
    text is too short.
    """

    epoch: int
    step: int
    lr: float
    train: float
    valid: float | None
    seconds: float

    @property
    def train_perplexity(self) -> float:
        """The exponential of the mean loss of its steps, each before its update."""
        return perplexity(self.train)

    @property
    def valid_perplexity(self) -> float | None:
        """That on the validation text, after its last step."""
        return None if self.valid is None else perplexity(self.valid)


class Progress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far a training has come: after `step`, whose epoch has `total` nats in `seconds` so far.

    `settings` are those of model and training, with digests of the texts (`identity_of`); `test` is
    the loss on the test text, once it is done.
    """

    settings: dict[str, Any]
    step: int = 0
    total: float = 0.0
    seconds: float = 0.0
    epochs: tuple[Epoch, ...] = ()
    test: float | None = None


def identity_of(run: RunSpec) -> dict[str, Any]:
    """What a run computes, and on what: its settings, and digests of its texts."""
    texts = {"tokens": run.tokens, "valid": run.valid}
    digests = {name: digest(load_tokens(path)) for name, path in texts.items() if path}
    return {**settings_of(run), **digests}


def save_checkpoint(
    arrays: Mapping[str, NDArray[Any]], progress: Progress, path: str | Path
) -> None:
    """Write a checkpoint, whole or not at all, over the one before. Raises HarnessError."""
    text = json.dumps(msgspec.to_builtins(progress)).encode()  # msgspec has no way to write NaN
    weights.save({**arrays, PROGRESS: np.frombuffer(text, np.uint8)}, path)


def load_checkpoint(path: str | Path) -> tuple[Progress, dict[str, NDArray[Any]]]:
    """What `save_checkpoint` wrote. Raises HarnessError for any other file, or a damaged one."""
    arrays = weights.read_arrays(path, beside=PROGRESS)
    try:
        text = arrays.pop(PROGRESS).tobytes()
        return msgspec.convert(json.loads(text), Progress), arrays
    except (KeyError, ValueError, msgspec.MsgspecError) as error:
        raise HarnessError(f"{path}: no checkpoint of harness train: {error}") from None
