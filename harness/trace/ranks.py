"""The traces of the processes (ranks) of one run, read as one (traces/README.md, Ranks)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from numpy.typing import NDArray

from harness.models.graph import Graph
from harness.trace.reader import Step, Trace
from harness.trace.schema import HEADER_FILE, StepEntry, TensorEntry, TraceError

SHARED = ("params/", "inputs/params/", "grads/", "update/", "optimizer/")  # the same on all ranks
KEY = "ranks"  # in the header's spec: how many processes the run had


def rank_folder(path: str | Path, rank: int) -> Path:
    """Where the trace of one rank lies."""
    return Path(path) / f"rank-{rank}.trace"


def is_ranked(path: str | Path) -> bool:
    """Whether a folder holds the traces of several ranks, and is none itself."""
    return not (Path(path) / HEADER_FILE).exists() and any(Path(path).glob("rank-*.trace"))


class RankedTrace(Trace):
    """The traces of all ranks as one: shared tensors once, the others under names with a rank."""

    def __init__(self, path: str | Path, roles: Sequence[str] = ()) -> None:
        """Open them. Raises TraceError where that of rank 0 is missing, or one is damaged."""
        super().__init__(rank_folder(path, 0), roles)
        count = self.header.spec.get(KEY)
        if not isinstance(count, int) or isinstance(count, bool) or not 1 < count < 2**16:
            raise TraceError(f"{self.path}: its header does not say of how many ranks it is one")
        self.path, self._roles = Path(path), ()
        there = [k for k in range(count) if (rank_folder(path, k) / HEADER_FILE).exists()]
        self.ranks = {k: Trace(rank_folder(path, k), roles) for k in there}
        self.missing = tuple(k for k in range(count) if k not in self.ranks)
        common = set(self.steps).intersection(*(t.steps for t in self.ranks.values()))
        self.steps = tuple(sorted(common))
        whole = not self.missing and all(t.header.complete for t in self.ranks.values())
        self.header = replace(self.header, complete=whole)

    @cached_property
    def graph(self) -> Graph | None:
        """None: each rank's own tensors make the shared ones together, which no stage says."""
        return None

    def entry(self, step: int) -> StepEntry:
        """All tensors of a step, by the names of the whole."""
        return self.step(step).entry

    def plain_entry(self, step: int) -> StepEntry:
        """As `entry`."""
        return self.entry(step)

    def step(self, step: int) -> RankedStep:
        """One step of all ranks."""
        if step not in self.steps:
            raise TraceError(f"{self.path}: no step {step} that all ranks finished")
        return RankedStep(self, {k: t.step(step) for k, t in self.ranks.items()})

    def check(self) -> Iterator[tuple[int, list[str]]]:
        """As that of one trace, of every rank's."""
        for rank in self.ranks.values():
            yield from rank.check()

    def drift(self, step: int) -> str | None:
        """The first shared tensor of a step that is not the same on all ranks."""
        first, *rest = ({e.name: e for e in t.entry(step).tensors} for t in self.ranks.values())
        for name, entry in first.items():
            if name.startswith(SHARED) and not all(_same(o.get(name), entry) for o in rest):
                return name
        return None


class RankedStep(Step):
    """A step of all ranks, whose tensors lie in the traces of each."""

    def __init__(self, trace: RankedTrace, steps: dict[int, Step]) -> None:
        """Those that are the same on all ranks once; a shared one that is not, of each rank."""
        named = {k: {e.name: e for e in step.entries} for k, step in steps.items()}
        first = named[0]
        self._places: dict[str, tuple[Step, TensorEntry]] = {}
        tensors: list[TensorEntry] = []
        for name in dict.fromkeys(n for entries in named.values() for n in entries):
            shared = name.startswith(SHARED) and name in first
            for k, entries in named.items():
                entry = entries.get(name)
                if entry is None or (shared and k and _same(entry, first[name])):
                    continue
                new = name if shared and not k else rank_name(name, k)
                if new in self._places:
                    raise TraceError(f"{trace.path}: two tensors of a step are {new}")
                self._places[new] = steps[k], entry
                tensors.append(
                    replace(entry, name=new, same_as=None, op=None, operands=(), args={})
                )
        number = steps[0].number
        self.entry = StepEntry(step=number, bytes=0, tensors=tuple(tensors))
        super().__init__(trace, self.entry)
        self.path = steps[0].path

    def read(self, entry: TensorEntry) -> NDArray[Any]:
        """From the trace of its rank."""
        step, own = self._places[entry.name]
        return step.read(own)

    def view(self, entry: TensorEntry) -> NDArray[Any]:
        """From the trace of its rank."""
        step, own = self._places[entry.name]
        return step.view(own)

    def strangers(self) -> list[str]:
        """Those of the ranks' files."""
        steps = {id(step): step for step, _ in self._places.values()}
        return [text for step in steps.values() for text in step.strangers()]


def rank_name(name: str, rank: int) -> str:
    """The name of one rank's own tensor: its phase stays first."""
    phase, slash, rest = name.partition("/")
    return f"{phase}/rank{rank}/{rest}" if slash else f"{phase}/rank{rank}"


def _same(a: TensorEntry | None, b: TensorEntry) -> bool:
    return a is not None and (a.dtype, a.shape, a.hash) == (b.dtype, b.shape, b.hash)


def rank_notes(trace: Trace) -> Iterator[str]:
    """Ranks that are missing or stopped, and the first shared tensor that ranks differ in."""
    if not isinstance(trace, RankedTrace):
        return
    yield from (f"{trace.path}: rank {k} left no trace" for k in trace.missing)
    for k, one in trace.ranks.items():
        if not one.header.complete:
            yield f"{trace.path}: rank {k} stopped after {len(one.steps)} steps"
    for step in trace.steps:
        found = trace.drift(step)
        if found:
            yield f"{trace.path}: ranks differ in {found} from step {step} on"
            return


def single(trace: Trace) -> dict[str, Trace]:
    """The traces of one process that a trace is of, by what is added to its label."""
    if not isinstance(trace, RankedTrace):
        return {"": trace}
    return {f", rank {k}": one for k, one in trace.ranks.items()}
