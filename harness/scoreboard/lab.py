"""Tiny models on the built-in corpus and a process for each twin: where faults are tried out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType

import msgspec
import numpy as np

from harness.data import corpus as corpora
from harness.data import weights as weights_files
from harness.faults.catalogue import specs
from harness.observer import Observer
from harness.runs.session import Session, Side
from harness.spec import ModelSpec, RunSpec

SIDES = ("pt", "tf")
LAST_TOKENS = 400  # of a short text's validation


@cache
def corpus() -> corpora.Corpus:
    """The built-in corpus, made once."""
    return corpora.load(None)


class Lab:
    """Runs of tiny models in one folder; use as a context manager.

    Processes are started once; weights and texts are written once for all runs that share them.
    """

    def __init__(self, folder: Path, watcher: Observer) -> None:
        """Nothing is started yet."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.session = Session([Side(twin, twin) for twin in SIDES], folder, watcher)

    def __enter__(self) -> Lab:
        """Return the lab."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the processes."""
        self.session.__exit__(kind, error, traceback)

    def run_spec(
        self,
        label: str,
        settings: Mapping[str, str],
        steps: int,
        *,
        tokens: int | None = None,
        faults: Sequence[str] = (),
        model: str = "lstm",
    ) -> RunSpec:
        """A run of a tiny model with `settings` beyond its own, on the first `tokens` of the text.

        `model` is one of harness.models.faults.MODELS.
        """
        spec, train = specs(model, settings)
        return RunSpec(
            label=label,
            model=spec,
            train=train,
            steps=steps,
            weights=self._weights(spec, train.seed),
            tokens=self._text("train", tokens),
            valid=self._text("valid", LAST_TOKENS if tokens else None),
            trace=str(self.folder / f"{label}.trace"),
            final=str(self.folder / f"{label}.npz"),
            faults=tuple(faults),
        )

    def text(self, tokens: int | None) -> corpora.Tokens:
        """The training text, cut to its first `tokens`."""
        return corpus().train[:tokens]

    def _weights(self, model: ModelSpec, seed: int) -> str:
        sizes = "-".join(map(str, msgspec.structs.astuple(model)))
        path = self.folder / f"weights-{sizes}-{seed}.npz"
        if not path.exists():
            weights_files.save(weights_files.draw(model, seed), path)
        return str(path)

    def _text(self, split: str, tokens: int | None) -> str:
        path = self.folder / f"{split}-{tokens or 'all'}.npy"
        if not path.exists():
            corpora.save_tokens(np.ascontiguousarray(getattr(corpus(), split)[:tokens]), path)
        return str(path)
