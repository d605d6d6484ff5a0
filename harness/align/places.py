"""What no numbers prove: placed by the names, the order and the layouts of what is known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from harness.align.found import PROOF, Found, Rules, bits, could_lie_otherwise, fits
from harness.align.layouts import agreement, axis_chains, layouts, sampled
from harness.align.units import Array, Facet, Unit, informs, tolerance
from harness.align.values import Fit
from harness.models.habits import alike, kind, likeness, parent
from harness.trace.alignment import Sure
from harness.trace.chain import Chain, MisfitError
from harness.trace.roles import SINGLE

DEEP = 1 << 16  # elements up to which a pair that is not equal is searched for any layout
MOST_DEEP = 400  # such pairs
MOST_READ = 16  # partners of one unit whose numbers are compared, the likeliest first
MOSTLY = 0.8  # of the elements equal: the pair is proven, and differs elsewhere
LIKE = 0.9  # the cosine from which two tensors are taken for one that was changed
LEAST, LEAST_OF_LAYERS = 1.5, 3.0  # a score under which two units have too little in common
TIED, EQUAL, SIMILAR, NAMED = 9.0, 8.0, 6.0, 20.0


class Place(NamedTuple):
    """A pair, how much speaks for it, and how it would lie."""

    score: float
    x: Unit
    y: Unit
    chain: Chain
    by: tuple[str, ...]
    sure: Sure = "likely"


class Order:
    """Where the known pairs of a section stand on both sides."""

    def __init__(self, a: Sequence[Unit], b: Sequence[Unit], known: Iterable[Found]) -> None:
        """From all units of both sides, in order, and the pairs that are known."""
        self._a = {unit: k for k, unit in enumerate(a)}
        self._b = {unit: k for k, unit in enumerate(b)}
        pairs = sorted(
            (self._a[x], self._b[y])
            for found in known
            for x in found.a
            for y in found.b
            if x in self._a and y in self._b
        )
        self._pairs = pairs
        rising = [q <= s for (_, q), (_, s) in pairwise(pairs)]
        # How far the order of one side says anything of the other's.
        self.weight = max(0.0, 2 * float(np.mean(rising)) - 1) if rising else 1.0

    def fit(self, x: Unit, y: Unit) -> float:
        """How well a pair stands between its neighbours: 0 to 1."""
        at, there = self._a[x], self._b[y]
        before = max((pair for pair in self._pairs if pair[0] < at), default=(-1, -1))
        after = min(
            (pair for pair in self._pairs if pair[0] > at), default=(len(self._a), len(self._b))
        )
        if not before[1] <= there <= after[1]:
            return 0.0
        span_a, span_b = max(after[0] - before[0], 1), max(after[1] - before[1], 1)
        off = abs((at - before[0]) / span_a - (there - before[1]) / span_b)
        return 1.0 - off


def placed(
    a: Sequence[Unit],
    b: Sequence[Unit],
    tied: Sequence[Fit],
    order: Order,
    rules: Rules,
) -> Iterator[Found]:
    """Pairs of what is left, the surest first; no unit twice."""
    scored = [
        place._replace(score=place.score + NAMED)
        if place.x.name == place.y.name and place.x.whole_name in SINGLE
        else place
        for place in _scored(a, b, tied, order, rules)
    ]
    joined: set[tuple[str, str]] = set()  # layers of which a pair was taken
    while (found := _surest(scored)) is not None:
        place, rivals = found
        near_by = [other for other in rivals if other.score >= EQUAL]
        sure: Sure = "likely" if near_by else place.sure
        if place.x.name == place.y.name and place.x.whole_name in SINGLE:
            sure = "certain"  # names that mean one thing in every trace
        yield Found((place.x,), (place.y,), place.chain, sure, place.by, "", False)
        left = [o for o in scored if o.x is not place.x and o.y is not place.y]
        if _layers(place) not in joined:
            left = list(_beside(left, place, rules))
        joined.add(_layers(place))
        scored = left


def _surest(scored: Sequence[Place]) -> tuple[Place, list[Place]] | None:
    """The pair that most speaks for, of those that are told from every other, and the others."""
    of: dict[Unit, list[Place]] = defaultdict(list)
    for place in scored:
        of[place.x].append(place)
        of[place.y].append(place)
    for place in sorted(scored, key=lambda place: -place.score):
        least = LEAST_OF_LAYERS if place.x.section == "points" else LEAST
        rivals = [other for other in (*of[place.x], *of[place.y]) if other is not place]
        if not rivals and place.x.section == "params":
            return place, rivals  # the last weight of its size on either side, whatever its name
        level = any(other.score > place.score - 1e-9 for other in rivals)
        if place.score >= least and (place.score >= TIED or not level):
            return place, rivals
    return None


def _beside(places: Iterable[Place], taken: Place, rules: Rules) -> Iterator[Place]:
    """Pairs after one was taken: a layer's weights are those of one layer on the other side.

    Where nothing is known of the two layers beside that pair, which tells of the others in them.
    """
    x, y = _layers(taken)
    fresh = x and y and not rules.parents_a[x] and not rules.parents_b[y]
    for place in places:
        here = _layers(place)
        if not fresh or place.score >= EQUAL or (here[0] != x and here[1] != y):
            yield place
        elif here == (x, y):
            yield place._replace(score=place.score + 3.0, by=(*place.by, "layer"))
        else:
            yield place._replace(score=place.score - 1.0)


def _layers(place: Place) -> tuple[str, str]:
    """The layers of weights and buffers; "" of what is in none."""
    if place.x.section not in ("params", "buffers"):
        return "", ""
    return parent(place.x.name), parent(place.y.name)


def _scored(
    a: Sequence[Unit], b: Sequence[Unit], tied: Sequence[Fit], order: Order, rules: Rules
) -> Iterator[Place]:
    equal = {(fit.x, fit.y): fit for fit in tied}
    deep = MOST_DEEP
    by_size: dict[int, list[Unit]] = defaultdict(list)
    for y in b:
        by_size[y.size].append(y)
    for x in a:
        around = [(*_around(x, y, order, rules), y) for y in by_size[x.size]]
        around.sort(key=lambda found: ((x, found[2]) not in equal, -found[0]))
        for k, (more, by, y) in enumerate(around):
            fit = equal.get((x, y))
            made = _tied(fit, rules) if fit else None
            if made is None:
                searched = deep > 0 and x.size <= DEEP
                # The numbers of all pairs of a model that differs everywhere would take minutes.
                made = _resembling(x, y, rules, searched, k < MOST_READ)
                deep -= searched
            if made is not None:
                yield made._replace(score=made.score + more, by=(*by, *made.by))


def _tied(fit: Fit, rules: Rules) -> Place | None:
    """A pair that has equal numbers, as others have."""
    usual = next((c for c, _ in rules.chains(fit.x, fit.y) if c in fit.chains), fit.chains[0])
    score = TIED + len(fit.facets)
    return Place(score, fit.x, fit.y, usual, ("values",) if fit.bits else ("statistics",))


def _resembling(x: Unit, y: Unit, rules: Rules, deep: bool, read: bool) -> Place | None:
    """A pair whose numbers are not equal; None where no layout gives the other's shape."""
    usual = [chain for chain, _ in rules.chains(x, y)]
    chains = [*usual, *axis_chains(x.shape, y.shape)]
    best = Place(0.0, x, y, chains[0], ("shape",)) if chains else None
    if usual and best is not None:
        best = best._replace(score=1.0, by=("siblings",))
    for facet in x.facets() if read else ():
        if not (x.holds(facet) and y.holds(facet)):
            continue
        if facet[1] == "backward/":  # what is added to a stream has the stream's gradient too
            continue
        seen = _seen_at(x, y, facet, chains, deep)
        if seen is not None and (best is None or seen.score > best.score):
            best = seen if seen.chain not in usual else seen._replace(by=("siblings", *seen.by))
    return best


