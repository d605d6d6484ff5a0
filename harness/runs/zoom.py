"""Zoom: from the statistics of a long run to full traces of the steps that matter.

A run that keeps hashes, statistics and sketches of its tensors is short enough to trace for
epochs. Where its sides part, both start again at the last checkpoint before that, trace a few steps
in full, and are judged there as a short run would be.

In a long free run rounding grows until it passes any tolerance, and a bug may come later still. So
two kinds of steps are looked at: the first over the tolerance, and those at which a tensor is much
further apart than what its step started from, in comparison with all steps before: rounding grows
smoothly along a run, a bug jumps.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace

from harness.compare import DiffResult, diff
from harness.errors import HarnessError
from harness.explain import Verdict
from harness.models.table import restart_names
from harness.observer import Observer
from harness.runs.investigation import Investigation
from harness.runs.lockstep import in_step
from harness.runs.processes import TWINS
from harness.runs.session import Session, Side
from harness.spec import CHECKPOINT, Capture, Resume, RunSpec, load_run
from harness.trace import StepEntry, TensorEntry, Trace, open_trace
from harness.trace.sketch import distance

BEFORE, AFTER = 2, 1  # steps traced in full around one: following starts from the one before
MOST = 3  # steps that are looked at closely
# A gain is how much further apart a tensor is than what its step started from. Clean stages reach
# a few; a step jumps where a tensor's gain is JUMP times the highest until then, and that USUAL.
JUMP, USUAL = 8.0, 8.0


class Suspect(msgspec.Struct, frozen=True):
    """A step to look at closely, and why in words; `size`: its gap as a multiple of the usual."""

    step: int
    reason: str
    size: float = 0.0


class Window(msgspec.Struct, frozen=True):
    """A step that was looked at: traced in full from `first` to `last`, from a checkpoint on.

    `checkpoint` is the step after which both sides started again (0: at the beginning); `same_bits`
    whether they did the same to the last bit as the long run, by its hashes; `label` the verdict.
    """

    step: int
    reason: str
    checkpoint: int
    first: int
    last: int
    traces: dict[str, str]
    same_bits: bool
    label: str


class Zoom(msgspec.Struct, frozen=True):
    """What zooming did: the steps looked at, those passed over, and bytes on disk.

    `in_step` is how many steps were made once more from the other side's state (0: none had to be).
    `kept` has the bytes of each side's long trace, `full` those of the full traces around the steps
    looked at.
    """

    windows: tuple[Window, ...]
    passed_over: tuple[Suspect, ...]
    in_step: int
    kept: dict[str, int]
    full: int


class Found(msgspec.Struct, frozen=True):
    """The window that decides: what zooming did, the diff there, and the verdict."""

    zoom: Zoom
    diff: DiffResult
    verdict: Verdict


def zoom(
    session: Session, runs: tuple[RunSpec, RunSpec], free: DiffResult, step: int | None = None
) -> Found | None:
    """Look closely at the steps at which the long `runs` (the reference last) part, or at `step`.

    `free` is the diff of their traces. None where there is nothing to look at. The window that
    decides is the first with a verdict other than rounding, or else the first. Raises HarnessError
    for a side that cannot start again.
    """
    traces = open_trace(runs[0].trace), open_trace(runs[1].trace)
    looked = _Looked(session, runs, traces)
    in_steps = 0
    if step is None:
        looked.at(suspects(*traces, free, session.watcher.part("looking for jumps")))
        if looked.windows and not looked.decided:
            session.watcher.note(
                f"all of that is rounding; the run once more, with each step of {runs[0].label} "
                f"starting from the state of {runs[1].label}"
            )
            steps = in_step(session, runs, session.watcher.part("in step"))
            looked.at(_largest(jumps(steps, fresh=True)))
            in_steps = runs[1].steps
    else:
        looked.at([Suspect(step, "asked for")])
    if looked.chosen is None:
        return None
    found, verdict = looked.chosen
    full = [path for window in looked.windows for path in window.traces.values()]
    report = Zoom(
        tuple(looked.windows),
        tuple(looked.passed_over),
        in_steps,
        {run.label: folder_bytes(run.trace) for run in runs},
        sum(folder_bytes(path) for path in full),
    )
    return Found(report, found, _with_words(verdict, report, (runs[0].label, runs[1].label)))


class _Looked:
    """The steps looked at, and the diff and verdict that decide."""

    def __init__(
        self, session: Session, runs: tuple[RunSpec, RunSpec], traces: tuple[Trace, Trace]
    ) -> None:
        self.session, self.runs, self.traces = session, runs, traces
        self.windows: list[Window] = []
        self.passed_over: list[Suspect] = []
        self.chosen: tuple[DiffResult, Verdict] | None = None
        self.decided = False

    def at(self, found: Sequence[Suspect]) -> None:
        """Look at the first few, up to one that decides."""
        done = {window.step for window in self.windows}
        fresh = [suspect for suspect in found if suspect.step not in done]
        for i, suspect in enumerate(fresh):
            if self.decided or i == MOST:
                self.passed_over += fresh[i:]
                return
            self.session.watcher.note(f"zooming in on step {suspect.step}: {suspect.reason}")
            window, local, verdict = _look(self.session, self.runs, self.traces, suspect)
            self.windows.append(window)
            self.decided = verdict.label in ("bug", "precision", "structure")
            if self.chosen is None or self.decided:
                self.chosen = local, verdict


def _largest(found: Sequence[Suspect]) -> list[Suspect]:
    """The largest few, in the order of the run, and then the others."""
    ranked = sorted(found, key=lambda suspect: -suspect.size)
    return sorted(ranked[:MOST], key=lambda s: s.step) + ranked[MOST:]


def zoom_traces(
    a: str | Path,
    b: str | Path,
    *,
    step: int | None = None,
    pythons: Mapping[str, str] | None = None,
    observer: Observer | None = None,
) -> tuple[DiffResult, Found | None]:
    """Zoom into two traces that `harness.run_sides` left: the diff of them, and what was found.

    `step` is the step to look at (None: those at which they part), `pythons` the interpreters of
    the sides by label, `observer` is told about progress. Raises HarnessError where a side cannot
    be run again: what it was told to do lies beside its trace, as LABEL.json.
    """
    watcher = observer or Observer()
    traces = open_trace(a), open_trace(b)
    for trace in traces:
        require_zoomable(trace.header.capture)
        if step is not None and step not in trace.steps:
            raise HarnessError(f"--step {step}: {trace.path} has steps 1 to {trace.steps[-1]}")
    runs = _told(traces[0]), _told(traces[1])
    sides = [
        Side(run.label, _twin(trace), (pythons or {}).get(run.label, sys.executable))
        for run, trace in zip(runs, traces, strict=True)
    ]
    free = diff(*traces, progress=watcher.part("diff"))
    with Session(sides, traces[1].path.parent, watcher) as session:
        return free, zoom(session, runs, free, step)


def _told(trace: Trace) -> RunSpec:
    """What the side that left a trace had been told to do."""
    run = load_run(trace.path.parent / f"{trace.header.label}.json")
    if Path(run.trace).resolve() != trace.path.resolve():
        raise HarnessError(
            f"{trace.path}: its run cannot be started again: {trace.header.label}.json beside it "
            f"is of {run.trace}; give the traces where harness run left them"
        )
    return run


def _twin(trace: Trace) -> str:
    """The twin that left a trace; that of its framework where the header does not say."""
    program, framework = trace.header.program, trace.header.framework
    for name, twin in TWINS.items():
        if program and (program.kind, program.name) == ("twin", twin.module):
            return name
    for name, package in (("pt", "torch"), ("tf", "tensorflow"), ("np", "numpy")):
        if program is None and package in framework:
            return name
    raise HarnessError(
        f"{trace.path}: made by {program.name if program else 'an unknown program'}, which is no "
        f"twin of ours ({', '.join(twin.module for twin in TWINS.values())}), so it cannot be run "
        "again"
    )


def suspects(
    a: Trace, b: Trace, free: DiffResult, progress: Callable[[int, int], None] | None = None
) -> tuple[Suspect, ...]:
    """The steps worth a closer look, in their order: over the tolerance, or a jump."""
    found: dict[int, Suspect] = {}
    if free.first_divergence:
        place = free.first_divergence
        found[place.step] = Suspect(place.step, f"{place.tensor} is the first over the tolerance")
    steps = sorted(set(a.steps).intersection(b.steps))

    def pairs() -> Iterator[tuple[StepEntry, StepEntry]]:
        for done, step in enumerate(steps, start=1):
            yield a.entry(step), b.entry(step)
            if progress:
                progress(done, len(steps))

    for suspect in jumps(pairs()):
        found.setdefault(suspect.step, suspect)
    return tuple(found[step] for step in sorted(found))


def jumps(pairs: Iterable[tuple[StepEntry, StepEntry]], fresh: bool = False) -> list[Suspect]:
    """The steps at which a tensor is much further apart than what the step started from.

    `pairs` are the same steps on both sides, `fresh` where both started each from one state.
    """
    found: list[Suspect] = []
    highest: dict[str, float] = {}
    left = 1.0  # how far apart, in eps, the step before left what this one starts from
    for a, b in pairs:
        gaps = dict(_gaps(a, b))
        start, jump = left, None
        for name, gap in gaps.items():
            base = left if name.startswith("state/in/") or fresh else start
            if name.startswith("state/in/"):
                start = max(start, gap)
            gain = gap / base if math.isfinite(base) else 0.0
            usual = max(USUAL, highest.get(name, 0.0))
            if gain > JUMP * usual and jump is None:
                size = gain / usual
                jump = Suspect(b.step, f"{name} jumps, {size:.3g} times its usual gap", size)
            highest[name] = max(highest.get(name, 0.0), gain if math.isfinite(gain) else 0.0)
        found += [jump] if jump else []
        if not fresh:
            states = [gap for name, gap in gaps.items() if name.startswith(CHECKPOINT)]
            left = max([1.0, *states])
    return found


def folder_bytes(path: str | Path) -> int:
    """Bytes of the files of a trace folder."""
    return sum(file.stat().st_size for file in Path(path).iterdir())


def _gaps(a: StepEntry, b: StepEntry) -> Iterator[tuple[str, float]]:
    """How far apart each tensor of a step is, in eps of its dtype, in execution order."""
    others = {entry.name: entry for entry in a.tensors}
    for entry in b.tensors:
        other = others.get(entry.name)
        if other is not None:
            yield entry.name, _gap(other, entry)


def _gap(a: TensorEntry, b: TensorEntry) -> float:
    """Relative L2 distance in eps, estimated from sketches; infinite where nothing can be said."""
    if (a.hash, a.dtype, a.shape) == (b.hash, b.dtype, b.shape):
        return 0.0
    exact = not b.dtype.startswith("float") or (a.nan, a.inf) != (b.nan, b.inf)
    if exact or a.dtype != b.dtype or a.shape != b.shape or a.sketch is None or b.sketch is None:
        return math.inf
    apart = distance(np.frombuffer(a.sketch, "<f8"), np.frombuffer(b.sketch, "<f8"))
    return apart / (b.l2 * float(np.finfo(b.dtype).eps)) if b.l2 else math.inf


def _look(
    session: Session,
    runs: tuple[RunSpec, RunSpec],
    traces: tuple[Trace, Trace],
    suspect: Suspect,
) -> tuple[Window, DiffResult, Verdict]:
    """Start both sides again before a step, trace it in full, compare and judge."""
    last = min(suspect.step + AFTER, runs[1].steps)
    first = suspect.step - BEFORE
    checkpoint = _checkpoint(traces, first - 1)
    again: dict[str, Any] = {"steps": last, "start": checkpoint + 1}
    again["capture"] = Capture(first=max(first, 1), last=last)
    pair = []
    for run in runs:
        label = f"{run.label}-step{suspect.step}"
        folder = Path(run.trace).parent
        files = {"trace": str(folder / f"{label}.trace"), "final": str(folder / f"{label}.npz")}
        resume = Resume(run.trace, checkpoint) if checkpoint else None
        pair.append(replace(run, label=label, resume=resume, **files, **again))
    sides = (runs[0].label, runs[1].label)
    session.run_all(list(zip(sides, pair, strict=True)))
    told = session.watcher.part(f"diff around step {suspect.step}")
    local = diff(pair[0].trace, pair[1].trace, progress=told)
    local = replace(local, labels=sides)
    verdict = Investigation(session, (pair[0], pair[1]), local, sides).verdict()
    same = all(_same(long, open_trace(new.trace)) for long, new in zip(traces, pair, strict=True))
    window = Window(
        suspect.step,
        suspect.reason,
        checkpoint,
        max(first, 1),
        last,
        {side: new.trace for side, new in zip(sides, pair, strict=True)},
        same,
        verdict.label,
    )
    return window, local, verdict


def _checkpoint(traces: tuple[Trace, Trace], latest: int) -> int:
    """The last step, up to `latest`, after which both sides can start again (0: the beginning)."""
    held = []
    for trace in traces:
        every = trace.header.capture.checkpoint_every
        held.append({s for s in trace.steps if every and s <= latest and not s % every})
    return max(held[0] & held[1], default=0)


def _same(long: Trace, short: Trace) -> bool:
    """Whether the steps of `short` are, by their hashes, those of the long run to the last bit."""
    for step in short.steps:
        if step not in long.steps:
            continue
        hashes = {entry.name: entry.hash for entry in long.entry(step).tensors}
        if any(hashes.get(e.name, e.hash) != e.hash for e in short.entry(step).tensors):
            return False
    return True


def _with_words(verdict: Verdict, report: Zoom, labels: tuple[str, str]) -> Verdict:
    """The verdict with what zooming adds to its evidence."""
    lines = []
    for window in report.windows:
        begun = f"the checkpoint of step {window.checkpoint}" if window.checkpoint else "the start"
        bits = "to the same bits" if window.same_bits else "NOT TO THE SAME BITS"
        lines.append(
            f"step {window.step} ({window.reason}): {window.label}; run again from {begun} {bits}, "
            f"steps {window.first} to {window.last} traced in full"
        )
    if report.in_step and verdict.label == "rounding" and not report.passed_over:
        lines.append(
            f"with every step of {labels[0]} starting from the state of {labels[1]}, no other "
            f"tensor of {report.in_step} steps jumps: no bug hides behind the rounding"
        )
    if report.passed_over:
        steps = ", ".join(str(suspect.step) for suspect in report.passed_over[:8])
        lines.append(f"not looked at: step {steps} (harness zoom --step looks at one)")
    return replace(verdict, evidence=(*verdict.evidence, *lines))


def require_zoomable(capture: Capture) -> None:
    """Raises HarnessError unless a run that keeps this much can be zoomed into."""
    if capture.level == "full":
        raise HarnessError(
            "--level full --zoom: full traces hold everything already; zoom is for --level stats"
        )
    if capture.level == "hash":
        raise HarnessError(
            "--level hash --zoom: hashes cannot tell a rounding from a fault; use --level stats"
        )


def restartable(
    runs: list[RunSpec], asked: Capture | None, needed: str, watcher: Observer
) -> list[RunSpec]:
    """The runs, without checkpoints where --include or --exclude leave holes in them.

    Raises HarnessError for holes where checkpoints were `asked` for, or are `needed` by an option.
    """
    if not needed and asked and asked.checkpoint_every:
        needed = f"--checkpoint-every {asked.checkpoint_every}"
    whole = "all of params/*, optimizer/* and state/out/*"
    for run in runs:
        kept, names = run.capture, restart_names(run.model, run.train)
        hole = next((name for name in names if not kept.wants(name)), None)
        if hole and needed:
            raise HarnessError(
                f"{needed}: --include or --exclude drop {hole}, and {whole} must be traced for "
                f"it: let them through, or leave {needed.split()[0]} out"
            )
        if needed == "--follow" and not all(map(kept.wants_step, range(1, run.steps + 1))):
            raise HarnessError(
                "--follow: what is followed must be traced at every step: leave --every and "
                "--steps out"
            )
        if hole and kept.checkpoint_every:
            watcher.note(
                f"no checkpoints are kept, for --include or --exclude drop {hole}, and one has "
                f"{whole}: harness zoom would have to start from the beginning"
            )
            without = replace(kept, checkpoint_every=None)
            return [replace(other, capture=without) for other in runs]
    return runs
