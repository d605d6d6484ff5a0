"""Free runs in both precisions: where they part, and whether that scales with epsilon.

Every tensor is looked at in the order of execution. A bug is as large in float64 as in float32, and
comes at once. What is no evidence of one is told and passed over, and the search goes on behind it:

- a tensor that is zero but for rounding: its numbers themselves shrink with epsilon, on both sides;
- a gap of the float64 runs below float32's epsilon, where the float32 runs agree: one program
  computes something there in float32 only (a constant, a scale), which float32 runs cannot see;
- a gap of the float64 runs alone, or one that lies where rounding crossed a discontinuity.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from harness.compare import DiffResult
from harness.compare.diff import Difference
from harness.explain.case import Side
from harness.explain.crossings import Crossing, explained
from harness.explain.evidence import Gap, Pair
from harness.explain.noise import Noise

Kind = Literal["bug", "precision", "undecided", "rounding"]
SINGLE, DOUBLE = float(np.finfo(np.float32).eps), float(np.finfo(np.float64).eps)
ROUNDING = 64.0  # eps of the largest numbers
SATURATED = 2.0**-7  # of a tensor: float64 runs that were so far apart at some place tell no more
# Between the precisions a distance in epsilons is the same for rounding, and 5.4e8 times larger in
# float64 for a bug (the ratio of the epsilons). FAR is half way in orders of magnitude, and what
# lies within a factor SAME counts as the same.
FAR, SAME = 1e4, 20.0
# In float32 alone: a narrower format, of 10 bits and less, leaves at least so many times more.
STEP_DOWN = 128.0
JUMP = 1e3  # how much further apart than anything before it a place must be to be a jump
NOISE = 1e-4  # of others of its kind: a tensor that is smaller may be zero but for rounding
NARROWER = 8.0  # times further from its own float64 run than the other side from its
BEFORE = 8  # steps, which are close, that show what is usual
MOST_NOTES = 3  # of one kind that are told


class Ruling(NamedTuple):
    """What the walk found: the place that decides, whether the float64 pair shows it, and why."""

    kind: Kind
    step: int
    tensor: str
    wide: bool
    proof: tuple[str, ...]


class Path(NamedTuple):
    """The largest gap of a pair so far, in K of the tolerance's rule, and where it was."""

    needed: float = 1.0
    where: str = ""

    def further(self, gap: Gap, where: str) -> Path:
        """The path with one more gap, if that is finite."""
        if math.isfinite(gap.needed) and gap.needed > self.needed:
            return Path(gap.needed, where)
        return self

    def words(self, needed: float) -> str:
        """How a gap came about."""
        how = "at once" if needed >= JUMP * self.needed else "little by little"
        if not self.where:
            return "nothing before it differed by more than an epsilon"
        return (
            f"the distance came {how}: {needed:.3g} eps of the largest element there, at most "
            f"{self.needed:.3g} before ({self.where})"
        )


class _Notes:
    """What was passed over, by kind, each once for a tensor."""

    def __init__(self) -> None:
        self.seen: dict[str, dict[str, int]] = {}

    def add(self, kind: str, tensor: str, step: int) -> None:
        self.seen.setdefault(kind, {}).setdefault(tensor, step)

    def lines(self) -> tuple[str, ...]:
        made = []
        for kind, places in self.seen.items():
            named = [
                f"{tensor} (step {step})" for tensor, step in list(places.items())[:MOST_NOTES]
            ]
            more = len(places) - len(named)
            made.append(
                f"passed over, {kind}: {', '.join(named)}{f' and {more} more' * bool(more)}"
            )
        return tuple(made)


