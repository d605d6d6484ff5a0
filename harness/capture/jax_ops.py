"""What primitives of JAX are in the terms of the graph: a rule for each, by its name.

A rule is given the operands of an equation and returns how its result is made, or None where the
graph has no op for it. Ops whose names begin with "_" are none of the graph's: each is part of a
formula that is put together again from several equations (harness.capture.jax_patterns).
Semantics: the documentation of jax.lax.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from harness.capture import jax_expressions as expressions
from harness.capture import jax_formulas as formulas
from harness.capture import jax_patterns as patterns
from harness.capture import jax_windows as windows
from harness.capture.jax_expressions import UNKNOWN as UNKNOWN
from harness.capture.jax_expressions import Known as Known
from harness.capture.jax_expressions import Operand as Operand
from harness.capture.jax_expressions import core, made, number, size_of
from harness.models.entries import Made

__all__ = [
    "CALLED",
    "FOLDED",
    "RULES",
    "UNKNOWN",
    "Call",
    "Known",
    "Operand",
    "number",
    "size_of",
]

Rule = Callable[["Call"], Any]


class Call:
    """An equation: its parameters, its operands and what it makes."""

    def __init__(
        self,
        params: Mapping[str, Any],
        ins: Sequence[Any],
        outs: Sequence[Any],
        keep: Callable[[str, Any], str],
    ) -> None:
        """`keep` makes a point of an operand of which nothing is known, and returns its name."""
        self.params, self.ins, self.outs, self.keep = params, ins, outs, keep

    def shape(self, place: int) -> tuple[int, ...]:
        """The shape of an operand."""
        found: tuple[int, ...] = self.ins[place].shape
        return found

    @property
    def out(self) -> tuple[int, ...]:
        """The shape of the result."""
        found: tuple[int, ...] = self.outs[0].shape
        return found

    def raw(self, place: int) -> Operand:
        """How an operand was made, repeated along axes or not."""
        found: Operand = self.ins[place].expr
        return found

    def of(self, place: int) -> Operand:
        """How an operand was made, in its own shape."""
        return expressions.whole(self.raw(place), self.shape(place))

    def term(self, place: int) -> Operand:
        """The same; a single number as repeated in the shape of the result."""
        if self.shape(place) == () and self.out:
            return expressions.repeated(self.raw(place), (), (1,) * len(self.out))
        return self.raw(place)

    def number(self, place: int) -> float | None:
        """An operand that is one number in all its elements."""
        return number(self.raw(place))


def _through(op: str, *numbers: float) -> Rule:
    """An op of single elements."""
    return lambda call: expressions.inside(call.raw(0), lambda x: made(op, x, *numbers))


def _add(call: Call) -> Operand:
    return patterns.added(*_terms(call), call.out)


def _sub(call: Call) -> Operand:
    (one, other) = _terms(call)
    return patterns.added(one, patterns.negated(other), call.out)


def _terms(call: Call) -> tuple[Operand, Operand]:
    one, other = _terms_of(call, 0, 1)
    return one, other


def _mul(call: Call) -> Operand:
    return patterns.multiplied(*_terms(call), call.out)


def _div(call: Call) -> Operand:
    one, other = _terms(call)
    return patterns.divided(one, other, call.out)


def _neg(call: Call) -> Operand:
    return patterns.negated(call.raw(0))


def _power(call: Call) -> Operand | None:
    n = call.params["y"]
    if n == 1:
        return call.raw(0)
    if n == 2:
        return expressions.inside(call.raw(0), lambda x: made("square", x))
    if n == 3:
        return expressions.inside(call.raw(0), lambda x: made("multiply", x, made("square", x)))
    return patterns.divided(1.0, call.raw(0), call.out) if n == -1 else None


def _pow(call: Call) -> Operand | None:
    base = call.number(0)
    if base is not None and isinstance(call.raw(1), Made) and core(call.raw(1)).op == "_count":
        return made("_power", base, core(call.raw(1)).args["value"])
    return made("square", call.of(0)) if call.number(1) == 2 else None


def _max(call: Call) -> Operand | None:
    for place in (0, 1):
        n, other = call.number(place), call.raw(1 - place)
        if n == -math.inf:
            return other
        if n == 0:
            return expressions.inside(other, formulas.at_least_zero)
        if n is not None and n < 0:
            return expressions.inside(other, lambda x, n=n: made("_from", x, n))  # type: ignore[misc]
    return None


def _min(call: Call) -> Operand | None:
    for place in (0, 1):
        n = call.number(place)
        other = call.raw(1 - place)
        if n is not None and isinstance(other, Made) and other.op == "_from":
            x, low = other.operands
            return made("clip_elements", x, 0.0, n) if low == -n else None
        if n is not None and call.out == ():
            return made("_least", n, call.raw(1 - place))
    return None


def _reshape(call: Call) -> Operand:
    return expressions.reshaped(call.raw(0), call.shape(0), call.out)


def _broadcast(call: Call) -> Operand:
    axes, shape = call.params["broadcast_dimensions"], call.params["shape"]
    ones = [1] * len(shape)
    for axis, n in zip(axes, call.shape(0), strict=True):
        ones[int(axis)] = n
    return expressions.repeated(call.raw(0), call.shape(0), tuple(ones))


def _transpose(call: Call) -> Operand:
    axes = [int(a) for a in call.params["permutation"]]
    return expressions.permuted(call.of(0), axes)


def _reduce(op: str) -> Rule:
    def rule(call: Call) -> Operand | None:
        axes = [int(a) for a in call.params["axes"]]
        if op == "_max":
            return made("_max", call.of(0), axis=axes)
        return patterns.summed(call.of(0), axes, call.shape(0))

    return rule


def _dot(call: Call) -> Operand | None:
    ((left, right), (left_batch, right_batch)) = call.params["dimension_numbers"]
    x, y, left, right = call.of(0), call.of(1), list(map(int, left)), list(map(int, right))
    n, m = len(call.shape(0)), len(call.shape(1))
    if not left_batch and len(left) == 1:
        if m == 2 and n >= 1 and left == [n - 1]:
            return made("linear", x, y if right == [0] else expressions.turned(y))
        if n == 2 and right == [m - 1]:  # weights first: [out, in] by [.., in]
            product = made("linear", y, expressions.turned(x) if left == [1] else x)
            return expressions.permuted(product, [m - 1, *range(m - 1)])
    return _batched_dot(call, x, y, left, right, list(left_batch), list(right_batch))


def _batched_dot(
    call: Call, x: Operand, y: Operand, left: Any, right: Any, left_batch: Any, right_batch: Any
) -> Operand:
    """Any product: axes brought into order, those of one kind as one, and a product of matrices."""
    shapes = call.shape(0), call.shape(1)
    free = [
        [k for k in range(len(s)) if k not in c and k not in b]
        for s, c, b in zip(shapes, (left, right), (left_batch, right_batch), strict=True)
    ]
    batch = [shapes[0][k] for k in left_batch]

    def ordered(x: Operand, which: int, axes: list[int], rows: Any, columns: Any) -> Operand:
        shape = shapes[which]
        moved = expressions.permuted(x, [int(a) for a in axes])
        new = (*batch, *(math.prod(shape[k] for k in part) for part in (rows, columns)))
        return expressions.reshaped(moved, tuple(shape[k] for k in axes), tuple(map(int, new)))

    one = ordered(x, 0, [*left_batch, *free[0], *left], free[0], left)
    two = ordered(y, 1, [*right_batch, *right, *free[1]], right, free[1])
    product = made("matmul", one, two)
    rows = math.prod(shapes[0][k] for k in free[0])
    columns = math.prod(shapes[1][k] for k in free[1])
    return expressions.reshaped(product, (*batch, rows, columns), call.out)


def _gather(call: Call) -> Operand | None:
    """Rows of a table by tokens; one element of each row, by its class; a part at a fixed place."""
    d, sizes, shape = call.params["dimension_numbers"], call.params["slice_sizes"], call.shape(0)
    rank, index = len(shape), call.raw(1)
    if rank == 2 and d.start_index_map == (0,) and d.collapsed_slice_dims == (0,):
        tokens = core(index)
        if isinstance(index, Known) or sizes != (1, shape[1]):
            return None
        return made("embed", call.of(0), tokens)
    match core(index):
        case Made("concat", (tokens, Known() as zero)) if not zero.array.any() and rank == 2:
            if sizes == (1, shape[1]) and d.start_index_map == (0, 1):
                row = made("embed", call.of(0), core(tokens))
                return expressions.reshaped(row, (*call.out[:-2], call.out[-1]), call.out)
    if d.operand_batching_dims == tuple(range(rank - 1)) and set(sizes) == {1}:
        picked = made("_pick", call.of(0), core(index))
        return expressions.repeated(picked, call.out[:-1], call.out) if call.out[-1] == 1 else None
    if isinstance(index, Known) and len(d.start_index_map) == 1 and index.array.size == 1:
        axis, at = d.start_index_map[0], int(index.array.ravel()[0])
        part = expressions.parted(call.of(0), shape, axis, at, at + sizes[axis])
        return expressions.reshaped(part, sizes, call.out)
    return None


def _slice(call: Call) -> Operand | None:
    p, shape = call.params, call.shape(0)
    if p.get("strides") and set(p["strides"]) != {1}:
        return None
    found = call.of(0)
    for axis, (start, stop) in enumerate(zip(p["start_indices"], p["limit_indices"], strict=True)):
        found = expressions.parted(found, shape, axis, int(start), int(stop))
    return found


def _dynamic_slice(call: Call) -> Operand | None:
    found, shape = call.of(0), call.shape(0)
    for axis, size in enumerate(call.params["slice_sizes"]):
        at = call.number(1 + axis)
        if at is None:
            return None
        start = min(max(int(at), 0), shape[axis] - size)
        found = expressions.parted(found, shape, axis, start, start + int(size))
    return found


def _split(call: Call) -> list[Operand]:
    parts: list[Operand] = []
    at, axis = 0, int(call.params["axis"])
    for size in call.params["sizes"]:
        parts.append(expressions.parted(call.of(0), call.shape(0), axis, at, at + int(size)))
        at += int(size)
    return parts


def _concat(call: Call) -> Operand:
    axis = int(call.params["dimension"])
    return made("concat", *(call.of(k) for k in range(len(call.ins))), axis=axis)


def _cast(call: Call) -> Operand:
    old, new = call.ins[0].dtype, call.params["new_dtype"]
    found = call.raw(0)
    kinds = [_kind(d) for d in (old, new)]
    if kinds == ["f", "f"] and _epsilon(new) > _epsilon(old):
        return expressions.inside(found, lambda x: made("rounded", x, to=np.dtype(new).name))
    if kinds == ["b", "f"] and isinstance(found, Made) and found.op == "_equal":
        return formulas.one_hot(found)
    return found


def _kind(dtype: Any) -> str:
    """f for every floating-point format, those of ml_dtypes too."""
    kind = str(np.dtype(dtype).kind)
    return "f" if kind == "V" and "float" in np.dtype(dtype).name else kind


def _epsilon(dtype: Any) -> float:
    name = np.dtype(dtype).name
    return {"float64": 2e-16, "float32": 1e-7, "float16": 1e-3, "bfloat16": 1e-2}.get(name, 1.0)


def _select(call: Call) -> Operand | None:
    if len(call.ins) != 3:
        return None
    pred, (no, yes) = call.raw(0), _terms_of(call, 1, 2)
    if isinstance(pred, Made):
        known = formulas.chosen(pred, no, yes)
        if known is not None:
            return known
    if isinstance(pred, Known):
        return formulas.masked(pred, no, yes, call.out)
    if no == 0 and not isinstance(yes, int | float):
        return _dropped(call, yes, 2)
    return None


def _terms_of(call: Call, *places: int) -> tuple[Operand, ...]:
    return tuple(n if (n := call.number(k)) is not None else call.term(k) for k in places)


def _dropped(call: Call, x: Operand, place: int) -> Operand:
    """What a mask keeps: dropout, where what is kept was scaled."""
    mask = call.keep("mask", call.ins[0])
    x = expressions.whole(x, call.shape(place))
    if isinstance(x, Made) and x.op == "scale" and isinstance(x.operands[1], float):
        factor = x.operands[1]
        if factor > 1:
            return made("dropout", x.operands[0], mask, expressions.near(1 - 1 / factor))
    return made("dropout", x, mask, 0.0)


def _stop(call: Call) -> Operand:
    x = call.raw(0)
    if isinstance(x, str) and x.startswith("buffers/"):
        return x
    return expressions.inside(x, lambda x: made("stop_gradient", x))


def _compare(op: str) -> Rule:
    return lambda call: made(op, *_terms(call))


def _same(call: Call) -> Operand:
    return call.raw(0)


def _clamp(call: Call) -> Operand | None:
    low, high = call.number(0), call.number(2)
    if low == 0 and high == math.inf:
        return made("relu", call.of(1))
    if low is not None and high is not None and low == -high:
        return made("clip_elements", call.of(1), 0.0, high)
    return None


def _erfc(call: Call) -> Operand:
    return expressions.inside(call.raw(0), lambda x: made("_erfc", x))


RULES: dict[str, Rule] = {
    "add": _add,
    "add_any": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "neg": _neg,
    "integer_pow": _power,
    "pow": _pow,
    "square": _through("square"),
    "exp": _through("exp"),
    "log": lambda call: expressions.inside(call.raw(0), formulas.logarithm),
    "log1p": _through("_log1p"),
    "abs": _through("_absolute"),
    "sqrt": _through("root"),
    "rsqrt": _through("_rsqrt"),
    "tanh": _through("tanh"),
    "logistic": _through("sigmoid"),
    "erfc": _erfc,
    "erf": _through("_erf"),
    "max": _max,
    "min": _min,
    "ge": _compare("_not_less"),
    "expm1": _through("_expm1"),
    "clamp": _clamp,
    "lt": _compare("_less"),
    "eq": _compare("_equal"),
    "gt": lambda call: made("_less", *_terms(call)[::-1]),
    "is_finite": lambda call: made("_finite", call.of(0)),
    "select_n": _select,
    "stop_gradient": _stop,
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "reduce_sum": _reduce("sum"),
    "reduce_max": _reduce("_max"),
    "dot_general": _dot,
    "conv_general_dilated": windows.conv,
    "reduce_window_max": windows.max_pool,
    "reduce_window_sum": windows.sum_pool,
    "gather": _gather,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "split": _split,
    "concatenate": _concat,
    "convert_element_type": _cast,
    "reduce_precision": _same,
    "copy": _same,
    "copy_p": _same,
    "optimization_barrier": lambda call: [call.raw(k) for k in range(len(call.ins))],
    "real": _same,
    "device_put": lambda call: [call.raw(k) for k in range(len(call.ins))],
    "stage": _same,
}
# Functions that are ops of their own, by the names of the calls that they are traced as.
CALLED: dict[str, Rule] = {
    "logaddexp": lambda call: made("softplus", call.of(0)) if call.number(1) == 0 else None,
}
# What is computed at once where all its operands are constants.
FOLDED = frozenset(
    {
        *("iota", "broadcast_in_dim", "reshape", "convert_element_type", "add", "sub", "mul"),
        *("lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not", "select_n", "squeeze"),
        *("expand_dims", "slice", "transpose", "max", "min", "div", "sqrt", "rsqrt", "neg", "pow"),
        *(
            "integer_pow",
            "concatenate",
            "exp",
            "log",
            "clamp",
            "rem",
            "sign",
            "square",
            "stop_gradient",
        ),
    }
)
