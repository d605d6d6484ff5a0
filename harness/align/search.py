"""The search for a map between two traces: what numbers prove first, then what stands beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from harness.align.found import Found, Rules
from harness.align.fused import biases_together, fused, sums, sums_of_values
from harness.align.layouts import without_batch
from harness.align.places import Order, as_siblings_lie, doubtful, grouped, placed
from harness.align.slots import paired_slots
from harness.align.units import Unit, units
from harness.align.values import Fit, by_values
from harness.align.weights import by_weights
from harness.errors import HarnessError
from harness.kernels.floats import standard_floats
from harness.trace import Alignment, Match, Trace, open_trace
from harness.trace.alignment import SECTIONS
from harness.trace.ranks import crosses

PLACED = ("points", "params", "buffers", "others")  # which layer parts first says of its weights
STEPS = 2  # the first ones, by which tensors are told apart

Units = dict[str, list[Unit]]


@standard_floats()
def align(
    a: str | Path | Trace,
    b: str | Path | Trace,
    *,
    roles: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Alignment:
    """The map from the tensors of trace `a` to those of the reference `b`: names and layouts.

    At the first step both sides hold the same numbers, so most is found by values, whatever it is
    called and however it lies; what differs is placed as its siblings and neighbours are, and said
    to be likely. `roles` are as for `harness.diff`; `progress` is called with parts done and all.

    Raises HarnessError where the traces have no step in common.
    """
    trace_a = a if isinstance(a, Trace) else open_trace(a, roles)
    trace_b = b if isinstance(b, Trace) else open_trace(b, roles)
    steps = sorted(set(trace_a.steps) & set(trace_b.steps))[:STEPS]
    if not steps:
        raise HarnessError(
            f"{trace_a.path} and {trace_b.path}: no step is in both, so nothing tells which tensor "
            "is which: trace the same steps"
        )
    search = _Search(units(trace_a, steps), units(trace_b, steps))
    parts = [*((search.prove, s) for s in SECTIONS), *((search.place, s) for s in PLACED)]
    for done, (part, section) in enumerate(parts, start=1):
        part(section)
        if progress:
            progress(done, len(parts))
    slots = paired_slots(search.found["params"], trace_a, trace_b, steps)
    return search.result(*slots)


class _Search:
    """The state of one search."""

    def __init__(self, a: Units, b: Units) -> None:
        self.a, self.b, self.rules = a, b, Rules()
        self.found: dict[str, list[Found]] = {section: [] for section in SECTIONS}
        self.tied: dict[str, list[Fit]] = {}

    def left(self, section: str) -> tuple[list[Unit], list[Unit]]:
        """What has no partner yet on either side, in order."""
        done = {u for found in self.found[section] for u in (*found.a, *found.b)}
        a, b = ([u for u in side[section] if u not in done] for side in (self.a, self.b))
        return a, b

    def take(self, section: str, found: Iterable[Found]) -> None:
        """Keep what was found, and learn from it."""
        for one in found:
            self.found[section].append(one)
            if one.sure == "certain":
                self.rules.learn(one)

    def prove(self, section: str) -> None:
        """Match what values prove."""
        if section == "params":
            self._both_ways(section, partial(sums, rules=self.rules))
        proven, self.tied[section] = by_values(*self.left(section), self.rules)
        self.take(section, proven)
        self._both_ways(section, fused)
        if section == "params":
            self._both_ways(section, sums_of_values)

    def _both_ways(
        self, section: str, search: Callable[[list[Unit], list[Unit]], Iterator[Found]]
    ) -> None:
        """Search for parts of a that are one of b, and the other way round."""
        self.take(section, list(search(*self.left(section))))
        a, b = self.left(section)
        turned = list(search(b, a))
        self.take(section, [f._replace(a=f.b, b=f.a, chain=f.chain.inverse) for f in turned])

    def place(self, section: str) -> None:
        """Match the rest as its siblings and neighbours are."""
        self.found[section] = [
            as_siblings_lie(found, self.rules, self.found["points"])
            for found in self.found[section]
        ]
        left = self.left(section)
        self.found[section] = [
            found._replace(sure="likely") if doubtful(found, left) else found
            for found in self.found[section]
        ]
        if section == "points":
            self.take(section, list(by_weights(*self.left(section), self.found["params"])))
        order = Order(self.a[section], self.b[section], self.found[section])
        self.take(section, list(grouped(*self.left(section), self.found[section], order)))
        a, b = self.left(section)
        self.take(section, list(placed(a, b, self.tied[section], order, self.rules)))
        # What one rank has of its own is a part of nothing that its numbers do not say it is.
        self.found[section] = [
            found
            for found in self.found[section]
            if "values" in found.by
            or not crosses(*([u.whole_name for u in side] for side in (found.a, found.b)))
        ]
        if section == "params":
            self.found[section] = biases_together(self.found[section], *self.left(section))

    def result(self, slots: tuple[Match, ...], notes: tuple[str, ...]) -> Alignment:
        """All that was found, as a map."""
        sections: dict[str, Any] = {}
        alone: tuple[list[str], list[str]] = [], []
        for section in SECTIONS:
            found = sorted(self.found[section], key=lambda f: min(u.place for u in f.b))
            sections[section] = tuple(_match(f, section) for f in found)
            for names, left in zip(alone, self.left(section), strict=True):
                names += [unit.whole_name for unit in left]
        return Alignment(
            **sections,
            slots=slots,
            only_a=tuple(alone[0]),
            only_b=tuple(alone[1]),
            notes=notes,
        )


def _match(found: Found, section: str) -> Match:
    chain = found.chain if section in ("params", "buffers") else without_batch(found.chain)
    return Match(
        tuple(u.name for u in found.a),
        tuple(u.name for u in found.b),
        chain.texts,
        found.sure,
        found.by,
        found.note,
    )
