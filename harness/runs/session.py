"""The processes of a run, each started once, and runs handed to them."""

from __future__ import annotations

import queue
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from harness.errors import HarnessError
from harness.observer import Observer
from harness.runs.processes import TWINS, Job, SideProcess, program_of
from harness.runs.scripts import script_environment, script_program
from harness.side.serving import Stepped
from harness.spec import AnyRun, ScriptSpec, save_run
from harness.trace import remove_trace
from harness.trace.ranks import rank_steps

REFEREE = "np"


class Side(NamedTuple):
    """A side: its label, its twin or its script with arguments, and the interpreter it lives in."""

    label: str
    twin: str
    python: str = sys.executable
    script: tuple[str, ...] = ()


class Session:
    """A process for each side, started when it is first needed; use as a context manager.

    The referee is a side of that name, whether or not the run has one.
    """

    def __init__(self, sides: Sequence[Side], folder: Path, watcher: Observer) -> None:
        """Nothing is started yet; logs and the files that sides are given go to `folder`."""
        self.folder, self.watcher = folder, watcher
        self._sides = {"referee": Side("referee", REFEREE)} | {side.label: side for side in sides}
        self._processes: dict[str, SideProcess] = {}

    def __enter__(self) -> Session:
        """Return the session."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End every process; what it has traced stays."""
        for process in self._processes.values():
            process.ask_to_stop()
        for process in self._processes.values():
            process.stop()

    def twin(self, label: str) -> str:
        """The twin of a side."""
        return self._sides[label].twin

    def start(
        self,
        label: str,
        run: AnyRun,
        show: bool = True,
        on_epoch: Callable[[Stepped], None] = lambda said: None,
    ) -> Job:
        """Hand a run to the side `label`, after those it already has; its old trace is removed.

        `show` draws its progress under the run's own label.
        """
        if isinstance(run, ScriptSpec) or not run.training:
            remove_trace(run.trace)  # a side that fails must not leave an earlier run's
        if isinstance(run, ScriptSpec):
            process = self._script(label, run)
        else:
            process = self._process(label, run.threads)
        if not show:
            return process.run(run)
        total = run.steps - run.start + 1
        self.watcher.begin(run.label, total)
        skipped = run.start - 1
        advance = partial(self.watcher.advance, run.label)
        return process.run(run, lambda step: advance(step - skipped), on_epoch)

    def _script(self, label: str, run: ScriptSpec) -> SideProcess:
        """A process for one run of a script, once the one before it has ended."""
        before = self._processes.get(label)
        if before is not None:
            before.stop()
        save_run(run, self._job_file(run))  # it is read as soon as the process is there
        self._processes[label] = SideProcess(
            script_program(run),
            self._sides[label].python,
            label,
            self.folder,
            self.watcher.note,
            run.threads,
            again=before is not None,
            environment=script_environment(run, self._job_file(run), self.folder),
        )
        return self._processes[label]

    def _job_file(self, run: AnyRun) -> Path:
        return (self.folder / f"{run.label}.json").resolve()

    def _process(self, label: str, threads: int) -> SideProcess:
        """The process of a side, started if there is none, or if the last one is gone."""
        before = self._processes.get(label)
        if before is None or before.gone:
            side = self._sides[label]
            self._processes[label] = SideProcess(
                program_of(TWINS[side.twin]),
                side.python,
                label,
                self.folder,
                self.watcher.note,
                threads,
                again=before is not None,
            )
        return self._processes[label]

    def renew(self, label: str) -> None:
        """End the process of a side, which has no run: its next one is served by a fresh one."""
        if label in self._processes:
            self._processes[label].stop()

    def wait(self, jobs: Sequence[Job]) -> None:
        """Wait until all of these runs have ended; once one fails, the others' sides are stopped.

        Raises HarnessError that tells of the one that failed first, of how far the others had come,
        and which traces there are. A stopped side is started again when it is next handed a run.
        """
        ended: queue.SimpleQueue[Job] = queue.SimpleQueue()
        for job in jobs:
            job.notify(ended)
        failures: list[str] = []
        for _ in jobs:
            job = ended.get()
            if job.error is None:
                continue
            failures.append(job.error)
            if len(failures) == 1:
                others = [other for other in jobs if not other.ended]
                for other in others:
                    other.side.ask_to_stop()
                for other in others:
                    other.side.stop()
        if failures:
            traces = [job.run.trace for job in jobs if Path(job.run.trace).exists()]
            kept = ", ".join(trace + rank_steps(trace) for trace in traces)
            raise HarnessError("\n".join(failures) + (f"\ntraces kept: {kept}" if kept else ""))

    def run_all(
        self, runs: Mapping[str, AnyRun] | Sequence[tuple[str, AnyRun]], sequential: bool = False
    ) -> dict[str, Job]:
        """Run the given runs to their ends, side by side; the jobs by the runs' labels.

        Raises HarnessError as `wait` does; of sides one after the other, those after it do not run.
        """
        pairs = list(runs.items()) if isinstance(runs, Mapping) else list(runs)
        jobs: dict[str, Job] = {}
        for label, run in pairs:
            jobs[run.label] = self.start(label, run)
            if sequential:
                self.wait(list(jobs.values()))
        self.wait(list(jobs.values()))
        return jobs
