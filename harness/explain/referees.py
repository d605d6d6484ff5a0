"""Whether the float64 runs that are given as referees are what they must be.

A verdict rests on them, so what is no float64 run, or is another run, is refused by name.
"""

from __future__ import annotations

import numpy as np

from harness.compare import DiffResult
from harness.errors import HarnessError
from harness.explain.case import Array
from harness.trace import Step, Trace

SINGLE = float(np.finfo(np.float32).eps)
OTHER_RUN = 0.25  # of most tensors' norms: a run and its referee are never so far apart at first
NEARER = 8.0  # times: a referee that is so much nearer to the other side is that side's
TELLING = 32  # different numbers that say whether they were computed in float32
LOOKED_AT = 48  # tensors of the first step


def check_referees(
    traces: tuple[Trace, Trace], referees: tuple[Trace, Trace], free: DiffResult
) -> None:
    """Raise HarnessError unless each referee is its side's run again, computed in float64."""
    for side, trace, referee in zip("ab", traces, referees, strict=True):
        named = f"referee of {side.upper()} ({referee.path})"
        remedy = f"give the run of {trace.path} once more, in float64 (--referee-{side})"
        step = next((step for step in referee.steps if step in trace.steps), None)
        if step is None:
            raise HarnessError(f"{named}: has no step of {trace.path}; {remedy}")
        wrong = _not_float64(referee, step) or _other_run(trace, referee, step, free)
        if wrong:
            raise HarnessError(f"{named}: {wrong}; {remedy}")
    _not_swapped(traces, referees, free)


def _not_float64(referee: Trace, step: int) -> str | None:
    """Why a trace is no float64 run."""
    if referee.header.dtype != "float64":
        return f"a {referee.header.dtype} run"
    opened = referee.step(step)
    floats = [e for e in opened.entries if "float" in e.dtype and not e.name.startswith("inputs/")]
    wide = [entry for entry in floats if entry.dtype == "float64"]
    if floats and not wide:
        kinds = ", ".join(sorted({entry.dtype for entry in floats}))
        return f"its header says float64, and its tensors are {kinds}"
    numbers = [opened.read(e).reshape(-1) for e in wide[:LOOKED_AT] if opened.holds(e)]
    found = np.concatenate([x[:TELLING] for x in numbers]) if numbers else np.zeros(0)
    found = np.unique(found[np.isfinite(found) & (found != np.rint(found))])
    with np.errstate(all="ignore"):
        single = found.astype(np.float32).astype(np.float64) == found
    if found.size >= TELLING and single.all():
        return f"its float64 tensors hold float32 numbers ({found.size} of {found.size} looked at)"
    return None


def _other_run(trace: Trace, referee: Trace, step: int, free: DiffResult) -> str | None:
    """Why a referee is another run than the trace's: other inputs, weights, or numbers."""
    for key in sorted(trace.header.digests.keys() & referee.header.digests.keys()):
        if key == "tokens" and trace.header.digests[key] != referee.header.digests[key]:
            return "it was given other tokens"
    x, y = trace.step(step), referee.step(step)
    others = {entry.name: entry for entry in y.entries}
    shares = []
    for entry in x.entries[:LOOKED_AT]:
        other = others.get(entry.name)
        parted = free.first_divergence
        if parted and (parted.step, parted.tensor) == (step, entry.name):
            break
        if other is None or not x.holds(entry) or not y.holds(other):
            continue
        if entry.shape != other.shape:
            return (
                f"its {entry.name} of step {step} is {list(other.shape)}, not {list(entry.shape)}"
            )
        a, b = x.read(entry), y.read(other)
        apart = _apart(a, b)
        if entry.name.startswith("inputs/") and not apart <= 4 * SINGLE:
            return f"it was given other {entry.name} at step {step}"
        if a.dtype.kind == "f" and not entry.name.startswith("inputs/"):
            shares.append(apart)
    if shares and not float(np.median(shares)) <= OTHER_RUN:
        return f"most tensors of step {step} have nothing in common with that run"
    return None


def _apart(a: Array, b: Array) -> float:
    """The relative L2 distance; 0 for equal numbers, and infinite where nothing is to compare."""
    x, y = (np.asarray(v, np.float64).reshape(-1) for v in (a, b))
    if np.array_equal(x, y, equal_nan=True):
        return 0.0
    with np.errstate(all="ignore"):
        return float(np.linalg.norm(x - y) / max(np.linalg.norm(x), np.linalg.norm(y)))


def _not_swapped(
    traces: tuple[Trace, Trace], referees: tuple[Trace, Trace], free: DiffResult
) -> None:
    """Raise HarnessError where each referee is much nearer to the other side than to its own."""
    place = free.first_divergence
    if place is None or any(place.step not in trace.steps for trace in (*traces, *referees)):
        return
    found = [_read(trace.step(place.step), place.tensor) for trace in (*traces, *referees)]
    a, b, of_a, of_b = found
    if a is None or b is None or of_a is None or of_b is None:
        return
    if len({x.shape for x in (a, b, of_a, of_b)}) > 1:
        return
    own, crossed = (_apart(a, of_a), _apart(b, of_b)), (_apart(a, of_b), _apart(b, of_a))
    if all(mine > NEARER * max(other, SINGLE) for mine, other in zip(own, crossed, strict=True)):
        raise HarnessError(
            f"the referees look swapped: at {place.tensor} of step {place.step} "
            f"{referees[0].path} is nearer to {traces[1].path}, and {referees[1].path} to "
            f"{traces[0].path}; exchange --referee-a and --referee-b"
        )


def _read(step: Step, name: str) -> Array | None:
    entry = next((entry for entry in step.entries if entry.name == name), None)
    return step.read(entry) if entry is not None and step.holds(entry) else None
