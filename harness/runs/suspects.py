"""The steps of a long run that are worth a closer look, from what its index says of every step.

In a long free run rounding grows until it passes any tolerance, and a bug may come later still. So
two kinds of steps are suspect: the first over the tolerance, and those at which a tensor is much
further apart than what its step started from, in comparison with all steps before: rounding grows
smoothly along a run, a bug jumps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from harness.compare import DiffResult
from harness.runs.result import Suspect
from harness.spec import STATE, Capture
from harness.trace import StepEntry, TensorEntry, Trace
from harness.trace.sketch import distance

# A gain is how much further apart a tensor is than what its step started from. Clean stages reach
# a few; a step jumps where a tensor's gain is JUMP times the highest until then, and that USUAL.
JUMP, USUAL = 8.0, 8.0


def suspects(
    a: Trace, b: Trace, free: DiffResult, progress: Callable[[int, int], None] | None = None
) -> tuple[Suspect, ...]:
    """The steps worth a closer look, in their order: over the tolerance, or a jump."""
    by_step: dict[int, Suspect] = {}
    if free.first_divergence:
        place = free.first_divergence
        by_step[place.step] = Suspect(place.step, f"{place.tensor} is the first over the tolerance")
    steps = sorted(set(a.steps).intersection(b.steps))

    def entries() -> Iterator[tuple[StepEntry, StepEntry]]:
        for done, step in enumerate(steps, start=1):
            yield a.entry(step), b.entry(step)
            if progress:
                progress(done, len(steps))

    for suspect in jumps(entries()):
        by_step.setdefault(suspect.step, suspect)
    return tuple(by_step[step] for step in sorted(by_step))


def jumps(
    pairs: Iterable[tuple[StepEntry, StepEntry]],
    lockstep: bool = False,
    exclude: Sequence[str] = (),
) -> list[Suspect]:
    """The steps at which a tensor is much further apart than what the step started from.

    `pairs` are the same steps on both sides; in `lockstep` both started each from one state.
    Tensors that a glob of `exclude` matches are not looked at.
    """
    looked_at = Capture(exclude=tuple(exclude))
    suspects: list[Suspect] = []
    highest: dict[str, float] = {}
    left = 1.0  # how far apart, in eps, the step before left what this one starts from
    for a, b in pairs:
        gaps = {name: gap for name, gap in _gaps(a, b) if looked_at.wants(name)}
        start, jump = left, None
        for name, gap in gaps.items():
            base = left if name.startswith("state/in/") or lockstep else start
            if name.startswith("state/in/"):
                start = max(start, gap)
            gain = gap / base if math.isfinite(base) else 0.0
            usual = max(USUAL, highest.get(name, 0.0))
            if gain > JUMP * usual and jump is None:
                size = gain / usual
                jump = Suspect(b.step, f"{name} jumps, {size:.3g} times its usual gap", size)
            highest[name] = max(highest.get(name, 0.0), gain if math.isfinite(gain) else 0.0)
        suspects += [jump] if jump else []
        if not lockstep:
            states = [gap for name, gap in gaps.items() if name.startswith(STATE)]
            left = max([1.0, *states])
    return suspects


def _gaps(a: StepEntry, b: StepEntry) -> Iterator[tuple[str, float]]:
    """How far apart each tensor of a step is, in eps of its dtype, in execution order.

    Left out are those of which that is not known.
    """
    others = {entry.name: entry for entry in a.tensors}
    for entry in b.tensors:
        other = others.get(entry.name)
        gap = None if other is None else _gap(other, entry)
        if gap is not None:
            yield entry.name, gap


def _gap(a: TensorEntry, b: TensorEntry) -> float | None:
    """Relative L2 distance in eps, estimated from sketches.

    Infinite for other integers, and NaN on one side; None where nothing is known, as between
    scripts with names, layouts or dtypes of their own.
    """
    if a.identity == b.identity:
        return 0.0
    if (a.nan, a.inf) != (b.nan, b.inf):
        return math.inf
    if a.dtype != b.dtype or a.shape != b.shape:
        return None
    if not b.dtype.startswith("float"):
        return math.inf
    if a.sketch is None or b.sketch is None:
        return None
    apart = distance(np.frombuffer(a.sketch, "<f8"), np.frombuffer(b.sketch, "<f8"))
    return apart / (b.l2 * float(np.finfo(b.dtype).eps)) if b.l2 else math.inf
