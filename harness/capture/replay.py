"""What a script goes on with in place of its own: weights, inputs, another side's stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from harness.errors import HarnessError
from harness.spec import CHECKPOINT, HandOver, ScriptSpec
from harness.trace import Step, Trace, TraceError, open_trace

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
        self._step: tuple[str, Step] | None = None

    def weights(self) -> dict[str, Array]:
        """Parameters and buffers before the first step; nothing where they are the script's own."""
        hand = self._handed.get("weights")
        if hand is None or hand.trace is None:
            return {}
        step = self._opened(hand).step(1)
        kept = ("inputs/params/", "inputs/buffers/")
        return {
            e.name.removeprefix(START): step.read(e)
            for e in step.entries
            if e.name.startswith(kept) and step.holds(e)
        }

    def restart(self, number: int) -> dict[str, Array]:
        """Parameters, buffers and slots as the side that is followed had them before a step."""
        follow = self._run.follow
        if follow is None or number == 1:
            return {}
        trace = self._trace(follow.trace, follow.map)
        if number - 1 not in trace.steps:
            raise TraceError(
                f"{trace.path}: no step {number - 1}: a trace to follow must hold every step"
            )
        step = trace.step(number - 1)
        return {
            e.name: step.read(e) for e in step.entries if e.name.startswith(STATE) and step.holds(e)
        }

    def input(self, number: int, name: str) -> Array | None:
        """An input of a step; None for the script's own."""
        follow, hand = self._run.follow, self._handed.get("inputs")
        if follow is not None:
            return self._read(follow.trace, follow.map, number, START + name)
        if hand is None or hand.trace is None:
            return None
        return self._read(hand.trace, hand.map, number, START + name)

    def within(self, number: int) -> bool:
        """Whether something is put in place inside of a step."""
        return self.feed(number) is not None

    def feed(self, number: int) -> Callable[[str], Array | None] | None:
        """What each point of a step goes on with, where stages follow; None where none does."""
        follow = self._run.follow
        if follow is None or follow.level != "stage":
            return None
        return lambda name: self._read(follow.trace, follow.map, number, name)

    def _read(self, path: str, map_: str | None, number: int, name: str) -> Array | None:
        trace = self._trace(path, map_)
        if number not in trace.steps:
            raise HarnessError(f"{path}: no step {number}, which is to be handed over")
        key = f"{path} {number}"
        if self._step is None or self._step[0] != key:
            self._step = key, trace.step(number)
            self._entries = {e.name: e for e in self._step[1].entries}
        entry = self._entries.get(name)
        return None if entry is None or entry.stored is None else self._step[1].read(entry)

    def _opened(self, hand: HandOver) -> Trace:
        assert hand.trace is not None
        return self._trace(hand.trace, hand.map)

    def _trace(self, path: str, map_: str | None) -> Trace:
        key = path, map_
        if key not in self._traces:
            self._traces[key] = open_trace(path)  # TODO map
        return self._traces[key]
