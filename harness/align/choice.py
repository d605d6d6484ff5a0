"""Which map a diff is made through: one that is given, one that is searched, or none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec.structs import replace

from harness.align.search import align
from harness.trace import Alignment, Trace, open_trace, read_alignment

NONE = "none"  # in the place of a map's file: compare by name


def chosen(
    a: str | Path,
    b: str | Path,
    given: str | Path | Alignment | None = None,
    roles: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Alignment | None:
    """The map through which two traces are compared; None where their names are enough.

    Without one that is given it is searched for, if less than half of the names of either side
    are those of the other. "none" for `given` never searches. Raises HarnessError for a bad map.
    """
    if given == NONE:
        return None
    if isinstance(given, Alignment):
        return given
    if given is not None:
        return read_alignment(given)
    traces = open_trace(a, roles), open_trace(b, roles)
    names = _names(*traces)
    common = len(names[0] & names[1])
    if not all(names) or 2 * common >= min(map(len, names)):
        return None
    made = align(*traces, progress=progress)
    if not any(True for _ in made.matches()):
        return None
    note = (
        f"the names differ ({common} are on both sides, of {len(names[0])} and {len(names[1])}), "
        "so the traces were aligned: harness align A B shows how, -o writes the map, and "
        "--map none compares by name"
    )
    return replace(made, notes=(note, *made.notes))


def _names(a: Trace, b: Trace) -> tuple[set[str], set[str]]:
    """The names of the first step that both have."""
    step = next((step for step in a.steps if step in b.steps), None)
    if step is None:
        return set(), set()
    found = [{entry.name for entry in trace.entry(step).tensors} for trace in (a, b)]
    return found[0], found[1]
