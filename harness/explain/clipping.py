"""Causes between the gradients and the optimizer: the global norm, and clipping by it.

Clipping by global norm scales every gradient by limit / max(norm, limit) (Pascanu et al. 2013,
arXiv 1211.5063, algorithm 1; tensorflow.clip_by_global_norm). torch.nn.utils.clip_grad_norm_ scales
by limit / (norm + 1e-6), keras' clipnorm each tensor by its own norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np

from harness.explain.case import GAIN, SAMPLE, Array, Case, Cause, Side
from harness.explain.scale import Slope, known_numbers, slope
from harness.explain.trial import (
    SIDES,
    Guess,
    at,
    eps_words,
    figure,
    label,
    largest,
    number,
    numbers,
    once,
    other,
    own,
    parameter_names,
    remembered,
    setting,
    tell,
    wide,
)

TORCH = 1e-6  # what torch adds to the norm
ONE_NUMBER = 1e-6  # the chance up to which a coefficient may be named after the run's numbers
PREFIX = "update/clipped/"


class Clipping(NamedTuple):
    """What clips: the gradient of a side before it, float64; the norm; the coefficient it makes."""

    gradient: Array
    norm: float
    limit: float


def scalar(case: Case, name: str, side: Side) -> float | None:
    """A traced scalar, if it is finite and not zero."""
    value = wide(case.get(name, side))
    if value is None or value.size != 1 or not np.isfinite(value).all() or not value.any():
        return None
    return float(value.reshape(()))


def _clipping(case: Case, side: Side) -> Clipping | None:
    gradient = wide(case.get(f"grads/{case.tensor.removeprefix(PREFIX)}", side))
    norm, limit = scalar(case, "update/global_norm", side), number(case, "clip_limit")
    if gradient is None or gradient.shape != case.b.shape or norm is None or not limit:
        return None
    return Clipping(gradient, norm, limit)


def _kinds(case: Case, side: Side) -> dict[str, float]:
    """The ways of clipping that every clipped gradient of a side agrees with, and what remains.

    One tensor alone does not tell them apart: its elements may all be under the limit.
    """
    return remembered(case, ("clipping", side), lambda: _find_kinds(case, side))


def _find_kinds(case: Case, side: Side) -> dict[str, float]:
    kinds: dict[str, float] = {}
    for name in [case.tensor.removeprefix(PREFIX), *parameter_names(case)]:
        here = at(case, PREFIX + name)
        made = None if here is None else _clipping(here, side)
        if here is None or made is None:
            continue
        lefts = _ways(here, side, made)
        if here.tensor == case.tensor and not kinds:
            kinds = lefts
        kinds = {kind: max(left, lefts[kind]) for kind, left in kinds.items() if kind in lefts}
    return kinds


def _ways(case: Case, side: Side, made: Clipping) -> dict[str, float]:
    """The ways of clipping that one tensor agrees with; of a large one, only some elements."""
    g, norm, limit = made
    tensor_norm = math.sqrt(float(np.vdot(g, g)))
    mine = own(case, side)
    scale = largest(mine)
    if g.size > SAMPLE:
        flat = np.abs(g).reshape(-1)
        some = np.append(np.arange(0, flat.size, flat.size // SAMPLE), np.argmax(flat))
        g, mine = g.reshape(-1)[some], mine.reshape(-1)[some]
    ways = {
        "global": g * (limit / max(norm, limit)),
        "elementwise": np.clip(g, -limit, limit),
        "tensor": g * (limit / max(tensor_norm, limit)),
        "none": g,
    }
    part = case._replace(floor=max(case.floor, scale))
    lefts = {way: part.distance(value, mine) for way, value in ways.items()}
    return {way: left for way, left in lefts.items() if left <= case.level}


def _pair(case: Case, one: str, two: str) -> tuple[Side, float] | None:
    """The side that clips in way `one` where the other does in way `two`, if they differ."""
    kinds = {side: _kinds(case, side) for side in SIDES}
    for side in SIDES:
        mine, theirs = kinds[side], kinds[other(side)]
        if one in mine and two in theirs and one not in theirs and two not in mine:
            left = max(mine[one], theirs[two])
            return (side, left) if left * GAIN <= case.gap() else None
    return None


def idle(case: Case) -> bool:
    """Whether a clipped gradient is under the limit, so that no way of clipping shows in it."""
    if not case.tensor.startswith(PREFIX):
        return False
    norm, limit = scalar(case, "update/global_norm", "b"), number(case, "clip_limit")
    return norm is None or limit is None or norm <= limit


def clip_elementwise(case: Case) -> Cause | None:
    """One side clips by global norm, the other element by element."""
    found = _pair(case, "elementwise", "global")
    if found is None:
        return None
    side, left = found
    limit = number(case, "clip_limit") or 0.0
    settings = case.settings_a if side == "a" else case.settings_b
    told = case.asked or settings.get("clip") == "elementwise"
    if not told and not _any_clamped(case, side, limit):
        return None  # not clipping at all fits as well
    norm = scalar(case, "update/global_norm", other(side)) or 0.0
    scale = limit / max(norm, limit)
    words = (
        "one side clips by global norm, the other element by element: "
        f"{label(case, other(side))} scales by {figure(scale)} "
        f"(limit {figure(limit)}, norm {figure(norm)}), "
        f"{label(case, side)} clamps at {figure(limit)}"
    )
    sentence = f"{words}; both recomputed {eps_words(left)}"
    claim = f"{label(case, side)} clips element by element"
    return Cause("clip-elementwise", sentence, left, claim=claim, side=label(case, side))


def _any_clamped(case: Case, side: Side, limit: float) -> bool:
    """Whether any gradient of the step has an element over the limit."""
    for name in parameter_names(case):
        g = case.get(f"grads/{name}", side)
        if g is not None and g.size and max(abs(float(g.min())), abs(float(g.max()))) > limit:
            return True
    return False


def clip_per_tensor(case: Case) -> Cause | None:
    """One side clips each tensor by its own norm."""
    for theirs in ("global", "none", "elementwise"):
        found = _pair(case, "tensor", theirs)
        # Where no tensor's norm is over the limit, or there is but one, simpler ways fit too.
        if found is None or {"none", "elementwise", "global"} & _kinds(case, found[0]).keys():
            continue
        side, left = found
        does = {"global": "by the global norm", "none": "nothing", "elementwise": "each element"}
        words = f"{label(case, side)} clips each tensor by its own norm (as Keras' clipnorm does)"
        sentence = f"{words}, {label(case, other(side))} {does[theirs]}; both {eps_words(left)}"
        claim = f"{label(case, side)} clips each tensor by its own norm"
        return Cause("clip-per-tensor", sentence, left, claim=claim, side=label(case, side))
    return None


class Coefficient(NamedTuple):
    """What a side scales its gradients by: in words, and how it is made, without its numbers."""

    words: str
    made: str


def clip_one_side(case: Case) -> Cause | None:
    """Both sides scale gradients by one number, but not by the same one."""
    scales: dict[Side, Coefficient] = {}
    left = 0.0
    for side in SIDES:
        gradient = case.get(f"grads/{case.tensor.removeprefix(PREFIX)}", side)
        fit = None if gradient is None else slope(case, own(case, side), gradient)
        if gradient is None or fit is None:
            return None
        rest = case.settled(np.asarray(gradient, np.float64) * fit.factor, own(case, side))
        if rest is None:
            return None
        left = max(left, rest)
        scales[side] = _coefficient(case, side, fit.factor, 8 * fit.error + 16 * case.eps)
    made = {side: scales[side].made or OWN_WAY for side in SIDES}
    if made["a"] == made["b"]:
        return None  # each takes its own norm: that is where they differ
    sure: Literal["certain", "likely"] = "likely" if OWN_WAY in made.values() else "certain"
    claim = ", ".join(f"{label(case, side)} {made[side]}" for side in SIDES)
    some = None if _one_ratio(case) else _apart(case)
    if some is None and not _one_ratio(case):
        return None
    sentence = _one_side_words(case, scales, left, some)
    return Cause("clip-one-side", sentence, left, sure, claim=claim)


def _one_side_words(
    case: Case, scales: dict[Side, Coefficient], left: float, some: list[str] | None
) -> str:
    """The sentence; a side that scales nothing may clip by a limit that no element reaches.

    `some` are the parameters that differ where others agree.
    """
    alone = f"{' and '.join(some)} alone, all other gradients agree: " if some else ""
    for side in SIDES:
        mine, theirs = scales[side].made, scales[other(side)]
        if mine == NOTHING and theirs.made == GLOBAL:
            limit = number(case, "clip_limit") or 0.0
            words = (
                f"{label(case, other(side))} clips by global norm ({theirs.words}), "
                f"{label(case, side)} does not scale its gradients"
            )
            if some:
                words += " here: it leaves these out, or clips them by another norm or limit"
            elif not _any_clamped(case, side, limit):
                words += (
                    ": it does not clip, or in a way that leaves these alone (each element at "
                    f"{figure(limit)}, each tensor by its own norm, all by a larger limit)"
                )
            return f"{alone}{words}; both recomputed {eps_words(left)}"
    words = ", ".join(f"{label(case, side)} {scales[side].words}" for side in SIDES)
    over = alone or "one constant over all clipped gradients "
    return f"{over}{eps_words(left)}: {words}"


NOTHING, GLOBAL, OWN_WAY = "does not scale", "scales by limit / norm", "scales in a way of its own"


def _coefficient(case: Case, side: Side, scale: float, tolerance: float) -> Coefficient:
    """Where a coefficient comes from, as far as the run's own numbers tell."""
    if abs(scale - 1) <= tolerance:
        return Coefficient("does not scale them", NOTHING)
    words = f"scales by {figure(scale)}"
    norm = scalar(case, "update/global_norm", side)
    if norm is None:
        return Coefficient(words, "")
    for limit in numbers(case, "clip_limit"):
        if abs(scale * norm / limit - 1) <= tolerance:
            return Coefficient(f"{words} = limit {figure(limit)} / norm {figure(norm)}", GLOBAL)
        if abs(scale * (norm + TORCH) / limit - 1) <= tolerance:
            ratio = f"limit {figure(limit)} / (norm {figure(norm)} + 1e-6)"
            return Coefficient(f"{words} = {ratio}, as torch does", "adds 1e-6 to the norm")
        if abs(scale * (norm / limit) ** 2 - 1) <= tolerance:
            ratio = f"(limit {figure(limit)} / norm {figure(norm)})"
            return Coefficient(f"{words} = {ratio} squared: it clips twice", "clips twice")
        known_ones = list(known_numbers(case))
        # One number alone: by chance it must not be near any of those that it is held against.
        for known in known_ones if 2 * len(known_ones) * tolerance <= ONE_NUMBER else ():
            for value in (known.value, 1 / known.value):
                if abs(scale * norm / (limit * value) - 1) <= tolerance:
                    named = f" ({known.words})" if known.words else ""
                    size, times = figure(limit * value), figure(value)
                    made = f"scales as with {times} times the limit"
                    said = f"{words}, as with a limit of {size}, {times} times its own{named}"
                    return Coefficient(f"{said}, or by a norm of {figure(norm / value)}", made)
    return Coefficient(words, "")


