"""The folder of a benchmark: its text, its weights, the runs it hands to sides."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec
import numpy as np

from harness.data import corpus, weights
from harness.errors import HarnessError
from harness.runs.processes import processors
from harness.spec import Capture, ModelSpec, RunSpec, TrainSpec, preset

VOCABULARY = 10_000
ZIPF_TOKENS = 930_000  # about as many as PTB has
NEVER = Capture(first=2**62)  # a step that no run gets to


class Place:
    """A folder with the tokens, and weights of every model that is asked for."""

    def __init__(self, folder: Path) -> None:
        """Write the tokens: PTB where HARNESS_DATA has it, else draws of a Zipf law."""
        self.folder = folder
        tokens, self.text, self.eos = _tokens()
        corpus.save_tokens(tokens, folder / "tokens.npy")
        self._tokens = {VOCABULARY: folder / "tokens.npy"}
        corpus.save_tokens(tokens[:2], folder / "valid.npy")  # too short to be evaluated on
        self._drawn: dict[ModelSpec, Path] = {}

    def run(
        self,
        label: str,
        model: ModelSpec,
        train: TrainSpec,
        steps: int,
        capture: Capture = NEVER,
    ) -> RunSpec:
        """A run on all processors; its weights are drawn when first asked for."""
        return RunSpec(
            label=label,
            model=model,
            train=train,
            steps=steps,
            weights=str(self._weights(model)),
            tokens=str(self._text(model.vocab_size)),
            valid=str(self.folder / "valid.npy"),
            trace=str(self.folder / f"{label}.trace"),
            final=str(self.folder / f"{label}-final.npz"),
            eos=self.eos,
            capture=capture,
            threads=processors(),
        )

    def _weights(self, model: ModelSpec) -> Path:
        if model not in self._drawn:
            path = self.folder / f"weights-{len(self._drawn)}.npz"
            weights.save(weights.draw(model, 1), path)
            self._drawn[model] = path
        return self._drawn[model]

    def _text(self, vocabulary: int) -> Path:
        """The tokens folded into a smaller vocabulary."""
        if vocabulary not in self._tokens:
            path = self.folder / f"tokens-{vocabulary}.npy"
            tokens = corpus.load_tokens(self._tokens[VOCABULARY])
            corpus.save_tokens(tokens % np.int32(vocabulary), path)
            self._tokens[vocabulary] = path
        return self._tokens[vocabulary]


def _tokens() -> tuple[corpus.Tokens, str, int | None]:
    """The text, what to call it, and its token of a sentence's end."""
    shelf = os.environ.get("HARNESS_DATA")
    if shelf and Path(shelf, "ptb").is_dir():
        text = corpus.load("ptb")
        if len(text.vocabulary) <= VOCABULARY:
            return text.train, "Penn Treebank", text.eos
    law = 1 / np.arange(1, VOCABULARY + 1)
    drawn = np.random.default_rng(1).choice(VOCABULARY, ZIPF_TOKENS, p=law / law.sum())
    return drawn.astype(np.int32), "random tokens of a Zipf law", None


def sized(hidden: int) -> tuple[ModelSpec, TrainSpec]:
    """zaremba-small with other widths of embedding and layers."""
    model, train = preset("zaremba-small", VOCABULARY)
    wider = msgspec.structs.replace(model, embed_size=hidden, hidden_size=hidden)
    return wider, train


def check_room(folder: Path, needed: int) -> None:
    """Raises HarnessError where the disk has not twice what traces will take at one time."""
    free = shutil.disk_usage(folder).free
    if free < 2 * needed:
        raise HarnessError(
            f"the temporary folder has {free / 1e9:.1f} GB free, and traces may take "
            f"{needed / 1e9:.1f}: name a folder with {2 * needed / 1e9:.0f} GB in TMPDIR, or "
            "measure less (--quick, --only startup)"
        )
