"""How fast arrays and whole traces are compared, and how long a command takes to start."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

import msgspec

from harness.bench.commands import (
    ALLCLOSE,
    COMPARE,
    COPY,
    HARNESS,
    LIBRARIES,
    Launched,
    Worker,
    launch,
)
from harness.bench.pairs import Pair, Pairs
from harness.bench.place import VOCABULARY, Place
from harness.bench.result import Row, Section, Spread, Target
from harness.bench.rounds import Samples, interleave
from harness.errors import HarnessError
from harness.runs.processes import ROOT
from harness.spec import ModelSpec, TrainSpec, preset

STEPS = 10
TINY = (ModelSpec(50, 8, 8, 1), TrainSpec(batch_size=3, bptt=5))
ROUNDING, IDENTICAL = "two traces that differ by rounding", "two identical traces"
WHOLE = f"harness diff, two {STEPS}-step small full traces"
PASS, NUMPY = "python -c pass", 'python -c "import numpy"'
IMPORT = f"import sys; sys.path.append({str(ROOT)!r}); import harness"
WITHOUT_NUMBA = (
    sys.executable,
    "-P",
    "-c",
    f"import sys; sys.path.append({str(ROOT)!r}); import harness.kernels; "
    "harness.kernels.choose(False); from harness.cli.main import main; main()",
)
# The targets.
LEAST_OF_ALLCLOSE, LEAST_OF_COPY, MOST_PEAK, MOST_START = 5.0, 0.7, 300e6, 1.5


class Plan(NamedTuple):
    """What to compare: elements of an array, dtypes, sizes of models, rounds of each."""

    elements: int
    dtypes: tuple[str, ...]
    sizes: tuple[str, ...]
    rounds: int
    whole_rounds: int


def ticks(plan: Plan) -> int:
    """How often `time_diff` will tick."""
    ways = sum(len(names) for names in LIBRARIES.values())
    return plan.rounds * ways * len(plan.dtypes) + plan.whole_rounds * 2 * len(plan.sizes)


def time_diff(place: Place, plan: Plan, tick: Callable[[], None]) -> Section:
    """Time compare against its peers, and `harness diff` of whole traces."""
    section = Section()
    for dtype in plan.dtypes:
        section = section.plus(_arrays(dtype, plan, tick))
    for size in plan.sizes:
        section = section.plus(_traces(place, size, plan.whole_rounds, tick))
    return section


def _arrays(dtype: str, plan: Plan, tick: Callable[[], None]) -> Section:
    group = f"{plan.elements:,} pairs of {dtype}"
    with ExitStack() as stack:
        ways: dict[str, Callable[[], float]] = {}
        for library, names in LIBRARIES.items():
            worker = stack.enter_context(Worker(library, dtype, plan.elements))
            ways |= {name: partial(worker.seconds, name) for name in names}
        first = interleave(ways, 1, lambda: None)  # compiles, and touches memory for the first time
        ways = {name: way for name, way in ways.items() if name not in first.missing}
        samples = interleave(ways, plan.rounds, tick)
    samples.missing |= first.missing
    size = 2 * plan.elements * int(dtype.removeprefix("float")) // 8
    every = [name for names in LIBRARIES.values() for name in names]
    rows = [_row(group, name, samples, (ALLCLOSE, COPY), size) for name in every]
    own = next(row.ratios for row in rows if row.name == COMPARE)
    bounds = ((ALLCLOSE, LEAST_OF_ALLCLOSE), (COPY, LEAST_OF_COPY))
    targets = []
    for peer, bound in bounds:
        ratio = own.get(f"speed / {peer}")
        what = f"{group}: compare, speed / {peer}"
        targets.append(Target.of(what, ratio.median if ratio else None, bound, at_least=True))
    return Section(tuple(rows), tuple(targets))


def _row(
    group: str, name: str, samples: Samples[float], peers: Sequence[str], size: int | None
) -> Row:
    """A contestant with its speed as a ratio to that of each peer."""
    if name not in samples:
        return Row.without(group, name, samples.missing.get(name, "not run"))
    spread = Spread.of(samples[name])
    ratios = {
        f"speed / {peer}": Spread.ratio(samples[peer], samples[name])
        for peer in peers
        if peer in samples
    }
    rate = None if size is None else size / 1e9 / spread.median
    return Row(group, name, spread, rate, ratios)


def diff_command(place: Place, pair: Pair, steps: int, *options: str) -> Launched:
    """`harness diff` of a pair; HarnessError where it did not compare all steps.

    A clean pair does not part: where it does, both traces are kept beside the place's folder.
    """
    done, result = _diffed(place, HARNESS, pair, options)
    if result.steps_compared != steps:
        again = _diffed(place, WITHOUT_NUMBA, pair, options)[1]
        kept = Path(mkdtemp(prefix="harness-parted-", dir=place.folder.parent))
        for trace in (pair.a, pair.b):
            trace.rename(kept / trace.name)
        raise HarnessError(
            f"it compared {result.steps_compared} steps of {steps}: {result.summary}; without "
            f"numba: {again.summary}; both traces are kept in {kept.name} of the temporary folder"
        )
    return done


class _Divergence(msgspec.Struct, frozen=True):
    """The part of a first divergence that is reported."""

    step: int
    tensor: str
    mismatches: int
    size: int
    a: Any
    b: Any


class _Result(msgspec.Struct, frozen=True):
    """The part of a diff's result that is looked at."""

    status: str
    steps_compared: int
    first_divergence: _Divergence | None

    @property
    def summary(self) -> str:
        first = self.first_divergence
        if first is None:
            return self.status
        return (
            f"{self.status} at step {first.step}, {first.tensor} ({first.mismatches} of "
            f"{first.size} elements, {first.a} | {first.b})"
        )


