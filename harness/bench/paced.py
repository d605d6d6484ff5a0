"""Sides that are timed: runs that stand still between their turns, and runs to their end."""

from __future__ import annotations

import queue
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from harness.errors import HarnessError
from harness.runs.files import folder_bytes
from harness.runs.processes import Job, SideProcess, Twin, program_of
from harness.spec import RunSpec
from harness.trace import remove_trace
from harness.trace.schema import INDEX_FILE

PATIENCE = 600.0  # seconds for one step; the first may compile a model


class Span(NamedTuple):
    """Seconds a step of a run after its warm-up, and from its last step to its end.

    `bytes` and `index_bytes` are of its trace.
    """

    step: float
    tail: float
    steps: int
    bytes: int
    index_bytes: int


class TimedSide(SideProcess):
    """A side that tells when its steps arrived. Its process is stopped between turns."""

    def __init__(self, twin: Twin, label: str, folder: Path, threads: int) -> None:
        """Start the process. Raises HarnessError as SideProcess does."""
        super().__init__(program_of(twin), sys.executable, label, folder, threads=threads)
        self._arrived: queue.SimpleQueue[float | str] = queue.SimpleQueue()

    def begin(self, run: RunSpec, warm: int) -> None:
        """Hand over a run, pass over its first `warm` steps, and let it stand. HarnessError."""
        self._start(run)
        for _ in range(warm):
            self._next()
        self._signal(signal.SIGSTOP)

    def go_on(self, steps: int) -> float:
        """Seconds a step of the next `steps`; then the run stands again. Raises HarnessError.

        The step that was under way when it was stopped is passed over.
        """
        self._signal(signal.SIGCONT)
        first = last = self._next()
        for _ in range(steps):
            last = self._next()
        self._signal(signal.SIGSTOP)
        return (last - first) / steps

    def whole(self, run: RunSpec, warm: int) -> Span:
        """Time a run to its end, the first `warm` steps passed over. Raises HarnessError."""
        self._signal(signal.SIGCONT)
        job = self._start(run)
        arrived = [self._next() for _ in range(run.steps)]
        self._arrived.get(timeout=PATIENCE)  # the end
        end = time.perf_counter()
        if job.error:
            raise HarnessError(short(job.error))
        self._signal(signal.SIGSTOP)
        steps, last = run.steps - warm, arrived[-1]
        step = (last - arrived[warm - 1]) / steps
        return Span(step, end - last, steps, *trace_bytes(Path(run.trace)))

    def stop(self) -> None:
        """End the process, also one that stands."""
        self._signal(signal.SIGCONT)
        super().stop()

    def _start(self, run: RunSpec) -> Job:
        remove_trace(run.trace)
        arrived = self._arrived = queue.SimpleQueue()
        job = self.run(run, lambda step: arrived.put(time.perf_counter()))

        def tell() -> None:
            arrived.put(job.wait() or "the run ended")

        threading.Thread(target=tell, daemon=True).start()
        return job

    def _next(self) -> float:
        """When the next step arrived."""
        try:
            arrival = self._arrived.get(timeout=PATIENCE)
        except queue.Empty:
            self._signal(signal.SIGSTOP)  # it is out, and must not slow the others
            raise HarnessError(f"side {self.label}: no step in {PATIENCE:.0f} s") from None
        if isinstance(arrival, str):
            raise HarnessError(short(arrival))
        return arrival

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)


def trace_bytes(trace: Path) -> tuple[int, int]:
    """The bytes of all files of a trace, and of its index; zeros where there is no trace."""
    if not trace.is_dir():
        return 0, 0
    index = trace / INDEX_FILE
    return folder_bytes(trace), index.stat().st_size if index.exists() else 0


PLACE = re.compile(r"(?:/[^\s/:;'\"]+)+/([^\s/:;'\"]+)")


def short(error: str) -> str:
    """The first line of an error; of the places on this machine that it names, the last part."""
    lines = error.strip().splitlines() or ["no reason was given"]
    return PLACE.sub(r"\1", lines[0].split("; log: ")[0])[:200]
