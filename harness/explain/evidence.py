"""What a verdict rests on: diffs of free runs and of following ones, in two precisions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec
from numpy.typing import NDArray

from harness.compare import Comparison, DiffResult, Tolerance, compare
from harness.compare.diff import Difference
from harness.explain.case import Case, Side
from harness.trace import Trace, open_trace

# Tensors of one kind that do not feed one another: a follower's own are used for all of them.
SIBLINGS = ("state/in/", "state/out/", "grads/", "update/clipped/", "optimizer/", "params/")


class Following(NamedTuple):
    """A diff of two sides one of which was given the other's inputs, stage by stage, at every step.

    `follower` is "a" or "b": which side of `found` was fed by the other; None in a free pair, where
    neither was.
    """

    follower: Side | None
    found: DiffResult


class Repeat(NamedTuple):
    """A side that, run again from the same start, does not make the same numbers.

    `tensor` of `step` is the first that is not the same to the last bit. `fresh` is whether a fresh
    process repeats the run: then the process keeps something from run to run. If not, the side
    draws numbers without a seed, or the like.
    """

    side: Side
    label: str
    step: int
    tensor: str
    fresh: bool


class Evidence(NamedTuple):
    """All that a verdict can be made of; only `free` must be there.

    `free` is the diff of the two runs in their own dtype; `free64` that of the same runs in float64
    (None where they are float64 already). `narrow` and `wide` are following runs in float32 and in
    float64. `lacking` says in words what could not be had, and why. `repeats` are the sides that do
    not repeat themselves.
    """

    free: DiffResult
    free64: DiffResult | None = None
    narrow: tuple[Following, ...] = ()
    wide: tuple[Following, ...] = ()
    lacking: tuple[str, ...] = ()
    repeats: tuple[Repeat, ...] = ()


class Vote(msgspec.Struct, frozen=True):
    """How far each side is from the referee, which was given the same inputs; in K of the rule."""

    referee: str
    distance_a: float
    distance_b: float

    def against(self, labels: tuple[str, str]) -> str | None:
        """The label of the side that the referee is against; None where it is against neither."""
        low, high = sorted((self.distance_a, self.distance_b))
        # Rounding of one stage is a few units; a guilty side is further off than any clean one.
        if not high > max(16.0, 8 * low):
            return None
        return labels[0] if self.distance_a > self.distance_b else labels[1]


class Gap(NamedTuple):
    """How far two tensors are apart: the K of the tolerance's rule, and relative L2."""

    needed: float
    rel_l2: float
    rel_l2_eps: float


class Pair:
    """Two traces opened side by side, for looking at one tensor of both."""

    def __init__(
        self, found: DiffResult, labels: tuple[str, str], follower: Side | None = None
    ) -> None:
        """Open both; `follower` names the side that was fed by the other, if one was."""
        self.traces: dict[Side, Trace] = {"a": open_trace(found.a), "b": open_trace(found.b)}
        self.labels, self.follower = labels, follower
        self._steps: dict[tuple[Side, int], dict[str, Any]] = {}

    def read(self, side: Side, step: int, name: str) -> NDArray[Any] | None:
        """A tensor; None where it is not traced, or not kept."""
        trace = self.traces[side]
        if step not in trace.steps:
            return None
        if (side, step) not in self._steps:
            opened = trace.step(step)
            self._steps[side, step] = {"step": opened} | {e.name: e for e in opened.entries}
        found = self._steps[side, step]
        if name not in found or name == "step" or not found["step"].holds(found[name]):
            return None
        array: NDArray[Any] = found["step"].read(found[name])
        return array

    def gap(self, step: int, name: str) -> Gap | None:
        """How far apart a tensor is; None where it is not on both sides in one shape."""
        a, b = self.read("a", step, name), self.read("b", step, name)
        if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
            return None
        return gap_of(compare(a, b, self._allowed(step, name)))

    def case(self, place: Difference) -> Case | None:
        """The tensor of a place with what its causes need; None where they cannot be tried."""
        a, b = (self.read(side, place.step, place.tensor) for side in self.traces)
        if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
            return None
        allowed = self._allowed(place.step, place.tensor)
        header_a, header_b = (trace.header for trace in self.traces.values())
        return Case(
            place.step,
            place.tensor,
            a,
            b,
            self._lookup(place.step, place.tensor),
            self.labels,
            flat_settings(header_a.spec),
            flat_settings(header_b.spec),
            allowed.factor or 64.0,
            allowed.scale,
        )

    def _allowed(self, step: int, name: str) -> Any:
        entries = {e.name: e for e in self.traces["b"].step(step).entries}
        tolerance = Tolerance.local() if self.follower else Tolerance()
        return tolerance.allowance(entries[name], entries)

    def _lookup(self, at: int, tensor: str) -> Callable[[Side, int, str], NDArray[Any] | None]:
        siblings = next((prefix for prefix in SIBLINGS if tensor.startswith(prefix)), None)
        followed: dict[Side, Side] = {"a": "b", "b": "a"}

        def lookup(side: Side, step: int, name: str) -> NDArray[Any] | None:
            # A follower went on with the other side's tensors: those are what its stage was given,
            # the tensor itself included, whose last timestep feeds the next.
            own = siblings is not None and step == at and name.startswith(siblings)
            return self.read(side if own or side != self.follower else followed[side], step, name)

        return lookup


def gap_of(figures: Comparison | Difference) -> Gap:
    """The distances of one pair; infinite where a side is not finite or the reference is zero.

    Infinite too where neither elements nor sketches are there to tell.
    """
    infinite = float("inf")
    if figures.nonfinite_mismatches:
        return Gap(infinite, infinite, infinite)
    estimated = isinstance(figures, Difference) and figures.estimated
    needed = figures.least_factor if figures.least_factor is not None else 0.0
    if figures.least_factor is None and (figures.mismatches or estimated):
        needed = infinite
    rel = infinite if figures.rel_l2 is None else figures.rel_l2
    eps = infinite if figures.rel_l2_eps is None else figures.rel_l2_eps
    return Gap(needed, rel, eps)


def flat_settings(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a trace's header by name: those of the model, of training, and the rest."""
    flat: dict[str, Any] = {}
    for name, value in spec.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat
