"""What an optimizer makes of a gradient, read from the equations of its update.

Nothing is asked of the optimizer: what is recognised is the formula, by whatever was written for it
(optax's chains, or a line of the script's own). What fits none has no stage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from harness.capture.jax_expressions import Operand
from harness.capture.jax_formulas import moment
from harness.models.entries import Made

RATE, FACTOR = "update/learning_rate", "update/factor"
GRADIENT = ("grads/", "update/clipped/")
# The names of optax's slots in a trace: those of the twins, where the twins have them.
SLOTS = {
    "mu": "m",
    "nu": "v",
    "trace": "velocity",
    "sum_of_squares": "accumulator",
}


class Update(NamedTuple):
    """The new value of a parameter or slot: its name in a trace, and how it is made."""

    name: str
    made: Made


def norm_of(x: Operand) -> list[str]:
    """The gradients whose squares are added up under a root; none where that is no norm."""
    if not isinstance(x, Made) or x.op != "root":
        return []
    found = []
    todo: list[Any] = list(x.operands)
    while todo:
        term = todo.pop(0)
        if isinstance(term, Made) and term.op == "add":
            todo[:0] = term.operands
            continue
        if isinstance(term, Made) and term.op == "_sum" and term.args["all"]:
            term = term.operands[0]
        if not isinstance(term, Made) or term.op != "square" or not is_gradient(term.operands[0]):
            return []
        found.append(str(term.operands[0]))
    return found


def is_gradient(x: Operand) -> bool:
    """Whether an operand is the gradient of a parameter, clipped or not."""
    return isinstance(x, str) and x.startswith(GRADIENT)


def clipped(x: Operand) -> Update | None:
    """A gradient that has been clipped: by the norm of all, or element by element."""
    match x:
        case Made("clip_by_norm" | "clip_elements", (str() as g, *_)) if g.startswith("grads/"):
            return Update(f"update/clipped/{g.removeprefix('grads/')}", x)
        case Made("scale", (str() as g, Made("_least", (limit, by)))) if g.startswith("grads/"):
            made = _by_coefficient(g, float(limit), by)
            return Update(f"update/clipped/{g.removeprefix('grads/')}", made) if made else None
    return None


def _by_coefficient(g: str, most: float, by: Operand) -> Made | None:
    """g min(1, limit / norm), with what torch adds to the norm or without it."""
    match by:
        case Made("divide", (limit, Made("broadcast_add", (norm, more)))) if (
            abs(more - 1e-6) < 1e-9
        ):
            return Made("clip_torch", (g, norm, limit), {}) if most == 1 else None
        case Made("divide", (limit, str() as norm)):
            return Made("clip_by_norm", (g, norm, limit), {}) if most == 1 else None
    return None


def slot_of(x: Operand) -> Update | None:
    """The new value of a slot: an average, a velocity or a sum."""
    if not isinstance(x, Made) or x.op != "add":
        return None
    for new, old in (x.operands, x.operands[::-1]):
        if _is_slot(old) and _of_gradient(new):
            return Update(_named(old), Made("add", (old, new), {}))
        match old:
            case Made("scale", (str() as slot, float() as beta)) if _is_slot(slot):
                match new:
                    case Made("scale", (inner, float() as share)) if _is_rest(share, beta):
                        if _of_gradient(inner):
                            return Update(_named(slot), Made("average", (slot, inner, beta), {}))
                if _of_gradient(new):
                    made = Made("velocity", (slot, new, beta, RATE), {})
                    return Update(_named(slot), made)
    return None


def _is_rest(share: float, beta: float) -> bool:
    return abs(share + beta - 1) < 1e-6


def _is_slot(x: Operand) -> bool:
    return isinstance(x, str) and x.startswith("optimizer/") and "@step-1" in x


def _named(x: str) -> str:
    return x.partition("@")[0]


def _of_gradient(x: Operand) -> bool:
    """Whether something is a gradient, its square, or one with weight decay."""
    match x:
        case Made("square", (inner,)):
            return _of_gradient(inner)
        case Made("decay_gradient", (inner, *_)):
            return is_gradient(inner)
    return is_gradient(x)


def running(x: Operand) -> Update | None:
    """The new value of a running statistic of a batch normalisation, as flax keeps it."""
    match x:
        case Made("stop_gradient", (inner,)):
            return running(inner)
        case Made("add", (Made("scale", (str() as old, float() as m)), Made("scale", (new, rest)))):
            if not old.startswith("buffers/") or "@step-1" not in old or not _is_rest(rest, m):
                return None
            match new:
                case Made("mean_over", (of,), args) if args["axis"] == list(
                    range(len(args["axis"]))
                ):
                    return Update(
                        _named(old), Made("running_mean_keras", (old, of, m), {"axis": -1})
                    )
            found = moment(new)
            if found and found[1] == list(range(len(found[1]))):
                made = Made("running_variance_keras", (old, found[0], m), {"axis": -1})
                return Update(_named(old), made)
    return None


def decayed(x: Operand) -> Made | None:
    """A gradient to which a share of the weights is added."""
    match x:
        case Made("add", (str() as g, Made("scale", (str() as p, float() as share)))):
            if is_gradient(g) and _is_weight(p):
                return Made("decay_gradient", (g, p, share), {})
    return None


def _is_weight(x: Operand) -> bool:
    return isinstance(x, str) and x.startswith("params/") and "@step-1" in x


def moved(
    x: Operand, step: int, made: dict[str, Made], rate: Callable[[Any], str | None]
) -> Update | None:
    """The new value of a parameter, from weights to which something was added."""
    if not isinstance(x, Made) or x.op != "add":
        return None
    for old, change in (x.operands, x.operands[::-1]):
        if not _is_weight(old):
            continue
        direction, factor = _factored(change)
        found = _rule(str(old), direction, RATE, step, made)
        by = rate(factor) if found else None
        if by is None:
            return None
        found = _rule(str(old), direction, by, step, made)
        return Update(_named(str(old)), found) if found else None
    return None


def _factored(x: Operand) -> tuple[Operand, Any]:
    """A direction, and the number that it goes with: minus the learning rate."""
    match x:
        case Made("scale", (inner, factor)):
            return inner, factor
        case Made("negate", (Made("scale", (inner, factor)),)):
            return inner, -factor if isinstance(factor, float) else None
        case Made("negate", (inner,)):
            return inner, -1.0
    return x, 1.0


def _rule(old: str, d: Operand, rate: str, step: int, made: dict[str, Made]) -> Made | None:
    match d:
        case Made("add", (inner, Made("scale", (str() as p, float() as share)))) if p == old:
            if is_gradient(inner):
                return Made(
                    "descend", (old, Made("decay_gradient", (inner, p, share), {}), rate), {}
                )
            found = _rule(old, inner, rate, step, made)
            return Made("decay_weights", (found, old, rate, share), {}) if found else None
        case Made("add", (g, Made("scale", (str() as v, float() as mu)))) if _is_velocity(v, made):
            return Made("nesterov", (old, v, g, rate, mu), {}) if _of_gradient(g) else None
        case Made("divide", (Made("_corrected", m), below)):
            return _adam(old, m, below, rate, step)
    if isinstance(d, str) and _is_velocity(d, made):
        _, g, mu, _ = made[d].operands
        return Made("along_velocity", (old, d, g, rate, mu), {})
    if is_gradient(d) or _of_gradient(d):
        return Made("descend", (old, d, rate), {})
    return _over_root(old, d, rate)


def _is_velocity(x: str, made: dict[str, Made]) -> bool:
    return x in made and made[x].op == "velocity"


def _adam(old: str, m: Any, below: Operand, rate: str, step: int) -> Made | None:
    (first, beta1, count) = m
    match below:
        case Made(
            "broadcast_add", (Made("root", (Made("_corrected", (second, beta2, times)),)), eps)
        ):
            if count == times == step and isinstance(first, str) and isinstance(second, str):
                given = (old, first, second, rate, beta1, beta2, eps, Made("step", (), {}))
                return Made("adam", given, {})
    return None


def _over_root(old: str, d: Operand, rate: str) -> Made | None:
    """RMSprop and Adagrad: g over the root of a slot, epsilon inside of it or beside."""
    if not isinstance(d, Made) or d.op not in ("multiply", "divide"):
        return None
    for g, by in (d.operands, d.operands[::-1]) if d.op == "multiply" else (d.operands,):
        if not _of_gradient(g):
            continue
        match by:
            case Made("_rsqrt", (Made("broadcast_add", (str() as slot, float() as eps)),)):
                return Made("over_root_inside", (old, g, slot, rate, eps), {})
            case Made(
                "divide",
                (1.0 | 1, Made("broadcast_add", (Made("root", (str() as slot,)), float() as eps))),
            ):
                return Made("over_root", (old, g, slot, rate, eps), {})
            case Made("broadcast_add", (Made("root", (str() as slot,)), float() as eps)) if (
                d.op == "divide"
            ):
                return Made("over_root", (old, g, slot, rate, eps), {})
    return None


__all__ = [
    *("FACTOR", "RATE", "SLOTS", "Update", "clipped", "decayed", "moved", "norm_of", "running"),
    "slot_of",
]
