"""Pairs of traces to compare: made once, removed when they have been."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import msgspec

from harness.bench.paced import Span, TimedSide, trace_bytes
from harness.bench.place import Place
from harness.errors import HarnessError
from harness.runs.processes import TWINS
from harness.spec import Capture, ModelSpec, TrainSpec
from harness.trace import remove_trace

CALM = 0.1  # a learning rate at which free twins stay close for as long as they are compared


class Pair(NamedTuple):
    """Two traces, the bytes of both, and the time the first took to be made."""

    a: Path
    b: Path
    bytes: int
    span: Span

    def remove(self) -> None:
        """Delete both."""
        remove_trace(self.a)
        remove_trace(self.b)


class Pairs:
    """Sides that make traces; use as a context manager."""

    def __init__(self, place: Place) -> None:
        """No process is started yet."""
        self.place = place
        self._sides: dict[str, TimedSide] = {}

    def make(
        self,
        name: str,
        model: ModelSpec,
        train: TrainSpec,
        steps: int,
        level: Capture | None = None,
        twins: tuple[str, str] = ("pt", "tf"),
    ) -> Pair:
        """Run both twins and trace every step. Raises HarnessError for one that fails."""
        calm, spans, traces = msgspec.structs.replace(train, lr=CALM), [], []
        for twin in twins:
            capture = level or Capture()
            run = self.place.run(f"{name}-{twin}", model, calm, steps, capture)
            if twin not in self._sides:
                side = TimedSide(TWINS[twin], f"maker-{twin}", self.place.folder, run.threads)
                self._sides[twin] = side
            spans.append(self._sides[twin].whole(run, 1))
            traces.append(Path(run.trace))
        return Pair(traces[0], traces[1], sum(span.bytes for span in spans), spans[0])

    def twice(self, trace: Path) -> Pair:
        """A trace and another folder with the same content."""
        other = trace.with_name(f"same-as-{trace.name}")
        remove_trace(other)
        other.mkdir()
        try:
            for file in trace.iterdir():
                os.link(file, other / file.name)
        except OSError as error:
            raise HarnessError(f"the trace cannot be copied: {error}") from None
        size = 2 * trace_bytes(trace)[0]
        return Pair(trace, other, size, Span(0, 0, 0, size // 2, 0))

    def __enter__(self) -> Pairs:
        """Return the pairs themselves."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes."""
        for side in self._sides.values():
            side.stop()