def _apart(case: Case) -> list[str] | None:
    """The parameters whose clipped gradients differ, where some do not and those by one ratio."""
    mine = slope(case, case.a, case.b)
    found = []
    for name in parameter_names(case):
        one = at(case, PREFIX + name)
        if one is None or one.gap() <= one.level:
            continue
        fit = slope(one, one.a, one.b)
        if mine is None or fit is None or not _same_ratio(case, mine, fit):
            return None
        found.append(name)
    return found if 0 < len(found) < len(list(parameter_names(case))) else None


def _same_ratio(case: Case, one: Slope, two: Slope) -> bool:
    allowed = 8 * (one.error + two.error) + 16 * case.eps
    return abs(one.factor / two.factor - 1) <= allowed


def _one_ratio(case: Case) -> bool:
    """Whether every clipped gradient has the ratio between the sides that this tensor has."""
    mine = slope(case, case.a, case.b)
    if mine is None:
        return False
    for name in parameter_names(case):
        a, b = (case.get(PREFIX + name, side) for side in SIDES)
        if a is None or b is None or a.shape != b.shape:
            continue
        fit = slope(case, a, b)
        if fit is not None and not _same_ratio(case, fit, mine):
            return False
    return True


def _squares(case: Case, side: Side) -> dict[str, float]:
    """The sum of squares of every gradient."""
    return remembered(case, ("squares", side), lambda: _find_squares(case, side))


