"""How one array lies in another: the chain that turns the one into the other, found from values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np

from harness.align.units import Array
from harness.trace.chain import Chain, MisfitError, Move

MOST_AXES = 5  # whose orders are all tried
SAMPLE = 1 << 12  # elements by which a chain is judged
FIBRES = 12  # lines of elements along each axis, by which an unknown layout is found
PEEK = 48  # elements by which a wrong order of axes is known
GATES = 8  # blocks whose order is written as a list also where digits would say it too
LEAST = 0.5  # of the elements: a layout that fits fewer is none


def agreement(chain: Chain, given: Sequence[Array], wanted: Sequence[Array], tol: float) -> float:
    """The share of elements that a chain brings to where they are wanted; 0: it does not fit."""
    try:
        if chain.shapes([x.shape for x in given]) != [y.shape for y in wanted]:
            return 0.0
    except MisfitError:
        return 0.0
    made = chain.arrays(given)
    shares = [_share(x, y, tol) for x, y in zip(made, wanted, strict=True)]
    return min(shares)


def _share(x: Array, y: Array, tol: float) -> float:
    if not y.size:
        return 0.0
    return float(np.mean(near(*sampled(x, y), tol)))


def sampled(x: Array, y: Array) -> tuple[Array, Array]:
    """Two arrays of one shape; of large ones the same elements of both, drawn once."""
    if y.size <= SAMPLE:
        return x, y
    at = np.random.default_rng(y.size).integers(0, y.size, SAMPLE)
    places = np.unravel_index(at, y.shape)
    return x[places], y[places]


def near(x: Array, y: Array, tol: float) -> Array:
    """Which elements are the same within the tolerance, a share of the largest."""
    finite = np.abs(y[np.isfinite(y)])
    room = tol * float(finite.max(initial=0.0))
    with np.errstate(all="ignore"):
        return np.asarray((np.abs(x - y) <= room) | (x == y) | (np.isnan(x) & np.isnan(y)))


def layouts(
    x: Array, y: Array, tol: float, known: Iterable[Chain] = (), deep: bool = True
) -> list[tuple[float, Chain]]:
    """The chains that turn x into y, and the share of elements that they fit, the best first.

    Tried are `known` ones, every order of the axes, and, where `deep`, any order of digits of the
    indices: reshapes, blocks, reversals.
    """
    if x.size != y.size or not x.size:
        return []
    found: dict[Chain, float] = {}
    for chain in [*known, *_axis_orders(x, y, tol)]:
        if chain not in found:
            share = agreement(chain, [x], [y], tol)
            if share >= LEAST:
                found[chain] = share
    if deep and max(found.values(), default=0.0) < 1.0 and x.size > 1:
        chain_found = _by_digits(x, y, tol)
        if chain_found is not None and chain_found not in found:
            share = agreement(chain_found, [x], [y], tol)
            if share >= LEAST and share > max(found.values(), default=0.0):
                found[chain_found] = share
    best = max(found.values(), default=0.0)
    ranked = sorted(found.items(), key=lambda pair: (-pair[1], len(pair[0].moves)))
    return [(share, chain) for chain, share in ranked if share >= best - 1e-9]


def axis_chains(x: tuple[int, ...], y: tuple[int, ...]) -> list[Chain]:
    """Every order of axes that gives one shape the other; as it is, first."""
    if len(x) != len(y) or len(x) > MOST_AXES or sorted(x) != sorted(y):
        return []
    return [
        Chain((Move("axes", order),) if order != tuple(range(len(x))) else ())
        for order in permutations(range(len(x)))
        if tuple(x[k] for k in order) == y
    ]


def _axis_orders(x: Array, y: Array, tol: float) -> list[Chain]:
    """The orders of axes that a few elements do not speak against."""
    chains = axis_chains(x.shape, y.shape)
    if len(chains) < 2 or y.size <= PEEK:
        return chains
    places = np.unravel_index(np.random.default_rng(1).integers(0, y.size, PEEK), y.shape)
    wanted, kept = y[places], []
    for chain in chains:
        order = chain.moves[0].numbers if chain.moves else tuple(range(x.ndim))
        inverse = np.argsort(order)
        given = x[tuple(places[k] for k in inverse)]
        room = tol * float(np.abs(y[np.isfinite(y)]).max(initial=0.0)) if y.size <= SAMPLE else None
        room = tol * float(np.abs(wanted).max(initial=0.0)) if room is None else room
        if np.mean((np.abs(given - wanted) <= room) | (given == wanted)) >= LEAST / 2:
            kept.append(chain)
    return kept


class _Digit(NamedTuple):
    """A digit of an axis of y: its values are `stride` apart in x, `order` says which is which.

    Of `blocks` blocks, the order is theirs; else that of single places.
    """

    length: int
    stride: int
    order: tuple[int, ...]
    blocks: bool = False

    @property
    def plain(self) -> bool:
        return self.order == tuple(range(len(self.order)))


def _by_digits(x: Array, y: Array, tol: float) -> Chain | None:
    """The chain by which y's indices are digits of x's, in another order, if there is one."""
    flat = np.asarray(x, np.float64).reshape(-1)
    order = np.argsort(flat, kind="stable")
    ranked = flat[order]
    room = tol * float(np.abs(flat[np.isfinite(flat)]).max(initial=0.0))
    draw = np.random.default_rng(0)
    bases = np.stack([draw.integers(0, n, FIBRES) for n in y.shape]) if y.ndim else None
    if bases is None:
        return None
    axes: list[list[_Digit]] = []
    for axis, length in enumerate(y.shape):
        if length == 1:
            axes.append([])
            continue
        table = _table(y, bases, axis, ranked, order, room)
        digits = None if table is None else _digits(table)
        if digits is None:
            return None
        axes.append(digits)
    return _chain(x.shape, y.shape, [_merged(digits) for digits in axes])


def _table(
    y: Array, bases: Array, axis: int, ranked: Array, order: Array, room: float
) -> Array | None:
    """How much further in x each place along an axis of y is than the first; NaN: not known."""
    length = y.shape[axis]
    places = [np.repeat(b[:, None], length, axis=1) for b in bases]
    places[axis] = np.broadcast_to(np.arange(length), (bases.shape[1], length))
    found = _where(np.asarray(y[tuple(places)], np.float64), ranked, order, room)
    known = np.isfinite(found)
    if not known.any():
        return None
    # Of lines whose first place is not known, those places count that another line knows too.
    table = np.full(length, np.nan)
    table[0] = 0.0
    for _ in range(2):
        shifts = _typical(found - table, axis=1)
        table = _typical(found - shifts[:, None], axis=0)
        if np.isnan(table[0]):
            return None
        table = table - table[0]
    return np.asarray(table)


def _typical(values: Array, axis: int) -> Array:
    """The median of the numbers that are known: one of them."""
    ranked = np.sort(values, axis=axis)
    count = np.isfinite(values).sum(axis=axis, keepdims=True)
    middle = np.maximum(count - 1, 0) // 2
    return np.squeeze(np.take_along_axis(ranked, middle, axis=axis), axis=axis)


def _where(values: Array, ranked: Array, order: Array, room: float) -> Array:
    """The flat place in x of each value, NaN where none or several are as near."""
    size = len(ranked)
    at = np.searchsorted(ranked, values)
    near_by = np.clip(at[..., None] + np.arange(-2, 2), 0, size - 1)
    gaps = np.abs(ranked[near_by] - values[..., None])
    gaps = np.where(np.diff(near_by, axis=-1, prepend=-1) == 0, np.inf, gaps)
    best = np.argmin(gaps, axis=-1)
    two = np.sort(gaps, axis=-1)[..., :2]
    fine = (two[..., 0] <= room) & (two[..., 1] > 4 * two[..., 0]) & (two[..., 1] > 0)
    found = order[np.take_along_axis(near_by, best[..., None], axis=-1)[..., 0]].astype(np.float64)
    return np.where(fine, found, np.nan)


def _digits(table: Array) -> list[_Digit] | None:
    """A table of places as digits: equal blocks, evenly apart, within blocks of blocks."""
    length = len(table)
    for count in _divisors(length):
        inner = length // count
        rows = table.reshape(count, inner)
        stride = _stride(rows)
        if stride is None:
            continue
        starts = _typical(rows - stride * np.arange(inner), axis=1)
        if np.isnan(starts).any():
            continue
        exact = rows - stride * np.arange(inner) - starts[:, None]
        if np.nanmax(np.abs(exact)) > 0:
            continue
        last = [_evenly(stride, inner)] if inner > 1 else []
        if count == 1:
            return last
        outer = _listed(starts) if count in (length, *range(2, GATES + 1)) else None
        if outer is None and count < length:
            outer = _digits(starts - starts[0])
        return None if outer is None else [*outer, *last]
    return None


def _listed(starts: Array) -> list[_Digit] | None:
    """One digit whose values stand in any order; None where they are not evenly apart."""
    gaps = np.diff(np.sort(starts))
    if len(set(gaps.tolist())) != 1 or gaps[0] == 0:
        return None
    return [
        _Digit(len(starts), int(gaps[0]), tuple(int(k) for k in np.argsort(np.argsort(starts))))
    ]


def _evenly(stride: float, count: int) -> _Digit:
    order = tuple(range(count)) if stride > 0 else tuple(range(count))[::-1]
    return _Digit(count, abs(int(stride)), order)


def _stride(rows: Array) -> float | None:
    """How far apart neighbours in a row are, in all rows alike; None where they are not."""
    inner = rows.shape[1]
    if inner == 1:
        return 1.0
    gaps = np.diff(rows, axis=1)
    known = gaps[np.isfinite(gaps)]
    if not known.size or known[0] == 0 or np.any(known != known[0]):
        return None
    return float(known[0])


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _merged(digits: list[_Digit]) -> list[_Digit]:
    """Blocks in another order, and what is in them, as one digit where they are so in x as well."""
    made: list[_Digit] = []
    for digit in digits:
        last = made[-1] if made else None
        whole = last is not None and last.stride == digit.length * digit.stride
        if last is not None and whole and digit.plain and not last.blocks:
            order = last.order if not last.plain else tuple(range(last.length))
            blocks = not last.plain
            count = last.length * digit.length
            made[-1] = _Digit(count, digit.stride, order if blocks else tuple(range(count)), blocks)
        else:
            made.append(digit)
    return made


def _chain(
    x: tuple[int, ...], y: tuple[int, ...], axes: Sequence[Sequence[_Digit]]
) -> Chain | None:
    """The chain that digits of the axes of y make; None where they are no digits of x's."""
    digits = [digit for axis in axes for digit in axis]
    by_stride = sorted(range(len(digits)), key=lambda k: -digits[k].stride)
    rest = math.prod(digit.length for digit in digits)
    if rest != math.prod(x):
        return None
    for k in by_stride:
        rest //= digits[k].length
        if digits[k].stride != rest:
            return None
    moves: list[Move] = []
    apart = tuple(digits[k].length for k in by_stride)
    if apart != x:
        moves.append(Move("shape", x, apart))
    order = tuple(by_stride.index(k) for k in range(len(digits)))
    if order != tuple(range(len(digits))):
        moves.append(Move("axes", order))
    for k, digit in enumerate(digits):
        if digit.plain:
            continue
        if digit.blocks:
            moves.append(Move("blocks", (k, *digit.order)))
        elif digit.order == tuple(range(digit.length))[::-1]:
            moves.append(Move("reverse", (k,)))
        else:
            moves.append(Move("order", (k, *digit.order)))
    counts = tuple(digit.length for digit in digits)
    if counts != y:
        moves.append(Move("shape", counts, y))
    return Chain(tuple(moves))


def without_batch(chain: Chain) -> Chain:
    """The same for any number of rows: the first length of every shape may be another."""
    return Chain(
        tuple(
            Move("shape", (-1, *move.numbers[1:]), (-1, *move.to[1:]))
            if move.kind == "shape" and move.numbers and move.to
            else move
            for move in chain.moves
        )
    )
