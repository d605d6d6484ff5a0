"""Training to the end: epochs, validation, checkpoints; nothing is traced."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple

import msgspec
import numpy as np

from harness.data import corpus, randomness, weights
from harness.data.checkpoint import (
    Epoch,
    Progress,
    identity_of,
    load_checkpoint,
    save_checkpoint,
)
from harness.errors import HarnessError
from harness.side.backend import Backend
from harness.side.points import Points, to_array
from harness.side.steps import Mathematics, Tensors, check, groups, see_inputs, take_step
from harness.spec import RunSpec, Training


class _At(NamedTuple):
    """What the next step starts from."""

    params: Tensors
    slots: Tensors
    state: Tensors | None
    progress: Progress


def learn(
    run: RunSpec,
    training: Training,
    report: Callable[..., None],
    backend: Backend,
    twin: Mathematics,
) -> None:
    """Train from the weights of `run`, or from its checkpoint, to its last step.

    `report` is told of every step as by `harness.side.loop.train`, and at the end of an epoch of
    the mean loss of its steps, at the end of all of the loss on the test text. A process that is
    told to end (SIGTERM) leaves a checkpoint of the step that it has finished.
    """
    backend.prepare(run)
    check(run)
    batches = corpus.Batches(corpus.load_tokens(run.tokens), run.train, run.eos)
    valid, test = (
        corpus.evaluation_batches(corpus.load_tokens(path), run.train) if path else None
        for path in (run.valid, training.test)
    )
    at = _begin(run, training, backend, twin)
    backend.flush_denormals()
    step = _stepper(run, backend, twin)
    with np.errstate(all="ignore"), _told_to_end() as ended:
        for number in range(run.start, run.steps + 1):
            began = time.perf_counter()
            window = batches.window(number)
            at, lr, loss = step(at, number, window)
            nats = loss / (run.train.bptt if run.train.loss == "sum" else 1)
            said: dict[str, Any] = {}
            progress = msgspec.structs.replace(
                at.progress,
                step=number,
                total=at.progress.total + nats,
                seconds=at.progress.seconds + time.perf_counter() - began,
            )
            if window.last:
                mean = _evaluated(twin, at.params, valid, run)
                progress = _with_epoch(progress, window.epoch, lr, batches.steps_per_epoch, mean)
                last = progress.epochs[-1]
                said = {"valid": mean, "train": last.train, "seconds": last.seconds}
            if number == run.steps:
                said["test"] = _evaluated(twin, at.params, test, run)
                progress = msgspec.structs.replace(progress, test=said["test"])
            at = at._replace(progress=progress)
            due = window.last or number == run.steps or number % training.every == 0 or ended
            if training.checkpoint and due:
                _keep(at, training.checkpoint, backend)
            report(step=number, epoch=window.epoch, lr=lr, loss=loss, **said)
            if ended:
                kept = f"; {training.checkpoint} goes on there" if training.checkpoint else ""
                raise HarnessError(f"told to end after step {number}{kept}")
    if training.checkpoint:
        weights.save({name: to_array(backend, p) for name, p in at.params.items()}, run.final)


def _begin(run: RunSpec, training: Training, backend: Backend, twin: Mathematics) -> _At:
    """The weights that the run starts from, or all that its checkpoint keeps."""
    if run.start == 1:
        arrays = weights.load(run.weights, run.model, dtype=run.train.dtype)
        params = {name: backend.to_tensor(array) for name, array in arrays.items()}
        progress = Progress(identity_of(run))
        return _At(params, twin.zero_slots(params, run.train), None, progress)
    assert training.checkpoint is not None
    progress, kept = load_checkpoint(training.checkpoint)
    found = []
    for group, names in groups(run).items():
        lacking = [name for name in names if f"{group}/{name}" not in kept]
        if lacking:
            raise HarnessError(f"{training.checkpoint}: it keeps no {group}/{lacking[0]}")
        found.append({name: backend.to_tensor(kept[f"{group}/{name}"]) for name in names})
    params, slots, state = found
    return _At(params, slots, state, progress)


def _stepper(
    run: RunSpec, backend: Backend, twin: Mathematics
) -> Callable[[_At, int, corpus.Window], tuple[_At, float, float]]:
    """One step: what the next one starts from, the rate, and the loss."""
    how = msgspec.structs.replace(run.train, autograd=run.train.autograd or bool(run.faults))
    graph = backend.compiles(run)

    def step(at: _At, number: int, window: corpus.Window) -> tuple[_At, float, float]:
        points = Points(backend, watch=False)
        masks = randomness.dropout_masks(run.model, run.train, number)
        losses = [e.valid for e in at.progress.epochs if e.valid is not None]
        lr = twin.learning_rate(run.train, window.epoch, twin.plateaus(losses))
        state = twin.carry(at.state, window.first, run.model, run.train)
        x, y = twin.tokens_of(window)
        params, *given = see_inputs(number, at.params, state, x, y, masks, points)
        arguments = (params, at.slots, *given, lr, number)
        params, slots, state, loss = take_step(
            graph, backend, twin, arguments, run.model, how, points
        )
        return _At(params, slots, state, at.progress), lr, float(loss)

    return step


def _with_epoch(
    progress: Progress, epoch: int, lr: float, steps: int, valid: float | None
) -> Progress:
    """The same after the last step of an epoch."""
    mean = progress.total / steps
    ended = Epoch(epoch, progress.step, lr, mean, valid, progress.seconds)
    return msgspec.structs.replace(
        progress, total=0.0, seconds=0.0, epochs=(*progress.epochs, ended)
    )


def _evaluated(
    twin: Mathematics, params: Tensors, batches: corpus.Batches | None, run: RunSpec
) -> float | None:
    """The loss on a text, in nats per token; None where it is too short."""
    return None if batches is None else float(twin.evaluate(params, batches, run.model, run.train))


def _keep(at: _At, path: str, backend: Backend) -> None:
    """Write a checkpoint."""
    found: Mapping[str, Tensors] = {
        "params": at.params,
        "optimizer": at.slots,
        "state/out": at.state or {},
    }
    arrays = {
        f"{group}/{name}": to_array(backend, tensor)
        for group, tensors in found.items()
        for name, tensor in tensors.items()
    }
    save_checkpoint(arrays, at.progress, path)


@contextmanager
def _told_to_end() -> Iterator[list[int]]:
    """A list that is no longer empty once the process was told to end."""
    told: list[int] = []

    def heard(number: int, frame: FrameType | None) -> None:
        told.append(number)

    signals = (signal.SIGTERM, signal.SIGINT)  # Ctrl-C reaches all processes of a terminal
    before = [signal.signal(number, heard) for number in signals]
    try:
        yield told
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
