"""What a verdict rests on: diffs of free runs and of following ones, in two precisions."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.compare import Comparison, DiffResult, Tolerance, compare
from harness.compare.diff import Difference
from harness.explain.case import Case, Side
from harness.models.evaluate import MissingError, Values
from harness.models.graph import Graph, Node, is_ref, name_of, rebuilt, references
from harness.trace import Header, Step, TensorEntry, Trace
from harness.trace.dtypes import common, epsilon, is_float
from harness.trace.graph import variants

T = TypeVar("T")
MOST_INSIDE = 3  # times that what a stage reads is put into it
OVERFLOW = 2.0**-12  # of the largest number: sums of such numbers may leave the range on the way
CLIPPED = "update/clipped/"
_KIND = re.compile(r"[/.:]")
_LAYER = re.compile(r"layer\d+")

# Tensors of one kind that do not feed one another: a follower's own are used for all of them.
SIBLINGS = (
    "state/in/",
    "state/out/",
    "grads/",
    "update/clipped/",
    "optimizer/",
    "params/",
    "buffers/",
)


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
    draws numbers without a seed, or the like; `close` is whether all that differs is rounding.
    """

    side: Side
    label: str
    step: int
    tensor: str
    fresh: bool
    close: bool = False

    def words(self) -> str:
        """What is to be said of it before anything else."""
        at = f"{self.tensor} of step {self.step}"
        if self.fresh:
            return (
                f"{self.label} keeps something in its process from run to run: run again in it, "
                f"{at} is another; in a fresh process it repeats itself"
            )
        again = f"{self.label} does not repeat itself: run again from the same start, {at}"
        if self.close:
            return f"{again} has other bits, by no more than rounding"
        return f"{again} is another: numbers drawn without a seed, or in no order?"


class Evidence(NamedTuple):
    """All that a verdict can be made of; only `free` must be there.

    `free` is the diff of the two runs in their own dtype; `free64` that of the same runs in float64
    (None where they are float64 already). `narrow` and `wide` are following runs in float32 and in
    float64. `lacking` says in words what could not be had, and why. `repeats` are the sides that do
    not repeat themselves; `scripts` is whether a side is one that may be handed what it is given.
    """

    free: DiffResult
    free64: DiffResult | None = None
    narrow: tuple[Following, ...] = ()
    wide: tuple[Following, ...] = ()
    lacking: tuple[str, ...] = ()
    repeats: tuple[Repeat, ...] = ()
    scripts: bool = False


Label = Literal["identical", "close", "rounding", "precision", "bug", "structure", "undecided"]


class Finding(NamedTuple):
    """A verdict's label and place, the diff that shows it, and the sentences that prove it.

    In a sentence, "{other}" stands for who has what ("pt has another", "pt and tf have different"):
    which side is off is known later. `others` are the first places of other parts of the step, each
    with the diff that shows it, where following has made each place stand for itself.
    """

    label: Label
    place: Difference | None
    shown: Following | None
    proof: tuple[str, ...]
    places: tuple[Difference, ...] = ()
    others: tuple[tuple[Difference, Following], ...] = ()


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
    """How far two tensors are apart: the K of the tolerance's rule, and relative L2.

    `factor` is the K that is allowed, `eps` what it counts in, `close` whether the pair is within.
    """

    needed: float
    rel_l2: float
    rel_l2_eps: float
    close: bool = False
    factor: float = 64.0
    eps: float = math.nan

    def words(self) -> str:
        """The distance in a sentence."""
        if not math.isfinite(self.rel_l2):
            return "not to be measured"
        return f"{self.rel_l2_eps:.3g} eps (relative L2 {self.rel_l2:.3g})"


