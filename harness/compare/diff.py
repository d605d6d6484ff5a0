"""The diff of two traces: the first step and tensor at which they part."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from harness.compare.axes import describe_index
from harness.compare.metrics import Comparison
from harness.compare.nonfinite import nonfinite_notes
from harness.compare.pairs import Found, Side, compare_pair
from harness.compare.tolerance import Tolerance
from harness.errors import HarnessError
from harness.kernels import PIECE
from harness.spec import Capture, build
from harness.trace import Step, TensorEntry, Trace, open_trace
from harness.trace.sketch import GREATEST_ERROR, LIKELY_ERROR, ROUNDING

Status = Literal["identical", "close", "diverged", "structure"]
Value = float | int | bool | str
Kind = Literal["missing step", "missing tensor", "shape", "dtype"]

CONTEXT = 2  # steps shown before and after the one at which the traces part


class Difference(msgspec.Struct, frozen=True):
    """One tensor of one step on both sides. Figures as in `Comparison`.

    `where` is the index in words; `a` and `b` are the values at it, NaN and infinities as text.

    Where a trace did not keep the elements, `estimated` is true: distances are estimates, what
    would take elements is None (`mismatches` 0), `nonfinite_mismatches` is the least there can be.
    """

    step: int
    tensor: str
    index: tuple[int, ...] | None
    where: str
    a: Value | None
    b: Value | None
    max_abs_diff: float | None
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

    `distances` has every step that was compared to its end, with the worst rel_l2_eps of it.
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

    @property
    def equivalent(self) -> bool:
        """Whether the traces are identical or close."""
        return self.status in ("identical", "close")


def diff(
    a: str | Path | Trace,
    b: str | Path | Trace,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    all: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    steps: tuple[int, int | None] = (1, None),
    tolerance: Tolerance | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DiffResult:
    """Compare trace `a` with the reference `b`, step by step in execution order.

    Tensor bytes are read only where hashes differ, those of large tensors several at a time; where
    a trace did not keep them, the sketches are compared. It stops at the end of the first tensor
    that is not close unless `all`. `rtol` and `atol` give numpy.allclose's rule; neither gives the
    default (harness.compare.tolerance), `tolerance` any other. `include` and `exclude` are globs of
    tensor names, `steps` the first and last step to compare. `progress` is called with steps done
    and steps in all.

    Raises HarnessError if there is nothing to compare and TraceError for a damaged trace.
    """
    first, last = steps
    wanted = build(Capture, include=include, exclude=exclude, first=first, last=last)
    trace_a = a if isinstance(a, Trace) else open_trace(a)
    trace_b = b if isinstance(b, Trace) else open_trace(b)
    walk = _Walk(tolerance or Tolerance.given(rtol, atol), wanted, all)
    in_range = [[s for s in trace.steps if wanted.wants_step(s)] for trace in (trace_a, trace_b)]
    common = sorted(set(in_range[0]).intersection(in_range[1]))
    walk.missing_steps(*in_range)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # starts no thread before the first task
        plans = (walk.plan(trace_a.step(n), trace_b.step(n), pool) for n in common)
        try:
            for done, plan in enumerate(_ahead(plans, 2 if all else 1)):
                walk.compare_step(plan)
                if progress:
                    progress(done + 1, len(common))
                if walk.finished:
                    break
        finally:
            pool.shutdown(cancel_futures=True)
    if not walk.tensors:
        raise HarnessError(
            f"{trace_a.path} and {trace_b.path}: nothing to compare: {_why_empty(*in_range)}"
        )
    return walk.result(trace_a, trace_b, common)


class _Plan(NamedTuple):
    """What is to be compared of a step: entries by name, and how to compare those that differ."""

    step: int
    a: dict[str, TensorEntry]
    b: dict[str, TensorEntry]
    compare: dict[str, Callable[[], Found]]


def _ahead(plans: Iterator[_Plan], count: int) -> Iterator[_Plan]:
    """The same plans, of which `count` are made before the first is carried out."""
    waiting = list(islice(plans, count))
    while waiting:
        yield waiting.pop(0)
        waiting += islice(plans, 1)


class _Walk:
    """The state of one diff while it goes through the steps."""

    def __init__(self, tolerance: Tolerance, wanted: Capture, all: bool) -> None:
        self.tolerance, self.wanted, self.all = tolerance, wanted, all
        self.steps = self.tensors = 0
        self.divergences: list[Difference] = []
        self.onset: Difference | None = None
        self.last_agreeing: Place | None = None
        self.tightest: Tightest | None = None
        self.structure: dict[tuple[Kind, str | None, str, str], list[int]] = {}
        self.summaries: dict[int, StepSummary] = {}
        self.nan_equal: list[Place] = []
        self.estimated = self.unknown = False

    @property
    def finished(self) -> bool:
        return bool(self.divergences) and not self.all

    def missing_steps(self, a: list[int], b: list[int]) -> None:
        for step in sorted(set(a).symmetric_difference(b)):
            sides = ("present", "missing") if step in a else ("missing", "present")
            self._differ("missing step", step, None, *sides)

    def plan(self, a: Step, b: Step, pool: Executor) -> _Plan:
        """The comparison of one step; that of large tensors is begun."""
        entries_a, entries_b = self._entries(a), self._entries(b)
        tasks: dict[str, Callable[[], Found]] = {}
        for name, entry in entries_b.items():
            other = entries_a.get(name)
            if other is None or other.hash == entry.hash or not _alike(other, entry):
                continue
            task = partial(compare_pair, Side(a, other), Side(b, entry), self.tolerance, entries_b)
            large = entry.size >= PIECE
            tasks[name] = pool.submit(task).result if large else task
        return _Plan(b.number, entries_a, entries_b, tasks)

    def compare_step(self, plan: _Plan) -> None:
        """Compare one step, in the reference's execution order: structure first, then numbers."""
        self.steps += 1
        step, a, b = plan.step, plan.a, plan.b
        for name in sorted(a.keys() - b.keys()):
            self._differ("missing tensor", step, name, "present", "missing")
        for name in sorted(b.keys() - a.keys()):
            self._differ("missing tensor", step, name, "missing", "present")
        worst, not_close, estimated = 0.0, 0, False
        for name in b:
            if name in a:
                found = self._compare_tensor(plan, name)
                if found:
                    worst = max(worst, found.figures.rel_l2_eps or 0.0)
                    not_close += not found.figures.close
                    estimated |= found.estimated
            if self.finished:
                break
        ended = None if self.finished else worst
        self.summaries[step] = _summary(step, a, b, not_close, ended, estimated)

    def _compare_tensor(self, plan: _Plan, name: str) -> Found | None:
        """What comparing a pair found, None where it is equal or no pair; it is kept."""
        step, a, b = plan.step, plan.a[name], plan.b[name]
        if not _alike(a, b):
            if a.dtype != b.dtype:
                self._differ("dtype", step, name, a.dtype, b.dtype)
            else:
                self._differ("shape", step, name, str(list(a.shape)), str(list(b.shape)))
            return None
        self.tensors += 1
        if a.nan and b.nan:
            self.nan_equal.append(Place(step, name))
        found = plan.compare.pop(name)() if name in plan.compare else None
        if found:
            self._take(step, b, found)
        if not self.divergences:
            self.last_agreeing = Place(step, name)
        return found

    def _take(self, step: int, entry: TensorEntry, found: Found) -> None:
        """Keep what was found of a pair that is not equal."""
        figures, allowed = found.figures, found.allowed
        self.estimated |= found.estimated
        self.unknown |= found.estimated and figures.rel_l2 is None and figures.used is None
        used = figures.used
        if figures.close and used and (not self.tightest or used > self.tightest.used):
            needed = None if allowed.factor is None else used * allowed.factor
            self.tightest = Tightest(step, entry.name, used, needed)
        if self.onset is None:
            self.onset = _difference(step, entry, found, figures.onset, found.at_onset)
        if not figures.close:
            self.divergences.append(_difference(step, entry, found, figures.index, found.at_index))

    def _entries(self, step: Step) -> dict[str, TensorEntry]:
        """The entries of a step that the globs want, by name, in execution order."""
        return {entry.name: entry for entry in step.entries if self.wanted.wants(entry.name)}

    def _differ(self, kind: Kind, step: int, tensor: str | None, a: str, b: str) -> None:
        self.structure.setdefault((kind, tensor, a, b), []).append(step)

    def result(self, a: Trace, b: Trace, common: list[int]) -> DiffResult:
        structure = tuple(
            Structure(kind, steps[0], tensor, x, y, len(steps))
            for (kind, tensor, x, y), steps in self.structure.items()
        )
        status: Status = "close" if self.onset else "identical"
        if structure:
            status = "structure"
        elif self.divergences:
            status = "diverged"
        return DiffResult(
            status=status,
            a=str(a.path),
            b=str(b.path),
            labels=(a.header.label, b.header.label),
            steps_compared=self.steps,
            tensors_compared=self.tensors,
            tolerance=self.tolerance,
            first_divergence=self.divergences[0] if self.divergences else None,
            onset=self.onset,
            last_agreeing=self.last_agreeing,
            tightest=self.tightest,
            structure=structure,
            divergences=tuple(self.divergences) if self.all else (),
            steps=self._context(a, b, common),
            distances=tuple(
                (row.step, row.worst_rel_l2_eps)
                for row in self.summaries.values()
                if row.worst_rel_l2_eps is not None
            ),
            notes=(*_accuracy(self.estimated, self.unknown), *_notes(a, b, self.nan_equal)),
        )

    def _context(self, a: Trace, b: Trace, common: list[int]) -> tuple[StepSummary, ...]:
        """The steps around the divergence (all of them with `all`; else the last ones)."""
        if self.all:
            return tuple(self.summaries.values())
        centre = common.index(self.divergences[0].step) if self.divergences else len(common) - 1
        rows = []
        for step in common[max(0, centre - CONTEXT) : centre + CONTEXT + 1]:
            if step not in self.summaries:
                x, y = (self._entries(trace.step(step)) for trace in (a, b))
                self.summaries[step] = _summary(step, x, y, None, None)
            rows.append(self.summaries[step])
        return tuple(rows)


