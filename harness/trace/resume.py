"""Where a run starts again: what a trace keeps of the end of a step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from numpy.typing import NDArray

from harness.spec import RunSpec
from harness.trace.aligned import open_trace
from harness.trace.reader import Trace
from harness.trace.schema import TraceError

Groups = dict[str, dict[str, NDArray[Any]]]


def resumed(run: RunSpec, names: Mapping[str, Iterable[str]]) -> tuple[Groups, list[float]]:
    """What a run that resumes starts from: the end of step run.resume.step of the trace there.

    `names` has the tensors of each group ("params", "optimizer", "state/out"); they come back in
    the run's dtype. Beside them come the validation losses of the epochs until then, which a
    schedule that waits for plateaus needs (empty where it does not). Raises TraceError that names
    what the trace does not keep.
    """
    assert run.resume is not None
    trace = open_trace(run.resume.trace)
    step = trace.step(run.resume.step)
    entries = {entry.name: entry for entry in step.entries}
    groups: Groups = {}
    for group, own in names.items():
        groups[group] = {}
        for name in own:
            entry = entries.get(f"{group}/{name}")
            if entry is None or not step.holds(entry):
                raise TraceError(
                    f"{trace.path}: no {group}/{name} is kept of step {run.resume.step}: a run can "
                    "start again only where all of params/*, optimizer/* and state/out/* are "
                    "(level full, or checkpoints)"
                )
            groups[group][name] = step.read(entry).astype(run.train.dtype)
    losses = _losses(trace, run.resume.step) if run.train.schedule == "plateau" else []
    return groups, losses


def _losses(trace: Trace, last: int) -> list[float]:
    """The validation losses of the epochs that ended by step `last`: scalars are their minimum."""
    found = []
    for step in trace.steps:
        if step <= last:
            for entry in trace.entry(step).tensors:
                if entry.name == "evaluate/loss" and entry.min is not None:
                    found.append(entry.min)
    return found
