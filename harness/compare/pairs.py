"""One tensor on both sides whose hashes differ: compared by elements, or by what is known of them.

Where a trace did not keep the elements, the distance is estimated from the sketches of both, and
the tolerance is applied to the tensor as one vector: |a - b| <= atol + rtol |b| with L2 norms.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.compare.metrics import Comparison, compare, in_eps, ratio
from harness.compare.tolerance import Allowance, Tolerance
from harness.kernels.floats import standard_floats
from harness.models.graph import Graph
from harness.trace import Step, TensorEntry, TraceError
from harness.trace.dtypes import are_integers
from harness.trace.sketch import distance
from harness.trace.statistics import Digest, describe

RELEASE = 4 << 20  # bytes of a file that stay mapped behind the place that is compared


class Side(NamedTuple):
    """A tensor of a step."""

    step: Step
    entry: TensorEntry

    def known(self) -> TensorEntry | None:
        """Statistics and sketch, from the elements if need be; None where there are neither.

        Raises TraceError for elements that are damaged.
        """
        if self.entry.sketch is not None or not self.step.holds(self.entry):
            return self.entry if self.entry.sketch is not None else None
        found = describe(self.entry.name, self.step.view(self.entry), "stats")
        if found.hash != self.entry.hash:
            raise self.damage()
        return found

    def damage(self) -> TraceError:
        """What is to be said of elements that have another hash than the index says."""
        try:
            self.step.read(self.entry)
        except TraceError as error:
            return error
        return TraceError(f"{self.step.path}: {self.entry.name} changed while it was read")


class Found(NamedTuple):
    """What comparing a pair found; `at_index` and `at_onset` are both sides' elements there."""

    figures: Comparison
    allowed: Allowance
    at_index: tuple[Any, Any] | None
    at_onset: tuple[Any, Any] | None
    estimated: bool = False


@standard_floats()
def compare_pair(
    a: Side,
    b: Side,
    tolerance: Tolerance,
    step: Mapping[str, TensorEntry],
    compiled: bool = True,
    graph: Graph | None = None,
) -> Found:
    """Compare by whatever both sides hold. `step` has the reference's entries of the step by name.

    `compiled` is False where NumPy alone is to do it; `graph` has the stages, for the tolerance.
    Raises TraceError for damaged elements.
    """
    if a.step.holds(a.entry) and b.step.holds(b.entry):
        # An entry of level "hash" does not know the scale that the tolerance may need.
        known = b.entry if b.entry.nan is not None else b.known() or b.entry
        allowed = tolerance.allowance(known, step, a.entry.dtype, graph)
        return _by_elements(a, b, allowed, compiled)
    known_a, known_b = a.known(), b.known()
    allowed = tolerance.allowance(known_b or b.entry, step, a.entry.dtype, graph)
    if known_a is None or known_b is None:
        counted = known_a or a.entry, known_b or b.entry
        if all(entry.nan is not None for entry in counted):
            return _by_statistics(*counted, allowed)
    if known_a is None or known_b is None:
        return _estimated(a.entry, b.entry, False, 0, None, None, allowed)
    return _by_sketch(known_a, known_b, allowed)


def _by_elements(a: Side, b: Side, allowed: Allowance, compiled: bool) -> Found:
    """Compare the elements, and check their hashes, in one pass over both files.

    Raises TraceError for elements that are damaged.
    """
    if a.entry.dtype != b.entry.dtype and are_integers(a.entry.dtype, b.entry.dtype):
        return _by_value(a, b, allowed)
    x, y = a.step.view(a.entry), b.step.view(b.entry)
    hashes, flat = (Digest(), Digest()), [v.reshape(-1) for v in (x, y)]
    maps = [_Mapped(v) for v in flat]

    def seen(piece_a: NDArray[Any], piece_b: NDArray[Any], start: int) -> None:
        for mapped, hasher, piece in zip(maps, hashes, (piece_a, piece_b), strict=True):
            mapped.release(start * piece.itemsize)
            hasher.add(piece)

    figures = compare(x, y, allowed, seen=seen, compiled=compiled)
    for side, hasher in zip((a, b), hashes, strict=True):
        if hasher.text() != side.entry.hash:
            raise side.damage()

    def values(index: tuple[int, ...] | None) -> tuple[Any, Any] | None:
        return None if index is None else (x[index].item(), y[index].item())

    found = Found(figures, allowed, values(figures.index), values(figures.onset))
    for mapped, array in zip(maps, flat, strict=True):
        mapped.release(array.nbytes)
    return found


def _by_value(a: Side, b: Side, allowed: Allowance) -> Found:
    """Compare integers of two dtypes in one that holds both."""
    x, y = a.step.read(a.entry), b.step.read(b.entry)
    kind = np.result_type(x, y)
    x, y = x.astype(kind), y.astype(kind)
    figures = compare(x, y, allowed)
    at = [None if i is None else (x[i].item(), y[i].item()) for i in (figures.index, figures.onset)]
    return Found(figures, allowed, at[0], at[1])


