"""Tensors that one side has as one and the other as several: fused projections, gates, sums."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from harness.align.found import PROOF, Found, Rules, bits
from harness.align.layouts import agreement, layouts
from harness.align.units import Array, Facet, Unit, informs, tolerance
from harness.align.values import ENOUGH, candidates, fit_of
from harness.models.habits import parent
from harness.trace.alignment import Sure
from harness.trace.chain import Chain, MisfitError, Move, parse_chain

ASKED = 512  # elements of a whole that are looked up in the parts
LINES = 32  # lines of elements along an axis, by which it is known where a part ends
MOST_PARTS = 64
NOISE = 1e-4  # of the largest number: a part that is smaller is zero but for rounding
APART = 4  # places in the order of execution that two biases of a sum may be apart
Side = str


class Parts(NamedTuple):
    """Parts of a whole in order, and the chain from them to it."""

    parts: tuple[Unit, ...]
    chain: Chain
    share: float
    told: float


def fused(others: Sequence[Unit], wholes: Sequence[Unit]) -> Iterator[Found]:
    """Each of `wholes` (side b) that is several of the others (side a), by what they hold."""
    left = dict.fromkeys(others)
    for whole in sorted(wholes, key=lambda unit: -unit.size):
        for facet in whole.facets():
            if not informs(whole.entry(facet)) or not whole.holds(facet):
                continue
            smaller = [
                unit
                for unit in left
                if 1 < unit.size < whole.size and informs(unit.entry(facet)) and unit.holds(facet)
            ]
            made = _parts(whole, smaller, facet) if len(smaller) > 1 else None
            if made is not None:
                sure: Sure = "certain" if made.share >= ENOUGH and made.told >= PROOF else "likely"
                yield Found(made.parts, (whole,), made.chain, sure, ("values",))
                for part in made.parts:
                    del left[part]
                break


def _parts(whole: Unit, others: Sequence[Unit], facet: Facet) -> Parts | None:
    """The others that a whole is made of, if they are all there."""
    y = whole.read(facet)
    tol = tolerance(whole.entries[facet][1], others[0].entries[facet][1], facet[1])
    pool = _Pool([unit.read(facet) for unit in others], tol * _largest(y))
    at = np.random.default_rng(2).integers(0, y.size, ASKED)
    owners = pool.owners(np.asarray(y.reshape(-1)[at], np.float64))
    votes = np.bincount(owners[owners >= 0], minlength=len(others))
    expected = ASKED * np.array([unit.size for unit in others]) / y.size
    chosen = [k for k in range(len(others)) if votes[k] >= max(2.0, 0.2 * expected[k])]
    if not 2 <= len(chosen) <= MOST_PARTS or sum(others[k].size for k in chosen) != y.size:
        return None
    pool = _Pool([others[k].read(facet) for k in chosen], tol * _largest(y))
    units = [others[k] for k in chosen]
    for axis in range(y.ndim):
        runs = _runs(y, axis, pool)
        if runs is None:
            continue
        made = _joined(y, axis, runs, units, facet, tol)
        if made is not None:
            return made
    return None


class _Pool:
    """The numbers of several arrays, to be looked up: which array holds a number?"""

    def __init__(self, arrays: Sequence[Array], room: float) -> None:
        flat = np.concatenate([np.asarray(x, np.float64).reshape(-1) for x in arrays])
        owner = np.repeat(np.arange(len(arrays)), [x.size for x in arrays])
        order = np.argsort(flat, kind="stable")
        self._values, self._owner, self._room = flat[order], owner[order], room

    def owners(self, wanted: Array) -> Array:
        """The array that holds each number; -1 where none does, or more than one as nearly."""
        at = np.searchsorted(self._values, wanted)
        near_by = np.clip(at[..., None] + np.arange(-2, 2), 0, len(self._values) - 1)
        gaps = np.abs(self._values[near_by] - wanted[..., None])
        owners = self._owner[near_by]
        best = np.argmin(gaps, axis=-1)[..., None]
        first = np.take_along_axis(owners, best, axis=-1)
        nearest = np.take_along_axis(gaps, best, axis=-1)[..., 0]
        rival = np.where(owners == first, np.inf, gaps).min(axis=-1)
        fine = (nearest <= self._room) & (rival > 4 * nearest) & (rival > 0)
        return np.asarray(np.where(fine, first[..., 0], -1))


def _largest(y: Array) -> float:
    return float(np.abs(y[np.isfinite(y)]).max(initial=0.0))


def _runs(y: Array, axis: int, pool: _Pool) -> list[tuple[int, int]] | None:
    """The parts along an axis, each with how many places it has there; None: they are mixed."""
    length = y.shape[axis]
    draw = np.random.default_rng(3)
    places = [np.repeat(draw.integers(0, n, LINES)[:, None], length, axis=1) for n in y.shape]
    places[axis] = np.broadcast_to(np.arange(length), (LINES, length))
    owners = pool.owners(np.asarray(y[tuple(places)], np.float64))
    sequence: list[int] = []
    for column in owners.T:
        known = column[column >= 0]
        if not known.size:
            sequence.append(-1)
            continue
        counts = np.bincount(known)
        if counts.max() < 0.9 * known.size:
            return None
        sequence.append(int(counts.argmax()))
    for k, owner in enumerate(sequence):  # what is not known is as what stands before it
        if owner < 0 and k and sequence[k - 1] >= 0:
            sequence[k] = sequence[k - 1]
    runs = [(owner, len(list(group))) for owner, group in itertools.groupby(sequence)]
    return runs if len(runs) > 1 and all(owner >= 0 for owner, _ in runs) else None


def _joined(
    y: Array,
    axis: int,
    runs: Sequence[tuple[int, int]],
    units: Sequence[Unit],
    facet: Facet,
    tol: float,
) -> Parts | None:
    """The chain that joins parts along an axis, each of which may lie otherwise, all alike."""
    shape, once = y.shape, len({owner for owner, _ in runs})
    last: tuple[Move, ...] = ()
    if len(runs) != once:
        if len(runs) % once or runs != list(runs[:once]) * (len(runs) // once):
            return None
        turns = len(runs) // once
        inner = (*shape[:axis], turns, shape[axis] // turns, *shape[axis + 1 :])
        last, axis, y = (Move("shape", inner, shape),), axis + 1, y.reshape(inner)
    lengths = [length for _, length in runs[:once]]
    ends = np.cumsum([0, *lengths])
    pieces = [np.take(y, np.arange(i, j), axis=axis) for i, j in itertools.pairwise(ends.tolist())]
    parts = tuple(units[owner] for owner, _ in runs[:once])
    given = [part.read(facet) for part in parts]
    if any(x.size != piece.size for x, piece in zip(given, pieces, strict=True)):
        return None
    # What is zero but for rounding (the gradient of the keys' bias) has no layout of its own.
    floor = NOISE * _largest(y)
    pairs = [(x, p) for x, p in zip(given, pieces, strict=True) if _largest(p) > floor]
    if len(pairs) < 2:
        return None
    for _, chain in layouts(*pairs[0], tol, ()):
        shares = [agreement(chain, [x], [piece], tol) for x, piece in pairs]
        if min(shares) >= ENOUGH and all(map(partial(_fits, chain), given, pieces)):
            join = Move("join", (axis, *lengths))
            told = min(bits(piece, tol) for _, piece in pairs) if len(pairs) == once else 0.0
            return Parts(parts, Chain((*chain.moves, join, *last)), min(shares), told)
    return None


def _fits(chain: Chain, x: Array, y: Array) -> bool:
    try:
        return chain.shapes([x.shape]) == [y.shape]
    except MisfitError:
        return False


def sums(a: Sequence[Unit], b: Sequence[Unit], rules: Rules) -> Iterator[Found]:
    """Parameters of a with one gradient, which is that of one parameter of b: biases that sum."""
    left = set(b)
    for group, facet in _same_gradient(a):
        partners = [
            (y, fit)
            for x, y, facets in candidates(group[:1], b)
            if facet in facets and y in left and (fit := fit_of(x, y, [facet], rules))
        ]
        if len(partners) != 1:
            continue
        y, fit = partners[0]
        if any(y in others for others, _ in _same_gradient(b)):
            continue
        chain = Chain((Move("sum", (len(group),)), *fit.chains[0].moves))
        proven = _adds_up(group, y, chain)
        if not proven and _given_apart(group, b):
            continue  # a branch that one side has detached: its bias is one, and not a part
        by = ("values",) if proven else ("gradients",)
        sure: Sure = "likely"
        if proven and len(fit.chains) == 1 and fit.bits >= PROOF:
            sure = "certain"
        yield Found(tuple(group), (y,), chain, sure, by)
        left.discard(y)


def _given_apart(group: Sequence[Unit], b: Sequence[Unit]) -> bool:
    """Whether one of a group starts with the numbers that a parameter of b starts with."""
    found = (facet for _, _, facets in candidates(group, b) for facet in facets)
    return any(prefix.startswith("inputs/") for _, prefix in found)


def _same_gradient(units: Sequence[Unit]) -> list[tuple[list[Unit], Facet]]:
    """Groups of two or more parameters with one gradient, or, from one start, one next value."""
    made: dict[tuple[Facet, tuple[int, ...], str], list[Unit]] = defaultdict(list)
    for unit in units:
        if len(unit.shape) != 1:
            continue
        for facet in unit.facets():
            entry = unit.entry(facet)
            if entry is not None and informs(entry) and not facet[1].startswith("inputs/"):
                known = entry.l2 is not None and entry.min is not None  # not where all is NaN
                norm = f"{entry.l2:.4e} {entry.min:.4e}" if known else entry.hash
                made[facet, entry.shape, norm].append(unit)
                break
    return [(group, key[0]) for key, group in made.items() if 2 <= len(group) <= 3]


def _adds_up(group: Sequence[Unit], y: Unit, chain: Chain) -> bool:
    """Whether what the parts were given adds up to what the whole was given."""
    for facet in y.facets():
        if facet[1] != "inputs/params/" or not all(u.holds(facet) for u in (*group, y)):
            continue
        wanted = y.read(facet)
        tol = 8 * tolerance(group[0].entries[facet][1], y.entries[facet][1], facet[1])
        given = [u.read(facet) for u in group]
        return agreement(chain, given, [wanted], tol) >= ENOUGH
    return False


def sums_of_values(a: Sequence[Unit], b: Sequence[Unit]) -> Iterator[Found]:
    """Neighbours of a whose sum is one of b, by what they were given, where no gradient tells."""
    left = dict.fromkeys(b)
    used: set[Unit] = set()
    for x, z in itertools.combinations(a, 2):
        if x.shape != z.shape or len(x.shape) != 1 or {x, z} & used:
            continue
        if abs(a.index(x) - a.index(z)) > APART:
            continue
        for y in left:
            made = _sum_of(x, z, y)
            if made is not None:
                yield made
                used |= {x, z}
                del left[y]
                break


def _sum_of(x: Unit, z: Unit, y: Unit) -> Found | None:
    facet = next((f for f in y.facets() if f[1] == "inputs/params/"), None)
    if facet is None or y.size != x.size or not all(u.holds(facet) for u in (x, z, y)):
        return None
    wanted, total = y.read(facet), x.read(facet) + z.read(facet)
    tol = 8 * tolerance(x.entries[facet][1], y.entries[facet][1], facet[1])
    if not np.any(x.read(facet)) or not np.any(z.read(facet)) or bits(wanted, tol) < PROOF:
        return None
    room = tol * _largest(wanted)
    if not np.all(np.abs(np.sort(total.reshape(-1)) - np.sort(wanted.reshape(-1))) <= room):
        return None
    for share, chain in layouts(total, wanted, tol):
        if share >= ENOUGH:
            whole = Chain((Move("sum", (2,)), *chain.moves))
            return Found((x, z), (y,), whole, "certain", ("values",))
    return None


def biases_together(found: Sequence[Found], a: Sequence[Unit], b: Sequence[Unit]) -> list[Found]:
    """The matches, where a bias without partner belongs to one that has: they add up to the other.

    So a layer of PyTorch's keeps two where others have one. No numbers prove it before the start
    is the same: it is what shapes and names say.
    """
    made = list(found)
    for k, match in enumerate(found):
        alone = len(match.a) == len(match.b) == 1
        if not alone or "values" in match.by or match.chain.moves:
            continue
        (x,), (y,) = match.a, match.b
        one, other = _beside(x, a), _beside(y, b)
        if one is not None and other is None:
            made[k] = Found((x, one), (y,), parse_chain(("sum 2",)), "likely", ("name", "shape"))
        elif other is not None and one is None:
            made[k] = Found(
                (x,), (y, other), parse_chain(("unsum 2",)), "likely", ("name", "shape")
            )
    return made


def _beside(unit: Unit, left: Sequence[Unit]) -> Unit | None:
    """The one bias that is left of the same layer and size as another, if there is one."""
    if "bias" not in unit.name or len(unit.shape) != 1:
        return None
    beside = [
        u
        for u in left
        if parent(u.name) == parent(unit.name) and u.shape == unit.shape and "bias" in u.name
    ]
    # Layers above one another have parameters side by side: the number that ends the name tells.
    same = [u for u in beside if u.name[-1:] == unit.name[-1:]]
    return same[0] if len(same) == 1 else None
