"""The whole benchmark: its parts in turn, each kept when a later one fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from harness.bench import diffing, growth, recording, tracing, twins
from harness.bench.machine import describe_machine
from harness.bench.paced import short
from harness.bench.place import VOCABULARY, Place, check_room, sized
from harness.bench.result import PARTS, BenchResult, Section
from harness.bench.rounds import Progress
from harness.errors import HarnessError
from harness.observer import Observer
from harness.runs.files import step_bytes
from harness.spec import preset

SMALL, MEDIUM = "zaremba-small", "zaremba-medium"
WIDEST = 650  # hidden units
LEFT_OUT = ("twin, autograd", "stock, compiled", "twin, compiled")


class Plan(NamedTuple):
    """What every part does."""

    twins: tuple[twins.Plan, ...]
    tracing: tuple[tracing.Plan, ...]
    record: recording.Plan
    diff: diffing.Plan
    startup: int
    growth: growth.Plan
    seconds: dict[str, float]


def plan(quick: bool, rounds: int | None) -> Plan:
    """The default plan, or the quick one; `rounds` replaces every number of rounds."""

    def often(default: int) -> int:
        return rounds or default

    if quick:
        return Plan(
            (twins.Plan(SMALL, often(3), 5, LEFT_OUT),),
            (tracing.Plan(SMALL, often(2), 10),),
            recording.Plan((recording.TINY,), often(3), 20),
            diffing.Plan(2_000_000, ("float32",), (SMALL,), often(3), often(2)),
            often(3),
            growth.Plan((50, 200), often(1), 4, (10, 100)),
            {"twins": 50, "tracing": 30, "record": 60, "diff": 20, "startup": 15, "growth": 25},
        )
    return Plan(
        (twins.Plan(SMALL, often(7), 8), twins.Plan(MEDIUM, often(3), 3, ("twin, autograd",))),
        (tracing.Plan(SMALL, often(5), 20), tracing.Plan(MEDIUM, often(3), 10)),
        recording.Plan((recording.LARGE, recording.TINY), often(5), 20),
        diffing.Plan(20_000_000, ("float32", "float64"), (SMALL,), often(7), often(3)),
        often(7),
        growth.Plan((50, 200, 400, WIDEST), often(3), 6, (10, 100, 1_000, 10_000)),
        {"twins": 360, "tracing": 240, "record": 400, "diff": 90, "startup": 40, "growth": 150},
    )


def bench(
    folder: Path,
    observer: Observer | None = None,
    *,
    only: Sequence[str] = PARTS,
    quick: bool = False,
    rounds: int | None = None,
    planned: Plan | None = None,
    keep: Callable[[BenchResult], None] = lambda result: None,
) -> BenchResult:
    """Measure the parts `only` in `folder`, where there must be room for traces.

    `keep` is given the result after every part: what was found stays, also where a later part
    fails. A part that fails has its `error`. Raises HarnessError for bad arguments or a full disk.
    """
    unknown = [part for part in only if part not in PARTS]
    if unknown or not only:
        named = ", ".join(unknown) or "nothing"
        raise HarnessError(f"--only {named}: there are: {', '.join(PARTS)}")
    todo = planned or plan(quick, rounds)
    check_room(folder, _room(todo, only))
    place = Place(folder)
    settings = {
        "text": f"{place.text}, vocabulary {VOCABULARY:,}",
        "mode": "quick: too few rounds to be published" if quick else "default",
        "parts": ", ".join(only),
    }
    result = BenchResult(describe_machine(), settings)
    with_growth = bool({"tracing", "diff"}.intersection(only)) and bool(todo.growth.hidden)
    wanted = [part for part in PARTS if part in only] + ["growth"] * with_growth
    observer = observer or Observer()
    progress = Progress(observer, {part: todo.seconds[part] for part in wanted})
    measure = _Parts(place, todo, progress)
    for part in wanted:
        for name, section in measure.part(part).items():
            if name in only:
                before = result.sections.get(name, Section())
                sections = {**result.sections, name: before.plus(section)}
                result = msgspec.structs.replace(result, sections=sections)
        keep(result)
    return result


class _Parts:
    """The parts as functions of their plans; the second uses what the first found."""

    def __init__(self, place: Place, todo: Plan, progress: Progress) -> None:
        self.place, self.todo, self.progress = place, todo, progress
        self.twins: Section | None = None

    def part(self, name: str) -> dict[str, Section]:
        """What a part found, by the section that it belongs to; what ended it, if it was ended."""
        try:
            sections: dict[str, Section] = getattr(self, f"_{name}")()
        except Exception as error:
            # Whatever it was: the parts before it are worth an hour, and the next may do better.
            reason = short(f"{type(error).__name__}: {error}")
            names = ("tracing", "diff") if name == "growth" else (name,)
            sections = {each: Section(error=f"{name}: {reason}") for each in names}
        return sections

    def _twins(self) -> dict[str, Section]:
        tick = self.progress.begin("twins", twins.ticks(self.todo.twins))
        self.twins = twins.time_twins(self.place, self.todo.twins, tick)
        return {"twins": self.twins}

    def _tracing(self) -> dict[str, Section]:
        tick = self.progress.begin("tracing", tracing.ticks(self.todo.tracing))
        mode = partial(twins.autograd_is_faster, self.twins)
        return {"tracing": tracing.time_tracing(self.place, self.todo.tracing, mode, tick)}

    def _record(self) -> dict[str, Section]:
        tick = self.progress.begin("record", recording.ticks(self.todo.record))
        return {"record": recording.time_recording(self.place.folder, self.todo.record, tick)}

    def _diff(self) -> dict[str, Section]:
        tick = self.progress.begin("diff", diffing.ticks(self.todo.diff))
        return {"diff": diffing.time_diff(self.place, self.todo.diff, tick)}

    def _startup(self) -> dict[str, Section]:
        tick = self.progress.begin("startup", diffing.startup_ticks(self.todo.startup))
        return {"startup": diffing.time_startup(self.place, self.todo.startup, tick)}

    def _growth(self) -> dict[str, Section]:
        tick = self.progress.begin("growth", growth.ticks(self.todo.growth))
        return growth.time_growth(self.place, self.todo.growth, tick)._asdict()


def _room(todo: Plan, only: Sequence[str]) -> int:
    """Bytes that traces take at one time, at most."""
    needed = [0]
    if "tracing" in only:
        needed += [step_bytes(*preset(p.size, VOCABULARY)) * p.steps for p in todo.tracing]
    if "record" in only:
        needed.append(recording.room(todo.record.sizes, todo.record.steps))
    if "diff" in only:
        sizes = [step_bytes(*preset(size, VOCABULARY)) for size in todo.diff.sizes]
        needed += [2 * diffing.STEPS * size for size in sizes]
    if "startup" in only:
        needed.append(2 * diffing.STEPS * step_bytes(*preset(SMALL, VOCABULARY)))
    if {"tracing", "diff"}.intersection(only):
        needed += [step_bytes(*sized(h)) * 2 * todo.growth.steps for h in todo.growth.hidden]
    return max(needed)
