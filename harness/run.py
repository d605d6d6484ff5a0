"""A run: both sides from the same weights on the same data, each in its process, then the diff.

`python -m harness.run` is `harness run`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from harness import corpus as corpora
from harness import weights as weights_files
from harness.compare import DiffResult, Tolerance, diff
from harness.errors import HarnessError
from harness.sides import TWINS, SideProcess
from harness.spec import (
    Capture,
    ModelSpec,
    RunSpec,
    TrainSpec,
    build,
    check_label,
    override,
    preset,
    replace,
)
from harness.trace import remove_trace

DEFAULT_MODEL = "zaremba-small"


class RunResult(msgspec.Struct, frozen=True):
    """What a run left: trace folders and losses by side, and the diff (None with one side).

    `valid` has the validation loss of every finished epoch, in nats per token; `entropy` the least
    that any model can reach, where it is known.
    """

    traces: dict[str, str]
    losses: dict[str, list[float]]
    valid: dict[str, list[float]]
    entropy: float | None
    diff: DiffResult | None
    verdict: None = None


class Observer:
    """Told what a run is doing. This one says nothing; the command line's draws progress."""

    def note(self, text: str) -> None:
        """A fact about the run, for people."""

    def begin(self, what: str, total: int) -> None:
        """A part of the run starts: a side, or the diff; it has `total` steps."""

    def advance(self, what: str, done: int) -> None:
        """`done` steps of a part are done."""

    def part(self, what: str) -> Callable[[int, int], None]:
        """A progress callback (done, total) for one part, begun at its first call."""
        begun: list[str] = []

        def progress(done: int, total: int) -> None:
            if not begun:
                begun.append(what)
                self.begin(what, total)
            self.advance(what, done)

        return progress


class _Side(NamedTuple):
    """A side as asked for: its label, its twin, and the settings that only it has."""

    label: str
    twin: str
    python: str
    settings: dict[str, str]


