"""Does a side repeat itself? The first steps once more, from the same start, by their hashes.

Where it does not, nothing else that is found about it can be trusted: noise without a seed, or
state that a run leaves in its process for the next one, looks like any other fault.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from msgspec.structs import replace

from harness.compare import DiffResult, diff
from harness.explain.case import Side
from harness.explain.evidence import Repeat
from harness.runs.files import relabelled, remove_files
from harness.runs.session import Session
from harness.spec import AnyRun, Level
from harness.trace import open_trace

MOST = 4  # steps that are run again


class Place(NamedTuple):
    """A step, a tensor of it, and whether the run is close to what it was at that step."""

    step: int
    tensor: str
    close: bool


def find_repeats(
    session: Session, runs: tuple[AnyRun, AnyRun], sides: tuple[str, str], free: DiffResult
) -> tuple[Repeat, ...]:
    """The sides that do not repeat themselves, with the first tensor that is not the same again.

    Each is run again in the process that it has, and, where that differs, in a fresh one. `runs`
    have ended, `sides` are the session's labels of them, `free` is their diff. What is run here is
    removed. Raises HarnessError for a side that fails.
    """
    last = free.first_divergence.step if free.first_divergence else max(r.steps for r in runs)
    short: dict[str, AnyRun] = {}
    for label, run in zip(sides, runs, strict=True):
        steps = min(run.steps, last, run.start + MOST - 1)
        # One that follows another side is told what to compute; one whose first traced step is far
        # from its start would take as long as the run.
        if run.follow is None and any(step <= steps for step in open_trace(run.trace).steps):
            short[label] = _again(run, steps)
    used = _differing(session, short, dict(zip(sides, runs, strict=True)))
    fresh: dict[str, Place] = {}
    if used:
        for label in used:
            session.renew(label)
        again = {label: short[label] for label in used}
        fresh = _differing(session, again, dict(zip(sides, runs, strict=True)))
    close = {label for label, place in (fresh or used).items() if place.close}
    kinds: tuple[tuple[Side, str], ...] = (("a", sides[0]), ("b", sides[1]))
    return tuple(
        Repeat(side, label, *fresh.get(label, used[label])[:2], label not in fresh, label in close)
        for side, label in kinds
        if label in used
    )


def _again(run: AnyRun, steps: int) -> AnyRun:
    """The run to `steps`, of which no tensors are kept: they would need room."""
    level: Level = "hash" if run.capture.level == "hash" else "stats"
    capture = replace(run.capture, level=level, checkpoint_every=None)
    return replace(relabelled(run, f"{run.label}-again"), steps=steps, capture=capture)


def _differing(
    session: Session, again: Mapping[str, AnyRun], before: Mapping[str, AnyRun]
) -> dict[str, Place]:
    """Run each side; those that are not the same again, with where they part from `before`."""
    try:
        session.run_all(again)
        places = {
            label: first_difference(before[label].trace, run.trace) for label, run in again.items()
        }
        return {label: place for label, place in places.items() if place}
    finally:
        for run in again.values():
            remove_files(run)


def first_difference(before: str, again: str) -> Place | None:
    """The first step and tensor, in execution order, that has another hash."""
    old, new = open_trace(before), open_trace(again)
    for step in new.steps:
        if step not in old.steps:
            continue
        identities = {entry.name: entry.identity for entry in new.entry(step).tensors}
        for entry in old.entry(step).tensors:
            if identities.get(entry.name, entry.identity) != entry.identity:
                close = new.header.level != "hash" and diff(old, new, steps=(step, step)).equivalent
                return Place(step, entry.name, close)
    return None
