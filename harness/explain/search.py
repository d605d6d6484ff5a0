"""The search for edits of a stage that make of a side's own inputs what that side has.

Both sides are recomputed in float64 from what each was given. One fits the stage as it stands; the
other must fit an edit of it. An edit is never applied to the other side's numbers: a tensor that is
stacked over time feeds itself, and is another from its first wrong timestep on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice

import numpy as np

from harness.explain.alike import told_apart
from harness.explain.case import GAIN, Side
from harness.explain.edits import edits, of_scalars
from harness.explain.fitted import fitted_edits
from harness.explain.formats import left_by
from harness.explain.parts import edits_of_parts
from harness.explain.row_orders import reordered
from harness.explain.scene import Edit
from harness.explain.told import detached, told_words
from harness.explain.trial import Fit, Trial, bases, case_at, own
from harness.models.graph import Node, is_ref, name_of, references

PARTNERS = 12  # edits that bring a side nearer and are tried together with others
NEARER = 0.7  # of the distance that is left by an edit worth a partner
SECONDS = 400  # edits that are tried beside each partner
TOLD = -8.0  # bits of what a side was told to do: that needs no other explanation
PAIRED = 1e9  # elements that are read for pairs, about


def search(trial: Trial) -> list[Fit]:
    """Every edit that fits the side which is off, the shortest first; pairs where none does."""
    found: list[Fit] = []
    for side, base in bases(trial):
        found += _Search(trial, side, base).fits()
    return told_apart(trial, sorted(found, key=lambda fit: (fit.edit.bits, fit.left)))


class _Search:
    """The search for edits of one stage that fit one side, on a sample and then on all of it."""

    def __init__(self, trial: Trial, side: Side, base: Node) -> None:
        self.trial, self.side, self.base = trial, side, base
        self.probe, self.scene = trial.sample(), trial.scene(base)
        self.near: list[tuple[float, Edit]] = []
        usual, mine = trial.value(side, base), own(trial.case, side)
        # That both are infinite says nothing of why.
        self.overflown = usual is not None and bool((np.isfinite(usual) & ~np.isfinite(mine)).any())

    def fits(self) -> list[Fit]:
        found = self.all(self._each())
        if self.base.op == "other":
            return found
        if all(fit.edit.free for fit in found):  # a fitted number may hide what it comes from
            found += self.all(of_scalars(self.scene))
        return found or self._in_parts() or self._pairs()

    def _in_parts(self) -> list[Fit]:
        """Edits of one part of the tensor alone; those of the first part of which some fit."""
        plain = [edit for _, edit in self.near if not edit.free]
        for given in edits_of_parts(self.trial, self.side, self.scene, plain):
            if found := self.all(given):
                return found
        return []

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
        left = left_by(trial, self.side, edit)
        if left <= trial.case.level and left * GAIN <= trial.left(self.side, self.base):
            return left
        if trial is self.probe and math.isfinite(left):
            self.near.append((left, edit))
        return None

    def _of_wrong(self, edit: Edit) -> bool:
        """Whether an edit puts in a tensor that is off as well, which says nothing of why."""
        if edit.name != "operand-other" or not is_ref(edit.value) or self.base.op == "other":
            return False
        there = case_at(self.trial.case, name_of(edit.value))
        return there is not None and there.gap() > there.level

    def _each(self) -> Iterator[Edit]:
        told = self.trial.case.as_told
        if told is not None and self.side == "a":
            case = self.trial.case
            back = case.tensor.startswith(("backward/", "grads/"))
            less = detached(case.graph, case.other_graph) if back else None
            words, plain = (less, True) if less else told_words(self.base, told, self._same)
            # That a stage is written in other words says nothing of what is other in it.
            if plain or not case.told_by.startswith("code"):
                yield Edit("setting", f"{words}, as its {case.told_by}", told, TOLD)
        yield from edits(self.scene)
        for choice, graph in self.trial.case.variants().items():
            other, stage = graph.value(self.scene.tensor), self.scene.graph
            known = stage.value(self.scene.tensor) if stage else None
            if other is not None and other is not known and self.base.op != "other":
                yield Edit("formula", f"computes as with {choice}", other, 4.5)
        side, probe, trial = self.side, self.probe, self.trial
        yield from fitted_edits(self.scene, own(probe.part, side), partial(probe.value, side))
        yield from reordered(self.scene, own(trial.case, side), partial(trial.value, side))

    def _same(self, x: Node, y: Node) -> bool:
        """Whether two parts of a stage make the same numbers of what the side was given."""
        one, two = (self.trial.value_of(self.side, part) for part in (x, y))
        if one is None or two is None or one.shape != two.shape:
            return False
        return bool(np.allclose(one, two, rtol=1e-9, atol=0, equal_nan=True))

    def _pairs(self) -> list[Fit]:
        """Two edits at once: one that brings the side nearer, and any second one on top of it."""
        start, most = self.probe.left(self.side, self.base), self._affordable()
        plain = [(left, edit) for left, edit in self.near if not edit.free]
        good = sorted((left, i) for i, (left, _) in enumerate(plain) if left < NEARER * start)
        for first in [plain[i][1] for _, i in good[:PARTNERS]]:
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


def _both(first: Edit, second: Edit) -> Edit:
    """Two edits as one; the second is made in the stage as the first leaves it."""
    return second._replace(
        words=f"{first.words}, and {second.words}",
        bits=first.bits + second.bits + 4,
        free=first.free + second.free,
    )
