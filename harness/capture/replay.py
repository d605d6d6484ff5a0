"""What a script goes on with in place of its own: weights, inputs, another side's stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from harness.errors import HarnessError
from harness.spec import CHECKPOINT, Follow, Handed, ScriptSpec
from harness.trace import Step, TensorEntry, Trace, TraceError, open_trace

Array = NDArray[Any]
STATE = (*CHECKPOINT, "buffers/")
START = "inputs/"


class Replay:
    """What one run of a script is handed, read from traces when it is needed."""

    def __init__(self, run: ScriptSpec) -> None:
        """Raises TraceError for a trace that cannot be read."""
        self._run = run
        self._handed = {what: hand for hand in run.replay for what in hand.what}
        self._traces: dict[tuple[str, str | None], Trace] = {}
        self._step: tuple[Trace, Step] | None = None
        self._entries: dict[str, TensorEntry] = {}

    @property
    def seed(self) -> int | None:
        """By what the masks of dropout are drawn; None where the script draws its own."""
        hand = self._handed.get("masks")
        return hand.seed if hand else None

    def weights(self) -> dict[str, Array]:
        """Parameters and buffers before the first step; nothing where they are the script's own."""
        source = self._source("weights")
        if source is None:
            return {}
        step = source.step(1)
        kept = ("inputs/params/", "inputs/buffers/")
        return {
            e.name.removeprefix(START): step.read(e)
            for e in step.entries
            if e.name.startswith(kept) and step.holds(e)
        }

    def restart(self, number: int) -> dict[str, Array]:
        """Parameters, buffers and slots as the side that is followed had them before a step."""
        if self._run.follow is None or number == 1:
            return {}
        trace = self._followed(self._run.follow)
        if number - 1 not in trace.steps:
            raise TraceError(
                f"{trace.path}: no step {number - 1}: a trace to follow must hold every step"
            )
        step = trace.step(number - 1)
        return {e.name: step.read(e) for e in step.entries if _is_state(e) and step.holds(e)}

    def input(self, number: int, name: str) -> Array | None:
        """An input of a step; None for the script's own."""
        source = self._source("inputs")
        return None if source is None else self._read(source, number, START + name)

    def within(self, number: int) -> bool:
        """Whether something is put in place inside of a step."""
        return self.feed(number) is not None

    def feed(self, number: int) -> Callable[[str], Array | None] | None:
        """What each point of a step goes on with, where stages follow; None where none does."""
        follow = self._run.follow
        if follow is None or follow.level != "stage":
            return None
        source = self._followed(follow)
        return lambda name: self._read(source, number, name)

    def _source(self, what: Handed) -> Trace | None:
        """The trace that weights, or inputs, come from; None for the script's own."""
        if self._run.follow:
            return self._followed(self._run.follow)
        hand = self._handed.get(what)
        return self._trace(hand.trace, hand.map, hand.reverse) if hand and hand.trace else None

    def _followed(self, follow: Follow) -> Trace:
        return self._trace(follow.trace, follow.map, follow.reverse)

    def _read(self, trace: Trace, number: int, name: str) -> Array | None:
        if number not in trace.steps:
            raise HarnessError(f"{trace.path}: no step {number}, which is to be handed over")
        if self._step is None or (self._step[0], self._step[1].number) != (trace, number):
            self._step = trace, trace.step(number)
            self._entries = {e.name: e for e in self._step[1].entries}
        entry, step = self._entries.get(name), self._step[1]
        return step.read(entry) if entry is not None and step.holds(entry) else None

    def _trace(self, path: str, map_: str | None, reverse: bool) -> Trace:
        key = path, map_
        if key not in self._traces:
            self._traces[key] = open_trace(path)
        return self._traces[key]


def _is_state(entry: TensorEntry) -> bool:
    """Whether a tensor is part of what the next step starts from."""
    return entry.name.startswith(STATE)
