"""A planted fault, and what is known of it beforehand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple


class Fault(NamedTuple):
    """A fault that a twin can be run with, and where, when and why the sides then part.

    `title` says what the faulty side does. `tensor` are globs: the trace point that must be named
    first matches one of them. `also` are the trace points that differ besides at that step where
    every stage is given the other side's input; no other does. `causes` are patterns (regular
    expressions) of causes that say the right thing, best first: each must match the whole of "NAME:
    CLAIM", in which SIDE stands for the label of the faulty side and OTHER for that of the other.

    `bites` is the first step that shows it: "step N"; "norm over limit"; "epoch N", its first step;
    "epoch N end", its last; "token K", whose inputs hold token K. `settings` are what both sides
    need beyond BASE and the model for it to show, `tokens` the length that the training text is cut
    to, and `steps` how many steps show it; those of `settings` that only so small a model needs are
    `tuned`. `parts` are the faults that it consists of, to be planted in its place.

    `blocks` are kinds of blocks of which a model must have one, `layers` how many recurrent layers
    it must have at least. `of` says by the name of a model of the laboratory which of these fields
    are others there; None: it changes nothing there.
    """

    name: str
    title: str
    tensor: tuple[str, ...]
    causes: tuple[str, ...]
    bites: str = "step 1"
    settings: Mapping[str, str] = {}
    tokens: int | None = None
    steps: int = 4
    verdict: Literal["bug", "precision"] = "bug"
    also: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    tuned: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    layers: int = 1
    of: Mapping[str, Mapping[str, Any] | None] = {}

    def patterns(self, side: str, other: str) -> tuple[str, ...]:
        """The patterns of right causes where `side` has the fault and `other` has not."""
        return tuple(p.replace("SIDE", side).replace("OTHER", other) for p in self.causes)

    def explained(self, told: str, side: str, other: str) -> bool:
        """Whether a cause ("NAME: CLAIM") is right, where `side` has the fault, `other` not."""
        return any(re.fullmatch(p, told) for p in self.patterns(side, other))

    def first_at(self, tensor: str) -> bool:
        """Whether the sides may part there first."""
        return any(fnmatchcase(tensor, glob) for glob in self.tensor)

    @property
    def needed(self) -> dict[str, str]:
        """The settings that a model of any size needs for the fault to show."""
        return {name: value for name, value in self.settings.items() if name not in self.tuned}
