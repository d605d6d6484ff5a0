"""Elements at which rounding crosses a discontinuity: the sign before a ReLU, a tie of a maximum.

On one side such an element is -6e-8 and on the other 1.5e-7: both are right to rounding, but one
lets the gradient through and the other does not, and whatever is made of that gradient is far apart
from there on. That is rounding, though the gap does not look like it. A crossing explains a gap
only where the gap lies: in the channel, unit or position of the elements that crossed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from harness.compare.axes import describe_index
from harness.explain.case import Array
from harness.explain.evidence import Pair
from harness.models.graph import Axis

MOST = 0.01  # of a tensor's elements: more than that is no crossing here and there
LOOKED_AT = 64  # tensors of a step that a crossing may explain
BEYOND = 64.0  # eps, as the default tolerance has it: what differs by less is rounding


class Crossing(NamedTuple):
    """The elements of one tensor that crossed: their indices [n, axes], and the first's values."""

    tensor: str
    axes: tuple[Axis, ...]
    shape: tuple[int, ...]
    indices: Array
    a: float
    b: float

    def words(self) -> str:
        """The first element, with both values."""
        index = tuple(int(i) for i in self.indices[0])
        where = describe_index(self.axes, self.shape, index)
        named = f" ({where})" if where and not where.startswith("[") else ""
        more = f" and {len(self.indices) - 1} more" if len(self.indices) > 1 else ""
        return f"{self.tensor} {list(index)}{named}, {self.a:.3g} | {self.b:.3g}{more}"


def explained(
    pair: Pair, step: int, tensor: str, other_precision: Pair | None = None
) -> tuple[Crossing, str] | None:
    """A crossing before `tensor` of `step` that explains the gaps from there on, if there is one.

    Beside it comes what the gaps say of it. Where elements crossed in every channel, the runs of
    the other precision tell: a gap that is there in the channels that crossed there, and in no
    others, comes of crossing; one of a bug would be in all of them.
    """
    names = pair.names(step)
    at = names.index(tensor)
    gaps = [(name, gap) for name in names[at : at + LOOKED_AT] for gap in _beyond(pair, step, name)]
    for name in reversed(names[:at]):
        if name.startswith("inputs/"):
            continue
        for crossing in _crossings(pair, step, name):
            for other, gap in gaps:
                if _confined(gap, crossing):
                    return crossing, f"the gap of {other} lies there alone"
                told = other_precision and _confined(gap, crossing, everywhere=True)
                if told and other_precision and _apart_where(other_precision, step, other, name):
                    said = f"the gap of {other} lies there, and in the other precision there alone"
                    return crossing, said
    return None


def _apart_where(pair: Pair, step: int, tensor: str, crossed: str) -> bool:
    """Whether a tensor is apart where elements of another crossed, and nowhere else."""
    return any(
        _confined(gap, crossing)
        for gap in _beyond(pair, step, tensor)
        for crossing in _crossings(pair, step, crossed)
    )


def _beyond(pair: Pair, step: int, name: str) -> Iterator[Array]:
    """Which elements of a tensor differ by more than rounding; nothing where none does."""
    a, b = pair.both(step, name)
    if a is None or b is None or a.dtype.kind != "f":
        return
    with np.errstate(all="ignore"):
        scale = np.abs(b).max(initial=0)
        far = ~(np.abs(a - b) <= BEYOND * np.finfo(b.dtype).eps * (np.abs(b) + scale))
    if far.any():
        yield far


def _crossings(pair: Pair, step: int, name: str) -> Iterator[Crossing]:
    """The elements of a tensor that crossed zero, and those that crossed a neighbour."""
    a, b = pair.both(step, name)
    if a is None or b is None or a.dtype.kind != "f" or not a.ndim or not np.isfinite(a).all():
        return
    with np.errstate(all="ignore"):
        near = BEYOND * np.finfo(b.dtype).eps * (np.abs(b) + np.abs(b).max(initial=0))
        close = np.abs(a - b) <= near
    if not close.all():
        return  # what differs by itself is no rounding
    graph = pair.traces["b"].graph
    axes = graph.axes(name) if graph else ()
    yield from _made(name, axes, a, b, (a > 0) != (b > 0))
    for axis in range(1, a.ndim) if a.ndim > 2 else ():
        yield from _made(name, axes, a, b, _ties(a, b, near, axis))


def _ties(a: Array, b: Array, near: Array, axis: int) -> Array:
    """Elements whose order with their neighbour along an axis is not the same on both sides."""
    order_a, order_b = np.diff(a, axis=axis) > 0, np.diff(b, axis=axis) > 0
    turned = order_a != order_b
    tight = np.abs(np.diff(b, axis=axis)) <= 2 * np.delete(near, 0, axis)
    ends = [(0, 0)] * a.ndim
    ends[axis] = (0, 1)
    return np.pad(turned & tight, ends)


def _made(
    name: str, axes: tuple[Axis, ...], a: Array, b: Array, crossed: Array
) -> Iterator[Crossing]:
    count = np.count_nonzero(crossed)
    if 0 < count <= max(1, MOST * crossed.size):
        indices = np.argwhere(crossed)
        first = tuple(indices[0])
        yield Crossing(name, axes, a.shape, indices, float(a[first]), float(b[first]))


def _confined(gap: Array, crossing: Crossing, everywhere: bool = False) -> bool:
    """Whether a gap lies where elements crossed, and that is not nearly everywhere.

    `everywhere` allows that elements crossed in all slices along an axis.
    """
    if gap.shape == crossing.shape:
        at = np.zeros(gap.shape, bool)
        at[tuple(crossing.indices.T)] = True
        return not (gap & ~at).any()
    return any(
        _same_slices(gap, axis, np.unique(crossing.indices[:, other]), everywhere)
        for axis, size in enumerate(gap.shape)
        for other, count in enumerate(crossing.shape)
        if size == count and size > 2
    )


def _same_slices(gap: Array, axis: int, crossed: Array | Sequence[int], everywhere: bool) -> bool:
    """Whether every slice along `axis` that has a gap crossed, and some slice has none."""
    rest = tuple(k for k in range(gap.ndim) if k != axis)
    hit = np.flatnonzero(gap.any(axis=rest))
    some = everywhere or len(hit) < gap.shape[axis]
    return some and bool(np.isin(hit, crossed).all())
