"""Random injections: one stage of one side disturbed by a random amount, and where it is found.

One side follows the other's trace stage by stage, and one part of one trace point of one step is
multiplied by 1 + size. The noise is measured in the same session, on other weights: how far that
side, undisturbed, is from the other at each trace point. A tensor is accused where it is more than
`BOUND` times that noise away; what is more than `BOUND` + 1 times it must be found, because the
side's own rounding may hide as much as the noise.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from harness.compare import Tolerance, diff
from harness.compare.metrics import compare
from harness.errors import HarnessError
from harness.observer import Observer
from harness.runs.files import remove_files
from harness.runs.processes import Job
from harness.scoreboard.lab import SIDES, Lab
from harness.scoreboard.result import BOUND, FuzzBin, FuzzCase, FuzzResult, Region
from harness.spec import Disturbance, Dtype, Follow
from harness.trace import TensorEntry, Trace, open_trace

LEAST = 1.0  # eps; rounding of one operation, where clean runs happened to show less
LARGEST = 0.1
STEPS = 6
NOISE_SEEDS, SEED = (1, 2, 3), 4  # weights on which the noise is measured, and the others
AHEAD = 8  # cases a side is handed before the first of them is looked at

# What is trained: every optimizer, clipping, dropout and loss occurs.
SETTINGS: tuple[dict[str, str], ...] = (
    {},
    {"optimizer": "adam", "lr": "0.05", "dropout": "0.3"},
    {"optimizer": "momentum", "lr": "0.5", "clip": "elementwise", "clip_limit": "0.1"},
    {"optimizer": "rmsprop", "lr": "0.02", "loss": "mean"},
    {"optimizer": "adagrad", "lr": "0.5", "clip": "none", "dropout": "0.5"},
)
DTYPES: tuple[Dtype, ...] = ("float32", "float64")


def fuzz_case(
    place: _Place, disturbance: float, noise: float, accused: tuple[tuple[int, str], ...]
) -> FuzzCase:
    """What is to be said of a place that was disturbed, and of those that were accused."""
    d = place.disturb
    own = (d.step, d.tensor)
    far_below = disturbance <= (BOUND - 1) / 4 * noise
    return FuzzCase(
        side=place.side,
        dtype=place.dtype,
        setting=place.setting,
        step=d.step,
        tensor=d.tensor,
        region=place.region,
        size=abs(d.size),
        disturbance=disturbance,
        noise=noise,
        accused=accused,
        above=disturbance >= (BOUND + 1) * noise,
        placed=accused == (own,),
        wrong=bool(set(accused) - {own}) or (far_below and bool(accused)),
    )


class _Place(NamedTuple):
    """What is to be disturbed."""

    side: str
    dtype: Dtype
    setting: int
    disturb: Disturbance
    region: Region


def fuzz(cases: int, seed: int, folder: Path, watcher: Observer) -> FuzzResult:
    """Try `cases` random injections, drawn from `seed`; traces go to `folder` and are removed.

    Raises HarnessError for counts that make no sense and for a twin that cannot run.
    """
    if cases < 1:
        raise HarnessError(f"--cases {cases}: give at least 1")
    with Lab(folder, watcher) as lab:
        clean = _Clean(lab, watcher)
        progress = watcher.part("injections")
        records: list[FuzzCase] = []
        places = _draw(cases, seed, clean)
        for record in _run(lab, clean, places):
            records.append(record)
            progress(len(records), cases)
    return _result(seed, records)


class _Clean:
    """Clean runs: the reference traces, and the noise of each side at each trace point."""

    def __init__(self, lab: Lab, watcher: Observer) -> None:
        self.lab = lab
        self.entries: dict[tuple[Dtype, int], dict[int, list[TensorEntry]]] = {}
        self.noise: dict[tuple[str, Dtype, str], float] = {}
        kinds = list(product(DTYPES, range(len(SETTINGS)), (*NOISE_SEEDS, SEED)))
        progress = watcher.part("noise")
        for done, (dtype, number, seed) in enumerate(kinds, start=1):
            self._measure(dtype, number, seed)
            progress(done, len(kinds))

    def settings(self, dtype: Dtype, number: int, seed: int = SEED) -> dict[str, str]:
        return SETTINGS[number] | {"dtype": dtype, "seed": str(seed)}

    def trace(self, kind: str, side: str, dtype: Dtype, number: int) -> Trace:
        return open_trace(self.lab.folder / f"{_label(kind, side, dtype, number, SEED)}.trace")

    def _measure(self, dtype: Dtype, number: int, seed: int) -> None:
        """Run both sides, let each follow the other, and keep the distances of every tensor."""
        settings = self.settings(dtype, number, seed)
        labels = {side: _label("clean", side, dtype, number, seed) for side in SIDES}
        runs = {s: self.lab.run_spec(labels[s], settings, STEPS) for s in SIDES}
        session = self.lab.session
        session.wait([session.start(side, run, show=False) for side, run in runs.items()])
        jobs = []
        for side, other in (SIDES, SIDES[::-1]):
            label = _label("follow", side, dtype, number, seed)
            follow = Follow(runs[other].trace, "stage")
            run = replace(self.lab.run_spec(label, settings, STEPS), follow=follow)
            jobs.append(session.start(side, run, show=False))
        session.wait(jobs)
        if seed == SEED:
            trace = self.trace("clean", SIDES[0], dtype, number)
            self.entries[dtype, number] = {n: list(trace.step(n).entries) for n in trace.steps}
            return
        for (side, other), job in zip((SIDES, SIDES[::-1]), jobs, strict=True):
            pair = open_trace(job.run.trace), open_trace(runs[other].trace)
            for name, needed in _distances(*pair):
                key = (side, dtype, name)
                self.noise[key] = max(self.noise.get(key, LEAST), needed)

    def tolerance(self, side: str, dtype: Dtype) -> Tolerance:
        """What no clean tensor of that side exceeds, tensor by tensor."""
        own = sorted((name, k) for (s, d, name), k in self.noise.items() if (s, d) == (side, dtype))
        rows = tuple((name, BOUND * k) for name, k in own)
        return Tolerance("local", table=(("inputs/*", 0.0), *rows, ("*", BOUND * LEAST)))


def _label(kind: str, side: str, dtype: Dtype, number: int, seed: int) -> str:
    return f"{kind}-{side}-{dtype}-{number}-{seed}"


def _distances(a: Trace, b: Trace) -> Iterator[tuple[str, float]]:
    """The K that every floating-point tensor needs, step by step."""
    tolerance = Tolerance.local()
    for number in b.steps:
        x, y = a.step(number), b.step(number)
        entries = {entry.name: entry for entry in y.entries}
        for name, entry in entries.items():
            allowed = tolerance.allowance(entry, entries)
            if allowed.factor:
                used = compare(x.read(x.find(name)), y.read(entry), allowed).used
                yield name, (used or 0.0) * allowed.factor


def _draw(cases: int, seed: int, clean: _Clean) -> Iterator[_Place]:
    """Random places and sizes: log-uniform from LARGEST down to half an epsilon."""
    draw = np.random.default_rng(seed)
    for _ in range(cases):
        dtype, number = DTYPES[draw.integers(len(DTYPES))], int(draw.integers(len(SETTINGS)))
        step = int(draw.integers(1, STEPS + 1))
        entries = [
            entry
            for entry in clean.entries[dtype, number][step]
            if not entry.name.startswith("inputs/")
        ]
        entry = entries[draw.integers(len(entries))]
        region, index = _region(draw, entry)
        low, high = math.log(np.finfo(dtype).eps / 2), math.log(LARGEST)
        size = math.exp(draw.uniform(low, high)) * (1 if draw.integers(2) else -1)
        side = SIDES[draw.integers(len(SIDES))]
        yield _Place(side, dtype, number, Disturbance(step, entry.name, index, size), region)


def _region(draw: Any, entry: TensorEntry) -> tuple[Region, tuple[int | None, ...]]:
    """A random part of a tensor: an element, a row, a timestep (of [B, T, ...]), or all of it."""
    timed = entry.name.startswith(("forward/", "backward/")) and len(entry.shape) == 3
    regions: list[Region] = ["element", "tensor"]
    if entry.shape:
        regions.append("row")
    if timed:
        regions.append("timestep")
    region = regions[draw.integers(len(regions))]
    somewhere = tuple(int(draw.integers(n)) for n in entry.shape)
    nothing: tuple[int | None, ...] = (None,) * len(entry.shape)
    if region == "element":
        return region, somewhere
    if region == "row":
        return region, (somewhere[0], *nothing[1:])
    if region == "timestep":
        return region, (None, somewhere[1], None)
    return region, nothing


def _run(lab: Lab, clean: _Clean, places: Iterator[_Place]) -> Iterator[FuzzCase]:
    """Hand cases to the sides, a few ahead, and look at each when it has ended."""
    waiting: deque[tuple[_Place, Job]] = deque()
    for number, place in enumerate(places):
        label = f"case-{number}"
        other = SIDES[1 - SIDES.index(place.side)]
        follow = Follow(str(clean.trace("clean", other, place.dtype, place.setting).path), "stage")
        step = place.disturb.step
        settings = clean.settings(place.dtype, place.setting)
        run = lab.run_spec(label, settings, min(step + 1, STEPS))
        run = replace(run, follow=follow, disturb=place.disturb, start=max(step - 1, 1))
        waiting.append((place, lab.session.start(place.side, run, show=False)))
        if len(waiting) > AHEAD:
            yield _look(clean, *waiting.popleft())
    while waiting:
        yield _look(clean, *waiting.popleft())


def _look(clean: _Clean, place: _Place, job: Job) -> FuzzCase:
    """What the diff names, and how large the disturbance really was."""
    clean.lab.session.wait([job])
    side, dtype, disturb = place.side, place.dtype, place.disturb
    other = SIDES[1 - SIDES.index(side)]
    reference = clean.trace("clean", other, dtype, place.setting)
    steps = (job.run.start, job.run.steps)
    tolerance = clean.tolerance(side, dtype)
    result = diff(job.run.trace, reference, all=True, tolerance=tolerance, steps=steps)
    was = clean.trace("follow", side, dtype, place.setting).step(disturb.step)
    now = open_trace(job.run.trace).step(disturb.step)
    fed = reference.step(disturb.step)
    entries = {entry.name: entry for entry in fed.entries}
    entry = entries[disturb.tensor]
    allowed = Tolerance.local().allowance(entry, entries)
    moved = _moved(
        now.read(now.find(disturb.tensor)),
        was.read(was.find(disturb.tensor)),
        fed.read(entry),
        allowed.scale,
    )
    remove_files(job.run)
    noise = clean.noise.get((side, dtype, disturb.tensor), LEAST)
    accused = tuple((d.step, d.tensor) for d in result.divergences)
    return fuzz_case(place, moved, noise, accused)


def _moved(now: NDArray[Any], was: NDArray[Any], fed: NDArray[Any], scale: float) -> float:
    """max |now - was| / (eps (|fed| + scale)): how far the disturbance moved the tensor."""
    moved = np.abs(now.astype(np.float64) - was)
    unit = np.finfo(fed.dtype).eps * (np.abs(fed.astype(np.float64)) + scale)
    with np.errstate(all="ignore"):
        shares = np.where(moved == 0, 0.0, moved / unit)
    return float(shares.max(initial=0.0))


def _result(seed: int, records: list[FuzzCase]) -> FuzzResult:
    above = [case for case in records if case.above]
    placed = sum(case.placed for case in above)
    return FuzzResult(
        seed=seed,
        cases=len(records),
        above=len(above),
        placed=placed,
        share=placed / len(above) if above else None,
        wrong=sum(case.wrong for case in records),
        curve=tuple(_curve(records)),
        records=tuple(records),
    )


def _curve(records: list[FuzzCase]) -> Iterator[FuzzBin]:
    """Shares by decade of the relative size."""
    for dtype in DTYPES:
        for power in range(-17, 0):
            low, high = 10.0**power, 10.0 ** (power + 1)
            own = [c for c in records if c.dtype == dtype and low <= c.size < high]
            if own:
                above = [c for c in own if c.above]
                found = sum((c.step, c.tensor) in c.accused for c in own)
                placed = sum(c.placed for c in above)
                yield FuzzBin(dtype, low, high, len(own), len(above), found, placed)
