"""Numbers held or multiplied in a narrower format than the run's.

bfloat16 has 7 explicit bits of significand, TF32 10 (both with float32's range), float16 10 with a
range of its own, float32 23. A format is told from rounding noise by what only it can do: every
number of one side is one of the format's, or the products of a stage are exactly those of rounded
operands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from harness.explain.case import SAMPLE, Array, Case, Cause, Side
from harness.explain.cells import first, stages, usual_cell
from harness.explain.stage import CELL, Stage, part, product, stage, usual
from harness.explain.trial import ALL, SIDES, count, eps_words, label, largest, other, own

NUDGE = 8.0  # eps by which the other side's number may be off before it is rounded
TOUCHED = 0.5  # share of the elements that rounding of operands must reach
FAR = 0.1  # relative L2 distance from the full products that no format explains
TELLING = 4  # different numbers that a claim about a format needs
ASIDE = 48  # rows, and columns, of a stage that are tried before all of them are


class Format(NamedTuple):
    """A number format, by its explicit bits of significand."""

    name: str
    bits: int
    toward_zero: bool = False


FORMATS = (
    Format("bfloat16", 7),
    Format("tf32", 10),
    Format("float16", 10),
    Format("float32", 23),
    Format("tf32", 10, toward_zero=True),
)


def rounded(x: Array, to: Format) -> Array:
    """`x` (float32 or float64) rounded to the nearest number of a format, ties to even.

    On the bits: half a unit of the last kept place is added, less one unless that place is odd,
    and what lies under it is cut off; a carry moves into the exponent, as it should.
    """
    if x.dtype == np.float16:
        return x
    if to.name == "float16":
        with np.errstate(over="ignore"):
            return x.astype(np.float16).astype(x.dtype)
    word: Any = np.uint32 if x.dtype == np.float32 else np.uint64
    width = 23 if x.dtype == np.float32 else 52
    if x.dtype not in (np.float32, np.float64) or to.bits >= width:
        return x
    drop, one = word(width - to.bits), word(1)
    bits: Array = np.ascontiguousarray(x).view(word)
    if not to.toward_zero:
        bits = bits + ((one << (drop - one)) - one) + ((bits >> drop) & one)
    made = ((bits >> drop) << drop).view(x.dtype).reshape(x.shape)
    return np.where(np.isfinite(x), made, x)


def reduced_precision(case: Case) -> Cause | None:
    """One side's numbers, or the operands of its products, are in a narrower format."""
    if case.b.dtype not in (np.float32, np.float64):
        return None
    if not np.array_equal(np.isfinite(case.a), np.isfinite(case.b)):
        return None  # a number that is not finite on one side alone comes from no rounding
    held = _held(case)
    if held:
        return held
    if CELL.fullmatch(case.tensor):
        return first(_multiplied(here) for here in stages(case, "gates", "c", "h"))
    return _multiplied(case)


def _formats(case: Case) -> Iterator[Format]:
    """The formats that are narrower than the tensor's."""
    bits = 23 if case.b.dtype == np.float32 else 52
    yield from (f for f in FORMATS if f.bits < bits)


def _held(case: Case) -> Cause | None:
    """One side is the other rounded to a format, element by element.

    Inside a cell the other side went another way from the first rounding on: there, the cell
    recomputed from the side's own numbers takes its place.
    """
    for side in SIDES:
        mine, to = own(case, side), label(case, other(side))
        left = _rounded_left(case, mine, own(case, other(side)))
        if left is not None:
            return _held_words(case, side, f"{to} rounded to", *left)
        narrow = _nothing_but(mine, own(case, other(side)))
        if narrow:
            words = f"numbers of {narrow.name} alone, {to} is not"
            sentence = f"{case.tensor}: {label(case, side)} has {words}: computed in {narrow.name}?"
            claim = f"{label(case, side)} has {words}"
            return Cause(
                "reduced-precision",
                sentence,
                case.gap(),
                format=narrow.name,
                claim=claim,
                side=label(case, side),
            )
    for here in stages(case, "c", "h"):
        cell = usual_cell(here)
        for side in SIDES:
            base, theirs = cell.value(side, ALL), cell.value(other(side), ALL)
            if base is None or theirs is None:
                continue
            if here.settled(theirs, own(here, other(side))) is not None:
                left = _rounded_left(here, own(here, side), base.astype(here.b.dtype))
                if left is not None:
                    return _held_words(here, side, "its own cell rounded to", *left)
    return None


