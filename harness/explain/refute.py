"""Trying to refute a cause: does it hold at the other places where its stage ran?

A claim that fits one place may fit it by chance, or say of all steps what is true of one. It stays
certain only where it explains the difference at other places too and is contradicted by none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from msgspec.structs import replace

from harness.explain.case import Case, Cause
from harness.explain.scene import LAYER
from harness.explain.trial import Fit
from harness.models.graph import Node, is_ref, name_of, node, rebuilt, references


class Record:
    """What other places say of one claim: it holds there, is absent, or is contradicted."""

    def __init__(self, of: Case | None = None) -> None:
        """Nothing was tried; `of` is the case of few numbers of which other steps are evidence."""
        self.held: list[str] = []
        self.absent: list[str] = []
        self.against: list[str] = []
        self.votes = 0.0  # log10: the chance that an unrelated difference fits at the other steps
        self._voted = None if of is None else {_numbers(of)}  # the same numbers again are none

    def add(
        self, case: Case, holds: bool, sound: bool, plain: bool, here: str, recomputed: bool
    ) -> None:
        """Take in one place; `here` is the tensor that the cause was found at.

        `holds`: the side agrees with the claim there; `sound`: the other side agrees with the
        stage; `plain`: so does the side itself, which differs by what came in alone; `recomputed`:
        all from their own inputs, so that what came in with them counts for nothing.
        """
        place = f"step {case.step}" if case.tensor == here else case.tensor
        if case.gap() > case.level and not plain:
            if holds:
                self.held.append(place)
                if case.tensor == here:
                    self._vote(case)
            elif sound and (case.fed or recomputed):  # else it may come from earlier differences
                self.against.append(place)
        elif not holds and case.tensor == here:
            self.absent.append(place)

    def _vote(self, case: Case) -> None:
        if self._voted is not None and _numbers(case) not in self._voted:
            self._voted.add(_numbers(case))
            self.votes += case.chance()

    def rule(self, cause: Cause) -> Cause | None:
        """The cause as sure as it may be; None where it explains nothing elsewhere."""
        against, held = (
            [place for place in places if place.startswith("step ")]
            for places in (self.against, self.held)
        )
        # That other tensors are so at the same step does not help: at the first step much is alike.
        if self.against and (not self.held or (against and not held)):
            return None
        if self.against or self.absent:
            places = listed([*self.against, *self.absent])
            return _likely(cause, f"it does not hold at {places}")
        if not self.held:
            return _likely(cause, "seen at this place alone")
        return replace(
            cause,
            sentence=f"{cause.sentence}; so also where else it was tried: {listed(self.held)}",
        )


def _numbers(case: Case) -> tuple[bytes, bytes]:
    return case.a.tobytes(), case.b.tobytes()


def _likely(cause: Cause, why: str) -> Cause:
    return replace(cause, sure="likely", sentence=f"{cause.sentence} ({why})")


def listed(places: Sequence[str]) -> str:
    """Places in a sentence: "steps 2, 3, params/w"."""
    steps = [place.removeprefix("step ") for place in places if place.startswith("step ")]
    steps.sort(key=int)
    others = [place for place in places if not place.startswith("step ")]
    words = [f"step{'s' * (len(steps) > 1)} {', '.join(steps)}"] if steps else []
    words += [f"{len(others)} tensors more of this stage"] if len(others) > 1 else others
    return " and ".join(words)


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
