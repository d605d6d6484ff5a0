"""How costs grow with the size of the model and with the number of steps."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import NamedTuple

from harness.bench.diffing import TINY, diff_command
from harness.bench.pairs import Pairs
from harness.bench.place import Place, sized
from harness.bench.result import Fit, Section
from harness.bench.tracing import CAPTURES, UNTRACED, Contest, step_seconds, time_levels
from harness.errors import HarnessError
from harness.spec import Capture

LEVELS = (UNTRACED, "stats", "full")


class Plan(NamedTuple):
    """Widths of the model, rounds and steps of each, and numbers of steps of a tiny one."""

    hidden: tuple[int, ...]
    rounds: int
    steps: int
    lengths: tuple[int, ...]
    diffs: bool = True


class Growth(NamedTuple):
    """What belongs to the part "tracing", and what to the part "diff"."""

    tracing: Section
    diff: Section


def ticks(plan: Plan) -> int:
    """How often `time_growth` will tick."""
    return len(plan.hidden) * (len(LEVELS) * plan.rounds + 1) + len(plan.lengths)


def time_growth(place: Place, plan: Plan, tick: Callable[[], None]) -> Growth:
    """Measure both curves; where one fails, the other and what was measured of it stay."""
    sizes = _over_sizes(place, plan, tick)
    steps = _over_steps(place, plan, tick)
    return Growth(sizes.tracing.plus(steps.tracing), sizes.diff.plus(steps.diff))


Points = list[tuple[float, float]]


def _over_sizes(place: Place, plan: Plan, tick: Callable[[], None]) -> Growth:
    """One twin at several widths: seconds and bytes a step, and seconds of a diff."""
    step: dict[str, Points] = {level: [] for level in LEVELS}
    stored: dict[str, Points] = {"stats": [], "full": []}
    diffs: Points = []
    errors: dict[str, str] = {}
    captures = {level: CAPTURES[level] for level in LEVELS}
    for hidden in plan.hidden:
        contest = Contest("pt", *sized(hidden), plan.rounds, plan.steps)
        samples = time_levels(place, contest, tick, captures)
        for level, reason in samples.missing.items():
            errors["tracing"] = f"growth, {hidden} units, {level}: {reason}"
        if "full" in samples and UNTRACED in samples:
            last = samples["full"][-1]
            size = last.bytes / last.steps
            for level in samples:
                step[level].append((size, median(step_seconds(samples, level))))
                if level in stored:
                    own = samples[level][-1]
                    stored[level].append((size, own.bytes / own.steps))
        try:
            diffs += [_diff_of_size(place, hidden, plan)] if plan.diffs else []
        except HarnessError as error:
            errors["diff"] = f"growth, {hidden} units: {error}"
        tick()
    x = "bytes of a fully traced step"
    timed = [Fit.of(f"{name}: time of a step", x, "s", points) for name, points in step.items()]
    kept = [Fit.of(f"{name}: bytes of a step", x, "B", points) for name, points in stored.items()]
    diffed = Fit.of("harness diff over sizes", "bytes of both traces", "s", diffs)
    return Growth(
        Section(growth=(*timed, *kept), error=errors.get("tracing")),
        Section(growth=(diffed,) if plan.diffs else (), error=errors.get("diff")),
    )


def _diff_of_size(place: Place, hidden: int, plan: Plan) -> tuple[float, float]:
    """Bytes of a pair of full traces, and the seconds of their diff."""
    steps = 4
    with Pairs(place) as pairs:
        pair = pairs.make(f"size-{hidden}", *sized(hidden), steps)
    try:
        seconds = [diff_command(place, pair, steps).seconds for _ in range(plan.rounds)]
    finally:
        pair.remove()
    return float(pair.bytes), median(seconds)


def _over_steps(place: Place, plan: Plan, tick: Callable[[], None]) -> Growth:
    """A tiny model at level stats, longer and longer: run, trace, diff."""
    runs: Points = []
    sizes: Points = []
    diffs: Points = []
    peaks: Points = []
    error = None
    with Pairs(place) as pairs:
        for steps in plan.lengths:
            try:
                pair = pairs.make(f"long-{steps}", *TINY, steps, Capture("stats"), ("pt", "np"))
                runs.append((steps, pair.span.step * pair.span.steps + pair.span.tail))
                sizes.append((steps, pair.bytes / 2))
                done = diff_command(place, pair, steps, "--all")
                diffs.append((steps, done.seconds))
                peaks.append((steps, done.peak))
                pair.remove()
            except HarnessError as failed:
                error = f"growth, {steps} steps: {failed}"
            tick()
    tiny = "tiny model, stats"
    return Growth(
        Section(
            growth=(
                Fit.of(f"{tiny}: a run", "steps", "s", runs),
                Fit.of(f"{tiny}: a trace", "steps", "B", sizes),
            ),
            error=error,
        ),
        Section(
            growth=(
                Fit.of(f"{tiny}: harness diff", "steps", "s", diffs),
                Fit.of(f"{tiny}: peak memory of harness diff", "steps", "B", peaks),
            ),
            error=error,
        ),
    )