def _seen_at(x: Unit, y: Unit, facet: Facet, chains: Sequence[Chain], deep: bool) -> Place | None:
    """How like two tensors are at one facet, under the layout in which they are most so."""
    left, right = x.read(facet), y.read(facet)
    if left.size != right.size or not np.any(right):
        return None
    tol = tolerance(x.entries[facet][1], y.entries[facet][1], facet[1])
    told = bits(right, tol)
    fitting = layouts(left, right, tol, chains, deep)
    if fitting and told * fitting[0][0] >= PROOF:
        share, chain = fitting[0]
        # The gradient of a vector, or what it became, is that of each of several that add up.
        tells = len(y.shape) > 1 or facet[1] not in ("grads/", "params/", "update/clipped/")
        sure: Sure = "certain" if share >= MOSTLY and len(fitting) == 1 and tells else "likely"
        by = ("values",) if share >= MOSTLY else ("likeness",)
        return Place(EQUAL + share, x, y, chain, by, sure)
    found = [(cosine(chain, left, right), chain) for chain in dict.fromkeys(chains)]
    cos, chain = max(found, key=lambda pair: pair[0], default=(0.0, Chain()))
    if cos < LIKE or right.size < 4 or told < PROOF / 2:
        return None
    return Place(SIMILAR * cos, x, y, chain, ("likeness",))


