"""The diff of two traces: the first step and tensor at which they part."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from harness.compare.metrics import differs
from harness.compare.nonfinite import nonfinite_notes
from harness.compare.pairing import Pairing, pairing
from harness.compare.pairs import Found, Side, compare_pair
from harness.compare.result import (
    Difference,
    DiffResult,
    Kind,
    Place,
    Status,
    StepSummary,
    Structure,
    Tightest,
    Value,
    difference,
    summary,
)
from harness.compare.tolerance import Tolerance
from harness.errors import HarnessError
from harness.kernels import PIECE, advice, distrust, in_use
from harness.kernels.floats import standard_floats
from harness.models.graph import Graph
from harness.spec import Capture, build
from harness.trace import Alignment, Header, Step, TensorEntry, Trace, open_trace
from harness.trace.aligned import AlignedTrace
from harness.trace.dtypes import BETWEEN, are_integers, is_float
from harness.trace.ranks import rank_notes
from harness.trace.sketch import GREATEST_ERROR, LIKELY_ERROR, ROUNDING

__all__ = ["Difference", "DiffResult", "StepSummary", "Structure", "Value", "diff"]

CONTEXT = 2  # steps shown before and after the one at which the traces part


@standard_floats()
def diff(
    a: str | Path | Trace,
    b: str | Path | Trace,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    factor: float | None = None,
    all: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    steps: tuple[int, int | None] = (1, None),
    tolerance: Tolerance | None = None,
    roles: Sequence[str] = (),
    alignment: Alignment | str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DiffResult:
    """Compare trace `a` with the reference `b`, step by step in execution order.

    Tensor bytes are read only where hashes differ, those of large tensors several at a time; where
    a trace did not keep them, the sketches are compared. It stops at the end of the first tensor
    that is not close unless `all`. `rtol` and `atol` give numpy.allclose's rule; neither gives the
    default (harness.compare.tolerance), with `factor` as the K of all tensors but `inputs/*`, and
    `tolerance` any other. `include` and `exclude` are globs of tensor names, `steps` the first and
    last step to compare. `roles` say what tensors with names of their own are: "GRAD/*=grads"
    (harness.trace.roles), `alignment` is a map, or its file, from `a` to `b` (harness.align): what
    has no partner in it is told of in a note. `progress` is called with steps done and in all.

    Floats of two dtypes are compared in the wider with the eps of the narrower, and a note says so.
    The first tensor that is not close is compared once more without compiled code. Raises
    HarnessError if there is nothing to compare, or for tolerances that cannot be, and TraceError
    for a damaged trace.
    """
    if tolerance and (rtol, atol, factor) != (None, None, None):
        raise HarnessError("tolerance beside rtol, atol or factor: give the one or the others")
    first, last = steps
    wanted = build(Capture, include=include, exclude=exclude, first=first, last=last)
    trace_a = a if isinstance(a, Trace) else open_trace(a, roles, alignment)
    trace_b = b if isinstance(b, Trace) else open_trace(b, roles, alignment, "b")
    rule = tolerance or Tolerance.given(rtol, atol, factor)
    walk = _Walk(rule, wanted, all, trace_b.graph, pairing(trace_a, trace_b))
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
            f"{trace_a.path} and {trace_b.path}: nothing to compare: "
            f"{_why_empty(in_range[0], in_range[1], walk.names)}"
        )
    return walk.result(trace_a, trace_b, common)


class _Plan(NamedTuple):
    """What is to be compared of a step: entries by name, and how to compare those that differ.

    Of each two ways: one that may have begun already, and one without compiled code.
    """

    step: int
    a: dict[str, TensorEntry]
    b: dict[str, TensorEntry]
    compare: dict[str, tuple[Callable[[], Found], Callable[[], Found]]]


def _ahead(plans: Iterator[_Plan], count: int) -> Iterator[_Plan]:
    """The same plans, of which `count` are made before the first is carried out."""
    waiting = list(islice(plans, count))
    while waiting:
        yield waiting.pop(0)
        waiting += islice(plans, 1)


class _Walk:
    """The state of one diff while it goes through the steps."""

    def __init__(
        self,
        tolerance: Tolerance,
        wanted: Capture,
        all: bool,
        graph: Graph | None,
        pairing: Pairing | None,
    ) -> None:
        self.tolerance, self.wanted, self.all, self.graph = tolerance, wanted, all, graph
        self.pairing = pairing
        self.steps = self.tensors = 0
        self.divergences: list[Difference] = []
        self.onset: Difference | None = None
        self.onset_by_dtype = False  # for want of one that is of numbers
        self.last_agreeing: Place | None = None
        self.tightest: Tightest | None = None
        self.structure: dict[tuple[Kind, str | None, str, str], list[int]] = {}
        self.summaries: dict[int, StepSummary] = {}
        self.nan_equal: list[Place] = []
        self.estimated = self.unknown = False
        self.dtypes: dict[str, list[Place]] = {}  # of two sides, where they are not the same
        self.largest = 0  # elements of the largest tensor compared
        self.disagreed: str | None = None  # in what compiled code was wrong
        self.names: tuple[set[str], set[str]] = set(), set()  # where nothing could be compared yet

    @property
    def finished(self) -> bool:
        return bool(self.divergences) and not self.all

    def missing_steps(self, a: list[int], b: list[int]) -> None:
        for step in sorted(set(a).symmetric_difference(b)):
            sides = ("present", "missing") if step in a else ("missing", "present")
            self._differ("missing step", step, None, *sides)

    def plan(self, a: Step, b: Step, pool: Executor) -> _Plan:
        """The comparison of one step; that of large tensors is begun."""
        entries_a, entries_b = self._entries(a, b)
        tasks: dict[str, tuple[Callable[[], Found], Callable[[], Found]]] = {}
        for name, entry in entries_b.items():
            other = entries_a.get(name)
            if other is None or not _alike(other, entry):
                continue
            if (other.hash, other.dtype) == (entry.hash, entry.dtype):
                continue
            sides = Side(a, other), Side(b, entry)
            task = partial(compare_pair, *sides, self.tolerance, entries_b, graph=self.graph)
            begun = pool.submit(task).result if entry.size >= PIECE else task
            tasks[name] = begun, partial(task, compiled=False)
        return _Plan(b.number, entries_a, entries_b, tasks)

    def compare_step(self, plan: _Plan) -> None:
        """Compare one step, in the reference's execution order: structure first, then numbers."""
        self.steps += 1
        step, a, b = plan.step, plan.a, plan.b
        for name in sorted(a.keys() - b.keys()):
            self._differ("missing tensor", step, name, "present", "missing")
        for name in sorted(b.keys() - a.keys()):
            self._differ("missing tensor", step, name, "missing", "present")
        if not self.tensors:
            self.names[0].update(a)
            self.names[1].update(b)
        worst, not_close, estimated = 0.0, 0, False
        for name in b:
            if name in a:
                found = self._compare_tensor(plan, name)
                if found:
                    odd = math.inf if found.figures.nonfinite_mismatches else 0.0
                    worst = max(worst, found.figures.rel_l2_eps or odd)
                    not_close += not found.figures.close
                    estimated |= found.estimated
            if self.finished:
                break
        ended = None if self.finished else worst
        self.summaries[step] = summary(step, a, b, not_close, ended, estimated)

    def _compare_tensor(self, plan: _Plan, name: str) -> Found | None:
        """What comparing a pair found, None where it is equal or no pair; it is kept."""
        step, a, b = plan.step, plan.a[name], plan.b[name]
        if not _alike(a, b):
            if a.shape != b.shape:
                self._differ("shape", step, name, str(list(a.shape)), str(list(b.shape)))
            else:
                self._differ("dtype", step, name, a.dtype, b.dtype)
            return None
        self.tensors += 1
        if a.dtype != b.dtype:
            self.dtypes.setdefault(a.dtype + BETWEEN + b.dtype, []).append(Place(step, name))
        if a.nan and b.nan:
            self.nan_equal.append(Place(step, name))
        found = self._found(plan, name) if name in plan.compare else None
        if found:
            self._take(step, a, b, found)
        if not self.divergences:
            self.last_agreeing = Place(step, name)
        return found

    def _found(self, plan: _Plan, name: str) -> Found:
        """What comparing a pair finds. A first divergence is confirmed without compiled code."""
        compare, again = plan.compare.pop(name)
        self.largest = max(self.largest, plan.b[name].size)
        if self.disagreed:
            return again()
        found = compare()
        if (
            found.figures.close
            or found.estimated
            or self.divergences
            or not in_use(found.figures.size)
        ):
            return found
        plain = again()
        wrong = differs(found.figures, plain.figures)
        if wrong:
            distrust()
            self.disagreed = f"{wrong} of {name} of step {plan.step}"
        return plain

    def _take(self, step: int, a: TensorEntry, b: TensorEntry, found: Found) -> None:
        """Keep what was found of a pair that is not equal."""
        figures, allowed = found.figures, found.allowed
        self.estimated |= found.estimated
        self.unknown |= found.estimated and figures.rel_l2 is None and figures.used is None
        used = figures.used
        if figures.close and used and (not self.tightest or used > self.tightest.used):
            needed = None if allowed.factor is None else used * allowed.factor
            self.tightest = Tightest(step, b.name, used, needed)
        by_dtype = figures.onset is None and not found.estimated  # all the numbers are the same
        if self.onset is None or (self.onset_by_dtype and not by_dtype):
            self.onset = self._difference(step, a, b, found, onset=True)
            self.onset_by_dtype = by_dtype
        if not figures.close:
            self.divergences.append(self._difference(step, a, b, found))

    def _difference(
        self, step: int, a: TensorEntry, b: TensorEntry, found: Found, onset: bool = False
    ) -> Difference:
        """The record of a pair, with the element that is furthest off, or the first unequal."""
        figures = found.figures
        at = (figures.onset, found.at_onset) if onset else (figures.index, found.at_index)
        axes = self.graph.axes(b.name) if self.graph else ()
        return difference(step, a, b, found, at, axes)

    def _entries(self, a: Step, b: Step) -> tuple[dict[str, TensorEntry], dict[str, TensorEntry]]:
        """The entries of a step that are compared, by name, in execution order."""
        wanted = self.wanted.wants
        first, second = ({e.name: e for e in step.entries if wanted(e.name)} for step in (a, b))
        return self.pairing.partners(b.number, first, second) if self.pairing else (first, second)

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
        labels = labels_of(a.header.label, b.header.label)
        return DiffResult(
            status=status,
            a=str(a.path),
            b=str(b.path),
            labels=labels,
            roles=(a.given_roles, b.given_roles),
            alignment=a.alignment if isinstance(a, AlignedTrace) else None,
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
                if row.worst_rel_l2_eps is not None and math.isfinite(row.worst_rel_l2_eps)
            ),
            notes=(
                *(self.pairing.notes(labels) if self.pairing else ()),
                *self._how(),
                *_accuracy(self.estimated, self.unknown),
                *_notes(a, b, self.nan_equal),
            ),
        )

    def _how(self) -> Iterable[str]:
        """What is to be said of the way in which was compared."""
        for pair, places in self.dtypes.items():
            first = places[0]
            how = "in the wider, with the eps of the narrower" if is_float(pair) else "by value"
            yield (
                f"of two dtypes, {pair}: {len(places)} tensors, first {first.tensor} of step "
                f"{first.step}; compared {how}"
            )
        if self.disagreed:
            yield (
                f"compiled code and NumPy disagreed about {self.disagreed}: the figures are those "
                "of NumPy, which compared the rest too"
            )
        said = advice(self.largest)
        if said:
            yield said

    def _context(self, a: Trace, b: Trace, common: list[int]) -> tuple[StepSummary, ...]:
        """The steps around the divergence (all of them with `all`; else the last ones)."""
        if self.all:
            return tuple(self.summaries.values())
        centre = common.index(self.divergences[0].step) if self.divergences else len(common) - 1
        rows = []
        for step in common[max(0, centre - CONTEXT) : centre + CONTEXT + 1]:
            if step not in self.summaries:
                x, y = self._entries(a.step(step), b.step(step))
                self.summaries[step] = summary(step, x, y, None, None)
            rows.append(self.summaries[step])
        return tuple(rows)


