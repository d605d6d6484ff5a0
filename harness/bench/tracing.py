"""What tracing costs: time a step and bytes a step, level by level."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from harness.bench.paced import Span, TimedSide
from harness.bench.place import NEVER, VOCABULARY, Place
from harness.bench.result import Row, Section, Spread, Target
from harness.bench.rounds import Samples, interleave
from harness.bench.twins import FRAMEWORKS
from harness.runs.processes import TWINS
from harness.spec import Capture, ModelSpec, TrainSpec, preset
from harness.trace import remove_trace

WARM = 3
UNTRACED = "untraced"
CAPTURES = {
    UNTRACED: NEVER,
    "hash": Capture(level="hash", first=WARM + 1),
    "stats": Capture(level="stats", first=WARM + 1),
    "stats, every 10": Capture(level="stats", first=WARM + 1, every=10),
    "full": Capture(level="full", first=WARM + 1),
}
EPOCH = 2_300  # steps of an epoch of PTB at zaremba-small
# The targets: time as a ratio to the untraced step; bytes of level stats.
MOST = {"stats": 1.25, "stats, every 10": 1.05, "full": 1.5}
MOST_FULL_MEDIUM = 1.3
MOST_BYTES, MOST_EPOCH = 100e3, 250e6


class Plan(NamedTuple):
    """A size to time tracing at; `steps` is a multiple of 10."""

    size: str
    rounds: int
    steps: int


class Contest(NamedTuple):
    """A twin and what it runs at every level: rounds, and traced steps of each."""

    twin: str
    model: ModelSpec
    train: TrainSpec
    rounds: int
    steps: int


def ticks(plans: Sequence[Plan]) -> int:
    """How often `time_tracing` will tick."""
    return sum(plan.rounds * len(CAPTURES) * len(FRAMEWORKS) for plan in plans)


def time_tracing(
    place: Place,
    plans: Sequence[Plan],
    autograd: Callable[[str, str], bool],
    tick: Callable[[], None],
) -> Section:
    """Time every level of both twins at every size; `autograd` chooses the eager mode of a twin."""
    section = Section()
    for plan in plans:
        model, train = preset(plan.size, VOCABULARY)
        for twin in FRAMEWORKS:
            chosen = msgspec.structs.replace(train, autograd=autograd(plan.size, twin))
            contest = Contest(twin, model, chosen, plan.rounds, plan.steps)
            samples = time_levels(place, contest, tick)
            section = section.plus(_section(plan.size, twin, samples))
    return section


def time_levels(
    place: Place,
    contest: Contest,
    tick: Callable[[], None],
    captures: Mapping[str, Capture] = CAPTURES,
) -> Samples[Span]:
    """Whole runs of a twin at every level, in turn; each trace is removed once it is measured."""
    label, steps = f"traced-{contest.twin}", WARM + contest.steps
    side = TimedSide(TWINS[contest.twin], label, place.folder, 1)

    def timed(level: str) -> Span:
        run = place.run(label, contest.model, contest.train, steps, captures[level])
        try:
            return side.whole(run, WARM)
        finally:
            remove_trace(run.trace)

    try:
        turns = {level: partial(timed, level) for level in captures}
        return interleave(turns, contest.rounds, tick)
    finally:
        side.stop()


def step_seconds(samples: Samples[Span], level: str) -> list[float]:
    """Seconds a step of each round: the steps, and what was written after the last of them.

    Of the time after the last step, what the untraced run takes there (it saves the weights) is
    none of tracing.
    """
    if level == UNTRACED:
        return [span.step for span in samples[level]]
    pairs = zip(samples[level], samples[UNTRACED], strict=True)
    return [own.step + max(own.tail - base.tail, 0) / own.steps for own, base in pairs]


def _section(size: str, twin: str, samples: Samples[Span]) -> Section:
    group, rows = f"{size}, {FRAMEWORKS[twin]}", []
    ratios: dict[str, float] = {}
    for level in CAPTURES:
        if level not in samples or UNTRACED not in samples:
            reason = samples.missing.get(level) or samples.missing.get(UNTRACED, "not run")
            rows.append(Row.without(group, level, reason))
            continue
        own, base = step_seconds(samples, level), step_seconds(samples, UNTRACED)
        last, figures = samples[level][-1], {}
        if level != UNTRACED:
            figures["bytes a step"] = last.bytes / last.steps
            figures["index bytes a step"] = last.index_bytes / last.steps
        ratio = Spread.ratio(own, base)
        ratios[level] = ratio.median
        rows.append(Row(group, level, Spread.of(own), None, {f"time / {UNTRACED}": ratio}, figures))
    return Section(tuple(rows), tuple(_targets(size, group, rows, ratios)))


def _targets(
    size: str, group: str, rows: Sequence[Row], ratios: Mapping[str, float]
) -> list[Target]:
    targets = []
    for level, most in MOST.items():
        bound = MOST_FULL_MEDIUM if level == "full" and size == "zaremba-medium" else most
        targets.append(Target.of(f"{group}: {level}, time / untraced", ratios.get(level), bound))
    stats = next((row for row in rows if row.name == "stats"), None)
    size_of = stats.figures.get("bytes a step") if stats else None
    targets.append(Target.of(f"{group}: stats, bytes a step", size_of, MOST_BYTES, "B"))
    epoch = None if size_of is None else size_of * EPOCH
    what = f"{group}: stats, an epoch of {EPOCH:,} steps"
    return [*targets, Target.of(what, epoch, MOST_EPOCH, "B")]