def cosine(chain: Chain, x: Array, y: Array) -> float:
    """The cosine of two tensors, the first of which is laid out as the second; 0: it cannot be."""
    try:
        if chain.shapes([x.shape]) != [y.shape]:
            return 0.0
    except MisfitError:
        return 0.0
    (made,) = chain.arrays([x])
    left, right = (np.asarray(v, np.float64).reshape(-1) for v in sampled(made, y))
    with np.errstate(all="ignore"):
        # No BLAS, which starts a thread on every processor for numbers that fit the cache.
        norms = np.sqrt(np.square(left).sum() * np.square(right).sum())
        found = float((left * right).sum() / norms)
    return found if np.isfinite(found) else 0.0


def _around(x: Unit, y: Unit, order: Order, rules: Rules) -> tuple[float, tuple[str, ...]]:
    """What speaks for a pair beside its numbers: names, layers, place in the order, ops."""
    score, by = 0.0, []
    one, two = kind(x.name), kind(y.name)
    if x.name == y.name:
        score += 2.0
    known = rules.kinds[one, two]
    if known or alike(one, two):
        score += 1.5
        by.append("name")
    layers = [parent(u.name) if u.section != "points" else u.name for u in (x, y)]
    there = rules.parents[layers[0], layers[1]]
    if all(layers) and there:
        score += 3.0 * there / max(rules.parents_a[layers[0]], rules.parents_b[layers[1]])
        by.append("layer")
    elif all(layers) and (rules.parents_a[layers[0]] or rules.parents_b[layers[1]]):
        score -= 1.0
    score += likeness(x.name, y.name)
    standing = order.fit(x, y) * order.weight
    score += 2.0 * standing
    if standing > 0.5:
        by.append("order")
    if x.op and y.op:
        score += 1.0 if x.op == y.op else -1.0
        if x.op == y.op:
            by.append("ops")
    return score, tuple(by)


def grouped(
    a: Sequence[Unit], b: Sequence[Unit], known: Sequence[Found], order: Order
) -> Iterator[Found]:
    """Groups of what is left that lie as a known one does: the projections of another layer."""
    used: set[Unit] = set()
    patterns: dict[tuple[object, ...], Found] = {}
    for found in known:
        if len(found.a) + len(found.b) > 2:
            key = (*(u.shape for u in found.a), "|", *(u.shape for u in found.b), found.chain)
            patterns.setdefault(key, found)
    for pattern in patterns.values():
        for xs in _like(pattern.a, [u for u in a if u not in used]):
            left = [u for u in b if u not in used]
            choices = [ys for ys in _like(pattern.b, left) if not set(ys) & used]
            if not choices or set(xs) & used or not fits(pattern.chain, xs, choices[0]):
                continue
            scores = [sum(order.fit(x, y) for x in xs for y in ys) for ys in choices]
            ys = choices[int(np.argmax(scores))]
            used |= {*xs, *ys}
            yield Found(xs, ys, pattern.chain, "likely", ("siblings", "order"), "", False)


def _like(pattern: Sequence[Unit], units: Sequence[Unit]) -> Iterator[tuple[Unit, ...]]:
    """Units that follow one another in the order and have the shapes, and kinds, of a pattern."""
    placed_at = sorted(range(len(pattern)), key=lambda k: pattern[k].place)
    wanted = [pattern[k] for k in placed_at]
    for start in range(len(units) - len(wanted) + 1):
        window = units[start : start + len(wanted)]
        if all(
            u.shape == w.shape and kind(u.name) == kind(w.name)
            for u, w in zip(window, wanted, strict=True)
        ):
            back: list[Unit] = [window[placed_at.index(k)] for k in range(len(pattern))]
            yield tuple(back)


