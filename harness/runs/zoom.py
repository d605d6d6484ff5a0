"""Zoom: from the statistics of a long run to full traces of the steps that matter.

A run that keeps hashes, statistics and sketches of its tensors is short enough to trace for
epochs. Where its sides part, both start again at the last checkpoint before that (scripts: at the
very start), trace a few steps in full, and are judged there as a short run would be.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from harness.compare import DiffResult, diff
from harness.errors import HarnessError
from harness.explain import Verdict
from harness.explain.start import unlike
from harness.observer import Observer
from harness.runs.checkpoints import require_zoomable
from harness.runs.files import folder_bytes
from harness.runs.investigation import Investigation, cannot_follow
from harness.runs.lockstep import run_in_lockstep
from harness.runs.maps import Maps
from harness.runs.rerun import run_of, side_of
from harness.runs.result import Suspect, Window, Zoom, ZoomResult
from harness.runs.session import Session
from harness.runs.suspects import jumps, suspects
from harness.runs.windows import doubted, run_window
from harness.spec import AnyRun, ScriptSpec
from harness.trace import open_trace

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
        if not trace.steps:
            raise HarnessError(f"{trace.path}: no step of it was finished: nothing to zoom into")
        if step is not None and step not in trace.steps:
            raise HarnessError(f"--step {step}: {trace.path} has steps 1 to {trace.steps[-1]}")
    runs = run_of(traces[0]), run_of(traces[1])
    sides = [
        side_of(trace, run, (pythons or {}).get(run.label, sys.executable))
        for run, trace in zip(runs, traces, strict=True)
    ]
    if runs[0].label == runs[1].label:
        raise HarnessError(f"{a} and {b}: both are of side {runs[0].label}: give two sides")
    folder = traces[1].path.parent
    maps = Maps(folder, None, watcher)
    left = maps.file(runs[0].label, runs[1].label)
    if left.is_file():  # what the run was compared through
        maps = Maps(folder, left, watcher)
    free = diff(*traces, alignment=maps.of(*runs), progress=watcher.part("diff"))
    with Session(sides, folder, watcher) as session:
        return free, zoom(session, runs, free, step, maps)


def zoom(
    session: Session,
    runs: tuple[AnyRun, AnyRun],
    free: DiffResult,
    step: int | None = None,
    maps: Maps | None = None,
) -> ZoomResult | None:
    """Look closely at the steps at which the long `runs` (the reference last) part, or at `step`.

    `free` is the diff of their traces, `maps` has that through which it was made. None where there
    is nothing to look at. The window that decides is the first with a verdict other than rounding,
    or else the first. Raises HarnessError for a side that cannot start again.
    """
    scripts = any(isinstance(run, ScriptSpec) for run in runs)
    if scripts and step is None and (free.status == "structure" or unlike(free)):
        return None  # what is to be said of it is said without a closer look
    closely = _CloseLook(session, runs, free, maps)
    lockstep_steps, apart = 0, None
    if step is None:
        closely.at(suspects(*free.opened(), free, session.watcher.part("looking for jumps")))
        apart = closely.cannot_be_in_step()
        if closely.windows and not closely.decided and apart is None:
            session.watcher.note(
                f"all of that is rounding; the run once more, with each step of {runs[0].label} "
                f"starting from the state of {runs[1].label}"
            )
            pairs = run_in_lockstep(session, runs, session.watcher.part("lockstep"))
            closely.at(_largest_first(jumps(pairs, lockstep=True, exclude=closely.exclude)))
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
    seen = _evidence(verdict, report, runs, apart)
    evidence = (*verdict.evidence, *seen)
    return ZoomResult(report, result, replace(verdict, evidence=evidence))


class _CloseLook:
    """The steps of two long runs that were looked at, and the diff and verdict that decide."""

    def __init__(
        self,
        session: Session,
        runs: tuple[AnyRun, AnyRun],
        free: DiffResult,
        maps: Maps | None,
    ) -> None:
        self.session, self.runs, self.maps = session, runs, maps
        self.sides = runs[0].label, runs[1].label
        self.mapped = free.alignment is not None
        self.scripts = any(isinstance(run, ScriptSpec) for run in runs)
        # Twins are compared whole; of scripts some tensors are known to differ.
        self.exclude = runs[1].capture.exclude if self.scripts else ()
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
            if self.chosen is None or _worth(verdict) > _worth(self.chosen[1]):
                self.chosen = result, verdict

    def cannot_be_in_step(self) -> str | None:
        """Why no side can start each step from the other's state, in words, of scripts."""
        if not self.scripts:
            return None
        wrong = next((why for run in self.runs if (why := cannot_follow(run))), None)
        if wrong:
            return wrong
        if not all(window.same_bits for window in self.windows):
            return "a side does not repeat itself"
        if self.mapped:
            return "between other names or layouts the statistics of a step show no jumps"
        return None

    def _look(self, suspect: Suspect) -> tuple[DiffResult, Verdict]:
        """Run both sides again, trace the steps around one in full, compare and judge."""
        first, last = suspect.step - BEFORE, min(suspect.step + AFTER, self.runs[1].steps)
        first = max(first, 1)
        checkpoint, again = run_window(self.session, self.runs, suspect.step, first, last)
        a, b = again[0].run, again[1].run
        alignment = None
        if self.maps:
            self.maps.same(a.label, b.label, self.sides)
            alignment = self.maps.known(a.label, b.label)
        progress = self.session.watcher.part(f"diff around step {suspect.step}")
        result = diff(
            a.trace, b.trace, exclude=self.exclude, alignment=alignment, progress=progress
        )
        result = replace(result, labels=self.sides)
        look = Investigation(self.session, (a, b), result, self.sides, self.maps, self.exclude)
        restless = [side for side, one in zip(self.sides, again, strict=True) if not one.same_bits]
        verdict = look.verdict()
        if self.scripts and restless:
            verdict = doubted(verdict, self.sides, restless)
        traces = {side: run.trace for side, run in zip(self.sides, (a, b), strict=True)}
        self.windows.append(
            Window(
                suspect.step,
                suspect.reason,
                checkpoint,
                first,
                last,
                traces,
                not restless,
                verdict.label,
                tuple(one.said for one in again if one.said),
            )
        )
        return result, verdict