def _diffed(
    place: Place, harness: Sequence[str], pair: Pair, options: Sequence[str]
) -> tuple[Launched, _Result]:
    command = (*harness, "diff", str(pair.a), str(pair.b), "--json", *options)
    done = launch(command, place.folder, allowed=(0, 1))
    try:
        return done, msgspec.json.decode(done.output, type=_Result)
    except msgspec.MsgspecError:
        raise HarnessError(f"its output is no result: {done.last_line}") from None


def _traces(place: Place, size: str, rounds: int, tick: Callable[[], None]) -> Section:
    """`harness diff` end to end, of traces that differ everywhere and of the same twice."""
    group = f"harness diff, {size}, {STEPS} steps, full"
    with Pairs(place) as pairs:
        try:
            pair = pairs.make("diffed", *preset(size, VOCABULARY), STEPS)
        except HarnessError as error:
            return _missing(group, str(error))
    same = pairs.twice(pair.a)
    kinds = {ROUNDING: pair, IDENTICAL: same}
    turns = {name: partial(diff_command, place, p, STEPS) for name, p in kinds.items()}
    samples = interleave(turns, rounds, tick)
    rows, peak = [], None
    for name, each in kinds.items():
        if name not in samples:
            rows.append(Row.without(group, name, samples.missing.get(name, "not run")))
            continue
        spread = Spread.of([done.seconds for done in samples[name]])
        most = float(max(done.peak for done in samples[name]))
        peak = max(peak or 0.0, most)
        figures = {"bytes": float(each.bytes), "peak bytes": most}
        rows.append(Row(group, name, spread, each.bytes / 1e9 / spread.median, {}, figures))
    same.remove()
    pair.remove()
    whole = peak if not samples.missing else None
    return Section(tuple(rows), (Target.of(f"{group}: peak memory", whole, MOST_PEAK, "B"),))


def _missing(group: str, reason: str) -> Section:
    rows = tuple(Row.without(group, name, reason) for name in (ROUNDING, IDENTICAL))
    return Section(rows, (Target.of(f"{group}: peak memory", None, MOST_PEAK, "B"),))


def startup_ticks(rounds: int) -> int:
    """How often `time_startup` will tick."""
    return 6 * rounds


def time_startup(place: Place, rounds: int, tick: Callable[[], None]) -> Section:
    """Time commands from outside, against a bare interpreter."""
    group = "start-up"
    python = (sys.executable, "-c")

    def timed(*command: str) -> float:
        return launch(command, place.folder).seconds

    turns: dict[str, Callable[[], float]] = {
        PASS: partial(timed, *python, "pass"),
        NUMPY: partial(timed, *python, "import numpy"),
        'python -c "import harness"': partial(timed, *python, IMPORT),
        "harness --help": partial(timed, *HARNESS, "--help"),
    }
    with Pairs(place) as pairs:
        made: list[Pair] = []
        tiny = "harness diff, two identical tiny traces"
        turns[tiny] = _diffing(place, lambda: _tiny(pairs), 2, made)
        small = preset("zaremba-small", VOCABULARY)
        turns[WHOLE] = _diffing(place, lambda: pairs.make("start", *small, STEPS), STEPS, made)
        prepared = interleave(turns, 1, lambda: None)  # makes the traces, fills caches
    turns = {name: turn for name, turn in turns.items() if name not in prepared.missing}
    samples = interleave(turns, rounds, tick)
    samples.missing |= prepared.missing
    for pair in made:
        pair.remove()
    names = [*prepared, *prepared.missing]
    rows = tuple(_startup_row(group, name, samples) for name in names)
    whole = next((r.seconds for r in rows if r.name == WHOLE and r.seconds), None)
    target = Target.of(WHOLE, whole.median if whole else None, MOST_START, "s")
    return Section(rows, (target,))


def _startup_row(group: str, name: str, samples: Samples[float]) -> Row:
    if name not in samples:
        return Row.without(group, name, samples.missing.get(name, "not run"))
    own = samples[name]
    ratios = {f"time / {p}": Spread.ratio(own, samples[p]) for p in (PASS, NUMPY) if p in samples}
    return Row(group, name, Spread.of(own), None, ratios)


def _tiny(pairs: Pairs) -> Pair:
    """A tiny trace, twice."""
    made = pairs.make("tiny", *TINY, 2, twins=("np", "np"))
    return pairs.twice(made.a)


def _diffing(
    place: Place, make: Callable[[], Pair], steps: int, made: list[Pair]
) -> Callable[[], float]:
    """A command on a pair that is made before its first use, and put into `made`."""
    own: list[Pair] = []

    def timed() -> float:
        if not own:
            own.append(make())
            made.append(own[0])
        return diff_command(place, own[0], steps).seconds

    return timed