class _Mapped:
    """An array on a file that is mapped; what was read of it may leave the memory again."""

    def __init__(self, array: NDArray[Any]) -> None:
        base: Any = array
        while isinstance(base, np.ndarray | memoryview):
            base = base.base if isinstance(base, np.ndarray) else base.obj
        self._map = base if isinstance(base, mmap.mmap) else None
        self._done = 0
        if self._map is not None:
            whole = np.frombuffer(self._map, np.uint8)
            self._start = array.ctypes.data - whole.ctypes.data
            self._size = array.nbytes
            self._done = -(-self._start // mmap.PAGESIZE) * mmap.PAGESIZE

    def release(self, seen: int) -> None:
        """Let go of the pages before byte `seen` of the array, some megabytes at a time."""
        if self._map is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        end = (self._start + seen) // mmap.PAGESIZE * mmap.PAGESIZE
        if end - self._done >= (RELEASE if seen < self._size else 1):
            self._map.madvise(mmap.MADV_DONTNEED, self._done, end - self._done)
            self._done = end


def _by_sketch(a: TensorEntry, b: TensorEntry, allowed: Allowance) -> Found:
    """Compare two tensors that are not equal by their sketches and statistics.

    They are close if their distance is, if neither extreme differs by more than twice what is
    allowed there (as it could not if all elements were close), and if NaN and infinities are as
    many.
    """
    x, y = (np.frombuffer(entry.sketch or b"", "<f8") for entry in (a, b))
    apart = distance(x, y)
    norm = math.inf if b.l2 is None else b.l2
    shares = [_share(apart, allowed.atol + allowed.rtol * norm)]
    for end_a, end_b in ((a.min, b.min), (a.max, b.max)):
        if end_a is not None and end_b is not None:
            room = 2 * allowed.atol + 2 * allowed.rtol * max(abs(end_a), abs(end_b))
            shares.append(_share(abs(end_a - end_b), room))
    odd = max(abs((a.nan or 0) - (b.nan or 0)), abs((a.inf or 0) - (b.inf or 0)))
    used = max(shares)
    if odd:  # no number tells how far they are apart
        return _estimated(a, b, False, odd, None, math.inf, allowed)
    rel_l2 = ratio(apart, norm) if math.isfinite(norm) else None
    # Equal integers of two widths have other bytes, and so another hash.
    widths = a.dtype != b.dtype and are_integers(a.dtype, b.dtype)
    equal = widths and not apart and (a.min, a.max, a.zero) == (b.min, b.max, b.zero)
    close = equal or (allowed.factor != 0 and used <= 1)
    return _estimated(a, b, close, 0, rel_l2, 0.0 if equal else used, allowed)


def _by_statistics(a: TensorEntry, b: TensorEntry, allowed: Allowance) -> Found:
    """Compare by what does not depend on where an element lies: no distance can be told.

    Norms, extremes and means of tensors of which every element is close are close; counts of NaN
    and infinities are equal.
    """
    shares = []
    room = allowed.atol * math.sqrt(max(b.size, 1))
    if a.l2 is not None and b.l2 is not None:
        shares.append(_share(abs(a.l2 - b.l2), room + allowed.rtol * b.l2))
    for x, y in ((a.min, b.min), (a.max, b.max), (a.mean, b.mean)):
        if x is not None and y is not None:
            ends = max(abs(b.min or 0.0), abs(b.max or 0.0))
            shares.append(_share(abs(x - y), allowed.atol + allowed.rtol * ends))
    odd = max(abs((a.nan or 0) - (b.nan or 0)), abs((a.inf or 0) - (b.inf or 0)))
    used = math.inf if odd else max(shares, default=0.0)
    close = used <= 1 if allowed.factor != 0 else used == 0
    return _estimated(a, b, close, odd, None, used, allowed)


def _share(value: float, room: float) -> float:
    if value == 0:
        return 0.0
    return value / room if room > 0 and math.isfinite(value) else math.inf


def _estimated(
    a: TensorEntry,
    b: TensorEntry,
    close: bool,
    odd: int,
    rel_l2: float | None,
    used: float | None,
    allowed: Allowance,
) -> Found:
    """The figures that can be told without the elements."""
    least = None
    if allowed.factor and used is not None and not odd and math.isfinite(used):
        least = used * allowed.factor
    figures = Comparison(
        close=close,
        size=a.size,
        mismatches=0,
        index=None,
        onset=None,
        max_abs_diff=None,
        max_abs_index=None,
        max_rel_diff=None,
        max_ulp_diff=None,
        rel_l2=rel_l2,
        rel_l2_eps=in_eps(rel_l2, a.dtype, b.dtype),
        nan_equal=0,
        nonfinite_mismatches=odd,
        least_rtol=None,
        least_atol=None,
        least_factor=least,
        used=used,
    )
    return Found(figures, allowed, None, None, estimated=True)