def _worth(verdict: Verdict) -> int:
    """How much there is to say of a window: what acquits least, what convicts most."""
    order = ("identical", "close", "rounding", "undecided")
    return order.index(verdict.label) if verdict.label in order else len(order)


def _largest_first(suspects: Sequence[Suspect]) -> list[Suspect]:
    """The largest few, in the order of the run, and then the others."""
    ranked = sorted(suspects, key=lambda suspect: -suspect.size)
    return sorted(ranked[:MOST], key=lambda s: s.step) + ranked[MOST:]


def _evidence(
    verdict: Verdict, report: Zoom, runs: tuple[AnyRun, AnyRun], apart: str | None
) -> list[str]:
    """What zooming adds to the evidence of the verdict; `apart`: why there was no lockstep."""
    lines = []
    labels = [run.label for run in runs]
    scripts = [run.label for run in runs if isinstance(run, ScriptSpec)]
    for window in report.windows:
        begun = f"the checkpoint of step {window.checkpoint}" if window.checkpoint else "the start"
        begun += f" ({' and '.join(scripts)}: the start)" if scripts and window.checkpoint else ""
        bits = "to the same bits" if window.same_bits else "NOT TO THE SAME BITS"
        lines.append(
            f"step {window.step} ({window.reason}): {window.label}; run again from {begun} {bits}, "
            f"steps {window.first} to {window.last} traced in full"
        )
        lines += window.said
    if report.in_step and verdict.label == "rounding" and not report.passed_over:
        lines.append(
            f"with every step of {labels[0]} starting from the state of {labels[1]}, no other "
            f"tensor of {report.in_step} steps jumps: no bug hides behind the rounding"
        )
    if apart and verdict.label == "rounding":
        lines.append(f"whether a bug hides behind the rounding was not looked for: {apart}")
    if report.passed_over:
        steps = ", ".join(str(suspect.step) for suspect in report.passed_over[:8])
        lines.append(f"not looked at: step {steps} (harness zoom --step looks at one)")
    return lines
