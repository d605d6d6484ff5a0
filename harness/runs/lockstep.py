"""A long run once more, every step of one side from the other's state: rounding cannot grow.

The reference leads: a stretch of it is run with the state of every step kept; the other side
follows it step by step; what is known of both is compared; the stretch is removed. So the disk
holds two stretches, however long the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace

from harness.models.table import SLOTS, parameters
from harness.runs.session import Session
from harness.spec import Capture, Follow, Resume, RunSpec
from harness.trace import StepEntry, open_trace, remove_trace

STRETCH = 1 << 30  # bytes of kept states in a stretch
SHORTEST, LONGEST = 4, 500  # steps of one


def in_step(
    session: Session,
    runs: tuple[RunSpec, RunSpec],
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[StepEntry, StepEntry]]:
    """What the index says of every step of both `runs`: follower and leader.

    The follower starts every step from what the leader left of the one before. Nothing of it all is
    left on the disk. Raises HarnessError for a side that fails.
    """
    follower, leader = runs
    steps, length = leader.steps, _length(leader)
    bounds = [(s, min(s + length, steps)) for s in range(0, steps, length)]
    made: list[RunSpec] = []
    behind: RunSpec | None = None
    led: RunSpec | None = None
    try:
        for i, (done, last) in enumerate([*bounds, (steps, steps)]):
            ahead = _lead(leader, i, done, last, led) if done < last else None
            made += [run for run in (ahead, behind) if run]
            jobs = [session.start(leader.label, ahead, show=False)] if ahead else []
            jobs += [session.start(follower.label, behind, show=False)] if behind else []
            session.wait(jobs)
            if behind and led:
                a, b = open_trace(behind.trace), open_trace(led.trace)
                for step in a.steps:
                    yield a.entry(step), b.entry(step)
                    if progress:
                        progress(step, steps)
                _remove([behind, led])
            behind = _trail(follower, i, done, last, ahead) if ahead else None
            led = ahead
    finally:
        _remove(made)


def _lead(run: RunSpec, i: int, done: int, last: int, before: RunSpec | None) -> RunSpec:
    """The stretch of the leader after step `done`, with that step: it is followed from there."""
    label = f"{run.label}-leads-{i}"
    resume = Resume(before.trace, done - 1) if before else None
    capture = Capture(level="stats", checkpoint_every=1)
    return replace(
        _named(run, label), start=max(1, done), steps=last, resume=resume, capture=capture
    )


def _trail(run: RunSpec, i: int, done: int, last: int, led: RunSpec) -> RunSpec:
    """The same stretch of the follower."""
    follow, capture = Follow(led.trace, "step"), Capture(level="stats")
    label = f"{run.label}-in-step-{i}"
    return replace(
        _named(run, label), start=done + 1, steps=last, resume=None, follow=follow, capture=capture
    )


def _named(run: RunSpec, label: str) -> RunSpec:
    folder = Path(run.trace).parent
    files = {"trace": str(folder / f"{label}.trace"), "final": str(folder / f"{label}.npz")}
    return replace(run, label=label, **files)


def _length(run: RunSpec) -> int:
    """Steps of a stretch: as many as STRETCH has room for the states of."""
    weights = sum(math.prod(p.shape) for p in parameters(run.model))
    size = 8 if run.train.dtype == "float64" else 4
    state = size * weights * (1 + len(SLOTS[run.train.optimizer]))
    return min(max(STRETCH // state, SHORTEST), LONGEST)


def _remove(runs: list[RunSpec]) -> None:
    for run in runs:
        remove_trace(run.trace)
        for file in (Path(run.final), Path(run.trace).with_suffix(".json")):
            with suppress(OSError):
                file.unlink()
