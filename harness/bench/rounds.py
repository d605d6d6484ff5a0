"""Rounds over contestants, and the progress of the whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from harness.errors import HarnessError
from harness.observer import Observer

T = TypeVar("T")


class Samples(dict[str, list[T]]):
    """What each contestant measured, one entry a round; `missing` says why one has none."""

    def __init__(self) -> None:
        """Nothing is measured yet."""
        super().__init__()
        self.missing: dict[str, str] = {}


def interleave(
    contestants: Mapping[str, Callable[[], T]], rounds: int, tick: Callable[[], None]
) -> Samples[T]:
    """Call every contestant once a round; who starts changes from round to round.

    A contestant that raises HarnessError is missing from then on, and its earlier rounds with it.
    """
    samples: Samples[T] = Samples()
    names = list(contestants)
    for number in range(rounds):
        shift = number % max(len(names), 1)
        for name in names[shift:] + names[:shift]:
            if name not in samples.missing:
                try:
                    samples.setdefault(name, []).append(contestants[name]())
                except HarnessError as error:
                    samples.missing[name] = str(error)
                    samples.pop(name, None)
            tick()
    return samples


class Progress:
    """One bar over all parts, each with its share of the expected time."""

    def __init__(self, observer: Observer, seconds: Mapping[str, float]) -> None:
        """`seconds` are expected of each part, in their order."""
        self.observer, self._seconds = observer, dict(seconds)
        self._show = observer.part("bench (expected seconds)")
        self._before, self._part, self._ticks, self._total = 0.0, "", 0, 1

    def begin(self, part: str, ticks: int) -> Callable[[], None]:
        """A part starts that will tick so often; what it calls for each."""
        if self._part:
            self._before += self._seconds.get(self._part, 0)
        self._part, self._ticks, self._total = part, 0, max(ticks, 1)
        self.observer.note(f"bench: {part}")
        return self._tick

    def _tick(self) -> None:
        self._ticks = min(self._ticks + 1, self._total)
        share = self._seconds.get(self._part, 0) * self._ticks / self._total
        self._show(round(self._before + share), round(sum(self._seconds.values())))