def run_sides(
    *,
    trace: int = 10,
    sides: Sequence[str] = ("pt", "tf"),
    weights: str | Path | None = None,
    data: str | Path | None = None,
    level: str = "word",
    model: str | None = None,
    settings: Sequence[str] = (),
    pythons: Sequence[str] = (),
    out: str | Path = "traces",
    capture: Capture | None = None,
    device: Literal["cpu", "gpu"] = "cpu",
    threads: int | None = None,
    sequential: bool = False,
    rtol: float | None = None,
    atol: float | None = None,
    all: bool = False,
    observer: Observer | None = None,
) -> RunResult:
    """Run one or two sides for `trace` steps from the same weights, trace them, and compare.

    Args:
        trace: optimizer steps.
        sides: "pt", or "LABEL=pt"; the last one is the reference.
        weights: a file of weights; None draws them from the seed and saves them in `out`.
        data: a corpus (`harness.corpus.load`); None is the built-in one.
        level: "word" or "char": how the corpus is read.
        model: a preset's name; None takes the sizes of `weights`, or else zaremba-small.
        settings: "name=value" for both sides, "LABEL:name=value" for one.
        pythons: "LABEL=PATH" of the interpreter of a side.
        out: the folder for traces, logs, and the files that the sides are given.
        capture: which steps and tensors to trace.
        device: "cpu" or "gpu".
        threads: threads of one side; None shares this machine's processors between the sides.
        sequential: one side after the other instead of both at once.
        rtol, atol, all: as for `harness.diff`; observer: told about progress.

    Raises HarnessError for bad input and for a side that failed (the other's trace stays).
    """
    watcher = observer or Observer()
    Tolerance.given(rtol, atol)  # refused now, not after the run
    chosen = _parse_sides(sides, settings, pythons)
    common = {
        "steps": trace,
        "capture": capture or Capture(),
        "device": device,
        "threads": threads or max(1, _processors() // len(chosen)),
    }
    folder, corpus = Path(out), corpora.load(data, level)
    watcher.note(describe_corpus(corpus))
    specs = _specs(model, weights, corpus, _shared(settings))
    runs = _prepare(chosen, specs, weights, corpus, folder, common, watcher)
    losses, valid = _run_all(chosen, runs, folder, sequential, watcher)
    traces = {run.label: run.trace for run in runs}
    found = None
    if len(runs) == 2:
        told = watcher.part("diff")
        found = diff(*traces.values(), rtol=rtol, atol=atol, all=all, progress=told)
    return RunResult(traces, losses, valid, corpus.entropy, found)


def _processors() -> int:
    """How many processors this process may use; not every system can tell them from all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _prepare(
    sides: list[_Side],
    specs: tuple[ModelSpec, TrainSpec],
    weights: str | Path | None,
    corpus: corpora.Corpus,
    folder: Path,
    common: dict[str, Any],
    watcher: Observer,
) -> list[RunSpec]:
    """Make the files that the sides are given; what each is to do, checked before any starts."""
    _make_folder(folder)
    common |= {
        "weights": str(_weights(weights, *specs, folder, watcher)),
        "tokens": str(folder / "tokens.npy"),
        "valid": str(folder / "valid.npy"),
        "eos": corpus.eos,
    }
    corpora.save_tokens(corpus.train, folder / "tokens.npy")
    corpora.save_tokens(corpus.valid, folder / "valid.npy")
    runs = [_run_spec(side, *specs, folder, common) for side in sides]
    for run in runs:
        corpora.Batches(corpus.train, run.train, corpus.eos)  # is the text long enough?
        short = corpora.evaluation_batches(corpus.valid, run.train) is None
        if short and run.train.schedule == "plateau":
            raise HarnessError(
                f"schedule=plateau needs a validation text of "
                f"{run.train.batch_size * (run.train.bptt + 1)} tokens; {corpus.name} has "
                f"{len(corpus.valid)}"
            )
    return runs


def _run_spec(
    side: _Side, model: ModelSpec, train: TrainSpec, folder: Path, common: dict[str, Any]
) -> RunSpec:
    """What one side is to do."""
    own_model, own_train = override(model, train, side.settings)
    trace = folder / f"{side.label}.trace"
    return build(
        RunSpec,
        label=side.label,
        model=own_model,
        train=own_train,
        trace=str(trace),
        final=str(folder / f"{side.label}.npz"),
        **common,
    )


def describe_corpus(corpus: corpora.Corpus) -> str:
    """A line about a corpus, with the best perplexity that any model can have where it is known."""
    sizes = " + ".join(f"{len(split):,}" for split in (corpus.train, corpus.valid, corpus.test))
    text = f"corpus {corpus.name}: {sizes} tokens, vocabulary {len(corpus.vocabulary):,}"
    if corpus.entropy is not None:
        text += (
            f", exact entropy {corpus.entropy:.6f} nats per token (no model's perplexity is below "
            f"{corpora.perplexity(corpus.entropy):.4f})"
        )
    return text


def _parse_sides(
    sides: Sequence[str], settings: Sequence[str], pythons: Sequence[str]
) -> list[_Side]:
    labels = {}
    for text in sides:
        label, _, twin = text.rpartition("=")
        label = check_label(label or twin)
        if twin not in TWINS:
            raise HarnessError(
                f"--side {text}: no twin named {twin!r}; there are: {', '.join(TWINS)}"
            )
        if label in labels:
            raise HarnessError(
                f"--side {text}: two sides named {label!r}; name them: --side old={twin} "
                f"--side new={twin}"
            )
        labels[label] = twin
    if not 1 <= len(labels) <= 2:
        raise HarnessError(f"{len(labels)} sides: a run has one, or two to compare")
    own: dict[str, list[str]] = {label: [] for label in labels}
    for text in settings:
        label, colon, _ = text.split("=", 1)[0].partition(":")
        if colon:
            _known(label, labels, f"--set {text}")
            own[label].append(text[len(label) + 1 :])
    paths = {}
    for text in pythons:
        label, equals, path = text.partition("=")
        if not equals or not path:
            raise HarnessError(f"--python {text}: give LABEL=PATH")
        _known(label, labels, f"--python {text}")
        paths[label] = path
    return [
        _Side(label, twin, paths.get(label, sys.executable), _settings(own[label]))
        for label, twin in labels.items()
    ]


def _known(label: str, labels: dict[str, str], option: str) -> None:
    if label not in labels:
        raise HarnessError(f"{option}: no side named {label!r}; there are: {', '.join(labels)}")


def _settings(texts: Iterable[str]) -> dict[str, str]:
    """name=value texts as a dictionary; HarnessError for one that has no '='."""
    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise HarnessError(f"--set {text}: give name=value, or LABEL:name=value for one side")
        settings[name] = value
    return settings


def model_for(
    model: str | None, data: str | Path | None, level: str, settings: Sequence[str]
) -> ModelSpec:
    """The model that a preset, a corpus and settings describe, as a run of them would have it."""
    return _specs(model, None, corpora.load(data, level), _shared(settings))[0]


def _shared(texts: Sequence[str]) -> dict[str, str]:
    """The settings that name no side."""
    return _settings(text for text in texts if ":" not in text.split("=", 1)[0])


def _specs(
    model: str | None,
    weights: str | Path | None,
    corpus: corpora.Corpus,
    settings: dict[str, str],
) -> tuple[ModelSpec, TrainSpec]:
    """The specs that both sides share, before the settings of one."""
    vocabulary = len(corpus.vocabulary)
    base_model, base_train = preset(model or DEFAULT_MODEL, vocabulary)
    if weights is not None:
        found = weights_files.describe_model(weights)
        if found.vocab_size < vocabulary:
            raise HarnessError(
                f"{weights}: weights for a vocabulary of {found.vocab_size}, and the corpus "
                f"{corpus.name} has {vocabulary}: make them with harness weights init --data"
            )
        sizes = {"vocab_size": found.vocab_size}
        if model is None:
            sizes |= {
                "embed_size": found.embed_size,
                "hidden_size": found.hidden_size,
                "num_layers": found.num_layers,
            }
        base_model = replace(base_model, **sizes)
    return override(base_model, base_train, settings)


def _weights(
    path: str | Path | None,
    model: ModelSpec,
    train: TrainSpec,
    folder: Path,
    watcher: Observer,
) -> Path:
    """The file of weights that both sides read, checked, or drawn and saved."""
    if path is not None:
        weights_files.load(path, model)
        return Path(path)
    target = folder / "weights.npz"
    weights_files.save(weights_files.draw(model, train.seed), target)
    watcher.note(f"weights drawn from seed {train.seed}: {target}")
    return target


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HarnessError(f"--out {folder}: cannot be made: {error}") from None


def _run_all(
    sides: list[_Side],
    runs: list[RunSpec],
    folder: Path,
    sequential: bool,
    watcher: Observer,
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Run every side to its end; losses and validation losses by label, HarnessError otherwise."""
    processes: list[SideProcess] = []
    jobs = []
    failures = []
    try:
        for run in runs:
            remove_trace(run.trace)  # a side that fails must not leave an earlier run's
        for side, run in zip(sides, runs, strict=True):
            watcher.begin(side.label, run.steps)
            twin, python = TWINS[side.twin], side.python
            process = SideProcess(twin, python, side.label, folder, watcher.note)
            processes.append(process)
            jobs.append(process.run(run, partial(watcher.advance, side.label)))
            if sequential:
                jobs[-1].wait()
        for job in jobs:
            failures += [error for error in [job.wait()] if error]
    finally:
        for process in processes:
            process.stop()
    if failures:
        kept = ", ".join(run.trace for run in runs if Path(run.trace).exists())
        raise HarnessError("\n".join(failures) + (f"\ntraces kept: {kept}" if kept else ""))
    losses = {job.run.label: job.losses for job in jobs}
    return losses, {job.run.label: job.valid for job in jobs}


if __name__ == "__main__":
    from harness.cli import main

    main(["run", *sys.argv[1:]])