def _alike(a: TensorEntry, b: TensorEntry) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape


def _difference(
    step: int,
    entry: TensorEntry,
    found: Found,
    index: tuple[int, ...] | None,
    values: tuple[Any, Any] | None,
) -> Difference:
    """The record of one pair, with the values at `index`."""
    figures, allowed = found.figures, found.allowed
    shared = {
        name: getattr(figures, name)
        for name in Comparison.__struct_fields__
        if name in Difference.__struct_fields__ and name != "index"
    }
    share = figures.mismatches / figures.size if figures.size else 0.0
    return Difference(
        step=step,
        tensor=entry.name,
        index=index,
        where="" if index is None else describe_index(entry.name, entry.shape, index),
        a=None if values is None else _value(values[0]),
        b=None if values is None else _value(values[1]),
        mismatch_ratio=None if found.estimated else share,
        dtype=entry.dtype,
        shape=entry.shape,
        rtol=allowed.rtol,
        atol=allowed.atol,
        factor=allowed.factor,
        estimated=found.estimated,
        **shared,
    )


def _summary(
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


def _why_empty(a: list[int], b: list[int]) -> str:
    if not a or not b:
        return f"{len(a)} steps on one side and {len(b)} on the other"
    if not set(a).intersection(b):
        return f"no step is in both (steps {a[0]} to {a[-1]}, and {b[0]} to {b[-1]})"
    return "no tensor with the same name, dtype and shape is in both (see harness show)"


def _accuracy(estimated: bool, unknown: bool) -> Iterable[str]:
    """How far estimates can be trusted."""
    if unknown:
        yield (
            "of some tensors a trace holds the hash alone: there unequal counts as not close, as a "
            "hash knows no distance"
        )
    if estimated:
        yield (
            "distances marked as estimated are made from sketches, as a trace did not keep the "
            f"elements: right within {LIKELY_ERROR:.0%} in 97 of 100 tensors, within "
            f"{GREATEST_ERROR:.0%} in 999 of 1,000, and in float64 not below {ROUNDING:g} eps"
        )


def _notes(a: Trace, b: Trace, nan_equal: list[Place]) -> Iterable[str]:
    """What a reader should know beside the numbers."""
    for trace in (a, b):
        if not trace.header.complete:
            yield f"{trace.path} is not complete: its run stopped after {len(trace.steps)} steps"
    if nan_equal:
        first = nan_equal[0]
        yield f"both sides hold NaN, first in {first.tensor} of step {first.step}"
    yield from nonfinite_notes(a, b)
    spec_a, spec_b = _flat(a.header.spec), _flat(b.header.spec)
    for key in sorted(spec_a.keys() | spec_b.keys()):
        if spec_a.get(key) != spec_b.get(key):
            yield f"the sides' settings differ: {key} = {spec_a.get(key)!r} | {spec_b.get(key)!r}"
    for key in sorted(a.header.digests.keys() & b.header.digests.keys()):
        if a.header.digests[key] != b.header.digests[key]:
            yield f"the sides were given different {key}"


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
