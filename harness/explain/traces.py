"""The diff of two traces made anywhere, and the verdict from whatever else there is of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.compare import DiffResult, Tolerance, diff
from harness.errors import HarnessError
from harness.explain.case import Side
from harness.explain.evidence import Evidence, Following
from harness.explain.referees import check_referees
from harness.explain.verdict import Verdict, judge
from harness.observer import Observer
from harness.trace import Alignment, Trace, open_trace
from harness.trace.roles import has_role


class Explanation(NamedTuple):
    """How two traces differ, and why."""

    diff: DiffResult
    verdict: Verdict


def explain_traces(
    a: str | Path,
    b: str | Path,
    *,
    referee_a: str | Path | None = None,
    referee_b: str | Path | None = None,
    followed_a: str | Path | None = None,
    followed_b: str | Path | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    factor: float | None = None,
    all: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    steps: tuple[int, int | None] = (1, None),
    roles: Sequence[str] = (),
    alignment: Alignment | str | Path | None = None,
    observer: Observer | None = None,
) -> Explanation:
    """The diff of two traces made anywhere, and whether they differ by rounding or by a bug.

    Args:
        a, b: traces; b is the reference.
        referee_a: the run of `a` again in float64.
        referee_b: the run of `b` again in float64.
        followed_a: the run of `a` again, each stage given the inputs that `b` holds.
        followed_b: the run of `b` again, each stage given the inputs that `a` holds.
        rtol, atol, factor, all, include, exclude, steps, roles, alignment: as for `harness.diff`.
        observer: told about progress.

    Raises HarnessError for traces that cannot be compared, for one referee without the other, and
    for a referee that is no float64 run of its side.
    """
    watcher = observer or Observer()
    if (referee_a is None) != (referee_b is None):
        raise HarnessError(
            "referee_a and referee_b (--referee-a, --referee-b): give both, or neither"
        )
    looked_at: dict[str, Any] = {"include": include, "exclude": exclude, "steps": steps}
    looked_at |= {"roles": roles, "alignment": alignment}
    rule: dict[str, Any] = {"rtol": rtol, "atol": atol, "factor": factor, "all": all}
    found = diff(a, b, **rule, **looked_at, progress=watcher.part("diff"))
    free64 = None
    if referee_a is not None and referee_b is not None:
        referees = (
            open_trace(referee_a, roles, alignment),
            open_trace(referee_b, roles, alignment, "b"),
        )
        check_referees(found.opened(), referees, found)
        free64 = diff(*referees, **looked_at, progress=watcher.part("float64 diff"))
    runs = _following((a, b), (followed_a, followed_b), looked_at, watcher)
    wide = open_trace(b).header.dtype == "float64"
    evidence = Evidence(
        found,
        free64,
        () if wide else tuple(runs),
        tuple(runs) if wide else (),
        (*_missing(free64, runs), *_without_roles(open_trace(b, roles))),
    )
    return Explanation(found, judge(evidence))


def _following(
    traces: tuple[str | Path, str | Path],
    followers: tuple[str | Path | None, str | Path | None],
    looked_at: dict[str, Any],
    watcher: Observer,
) -> list[Following]:
    """The following runs that there are, each held against what it followed."""
    pairs: list[tuple[Side, str | Path | None, str | Path | None]]
    pairs = [("a", followers[0], traces[1]), ("b", traces[0], followers[1])]
    return [
        Following(side, _followed(x, y, looked_at, watcher.part(f"following, {side}")))
        for side, x, y in pairs
        if x is not None and y is not None
    ]


def _followed(
    a: str | Path, b: str | Path, looked_at: dict[str, Any], told: Callable[[int, int], None]
) -> DiffResult:
    """The diff of a follower and what it followed: all of it, by the tolerance of single stages."""
    return diff(a, b, all=True, tolerance=Tolerance.local(), **looked_at, progress=told)


def _missing(free64: DiffResult | None, runs: list[Following]) -> tuple[str, ...]:
    """What could be told with more."""
    lines = []
    if free64 is None:
        lines.append("not given: both runs in float64 (--referee-a, --referee-b), to tell rounding")
    if not runs:
        lines.append("not given: a following run (--followed-a, --followed-b), which decides")
    return tuple(lines)


def _without_roles(trace: Trace) -> tuple[str, ...]:
    """What roles would unlock, where the names of a trace say nothing of a training step."""
    names = [entry.name for step in trace.steps[:1] for entry in trace.entry(step).tensors]
    if not names or trace.graph or any(map(has_role, names)):
        return ()
    return (
        f"names such as {names[0]} do not say what a tensor is: with roles (--role 'GRAD/*=grads', "
        "'W/*=params', 'ACT/*=forward') causes know weights from gradients, what a step started "
        "from, and what is only handed over",
    )
