"""Pairs that numbers prove: at the first step both sides hold the same, whatever it is called."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from harness.align.found import PROOF, Found, Rules, bits
from harness.align.layouts import agreement, axis_chains, layouts
from harness.align.units import Array, Facet, Unit, informs, tolerance
from harness.trace.alignment import Sure
from harness.trace.chain import Chain

DEEP = 1 << 23  # elements up to which any layout is looked for
ENOUGH = 0.98  # of the elements: a layout that fits so many is the one
MOST_TRIED = 6  # partners of one unit whose elements are compared


class Fit(NamedTuple):
    """A pair whose numbers agree: at these facets, under these chains."""

    x: Unit
    y: Unit
    chains: tuple[Chain, ...]
    facets: tuple[Facet, ...]
    bits: float
    against: bool = False  # what they were given before the first step is not the same

    @property
    def rank(self) -> tuple[int, bool]:
        """What makes one partner better than another."""
        return len(self.facets), self.x.name == self.y.name


def by_values(a: Sequence[Unit], b: Sequence[Unit], rules: Rules) -> tuple[list[Found], list[Fit]]:
    """The pairs that numbers prove, and the fits of units that have several such partners."""
    fits = [fit for x, y, facets in candidates(a, b) if (fit := fit_of(x, y, facets, rules))]
    best_a, best_b = _best(fits, "x"), _best(fits, "y")
    proven, tied = [], []
    rivals = Counter((fit.x, len(fit.facets)) for fit in fits)
    rivals.update((fit.y, len(fit.facets)) for fit in fits)
    for fit in fits:
        alone = best_a[fit.x] == [fit] and best_b[fit.y] == [fit]
        if alone and fit.bits >= PROOF:
            found = found_of(fit, rules)
            if max(rivals[fit.x, len(fit.facets)], rivals[fit.y, len(fit.facets)]) > 1:
                found = found._replace(sure="likely")  # names alone told it from another
            proven.append(found)
        elif fit in best_a[fit.x] or fit in best_b[fit.y]:
            tied.append(fit)
    done = {unit for found in proven for unit in (*found.a, *found.b)}
    return proven, [fit for fit in tied if fit.x not in done and fit.y not in done]


def _best(fits: Sequence[Fit], side: str) -> dict[Unit, list[Fit]]:
    """The fits of each unit that no other is better than."""
    by_unit: dict[Unit, list[Fit]] = defaultdict(list)
    for fit in fits:
        by_unit[getattr(fit, side)].append(fit)
    return {
        unit: [fit for fit in own if fit.rank == max(other.rank for other in own)]
        for unit, own in by_unit.items()
    }


def found_of(fit: Fit, rules: Rules) -> Found:
    """A fit as a match; where several layouts fit the numbers, its siblings' or the first."""
    by = ["values"]
    if fit.x.name == fit.y.name:
        by.insert(0, "name")
    chain, known = fit.chains[0], len(fit.chains) == 1
    if not known:
        usual = next((c for c, _ in rules.chains(fit.x, fit.y) if c in fit.chains), None)
        if usual is not None:
            chain = usual
            by.append("siblings")
    sure: Sure = "certain" if known and not fit.against else "likely"
    return Found((fit.x,), (fit.y,), chain, sure, tuple(by), "", known)


def candidates(a: Sequence[Unit], b: Sequence[Unit]) -> Iterable[tuple[Unit, Unit, list[Facet]]]:
    """Pairs of one size whose statistics agree at some facet, with those facets."""
    agreed: dict[tuple[Unit, Unit], list[Facet]] = defaultdict(list)
    facets = {facet: None for unit in a for facet in unit.facets()}
    for facet in facets:
        sized: dict[int, tuple[list[Unit], list[Unit]]] = defaultdict(lambda: ([], []))
        for k, units in enumerate((a, b)):
            for unit in units:
                if informs(unit.entry(facet)):
                    sized[unit.size][k].append(unit)
        for xs, ys in sized.values():
            for i, j in zip(*np.nonzero(_agreeing(xs, ys, facet)), strict=True):
                agreed[xs[i], ys[j]].append(facet)
    by_unit: dict[Unit, list[tuple[Unit, list[Facet]]]] = defaultdict(list)
    for (x, y), found in agreed.items():
        by_unit[x].append((y, found))
    for x, partners in by_unit.items():
        partners.sort(key=lambda pair: (-len(pair[1]), pair[0].name != x.name))
        for y, found in partners[:MOST_TRIED]:
            yield x, y, found