def _find_squares(case: Case, side: Side) -> dict[str, float]:
    found = {}
    for name in parameter_names(case):
        g = wide(case.get(f"grads/{name}", side))
        if g is not None:
            found[name] = float(np.vdot(g, g))
    return found


def norm_duplicates(case: Case) -> Cause | None:
    """A norm taken before the rows of a token that occurs more than once were added up.

    tensorflow.clip_by_global_norm takes the norm of an IndexedSlices gradient as it is.
    """
    squares = once(lambda side: _squares(case, side))

    def rows_apart(side: Side) -> float | None:
        parts, dx = squares(side), wide(case.get("backward/embedding", side))
        if dx is None or "embedding" not in parts:
            return None
        return math.sqrt(sum(parts.values()) - parts["embedding"] + float(np.vdot(dx, dx)))

    guesses = [
        _normed(case, "adds them up", lambda side: math.sqrt(sum(squares(side).values()))),
        _normed(case, "takes a norm that does not add up duplicate embedding rows", rows_apart),
    ]
    return tell(case, "norm-duplicates", guesses)


def norm_parts(case: Case) -> Cause | None:
    """A norm that leaves gradients out, counts some twice, or is another norm."""
    squares = once(lambda side: _squares(case, side))
    guesses = [
        _normed(
            case,
            "takes the norm of all gradients",
            lambda side: math.sqrt(sum(squares(side).values())),
        )
    ]
    names = list(parameter_names(case))
    for words, group in _groups(names):
        for verb, weight in (("leaves out", -1), ("counts twice", 1)):

            def partial(side: Side, group: list[str] = group, weight: int = weight) -> float | None:
                parts = squares(side)
                total = sum(parts.values()) + weight * sum(parts.get(n, 0.0) for n in group)
                return math.sqrt(max(total, 0.0))

            guesses.append(_normed(case, f"{verb} {words} in the norm", partial))
    guesses += [_normed(case, words, norm) for words, norm in _other_norms(case, names, squares)]
    return tell(case, "norm-parts", guesses)


