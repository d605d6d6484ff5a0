"""What a script goes on with in place of its own: weights, inputs, another side's stages."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.spec import STATE, Follow, Handed, ScriptSpec
from harness.trace import Step, TraceError, open_trace, read_alignment
from harness.trace.dtypes import is_float
from harness.trace.ranks import names_of_rank

Array = NDArray[Any]
START = "inputs/"


def _plain(array: Array) -> Array:
    """An array of a dtype that every framework takes: bfloat16 is float32 with fewer bits."""
    narrow = is_float(array.dtype) and array.dtype.kind != "f"
    return array.astype(np.float32) if narrow else array


class Source:
    """A trace that a run is handed tensors from, in the names and layouts of the run."""

    def __init__(self, path: str, map_: str | None, reverse: bool, rank: int, ranks: int) -> None:
        """Raises HarnessError for a trace or a map that cannot be read."""
        self.trace = open_trace(path)
        self._rank = rank if ranks > 1 else None
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
            if self._rank is not None:
                arrays = names_of_rank(arrays, self._rank)
            self._opened = number, step, arrays
        return self._opened[2]


class Replay:
    """What one run of a script is handed, read from traces when it is needed."""

    def __init__(self, run: ScriptSpec, rank: int = 0, ranks: int = 1) -> None:
        """Nothing is read yet."""
        self._run, self._place = run, (rank, ranks)
        self._handed = {what: hand for hand in run.replay for what in hand.what}
        self._sources: dict[tuple[str, str | None], Source] = {}

    @property
    def seed(self) -> int | None:
        """By what the masks of dropout are drawn; None where the script draws its own."""
        hand = self._handed.get("masks")
        return hand.seed if hand else None

    def weights(self) -> dict[str, Array]:
        """Parameters and buffers before the first step; nothing where they are the script's own."""
        source = self._source("weights", 1)
        if source is None:
            return {}
        kept = ("inputs/params/", "inputs/buffers/")
        found = source.step(1).items()
        return {name.removeprefix(START): x for name, x in found if name.startswith(kept)}

    def restart(self, number: int) -> dict[str, Array]:
        """Parameters, buffers and slots that a step is to start from in place of the script's own.

        Those of the side that is followed, or, where the run starts again, those kept there.
        """
        follow, resume = self._run.follow, self._run.resume
        if follow is not None and number > 1:
            source = self._followed(follow)
        elif resume is not None and number == resume.step + 1:
            source = self._opened(resume.trace, None, False)
        else:
            return {}
        return {name: x for name, x in source.step(number - 1).items() if name.startswith(STATE)}

    def input(self, number: int, name: str) -> Array | None:
        """An input of a step; None for the script's own."""
        source = self._source("inputs", number)
        return None if source is None else source.step(number).get(START + name)

    def within(self, number: int) -> bool:
        """Whether something is put in place inside of a step."""
        return self.seed is not None or self.feed(number) is not None

    def feed(self, number: int) -> Callable[[str], Array | None] | None:
        """What each point of a step goes on with, where stages follow; None where none does."""
        follow = self._run.follow
        if follow is None or follow.level != "stage" or number < self._run.start:
            return None
        source, own = self._followed(follow), follow.exclude

        def onward(name: str) -> Array | None:
            if any(fnmatchcase(name, glob) for glob in own):
                return None
            return source.step(number).get(name)

        return onward

    def _source(self, what: Handed, number: int) -> Source | None:
        """Where weights, or inputs, of a step come from; None for the script's own.

        The steps before the start are only gone through: what there is no trace of is not needed.
        """
        hand = self._handed.get(what)
        source = None
        if self._run.follow:
            source = self._followed(self._run.follow)
        elif hand and hand.trace:
            source = self._opened(hand.trace, hand.map, hand.reverse)
        if source and number < self._run.start and number not in source.trace.steps:
            return None
        return source

    def _followed(self, follow: Follow) -> Source:
        return self._opened(follow.trace, follow.map, follow.reverse)

    def _opened(self, path: str, map_: str | None, reverse: bool) -> Source:
        key = path, map_
        if key not in self._sources:
            self._sources[key] = Source(path, map_, reverse, *self._place)
        return self._sources[key]
