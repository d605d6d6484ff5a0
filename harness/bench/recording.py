"""What `harness.record` costs a script: a stock GPT in PyTorch, recorded and bare."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from harness.bench.commands import launch
from harness.bench.result import Row, Section, Spread, Target
from harness.bench.rounds import Samples, interleave
from harness.runs.processes import BOOT, ROOT
from harness.trace import remove_trace

PROGRAM = "pt_impl.bench.gpt"
WARM = 3  # steps that are not timed: the first two are written with how each tensor is made
BARE = "bare"
CONTESTANTS = (BARE, "hash", "stats", "full")
MOST = 1.3  # times the bare step, at level stats


class Size(NamedTuple):
    """A GPT: layers, width, heads, length of a row; `held` whether it is held to the target."""

    name: str
    layers: int
    width: int
    heads: int
    length: int
    held: bool

    @property
    def arguments(self) -> list[str]:
        """As the program takes them."""
        return [str(n) for n in (self.layers, self.width, self.heads, self.length)]


LARGE = Size("GPT, 6 layers of 384, 8 rows of 128", 6, 384, 6, 128, True)
TINY = Size("GPT, 2 layers of 32, 8 rows of 16", 2, 32, 4, 16, False)


class Plan(NamedTuple):
    """Sizes, rounds of each, and timed steps of a round."""

    sizes: tuple[Size, ...]
    rounds: int
    steps: int


def ticks(plan: Plan) -> int:
    """How often `time_recording` will tick."""
    return len(plan.sizes) * plan.rounds * len(CONTESTANTS)


def time_recording(folder: Path, plan: Plan, tick: Callable[[], None]) -> Section:
    """Time a step of every size at every level; traces are removed once they are measured."""
    section = Section()
    for size in plan.sizes:
        turns = {name: partial(_seconds, folder, size, plan.steps, name) for name in CONTESTANTS}
        section = section.plus(_section(size, interleave(turns, plan.rounds, tick)))
    return section


def _seconds(folder: Path, size: Size, steps: int, level: str) -> float:
    """Seconds a step: their median, and a share of what was written after the last of them.

    Raises HarnessError where the script cannot be run.
    """
    trace = folder / "recorded.trace"
    command = [sys.executable, "-P", "-c", BOOT, str(ROOT), PROGRAM]
    try:
        done = launch([*command, *size.arguments, str(WARM + steps), level, str(trace)], folder)
    finally:
        remove_trace(trace)
    found = json.loads(done.output)
    step = statistics.median(found["seconds"][WARM:])
    return float(step + found["tail"] / (WARM + steps))


def _section(size: Size, samples: Samples[float]) -> Section:
    rows, measured = [], None
    for level in CONTESTANTS:
        if level not in samples or BARE not in samples:
            reason = samples.missing.get(level) or samples.missing.get(BARE, "not run")
            rows.append(Row.without(size.name, level, reason))
            continue
        ratio = Spread.ratio(samples[level], samples[BARE])
        measured = ratio.median if level == "stats" else measured
        rows.append(Row(size.name, level, Spread.of(samples[level]), None, _ratios(level, ratio)))
    target = Target.of(f"{size.name}: stats, time / {BARE}", measured, MOST)
    return Section(tuple(rows), (target,) if size.held else ())


def _ratios(level: str, ratio: Spread) -> dict[str, Spread]:
    return {} if level == BARE else {f"time / {BARE}": ratio}


def room(sizes: Sequence[Size], steps: int) -> int:
    """Bytes that the largest trace takes: weights five times a step, activations, gradients."""
    each = [
        4 * (5 * 12 * s.layers * s.width**2 + 26 * 8 * s.layers * s.width * s.length) for s in sizes
    ]
    return max(each, default=0) * (WARM + steps)
