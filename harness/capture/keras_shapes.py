"""What TensorFlow's operations on shapes are in the terms of the graph: reshape, join, cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.capture.keras_calls import OpCall, Operand, made
from harness.models.entries import Made


def reshaped(x: Operand, shape: tuple[int | None, ...]) -> Made | None:
    """x in another shape, of which one length at most is not known."""
    if sum(n is None for n in shape) > 1:
        return None
    return made("reshape", x, shape=[-1 if n is None else int(n) for n in shape])


def _reshape(call: OpCall) -> Made | None:
    return reshaped(call.of(0), call.out())


def _transpose(call: OpCall) -> Made | None:
    order = call.constant(1)
    return None if order is None else made("permute", call.of(0), axes=[int(a) for a in order])


def _concat(call: OpCall) -> Made | None:
    axis = call.constant(len(call.inputs) - 1)
    if axis is None:
        return None
    parts = [call.of(i) for i in range(len(call.inputs) - 1)]
    return made("concat", *parts, axis=int(axis) % len(call.out()))


def _pieces(call: OpCall, x: Operand, axis: int) -> list[Operand | None]:
    found: list[Operand | None] = []
    at = 0
    for i in range(len(call.outputs)):
        length = call.out(i)[axis]
        if length is None:
            return [None] * len(call.outputs)
        found.append(made("cut", x, axis=axis, start=at, stop=at + length))
        at += length
    return found


def _split(call: OpCall) -> list[Operand | None] | None:
    axis = call.constant(0)
    return None if axis is None else _pieces(call, call.of(1), int(axis) % len(call.out()))


def _split_sizes(call: OpCall) -> list[Operand | None] | None:
    axis = call.constant(2)
    return None if axis is None else _pieces(call, call.of(0), int(axis) % len(call.out()))


def _unpacked(call: OpCall) -> list[Operand | None]:
    axis = int(call.attr("axis", 0)) % len(call.shape(0))
    return [
        reshaped(made("cut", call.of(0), axis=axis, start=i, stop=i + 1), call.out(i))
        for i in range(len(call.outputs))
    ]


def _strided(call: OpCall) -> Made | None:
    """x[..]: slices with a step of one and numbers."""
    begin, end, by = (call.constant(i) for i in (1, 2, 3))
    if begin is None or end is None or by is None or call.attr("ellipsis_mask"):
        return _strided_with_ellipsis(call, begin, end, by)
    return _cuts(call, [*range(len(begin))], begin, end, by)


def _strided_with_ellipsis(call: OpCall, begin: Any, end: Any, by: Any) -> Made | None:
    if begin is None or end is None or by is None:
        return None
    at = int(call.attr("ellipsis_mask")).bit_length() - 1
    new = int(call.attr("new_axis_mask") or 0)
    after = sum(1 for i in range(at + 1, len(begin)) if not new >> i & 1)
    places = [*range(at), *[None] * (len(call.shape(0)) - after - _named(at, new))]
    return _cuts(call, [*places, *range(at + 1, len(begin))], begin, end, by)


def _named(until: int, new: int) -> int:
    return sum(1 for i in range(until) if not new >> i & 1)


def _cuts(call: OpCall, places: list[int | None], begin: Any, end: Any, by: Any) -> Made | None:
    found, axis = call.of(0), 0
    masks = {
        n: int(call.attr(f"{n}_mask") or 0) for n in ("begin", "end", "new_axis", "shrink_axis")
    }
    for i in places:
        if i is not None and masks["new_axis"] >> i & 1:
            continue
        size = call.shape(0)[axis]
        if i is not None and not (masks["begin"] >> i & 1 and masks["end"] >> i & 1 and by[i] == 1):
            if size is None:
                return None
            first = None if masks["begin"] >> i & 1 else int(begin[i])
            last = None if masks["end"] >> i & 1 else int(end[i])
            if masks["shrink_axis"] >> i & 1:
                start = int(begin[i]) % size
                stop, step = start + 1, 1
            else:
                start, stop, step = slice(first, last, int(by[i])).indices(size)
            if step != 1:
                return None
            if (start, stop) != (0, size):
                found = made("cut", found, axis=axis, start=start, stop=stop)
        axis += 1
    return reshaped(found, call.out())


def _sliced(call: OpCall) -> Made | None:
    begin, size = call.constant(1), call.constant(2)
    if begin is None or size is None:
        return None
    found = call.of(0)
    for axis, (start, length) in enumerate(zip(begin, size, strict=True)):
        whole = call.shape(0)[axis]
        if whole is None:
            return None
        stop = whole if length < 0 else int(start) + int(length)
        if (int(start), stop) != (0, whole):
            found = made("cut", found, axis=axis, start=int(start), stop=stop)
    return made("add", found)


def _gather(call: OpCall) -> Made | None:
    axis = call.constant(2)
    if axis is None or int(axis) != 0 or call.attr("batch_dims") or len(call.shape(0)) != 2:
        return None
    return made("embed", call.of(0), call.of(1))


SHAPES: dict[str, Callable[[OpCall], Any]] = {
    "Reshape": _reshape,
    "ExpandDims": _reshape,
    "Squeeze": _reshape,
    "Transpose": _transpose,
    "ConcatV2": _concat,
    "Split": _split,
    "SplitV": _split_sizes,
    "Unpack": _unpacked,
    "StridedSlice": _strided,
    "Slice": _sliced,
    "GatherV2": _gather,
}
