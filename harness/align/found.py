"""What a search has found, and what it learns from that: how tensors of a kind lie."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from harness.align.units import Array, Unit
from harness.models.habits import kind, parent
from harness.trace.alignment import Sure
from harness.trace.chain import Chain, MisfitError, Move

PROOF = 40.0  # bits: what is found by numbers that say less is not certain
DECLARED = 1000  # siblings that what both sides say of their stages counts as
SAMPLED = 4096
UNANIMOUS = 0.75  # of the siblings


class Found(NamedTuple):
    """Some units of a that are some of b after a chain; `layout_known` that no other chain fits."""

    a: tuple[Unit, ...]
    b: tuple[Unit, ...]
    chain: Chain
    sure: Sure
    by: tuple[str, ...]
    note: str = ""
    layout_known: bool = True


def bits(y: Array, tol: float) -> float:
    """What an array says, in bits: equal ones by chance are that rare.

    Each different number says as much as its tolerance leaves; short numbers such as 0, 1 and 0.5,
    which programs like, say nothing but by where they stand.
    """
    flat = np.asarray(y).reshape(-1)
    flat = flat[:: max(1, flat.size // SAMPLED)]
    flat = flat[np.isfinite(flat)].astype(np.float64)
    scale = float(np.abs(flat).max(initial=0.0))
    if not scale:
        return 0.0
    grid = max(tol, 1e-7) * scale
    values, counts = np.unique(np.round(flat / grid), return_counts=True)
    fractions, _ = np.frexp(values * grid)
    short = fractions * 256 == np.round(fractions * 256)
    shares = counts / counts.sum()
    places = float(-(counts * np.log2(shares)).sum())
    return max(float((~short).sum() * -np.log2(max(tol, 1e-7))), places)


class Rules:
    """How tensors of each kind lie, from those that are known: the siblings of what is not."""

    def __init__(self) -> None:
        """Nothing is known."""
        self._chains: dict[tuple[object, ...], Counter[Chain]] = defaultdict(Counter)
        self._forced: set[tuple[object, ...]] = set()
        self.kinds: Counter[tuple[str, str]] = Counter()
        self.parents: Counter[tuple[str, str]] = Counter()
        self.parents_a: Counter[str] = Counter()
        self.parents_b: Counter[str] = Counter()

    def learn(self, found: Found) -> None:
        """Keep what a match says."""
        for x in found.a:
            for y in found.b:
                self.kinds[kind(x.name), kind(y.name)] += 1
                for p, q in zip(_paths(x), _paths(y), strict=False):
                    self.parents[p, q] += 1
                    self.parents_a[p] += 1
                    self.parents_b[q] += 1
        if found.layout_known and len(found.a) == len(found.b) == 1:
            for key in _keys(found.a[0], found.b[0]):
                self._chains[key][found.chain] += 1
                if not could_lie_otherwise(found):
                    self._forced.add((*key, found.chain))

    def chains(self, x: Unit, y: Unit, own: Chain | None = None) -> list[tuple[Chain, int]]:
        """How siblings of a pair lie that fit its shapes, and how many do; the nearest first.

        `own` is the pair's own chain, where it was learned from too.
        """
        made: dict[Chain, int] = {}
        declared = as_declared(x, y)
        if declared is not None:
            made[declared] = DECLARED
        for key in _keys(x, y):
            seen = self._chains[key] - Counter([own] if own is not None else [])
            fitting = {c: n for c, n in seen.items() if fits(c, [x], [y])}
            total = sum(fitting.values())
            for chain, count in sorted(fitting.items(), key=lambda pair: -pair[1]):
                if count >= UNANIMOUS * total:
                    made.setdefault(chain, count)
        return list(made.items())

    def forced(self, x: Unit, y: Unit, chain: Chain) -> bool:
        """Whether a sibling of other lengths lies so, which could not lie otherwise."""
        return any((*key, chain) in self._forced for key in _keys(x, y))

    def all_chains(self, x: Unit, y: Unit) -> Iterator[Chain]:
        """Every chain that was seen and fits these shapes."""
        for chain in self._chains[_keys(x, y)[-1]]:
            if fits(chain, [x], [y]):
                yield chain


def as_declared(x: Unit, y: Unit) -> Chain | None:
    """How a pair of weights lies by how either side's stages read them; None: not known."""
    if x.read_as is None or y.read_as is None or len(x.shape) != len(y.shape):
        return None
    order = tuple(x.read_as[y.read_as.index(k)] for k in range(len(x.shape)))
    chain = Chain((Move("axes", order),) if order != tuple(range(len(order))) else ())
    return chain if fits(chain, [x], [y]) else None


def could_lie_otherwise(found: Found) -> bool:
    """Whether the shapes allow another order of axes: a square matrix."""
    return any(len(set(u.shape)) < len(u.shape) for u in (*found.a, *found.b))


def _keys(x: Unit, y: Unit) -> tuple[tuple[object, ...], ...]:
    """What siblings have in common, the nearest first."""
    axes = (x.section, len(x.shape), len(y.shape))
    return (
        (*axes, kind(x.name), kind(y.name), x.op),
        (*axes, kind(x.name), kind(y.name)),
        axes,
    )


def _paths(x: Unit) -> list[str]:
    """A unit's layer and what that is in; a layer's own name, where it is one."""
    path = x.name if x.section == "points" else parent(x.name)
    return [path, parent(path)] if path else []


def fits(chain: Chain, x: Iterable[Unit], y: Iterable[Unit]) -> bool:
    """Whether a chain gives the shapes of some units those of others."""
    try:
        return chain.shapes([u.shape for u in x]) == [u.shape for u in y]
    except MisfitError:
        return False
