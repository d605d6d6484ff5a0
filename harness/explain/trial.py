"""One case with what both sides' tensors give, recomputed in float64 from each side's own inputs.

An expression is never held against the other side's numbers: a tensor that is stacked over time
feeds itself, and is another from its first wrong timestep on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from harness.explain.case import Array, Case, Side
from harness.explain.scene import Edit, Scene, kin_of
from harness.models.evaluate import MissingError, Values
from harness.models.graph import Graph, Node, below, name_of, node, references
from harness.models.ops import OPS
from harness.models.rows import some_rows

SIDES: tuple[Side, Side] = ("a", "b")
# What an edit that does not fit the shapes of a trace raises; any other error is one of ours.
# TypeError: minus a boolean; ArithmeticError: a number that a formula divides by is 0.
FAILURES = (MissingError, ValueError, IndexError, TypeError, ArithmeticError)
UPDATE = ("update/", "optimizer/", "params/")
CARRIED = ("params/", "optimizer/", "state/", "buffers/")  # what a step starts from
LARGE = 1 << 16  # elements of a tensor of which a sample is tried first


class Trial:
    """One case with both sides' values at hand; of a large one perhaps `rows` of it alone."""

    def __init__(self, case: Case, rows: tuple[int, ...] = ()) -> None:
        """Nothing is computed yet."""
        self.case, self.tried, self._rows = case, 0, rows
        self._values: dict[Side, Values] = {}
        if rows:
            floor = max(case.floor, largest(case.b))
            part = case._replace(a=case.a[list(rows)], b=case.b[list(rows)], floor=floor)
            self.part = part
        else:
            self.part = case

    def sample(self) -> Trial:
        """The rows of a large tensor that differ most, and some others: edits are tried there."""
        b = self.case.b
        if b.size <= LARGE or b.ndim < 2 or b.shape[0] < 2 or b.dtype.kind != "f":
            return self
        with np.errstate(all="ignore"):
            gaps = np.abs(self.case.a - b).reshape(len(b), -1).max(axis=1)
        count = int(min(len(b), max(2, LARGE * len(b) // (4 * b.size))))
        worst = np.argsort(-np.nan_to_num(gaps, nan=np.inf))[: (count + 1) // 2]
        spread = np.linspace(0, len(b) - 1, count // 2).astype(int)
        rows = np.unique([*worst, *spread])
        found = Trial(self.case, tuple(map(int, rows)))
        found._values = self._values
        return found

    def values(self, side: Side) -> Values:
        """What one side's tensors give."""
        if side not in self._values:
            self._values[side] = values_of(self.case, side)
        return self._values[side]

    def value(self, side: Side, expression: Node) -> Array | None:
        """An expression from one side's tensors; None where they do not allow it."""
        if self._rows:
            shapes = self.case.shapes
            of = lambda x: shapes.get(name_of(x), None if x.arg("back") else ())  # noqa: E731
            expression = some_rows(expression, self._rows, self.case.b.shape, of)
        made = self.value_of(side, expression)
        return made if made is not None and made.shape == self.part.b.shape else None

    def value_of(self, side: Side, expression: Node) -> Array | None:
        """An expression of whatever shape; None where the trace does not allow it."""
        try:
            return np.asarray(self.values(side).value(expression))
        except FAILURES:
            return None

    def left(self, side: Side, expression: Node) -> float:
        """How far an expression is from what the side has, as the tolerance's K."""
        made, mine = self.value(side, expression), own(self.part, side)
        if made is None:
            return math.inf
        if expression.op == "moved":  # which says nothing of the edge
            made = np.where(np.isnan(made), mine, made)
        case = self.part._replace(floor=max(self.part.floor, largest(made)))
        return case.distance(made, mine)

    def fits(self, side: Side, expression: Node) -> bool:
        """Whether an expression gives what the side has, to rounding."""
        return self.left(side, expression) <= self.case.level

    def scene(self, base: Node) -> Scene:
        """What edits of an expression are made in."""
        case = self.case
        numbers: dict[str, tuple[float, ...]] = {}
        for settings in (case.settings_b, case.settings_a):
            for key, value in settings.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    numbers[key] = (*numbers.get(key, ()), float(value))
        axes = case.graph.axes(case.tensor) if case.graph else ()
        if len(axes) != case.b.ndim:
            axes = tuple(f"axis {k}" for k in range(case.b.ndim))
        for side in SIDES:
            self.values(side).keep(base)
        shape = case.b.shape
        used = _constants(case.graph, case.tensor) if case.graph else frozenset(numbers)
        return Scene(
            case.tensor, base, case.graph, case.shapes, numbers, shape, axes, case.step, used
        )


def _constants(graph: Graph, tensor: str) -> frozenset[str]:
    """The settings that stages read which are of the update as a tensor is, or are not."""
    late = tensor.startswith(UPDATE)
    values = (s.value for name, s in graph.stages.items() if name.startswith(UPDATE) == late)
    return frozenset(str(x.arg("name")) for s in values for x in below(s) if x.op == "const")


def values_of(
    case: Case, side: Side, change: Callable[[str, Array], Array] | None = None
) -> Values:
    """Expressions over what one side was given.

    Where no stage is known, an edit is one of the other side's tensor, and reads that side's.
    """
    stage = case.graph.value(case.tensor) if case.graph else None
    known = stage is not None and stage.op != "given"
    source = side if known else other_side(side)
    other = _wide(own(case, other_side(side)))
    return Values(
        lambda back, name: _read(case, source, back, name),
        case.step,
        case.graph,
        change("other", other) if change else other,
        change,
    )


def own(case: Case, side: Side) -> Array:
    """The tensor of the case on one side."""
    return case.a if side == "a" else case.b


def _read(case: Case, side: Side, back: int, name: str) -> Array | None:
    if back and not name.startswith(CARRIED):
        return case.made(name, side, back)
    return case.get(name, side, back)


def _wide(x: Array) -> Array:
    return x.astype(np.float64) if x.dtype.kind == "f" else x


def largest(x: Array) -> float:
    """The largest finite absolute value; 0 where there is none."""
    finite = np.abs(x[np.isfinite(x)]) if x.dtype.kind == "f" else np.abs(x.astype(np.float64))
    return float(finite.max(initial=0.0))


def origin(trial: Trial, most: int = 12) -> Trial | None:
    """The case of the stage that is off, where this one is what it should be on both sides.

    A tensor that is stacked over time differs from its first wrong timestep on, and so does what
    comes before it in a step and reads it: the tensors that the stage reads are looked through.
    """
    case, seen = trial.case, {trial.case.tensor}
    waiting = [case.tensor] if case.graph else []
    while case.graph and waiting and len(seen) < most:
        stage = case.graph.value(waiting.pop(0))
        for x in references(stage) if stage is not None else ():
            name = name_of(x)
            if name in seen or x.arg("back") or name not in case.shapes:
                continue
            seen.add(name)
            there = case_at(case, name)
            if there is None or not there.gap() > there.level:
                continue
            waiting.append(name)
            other = Trial(there)
            base = next(bases(other), None)
            if base and base[1].op != "other":
                return other
    return None


def case_at(case: Case, name: str) -> Case | None:
    """The same case at another tensor of the step."""
    a, b = case.get(name, "a"), case.get(name, "b")
    if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
        return None
    return case._replace(tensor=name, a=a, b=b, floor=0.0)


def bases(trial: Trial) -> Iterator[tuple[Side, Node]]:
    """The side that is off and the stage that the other fits; or the other side's tensor.

    A stage may be either of two things (a state that is carried, or starts from zeros): where the
    side that a referee is against fits it as it stands, the other must fit a member of its family.
    """
    case = trial.case
    stage = case.graph.value(case.tensor) if case.graph else None
    if stage is None or stage.op == "given":
        for side in SIDES if case.off is None else (case.off,):
            yield side, node("other")
        return
    fits = {side: trial.fits(side, stage) for side in SIDES}
    if sum(fits.values()) == 1:
        off: Side = "a" if fits["b"] else "b"
        if case.off in (None, off):
            yield off, stage
            return
        for kin in OPS[stage.op].kin if stage.op in OPS else ():
            if not kin.rare and trial.fits(off, kin_of(stage, kin)):
                yield other_side(off), kin_of(stage, kin)
    elif not any(fits.values()):
        for side in SIDES if case.off is None else (case.off,):
            yield side, node("other")


def other_side(side: Side) -> Side:
    """The side that a side is held against."""
    return "b" if side == "a" else "a"


class Fit(NamedTuple):
    """An edit that a side agrees with, what remains, and the stage that it is an edit of."""

    edit: Edit
    left: float
    side: Side
    base: Node