def _groups(names: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Sets of parameters that a norm may miss, with words; those with equal gradients together."""
    for name in names:
        if name.endswith("/b_i"):
            yield f"{name} (or b_h, whose gradient is the same)", [name]
        elif not name.endswith("/b_h"):
            yield name, [name]
    yield "the biases", [n for n in names if n.split("/")[-1] in ("b_i", "b_h", "softmax_b")]
    yield "the LSTM layers", [n for n in names if n.startswith("layer")]
    yield "the softmax", [n for n in names if n.startswith("softmax")]
    for layer in sorted({n.split("/")[0] for n in names if n.startswith("layer")}):
        yield layer, [n for n in names if n.startswith(f"{layer}/")]


def _other_norms(
    case: Case, names: list[str], squares: Callable[[Side], dict[str, float]]
) -> Iterator[tuple[str, Callable[[Side], float | None]]]:
    """Norms of all gradients that are not the L2 norm."""

    def every(side: Side, of: Callable[[Array], float]) -> list[float]:
        arrays = (case.get(f"grads/{name}", side) for name in names)
        return [of(np.asarray(x, np.float64)) for x in arrays if x is not None]

    yield "takes the square of the norm", lambda side: sum(squares(side).values())
    yield (
        "adds up the norms of the tensors",
        lambda side: sum(math.sqrt(s) for s in squares(side).values()),
    )
    yield (
        "takes the greatest norm of a tensor",
        lambda side: math.sqrt(max(squares(side).values(), default=0.0)),
    )
    yield (
        "takes the largest element for the norm",
        lambda side: max(every(side, lambda x: float(np.abs(x).max(initial=0))), default=0.0),
    )
    yield (
        "adds up absolute values for the norm",
        lambda side: sum(every(side, lambda x: float(np.abs(x).sum()))),
    )
    yield (
        "takes the root of the mean square for the norm",
        lambda side: math.sqrt(
            sum(squares(side).values()) / max(sum(every(side, lambda x: x.size)), 1)
        ),
    )


def _normed(case: Case, words: str, norm: Callable[[Side], float | None]) -> Guess:
    """A guess at the norm; or, at a clipped gradient, at the norm it was clipped by."""
    found = once(norm)

    def value(side: Side, rows: slice) -> Array | None:
        size = found(side)
        if size is None:
            return None
        if case.tensor == "update/global_norm":
            return np.full(case.b.shape, size)
        made = _clipping(case, side)
        if made is None or setting(case, "clip", "global_norm") != "global_norm":
            return None
        if size <= made.limit < made.norm:
            return None  # any norm under the limit would do
        return np.asarray(made.gradient[rows] * (made.limit / max(size, made.limit)))

    return Guess(words, value)
