"""What a script goes on with in place of its own: weights, inputs, another side's stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.spec import CHECKPOINT, Follow, Handed, ScriptSpec
from harness.trace import Step, TraceError, open_trace, read_alignment
from harness.trace.dtypes import is_float

Array = NDArray[Any]
STATE = (*CHECKPOINT, "buffers/")
START = "inputs/"


def _plain(array: Array) -> Array:
    """An array of a dtype that every framework takes: bfloat16 is float32 with fewer bits."""
    narrow = is_float(array.dtype) and array.dtype.kind != "f"
    return array.astype(np.float32) if narrow else array


class Source:
    """A trace that a run is handed tensors from, in the names and layouts of the run."""

    def __init__(self, path: str, map_: str | None, reverse: bool) -> None:
        """Raises HarnessError for a trace or a map that cannot be read."""
        self.trace = open_trace(path)
        found = read_alignment(map_) if map_ else None
        self._map = found.turned if found and reverse else found
        self._opened: tuple[int, Step, dict[str, Array]] | None = None

    def step(self, number: int) -> dict[str, Array]:
        """All that the trace keeps of a step. Raises TraceError where it has not that step."""
        if self._opened is None or self._opened[0] != number:
            if number not in self.trace.steps:
                raise TraceError(
                    f"{self.trace.path}: no step {number}: what is followed or handed over must be "
                    "traced at every step"
                )
            step = self.trace.step(number)
            arrays = {e.name: _plain(step.read(e)) for e in step.entries if step.holds(e)}
            if self._map is not None:
                arrays = self._map.forward(arrays)
            self._opened = number, step, arrays
        return self._opened[2]


class Replay:
    """What one run of a script is handed, read from traces when it is needed."""

    def __init__(self, run: ScriptSpec) -> None:
        """Nothing is read yet."""
        self._run = run
        self._handed = {what: hand for hand in run.replay for what in hand.what}
        self._sources: dict[tuple[str, str | None], Source] = {}

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
        kept = ("inputs/params/", "inputs/buffers/")
        found = source.step(1).items()
        return {name.removeprefix(START): x for name, x in found if name.startswith(kept)}

    def restart(self, number: int) -> dict[str, Array]:
        """Parameters, buffers and slots as the side that is followed had them before a step."""
        if self._run.follow is None or number == 1:
            return {}
        found = self._followed(self._run.follow).step(number - 1).items()
        return {name: x for name, x in found if name.startswith(STATE)}

    def input(self, number: int, name: str) -> Array | None:
        """An input of a step; None for the script's own."""
        source = self._source("inputs")
        return None if source is None else source.step(number).get(START + name)

    def within(self, number: int) -> bool:
        """Whether something is put in place inside of a step."""
        return self.feed(number) is not None

    def feed(self, number: int) -> Callable[[str], Array | None] | None:
        """What each point of a step goes on with, where stages follow; None where none does."""
        follow = self._run.follow
        if follow is None or follow.level != "stage":
            return None
        source = self._followed(follow)
        return lambda name: source.step(number).get(name)

    def _source(self, what: Handed) -> Source | None:
        """Where weights, or inputs, come from; None for the script's own."""
        if self._run.follow:
            return self._followed(self._run.follow)
        hand = self._handed.get(what)
        return self._opened(hand.trace, hand.map, hand.reverse) if hand and hand.trace else None

    def _followed(self, follow: Follow) -> Source:
        return self._opened(follow.trace, follow.map, follow.reverse)

    def _opened(self, path: str, map_: str | None, reverse: bool) -> Source:
        key = path, map_
        if key not in self._sources:
            self._sources[key] = Source(path, map_, reverse)
        return self._sources[key]
