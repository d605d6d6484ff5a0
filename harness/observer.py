"""Who is told what a run is doing."""

from __future__ import annotations

from collections.abc import Callable


class Observer:
    """Told what a run is doing. This one says nothing; the command line's draws progress."""

    def note(self, text: str) -> None:
        """A fact about the run, for people."""

    def begin(self, what: str, total: int) -> None:
        """A part of the run starts: a side, or the diff; it has `total` steps."""

    def advance(self, what: str, done: int) -> None:
        """`done` steps of a part are done."""

    def part(self, what: str) -> Callable[[int, int], None]:
        """A progress callback (done, total) for one part, begun at its first call."""
        begun: list[str] = []

        def progress(done: int, total: int) -> None:
            if not begun:
                begun.append(what)
                self.begin(what, total)
            self.advance(what, done)

        return progress
