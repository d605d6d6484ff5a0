"""Arithmetic on expressions, by which formulas are recognised as they grow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from harness.capture.jax_expressions import (
    REPEAT,
    UNKNOWN,
    Known,
    Operand,
    core,
    inside,
    made,
    parts,
    whole,
)
from harness.capture.jax_formulas import (
    error,
    gained,
    gated,
    log_softmax,
    loss_terms,
    mean,
    normal,
    of_exp,
    shiftless,
)
from harness.models.entries import Made


def negated(x: Operand) -> Operand:
    """-x."""
    if isinstance(x, int | float):
        return -x

    def one(x: Operand) -> Operand:
        if isinstance(x, Made) and x.op == "negate":
            return x.operands[0]
        if isinstance(x, Made) and x.op == "scale" and isinstance(x.operands[1], float):
            return made("scale", x.operands[0], -x.operands[1])
        picked = core(x)
        if isinstance(picked, Made) and picked.op == "_pick":
            return made("_nll", *picked.operands)
        if isinstance(picked, Made) and picked.op == "_likelihood":
            return made("nll_loss", *picked.operands, **picked.args)
        if isinstance(picked, Made) and picked.op == "_sum":
            return Made("_sum", (negated(picked.operands[0]),), picked.args)
        return made("negate", x)

    return inside(x, one)


def added(x: Operand, y: Operand, out: Sequence[int]) -> Operand:
    """x + y."""
    if isinstance(x, int | float):
        x, y = y, x
    if isinstance(x, int | float):
        return x + y
    if isinstance(y, int | float):
        n = y
        return x if n == 0 else inside(x, lambda e: _more(e, n))
    (one, shape), (two, other) = parts(x), parts(y)
    if UNKNOWN in (one, two):
        return UNKNOWN
    if shape is not None and shape == other:
        return (
            Made(REPEAT, (added(x.operands[0], y.operands[0], x.args["own"]),), x.args)
            if (x.args["own"] == y.args["own"])
            else made("broadcast_add", one, two)
        )
    if shape is not None and other is None:
        one, two, other, y = two, one, shape, x
    if other is None and not isinstance(one, Known) and not isinstance(two, Known):
        return loss_terms(one, two) or made("add", one, two)
    return log_softmax(one, two) or _biased(one, y, other, out) or made("broadcast_add", one, two)


def _more(x: Operand, n: float) -> Operand:
    if isinstance(x, Made) and x.op == "_count":
        return Made("_count", (), {"value": x.args["value"] + n})
    if isinstance(x, Made) and x.op == "negate" and n == 1:
        (inner,) = x.operands
        if isinstance(inner, Made) and inner.op == "_power":
            return Made("_correction", inner.operands, {})
        return made("complement", inner)
    return made("broadcast_add", x, n)


def _biased(x: Operand, b: Operand, ones: Any, out: Sequence[int]) -> Operand | None:
    """A number for each unit or channel."""
    long = [k for k, n in enumerate(ones or ()) if n != 1]
    if not isinstance(b, Made) or b.op != REPEAT or len(b.args["own"]) != 1:
        return None
    (inner,) = b.operands
    if len(long) != 1 or not isinstance(inner, str) or ones[long[0]] != out[long[0]]:
        return None
    axis, last = long[0], len(out) - 1
    norm = isinstance(x, Made) and x.op in ("layer_norm", "batch_norm") and x.operands[2] == 0.0
    if norm and isinstance(x, Made) and axis == x.args.get("axis", last) % len(out):
        return made(x.op, x.operands[0], x.operands[1], inner, x.operands[3], **x.args)
    if axis == last:
        return made("bias", x, inner)
    return made("bias_channels", x, inner, axis=axis)


def multiplied(x: Operand, y: Operand, out: Sequence[int]) -> Operand:
    """x y."""
    if isinstance(x, int | float):
        x, y = y, x
    if isinstance(x, int | float):
        return x * y
    if isinstance(y, int | float):
        n = float(y)
        return inside(x, lambda e: scaled(e, n))
    (one, shape), (two, other) = parts(x), parts(y)
    if UNKNOWN in (one, two):
        return UNKNOWN
    if shape is not None and shape == other and x.args["own"] == y.args["own"]:
        return Made(REPEAT, (multiplied(x.operands[0], y.operands[0], x.args["own"]),), x.args)
    if shape is not None and other is None:
        one, two, other = two, one, shape
        y = x
    if other is not None and isinstance(y, Made) and y.args.get("own") == ():
        return made("scale", one, core(y))
    normalised = normal(one, two, out)
    if normalised is not None:
        return normalised
    if other is None:
        if isinstance(one, Known) or isinstance(two, Known):
            return made("broadcast_multiply", one, two)
        if one == two:
            return made("square", one)
        return gated(one, two) or gated(two, one) or made("multiply", one, two)
    found = gained(one, y, other, out) if len(y.args["own"]) == 1 else None
    return found or made("broadcast_multiply", one, two)


def scaled(x: Operand, n: float) -> Operand:
    """x times a number; a sum over all its terms by their count is their mean."""
    if n == 1:
        return x
    if isinstance(x, Made) and x.op == "_sum" and abs(n * x.args["count"] - 1) < 1e-6:
        return mean(x)
    if isinstance(x, Made) and x.op == "_sum" and abs(n * x.args["count"] + 1) < 1e-6:
        return negated(mean(x))
    if isinstance(x, Made) and x.op == "scale" and isinstance(x.operands[1], float):
        return scaled(x.operands[0], x.operands[1] * n)
    if isinstance(x, Made) and x.op == "negate":
        return scaled(x.operands[0], -n)
    return made("scale", x, n)


def divided(x: Operand, y: Operand, out: Sequence[int]) -> Operand:
    """x / y."""
    if isinstance(y, int | float):
        if not y:
            return UNKNOWN
        return x / y if isinstance(x, int | float) else inside(x, lambda e: scaled(e, 1 / y))
    if isinstance(x, int | float):
        n = x
        return inside(
            y,
            lambda e: (
                made("_rsqrt", e.operands[0])
                if (isinstance(e, Made) and e.op == "root" and n == 1)
                else made("divide", n, e)
            ),
        )
    (one, shape), (two, other) = parts(x), parts(y)
    if UNKNOWN in (one, two):
        return UNKNOWN
    below = core(y)
    if isinstance(below, Made) and below.op == "_sum" and one == made("exp", *of_exp(below)):
        return made("softmax", shiftless(one.operands[0]), axis=below.args["axis"][0])
    if isinstance(below, Made) and below.op == "root":
        return multiplied(x, inside(y, lambda e: made("_rsqrt", e.operands[0])), out)
    if other is not None and y.args["own"] == ():
        return inside(x, lambda e: _over(e, below))
    if shape is not None and shape == other and x.args["own"] == y.args["own"]:
        return Made(REPEAT, (divided(x.operands[0], y.operands[0], x.args["own"]),), x.args)
    if shape is None and other is None:
        return made("divide", one, two)
    return made("broadcast_multiply", one, made("divide", 1.0, two))


def _over(x: Operand, by: Operand) -> Operand:
    if isinstance(by, Made) and by.op == "_correction":
        return made("_corrected", x, *by.operands)
    return made("_over", x, by)


def summed(x: Operand, axes: list[int], shape: Sequence[int]) -> Operand:
    """The sum over axes."""
    if not axes or x is UNKNOWN:
        return x
    if isinstance(x, Made) and x.op == "multiply" and axes == [len(shape) - 1]:
        for one, two in (x.operands, x.operands[::-1]):
            if isinstance(one, Made) and one.op == "_onehot":
                return made("_pick", two, *one.operands)
            minus = (
                isinstance(one, Made) and one.op == "negate" and isinstance(one.operands[0], Made)
            )
            if minus and one.operands[0].op == "_onehot":
                return made("_nll", two, *one.operands[0].operands)
    count = math.prod(shape[a] for a in axes)
    return made("_sum", x, axis=axes, count=count, all=len(axes) == len(shape))


def public(x: Operand, shape: Sequence[int] | None = None) -> Operand | None:
    """An expression of ops that the graph has; None where a part has none."""
    if not isinstance(x, Made):
        return x
    if x is UNKNOWN or x.op == "unknown":
        return None
    if x.op == REPEAT:
        plain = whole(x, shape) if shape is not None else UNKNOWN
        return None if plain is UNKNOWN else public(plain)
    if x.op == "_sum":
        found = error(x, "sum")
        return public(found if found else Made("sum_over", x.operands, {"axis": x.args["axis"]}))
    if x.op == "_likelihood":
        return public(Made("negate", (Made("nll_loss", x.operands, x.args),), {}))
    if x.op == "_over":
        return public(Made("scale", (x.operands[0], Made("divide", (1.0, x.operands[1]), {})), {}))
    if x.op == "_rsqrt":
        return public(Made("divide", (1.0, Made("root", x.operands, {})), {}))
    if x.op == "_absolute":
        return public(Made("absolute", x.operands, {}))
    if x.op == "_lse" or x.op.startswith("_"):
        return None
    inner = [public(y) for y in x.operands]
    if any(y is None for y in inner):
        return None
    return Made(x.op, tuple(inner), x.args)
