"""The scoreboard: every fault on each side, and clean runs, judged as `harness run` judges.

`cases` are planted faults; a clean pair that is called a bug or imprecise is a false alarm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from harness.compare import DiffResult, Tolerance, diff
from harness.data.corpus import Batches
from harness.errors import HarnessError
from harness.explain import Cause, Evidence, Following, Verdict, judge
from harness.faults.catalogue import first_step, planted_names, within
from harness.models.faults import CATALOGUE, MODELS, Fault
from harness.observer import Observer
from harness.runs.investigation import Investigation
from harness.scoreboard.baselines import BASELINES, first_failure
from harness.scoreboard.lab import SIDES, Lab
from harness.scoreboard.result import (
    BaselineScore,
    BenchResult,
    CleanRecord,
    FaultRecord,
    ModelScore,
)
from harness.spec import Follow, RunSpec
from harness.trace import Trace, open_trace, remove_trace

ALARMS = ("bug", "precision")  # verdicts that accuse


def told(cause: Cause) -> str:
    """A cause in short: its name and what it claims; its sentence, where it claims nothing."""
    return f"{cause.name}: {cause.claim or cause.sentence}"


def record(
    fault: Fault,
    side: str,
    step: int,
    verdict: Verdict,
    baselines: dict[str, tuple[int, str] | None],
    model: str = "lstm",
) -> FaultRecord:
    """What a verdict is worth where `fault` was planted in `side` of `model` and bites at `step`.

    `fault` is as it is within that model.
    """
    where = verdict.where
    other = SIDES[1 - SIDES.index(side)]
    detected = verdict.label in ALARMS
    step_right = detected and where is not None and where.step == step
    matches = where is not None and fault.first_at(where.tensor)
    right = (fault.explained(told(cause), side, other) for cause in verdict.causes)
    ranks = (rank for rank, yes in enumerate(right, start=1) if yes)
    return FaultRecord(
        model=model,
        fault=fault.name,
        side=side,
        step=step,
        tensors=fault.tensor,
        verdict=fault.verdict,
        causes=fault.patterns(side, other),
        found_verdict=verdict.label,
        found_step=where.step if where else None,
        found_tensor=where.tensor if where else None,
        found_causes=tuple(map(told, verdict.causes)),
        found_side=verdict.side,
        sentence=verdict.causes[0].sentence if verdict.causes else "",
        sure=verdict.causes[0].sure if verdict.causes else None,
        baselines=baselines,
        detected=detected,
        step_right=step_right,
        tensor_right=step_right and matches,
        verdict_right=verdict.label == fault.verdict,
        cause_rank=next(ranks, None),
    )


class _Clean(NamedTuple):
    """A clean pair to run."""

    settings: Mapping[str, str]
    steps: int
    follow: str | None = None
    model: str = "lstm"


# Learning rates by optimizer: well inside what is stable, at the edge, and past it.
RATES: dict[str, tuple[str, str, str]] = {
    "sgd": ("0.5", "4", "30"),
    "momentum": ("0.05", "0.5", "5"),
    "adam": ("0.001", "0.05", "0.5"),
    "rmsprop": ("0.001", "0.05", "0.5"),
    "adagrad": ("0.01", "0.5", "5"),
}
SIZES: tuple[dict[str, str], ...] = (
    {},
    {"num_layers": "1", "hidden_size": "13", "dropout": "0.3", "loss": "mean"},
)
SEEDS = (1, 2, 3, 4)
CLEAN_STEPS, LONG_STEPS = 8, 200


def clean_pairs(models: Sequence[str] = ("lstm",)) -> list[_Clean]:
    """The clean pairs of models of the laboratory."""
    return [pair for model in models for pair in (_of_lstm() if model == "lstm" else _of(model))]


def _of_lstm() -> Iterator[_Clean]:
    """Optimizers x rates x sizes x precisions x seeds, free and following."""
    grid = product(RATES.items(), range(3), range(len(SIZES)), ("float32", "float64"), SEEDS)
    for (optimizer, rates), rate, size, dtype, seed in grid:
        own = {"optimizer": optimizer, "lr": rates[rate], "dtype": dtype, "seed": str(seed)}
        follow = {2: "step", 3: "stage"}.get(seed) if rate == 1 and size == 0 else None
        yield _Clean(SIZES[size] | own, CLEAN_STEPS, follow)
    for dtype, lr in product(("float32", "float64"), ("0.5", "10")):
        yield _Clean({"lr": lr, "dtype": dtype, "seed": "5"}, LONG_STEPS)


def _of(model: str) -> Iterator[_Clean]:
    """Optimizers x precisions, with all that is drawn; each optimizer of another seed."""
    grid = product(enumerate(RATES.items(), 1), ("float32", "float64"))
    for (seed, (optimizer, rates)), dtype in grid:
        own = {"optimizer": optimizer, "lr": rates[1], "dtype": dtype, "seed": str(seed)}
        drawn = {"dropout": MODELS[model].get("dropout", "0.3")}
        follow = {2: "step", 3: "stage"}.get(seed)
        yield _Clean(own | drawn, CLEAN_STEPS, follow, model)


def bench(
    folder: Path,
    watcher: Observer,
    faults: Sequence[str] = (),
    clean: int | None = None,
    models: Sequence[str] = ("lstm",),
) -> BenchResult:
    """Plant every fault (or those named) in each side, run clean pairs (or the first `clean`).

    Each is planted in those of `models` (of the laboratory) that it can be planted in. Raises
    HarnessError for a fault or a model that there is not and for a twin that cannot run.
    """
    unknown = [name for name in faults if name not in CATALOGUE]
    if unknown:
        raise HarnessError(f"no fault named {unknown[0]!r}; see harness faults list")
    strange = [model for model in models if model not in MODELS]
    if strange:
        raise HarnessError(f"no model {strange[0]!r}; there are: {', '.join(MODELS)}")
    chosen = product(models, (CATALOGUE[name] for name in faults or CATALOGUE))
    planted = [(found, model) for model, fault in chosen if (found := within(fault, model))]
    pairs = clean_pairs(models)[:clean]
    with Lab(folder, watcher) as lab:
        quiet = _QuietLab(lab, watcher)
        progress = watcher.part("faults")
        cases = [(fault, side, model) for fault, model in planted for side in SIDES]
        records = list(_counted(quiet.fault, cases, progress))
        progress = watcher.part("clean pairs")
        cleans = list(_counted(quiet.clean, [(pair,) for pair in pairs], progress))
    return _score(records, cleans)


def _counted(
    run: Callable[..., Any], cases: Sequence[tuple[Any, ...]], progress: Callable[[int, int], None]
) -> Iterator[Any]:
    for done, case in enumerate(cases, start=1):
        yield run(*case)
        progress(done, len(cases))


class _QuietLab:
    """Runs pairs in a lab whose own progress is not shown: one bar counts the cases."""

    def __init__(self, lab: Lab, watcher: Observer) -> None:
        self.lab = lab
        self.norms: dict[tuple[Any, ...], Trace] = {}
        lab.session.watcher = _Failures(watcher)

    def fault(self, fault: Fault, side: str, model: str) -> FaultRecord:
        """One fault on one side, from the runs to the verdict."""
        planted = {side: planted_names(fault.name)}
        runs = self._specs(model, fault.settings, fault.steps, fault.tokens, planted)
        result = self._free(runs)
        verdict = self._judge(runs, result)
        batches = Batches(self.lab.text(fault.tokens), runs[0].train)
        clean = runs[1 - SIDES.index(side)]
        step = first_step(fault, batches, lambda step: _norm(clean, step), model)
        fault_record = record(fault, side, step, verdict, _baselines(runs), model)
        self._clear()
        return fault_record

    def clean(self, pair: _Clean) -> CleanRecord:
        """One clean pair, from the runs to the verdict."""
        runs = self._specs(pair.model, pair.settings, pair.steps, None, {})
        if pair.follow:
            result, verdict = self._following(runs, pair.follow)
        else:
            result = self._free(runs)
            verdict = self._judge(runs, result)
        first = result.first_divergence
        clean_record = CleanRecord(
            model=pair.model,
            settings=dict(pair.settings),
            steps=pair.steps,
            follow=pair.follow,
            status=result.status,
            parted=first.step if first else None,
            verdict=verdict.label,
            alarm=verdict.label in ALARMS,
            baselines={} if pair.follow else _baselines(runs),
        )
        self._clear()
        return clean_record

    def _specs(
        self,
        model: str,
        settings: Mapping[str, str],
        steps: int,
        tokens: int | None,
        planted: Mapping[str, Sequence[str]],
    ) -> tuple[RunSpec, RunSpec]:
        a, b = (
            self.lab.run_spec(
                s, settings, steps, tokens=tokens, faults=planted.get(s, ()), model=model
            )
            for s in SIDES
        )
        return a, b

    def _free(self, runs: tuple[RunSpec, RunSpec]) -> DiffResult:
        self.lab.session.run_all([(run.label, run) for run in runs])
        return diff(runs[0].trace, runs[1].trace)

    def _judge(self, runs: tuple[RunSpec, RunSpec], result: DiffResult) -> Verdict:
        """As `harness run` does: further runs only where the sides diverge."""
        if result.equivalent:
            return judge(Evidence(result))
        return Investigation(self.lab.session, runs, result).verdict()

    def _following(self, runs: tuple[RunSpec, RunSpec], level: str) -> tuple[DiffResult, Verdict]:
        leader = runs[1]
        follow = Follow(leader.trace, "stage" if level == "stage" else "step")
        follower = msgspec.structs.replace(runs[0], follow=follow)
        self.lab.session.run_all([(leader.label, leader)])
        self.lab.session.run_all([(follower.label, follower)])
        if level == "step":
            result = diff(follower.trace, leader.trace, all=True)
            return result, self._judge((follower, leader), result)
        result = diff(follower.trace, leader.trace, all=True, tolerance=Tolerance.local())
        single = (Following("a", result),)
        wide = leader.train.dtype == "float64"
        return result, judge(Evidence(result, None, () if wide else single, single if wide else ()))

    def _clear(self) -> None:
        for trace in self.lab.folder.glob("*.trace"):
            remove_trace(trace)


class _Failures(Observer):
    """Passes on what failed, and no progress."""

    def __init__(self, watcher: Observer) -> None:
        self.note = watcher.note  # type: ignore[method-assign]


def _norm(run: RunSpec, step: int) -> float:
    opened = open_trace(run.trace).step(step)
    return float(opened.read(opened.find("update/global_norm")))


def _baselines(runs: tuple[RunSpec, RunSpec]) -> dict[str, tuple[int, str] | None]:
    a, b = open_trace(runs[0].trace), open_trace(runs[1].trace)
    return {name: first_failure(baseline, a, b) for name, baseline in BASELINES.items()}


def _score(records: Sequence[FaultRecord], clean: Sequence[CleanRecord]) -> BenchResult:
    return BenchResult(
        faults=len(records),
        detected=sum(r.detected for r in records),
        step_right=sum(r.step_right for r in records),
        tensor_right=sum(r.tensor_right for r in records),
        verdict_right=sum(r.verdict_right for r in records),
        cause_first=sum(r.cause_within(1) for r in records),
        cause_top3=sum(r.cause_within(3) for r in records),
        side_right=sum(r.found_side == r.side for r in records),
        certain_and_false=sum(r.certain_and_false for r in records),
        clean_runs=len(clean),
        false_alarms=sum(c.alarm for c in clean),
        undecided=sum(c.verdict == "undecided" for c in clean),
        baselines={name: _baseline_score(name, records, clean) for name in BASELINES},
        models=_by_model(records, clean),
        records=tuple(records),
        clean=tuple(clean),
    )


def _by_model(
    records: Sequence[FaultRecord], clean: Sequence[CleanRecord]
) -> dict[str, ModelScore]:
    models = dict.fromkeys([r.model for r in records] + [c.model for c in clean])
    return {
        model: _of_model(
            [r for r in records if r.model == model], [c for c in clean if c.model == model]
        )
        for model in models
    }


def _of_model(records: Sequence[FaultRecord], clean: Sequence[CleanRecord]) -> ModelScore:
    return ModelScore(
        faults=len(records),
        detected=sum(r.detected for r in records),
        step_right=sum(r.step_right for r in records),
        tensor_right=sum(r.tensor_right for r in records),
        verdict_right=sum(r.verdict_right for r in records),
        cause_first=sum(r.cause_within(1) for r in records),
        certain_and_false=sum(r.certain_and_false for r in records),
        clean_runs=len(clean),
        false_alarms=sum(c.alarm for c in clean),
    )


def _baseline_score(
    name: str, records: Sequence[FaultRecord], clean: Sequence[CleanRecord]
) -> BaselineScore:
    """The same questions to a baseline; it knows no causes and no verdict but "different"."""
    named = [(r, r.baselines[name]) for r in records]
    steps = [(r, place) for r, place in named if place and place[0] == r.step]
    tensors = [1 for r, place in steps if any(fnmatchcase(place[1], g) for g in r.tensors)]
    alarms = sum(c.baselines.get(name) is not None for c in clean)
    detected = sum(place is not None for _, place in named)
    return BaselineScore(detected, len(steps), len(tensors), alarms)
