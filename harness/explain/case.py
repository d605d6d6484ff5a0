"""The evidence that a cause is tried on: one tensor that differs, and what else the traces hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.trace.dtypes import epsilon

Array = NDArray[Any]
Side = Literal["a", "b"]
Lookup = Callable[[Side, int, str], Array | None]

GAIN = 8.0  # an explanation must bring the distance down by this factor, beside to rounding level
SAMPLE = 1 << 14  # elements of a large tensor that are tried before all of them are


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
    one of precision.
    """

    name: str
    sentence: str
    residual_eps: float
    sure: Literal["certain", "likely", "hint"] = "certain"
    format: str | None = None


class Case(NamedTuple):
    """One tensor of one step that differs between the sides `a` and `b` (the reference).

    `a` and `b` have one shape and dtype, and were computed from inputs that agree to rounding (to
    the bit, where side a was fed by side b). `lookup(side, step, name)` gives any other traced
    tensor, None where there is none. `settings_a` and `settings_b` are the flat settings of each
    side: vocab_size, hidden_size, lr, clip, bptt, batch_size, dropout, optimizer, ... `level` is
    the K up to which a distance is rounding here; `floor` is what scales rounding beside max|b|.
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

    @property
    def eps(self) -> float:
        """Machine epsilon of the tensor's dtype; 0 for integers and booleans: they do not round."""
        return epsilon(self.b.dtype) or 0.0

    def get(self, name: str, side: Side = "b", back: int = 0) -> Array | None:
        """Another tensor of this step, or of `back` steps before; None where it is not traced."""
        return self.lookup(side, self.step - back, name)

    def before(self, name: str, side: Side = "b") -> Array | None:
        """A parameter as it was before the step (`name` as in "layer0/w_i")."""
        if self.step == 1:
            return self.get(f"inputs/params/{name}", side)
        return self.get(f"params/{name}", side, back=1)

    def distance(self, x: Array, y: Array) -> float:
        """max |x - y| / (eps (|y| + max|y|)): the K that the tolerance's rule would need.

        Infinite for different shapes, and for what is not finite on one side alone.
        """
        return distance(x, y, self.eps, self.floor)

    def gap(self) -> float:
        """How far apart the two sides are."""
        return self.distance(self.a, self.b)

    def settled(self, x: Array, y: Array | None = None) -> float | None:
        """The distance of `x` from `y` (side b) if it is rounding and far under the gap; else None.

        Apply an explanation to one side and hand both in: a number means that it explains.
        """
        y = self.b if y is None else y
        if x.size > SAMPLE and x.shape == y.shape and not self._sample_fits(x, y):
            return None
        left = self.distance(x, y)
        return left if left <= self.level and left * GAIN <= self.gap() else None

    def _sample_fits(self, x: Array, y: Array) -> bool:
        """Whether some elements of a large tensor are near enough for all of them to be tried."""
        with np.errstate(all="ignore"):
            extremes = [abs(float(y.min())), abs(float(y.max()))]
        if not all(map(math.isfinite, extremes)):
            return True
        every = (slice(None, None, x.size // SAMPLE),)
        part = self._replace(floor=max(self.floor, *extremes))
        return part.distance(x.reshape(-1)[every], y.reshape(-1)[every]) <= self.level
