"""Which tensor of which step is to be reported, and in which traces it shows."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from glob import escape
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from harness.align import chosen
from harness.compare import DiffResult, diff
from harness.compare.diff import Difference
from harness.errors import HarnessError
from harness.explain.case import Side
from harness.repro.found import Found, read_found, same
from harness.trace import Alignment, open_trace, read_alignment

REPORTED = ("bug", "precision", "undecided")


class Spot(NamedTuple):
    """A tensor of a step of two traces; with what a run has said of it, if it has."""

    step: int
    tensor: str
    diff: DiffResult
    at: Difference | None
    follower: Side | None
    said: Found | None


def spot(
    a: str | Path,
    b: str | Path,
    step: int | None,
    tensor: str | None,
    map_: str | Path | Alignment | None,
    follower: Side | None,
    roles: Sequence[str] = (),
) -> Spot:
    """The place that is asked for; else that of the run's verdict; else the first that differs.

    Raises HarnessError where there is none.
    """
    kept = _kept(str(a), str(b))
    if kept and _is_asked(kept, step, tensor, map_, follower):
        where = kept.where
        if where is None or kept.label not in REPORTED:
            raise HarnessError(
                f"{kept.sentence}: nothing to report; --step and --tensor name a place"
            )
        alignment = read_alignment(kept.map) if kept.map else None
        one, two = kept.shown or kept.traces
        found = _at(one, two, where.step, where.tensor, alignment, roles)
        found = replace(found, labels=kept.labels)
        return Spot(where.step, where.tensor, found, where, kept.follower, kept)
    alignment = chosen(a, b, map_, roles)
    if step is None or tensor is None:
        step, tensor = _first(str(a), str(b), step, tensor, alignment, roles)
    found = _at(str(a), str(b), step, tensor, alignment, roles)
    return Spot(step, tensor, found, found.first_divergence or found.onset, follower, None)


def _kept(a: str, b: str) -> Found | None:
    """What the run that made two traces has found."""
    kept = read_found(Path(a).parent)
    if kept is None:
        return None
    pairs = [kept.traces, *([kept.shown] if kept.shown else [])]
    return kept if any(same((a, b), pair) for pair in pairs) else None


def _is_asked(
    kept: Found, step: int | None, tensor: str | None, map_: object, follower: Side | None
) -> bool:
    """Whether the place of a verdict is the one that is asked for."""
    where = kept.where
    if map_ is not None or follower not in (None, kept.follower):
        return False
    if where is None:
        return step is None and tensor is None
    return step in (None, where.step) and tensor in (None, where.tensor)


def _first(
    a: str,
    b: str,
    step: int | None,
    tensor: str | None,
    alignment: Alignment | None,
    roles: Sequence[str],
) -> tuple[int, str]:
    """The first place that differs, of a step or of a tensor where one is named."""
    names = (escape(tensor),) if tensor else ()
    steps = (step, step) if step else (1, None)
    found = diff(a, b, include=names, steps=steps, alignment=alignment, roles=roles)
    place = found.first_divergence
    if place is None:
        also = f" ({found.structure[0].kind} first)" if found.structure else ""
        raise HarnessError(
            f"{a} and {b}: {found.status}{also}, so no place to report: name one with --step and "
            "--tensor"
        )
    return place.step, place.tensor


def _at(
    a: str, b: str, step: int, tensor: str, alignment: Alignment | None, roles: Sequence[str]
) -> DiffResult:
    """The diff of one tensor. Raises HarnessError for a step or a tensor that is not in both."""
    for trace in (open_trace(a, roles, alignment), open_trace(b, roles, alignment, "b")):
        if step not in trace.steps:
            trace.entry(step)  # which says what there is
        names = [entry.name for entry in trace.entry(step).tensors]
        if tensor not in names:
            near = get_close_matches(tensor, names, 3, 0.3) or names[:3]
            raise HarnessError(
                f"{trace.path}: step {step} holds no {tensor!r}; near are: {', '.join(near)}"
            )
    return diff(
        a, b, include=(escape(tensor),), steps=(step, step), alignment=alignment, roles=roles
    )