class Pair:
    """Two traces opened side by side, for looking at one tensor of both."""

    def __init__(
        self, found: DiffResult, labels: tuple[str, str], follower: Side | None = None
    ) -> None:
        """Open both; `follower` names the side that was fed by the other, if one was."""
        first, second = found.opened()
        self.traces: dict[Side, Trace] = {"a": first, "b": second}
        self.aligned = found.alignment is not None
        self.labels, self.follower = labels, follower
        self._clipping: dict[Side, bool] = {}
        self._steps: dict[tuple[Side, int], tuple[Step | None, dict[str, TensorEntry]]] = {}

    def _clips(self, side: Side) -> bool:
        """Whether a side makes something of its gradients before the update, or does not say."""
        graph = self.traces[side].graph
        if side not in self._clipping:
            stages = graph.stages.values() if graph else ()
            read = (name_of(x) for stage in stages for x in references(stage.value))
            self._clipping[side] = graph is None or any(n.startswith(CLIPPED) for n in read)
        return self._clipping[side]

    def read(self, side: Side, step: int, name: str) -> NDArray[Any] | None:
        """A tensor; None where it is not traced, or not kept."""
        opened, entries = self._entries(side, step)
        if opened is None or name not in entries or not opened.holds(entries[name]):
            return None
        return opened.read(entries[name])

    def steps(self) -> tuple[int, ...]:
        """The steps that both hold."""
        held = set(self.traces["a"].steps)
        return tuple(step for step in self.traces["b"].steps if step in held)

    def names(self, step: int) -> list[str]:
        """The tensors of a step that both hold, in the reference's order of execution."""
        others = self._entries("a", step)[1]
        return [name for name in self._entries("b", step)[1] if name in others]

    def both(self, step: int, name: str) -> tuple[NDArray[Any], NDArray[Any]] | tuple[None, None]:
        """A tensor of both sides; None where they do not hold it in one shape.

        Floats of two dtypes, and those that are narrower than NumPy's, come in the dtype in which
        they are compared. None too for dtypes of different kinds.
        """
        a, b = self.read("a", step, name), self.read("b", step, name)
        if a is None or b is None or a.shape != b.shape:
            return None, None
        if is_float(a.dtype) and is_float(b.dtype):
            wide = common(a.dtype, b.dtype)
            return a.astype(wide, copy=False), b.astype(wide, copy=False)
        return (a, b) if a.dtype == b.dtype else (None, None)

    def gap(self, step: int, name: str) -> Gap | None:
        """How far apart a tensor is; None where it is not on both sides in one shape."""
        first, second = (self._entries(side, step)[1].get(name) for side in self.traces)
        if first is None or second is None:
            return None
        allowed = self._allowed(step, name)
        eps = epsilon(first.dtype, second.dtype) or math.nan
        if first.identity == second.identity:
            return Gap(0.0, 0.0, 0.0, True, allowed.factor or 0.0, eps)
        a, b = self.read("a", step, name), self.read("b", step, name)
        if a is None or b is None or a.shape != b.shape:
            return None
        if a.dtype != b.dtype and not (is_float(a.dtype) and is_float(b.dtype)):
            return None
        found = compare(a, b, allowed)
        return gap_of(found)._replace(close=found.close, factor=allowed.factor or 0.0, eps=eps)

    def overflown(self, step: int, name: str) -> bool:
        """Whether numbers that are not finite on one side alone come of overflow on both.

        Sums of numbers near the largest are Inf in one order and NaN in another, or finite and as
        large: which of them says nothing.
        """
        a, b = self.both(step, name)
        if a is None or b is None or a.dtype.kind != "f":
            return False
        with np.errstate(all="ignore"):
            large = np.finfo(a.dtype).max * OVERFLOW
            odd = (np.isfinite(a) != np.isfinite(b)) | (~np.isfinite(a) & (a != b))
            odd &= ~(np.isnan(a) & np.isnan(b))
            huge = (~(np.abs(a) < large)) & (~(np.abs(b) < large))
        return bool(odd.any()) and bool(huge[odd].all())

    def magnitudes(self, step: int, tensor: str) -> list[float]:
        """The largest number of a tensor, and then that of each other tensor of its kind.

        Of one kind are those whose names begin with the same part: "grads/...", "forward/...".
        """
        entries = self._entries("b", step)[1]
        kind = _KIND.split(tensor, maxsplit=1)[0]
        names = [n for n in entries if n != tensor and _KIND.split(n, maxsplit=1)[0] == kind]
        found = [entries[name] for name in (tensor, *names) if name in entries]
        return [max(abs(e.min or 0.0), abs(e.max or 0.0)) for e in found]

    def forget(self, before: int) -> None:
        """Let go of the steps before one, and of their files."""
        self._steps = {key: kept for key, kept in self._steps.items() if key[1] >= before}

    def _entries(self, side: Side, step: int) -> tuple[Step | None, dict[str, TensorEntry]]:
        """A step of one side, and its tensors by name; none where it is not traced."""
        trace = self.traces[side]
        if (side, step) not in self._steps:
            opened = trace.step(step) if step in trace.steps else None
            entries = opened.entries if opened else ()
            self._steps[side, step] = opened, {entry.name: entry for entry in entries}
        return self._steps[side, step]

    def case(self, step: int, tensor: str) -> Case | None:
        """A tensor with what its causes need; None where they cannot be tried."""
        a, b = self.both(step, tensor)
        if a is None or b is None:
            return None
        allowed = self._allowed(step, tensor)
        header_a, header_b = (trace.header for trace in self.traces.values())
        return Case(
            step,
            tensor,
            a,
            b,
            self._lookup(step, tensor),
            self.labels,
            flat_settings(header_a.spec),
            flat_settings(header_b.spec),
            allowed.factor or 64.0,
            allowed.scale,
            traced=self.read,
            fed=self.follower is not None,
            unit=epsilon(*(self._entries(side, step)[1][tensor].dtype for side in self.traces)),
            graph=self._graph(step, tensor),
            other_graph=self._told(step, tensor),
            variants=lambda: variants(header_b.spec),
            shapes={e.name: e.shape for e in self._entries("b", step)[1].values()},
            borrowed=self._borrowed(tensor),
            told_by="code says" if _is_script(header_a) else "settings say",
        )

    def _borrowed(self, tensor: str) -> bool:
        own = self.traces["b"].graph
        return self.aligned and (own is None or own.value(tensor) is None)

    def _graph(self, step: int, tensor: str) -> Graph | None:
        """The stages of the reference; those of the other side where it alone says how.

        What a stage reads that only one side traces is put into it as it is made, so that what is
        other there can be looked for.
        """
        own, other = self.traces["b"].graph, self.traces["a"].graph
        if not self.aligned or (own is None and other is None):
            return own
        stages = {**(other.stages if other else {}), **(own.stages if own else {})}
        both, found = set(self.names(step)), Graph(stages)
        for _ in range(MOST_INSIDE if tensor in stages else 0):
            stage = stages[tensor]
            stages[tensor] = stage._replace(value=rebuilt(stage.value, _inside(found, both)))
        return found

    def _told(self, step: int, tensor: str) -> Graph | None:
        """The stages of side a, for what it was told to do otherwise than the reference.

        Scripts may write one stage in two ways: then it makes the same of one side.
        """
        told, known = self.traces["a"].graph, self.traces["b"].graph
        if told is None or known is None:
            return None if self.aligned else told
        if not self.aligned and not _is_script(self.traces["a"].header):
            return told
        both = told.value(tensor), known.value(tensor)
        if both[0] is None or both[1] is None:
            return told
        values = Values(lambda back, name: self.read("b", step - back, name), step, known)
        try:
            one, two = (np.asarray(values.value(x), np.float64) for x in both if x is not None)
        except (MissingError, ValueError, TypeError, IndexError):
            return told
        same = one.shape == two.shape and np.allclose(one, two, rtol=1e-9, atol=1e-12)
        return None if same else told

    def elsewhere(self, case: Case, most: int) -> list[Case]:
        """Other places where the stage of a case ran: other steps, then other layers or parameters.

        At most `most`, spread over the steps; those at which the sides differ come first.
        """
        steps = [step for step in self.steps() if step != case.step and self._holds(step, case)]
        parted = [step for step in steps if not self._alike(step, case.tensor)]
        agreed = [step for step in steps if step not in parted]
        chosen = _spread(parted, most - 3)
        chosen += _spread(agreed, most - 2 - len(chosen))
        places = [(step, case.tensor) for step in sorted(chosen)]
        names = [
            n for n in self.names(case.step) if n != case.tensor and same_stage(n, case.tensor)
        ]
        places += [(case.step, name) for name in _spread(names, most - len(places))]
        return [found for place in places if (found := self.case(*place))]

    def _holds(self, step: int, case: Case) -> bool:
        entries = [self._entries(side, step)[1].get(case.tensor) for side in self.traces]
        return all(entry is not None and entry.stored is not None for entry in entries)

    def _alike(self, step: int, tensor: str) -> bool:
        gap = self.gap(step, tensor)
        return gap is None or gap.close

    def _allowed(self, step: int, name: str) -> Any:
        entries = self._entries("b", step)[1]
        tolerance = Tolerance.local() if self.follower else Tolerance()
        other = self._entries("a", step)[1].get(name)
        graph = self.traces["b"].graph
        return tolerance.allowance(entries[name], entries, other.dtype if other else None, graph)

    def _lookup(self, at: int, tensor: str) -> Callable[[Side, int, str], NDArray[Any] | None]:
        siblings = next((prefix for prefix in SIBLINGS if tensor.startswith(prefix)), None)
        followed: dict[Side, Side] = {"a": "b", "b": "a"}

        def lookup(side: Side, step: int, name: str) -> NDArray[Any] | None:
            # A follower went on with the other side's tensors: those are what its stage was given,
            # the tensor itself included, whose last timestep feeds the next.
            own = siblings is not None and step == at and name.startswith(siblings)
            source = side if own or side != self.follower else followed[side]
            found = self.read(source, step, name)
            if found is None and name.startswith(CLIPPED) and not self._clips(source):
                found = self.read(source, step, f"grads/{name.removeprefix(CLIPPED)}")
            return found

        return lookup


