"""Trying guesses: how a tensor may have been computed, recomputed from a side's own inputs.

The sides agree up to the inputs of the first divergent tensor, but a tensor stacked over time feeds
itself (gates at t+1 come from h at t). So a guess is never applied to the other side's numbers: the
tensor is recomputed from what the same side traced, and must then be that side's to rounding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Literal, NamedTuple, TypeVar, cast

import numpy as np

from harness.explain.case import SAMPLE, Array, Case, Cause, Lookup, Side

R = TypeVar("R")
LAYER = re.compile(r"layer\d+")
ALL = slice(None)
MOST_LAYERS = 64  # layers that are looked for
SIDES: tuple[Side, Side] = ("a", "b")


class Guess(NamedTuple):
    """One way to compute the tensor of a case.

    `words` say it after a side's name ("averages the loss over time"); what stands in brackets at
    their end is of this place alone, and no part of what is claimed. `value(side, rows)` gives
    rows `rows` (of the first axis) of the tensor, recomputed from that side's inputs; None where
    the trace does not hold them.
    """

    words: str
    value: Callable[[Side, slice], Array | None]


class Fit(NamedTuple):
    """A guess that a side's tensor agrees with, and what remains."""

    guess: int
    left: float


def other(side: Side) -> Side:
    """The side that is not `side`."""
    return "a" if side == "b" else "b"


class Memory:
    """A lookup that reads each tensor once, and keeps what was computed while a case is tried."""

    def __init__(self, lookup: Lookup) -> None:
        """Nothing is read yet."""
        self._lookup = cache(lookup)
        self.claims = 0  # that were tried: the more, the easier one fits by chance
        self.kept: dict[tuple[object, ...], object] = {}

    def __call__(self, side: Side, step: int, name: str) -> Array | None:
        """A traced tensor; None where there is none."""
        return self._lookup(side, step, name)


def remembered(case: Case, key: tuple[object, ...], make: Callable[[], R]) -> R:
    """`make()`, made once for `key` while a case is tried."""
    if not isinstance(case.lookup, Memory):
        return make()
    kept = case.lookup.kept
    if key not in kept:
        kept[key] = make()
    return cast(R, kept[key])


def count(case: Case, claims: int) -> None:
    """Keep count of the claims that are tried on a case."""
    if isinstance(case.lookup, Memory):
        case.lookup.claims += claims


def once(make: Callable[[Side], R]) -> Callable[[Side], R]:
    """`make`, called once for each side."""
    return cache(make)


def label(case: Case, side: Side) -> str:
    """What the user calls a side."""
    return case.labels[SIDES.index(side)]


def own(case: Case, side: Side) -> Array:
    """The tensor of the case on one side."""
    return case.a if side == "a" else case.b


def at(case: Case, tensor: str) -> Case | None:
    """The same case at another tensor; None where a side has it not, or the sides do not fit."""
    if tensor == case.tensor:
        return case  # a side that follows the other looks up what it went on with
    a, b = case.get(tensor, "a"), case.get(tensor, "b")
    if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
        return None
    return case._replace(tensor=tensor, a=a, b=b)


def setting(case: Case, key: str, default: object = None) -> object:
    """A setting of the reference, or else of the other side."""
    return case.settings_b.get(key, case.settings_a.get(key, default))


def number(case: Case, key: str) -> float | None:
    """A setting that is a number; None where neither side has it."""
    values = numbers(case, key)
    return values[0] if values else None


def numbers(case: Case, key: str, *more: float) -> list[float]:
    """What both sides have set for a number, the reference first, then `more`; each once."""
    found: list[float] = []
    for value in (case.settings_b.get(key), case.settings_a.get(key), *more):
        real = isinstance(value, int | float) and not isinstance(value, bool)
        if real and math.isfinite(value) and value not in found:  # type: ignore[arg-type]
            found.append(float(value))  # type: ignore[arg-type]
    return found


def figure(x: float) -> str:
    """A number for a sentence."""
    return f"{x:.6g}"


def eps_words(left: float) -> str:
    """A residual for a sentence: "to 3.1 eps"."""
    return f"to {left:.2g} eps" if 0 < left < 99.5 else f"to {left:.0f} eps"


def wide(x: Array | None) -> Array | None:
    """`x` in float64."""
    return None if x is None else np.asarray(x, np.float64)


