"""Training to the end, on one side or several, from one file of weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from harness.data import corpus as corpora
from harness.data.checkpoint import Epoch, Progress, identity_of, load_checkpoint
from harness.errors import HarnessError
from harness.models.presets import EPOCHS, USUAL_EPOCHS
from harness.observer import Observer
from harness.runs.prepare import DEFAULT_MODEL, Prepared, prepare
from harness.runs.request import (
    Computation,
    Execution,
    parse_shared_settings,
    parse_sides,
    untraced,
)
from harness.runs.result import Curve, Gap, TrainResult
from harness.runs.session import Session
from harness.side.serving import Stepped
from harness.spec import RunSpec, Training

EVERY = 500  # steps between two checkpoints
CHECKPOINT_FILE, METRICS_FILE = "{}.checkpoint.safetensors", "{}.jsonl"

Listener = Callable[[str, Epoch], None]


def train_sides(
    *,
    sides: Sequence[str] = ("pt", "tf"),
    epochs: int | None = None,
    weights: str | Path | None = None,
    data: str | Path | None = None,
    tokens: str = "word",
    model: str | None = None,
    settings: Sequence[str] = (),
    faults: Sequence[str] = (),
    pythons: Sequence[str] = (),
    out: str | Path = "training",
    resume: bool = False,
    every: int = EVERY,
    device: Literal["cpu", "gpu"] = "cpu",
    threads: int | None = None,
    sequential: bool = False,
    listener: Listener | None = None,
    observer: Observer | None = None,
) -> TrainResult:
    """Train one to three twins from the same weights on the same text, and compare their curves.

    Each leaves in `out` LABEL.jsonl (a line an epoch), LABEL.npz (its weights at the end) and
    LABEL.checkpoint.safetensors, from which `resume` goes on to the same bits.

    Args:
        sides, weights, data, tokens, model, settings, faults, pythons, device, threads, sequential,
            observer: as for `run_sides`; scripts train themselves.
        epochs: how many (None: as many as the model's source has).
        out, resume, every: the folder; go on with what is there; steps between checkpoints.
        listener: told of every epoch of every side.
    Raises HarnessError for bad input, for a side that failed (what was finished is kept), and for a
    training in `out` that nobody asked to resume.
    """
    request = untraced(
        parse_sides(sides, settings, pythons, faults),
        Computation("all", model, weights, data, tokens, parse_shared_settings(settings)),
        Execution(device, threads, sequential, ()),
        out,
        "a script trains by itself: run it, with harness.record around its steps where they are to "
        "be compared",
    )
    for option, number in (("--epochs", epochs), ("--checkpoint-every", every)):
        if number is not None and number < 1:
            raise HarnessError(f"{option} {number}: give a number from 1 up")
    watcher = observer or Observer()
    count = epochs or EPOCHS.get(model or DEFAULT_MODEL, USUAL_EPOCHS)
    if not resume:
        _refuse_to_overwrite(request.output.folder, [s.side.label for s in request.sides])
    prepared = prepare(request, watcher)
    runs = [_run(run, prepared, request.output.folder, count, every) for run in prepared.runs]
    with Session([s.side for s in request.sides], request.output.folder, watcher) as session:
        curves = _train(session, runs, sequential, listener or (lambda label, epoch: None))
    return TrainResult(curves, _gap(curves), prepared.entropy)


def _refuse_to_overwrite(folder: Path, labels: Sequence[str]) -> None:
    for label in labels:
        path = folder / CHECKPOINT_FILE.format(label)
        if path.exists():
            raise HarnessError(
                f"{path}: a training is kept here: go on with it (--resume), or name another "
                "folder (--out)"
            )


def _run(
    run: Any, prepared: Prepared, folder: Path, epochs: int, every: int
) -> tuple[RunSpec, Progress]:
    """What a side is to do, all epochs, and what of it is done: nothing, or its checkpoint's."""
    assert isinstance(run, RunSpec)
    assert prepared.corpus is not None
    text = folder / "test.npy"
    corpora.save_tokens(prepared.corpus.test, text)
    path = folder / CHECKPOINT_FILE.format(run.label)
    steps = corpora.Batches(prepared.corpus.train, run.train, run.eos).steps_per_epoch * epochs
    training = Training(str(text), str(path), every)
    kept = _kept(path, run)
    return replace(run, steps=steps, training=training, start=kept.step + 1), kept


def _kept(path: Path, run: RunSpec) -> Progress:
    """What a side has done already. Raises HarnessError where it was done with other settings."""
    settings = identity_of(run)
    if not path.exists():
        return Progress(settings)
    progress, _ = load_checkpoint(path)
    changed = [n for n, value in settings.items() if progress.settings.get(n, value) != value]
    if changed:
        name = changed[0]
        raise HarnessError(
            f"{path}: was trained with {name} = {progress.settings[name]!r}, and "
            f"{settings[name]!r} is asked for: leave that as it was, or name another folder (--out)"
        )
    return progress


def _train(
    session: Session,
    runs: Sequence[tuple[RunSpec, Progress]],
    sequential: bool,
    listener: Listener,
) -> dict[str, Curve]:
    """Run what is left to do; the whole curves."""
    curves, jobs = {}, []
    for run, kept in runs:
        curve = _Curve(run, kept, session, listener)
        curves[run.label] = curve
        if run.start > run.steps:
            session.watcher.note(f"{run.label}: {len(curve.epochs)} epochs are trained already")
            continue
        jobs.append(session.start(run.label, run, on_epoch=curve.add))
        if sequential:
            session.wait(jobs)
    session.wait(jobs)
    return {label: curve.value() for label, curve in curves.items()}


class _Curve:
    """The epochs of one side as they come, and the file that has them."""

    def __init__(
        self, run: RunSpec, progress: Progress, session: Session, listener: Listener
    ) -> None:
        """With those that the checkpoint has: the file may lack its last line."""
        self._run, self._listener, self._watcher = run, listener, session.watcher
        self.epochs, self.test = list(progress.epochs), progress.test
        self._file = session.folder / METRICS_FILE.format(run.label)
        self._write()

    def add(self, said: Stepped) -> None:
        """Take what the side says at the end of an epoch."""
        if said.train is not None and said.epoch and said.lr is not None:
            seconds = said.seconds or 0.0
            epoch = Epoch(said.epoch, said.step, said.lr, said.train, said.valid, seconds)
            self.epochs.append(epoch)
            self._listener(self._run.label, epoch)
            self._watcher.note(f"{self._run.label}: {_words(epoch, self._speed([epoch]))}")
        if said.test is not None:
            self.test = said.test
        self._write()

    def value(self) -> Curve:
        """The result."""
        return Curve(
            tuple(self.epochs),
            self.test,
            self._speed(self.epochs),
            str(self._file),
            self._run.final,
        )

    def _speed(self, epochs: Sequence[Epoch]) -> float | None:
        """Tokens a second of these epochs."""
        per_epoch = self.epochs[0].step if self.epochs else 0
        tokens = per_epoch * self._run.train.batch_size * self._run.train.bptt
        seconds = sum(e.seconds for e in epochs)
        return tokens * len(epochs) / seconds if seconds else None

    def _write(self) -> None:
        lines: list[Mapping[str, Any]] = [_line(epoch) for epoch in self.epochs]
        if self.test is not None:
            lines.append({"test_perplexity": corpora.perplexity(self.test)})
        partial = self._file.with_name(f".{self._file.name}.partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines))
        partial.replace(self._file)


def _line(epoch: Epoch) -> dict[str, Any]:
    """A line of the metrics."""
    found = msgspec.to_builtins(epoch)
    perplexities = {
        "train_perplexity": epoch.train_perplexity,
        "valid_perplexity": epoch.valid_perplexity,
    }
    return {**found, **perplexities}


def _words(epoch: Epoch, speed: float | None) -> str:
    valid = "" if epoch.valid_perplexity is None else f", valid {epoch.valid_perplexity:.2f}"
    rate = f", {speed:,.0f} tokens a second" if speed else ""
    return f"epoch {epoch.epoch}: train perplexity {epoch.train_perplexity:.2f}{valid}{rate}"


def _gap(curves: Mapping[str, Curve]) -> Gap | None:
    """Where two sides' validation perplexities are furthest apart; of the reference, the last."""
    *others, reference = curves
    found = [
        Gap(label, reference, b.epoch, abs(x / y - 1))
        for label in others
        for a, b in zip(curves[label].epochs, curves[reference].epochs, strict=False)
        if (x := a.valid_perplexity) is not None and (y := b.valid_perplexity)
    ]
    return max(found, key=_order, default=None)


def _order(gap: Gap) -> float:
    """NaN is the furthest there is."""
    return gap.relative if gap.relative == gap.relative else float("inf")
