"""The traces of the processes (ranks) of one run, read as one (traces/README.md, Ranks)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from msgspec.structs import replace
from numpy.typing import NDArray

from harness.models.graph import Graph, Stage
from harness.trace.reader import Step, Trace
from harness.trace.schema import HEADER_FILE, OWN, StepEntry, TensorEntry, TraceError

SHARED = ("params/", "inputs/params/", "grads/", "update/", "optimizer/")  # the same on all ranks
WEIGHTS = ("params/", "inputs/params/")
KEY = "ranks"  # in the header's spec: how many processes the run had
# What a rank can go on with of a run in one process: what is the same on all ranks, or was first.
STARTS = (*SHARED, "buffers/", "inputs/buffers/")

T = TypeVar("T")


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
        alike = {t.steps for t in self.ranks.values()} == {self.steps}
        whole = alike and not self.missing and all(t.header.complete for t in self.ranks.values())
        self.header = replace(self.header, complete=whole)

    @cached_property
    def graph(self) -> Graph | None:
        """The stages of all ranks.

        Gradients have none: each is the mean of what the ranks made, of which no trace keeps one.
        """
        stages: dict[str, Stage] = {}
        for k, trace in self.ranks.items():
            own = trace.graph
            whole = own.renamed(partial(whole_name, rank=k)) if own else Graph({})
            stages = {**whole.stages, **stages}
        stages = {n: stage for n, stage in stages.items() if not n.startswith("grads/")}
        return Graph(stages) if stages else None

    def entry(self, step: int) -> StepEntry:
        """All tensors of a step, by the names of the whole."""
        return self.ranked_step(step).entry

    def plain_entry(self, step: int) -> StepEntry:
        """As `entry`."""
        return self.entry(step)

    def step(self, step: int) -> Step:
        """One step of all ranks."""
        return self.ranked_step(step)

    def plain_step(self, step: int) -> Step:
        """The same: its names are made here."""
        return self.ranked_step(step)

    def ranked_step(self, step: int) -> RankedStep:
        """The same."""
        if step not in self.steps:
            raise TraceError(f"{self.path}: no step {step} that all ranks finished")
        return RankedStep(self, {k: t.step(step) for k, t in self.ranks.items()})

    def check(self) -> Iterator[tuple[int, list[str]]]:
        """As that of one trace, of every rank's."""
        for rank in self.ranks.values():
            yield from rank.check()


class RankedStep(Step):
    """A step of all ranks, whose tensors lie in the traces of each."""

    def __init__(self, trace: RankedTrace, steps: dict[int, Step]) -> None:
        """Those that are the same on all ranks once, the others of each rank.

        Where ranks drift apart, what rank 0 has goes by the plain names, so that it is compared.
        """
        named = {k: {e.name: e for e in step.entries} for k, step in steps.items()}
        first, *rest = named.values()
        apart = [
            name
            for name in first
            if name.startswith(SHARED) and not all(_same(o.get(name), first[name]) for o in rest)
        ]
        # Gradients that are not the same and make the same weights are yet to be reduced.
        drifted = any(n.startswith(WEIGHTS) for n in apart) or not any(
            n.startswith(WEIGHTS) for n in first
        )
        self.drift = apart[0] if apart and drifted else None
        local = () if drifted else apart
        self._places: dict[str, tuple[Step, TensorEntry]] = {}
        tensors: list[TensorEntry] = []
        for name in dict.fromkeys(n for entries in named.values() for n in entries):
            shared = name.startswith(SHARED) and name in first and name not in local
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
        step, own = self._place(entry)
        return step.read(own)

    def view(self, entry: TensorEntry) -> NDArray[Any]:
        """From the trace of its rank."""
        step, own = self._place(entry)
        return step.view(own)

    def _place(self, entry: TensorEntry) -> tuple[Step, TensorEntry]:
        """Where it lies; one that has another name, by a map, says which it had."""
        return self._places[entry.same_as.name if entry.same_as else entry.name]

    def strangers(self) -> list[str]:
        """Those of the ranks' files."""
        steps = {id(step): step for step, _ in self._places.values()}
        return [text for step in steps.values() for text in step.strangers()]


