"""A run: sides from the same weights on the same data, in a process each; diff and verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Literal

from msgspec.structs import replace

from harness.compare import DiffResult, Tolerance, diff
from harness.explain import Evidence, Following, Verdict, judge
from harness.explain.verdict import TO_REPORT
from harness.models.faults import CATALOGUE
from harness.observer import Observer
from harness.repro.found import FILE, Found, write_found
from harness.runs.handed import unreached
from harness.runs.investigation import Investigation
from harness.runs.maps import Maps
from harness.runs.prepare import prepare
from harness.runs.processes import Job
from harness.runs.request import (
    Computation,
    Execution,
    Judging,
    Output,
    Request,
    SideRequest,
    parse_hand_over,
    parse_shared_settings,
    parse_sides,
)
from harness.runs.result import RunResult
from harness.runs.session import Session
from harness.runs.start import run_all
from harness.runs.variants import dtype_of
from harness.runs.zoom import zoom as zoom_in
from harness.spec import AnyRun, Capture, Depth, ScriptSpec

QUEUE = 1 << 30  # bytes of a side's tensors that may wait to be written
Diffs = Mapping[tuple[str, str], DiffResult]


def run_sides(
    *,
    trace: int | Literal["all"] = 10,
    sides: Sequence[str] = ("pt", "tf"),
    weights: str | Path | None = None,
    data: str | Path | None = None,
    tokens: str = "word",
    model: str | None = None,
    settings: Sequence[str] = (),
    faults: Sequence[str] = (),
    pythons: Sequence[str] = (),
    out: str | Path = "traces",
    capture: Capture | None = None,
    zoom: bool = False,
    queue: int = QUEUE,
    depth: Depth = "modules",
    hand_over: str | None = None,
    map: str | None = None,
    device: Literal["cpu", "gpu"] = "cpu",
    threads: int | None = None,
    sequential: bool = False,
    follow: Literal["step", "stage"] | None = None,
    verdict: bool | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    all: bool = False,
    observer: Observer | None = None,
) -> RunResult:
    """Run one to three sides for `trace` steps from the same weights, trace, compare and judge.

    Args:
        trace: optimizer steps; "all" is one epoch.
        sides: "pt", "train.py --lr 0.1", or "LABEL=" before either; the last is the reference.
        weights: a file of weights; None draws them from the seed and saves them in `out`.
        data, tokens: a corpus and how to read it (`harness.data.corpus.load`); None: the built-in.
        model: a preset's name; None takes the sizes of `weights`, or else zaremba-small.
        settings, faults, pythons: "name=value" for all sides, "LABEL:name=value" for one;
            "LABEL:NAME" of faults to plant (what they need is set for all); "LABEL=PATH".
        out: the folder for traces, logs, and the files that the sides are given.
        capture, device, threads: what to trace, where to run, and threads a side (None: a share).
        hand_over: what scripts get of the reference: "weights,inputs,masks", or some of these.
        map: which tensors of the others are which of the reference (a file; "none": by name).
        zoom, queue: look closely where the traces part; bytes that may wait to be written.
        depth: "ops": operations between the modules of scripts are points, too.
        sequential: one side after the other.
        follow, verdict: start each "step" or "stage" from the reference's; judge (None: at need).
        rtol, atol, all, observer: as for `harness.diff`; told about progress.
    Raises HarnessError for bad input and for a side that failed (the other's trace stays).
    """
    request = Request(
        parse_sides(sides, settings, pythons, faults),
        Computation(trace, model, weights, data, tokens, parse_shared_settings(settings)),
        Execution(device, threads, sequential, parse_hand_over(hand_over)),
        Output(Path(out), capture or Capture(), queue, depth),
        Judging(Tolerance.given(rtol, atol), all, follow, verdict, zoom, map),
    )
    return run(request, observer or Observer())


def run(request: Request, watcher: Observer) -> RunResult:
    """Prepare, run, compare and judge what is asked for. Raises HarnessError."""
    prepared = prepare(request, watcher)
    sides = [side.side for side in request.sides]
    maps = Maps(request.output.folder, request.judging.map, watcher)
    (request.output.folder / FILE).unlink(missing_ok=True)
    with Session(sides, request.output.folder, watcher) as session:
        jobs = run_all(session, prepared.runs, request, maps)
        result = _conclude(session, jobs, request.judging, maps)
    if result.equivalent:
        _note_hidden_faults(request.sides, prepared.runs[-1].steps, watcher)
    return replace(result, entropy=prepared.entropy)


def _conclude(session: Session, jobs: Sequence[Job], judging: Judging, maps: Maps) -> RunResult:
    """Compare what has run, and judge."""
    runs = [job.run for job in jobs]
    diffs = _compare(runs, judging, session.watcher, maps)
    parted = next((d for d in diffs.values() if not d.equivalent), None)
    chosen = parted or next(iter(diffs.values()), None)
    verdict, zoomed = None, None
    own = unreached(runs)
    for line in own:
        session.watcher.note(line)
    if chosen and judging.zoom:
        zoomed = zoom_in(session, _pair(runs, chosen), chosen, maps=maps)
    if zoomed:
        chosen, verdict = zoomed.diff, zoomed.verdict
    elif chosen and judging.verdict is not False:
        verdict = _judge(session, runs, chosen, judging, maps)
    if chosen and verdict:
        verdict = replace(verdict, evidence=(*own, *verdict.evidence))
        verdict = _kept(maps, chosen, verdict)
    return RunResult(
        {job.run.label: job.run.trace for job in jobs},
        {job.run.label: job.losses for job in jobs},
        {job.run.label: job.valid for job in jobs},
        None,
        chosen,
        verdict,
        {f"{a}|{b}": d.status for (a, b), d in diffs.items()},
        zoomed.zoom if zoomed else None,
    )


def _kept(maps: Maps, found: DiffResult, verdict: Verdict) -> Verdict:
    """The verdict, left beside the traces of the run, where `harness repro` looks for it."""
    known = found.alignment is not None and maps.known(*found.labels) is not None
    map_ = str(maps.file(*found.labels)) if known else None
    said, report, _ = verdict.next.partition(TO_REPORT)
    kept = replace(verdict, next=f"{said}{report}{found.a} {found.b}") if report else verdict
    write_found(maps.folder, Found.of(found, kept, map_))
    return kept


def _compare(runs: Sequence[AnyRun], judging: Judging, watcher: Observer, maps: Maps) -> Diffs:
    """The diff of every pair of sides by their labels, those with the reference first."""
    tolerance = judging.tolerance
    if judging.follow == "stage" and tolerance.rule == "default":
        tolerance = Tolerance.local()
    every = judging.all or judging.follow is not None
    pairs = [(run, runs[-1]) for run in runs[:-1]] + list(combinations(runs[:-1], 2))
    diffs = {}
    for a, b in pairs:
        progress = watcher.part("diff" if len(pairs) == 1 else f"diff {a.label} {b.label}")
        diffs[a.label, b.label] = diff(
            a.trace,
            b.trace,
            tolerance=tolerance,
            all=every,
            alignment=maps.of(a, b, again=True),
            progress=progress,
        )
    return diffs


def _judge(
    session: Session,
    runs: Sequence[AnyRun],
    result: DiffResult,
    judging: Judging,
    maps: Maps,
) -> Verdict:
    """The verdict on one pair, from what there is or from further runs."""
    if judging.follow == "stage":
        single = (Following("a", result),)
        wide = dtype_of(runs[-1]) == "float64"
        return judge(Evidence(result, narrow=() if wide else single, wide=single if wide else ()))
    pair = _pair(runs, result)
    if pair[1].capture.level != "full":
        line = (
            f"nothing was run again, as --level {pair[1].capture.level} keeps no tensors: --zoom, "
            f"or harness zoom {pair[0].trace} {pair[1].trace}, looks closely at where traces of "
            "level stats part"
        )
        scripts = any(isinstance(run, ScriptSpec) for run in pair)
        lacking = () if result.equivalent or judging.zoom else (line,)
        return judge(Evidence(result, lacking=lacking, scripts=scripts))
    if result.equivalent and not judging.verdict:
        return judge(Evidence(result))
    return Investigation(session, pair, result, maps=maps).verdict()


def _pair(runs: Sequence[AnyRun], result: DiffResult) -> tuple[AnyRun, AnyRun]:
    """The runs that a diff is of."""
    by_label = {run.label: run for run in runs}
    return by_label[result.labels[0]], by_label[result.labels[1]]


def _note_hidden_faults(sides: Sequence[SideRequest], steps: int, watcher: Observer) -> None:
    """Say of every planted fault that it did not show, and when it would."""
    for side in sides:
        for name in side.faults:
            watcher.note(
                f"{name} was planted in {side.side.label} and does not show in {steps} steps; it "
                f"bites at: {CATALOGUE[name].bites} (norm, limit and rate are --set clip_limit, lr)"
            )
