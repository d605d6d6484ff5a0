"""Numbers held or multiplied in a narrower format than the run's.

bfloat16 has 7 explicit bits of significand, TF32 10 (both with float32's range), float16 10 with a
range of its own, float32 23. A format is told from rounding noise by what only it can do: every
number of one side is one of the format's, or the products of a stage are exactly those of rounded
operands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from harness.explain.case import Array, Case, Cause, Side
from harness.explain.cells import first, stages, usual_cell
from harness.explain.stage import CELL, Stage, product, stage
from harness.explain.trial import ALL, SIDES, Guess, eps_words, label, largest, other, own, tell

NUDGE = 8.0  # eps by which the other side's number may be off before it is rounded
TOUCHED = 0.5  # share of the elements that rounding of operands must reach


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
    for here in stages(case, "c", "h"):
        usual = usual_cell(here)
        for side in SIDES:
            base, theirs = usual.value(side, ALL), usual.value(other(side), ALL)
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
        if to.toward_zero or not np.array_equal(rounded(mine, to), mine, equal_nan=True):
            continue
        # A number near the middle of two may be rounded either way, as its last bits are.
        nudge = NUDGE * case.eps * (np.abs(full) + largest(full))
        low = rounded((full - nudge).astype(full.dtype), to)
        high = rounded((full + nudge).astype(full.dtype), to)
        left = case.settled(np.clip(mine, low, high), mine)
        if left is not None:
            return to, left
    return None


def _held_words(case: Case, side: Side, words: str, to: Format, left: float) -> Cause:
    more = {"float32": " (computed in float32)", "float16": " (or tf32: as many bits)"}
    words = f"{case.tensor}: {label(case, side)} is {words} {to.name}{more.get(to.name, '')}"
    return Cause("reduced-precision", f"{words} {eps_words(left)}", left, "certain", to.name)


def _multiplied(case: Case) -> Cause | None:
    """The products of the stage with operands, and perhaps results, rounded to a format."""
    made = {side: stage(case, side) for side in SIDES}
    if made["a"] is None or made["b"] is None:
        return None
    for to in _formats(case):
        guesses = [
            _product_guess(made, "multiplies in full precision", lambda s, rows: s.value(rows))
        ]
        for words, way in _ways(to):
            guesses.append(_product_guess(made, words, way))
        found = tell(case, "reduced-precision", guesses, format=to.name)
        if found:
            return found
    return _alike(case, made)


Way = Callable[[Stage, slice], Array]


def _product_guess(made: dict[Side, Stage | None], words: str, way: Way) -> Guess:
    def value(side: Side, rows: slice) -> Array | None:
        of = made[side]
        return None if of is None else way(of, rows)

    return Guess(words, value)


def _ways(to: Format) -> Iterator[tuple[str, Way]]:
    """Where a format may be: operands of all products or of one, their results, the sum."""
    name = to.name + (" (cut off, not rounded)" if to.toward_zero else "")

    def narrow(x: Array) -> Array:
        return rounded(x, to)

    def one(k: int) -> Way:
        def value(of: Stage, rows: slice) -> Array:
            terms = [product(t, rows, narrow if j == k else None) for j, t in enumerate(of.terms)]
            return of.total(terms, rows)

        return value

    def results(of: Stage, rows: slice) -> Array:
        return of.total([narrow(product(t, rows, narrow)) for t in of.terms], rows)

    def total(of: Stage, rows: slice) -> Array:
        return narrow(of.value(rows, narrow))

    def half(left: bool) -> Way:
        def value(of: Stage, rows: slice) -> Array:
            terms = [
                t._replace(left=narrow(t.left)) if left else t._replace(right=narrow(t.right))
                for t in of.terms
            ]
            return of._replace(terms=tuple(terms)).value(rows)

        return value

    yield f"rounds the operands of its products to {name}", lambda of, rows: of.value(rows, narrow)
    yield f"rounds the operands of the input product to {name}", one(0)
    yield f"rounds the operands of the recurrent product to {name}", one(1)
    if to.name != "tf32":  # whose results are float32
        yield f"rounds operands and results of its products to {name}", results
        yield f"rounds operands and the sum to {name}", total
    yield f"rounds the left operands (activations) to {name}", half(True)
    yield f"rounds the right operands (weights) to {name}", half(False)


def _alike(case: Case, made: dict[Side, Stage | None]) -> Cause | None:
    """A difference of the size and likeness of a format's rounding of operands, not its numbers.

    The side that fits the full products is right; the other differs from them by noise that
    reaches nearly every element, does not go along with the value, and has, within a factor of
    two, the relative L2 size that rounding the operands to the format gives.
    """
    for side in SIDES:
        good, of = made[other(side)], made[side]
        if good is None or of is None or case.b.size < 32:
            return None
        if case.settled(good.value(), own(case, other(side))) is None:
            continue
        exact = of.value()
        noise = np.asarray(own(case, side), np.float64) - exact
        size = float(np.linalg.norm(exact))
        reached = float((np.abs(noise) > 4 * case.eps * np.abs(exact)).mean())
        along = abs(float(np.vdot(noise, exact)))
        if not size or reached < TOUCHED or along > 0.3 * float(np.linalg.norm(noise)) * size:
            continue
        for to in _formats(case):
            if to.name == "float16" or to.toward_zero:
                continue

            def narrow(x: Array, to: Format = to) -> Array:
                return rounded(x, to)

            expected = float(np.linalg.norm(of.value(change=narrow) - exact))
            ratio = float(np.linalg.norm(noise)) / expected if expected else 0.0
            if 0.5 <= ratio <= 2:
                words = (
                    f"{case.tensor}: {label(case, side)} differs from the full product by noise "
                    f"{float(np.linalg.norm(noise)) / size:.2g} of its size; rounding the operands "
                    f"to {to.name} gives {expected / size:.2g}: looks like products in {to.name}"
                )
                return Cause("reduced-precision", words, case.gap(), "likely", to.name)
    return None