def labels_of(a: str, b: str) -> tuple[str, str]:
    """What the sides are called; two of one name are told apart."""
    return (a, b) if a != b else (f"{a} (A)", f"{b} (B)")


def _alike(a: TensorEntry, b: TensorEntry) -> bool:
    """Whether two tensors can be compared: of one shape, and both floats or both integers."""
    same = a.dtype == b.dtype or are_integers(a.dtype, b.dtype)
    return a.shape == b.shape and (same or (is_float(a.dtype) and is_float(b.dtype)))


def _why_empty(a: list[int], b: list[int], names: tuple[set[str], set[str]]) -> str:
    if not a or not b:
        return f"{len(a)} steps on one side and {len(b)} on the other"
    if not set(a).intersection(b):
        return f"no step is in both (steps {a[0]} to {a[-1]}, and {b[0]} to {b[-1]})"
    both = sorted(names[0] & names[1])
    if both:
        return (
            f"the tensors named alike ({_some(both)}) differ in shape, or are integers on one side "
            "and floats on the other"
        )
    if not names[0] or not names[1]:
        return f"{len(names[0])} tensors on one side and {len(names[1])} on the other"
    return (
        f"no tensor has the same name on both sides: {_some(sorted(names[0]))} on one, "
        f"{_some(sorted(names[1]))} on the other"
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)


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
    yield from (*rank_notes(a), *rank_notes(b))
    yield from nonfinite_notes(a, b)
    yield from _programs(a.header, b.header)
    spec_a, spec_b = _flat(a.header.spec), _flat(b.header.spec)
    for key in sorted(spec_a.keys() | spec_b.keys()):
        if not _same_setting(key, spec_a.get(key), spec_b.get(key)):
            yield f"the sides' settings differ: {key} = {spec_a.get(key)!r} | {spec_b.get(key)!r}"
    for key in sorted(a.header.digests.keys() & b.header.digests.keys()):
        if a.header.digests[key] != b.header.digests[key]:
            yield f"the sides were given different {key}"


def _same_setting(key: str, x: Any, y: Any) -> bool:
    """Whether a setting is the same; of scripts, whose frameworks name and round it, nearly so."""
    if not key.startswith("script.") or x == y:
        return bool(x == y)
    if isinstance(x, float | int) and isinstance(y, float | int):
        return math.isclose(x, y, rel_tol=1e-6)
    return x is None or y is None or key == "script.optimizer"


def _programs(a: Header, b: Header) -> Iterable[str]:
    """That a program was changed between the runs that it made."""
    x, y = a.program, b.program
    if x and y and (x.kind, x.name) == (y.kind, y.name) and x.digest != y.digest:
        yield (
            f"made by different code: {x.name} of digest {x.digest or 'unknown'} | "
            f"{y.digest or 'unknown'}"
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