def rank_name(name: str, rank: int) -> str:
    """The name of one rank's own tensor: its phase stays first."""
    phase, slash, rest = name.partition("/")
    return f"{phase}/rank{rank}/{rest}" if slash else f"{phase}/rank{rank}"


def whole_name(name: str, rank: int) -> str:
    """The name that a tensor of one rank has among those of all."""
    return name if name.startswith(SHARED) else rank_name(name, rank)


def crosses(a: Sequence[str], b: Sequence[str]) -> bool:
    """Whether tensors of single ranks are paired with those of a run in one process."""
    return any(map(OWN.fullmatch, a)) != any(map(OWN.fullmatch, b))


def names_of_rank(tensors: Mapping[str, T], rank: int) -> dict[str, T]:
    """What of the tensors of all ranks is of one, by the names that it has itself.

    Of those of a run in one process, what all ranks have: no rank goes on with its whole batch.
    """
    own: dict[str, T] = {}
    ranked = {name: found for name in tensors if (found := OWN.fullmatch(name))}
    for name, tensor in tensors.items():
        if name not in ranked and (ranked or name.startswith(STARTS)):
            own[name] = tensor
    for name, found in ranked.items():
        if int(found["rank"]) == rank:
            own[f"{found['phase']}/{found['rest']}"] = tensors[name]
    return own


def crosses_ranks(phase: str, a: Sequence[str], b: Sequence[str]) -> bool:
    """Whether these are gradients of single ranks' losses, and of that of the whole batch.

    They lie in the same place, and are other numbers: each loss is a mean over rows of its own.
    """
    return phase == "backward/" and crosses(a, b)


def _same(a: TensorEntry | None, b: TensorEntry) -> bool:
    """Whether a rank has the same tensor, or keeps none of it (slots of some optimizers)."""
    return a is None or (a.dtype, a.shape, a.hash) == (b.dtype, b.shape, b.hash)


def rank_notes(trace: Trace) -> Iterator[str]:
    """Ranks that are missing or stopped, and the first shared tensor that ranks differ in."""
    trace = getattr(trace, "own", trace)
    if not isinstance(trace, RankedTrace):
        return
    yield from (f"{trace.path}: rank {k} left no trace" for k in trace.missing)
    most = max(len(one.steps) for one in trace.ranks.values())
    for k, one in trace.ranks.items():
        if not one.header.complete or len(one.steps) < most:
            yield f"{trace.path}: rank {k} stopped after {len(one.steps)} of {most} steps"
    for step in trace.steps:
        found = trace.ranked_step(step).drift
        if found:
            yield f"{trace.path}: ranks differ in {found} from step {step} on"
            return


def single(trace: Trace) -> dict[str, Trace]:
    """The traces of one process that a trace is of, by what is added to its label."""
    own = getattr(trace, "own", trace)
    if not isinstance(own, RankedTrace):
        return {"": trace}
    return {f", rank {k}": one for k, one in own.ranks.items()}


def rank_steps(path: str | Path) -> str:
    """How far each rank came, in brackets; "" where a trace is of one process."""
    if not is_ranked(path):
        return ""
    try:
        trace = RankedTrace(path)
    except TraceError as error:
        return f" ({error})"
    found = {
        k: f"{len(one.steps)} step{'s' * (len(one.steps) != 1)}" for k, one in trace.ranks.items()
    }
    found |= dict.fromkeys(trace.missing, "no trace")
    return f" ({', '.join(f'rank {k}: {text}' for k, text in sorted(found.items()))})"


def drifted(name: str | None) -> tuple[str, int] | None:
    """The tensor and the rank, where a name is of what one rank has of its own and should share."""
    found = OWN.fullmatch(name or "")
    shared = found and f"{found['phase']}/{found['rest']}"
    return (shared, int(found["rank"])) if found and shared and shared.startswith(SHARED) else None
