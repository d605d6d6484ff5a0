"""The files of a run: where they lie, how large they are, and how they are removed."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from harness.models.table import SLOTS, parameters
from harness.spec import STATE, AnyRun, ModelSpec, RunSpec, ScriptSpec, TrainSpec
from harness.trace import open_trace, remove_trace

R = TypeVar("R", bound=AnyRun)


def relabelled(run: R, label: str) -> R:
    """The run under another label: its trace and its weights get files of that name beside its."""
    folder = Path(run.trace).parent
    again = replace(run, label=label, trace=str(folder / f"{label}.trace"))
    return replace(again, final=str(folder / f"{label}.npz")) if isinstance(run, RunSpec) else again


def remove_files(run: AnyRun) -> None:
    """Delete what a run left: its trace, its weights, and what its side was told to do."""
    remove_trace(run.trace)
    final = [Path(run.final)] if isinstance(run, RunSpec) else []
    for file in (*final, Path(run.trace).with_suffix(".json")):
        with suppress(OSError):
            file.unlink()


def folder_bytes(path: str | Path) -> int:
    """Bytes of the files of a trace folder, and of those of its ranks."""
    return sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())


def run_bytes(run: AnyRun) -> int:
    """How many bytes a step of a full float32 trace of a run takes, about."""
    if isinstance(run, RunSpec):
        return step_bytes(run.model, run.train)
    steps = len(open_trace(run.trace).steps)
    return folder_bytes(run.trace) // max(1, steps)


def step_bytes(model: ModelSpec, train: TrainSpec) -> int:
    """How many bytes a step of a full float32 trace takes at most (the first has more: inputs)."""
    copies = 3 + len(SLOTS[train.optimizer])  # gradients, clipped gradients, weights, slots
    units = model.embed_size + 6 * model.hidden_size * model.num_layers + model.vocab_size
    activations = 2 * train.batch_size * train.bptt * units  # and their gradients
    return 4 * (_weights(model) * copies + activations)


def state_bytes(run: AnyRun) -> int:
    """How many bytes the weights and the optimizer's slots of `run` take, in its own dtype."""
    if isinstance(run, ScriptSpec):
        trace = open_trace(run.trace)
        last = trace.entry(trace.steps[-1]).tensors
        return 8 * sum(e.size for e in last if e.name.startswith((*STATE, "inputs/")))
    size = 8 if run.train.dtype == "float64" else 4
    return size * _weights(run.model) * (1 + len(SLOTS[run.train.optimizer]))


def _weights(model: ModelSpec) -> int:
    """How many numbers the weights are."""
    return sum(math.prod(parameter.shape) for parameter in parameters(model))