def _rounded_left(case: Case, mine: Array, full: Array) -> tuple[Format, float] | None:
    """The format that `mine` is `full` rounded to, and what remains."""
    # Numbers are kept in float16, not in TF32, where both have the bits.
    for to in sorted(_formats(case), key=lambda f: f.name == "tf32"):
        count(case, 1)
        some = mine.reshape(-1)[:: max(1, mine.size // SAMPLE)]
        if to.toward_zero or not np.array_equal(rounded(some, to), some, equal_nan=True):
            continue
        if not np.array_equal(rounded(mine, to), mine, equal_nan=True):
            continue
        if not _telling(mine, full, to):
            continue
        # A number near the middle of two may be rounded either way, as its last bits are.
        nudge = NUDGE * case.eps * (np.abs(full) + largest(full))
        low = rounded((full - nudge).astype(full.dtype), to)
        high = rounded((full + nudge).astype(full.dtype), to)
        left = case.settled(np.clip(mine, low, high), mine)
        if left is not None:
            return to, left
    return None


def _nothing_but(mine: Array, full: Array) -> Format | None:
    """The format that all numbers of a side are of and the other's are not, and that is as far off.

    What made them may round more often than once, so they need not be the other's rounded.
    """
    size = float(np.linalg.norm(full))
    apart = float(np.linalg.norm(np.asarray(mine, np.float64) - full))
    for to in FORMATS:
        width = 23 if mine.dtype == np.float32 else 52
        if to.toward_zero or to.bits >= min(width, 23) or not apart <= 2.0 ** (3 - to.bits) * size:
            continue
        exact = np.array_equal(rounded(mine, to), mine) and _telling(mine, full, to)
        if exact and np.mean(rounded(full, to) == full) < TOUCHED:
            return to
    return None


def _telling(mine: Array, full: Array, to: Format) -> bool:
    """Whether enough numbers say that `mine` was rounded: those that `full` does not have exactly.

    A number that is exact in the narrower format says nothing, nor do the same numbers twice, and
    one number alone supports no claim about a format.
    """
    flat, exact = mine.reshape(-1), full.reshape(-1)
    moved = (rounded(exact, to) != exact) & (flat != exact)
    # On a grid of one width, as fixed-point numbers are, every format of enough bits has them.
    top = np.frexp(largest(flat))[1] - 1
    moved &= flat % np.ldexp(1.0, int(top) - to.bits) != 0
    return np.unique(flat[moved][:SAMPLE]).size >= TELLING


def _held_words(case: Case, side: Side, words: str, to: Format, left: float) -> Cause:
    more = {"float32": " (computed in float32)", "float16": " (or tf32: as many bits)"}
    said = f"{label(case, side)} is {words} {to.name}"
    sentence = f"{case.tensor}: {said}{more.get(to.name, '')} {eps_words(left)}"
    return Cause("reduced-precision", sentence, left, "certain", to.name, said, label(case, side))


def _multiplied(case: Case) -> Cause | None:
    """The products of the stage with operands, and perhaps results, rounded to a format.

    Tried on one side where the other agrees with the full products, first on a few elements.
    """
    good: list[Side] = [s for s in SIDES if _full(case, s)]
    of = stage(case, other(good[0])) if len(good) == 1 else None
    if of is None:
        return None
    side = other(good[0])
    mine, some = own(case, side), _some(case)
    exact = of.value()
    noise = np.asarray(mine, np.float64) - exact
    if not np.linalg.norm(noise) <= FAR * np.linalg.norm(exact):
        return None
    here, small = _at(mine, some), part(of, *some)
    near = case._replace(floor=max(case.floor, largest(mine)))
    for to in _formats(case):
        for words, way in _ways(to):
            if near.distance(way(small), here) > case.level:
                continue
            left = case.settled(way(of), mine)
            if left is not None:
                full = f"{label(case, good[0])} multiplies in full precision"
                sentence = f"{case.tensor}: {label(case, side)} {words}, {full} {eps_words(left)}"
                claim = f"{label(case, side)} {words}"
                return Cause(
                    "reduced-precision",
                    sentence,
                    left,
                    "certain",
                    to.name,
                    claim,
                    label(case, side),
                )
    return _alike(case, side, small, _at(noise, some))


def _full(case: Case, side: Side) -> bool:
    """Whether a side agrees with the full products."""
    value = usual(case, side)
    return value is not None and case.settled(value, own(case, side)) is not None


def _some(case: Case) -> tuple[Array, Array]:
    """Some rows and some columns, spread over the tensor."""
    shape = (1, *case.b.shape)[-max(case.b.ndim, 2) :]
    most = max(1, ASIDE // math.prod(shape[1:-1]))
    rows = np.linspace(0, shape[0] - 1, min(shape[0], most), dtype=np.int64)
    return rows, np.linspace(0, shape[-1] - 1, min(shape[-1], ASIDE), dtype=np.int64)


def _at(x: Array, some: tuple[Array, Array]) -> Array:
    """The elements at some rows and columns."""
    return np.asarray(x[some[0]][..., some[1]] if x.ndim > 1 else x[some[1]])


Way = Callable[[Stage], Array]


def _ways(to: Format) -> Iterator[tuple[str, Way]]:
    """Where a format may be: operands of all products or of one, their results, the sum."""
    name = to.name + (" (cut off, not rounded)" if to.toward_zero else "")

    def narrow(x: Array) -> Array:
        return rounded(x, to)

    def one(k: int) -> Way:
        return lambda of: of.total(
            [product(t, change=narrow if j == k else None) for j, t in enumerate(of.terms)]
        )

    def half(left: bool) -> Way:
        def value(of: Stage) -> Array:
            terms = [
                t._replace(left=narrow(t.left)) if left else t._replace(right=narrow(t.right))
                for t in of.terms
            ]
            return of._replace(terms=tuple(terms)).value()

        return value

    yield f"rounds the operands of its products to {name}", lambda of: of.value(change=narrow)
    yield f"rounds the operands of the input product to {name}", one(0)
    yield f"rounds the operands of the recurrent product to {name}", one(1)
    if to.name != "tf32":  # whose results are float32
        yield (
            f"rounds operands and results of its products to {name}",
            lambda of: of.total([narrow(product(t, change=narrow)) for t in of.terms]),
        )
        yield (
            f"rounds operands and the sum to {name}",
            lambda of: narrow(of.value(change=narrow)),
        )
    yield f"rounds the left operands (activations) to {name}", half(True)
    yield f"rounds the right operands (weights) to {name}", half(False)


def _alike(case: Case, side: Side, of: Stage, noise: Array) -> Cause | None:
    """A difference of the size and likeness of a format's rounding of operands, not its numbers.

    `noise` is what the side has beside the full products at the elements of `of`. It must reach
    nearly every element, not go along with the value, and have, within a factor of two, the
    relative L2 size that rounding the operands to the format gives.
    """
    exact = of.value()
    size, found = float(np.linalg.norm(exact)), float(np.linalg.norm(noise))
    reached = float((np.abs(noise) > 4 * case.eps * np.abs(exact)).mean())
    along = abs(float(np.vdot(noise, exact)))
    if not size or noise.size < 32 or reached < TOUCHED or along > 0.3 * found * size:
        return None
    for to in _formats(case):
        if to.name == "float16" or to.toward_zero:
            continue
        expected = float(np.linalg.norm(of.value(change=partial(rounded, to=to)) - exact))
        if expected and 0.5 <= found / expected <= 2:
            words = (
                f"{case.tensor}: {label(case, side)} differs from the full product by noise "
                f"{found / size:.2g} of its size; rounding the operands to {to.name} gives "
                f"{expected / size:.2g}: looks like products in {to.name}"
            )
            claim = f"{label(case, side)} differs as products in {to.name}"
            return Cause("reduced-precision", words, case.gap(), "likely", to.name, claim)
    return None