def _inside(graph: Graph, traced: set[str]) -> Callable[[Node], Node | None]:
    """What makes a reference to what is not traced on both sides the expression that it is of."""

    def change(x: Node) -> Node | None:
        if not is_ref(x) or x.arg("time") or x.arg("back") or name_of(x) in traced:
            return None
        return graph.value(name_of(x)) if name_of(x).startswith("forward/") else None

    return change


def _is_script(header: Header) -> bool:
    return header.program is not None and header.program.kind == "script"


def same_stage(one: str, two: str) -> bool:
    """Whether two tensors are made by one stage: of other layers, or for other parameters."""
    if one.startswith(("forward/", "backward/", "grads/", "state/")):
        return _LAYER.sub("layer", one) == _LAYER.sub("layer", two)
    for prefix in ("params/", "update/clipped/", "optimizer/"):
        if one.startswith(prefix) and two.startswith(prefix):
            slots = one.rpartition("/")[2] == two.rpartition("/")[2]
            return prefix != "optimizer/" or slots
    return False


def _spread(items: list[T], most: int) -> list[T]:
    """At most so many of them, evenly spread."""
    if len(items) <= most:
        return items
    places = np.linspace(0, len(items) - 1, max(most, 0)).round().astype(int)
    return [items[i] for i in dict.fromkeys(places.tolist())]


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
