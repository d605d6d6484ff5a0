"""Between which names and layouts the sides of a run are compared: a map for each pair."""

from __future__ import annotations

from pathlib import Path

from harness.align import NONE, align
from harness.observer import Observer
from harness.spec import AnyRun, Follow, HandOver, ScriptSpec
from harness.trace import Alignment, open_trace, read_alignment, write_alignment


class Maps:
    """The maps of a run's pairs of sides, each searched once and left beside the traces."""

    def __init__(self, folder: Path, given: str | Path | None, watcher: Observer) -> None:
        """`given` is a map from every other side to the reference; "none": names are compared."""
        self.folder, self.given, self.watcher = folder, given, watcher
        self._found: dict[tuple[str, str], Alignment | None] = {}

    def of(self, a: AnyRun, b: AnyRun, again: bool = False) -> Alignment | None:
        """The map from run a to run b; None where names are enough, or no script is a side.

        Searched in their traces, at the first call or `again`. Raises HarnessError for a bad map.
        """
        scripts = isinstance(a, ScriptSpec) or isinstance(b, ScriptSpec)
        if not scripts or self.given == NONE:
            return None
        key = a.label, b.label
        if key not in self._found or (again and self.given is None):
            found = read_alignment(self.given) if self.given is not None else self._search(a, b)
            self._found[key] = found
            self._leave(found, self.file(*key))
        return self._found[key]

    def _leave(self, found: Alignment | None, file: Path) -> None:
        """Write the map, over one of an earlier run; nothing of that stays where none is needed."""
        if found is None:
            file.unlink(missing_ok=True)
        elif self.given is None or not (file.exists() and file.samefile(self.given)):
            write_alignment(found, file)

    def known(self, a: str, b: str) -> Alignment | None:
        """The map of two sides that was found before, by their labels."""
        return self._found.get((a, b))

    def same(self, a: str, b: str, as_: tuple[str, str]) -> None:
        """Two further runs of sides are compared through the map of these sides."""
        found = self.known(*as_)
        if found is not None:
            self._found[a, b] = found
            self._leave(found, self.file(a, b))

    def file(self, a: str, b: str) -> Path:
        """Where the map of two sides lies."""
        return self.folder / f"{a}-{b}.map.toml"

    def follow(self, follower: str, leader: AnyRun, level: str, pair: tuple[str, str]) -> Follow:
        """What a side is told that follows another of the `pair` (a, b), by their labels."""
        there = self.known(*pair) is not None
        file = str(self.file(*pair).resolve()) if there else None
        return Follow(leader.trace, level, file, reverse=there and follower == pair[0])  # type: ignore[arg-type]

    def hand_over(self, run: AnyRun, hand: HandOver, leader: AnyRun) -> HandOver:
        """What run is handed of the reference's trace."""
        found = self.known(run.label, leader.label)
        if found is None:
            return HandOver(hand.what, leader.trace, seed=hand.seed)
        # A file of its own: what is found of the whole run later is another map.
        file = self.folder / f"{run.label}-{leader.label}.start.toml"
        write_alignment(found, file)
        return HandOver(hand.what, leader.trace, str(file.resolve()), True, hand.seed)

    def _search(self, a: AnyRun, b: AnyRun) -> Alignment | None:
        traces = open_trace(a.trace), open_trace(b.trace)
        step = next((s for s in traces[0].steps if s in traces[1].steps), None)
        if step is None:
            return None
        shapes = [{e.name: e.shape for e in trace.entry(step).tensors} for trace in traces]
        if shapes[0] == shapes[1]:
            return None
        return align(*traces, progress=self.watcher.part(f"align {a.label} {b.label}"))
