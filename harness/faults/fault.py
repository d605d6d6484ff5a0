"""A planted fault, and what is known of it beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple


class Fault(NamedTuple):
    """A fault that a twin can be run with, and where, when and why the sides then part.

    `title` says what the faulty side does. `tensor` are globs: the trace point that must be named
    first matches one of them. `also` are the trace points that differ besides at that step where
    every stage is given the other side's input; no other does. `causes` are those of
    harness.explain that are right, best first.

    `bites` is the first step that shows it: "step N"; "norm over limit"; "epoch N", its first step;
    "epoch N end", its last; "token K", whose inputs hold token K. `settings` are what both sides
    need beyond BASE for it to show, `tokens` the length that the training text is cut to, and
    `steps` how many steps show it; those of `settings` that only so small a model needs are
    `tuned`. `parts` are the faults that it consists of, to be planted in its
    place.
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

    @property
    def needed(self) -> dict[str, str]:
        """The settings that a model of any size needs for the fault to show."""
        return {name: value for name, value in self.settings.items() if name not in self.tuned}
