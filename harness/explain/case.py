"""The evidence that a cause is tried on: one tensor that differs, and what else the traces hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.models.graph import Axis, Graph, Node
from harness.trace.dtypes import epsilon

Array = NDArray[Any]
Side = Literal["a", "b"]
Lookup = Callable[[Side, int, str], Array | None]

GAIN = 8.0  # an explanation must bring the distance down by this factor, beside to rounding level
VOTERS = 1 << 12  # elements of a large tensor that are asked what a claim is worth


def distance(x: Array, y: Array, eps: float, floor: float) -> float:
    """max |x - y| / (eps (|y| + scale)), where scale is max|y| or, if larger, `floor`.

    Infinite for different shapes, and for what is not finite on one side alone.
    """
    if x.shape != y.shape:
        return math.inf
    wide_x, wide_y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    with np.errstate(all="ignore"):
        same = (wide_x == wide_y) | (np.isnan(wide_x) & np.isnan(wide_y))
        finite = np.abs(wide_y[np.isfinite(wide_y)])
        scale = max(float(finite.max(initial=0.0)), floor)
        shares = np.abs(wide_x - wide_y) / (eps * (np.abs(wide_y) + scale))
    shares = np.where(same, 0.0, np.where(np.isnan(shares), math.inf, shares))
    return float(shares.max(initial=0.0))


class Cause(msgspec.Struct, frozen=True):
    """An explanation that was tried and held.

    `name` is its row in the table of causes; `sentence` says it in words; `residual_eps` is what
    remains once it is applied, as the K of the tolerance's rule; `sure` is "certain" where nothing
    else known would leave so little, "likely" where it fits and others might, "hint" where it says
    where the difference lies and not why. `format` is the narrower number format of a cause that is
    one of precision. `claim` is what is claimed in short, without the numbers of this place, so
    that it can be tried at others; `side` is the label of the side it is about, if it is one.
    """

    name: str
    sentence: str
    residual_eps: float
    sure: Literal["certain", "likely", "hint"] = "certain"
    format: str | None = None
    claim: str = ""
    side: str | None = None


class Case(NamedTuple):
    """One tensor of one step that differs between the sides `a` and `b` (the reference).

    `a` and `b` have one shape and dtype, and were computed from inputs that agree to rounding (to
    the bit, where side a was fed by side b). `lookup(side, step, name)` gives any other traced
    tensor, None where there is none. `settings_a` and `settings_b` are the flat settings of each
    side: vocab_size, hidden_size, lr, clip, bptt, batch_size, dropout, optimizer, ... `level` is
    the K up to which a distance is rounding here; `floor` is what scales rounding beside max|b|.

    `off` is the side that a referee is against, where one is. `traced(side, step, name)` gives what
    a side itself made (a side that was fed by the other went on with that side's tensors, which is
    what `lookup` gives); `fed` says that one side was. `unit` is the machine epsilon, where it
    is not that of the tensors. `graph` has the stages of the reference, where they are known, and
    `shapes` those of the tensors of this step by name; `variants` gives the stages of the same run
    with one choice of its settings made otherwise. `other_graph` are the stages of side a, where it
    was told to do something else; `told_by` says by what. `borrowed`: the stage is side a's,
    as the reference says of none: then it tells that the sides differ, and not which is off.
    """

    step: int
    tensor: str
    a: Array
    b: Array
    lookup: Lookup
    labels: tuple[str, str] = ("a", "b")
    settings_a: Mapping[str, Any] = {}
    settings_b: Mapping[str, Any] = {}
    level: float = 64.0
    floor: float = 0.0
    off: Side | None = None
    traced: Lookup | None = None
    fed: bool = False
    unit: float | None = None
    graph: Graph | None = None
    shapes: Mapping[str, tuple[int, ...]] = {}
    variants: Callable[[], Mapping[str, Graph]] = dict
    other_graph: Graph | None = None
    told_by: str = "settings say"
    borrowed: bool = False

    @property
    def eps(self) -> float:
        """Machine epsilon of the tensor's dtype; 0 for integers and booleans: they do not round."""
        return self.unit or epsilon(self.b.dtype) or 0.0

    @property
    def axes(self) -> tuple[Axis, ...]:
        """What the axes of the tensor count; () where that is not known."""
        return self.graph.axes(self.tensor) if self.graph else ()

    @property
    def as_told(self) -> Node | None:
        """What side a was told to make of the tensor, where that is another stage than b's."""
        stages = [graph.value(self.tensor) if graph else None for graph in self._graphs]
        return stages[0] if stages[0] is not stages[1] and None not in stages else None

    @property
    def _graphs(self) -> tuple[Graph | None, Graph | None]:
        return self.other_graph, self.graph

    def get(self, name: str, side: Side = "b", back: int = 0) -> Array | None:
        """Another tensor of this step, or of `back` steps before; None where it is not traced."""
        return self.lookup(side, self.step - back, name)

    def made(self, name: str, side: Side, back: int) -> Array | None:
        """A tensor as that side itself made it, `back` steps before this one.

        What it went on with, where its own is not traced: a follower may begin late.
        """
        own = self.traced and self.traced(side, self.step - back, name)
        return self.lookup(side, self.step - back, name) if own is None else own

    def distance(self, x: Array, y: Array) -> float:
        """max |x - y| / (eps (|y| + max|y|)): the K that the tolerance's rule would need.

        Infinite for different shapes, and for what is not finite on one side alone.
        """
        return distance(x, y, self.eps, self.floor)

    def gap(self) -> float:
        """How far apart the two sides are."""
        return self.distance(self.a, self.b)

    def chance(self, free: int = 0, same: bool = False) -> float:
        """log10 of the chance that an unrelated difference of this size would fit one claim.

        An element fits by chance with the share that what is allowed is of its gap. Elements vote
        that differ by more than that, equal pairs of numbers once (all, where that they are the
        `same` is the claim); each of `free` constants that a claim was fitted with takes the vote
        that says most.
        """
        if not math.isfinite(self.gap()):
            return -math.inf  # NaN and infinity come from no rounding of any size
        a, b = (np.asarray(x).reshape(-1)[:: max(1, x.size // VOTERS)] for x in (self.a, self.b))
        pairs = np.stack([a, b], axis=1)
        pairs = (pairs if same else np.unique(pairs, axis=0)).astype(np.float64)
        if self.b.dtype.kind != "f":
            kinds = max(2, len(np.unique(pairs)))
            votes = np.full(int(np.sum(pairs[:, 0] != pairs[:, 1])), -np.log10(kinds))
        else:
            with np.errstate(all="ignore"):
                gaps = np.abs(pairs[:, 0] - pairs[:, 1])
                scale = max(float(np.abs(pairs).max(initial=0.0)), self.floor)
                allowed = 2 * self.level * self.eps * (np.abs(pairs[:, 1]) + scale)
                votes = np.log10(np.clip(allowed / gaps, 1e-300, 1.0))
            votes = votes[np.isfinite(votes)]
        return float(np.sort(votes)[free:].sum())