def confirmed(found: Found) -> bool | None:
    """Whether what the step made of it agrees under its chain; None where nothing was traced.

    What was given to a program may be wrong to begin with; what it computed tells how it read it.
    """
    units = (*found.a, *found.b)
    seen = None
    for facet in found.a[0].facets():
        if facet[1].startswith("inputs/") or not all(unit.holds(facet) for unit in units):
            continue
        if not all(informs(unit.entry(facet)) for unit in units):
            continue
        tol = tolerance(units[0].entries[facet][1], units[-1].entries[facet][1], facet[1])
        chain = found.chain
        given, wanted = ([u.read(facet) for u in side] for side in (found.a, found.b))
        if chain.summed or chain.unsummed:
            return None
        if agreement(chain, given, wanted, tol) >= MOSTLY:
            return True
        seen = False
    return seen


def layer_agrees(found: Found, layers: Sequence[Found]) -> bool | None:
    """Whether what a parameter's layer made agrees; False where it is the first that does not.

    None where its layer is not known, or where what that was given differs already.
    """
    by_name = {(f.a[0].name, f.b[0].name): f for f in layers if len(f.a) == len(f.b) == 1}
    parted = [f for f in by_name.values() if "values" not in f.by and f.a[0].name != "loss"]
    first = min(parted, key=lambda f: f.a[0].place, default=None)
    for path in _ancestors(found.a[0].name):
        for other in _ancestors(found.b[0].name):
            layer = by_name.get((path, other))
            if layer is not None:
                return True if layer not in parted else False if layer is first else None
    return None


def _ancestors(name: str) -> Iterator[str]:
    while name := parent(name):
        yield name


def as_siblings_lie(found: Found, rules: Rules, layers: Sequence[Found]) -> Found:
    """A match by what was given alone: its layout is proven where shapes or siblings say the same.

    A square matrix that one program holds transposed fits once it is turned; but turned it is not
    what the step computed with. It then lies as all its siblings do, with a note.
    """
    if found.a[0].section not in ("params", "buffers"):
        return found
    told = confirmed(found)
    if "values" not in found.by or not could_lie_otherwise(found) or told:
        return found
    agrees = layer_agrees(found, layers)
    if agrees:
        return found
    if len(found.a) > 1 or len(found.b) > 1:
        return found._replace(sure="likely", layout_known=False)
    usual = rules.chains(found.a[0], found.b[0], found.chain if found.layout_known else None)
    if not usual:
        return found._replace(sure="likely", layout_known=False)
    chain, count = usual[0]
    if chain == found.chain:
        by = tuple(dict.fromkeys(("siblings", *found.by)))
        if told is None or rules.forced(found.a[0], found.b[0], chain):
            return found._replace(by=by)
        # All are square, and none of them tells whether both programs read them alike.
        note = "the same as it lies, but the layer makes another of it: is one read transposed?"
        return found._replace(by=by, sure="likely", note=note if agrees is False else "")
    if count < 2 and agrees is None:
        return found._replace(sure="likely", layout_known=False)
    how = "when transposed" if len(found.a[0].shape) == 2 else "in another layout"
    note = f"weights differ before training; equal {how}"
    return found._replace(
        chain=chain, sure="likely", by=("siblings", "values"), note=note, layout_known=False
    )


def doubtful(found: Found, left: tuple[Sequence[Unit], Sequence[Unit]]) -> bool:
    """Whether a vector may be a part of a sum: another of its size has no partner, on one side.

    Its gradient is then that of the sum as well, so gradients prove nothing.
    """
    x, y = found.a[0], found.b[0]
    if len(found.a) != 1 or len(found.b) != 1 or len(x.shape) != 1 or x.section != "params":
        return False
    given = [f for f in x.facets() if f[1].startswith("inputs/") and y.entry(f) is not None]
    if any(informs(x.entry(f)) and informs(y.entry(f)) for f in given):
        return False
    counts = [sum(u.shape == x.shape for u in units) for units in left]
    return counts[0] != counts[1]
