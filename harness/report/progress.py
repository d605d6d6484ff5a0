"""Live progress on standard error: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from harness.observer import Observer

EVERY = 5.0  # seconds between two lines of a part where there is no terminal


@dataclass
class _Part:
    """A part under way: its bar, its steps, when it was last spoken of, when step 1 was done."""

    task: TaskID
    total: int
    said: float
    first: float = 0.0


class LiveObserver(Observer):
    """Draws the progress of a run, with an estimate of what remains; use as a context manager."""

    def __init__(self) -> None:
        """Standard error is looked at once: a terminal gets bars."""
        console = Console(stderr=True, markup=False, highlight=False)
        self._terminal = console.is_terminal
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not self._terminal,
        )
        self._parts: dict[str, _Part] = {}

    def __enter__(self) -> LiveObserver:
        """Start drawing."""
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove the bars."""
        self._bars.stop()

    def note(self, text: str) -> None:
        """A line above the bars."""
        self._bars.console.print(text, style="dim", soft_wrap=True)

    def begin(self, what: str, total: int) -> None:
        """A new bar."""
        task = self._bars.add_task(what, total=total)
        self._parts[what] = _Part(task, total, time.monotonic())

    def advance(self, what: str, done: int) -> None:
        """Move a bar; without a terminal, say so every few seconds."""
        part = self._parts[what]
        self._bars.update(part.task, completed=done)
        now = time.monotonic()
        # The first step comes after a framework's start: it says nothing about the next ones.
        part.first = part.first or now
        if not self._terminal and now - part.said >= EVERY and done > 1:
            part.said = now
            remaining = (now - part.first) / (done - 1) * (part.total - done)
            print(f"{what}: {done}/{part.total}, {remaining:.0f} s remain", file=sys.stderr)
