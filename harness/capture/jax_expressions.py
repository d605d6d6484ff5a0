"""Expressions of how values are made, as they grow: repeated, reshaped, with known numbers.

An expression is a name, a number, or `Made`. Ops that begin with "_" are parts that the graph has
no op for; `jax_patterns.public` takes what is left of them into ops that it has, where it can.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from harness.models.entries import Made


class Known:
    """An array whose elements are known; `fixed` where they are the same in every step."""

    __slots__ = ("array", "fixed")

    def __init__(self, array: Any, fixed: bool = True) -> None:
        """Of this array."""
        self.array, self.fixed = array, fixed


Operand = Any  # str | float | Made | Known
UNKNOWN = Made("unknown", (), {})
REPEAT = "_repeat"


def made(op: str, *operands: Operand, **args: Any) -> Made:
    """An op of operands; unknown where one of them is."""
    if any(x is UNKNOWN or x is None for x in operands):
        return UNKNOWN
    return Made(op, operands, args)


def decimal(value: Any) -> float:
    """A number as it was written: of a float32, the shortest decimal that it stands for."""
    if getattr(value, "dtype", None) == np.float64 or type(value) is float:
        return float(value)
    return float(str(np.float32(value)))


def near(value: float) -> float:
    """A number that was computed, as the short decimal that it is but for float32's rounding."""
    short = round(value, 6)
    return short if abs(short - value) < 1e-7 else value


def number(x: Operand) -> float | None:
    """The number that all elements are, where that is known."""
    if isinstance(x, Made) and x.op == REPEAT:
        x = x.operands[0]
    if isinstance(x, Known):
        array = x.array
        if not x.fixed and array.ndim:
            return None  # alike in this step, and perhaps in no other
        if array.size and array.dtype.kind in "fiub" and bool((array == array.flat[0]).all()):
            return decimal(array.flat[0]) if array.dtype.kind == "f" else int(array.flat[0])
        return None
    return x if isinstance(x, int | float) else None


def size_of(x: Any) -> tuple[int, int]:
    """How many ops an expression has, and how deep they nest."""
    if not isinstance(x, Made):
        return 0, 0
    inner = [size_of(y) for y in x.operands]
    return 1 + sum(n for n, _ in inner), 1 + max((d for _, d in inner), default=0)


def repeated(x: Operand, own: Sequence[int], ones: Sequence[int]) -> Operand:
    """x of shape `own`, read in the shape `ones` and repeated along its axes of length one."""
    if x is UNKNOWN or isinstance(x, int | float):
        return x
    if isinstance(x, Made) and x.op == REPEAT:
        kept = [n for n in ones if n != 1] == [n for n in x.args["own"] if n != 1]
        return (
            Made(REPEAT, x.operands, {"own": x.args["own"], "ones": tuple(ones)})
            if kept
            else UNKNOWN
        )
    return Made(REPEAT, (x,), {"own": tuple(own), "ones": tuple(ones)})


def parts(x: Operand) -> tuple[Operand, tuple[int, ...] | None]:
    """An operand that broadcasts, and the shape that it is read in; None where it is whole."""
    if not (isinstance(x, Made) and x.op == REPEAT):
        return x, None
    (inner,), own, ones = x.operands, x.args["own"], x.args["ones"]
    short = ones
    while short and short[0] == 1 and len(short) > len(own):
        short = short[1:]
    return (inner if short == own else made("reshape", inner, shape=list(ones))), ones


def whole(x: Operand, shape: Sequence[int]) -> Operand:
    """An operand in its own shape."""
    if isinstance(x, Made) and x.op == REPEAT:
        (inner,), own = x.operands, x.args["own"]
        if math.prod(own) != math.prod(shape):
            return UNKNOWN
        return inner if own == tuple(shape) else made("reshape", inner, shape=list(shape))
    return x


def inside(x: Operand, change: Callable[[Operand], Operand]) -> Operand:
    """A change of single elements, made before they are repeated."""
    if isinstance(x, Made) and x.op == REPEAT:
        inner = change(x.operands[0])
        return inner if inner is UNKNOWN else Made(REPEAT, (inner,), x.args)
    return UNKNOWN if isinstance(x, Known) else change(x)


def core(x: Operand) -> Any:
    """What is repeated, or read in another shape."""
    while isinstance(x, Made) and x.op in (REPEAT, "reshape"):
        x = x.operands[0]
    return x


def peeled(x: Operand) -> Any:
    """The same, without its sign and without what stops gradients."""
    while isinstance(x, Made) and x.op in (REPEAT, "reshape", "negate", "stop_gradient"):
        x = x.operands[0]
    return x


def reshaped(x: Operand, old: Sequence[int], new: Sequence[int]) -> Operand:
    """x in another shape; one that has more axes of length one only is repeated along none."""
    old, new = tuple(old), tuple(new)
    if x is UNKNOWN or isinstance(x, int | float) or old == new:
        return x
    if isinstance(x, Known):
        return Known(x.array.reshape(new), x.fixed)
    if isinstance(x, Made) and x.op == REPEAT:
        x, old = (
            (x.operands[0], x.args["own"])
            if math.prod(x.args["own"]) == math.prod(old)
            else (whole(x, old), old)
        )
        return reshaped(x, old, new)
    if len(new) > len(old) and [n for n in new if n != 1] == [n for n in old if n != 1]:
        return repeated(x, old, new)
    if isinstance(x, Made) and x.op == "reshape":
        x = x.operands[0]
    return made("reshape", x, shape=list(new))


def permuted(x: Operand, axes: list[int]) -> Operand:
    """x with its axes in another order."""
    if axes == list(range(len(axes))):
        return x
    if isinstance(x, Made) and x.op == "permute":
        axes = [x.args["axes"][a] for a in axes]
        return permuted(x.operands[0], axes)
    return made("permute", x, axes=axes)


def turned(x: Operand) -> Operand:
    """Weights the other way round."""
    if (
        isinstance(x, Made)
        and x.op in ("transpose", "permute")
        and x.args.get("axes", [1, 0]) == [1, 0]
    ):
        return x.operands[0]
    return made("transpose", x)


def parted(x: Operand, shape: Sequence[int], axis: int, start: int, stop: int) -> Operand:
    """A part along one axis; x itself where that is all of it."""
    whole_axis = (start, stop) == (0, shape[axis])
    return x if whole_axis else made("cut", x, axis=axis, start=start, stop=stop)
