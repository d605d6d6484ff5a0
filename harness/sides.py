"""The twins that there are, and a side as a process that is handed runs."""

from __future__ import annotations

import collections
import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from harness.errors import HarnessError
from harness.spec import RunSpec, save_run


class Twin(NamedTuple):
    """A twin: the module that runs it, the framework it needs, and the extra that installs that."""

    module: str
    framework: str
    extra: str


TWINS = {
    "pt": Twin("pt_impl", "PyTorch", "torch"),
    "tf": Twin("tf_impl", "TensorFlow", "tensorflow"),
    "np": Twin("np_impl", "NumPy", "all"),
}

# The twin may run in an interpreter that does not have this project: its folder is then searched
# last, so that nothing of that interpreter's own is shadowed.
BOOT = (
    "import runpy, sys; sys.path.append(sys.argv.pop(1)); "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)

DEFAULT_ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",  # TensorFlow's start-up messages hide what matters in the log
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # PyTorch asks for it to be deterministic on a GPU
    # glibc's malloc gives a freed tensor's pages back and faults them in again for the next one,
    # which can cost more than the arithmetic on it: it is told to keep them.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # the largest that it allows
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}

TAIL = 5  # lines of a failed side's log that the error shows


class Job:
    """A run handed to a side. `losses` holds one a step, `valid` one an epoch (nats per token)."""

    def __init__(self, run: RunSpec, observe: Callable[[int], None]) -> None:
        """`observe` is told of every step."""
        self.run = run
        self.observe = observe
        self.losses: list[float] = []
        self.valid: list[float] = []
        self.error: str | None = None
        self._ended = threading.Event()

    def wait(self) -> str | None:
        """Wait for the end; what went wrong, in words with the end of the log, or None."""
        self._ended.wait()
        return self.error

    def end(self, error: str | None) -> None:
        """The run has ended, well or with an error."""
        self.error = error
        self._ended.set()


class SideProcess:
    """A twin in a process of its own: it imports its framework once and is handed run after run.

    Its standard error goes to a log file.
    """

    def __init__(
        self,
        twin: Twin,
        python: str,
        label: str,
        folder: Path,
        failed: Callable[[str], None] = lambda text: None,
        threads: int = 1,
    ) -> None:
        """Start the process; `failed` is told at once of a run that fails.

        `threads` is for NumPy, which takes no number of threads once it is imported.

        Raises HarnessError if the interpreter cannot be started.
        """
        self.twin, self.python, self.label = twin, python, label
        self.folder, self.log = folder, folder / f"{label}.log"
        self._failed, self._stopped = failed, False
        self._jobs: collections.deque[Job] = collections.deque()
        self._gone, self._lock = False, threading.Lock()
        root = Path(__file__).resolve().parent.parent
        environment = {**DEFAULT_ENVIRONMENT, "OPENBLAS_NUM_THREADS": str(threads), **os.environ}
        with open(self.log, "wb") as log:
            try:
                self._process = subprocess.Popen(
                    [python, "-P", "-c", BOOT, str(root), twin.module],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=environment,
                )
            except OSError as error:
                raise HarnessError(
                    f"side {label}: cannot start {python!r}: {error}; "
                    f"give another interpreter with --python {label}=PATH"
                ) from None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def run(self, run: RunSpec, observe: Callable[[int], None] = lambda step: None) -> Job:
        """Hand over a run; it starts when those before it have ended."""
        spec = self.folder / f"{run.label}.json"
        save_run(run, spec)
        job = Job(run, observe)
        with self._lock:
            self._jobs.append(job)
            gone = self._gone
        if gone:
            self._end_all()
            return job
        assert self._process.stdin is not None
        # A process that is gone is noticed where its output ends.
        with suppress(OSError):
            self._process.stdin.write(f"{spec.resolve()}\n".encode())
            self._process.stdin.flush()
        return job

    def _read(self) -> None:
        assert self._process.stdout is not None
        with open(self.log, "ab") as log, self._process.stdout as lines:
            for line in lines:
                try:
                    # Not msgspec: a loss may be NaN or Infinity, which Python writes and reads.
                    said = json.loads(line)
                    self._heard(self._jobs[0], said)
                except (ValueError, TypeError, KeyError, IndexError):
                    log.write(line)  # a framework's own chatter
                    log.flush()
        with self._lock:
            self._gone = True
        self._end_all()

    def _heard(self, job: Job, said: dict[str, Any]) -> None:
        if said.get("ended"):
            self._jobs.popleft()
            failed = said["failed"]
            self._end(job, None if failed is None else str(failed))
            return
        step, loss = int(said["step"]), float(said["loss"])
        job.losses.append(loss)
        if said.get("valid") is not None:
            job.valid.append(float(said["valid"]))
        job.observe(step)

    def _end(self, job: Job, error: str | None) -> None:
        if error is not None:
            if not self._stopped:
                self._failed(
                    f"side {self.label} failed after step {len(job.losses)}; log: {self.log}"
                )
            error = f"side {self.label} failed after step {len(job.losses)}: {error}"
            error += f"; log: {self.log}" + "".join(f"\n    {line}" for line in self._tail())
        job.end(error)

    def _end_all(self) -> None:
        """The process is gone: every run that it still had has failed."""
        while self._jobs:
            self._end(self._jobs.popleft(), self._death(self._process.wait()))

    def close(self) -> None:
        """Let the process end once its runs have."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()

    def stop(self) -> None:
        """End the process if it still runs; what it has traced stays."""
        self._stopped = True
        self.close()
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join()

    def _tail(self) -> list[str]:
        lines = [line for line in self.log.read_text("utf-8", "replace").splitlines() if line]
        return ["".join(c if c.isprintable() else " " for c in line) for line in lines[-TAIL:]]

    def _death(self, code: int) -> str:
        """Why a process ended that should not have, in words."""
        missing = re.search(r"No module named '([\w.]+)'", "\n".join(self._tail()))
        if missing:
            return (
                f"{self.python} has no module {missing[1]!r} ({self.twin.framework} is needed): "
                f"pip install 'twin-harness[{self.twin.extra}]' there, or name an interpreter that "
                f"has it: --python {self.label}=PATH"
            )
        if code < 0:
            name = signal.Signals(-code).name
            memory = " (out of memory, perhaps)" if -code == signal.SIGKILL else ""
            return f"killed by {name}{memory}"
        return f"exit code {code}"
