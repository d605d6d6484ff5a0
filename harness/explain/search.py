"""The search for edits of a stage that make of a side's own inputs what that side has.

Both sides are recomputed in float64 from what each was given. One fits the stage as it stands; the
other must fit an edit of it. An edit is never applied to the other side's numbers: a tensor that is
stacked over time feeds itself, and is another from its first wrong timestep on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np

from harness.explain.case import GAIN, Array, Case, Side
from harness.explain.edits import LAYER, Edit, Scene, edits, kin_of, of_scalars
from harness.explain.fitted import fitted_edits, reordered
from harness.models.evaluate import MissingError, Values
from harness.models.graph import Node, below, is_ref, name_of, node, rebuilt, references
from harness.models.ops import OPS
from harness.models.ops.changes import FORMATS, rounded
from harness.models.rows import some_rows

SIDES: tuple[Side, Side] = ("a", "b")
NUDGE = 8.0  # eps by which a number may be off before it is rounded to a format
# What an edit that does not fit the shapes of a trace raises; any other error is one of ours.
FAILURES = (MissingError, ValueError, IndexError, TypeError)  # TypeError: minus a boolean
PARTNERS = 12  # edits that bring a side nearer and are tried together with others
NEARER = 0.7  # of the distance that is left by an edit worth a partner
SECONDS = 400  # edits that are tried beside each partner
TOLD = -8.0  # bits of what a side was told to do: that needs no other explanation
PAIRED = 1e9  # elements that are read for pairs, about
LARGE = 1 << 16  # elements of a tensor of which a sample is tried first
TELLING, SAMPLED = 4, 1 << 14  # different numbers that a format needs; those looked at
SCALES = (1.0, 30.0, 1e4, 0.03)  # sizes at which two edits are told apart


class Fit(NamedTuple):
    """An edit that a side agrees with, what remains, and the stage that it is an edit of."""

    edit: Edit
    left: float
    side: Side
    base: Node


class Trial:
    """One case with both sides' values at hand; of a large one perhaps `rows` of it alone."""

    def __init__(self, case: Case, rows: tuple[int, ...] = ()) -> None:
        """Nothing is computed yet."""
        self.case, self.tried, self._rows = case, 0, rows
        self._values: dict[Side, Values] = {}
        if rows:
            floor = max(case.floor, _largest(case.b))
            part = case._replace(a=case.a[list(rows)], b=case.b[list(rows)], floor=floor)
            self.part = part
        else:
            self.part = case

    def sample(self) -> Trial:
        """The rows of a large tensor that differ most, and some others: edits are tried there."""
        b = self.case.b
        if b.size <= LARGE or b.ndim < 2 or b.shape[0] < 2 or b.dtype.kind != "f":
            return self
        with np.errstate(all="ignore"):
            gaps = np.abs(self.case.a - b).reshape(len(b), -1).max(axis=1)
        count = int(min(len(b), max(2, LARGE * len(b) // (4 * b.size))))
        worst = np.argsort(-np.nan_to_num(gaps, nan=np.inf))[: (count + 1) // 2]
        spread = np.linspace(0, len(b) - 1, count // 2).astype(int)
        rows = np.unique([*worst, *spread])
        found = Trial(self.case, tuple(map(int, rows)))
        found._values = self._values
        return found

    def values(self, side: Side) -> Values:
        """What one side's tensors give."""
        if side not in self._values:
            self._values[side] = _values(self.case, side)
        return self._values[side]

    def value(self, side: Side, expression: Node) -> Array | None:
        """An expression from one side's tensors; None where they do not allow it."""
        if self._rows:
            shapes = self.case.shapes
            of = lambda x: shapes.get(name_of(x), None if x.arg("back") else ())  # noqa: E731
            expression = some_rows(expression, self._rows, self.case.b.shape, of)
        made = self.value_of(side, expression)
        return made if made is not None and made.shape == self.part.b.shape else None

    def value_of(self, side: Side, expression: Node) -> Array | None:
        """An expression of whatever shape; None where the trace does not allow it."""
        try:
            return np.asarray(self.values(side).value(expression))
        except FAILURES:
            return None

    def left(self, side: Side, expression: Node) -> float:
        """How far an expression is from what the side has, as the tolerance's K."""
        made, mine = self.value(side, expression), own(self.part, side)
        if made is None:
            return math.inf
        if expression.op == "moved":  # which says nothing of the edge
            made = np.where(np.isnan(made), mine, made)
        case = self.part._replace(floor=max(self.part.floor, _largest(made)))
        return case.distance(made, mine)

    def fits(self, side: Side, expression: Node) -> bool:
        """Whether an expression gives what the side has, to rounding."""
        return self.left(side, expression) <= self.case.level

    def scene(self, base: Node) -> Scene:
        """What edits of an expression are made in."""
        case = self.case
        numbers: dict[str, tuple[float, ...]] = {}
        for settings in (case.settings_b, case.settings_a):
            for key, value in settings.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    numbers[key] = (*numbers.get(key, ()), float(value))
        axes = case.graph.axes(case.tensor) if case.graph else ()
        if len(axes) != case.b.ndim:
            axes = tuple(f"axis {k}" for k in range(case.b.ndim))
        for side in SIDES:
            self.values(side).keep(base)
        shape = case.b.shape
        return Scene(case.tensor, base, case.graph, case.shapes, numbers, shape, axes, case.step)


def _values(case: Case, side: Side, change: Callable[[str, Array], Array] | None = None) -> Values:
    """Expressions over what one side was given.

    Where no stage is known, an edit is one of the other side's tensor, and reads that side's.
    """
    stage = case.graph.value(case.tensor) if case.graph else None
    known = stage is not None and stage.op != "given"
    source = side if known else _other(side)
    other = _wide(own(case, _other(side)))
    return Values(
        lambda back, name: _read(case, source, back, name),
        case.step,
        case.graph,
        change("other", other) if change else other,
        change,
    )


def own(case: Case, side: Side) -> Array:
    """The tensor of the case on one side."""
    return case.a if side == "a" else case.b


def _read(case: Case, side: Side, back: int, name: str) -> Array | None:
    if back and not name.startswith(("params/", "optimizer/", "state/")):
        return case.made(name, side, back)
    return case.get(name, side, back)


def _wide(x: Array) -> Array:
    return x.astype(np.float64) if x.dtype.kind == "f" else x


def _largest(x: Array) -> float:
    finite = np.abs(x[np.isfinite(x)]) if x.dtype.kind == "f" else np.abs(x.astype(np.float64))
    return float(finite.max(initial=0.0))


def origin(trial: Trial, most: int = 12) -> Trial | None:
    """The case of the stage that is off, where this one is what it should be on both sides.

    A tensor that is stacked over time differs from its first wrong timestep on, and so does what
    comes before it in a step and reads it: the tensors that the stage reads are looked through.
    """
    case, seen = trial.case, {trial.case.tensor}
    waiting = [case.tensor] if case.graph else []
    while case.graph and waiting and len(seen) < most:
        stage = case.graph.value(waiting.pop(0))
        for x in references(stage) if stage is not None else ():
            name = name_of(x)
            if name in seen or x.arg("back") or name not in case.shapes:
                continue
            seen.add(name)
            there = _at(case, name)
            if there is None or not there.gap() > there.level:
                continue
            waiting.append(name)
            other = Trial(there)
            base = next(bases(other), None)
            if base and base[1].op != "other":
                return other
    return None


def _at(case: Case, name: str) -> Case | None:
    """The same case at another tensor of the step."""
    a, b = case.get(name, "a"), case.get(name, "b")
    if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
        return None
    return case._replace(tensor=name, a=a, b=b, floor=0.0)


def bases(trial: Trial) -> Iterator[tuple[Side, Node]]:
    """The side that is off and the stage that the other fits; or the other side's tensor.

    A stage may be either of two things (a state that is carried, or starts from zeros): where the
    side that a referee is against fits it as it stands, the other must fit a member of its family.
    """
    case = trial.case
    stage = case.graph.value(case.tensor) if case.graph else None
    if stage is None or stage.op == "given":
        for side in SIDES if case.off is None else (case.off,):
            yield side, node("other")
        return
    fits = {side: trial.fits(side, stage) for side in SIDES}
    if sum(fits.values()) == 1:
        off: Side = "a" if fits["b"] else "b"
        if case.off in (None, off):
            yield off, stage
        if case.off in (None, off):
            return
        for kin in OPS[stage.op].kin if stage.op in OPS else ():
            if not kin.rare and trial.fits(off, kin_of(stage, kin)):
                yield _other(off), kin_of(stage, kin)
    elif not any(fits.values()):
        for side in SIDES if case.off is None else (case.off,):
            yield side, node("other")


def _other(side: Side) -> Side:
    return "b" if side == "a" else "a"


def search(trial: Trial) -> list[Fit]:
    """Every edit that fits the side which is off, the shortest first; pairs where none does."""
    found: list[Fit] = []
    for side, base in bases(trial):
        found += _Search(trial, side, base).fits()
    return _told_apart(trial, sorted(found, key=lambda fit: (fit.edit.bits, fit.left)))


class _Search:
    """The search for edits of one stage that fit one side, on a sample and then on all of it."""

    def __init__(self, trial: Trial, side: Side, base: Node) -> None:
        self.trial, self.side, self.base = trial, side, base
        self.probe, self.scene = trial.sample(), trial.scene(base)
        self.near: list[tuple[float, Edit]] = []
        usual, mine = trial.value(side, base), own(trial.case, side)
        self.usual = usual
        # That both are infinite says nothing of why.
        self.overflown = usual is not None and bool((np.isfinite(usual) & ~np.isfinite(mine)).any())

    def fits(self) -> list[Fit]:
        found = self.all(self._each())
        if self.base.op == "other":
            return found
        if all(fit.edit.free for fit in found):  # a fitted number may hide what it comes from
            found += self.all(of_scalars(self.scene))
        return found or _parts(self) or self._pairs()

    def all(self, given: Iterable[Edit]) -> list[Fit]:
        """The edits that fit, of those given."""
        return [fit for edit in given if (fit := self.tried(edit))]

    def tried(self, edit: Edit) -> Fit | None:
        """An edit as a fit, if it is one."""
        self.trial.tried += 1
        if self._of_itself(edit) or self._of_wrong(edit):
            return None
        left = self._left(self.probe, edit)
        if left is not None and self.probe is not self.trial:
            left = self._left(self.trial, edit)
        if left is None or (self.overflown and not edit.format):
            return None
        return Fit(edit, left, self.side, self.base)

    def _of_itself(self, edit: Edit) -> bool:
        """Whether an edit makes the tensor of itself, which fits whatever it is."""
        own_name = self.trial.case.tensor
        return any(
            name_of(x) == own_name and not x.arg("time") and not x.arg("back")
            for x in references(edit.value)
        )

    def _left(self, trial: Trial, edit: Edit) -> float | None:
        """What an edit leaves, if that is rounding and far under what the plain stage leaves."""
        left = _left(trial, self.side, edit)
        if left <= trial.case.level and left * GAIN <= trial.left(self.side, self.base):
            return left
        if trial is self.probe and math.isfinite(left):
            self.near.append((left, edit))
        return None

    def _of_wrong(self, edit: Edit) -> bool:
        """Whether an edit puts in a tensor that is off as well, which says nothing of why."""
        if edit.name != "operand-other" or not is_ref(edit.value) or self.base.op == "other":
            return False
        there = _at(self.trial.case, name_of(edit.value))
        return there is not None and there.gap() > there.level

    def _each(self) -> Iterator[Edit]:
        told = self.trial.case.as_told
        if told is not None and self.side == "a":
            yield Edit("setting", f"{_does(self.base, told)}, as its settings say", told, TOLD)
        yield from edits(self.scene)
        for choice, graph in self.trial.case.variants().items():
            other, stage = graph.value(self.scene.tensor), self.scene.graph
            known = stage.value(self.scene.tensor) if stage else None
            if other is not None and other is not known and self.base.op != "other":
                yield Edit("formula", f"computes as with {choice}", other, 4.5)
        side, probe, trial = self.side, self.probe, self.trial
        yield from fitted_edits(self.scene, own(probe.part, side), partial(probe.value, side))
        yield from reordered(self.scene, own(trial.case, side), partial(trial.value, side))

    def _pairs(self) -> list[Fit]:
        """Two edits at once: one that brings the side nearer, and any second one on top of it."""
        start, most = self.probe.left(self.side, self.base), self._affordable()
        good = sorted((left, i) for i, (left, _) in enumerate(self.near) if left < NEARER * start)
        for first in [self.near[i][1] for _, i in good[:PARTNERS]]:
            seconds = islice(edits(self.trial.scene(first.value)), min(SECONDS, most))
            found = self.all(_both(first, second) for second in seconds)
            most -= SECONDS
            if found or most <= 0:
                return found
        return []

    def _affordable(self) -> int:
        """How many pairs are tried: fewer where each reads much."""
        read = [self.scene.shapes.get(name_of(x), ()) for x in references(self.base)]
        return int(PAIRED // (1 + sum(math.prod(shape) for shape in read)))


def _does(base: Node, other: Node) -> str:
    """What a program does that has another stage, where that is of one family."""
    formula = OPS[other.op].formula if other.op in OPS else None
    family = OPS[base.op].kin if base.op in OPS else ()
    return next((kin.does for kin in family if kin.formula is formula), "computes another stage")


def _both(first: Edit, second: Edit) -> Edit:
    """Two edits as one; the second is made in the stage as the first leaves it."""
    return second._replace(
        words=f"{first.words}, and {second.words}",
        bits=first.bits + second.bits + 4,
        free=first.free + second.free,
    )


def _left(trial: Trial, side: Side, edit: Edit) -> float:
    """What an edit leaves; a number in the middle of two of a format may be rounded either way."""
    whole = edit.value.op == "rounded"
    if not whole:
        return trial.left(side, edit.value)
    full, mine = trial.value(side, edit.value.inputs[0]), own(trial.part, side)
    if full is None or mine.dtype.kind != "f":
        return math.inf
    if not telling(mine, full, **dict(edit.value.args)):
        return math.inf
    nudge = NUDGE * trial.case.eps * (np.abs(full) + _largest(full))
    low, high = (_rounded(edit.value, full + by) for by in (-nudge, nudge))
    return trial.case.distance(np.clip(mine, low, high), mine)


def telling(mine: Array, full: Array, to: str, cut: bool = False) -> bool:
    """Whether enough numbers say that `mine` was rounded: those that `full` does not have exactly.

    A number that is exact in the narrower format says nothing, nor do the same numbers twice, and
    one number alone supports no claim about a format.
    """
    flat, exact = mine.reshape(-1), full.reshape(-1).astype(mine.dtype)
    if not np.array_equal(rounded(flat, to, cut), flat, equal_nan=True):
        return False
    moved = (rounded(exact, to, cut) != exact) & (flat != exact)
    # On a grid of one width, as fixed-point numbers are, every format of enough bits has them.
    top = np.frexp(_largest(flat))[1] - 1
    with np.errstate(invalid="ignore"):
        moved &= flat % np.ldexp(1.0, int(top) - FORMATS[to]) != 0
    return bool(np.unique(flat[moved][:SAMPLED]).size >= TELLING)


def _rounded(x: Node, value: Array) -> Array:
    return rounded(value, **dict(x.args))


def _parts(search: _Search) -> list[Fit]:
    """Edits that hold in one part of the tensor, where it differs in that part alone."""
    trial, side, base, usual = search.trial, search.side, search.base, search.usual
    mine = own(trial.case, side)
    if usual is None or mine.dtype.kind != "f":
        return []
    case = trial.case
    with np.errstate(all="ignore"):
        scale = max(_largest(usual), case.floor)
        bad = ~(np.abs(mine - usual) <= case.level * case.eps * (np.abs(usual) + scale))
    plain = [edit for _, edit in search.near if not edit.free]
    for part in (
        _token_part(trial, base, bad),
        _axis_part(trial, bad, 1),
        _axis_part(trial, bad, 2),
    ):
        if part is None:
            continue
        only = np.where(part.at, mine, np.nan)
        fitted = fitted_edits(search.scene, only, partial(trial.value, side))
        found = search.all(_within(part, base, edit) for edit in [*plain, *fitted])
        if found:
            return found
    return []


def _within(part: _Part, base: Node, edit: Edit) -> Edit:
    """An edit in one part of a tensor alone."""
    words = f"{edit.words.removesuffix(' in every element')}, {part.words} alone"
    return edit._replace(value=part.put(base, edit.value), words=words, bits=edit.bits + 6)


class _Part(NamedTuple):
    """A part of a tensor: put(stage, edit) has the edit there alone; `at` is where that is."""

    put: Callable[[Node, Node], Node]
    at: Array
    words: str


def _token_part(trial: Trial, base: Node, bad: Array) -> _Part | None:
    """The places of some tokens, where looked-up rows differ at all of them and nowhere else."""
    look_up = [x for x in below(base) if x.op == "embed"]
    tokens = trial.value_of("b", look_up[0].inputs[1]) if look_up else None
    if tokens is None or tokens.shape != bad.shape[:-1]:
        return None
    hit = np.asarray(bad.any(axis=-1))
    which = np.unique(tokens[hit])
    if not which.size or np.isin(tokens, which).sum() != hit.sum():
        return None
    named = tuple(map(int, which))
    return _Part(
        lambda x, y: node("where_token", x, y, look_up[0].inputs[1], which=named),
        np.broadcast_to(hit[..., None], bad.shape),
        f"at token{'s' * (len(named) > 1)} {', '.join(map(str, named[:6]))}",
    )


def _axis_part(trial: Trial, bad: Array, most: int) -> _Part | None:
    """The fewest places along one axis, or along two, that hold all of a difference."""
    from harness.explain.confined import places_words

    hits = [np.flatnonzero(bad.any(axis=tuple({*range(bad.ndim)} - {k}))) for k in range(bad.ndim)]
    few = sorted((hit.size / bad.shape[k], k) for k, hit in enumerate(hits))
    axes = [axis for share, axis in few if 0 < share < 1][:most]
    if len(axes) < most:
        return None
    at, names = np.ones(bad.shape, bool), trial.scene(node("other")).axes
    for axis in axes:
        here = np.zeros(bad.shape[axis], bool)
        here[hits[axis]] = True
        at &= here.reshape([-1 if k == axis else 1 for k in range(bad.ndim)])

    def put(x: Node, y: Node) -> Node:
        for axis in axes:
            y = node("chosen", x, y, axis=axis, places=tuple(map(int, hits[axis])))
        return y

    words = [places_words(names[axis], hits[axis], bad.shape[axis]) for axis in sorted(axes)]
    return _Part(put, at, f"at {', '.join(words)}")


def _told_apart(trial: Trial, fits: list[Fit]) -> list[Fit]:
    """The fits without those that say of all numbers what a shorter one says."""
    kept: list[Fit] = []
    for fit in fits[:40]:
        if not any(same_everywhere(trial, fit, other) for other in kept):
            kept.append(fit)
    return kept


def same_everywhere(trial: Trial, one: Fit, two: Fit) -> bool:
    """Whether two edits are one and the same function: they agree on other numbers too."""
    if one.side != two.side:
        return _mirrored(trial, one, two)
    for seed, size in enumerate(SCALES):
        x, y = (_elsewhere(trial, fit, seed, size) for fit in (one, two))
        if x is None or y is None or x.shape != y.shape:
            return False
        x, y = x.astype(np.float64), y.astype(np.float64)
        with np.errstate(all="ignore"):
            same = (x == y) | (np.isnan(x) & np.isnan(y))
            if "moved" in (one.edit.value.op, two.edit.value.op):
                same |= np.isnan(x) | np.isnan(y)
            if not np.all(same | (np.abs(x - y) <= 1e-9 * (np.abs(x) + _largest(y)))):
                return False
    return True


def _mirrored(trial: Trial, one: Fit, two: Fit) -> bool:
    """Whether both say what one tensor is of the other: from either side it is one statement."""
    if not one.base.op == two.base.op == "other":
        return False
    if one.edit.name == two.edit.name:
        return True
    back = rebuilt(two.edit.value, lambda x: one.edit.value if x.op == "other" else None)
    there_and_back = one._replace(edit=one.edit._replace(value=back))
    return same_everywhere(
        trial, there_and_back, one._replace(edit=one.edit._replace(value=one.base))
    )


def _elsewhere(trial: Trial, fit: Fit, seed: int, size: float) -> Array | None:
    """The value of an edit at other numbers of the same kind."""
    case, side = trial.case, fit.side

    def change(name: str, x: Array) -> Array:
        if x.dtype.kind != "f":
            return x
        noise = np.random.default_rng([seed, *map(ord, name)])
        if name.startswith("setting "):
            return np.asarray(x * noise.uniform(0.8, 0.95, x.shape))
        with np.errstate(all="ignore"):
            return np.asarray(x * size * noise.uniform(0.5, 1.5, x.shape))

    try:
        return np.asarray(_values(case, side, change).value(fit.edit.value))
    except FAILURES:
        return None


def transported(fit: Fit, there: Node, own: Mapping[str, str]) -> Node | None:
    """The edit at another place whose stage is of the same form; None where it is of another.

    `own` is the name of the tensor here, and there.
    """
    names: dict[Node, Node] = {}
    stack = [(fit.base, there)]
    while stack:
        x, y = stack.pop()
        if x is y:
            continue
        if is_ref(x) and is_ref(y):
            if names.setdefault(x, y) is not y:
                return None
            continue
        same = x.op == y.op and len(x.inputs) == len(y.inputs) and x.args == y.args
        if not same or is_ref(x) or is_ref(y):
            return None
        stack += zip(x.inputs, y.inputs, strict=True)
    moved = {**own, **{name_of(x): name_of(y) for x, y in names.items()}}
    layers = {a: b for x, y in moved.items() for a, b in _layers(x, y)}
    changed: dict[Node, Node] = {}
    for x in references(fit.edit.value):
        new = names.get(x) or _renamed(x, moved, layers)
        if new is None:
            return None
        changed[x] = new
    return rebuilt(fit.edit.value, changed.get)


def _layers(one: str, two: str) -> Iterator[tuple[str, str]]:
    """The layer's number of a name, and that which stands there in the other."""
    found = [LAYER.findall(name) for name in (one, two)]
    if len(found[0]) == len(found[1]):
        yield from zip(*found, strict=True)


def _renamed(x: Node, moved: Mapping[str, str], layers: Mapping[str, str]) -> Node | None:
    """A reference that the edit put in, to the tensor that stands in its place there.

    None where it is of a layer of which nothing says what stands there for it.
    """
    name, first = name_of(x), x.arg("first")
    new = moved.get(name)
    if new is None:
        numbers = LAYER.findall(name)
        if any(number not in layers for number in numbers):
            return None
        new = LAYER.sub(lambda found: layers[found[0]], name)
    if first:
        first = moved.get(first, first.replace(name.partition("/")[2], new.partition("/")[2]))
    return node("ref", **{**dict(x.args), "name": new, "first": first})
