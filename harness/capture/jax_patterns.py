"""Formulas put together again from single equations: softmax, normalisation, gelu, losses.

An expression is a name, a number, or `Made`. Ops that begin with "_" are parts that the graph has
no op for; `public` takes what is left of them into ops that it has, where it can.
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


# Tensors that are repeated along axes.


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


# Shapes.


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


# Arithmetic.


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
        return _loss_terms(one, two) or made("add", one, two)
    return (
        _log_softmax(one, two) or _biased(one, y, other, out) or made("broadcast_add", one, two)
    )


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
    inner = core(b)
    if (
        len(long) != 1
        or ones is None
        or not isinstance(inner, str)
        or ones[long[0]] != out[long[0]]
    ):
        return None
    axis, last = long[0], len(out) - 1
    if isinstance(x, Made) and x.op in ("layer_norm", "batch_norm") and x.operands[2] == 0.0:
        if axis == x.args.get("axis", last) % len(out):
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
    normal = _normal(one, two, out)
    if normal is not None:
        return normal
    if other is None:
        if isinstance(one, Known) or isinstance(two, Known):
            return made("broadcast_multiply", one, two)
        if one == two:
            return made("square", one)
        return _gated(one, two) or _gated(two, one) or made("multiply", one, two)
    gained = _gained(one, y, other, out) if len(y.args["own"]) == 1 else None
    return gained or made("broadcast_multiply", one, two)


def scaled(x: Operand, n: float) -> Operand:
    """x times a number; a sum over all its terms by their count is their mean."""
    if n == 1:
        return x
    if isinstance(x, Made) and x.op == "_sum" and abs(n * x.args["count"] - 1) < 1e-6:
        return _mean(x)
    if isinstance(x, Made) and x.op == "_sum" and abs(n * x.args["count"] + 1) < 1e-6:
        return negated(_mean(x))
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
    if isinstance(below, Made) and below.op == "_sum" and one == made("exp", *_of_exp(below)):
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


def _of_exp(total: Made) -> tuple[Any, ...]:
    """What a sum of exponentials is of."""
    (inner,) = total.operands
    alone = isinstance(inner, Made) and inner.op == "exp" and len(total.args["axis"]) == 1
    return inner.operands if alone else (UNKNOWN,)


# Softmax, and losses made of it.


def _most(x: Operand) -> Operand:
    """What a maximum is of, in the order of axes that it was brought into; None for no maximum."""
    most = peeled(x)
    match most:
        case Made("_max", (z,)):
            return z
        case Made("permute", (Made("_max", (z,), of),), {"axes": axes}) if of["axis"] == [
            len(axes)
        ]:
            return permuted(z, [*axes, len(axes)])
    return None


def shiftless(x: Operand) -> Operand:
    """x without the maximum that was taken off it, which changes no softmax."""
    if isinstance(x, Made) and x.op == "broadcast_add" and len(x.operands) == 2:
        if _most(x.operands[1]) == x.operands[0]:
            return x.operands[0]
    return x


def logarithm(x: Operand) -> Operand:
    """log x; of a sum of exponentials as one."""
    inner = x.operands[0] if isinstance(x, Made) and x.op == "_absolute" else x
    if isinstance(inner, Made) and inner.op == "_sum":
        (of,) = _of_exp(inner)
        if of is not UNKNOWN:
            return made("_logsum", of, axis=inner.args["axis"][0])
    return made("log", x)


def _log_softmax(x: Operand, y: Operand) -> Operand | None:
    """u - log(sum(exp(u)))."""
    inner = core(y)
    if isinstance(inner, Made) and inner.op == "negate":
        (total,) = inner.operands
        if isinstance(total, Made) and total.op == "_logsum" and total.operands[0] == x:
            return made("log_softmax", shiftless(x), axis=total.args["axis"])
        if isinstance(total, Made) and total.op == "_lse" and total.operands[0] == x:
            return made("log_softmax", x, axis=total.args["axis"])
    return None


def _loss_terms(x: Operand, y: Operand) -> Operand | None:
    """log(sum(exp(z))) from that of z less its maximum; and that less the logit of a class."""
    for one, two in ((x, y), (y, x)):
        if not isinstance(one, Made):
            continue
        if one.op == "_logsum":
            z = shiftless(one.operands[0])
            if _most(two) == z:
                return made("_lse", z, axis=one.args["axis"])
        if one.op in ("_lse", "_logsum") and isinstance(two, Made) and two.op == "_nll":
            if two.operands[0] == one.operands[0]:
                z = made("log_softmax", shiftless(one.operands[0]), axis=one.args["axis"])
                return made("_nll", z, two.operands[1])
    return None


def one_hot(equal: Made) -> Operand:
    """Ones where a class is the place along the last axis."""
    for tokens, places in (equal.operands, equal.operands[::-1]):
        if isinstance(places, Known) and isinstance(tokens, Made) and tokens.op == REPEAT:
            row = places.array.reshape(-1, places.array.shape[-1] if places.array.ndim else 1)
            if (row == np.arange(row.shape[-1])).all() and tokens.args["ones"][-1] == 1:
                return made("_onehot", core(tokens))
        if isinstance(places, Made) and places.op == REPEAT and isinstance(core(places), Known):
            row = core(places).array.ravel()
            if (row == np.arange(row.size)).all() and isinstance(tokens, Made):
                return made("_onehot", core(tokens))
    return UNKNOWN


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


def _mean(total: Made) -> Operand:
    (x,) = total.operands
    return _error(total, "mean") or made("mean_over", x, axis=total.args["axis"])


def _error(total: Made, reduce: str) -> Made | None:
    """A loss of single terms that were added up."""
    x = total.operands[0]
    if not total.args["all"] or not isinstance(x, Made):
        return None
    if x.op == "_nll":
        return made("nll_loss", *x.operands, reduce=reduce)
    picked = core(x)
    if isinstance(picked, Made) and picked.op == "_pick":
        return made("_likelihood", *picked.operands, reduce=reduce)
    if x.op == "square" and isinstance(x.operands[0], Made) and x.operands[0].op == "add":
        one, two = x.operands[0].operands
        if isinstance(two, Made) and two.op == "negate":
            return made("squared_error", one, two.operands[0], reduce=reduce)
    return None


# Functions of single elements.


def at_least_zero(x: Operand) -> Operand:
    """max(x, 0): nothing of a variance, which is at least that but for rounding."""
    return x if moment(x) is not None else made("relu", x)


def _near(x: Operand, value: float) -> bool:
    return isinstance(x, float) and abs(x - value) < 1e-5


def _gated(x: Operand, gate: Operand) -> Operand | None:
    """x times a function of x: SiLU, and GELU in both its forms."""
    if not isinstance(gate, Made):
        return None
    if gate.op == "sigmoid" and gate.operands[0] == x:
        return made("silu", x)
    half = isinstance(x, Made) and x.op == "scale" and _near(x.operands[1], 0.5)
    if gate.op == "_erfc" and isinstance(x, Made) and half:
        of = gate.operands[0]
        if isinstance(of, Made) and of.op == "scale" and _near(of.operands[1], -math.sqrt(0.5)):
            return made("gelu", x.operands[0]) if of.operands[0] == x.operands[0] else None
    if gate.op == "scale" and _near(gate.operands[1], 0.5):
        return _gelu_of(x, gate.operands[0])
    if half and isinstance(x, Made) and gate.op == "broadcast_add":
        return _gelu_of(x.operands[0], gate)
    return None


def _gelu_of(x: Operand, one_more: Operand) -> Operand | None:
    """The GELU of x from 1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)), or from 1 + erf(x / sqrt 2)."""
    match one_more:
        case Made(
            "broadcast_add", (Made("tanh", (Made("scale", (Made("add", terms), root)),)), one)
        ):
            cube = made("multiply", x, made("square", x))
            for first, second in (terms, terms[::-1]):
                match second:
                    case Made("scale", (found, factor)) if found == cube and first == x:
                        near = _near(factor, 0.044715) and _near(root, math.sqrt(2 / math.pi))
                        return made("gelu_tanh", x) if near and one == 1 else None
        case Made("broadcast_add", (Made("_erf", (Made("scale", (found, root)),)), one)):
            near = found == x and one == 1 and _near(root, math.sqrt(0.5))
            return made("gelu", x) if near else None
    return None


def chosen(pred: Made, no: Operand, yes: Operand) -> Operand | None:
    """One of two by a comparison that is known."""
    if pred.op == "_finite" and no == 0:
        return yes
    if pred.op not in ("_less", "_not_less"):
        return None
    low, high = pred.operands
    if isinstance(low, Made) and low.op == "_count" and isinstance(high, int | float):
        under = low.args["value"] < high
        return yes if under == (pred.op == "_less") else no
    if (
        high == 0
        and pred.op == "_less"
        and isinstance(yes, Made)
        and core(yes).op == "broadcast_add"
    ):
        return no if core(yes).operands[0] == core(low) else None  # places counted from the end
    clipped = _clipped(low, high, no, yes)
    if clipped is not None:
        return clipped
    above = (
        high
        if low == 0 and pred.op == "_less"
        else low
        if high == 0 and pred.op == "_not_less"
        else None
    )
    if above is None:
        return None
    if no == 0:
        if yes == above:
            return made("relu", above)
        match core(yes):  # Adagrad's: where nothing has been added up, the gradient is 0 too
            case Made("_rsqrt", (Made("broadcast_add", (of, _)),)) if of == above:
                return yes
    match no:
        case Made("scale", (Made("_expm1", (Made("_below", (x,)),)), alpha)) if yes == x == above:
            return made("elu", above, alpha)
        case Made("_expm1", (Made("_below", (x,)),)) if yes == x == above:
            return made("elu", above, 1.0)
        case Made("scale", (x, slope)) if yes == x == above and isinstance(slope, float):
            return made("leaky_relu", above, slope)
    return made("_below", above) if yes == 0 and no == above else None


def _clipped(norm: Operand, limit: Operand, no: Operand, yes: Operand) -> Operand | None:
    """optax.clip_by_global_norm: g where norm < limit, else g / norm limit."""
    match no:
        case Made("scale", (Made("_over", (g, by)), most)) if (g, by, most) == (
            yes,
            core(norm),
            limit,
        ):
            return made("clip_by_norm", yes, by, most)
    return None


def masked(pred: Known, no: Operand, yes: Operand, out: Sequence[int]) -> Operand | None:
    """One of two by a fixed mask: scores of later keys are hidden, or elements are left out."""
    mask = np.asarray(pred.array).astype(bool)
    if mask.all():
        return yes
    if not mask.any():
        return no
    if not isinstance(no, int | float) or isinstance(yes, int | float | Known):
        return None
    if no == 0:
        return made("broadcast_multiply", yes, Known(mask.astype(np.float32)))
    if no > -1e4 or mask.ndim < 2:
        return None
    squares = mask.reshape(-1, *mask.shape[-2:])
    if (squares == np.tri(*mask.shape[-2:], dtype=bool)).all():
        return made("causal_mask", whole(yes, out), fill=max(float(no), -1e30))
    return None


# Normalisation.


def moment(x: Operand) -> tuple[Operand, list[int]] | None:
    """What a variance is of, and its axes: mean(x^2) - mean(x)^2, or the mean of centred squares."""
    match x:
        case Made("mean_over", (Made("square", (inner,)),), args):
            centre = _centred(inner)
            return (centre[0], args["axis"]) if centre and centre[1] == args["axis"] else None
        case Made(
            "add",
            (
                Made("mean_over", (Made("square", (one,)),), args),
                Made("negate", (Made("square", (Made("mean_over", (two,), other),)),)),
            ),
        ):
            return (one, args["axis"]) if one == two and args == other else None
    return None


def _centred(x: Operand) -> tuple[Operand, list[int]] | None:
    """What has had its mean taken off, and the axes of that."""
    match x:
        case Made("broadcast_add" | "bias" | "bias_channels", (of, less)):
            mean = core(less)
            match mean:
                case Made("negate", (Made("mean_over", (inner,), args),)) if inner == of:
                    return of, args["axis"]
    return None


def _factors(x: Operand) -> list[Operand]:
    if isinstance(x, Made) and x.op in ("multiply", "broadcast_multiply"):
        return [f for y in x.operands for f in _factors(y)]
    return [x]


def _normal(x: Operand, y: Operand, out: Sequence[int]) -> Operand | None:
    """(x - mean) / sqrt(variance + epsilon), or x over its root mean square, and a gain."""
    factors = [*_factors(x), *_factors(y)]
    root = next((f for f in factors if isinstance(core(f), Made) and core(f).op == "_rsqrt"), None)
    if root is None:
        return None
    match core(root).operands[0]:
        case Made("broadcast_add", (spread, float() as epsilon)):
            pass
        case _:
            return None
    rest = [f for f in factors if f is not root]
    for f in rest:
        op = _normal_of(f, spread, epsilon, len(out))
        if op is not None:
            others = [g for g in rest if g is not f]
            for g in others:
                last = op.op in ("layer_norm", "rms_norm")
                if op.operands[1] == 1.0 and (not last or core(g) is g):
                    op = Made(op.op, (op.operands[0], core(g), *op.operands[2:]), op.args)
                else:
                    return None
            return op
    return None


def _normal_of(x: Operand, spread: Operand, epsilon: float, rank: int) -> Made | None:
    found, centre = moment(spread), _centred(x)
    if found and centre and centre[0] == found[0] and centre[1] == found[1]:
        of, axes = found
        if axes == [rank - 1]:
            return made("layer_norm", of, 1.0, 0.0, epsilon)
        if len(axes) == rank - 1:
            (axis,) = set(range(rank)) - set(axes)
            return made("batch_norm", of, 1.0, 0.0, epsilon, axis=axis)
        return None
    match spread:
        case Made("mean_over", (Made("square", (of,)),), args) if of == x and args["axis"] == [
            rank - 1
        ]:
            return made("rms_norm", x, 1.0, epsilon)
    return None


def _gained(x: Operand, gain: Operand, ones: Any, out: Sequence[int]) -> Operand | None:
    """A normalisation times a number for each unit or channel."""
    if not isinstance(x, Made) or x.op not in ("layer_norm", "batch_norm", "rms_norm"):
        return None
    long = [k for k, n in enumerate(ones) if n != 1]
    axis = x.args.get("axis", len(out) - 1)
    if x.operands[1] != 1.0 or long != [axis] or (len(x.operands) > 3 and x.operands[2] != 0.0):
        return None
    return Made(x.op, (x.operands[0], gain.operands[0], *x.operands[2:]), x.args)


# What the graph has.


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
        error = _error(x, "sum")
        return public(error if error else Made("sum_over", x.operands, {"axis": x.args["axis"]}))
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
