"""What a benchmark found, as values."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import msgspec

PARTS = ("twins", "tracing", "record", "diff", "startup")


class Spread(msgspec.Struct, frozen=True):
    """The median of a figure over rounds, its least and its greatest."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of one value a round."""
        return cls(statistics.median(values), min(values), max(values))

    @classmethod
    def ratio(cls, over: Sequence[float], under: Sequence[float]) -> Spread:
        """The spread of over / under, round by round: what slows a whole round cancels out."""
        return cls.of([x / y for x, y in zip(over, under, strict=True)])


class Row(msgspec.Struct, frozen=True):
    """One contestant: what it took, how that compares, or why it is missing.

    `group` is what it competes in; `rate` words/s or GB/s by its median; `ratios` by the name of
    the peer; `figures` further numbers by name (bytes).
    """

    group: str
    name: str
    seconds: Spread | None = None
    rate: float | None = None
    ratios: dict[str, Spread] = {}
    figures: dict[str, float] = {}
    missing: str | None = None

    @classmethod
    def without(cls, group: str, name: str, reason: str) -> Row:
        """A contestant that could not be timed."""
        return cls(group, name, missing=f"not available: {reason}")


class Target(msgspec.Struct, frozen=True):
    """A figure that was promised: `measured` is to be at least, or at most, `bound`.

    `measured` None: not available, which is not met.
    """

    what: str
    measured: float | None
    bound: float
    at_least: bool = False
    unit: str = ""
    met: bool = False

    @classmethod
    def of(
        cls, what: str, measured: float | None, bound: float, unit: str = "", at_least: bool = False
    ) -> Target:
        """The target, met or not."""
        met = measured is not None and (measured >= bound if at_least else measured <= bound)
        return cls(what, measured, bound, at_least, unit, met)

    @property
    def missed_by(self) -> float | None:
        """By which share of the bound it was missed; None where it was met or not measured."""
        if self.met or self.measured is None:
            return None
        return abs(self.measured - self.bound) / self.bound


class Fit(msgspec.Struct, frozen=True):
    """How a cost grows: `exponent` is the slope of log y over log x, 1 for a linear cost.

    `last` is the slope between the last two points, where fixed costs weigh least; None of either
    where there are fewer than two points.
    """

    what: str
    x_name: str
    y_name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    exponent: float | None
    last: float | None

    @classmethod
    def of(cls, what: str, x_name: str, y_name: str, points: Sequence[tuple[float, float]]) -> Fit:
        """The least-squares fit of all points that a logarithm can take."""
        kept = sorted((x, y) for x, y in points if x > 0 and y > 0)
        logs = [(math.log(x), math.log(y)) for x, y in kept]
        x, y = tuple(p[0] for p in kept), tuple(p[1] for p in kept)
        return cls(what, x_name, y_name, x, y, _slope(logs), _slope(logs[-2:]))


def _slope(points: Sequence[tuple[float, float]]) -> float | None:
    if len({x for x, _ in points}) < 2:
        return None
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return statistics.linear_regression(xs, ys).slope


class Section(msgspec.Struct, frozen=True):
    """A part of the benchmark. `error` is what ended it early: what it had found stays."""

    rows: tuple[Row, ...] = ()
    targets: tuple[Target, ...] = ()
    growth: tuple[Fit, ...] = ()
    error: str | None = None

    @property
    def ratios(self) -> dict[str, float]:
        """The median of every ratio by "group / contestant / peer"."""
        return {
            f"{row.group} / {row.name} / {peer}": spread.median
            for row in self.rows
            for peer, spread in row.ratios.items()
        }

    def plus(self, other: Section) -> Section:
        """Both sections as one."""
        return Section(
            self.rows + other.rows,
            self.targets + other.targets,
            self.growth + other.growth,
            "; ".join(error for error in (self.error, other.error) if error) or None,
        )

    def as_json(self) -> dict[str, object]:
        """What --json prints of it."""
        return {**msgspec.structs.asdict(self), "ratios": self.ratios}


class BenchResult(msgspec.Struct, frozen=True):
    """All parts by name, the machine in words, and how it was measured."""

    machine: dict[str, str]
    settings: dict[str, str]
    sections: dict[str, Section] = {}

    @property
    def complete(self) -> bool:
        """Whether every part is there and none ended early."""
        return all(p in self.sections and self.sections[p].error is None for p in PARTS)