def _agreeing(xs: Sequence[Unit], ys: Sequence[Unit], facet: Facet) -> Array:
    """Which pairs of units of one size have the same norm, extremes and mean there."""
    if not xs or not ys:
        return np.zeros((len(xs), len(ys)), bool)
    first, second = xs[0].entry(facet), ys[0].entry(facet)
    assert first is not None
    assert second is not None
    tol = tolerance(first, second, facet[1])
    x, y = (np.array([_statistics(u, facet) for u in units]) for units in (xs, ys))
    with np.errstate(all="ignore"):
        scale = np.maximum(np.abs(x[:, None, :2]).max(-1), np.abs(y[None, :, :2]).max(-1))
        norms = np.maximum(x[:, None, 2], y[None, :, 2])
        close = np.all(np.abs(x[:, None, :2] - y[None, :, :2]) <= tol * scale[..., None], axis=-1)
        close &= np.abs(x[:, None, 2] - y[None, :, 2]) <= tol * norms
        close &= np.abs(x[:, None, 3] - y[None, :, 3]) <= tol * scale
    hashes = [[u.entries[facet][1].hash for u in units] for units in (xs, ys)]
    same = np.array([[h == k for k in hashes[1]] for h in hashes[0]], bool)
    return np.asarray(close | same)


def _statistics(unit: Unit, facet: Facet) -> tuple[float, float, float, float]:
    entry = unit.entries[facet][1]
    known = (entry.min, entry.max, entry.l2, entry.mean)
    low, high, norm, mean = (np.nan if v is None else float(v) for v in known)
    return low, high, norm, mean


def fit_of(x: Unit, y: Unit, facets: Sequence[Facet], rules: Rules) -> Fit | None:
    """How a pair fits by its elements; None where no layout makes them equal."""
    forwards = [f for f in x.facets() if f[1] == "forward/" and _speaks_against(x, y, f)]
    if forwards and not any(f[1] == "forward/" for f in facets):
        return None  # what is added to a stream has the stream's gradient, and is another tensor
    chains: list[Chain] | None = None
    held: list[Facet] = []
    told = 0.0
    against = False
    for facet in x.facets():
        if facet not in facets:
            against |= facet[1].startswith("inputs/") and _speaks_against(x, y, facet)
            continue
        if not (x.holds(facet) and y.holds(facet)):
            continue
        left, right = x.read(facet), y.read(facet)
        tol = tolerance(x.entries[facet][1], y.entries[facet][1], facet[1])
        if chains is None:
            known = rules.all_chains(x, y)
            fitting = layouts(left, right, tol, known, deep=right.size <= DEEP)
            if not fitting or fitting[0][0] < ENOUGH:
                continue
            chains = [chain for _, chain in fitting]
        else:
            kept = [c for c in chains if agreement(c, [left], [right], tol) >= ENOUGH]
            if not kept:
                continue
            chains = kept
        held.append(facet)
        told = max(told, bits(right, tol))
    if chains is None:
        return _by_statistics(x, y, facets, rules)
    return Fit(x, y, tuple(chains), tuple(held), told, against)


def _by_statistics(x: Unit, y: Unit, facets: Sequence[Facet], rules: Rules) -> Fit | None:
    """A pair with equal statistics of which no elements were kept: a fit that proves nothing."""
    if any(x.holds(facet) and y.holds(facet) for facet in facets):
        return None
    chains = [chain for chain, _ in rules.chains(x, y)] or axis_chains(x.shape, y.shape)
    return Fit(x, y, tuple(chains), tuple(facets), 0.0) if chains else None


def _speaks_against(x: Unit, y: Unit, facet: Facet) -> bool:
    """Whether both were given numbers there, which are not the same ones."""
    both = x.entry(facet), y.entry(facet)
    return all(map(informs, both)) and both[0] is not None and both[0].min is not None