class Walk:
    """The search through both pairs of runs."""

    def __init__(self, free: DiffResult, free64: DiffResult) -> None:
        """Of the diffs of the float32 and the float64 runs; nothing is read yet."""
        self.free, self.free64 = free, free64
        self.narrow, self.wide = Pair(free, free.labels), Pair(free64, free64.labels)
        self.path, self.path64 = Path(), Path()
        self.agreed64: set[str] = set()  # the tensors that were close in float64 at some step
        self.agreed: dict[str, int] = {}  # at how many steps a tensor was close in both precisions
        self.notes, self.noise = _Notes(), Noise(self.narrow, self.wide)
        self.open: Ruling | None = None  # the first gap that the runs cannot decide

    def ruling(self) -> Ruling | None:
        """The first bug or loss of precision; else what could not be decided, or rounding.

        None where nothing was found over the tolerance in float32.
        """
        rounded: Ruling | None = None
        for step, tensor in self._places():
            if self.path64.needed * DOUBLE > SATURATED:
                self.notes.add(
                    "after the float64 runs had grown too far apart to tell", tensor, step
                )
                self.open = self.open or (None if rounded else self._unknown())
                break
            found = self._look(step, tensor)
            if found is None:
                continue
            if found.kind in ("bug", "precision"):
                return found._replace(proof=(*found.proof, *self.notes.lines()))
            if found.kind == "undecided":
                self.open = self.open or found
            rounded = rounded or found
        last = self.open or rounded
        parted = self.free.first_divergence
        if last is None and parted:  # all that differs was passed over
            last = Ruling("rounding", parted.step, parted.tensor, False, ())
        return last and last._replace(proof=(*last.proof, *self.notes.lines()))

    def _unknown(self) -> Ruling | None:
        """The first divergence in float32, of which nothing was learned."""
        place = self.free.first_divergence
        return Ruling("undecided", place.step, place.tensor, False, ()) if place else None

    def _places(self) -> Iterator[tuple[int, str]]:
        """Every tensor from a few steps before the first that is not close, in execution order."""
        first_ones = [found.first_divergence for found in (self.free, self.free64)]
        first = min((place.step for place in first_ones if place), default=1) - BEFORE
        held = set(self.wide.steps())
        for step in (step for step in self.narrow.steps() if step >= first and step in held):
            for pair in (self.narrow, self.wide):
                pair.forget(step)
            for name in self.narrow.names(step):
                if not name.startswith("inputs/"):
                    yield step, name

    def _look(self, step: int, tensor: str) -> Ruling | None:
        """What one tensor says; None where it is close in both, or no evidence."""
        gap, gap64 = self.narrow.gap(step, tensor), self.wide.gap(step, tensor)
        if gap is None or gap64 is None:
            return None
        where = f"{tensor} of step {step}"
        before, before64 = self.path, self.path64
        if gap.close and gap64.close:
            self.path, self.path64 = before.further(gap, where), before64.further(gap64, where)
            self.agreed[tensor] = self.agreed.get(tensor, 0) + 1
            self.agreed64.add(tensor)
            return None
        if gap64.close:
            self.agreed64.add(tensor)
        if math.isinf(gap.needed) and self.narrow.overflown(step, tensor):
            self.notes.add("beyond the largest float32 on both sides", tensor, step)
            return None
        noise = self.noise.kind(step, tensor)
        if noise:
            self.notes.add(noise, tensor, step)
            return None
        if gap64.eps > DOUBLE:  # it convicts nobody, and acquits nobody
            self.notes.add("no float64 tensor of the float64 runs", tensor, step)
            if not gap.close:
                line = self._words(step, tensor, gap, gap64)
                self.open = self.open or Ruling("undecided", step, tensor, False, (line,))
            return None
        found = self._over(step, tensor, gap, gap64)
        self.path, self.path64 = before.further(gap, where), before64.further(gap64, where)
        return found

    def _over(self, step: int, tensor: str, gap: Gap, gap64: Gap) -> Ruling | None:
        """A tensor that is not close in one of the precisions."""
        share, share64 = gap.needed * SINGLE, gap64.needed * gap64.eps
        if not gap64.close and gap.close and share64 <= SINGLE:
            self.notes.add(
                "as accurate as float32 in a float64 run, and the float32 runs agree", tensor, step
            )
            return None
        if gap64.close or share64 < share / FAR:
            return self._float32_alone(step, tensor, gap, gap64)
        if gap.close and (share64 > gap.factor * 2 * SINGLE or tensor in self.agreed64):
            self.notes.add("apart in the float64 runs alone", tensor, step)
            return None
        words = self._words(step, tensor, gap, gap64)
        proof = (words, self.path64.words(gap64.needed))
        jumps = gap64.needed >= JUMP * self.path64.needed and not gap64.close
        if jumps and self._drowned(step, tensor):
            self.notes.add("apart by less than the largest tensors of its kind round", tensor, step)
            return None
        if jumps and share64 * SAME >= share:  # a bug is as large in both precisions
            crossing = explained(self.wide, step, tensor, self.narrow)
            if crossing:
                return self._crossed(step, tensor, crossing)
            line = f"{words}: the gap does not scale with epsilon, so it is no rounding"
            return Ruling("bug", step, tensor, True, (line, proof[1]))
        if gap.close:
            return None  # grown from what was passed over, and not to be seen in float32
        same = _alike(gap, gap64)
        return Ruling("rounding" if same else "undecided", step, tensor, False, proof)

    def _drowned(self, step: int, tensor: str) -> bool:
        """Whether a gap in float64 is below the rounding of the largest tensors of its kind.

        The derivative of a saturated gate is 1 - s with s near 1: what is left of it is small, and
        rounded at the size of what it was made of.
        """
        a, b = self.wide.both(step, tensor)
        if a is None or b is None:
            return False
        with np.errstate(all="ignore"):
            apart = float(np.abs(a - b).max(initial=0.0))
        return apart <= ROUNDING * DOUBLE * max(self.wide.magnitudes(step, tensor), default=0.0)

    def _float32_alone(self, step: int, tensor: str, gap: Gap, gap64: Gap) -> Ruling | None:
        """The float64 runs agree there: rounding that grew, a discontinuity, or less precision."""
        words = self._words(step, tensor, gap, gap64)
        if math.isinf(gap.needed) and not gap64.close:
            return None
        if gap.needed < STEP_DOWN * self.path.needed or _alike(gap, gap64):
            proof = (f"{words}: the gap scales with epsilon", self.path.words(gap.needed))
            return Ruling("rounding", step, tensor, False, proof)
        crossing = explained(self.narrow, step, tensor, self.wide)
        if crossing:
            return self._crossed(step, tensor, crossing)
        if math.isinf(gap.needed):
            line = f"{words}: a formula that leaves the range of float32 on one side"
            return Ruling("bug", step, tensor, False, (line,))
        if tensor in self.agreed:
            line = (
                f"{words}, and it agreed at {self.agreed[tensor]} steps before: a narrower format "
            )
            line += "would show at every step, so look for a discontinuity that is not traced"
            return Ruling("undecided", step, tensor, False, (line,))
        return self._narrower(step, tensor, words)

    def _narrower(self, step: int, tensor: str, words: str) -> Ruling:
        """One side's float32 run far from its own float64 run, where the other's is not."""
        own: list[float] = []
        sides: tuple[Side, Side] = ("a", "b")
        for side in sides:
            low, high = (p.read(side, step, tensor) for p in (self.narrow, self.wide))
            if low is None or high is None or low.shape != high.shape:
                return Ruling("undecided", step, tensor, False, (words,))
            own.append(float(np.linalg.norm((low - high).ravel())))
        far = max(own) / max(min(own), 1e-300)
        guilty = self.free.labels[own.index(max(own))]
        line = (
            f"{words}: the programs agree in float64, and {guilty}'s float32 run is {far:.3g} "
            "times further from its own float64 run than the other's"
        )
        kind: Kind = "precision" if far >= NARROWER else "undecided"
        return Ruling(kind, step, tensor, False, (line,))

    def _crossed(self, step: int, tensor: str, found: tuple[Crossing, str]) -> Ruling:
        crossing, where = found
        line = (
            f"rounding crossed a discontinuity (a ReLU, a maximum) at step {step}: "
            f"{crossing.words()}, both right to rounding; {where}"
        )
        return Ruling("rounding", step, tensor, False, (line,))

    def _words(self, step: int, tensor: str, gap: Gap, gap64: Gap) -> str:
        return (
            f"at {tensor} of step {step} the sides are {gap.words()} apart in float32 and "
            f"{gap64.words()} in float64"
        )


def _alike(gap: Gap, gap64: Gap) -> bool:
    """Whether both precisions are as many of their own epsilons apart: rounding, then."""
    return gap64.needed <= SAME * gap.needed and gap.needed <= SAME * max(gap64.needed, 1.0)


def unheard(free: DiffResult, place: Difference) -> tuple[str, ...]:
    """What one precision alone lets one suspect of the place where free runs part."""
    pair = Pair(free, free.labels)
    lines: list[str] = []
    crossing = explained(pair, place.step, place.tensor)
    if crossing:
        lines.append(
            f"{crossing[0].words()} may have crossed a discontinuity (a ReLU, a maximum): "
            f"{crossing[1]}; both runs in float64 would tell"
        )
    mine, *others = pair.magnitudes(place.step, place.tensor) or [math.inf]
    if others and mine <= NOISE * max(others):
        lines.append(
            f"{place.tensor} reaches {mine:.2g} where tensors of its kind reach {max(others):.2g}: "
            "it may be zero but for rounding; both runs in float64 would tell"
        )
    return tuple(lines)
