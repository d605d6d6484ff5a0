"""What a diff finds, as values."""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

from harness.compare.axes import describe_index
from harness.compare.metrics import Comparison
from harness.compare.pairs import Found
from harness.compare.tolerance import Tolerance
from harness.models.graph import Axis
from harness.trace import Alignment, TensorEntry, Trace, open_trace
from harness.trace.dtypes import BETWEEN

Status = Literal["identical", "close", "diverged", "structure"]
Value = float | int | bool | str
Kind = Literal["missing step", "missing tensor", "shape", "dtype"]


class Difference(msgspec.Struct, frozen=True):
    """One tensor of one step on both sides. Figures as in `Comparison`.

    `where` is the index in words; `a` and `b` are the values at it, NaN and infinities as text.
    `dtype` is that of both sides, or "float32 | float64".

    Where a trace did not keep the elements, `estimated` is true: distances are estimates, what
    would take elements is None (`mismatches` 0), `nonfinite_mismatches` is the least there can be.
    """

    step: int
    tensor: str
    index: tuple[int, ...] | None
    where: str
    a: Value | None
    b: Value | None
    max_abs_diff: float | int | None
    max_abs_index: tuple[int, ...] | None
    max_rel_diff: float | None
    max_ulp_diff: int | None
    rel_l2: float | None
    rel_l2_eps: float | None
    mismatch_ratio: float | None
    mismatches: int
    size: int
    dtype: str
    shape: tuple[int, ...]
    nan_equal: int
    nonfinite_mismatches: int
    rtol: float
    atol: float
    factor: float | None
    least_rtol: float | None
    least_atol: float | None
    least_factor: float | None
    estimated: bool = False


class Structure(msgspec.Struct, frozen=True):
    """A difference that is not of numbers; first at `step`, and at `count` steps in all."""

    kind: Kind
    step: int
    tensor: str | None
    a: str
    b: str
    count: int


class StepSummary(msgspec.Struct, frozen=True):
    """One row of the table around the divergence; None where a figure was not found or computed.

    `worst_rel_l2_eps` is infinite where NaN or an infinity is on one side alone.

    Of the step at which the diff stopped, `not_close` counts up to there. `estimated`: of some
    tensor the distance is.
    """

    step: int
    loss_a: Value | None
    loss_b: Value | None
    norm_a: Value | None
    norm_b: Value | None
    tensors: int
    unequal: int
    not_close: int | None
    worst_rel_l2_eps: float | None
    estimated: bool = False


class Place(msgspec.Struct, frozen=True):
    """A tensor of a step."""

    step: int
    tensor: str


class Tightest(msgspec.Struct, frozen=True):
    """The close tensor that used the greatest share of its allowance: over 1 it would not be.

    `needed` is the K of the tolerance's rule that it needed; None where two fixed numbers rule.
    """

    step: int
    tensor: str
    used: float
    needed: float | None = None


class DiffResult(msgspec.Struct, frozen=True):
    """What a diff found. `b` is the reference. Encodes to the JSON of `harness diff --json`.

    `distances` has every step that was compared to its end, with the worst rel_l2_eps of it;
    `roles` and `alignment` are those that the traces were opened with.
    """

    status: Status
    a: str
    b: str
    labels: tuple[str, str]
    steps_compared: int
    tensors_compared: int
    tolerance: Tolerance
    first_divergence: Difference | None
    onset: Difference | None
    last_agreeing: Place | None
    tightest: Tightest | None
    structure: tuple[Structure, ...]
    divergences: tuple[Difference, ...]
    steps: tuple[StepSummary, ...]
    distances: tuple[tuple[int, float], ...]
    notes: tuple[str, ...]
    roles: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    alignment: Alignment | None = None

    @property
    def equivalent(self) -> bool:
        """Whether the traces are identical or close."""
        return self.status in ("identical", "close")

    def opened(self) -> tuple[Trace, Trace]:
        """Both traces as they were compared. Raises HarnessError where they cannot be opened."""
        return (
            open_trace(self.a, self.roles[0], self.alignment),
            open_trace(self.b, self.roles[1], self.alignment, "b"),
        )


def difference(
    step: int,
    a: TensorEntry,
    b: TensorEntry,
    found: Found,
    at: tuple[tuple[int, ...] | None, tuple[Any, Any] | None],
    axes: tuple[Axis, ...],
) -> Difference:
    """The record of one pair, with the index and the values `at` it; `axes` are what axes count."""
    index, values = at
    figures, allowed = found.figures, found.allowed
    shared = {
        name: getattr(figures, name)
        for name in Comparison.__struct_fields__
        if name in Difference.__struct_fields__ and name != "index"
    }
    share = figures.mismatches / figures.size if figures.size else 0.0
    return Difference(
        step=step,
        tensor=b.name,
        index=index,
        where="" if index is None else describe_index(axes, b.shape, index),
        a=None if values is None else _value(values[0]),
        b=None if values is None else _value(values[1]),
        mismatch_ratio=None if found.estimated else share,
        dtype=b.dtype if a.dtype == b.dtype else a.dtype + BETWEEN + b.dtype,
        shape=b.shape,
        rtol=allowed.rtol,
        atol=allowed.atol,
        factor=allowed.factor,
        estimated=found.estimated,
        **shared,
    )


def summary(
    step: int,
    a: dict[str, TensorEntry],
    b: dict[str, TensorEntry],
    not_close: int | None,
    worst: float | None,
    estimated: bool = False,
) -> StepSummary:
    """A row of the table from the index alone: scalars are their own minimum."""
    names = a.keys() & b.keys()
    loss, norm = "forward/loss", "update/global_norm"
    return StepSummary(
        step=step,
        loss_a=_scalar(a.get(loss)),
        loss_b=_scalar(b.get(loss)),
        norm_a=_scalar(a.get(norm)),
        norm_b=_scalar(b.get(norm)),
        tensors=len(names),
        unequal=sum(a[name].hash != b[name].hash for name in names),
        not_close=not_close,
        worst_rel_l2_eps=worst,
        estimated=estimated,
    )


def _scalar(entry: TensorEntry | None) -> Value | None:
    if entry is None or entry.size != 1:
        return None
    return "nan" if entry.nan else "inf" if entry.inf else entry.min


def _value(value: float | int | bool) -> Value:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