def tell(
    case: Case,
    name: str,
    guesses: Sequence[Guess],
    *,
    both: bool = False,
    sure: Literal["certain", "likely"] = "certain",
    format: str | None = None,
) -> Cause | None:
    """The cause "one side does this, the other that", if each side fits a guess of its own.

    The first guess is the usual one, and one of the sides must fit it unless `both` may be unusual.
    """
    if case.asked:
        return _asked(case, name, guesses)
    count(case, 2 * len(guesses))
    fits: dict[Side, Fit] = {}
    rows = _worst_rows(case)
    for side in SIDES:
        usual = _fit(case, side, guesses[:1], rows)
        if usual:
            fits[side] = usual
    if len(fits) == 2 or not (fits or both):
        return None
    for side in SIDES:
        if side not in fits:
            found = _fit(case, side, guesses[1:], rows)
            if found is None:
                return None
            fits[side] = Fit(found.guess + 1, found.left)
    if fits["a"].guess == fits["b"].guess:
        return None
    odd: Side = "a" if fits["a"].guess else "b"
    words = {side: guesses[fit.guess].words for side, fit in fits.items()}
    left = max(fit.left for fit in fits.values())
    sentence = (
        f"{label(case, odd)} {words[odd]}, {label(case, other(odd))} {words[other(odd)]}: "
        f"recomputed so, {case.tensor} agrees {eps_words(left)}"
    )
    claim = _claim(case, odd, guesses[fits[odd].guess])
    return Cause(name, sentence, left, sure, format, claim, label(case, odd))


def _claim(case: Case, side: Side, guess: Guess) -> str:
    """What is claimed of a side, without what is of one place alone."""
    return f"{label(case, side)} {guess.words.partition(' (')[0]}"


def same_claim(one: str, two: str) -> bool:
    """Whether two claims, or names of tensors, are one but for the layer's number."""
    return LAYER.sub("layer", one) == LAYER.sub("layer", two)


def _asked(case: Case, name: str, guesses: Sequence[Guess]) -> Cause | None:
    """Whether a claim that was made at another place holds here, where the sides may agree."""
    for guess in guesses[1:]:
        for side in SIDES:
            here = same_claim(_claim(case, side, guess), case.asked)
            value = guess.value(side, ALL) if here else None
            left = None if value is None else case.settled(value, own(case, side))
            if left is not None:
                return Cause(name, "", left, claim=case.asked)
    return None


def _fit(case: Case, side: Side, guesses: Sequence[Guess], rows: slice) -> Fit | None:
    """The guess that leaves least on a side, if any is left at rounding level."""
    best: Fit | None = None
    mine = own(case, side)
    part = case._replace(floor=max(case.floor, largest(mine)))
    for place, guess in enumerate(guesses):
        if rows != ALL:
            some = guess.value(side, rows)
            if some is None or part.distance(some, mine[rows]) > case.level:
                continue
        value = guess.value(side, ALL)
        left = None if value is None else case.settled(value, mine)
        if left is not None and (best is None or left < best.left):
            best = Fit(place, left)
    return best


def _worst_rows(case: Case) -> slice:
    """A row of a large tensor that differs most, to try guesses on first; else all rows."""
    if case.b.ndim < 2 or case.b.size <= SAMPLE:
        return ALL
    with np.errstate(all="ignore"):
        gaps = np.abs(case.a - case.b).reshape(case.b.shape[0], -1).max(axis=1)
    row = int(np.argmax(gaps))
    return slice(row, row + 1)


def largest(x: Array) -> float:
    """The largest finite absolute value; 0 where there is none."""
    if x.dtype.kind == "b" or not x.size:
        return float(x.any())
    with np.errstate(all="ignore"):
        top = max(abs(float(x.min())), abs(float(x.max())))
    if math.isfinite(top):
        return top
    return float(np.abs(x[np.isfinite(x)]).max(initial=0.0))


def parameter_names(case: Case) -> Iterator[str]:
    """The parameters of the twins' model that the trace has gradients of."""
    layers = [
        f"layer{k}/{part}" for k in range(MOST_LAYERS) for part in ("w_i", "w_h", "b_i", "b_h")
    ]
    for name in ("embedding", *layers, "softmax_w", "softmax_b"):
        if case.get(f"grads/{name}") is not None:
            yield name
