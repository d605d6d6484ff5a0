"""Formulas put together again from single equations: softmax, normalisation, gelu, losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.capture.jax_expressions import (
    REPEAT,
    UNKNOWN,
    Known,
    Operand,
    core,
    made,
    peeled,
    permuted,
    whole,
)
from harness.models.entries import Made


def moment(x: Operand) -> tuple[Operand, list[int]] | None:
    """What a variance is of, and its axes: mean(x^2) - mean(x)^2, or that of centred squares."""
    match x:
        case Made("mean_over", (Made("square", (inner,)),), args):
            centre = centred(inner)
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


def centred(x: Operand) -> tuple[Operand, list[int]] | None:
    """What has had its mean taken off, and the axes of that."""
    match x:
        case Made("broadcast_add" | "bias" | "bias_channels", (of, less)):
            mean = core(less)
            match mean:
                case Made("negate", (Made("mean_over", (inner,), args),)) if inner == of:
                    return of, args["axis"]
    return None


def factors(x: Operand) -> list[Operand]:
    """What a product is of."""
    if isinstance(x, Made) and x.op in ("multiply", "broadcast_multiply"):
        return [f for y in x.operands for f in factors(y)]
    return [x]


def normal(x: Operand, y: Operand, out: Sequence[int]) -> Operand | None:
    """(x - mean) / sqrt(variance + epsilon), or x over its root mean square, and a gain."""
    found = [*factors(x), *factors(y)]
    root = next((f for f in found if isinstance(core(f), Made) and core(f).op == "_rsqrt"), None)
    if root is None:
        return None
    match core(root).operands[0]:
        case Made("broadcast_add", (spread, float() as epsilon)):
            pass
        case _:
            return None
    rest = [f for f in found if f is not root]
    for f in rest:
        op = normal_of(f, spread, epsilon, len(out))
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


def normal_of(x: Operand, spread: Operand, epsilon: float, rank: int) -> Made | None:
    """x normalised, where the variance (or the mean square) is its own."""
    found, centre = moment(spread), centred(x)
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


def gained(x: Operand, gain: Operand, ones: Any, out: Sequence[int]) -> Operand | None:
    """A normalisation times a number for each unit or channel."""
    if not isinstance(x, Made) or x.op not in ("layer_norm", "batch_norm", "rms_norm"):
        return None
    long = [k for k, n in enumerate(ones) if n != 1]
    axis = x.args.get("axis", len(out) - 1)
    if x.operands[1] != 1.0 or long != [axis] or (len(x.operands) > 3 and x.operands[2] != 0.0):
        return None
    return Made(x.op, (x.operands[0], gain.operands[0], *x.operands[2:]), x.args)


def gated(x: Operand, gate: Operand) -> Operand | None:
    """x times a function of x: SiLU, and GELU in both its forms."""
    if not isinstance(gate, Made):
        return None
    if gate.op == "sigmoid" and gate.operands[0] == x:
        return made("silu", x)
    half = isinstance(x, Made) and x.op == "scale" and _close(x.operands[1], 0.5)
    if gate.op == "_erfc" and isinstance(x, Made) and half:
        of = gate.operands[0]
        if isinstance(of, Made) and of.op == "scale" and _close(of.operands[1], -math.sqrt(0.5)):
            return made("gelu", x.operands[0]) if of.operands[0] == x.operands[0] else None
    if gate.op == "scale" and _close(gate.operands[1], 0.5):
        return gelu_of(x, gate.operands[0])
    if half and isinstance(x, Made) and gate.op == "broadcast_add":
        return gelu_of(x.operands[0], gate)
    return None


def gelu_of(x: Operand, one_more: Operand) -> Operand | None:
    """The GELU of x from 1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)), or from 1 + erf(x / sqrt 2)."""
    match one_more:
        case Made(
            "broadcast_add", (Made("tanh", (Made("scale", (Made("add", terms), root)),)), one)
        ):
            cube = made("multiply", x, made("square", x))
            for first, second in (terms, terms[::-1]):
                match second:
                    case Made("scale", (found, factor)) if found == cube and first == x:
                        near = _close(factor, 0.044715) and _close(root, math.sqrt(2 / math.pi))
                        return made("gelu_tanh", x) if near and one == 1 else None
        case Made("broadcast_add", (Made("_erf", (Made("scale", (found, root)),)), one)):
            near = found == x and one == 1 and _close(root, math.sqrt(0.5))
            return made("gelu", x) if near else None
    return None


def _close(x: Operand, value: float) -> bool:
    return isinstance(x, float) and abs(x - value) < 1e-5


def most(x: Operand) -> Operand:
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
        return x.operands[0] if most(x.operands[1]) == x.operands[0] else x
    return x


def logarithm(x: Operand) -> Operand:
    """log x; of a sum of exponentials as one."""
    inner = x.operands[0] if isinstance(x, Made) and x.op == "_absolute" else x
    if isinstance(inner, Made) and inner.op == "_sum":
        (of,) = of_exp(inner)
        if of is not UNKNOWN:
            return made("_logsum", of, axis=inner.args["axis"][0])
    return made("log", x)


def of_exp(total: Made) -> tuple[Any, ...]:
    """What a sum of exponentials is of."""
    (inner,) = total.operands
    alone = isinstance(inner, Made) and inner.op == "exp" and len(total.args["axis"]) == 1
    return inner.operands if alone else (UNKNOWN,)


def log_softmax(x: Operand, y: Operand) -> Operand | None:
    """u - log(sum(exp(u)))."""
    inner = core(y)
    if isinstance(inner, Made) and inner.op == "negate":
        (total,) = inner.operands
        if isinstance(total, Made) and total.op == "_logsum" and total.operands[0] == x:
            return made("log_softmax", shiftless(x), axis=total.args["axis"])
        if isinstance(total, Made) and total.op == "_lse" and total.operands[0] == x:
            return made("log_softmax", x, axis=total.args["axis"])
    return None


def loss_terms(x: Operand, y: Operand) -> Operand | None:
    """log(sum(exp(z))) from that of z less its maximum; and that less the logit of a class."""
    for one, two in ((x, y), (y, x)):
        if not isinstance(one, Made):
            continue
        if one.op == "_logsum":
            z = shiftless(one.operands[0])
            if most(two) == z:
                return made("_lse", z, axis=one.args["axis"])
        known = isinstance(two, Made) and two.op == "_nll" and two.operands[0] == one.operands[0]
        if one.op in ("_lse", "_logsum") and known:
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


def mean(total: Made) -> Operand:
    """A mean, from the sum; a loss, where it is one."""
    (x,) = total.operands
    return error(total, "mean") or made("mean_over", x, axis=total.args["axis"])


def error(total: Made, reduce: str) -> Made | None:
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


def at_least_zero(x: Operand) -> Operand:
    """max(x, 0): nothing of a variance, which is at least that but for rounding."""
    return x if moment(x) is not None else made("relu", x)


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
    short = clipped(low, high, no, yes)
    if short is not None:
        return short
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


def clipped(norm: Operand, limit: Operand, no: Operand, yes: Operand) -> Operand | None:
    """optax.clip_by_global_norm: g where norm < limit, else g / norm limit."""
    match no:
        case Made("scale", (Made("_over", (g, by)), most)) if (g, by, most) == (
            yes,
            core(norm),
            limit,
        ):
            return made("clip_by_norm", yes, by, most)
        case Made("_over", (g, by)) if (g, by, limit) == (
            yes,
            core(norm),
            1,
        ):  # times 1 is left out
            return made("clip_by_norm", yes, by, 1.0)
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
    if (squares == np.tri(*mask.shape[-2:]).astype(bool)).all():
        return made("causal_mask", whole(yes, out), fill=max(float(no), -1e30))
    return None
