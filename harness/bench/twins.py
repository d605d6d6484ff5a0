"""The twins against the stock models of their frameworks, and against bare matrix products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from harness.bench.paced import TimedSide, short
from harness.bench.place import VOCABULARY, Place
from harness.bench.result import Row, Section, Spread, Target
from harness.bench.rounds import Samples, interleave
from harness.errors import HarnessError
from harness.runs.processes import TWINS, Twin
from harness.spec import RunSpec, preset

FRAMEWORKS = {"pt": "PyTorch", "tf": "TensorFlow"}
PRODUCTS = "matrix products"
WARM = 5  # steps; compilers and allocators have settled
FOREVER = 10**9
LEAST_SPEED, MOST_TIME = 1.0, 1.5  # the targets


class Contestant(NamedTuple):
    """A process that computes steps: its module, and what its TrainSpec has changed."""

    name: str
    twin: Twin
    changed: dict[str, bool]


def contestants(framework: str) -> list[Contestant]:
    """All that compete in one framework."""
    own, name = TWINS[framework], FRAMEWORKS[framework]
    stock = Twin(f"{own.module}.bench.stock", name, own.extra)
    products = Twin(f"{own.module}.bench.products", name, own.extra)
    return [
        Contestant("twin", own, {}),
        Contestant("twin, autograd", own, {"autograd": True}),
        Contestant("twin, compiled", own, {"compile": True}),
        Contestant("stock", stock, {}),
        Contestant("stock, compiled", stock, {"compile": True}),
        Contestant(PRODUCTS, products, {}),
    ]


class Plan(NamedTuple):
    """A size to time the twins at: rounds, steps a round, and contestants that are left out."""

    size: str
    rounds: int
    steps: int
    left_out: tuple[str, ...] = ()


def ticks(plans: Sequence[Plan]) -> int:
    """How often `time_twins` will tick."""
    return sum(len(contestants(f)) * (plan.rounds + 1) for plan in plans for f in FRAMEWORKS)


def time_twins(place: Place, plans: Sequence[Plan], tick: Callable[[], None]) -> Section:
    """Time every contestant of both frameworks at every size."""
    section = Section()
    for plan in plans:
        for framework in FRAMEWORKS:
            section = section.plus(_group(place, plan, framework, tick))
    return section


def _group(place: Place, plan: Plan, framework: str, tick: Callable[[], None]) -> Section:
    group = f"{plan.size}, {FRAMEWORKS[framework]}"
    model, train = preset(plan.size, VOCABULARY)
    sides: dict[str, TimedSide] = {}
    missing: dict[str, str] = {}
    try:
        for one in contestants(framework):
            changed = msgspec.structs.replace(train, **one.changed)
            label = f"{plan.size}-{framework}-{one.name.replace(', ', '-').replace(' ', '-')}"
            if one.name in plan.left_out:
                missing[one.name] = "left out of this plan"
            else:
                run = place.run(label, model, changed, FOREVER)
                _begin(sides, missing, one, run, place)
            tick()
        turns = {name: partial(side.go_on, plan.steps) for name, side in sides.items()}
        samples = interleave(turns, plan.rounds, tick)
    finally:
        for side in sides.values():
            side.stop()
    samples.missing |= missing
    words = train.batch_size * train.bptt
    return _section(group, [c.name for c in contestants(framework)], samples, words)


def _begin(
    sides: dict[str, TimedSide],
    missing: dict[str, str],
    one: Contestant,
    run: RunSpec,
    place: Place,
) -> None:
    """Start a contestant and let it stand after its warm-up, or say why it is missing."""
    try:
        sides[one.name] = TimedSide(one.twin, run.label, place.folder, run.threads)
        sides[one.name].begin(run, WARM)
    except HarnessError as error:
        missing[one.name] = short(str(error))
        if one.name in sides:
            sides.pop(one.name).stop()


def best(samples: Samples[float], kind: str) -> str | None:
    """The fastest contestant whose name begins with `kind`."""
    names = [name for name in samples if name.startswith(kind)]
    return min(names, key=lambda name: Spread.of(samples[name]).median, default=None)


def _section(group: str, names: Sequence[str], samples: Samples[float], words: int) -> Section:
    rows, stock, twin = [], best(samples, "stock"), best(samples, "twin")
    for name in names:
        if name not in samples:
            rows.append(Row.without(group, name, samples.missing.get(name, "not run")))
            continue
        own, ratios = samples[name], {}
        if stock:
            ratios[f"speed / {stock}"] = Spread.ratio(samples[stock], own)
        if PRODUCTS in samples:
            ratios[f"time / {PRODUCTS}"] = Spread.ratio(own, samples[PRODUCTS])
        spread = Spread.of(own)
        rows.append(Row(group, name, spread, words / spread.median, ratios))
    speed = time = None
    if twin and stock:
        speed = Spread.ratio(samples[stock], samples[twin]).median
    if twin and PRODUCTS in samples:
        time = Spread.ratio(samples[twin], samples[PRODUCTS]).median
    how = f"{group}: best twin ({twin or 'none'})"
    targets = (
        Target.of(f"{how}, speed / best stock ({stock})", speed, LEAST_SPEED, at_least=True),
        Target.of(f"{how}, time / {PRODUCTS}", time, MOST_TIME),
    )
    return Section(tuple(rows), targets)


def autograd_is_faster(section: Section | None, size: str, framework: str) -> bool:
    """Which eager mode of a twin is best there, as far as it was timed."""
    group = f"{size}, {FRAMEWORKS[framework]}"
    rows = {r.name: r for r in section.rows if r.group == group} if section else {}
    own, other = rows.get("twin"), rows.get("twin, autograd")
    if not other or not other.seconds:
        return False
    return not own or not own.seconds or other.seconds.median < own.seconds.median
