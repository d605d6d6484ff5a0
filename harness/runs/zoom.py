"""Zoom: from the statistics of a long run to full traces of the steps that matter.

A run that keeps hashes, statistics and sketches of its tensors is short enough to trace for
epochs. Where its sides part, both start again at the last checkpoint before that, trace a few steps
in full, and are judged there as a short run would be.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from harness.compare import DiffResult, diff
from harness.errors import HarnessError
from harness.explain import Verdict
from harness.observer import Observer
from harness.runs.checkpoints import require_zoomable
from harness.runs.files import folder_bytes, relabelled
from harness.runs.investigation import Investigation
from harness.runs.lockstep import run_in_lockstep
from harness.runs.rerun import run_of, twin_of
from harness.runs.result import Suspect, Window, Zoom, ZoomResult
from harness.runs.session import Session, Side
from harness.runs.suspects import jumps, suspects
from harness.spec import Capture, Resume, RunSpec
from harness.trace import Trace, open_trace

BEFORE, AFTER = 2, 1  # steps traced in full around one: following starts from the one before
MOST = 3  # steps that are looked at closely


def zoom_traces(
    a: str | Path,
    b: str | Path,
    *,
    step: int | None = None,
    pythons: Mapping[str, str] | None = None,
    observer: Observer | None = None,
) -> tuple[DiffResult, ZoomResult | None]:
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
    runs = run_of(traces[0]), run_of(traces[1])
    sides = [
        Side(run.label, twin_of(trace), (pythons or {}).get(run.label, sys.executable))
        for run, trace in zip(runs, traces, strict=True)
    ]
    free = diff(*traces, progress=watcher.part("diff"))
    with Session(sides, traces[1].path.parent, watcher) as session:
        return free, zoom(session, runs, free, step)


def zoom(
    session: Session, runs: tuple[RunSpec, RunSpec], free: DiffResult, step: int | None = None
) -> ZoomResult | None:
    """Look closely at the steps at which the long `runs` (the reference last) part, or at `step`.

    `free` is the diff of their traces. None where there is nothing to look at. The window that
    decides is the first with a verdict other than rounding, or else the first. Raises HarnessError
    for a side that cannot start again.
    """
    traces = open_trace(runs[0].trace), open_trace(runs[1].trace)
    closely = _CloseLook(session, runs, traces)
    lockstep_steps = 0
    if step is None:
        closely.at(suspects(*traces, free, session.watcher.part("looking for jumps")))
        if closely.windows and not closely.decided:
            session.watcher.note(
                f"all of that is rounding; the run once more, with each step of {runs[0].label} "
                f"starting from the state of {runs[1].label}"
            )
            pairs = run_in_lockstep(session, runs, session.watcher.part("lockstep"))
            closely.at(_largest_first(jumps(pairs, lockstep=True)))
            lockstep_steps = runs[1].steps
    else:
        closely.at([Suspect(step, "asked for")])
    if closely.chosen is None:
        return None
    result, verdict = closely.chosen
    full = [path for window in closely.windows for path in window.traces.values()]
    report = Zoom(
        tuple(closely.windows),
        tuple(closely.passed_over),
        lockstep_steps,
        {run.label: folder_bytes(run.trace) for run in runs},
        sum(folder_bytes(path) for path in full),
    )
    evidence = (*verdict.evidence, *_evidence(verdict, report, (runs[0].label, runs[1].label)))
    return ZoomResult(report, result, replace(verdict, evidence=evidence))


class _CloseLook:
    """The steps of two long runs that were looked at, and the diff and verdict that decide."""

    def __init__(
        self, session: Session, runs: tuple[RunSpec, RunSpec], traces: tuple[Trace, Trace]
    ) -> None:
        self.session, self.runs, self.traces = session, runs, traces
        self.sides = runs[0].label, runs[1].label
        self.windows: list[Window] = []
        self.passed_over: list[Suspect] = []
        self.chosen: tuple[DiffResult, Verdict] | None = None
        self.decided = False

    def at(self, suspects: Sequence[Suspect]) -> None:
        """Look at the first few, up to one that decides."""
        seen = {window.step for window in self.windows}
        unseen = [suspect for suspect in suspects if suspect.step not in seen]
        for i, suspect in enumerate(unseen):
            if self.decided or i == MOST:
                self.passed_over += unseen[i:]
                return
            self.session.watcher.note(f"zooming in on step {suspect.step}: {suspect.reason}")
            result, verdict = self._look(suspect)
            self.decided = verdict.label in ("bug", "precision", "structure")
            if self.chosen is None or self.decided:
                self.chosen = result, verdict

    def _look(self, suspect: Suspect) -> tuple[DiffResult, Verdict]:
        """Start both sides again before a step, trace it in full, compare and judge."""
        first, last = suspect.step - BEFORE, min(suspect.step + AFTER, self.runs[1].steps)
        checkpoint = _checkpoint(self.traces, first - 1)
        first = max(first, 1)
        again = [self._again(run, suspect.step, checkpoint) for run in self.runs]
        window = Capture(first=first, last=last)
        a, b = (replace(run, steps=last, capture=window) for run in again)
        self.session.run_all(list(zip(self.sides, (a, b), strict=True)))
        progress = self.session.watcher.part(f"diff around step {suspect.step}")
        result = replace(diff(a.trace, b.trace, progress=progress), labels=self.sides)
        verdict = Investigation(self.session, (a, b), result, self.sides).verdict()
        traces = {side: run.trace for side, run in zip(self.sides, (a, b), strict=True)}
        same_bits = all(
            _same_bits(long, open_trace(path))
            for long, path in zip(self.traces, traces.values(), strict=True)
        )
        self.windows.append(
            Window(
                suspect.step,
                suspect.reason,
                checkpoint,
                first,
                last,
                traces,
                same_bits,
                verdict.label,
            )
        )
        return result, verdict

    def _again(self, run: RunSpec, step: int, checkpoint: int) -> RunSpec:
        """The long run again from a checkpoint, for a look at `step`."""
        resume = Resume(run.trace, checkpoint) if checkpoint else None
        again = relabelled(run, f"{run.label}-step{step}")
        return replace(again, resume=resume, start=checkpoint + 1)


def _largest_first(suspects: Sequence[Suspect]) -> list[Suspect]:
    """The largest few, in the order of the run, and then the others."""
    ranked = sorted(suspects, key=lambda suspect: -suspect.size)
    return sorted(ranked[:MOST], key=lambda s: s.step) + ranked[MOST:]


def _checkpoint(traces: tuple[Trace, Trace], latest: int) -> int:
    """The last step, up to `latest`, after which both sides can start again (0: the beginning)."""
    kept = []
    for trace in traces:
        every = trace.header.capture.checkpoint_every
        kept.append({s for s in trace.steps if every and s <= latest and not s % every})
    return max(kept[0] & kept[1], default=0)


def _same_bits(long: Trace, short: Trace) -> bool:
    """Whether the steps of `short` are, by their hashes, those of the long run to the last bit."""
    for step in short.steps:
        if step not in long.steps:
            continue
        hashes = {entry.name: entry.hash for entry in long.entry(step).tensors}
        if any(hashes.get(e.name, e.hash) != e.hash for e in short.entry(step).tensors):
            return False
    return True


def _evidence(verdict: Verdict, report: Zoom, labels: tuple[str, str]) -> list[str]:
    """What zooming adds to the evidence of the verdict, in words."""
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
    return lines
