"""The twins that there are, and a side as a process that is handed runs."""

from __future__ import annotations

import collections
import os
import queue
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from harness.errors import HarnessError
from harness.runs.channel import Door
from harness.side.serving import (
    CHANNEL,
    CHANNEL_VARIABLE,
    LONGEST,
    Ended,
    Stepped,
    decode,
    encode,
)
from harness.spec import AnyRun, save_run
from harness.trace.schema import quote, said


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


class Program(NamedTuple):
    """What a side's interpreter runs: its arguments, to which a twin's are added the channel's.

    `needs` and `extra` say what is to be installed where a module is missing. A `served` program
    takes runs until it is told to stop; any other has one run, and ends with it.
    """

    arguments: tuple[str, ...]
    needs: str
    extra: str
    served: bool = True


# The twin may run in an interpreter that does not have this project: its folder is then searched
# last, so that nothing of that interpreter's own is shadowed.
ROOT = Path(__file__).resolve().parents[2]
BOOT = (
    "import runpy, sys; sys.path.append(sys.argv.pop(1)); "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def program_of(twin: Twin) -> Program:
    """The program of a twin."""
    needs, extra = f"{twin.framework} is needed", f"'twin-harness[{twin.extra}]'"
    return Program(("-P", "-c", BOOT, str(ROOT), twin.module), needs, extra)


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
TAIL_BYTES = 1 << 16  # of its end that are looked at
PATIENCE = 5.0  # seconds in which a process that is told to end, or says nothing more, has to
BEAT = 0.5  # seconds after which a silent side's process is looked at


def processors() -> int:
    """How many processors this process may use; not every system can tell them from all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Job:
    """A run handed to a side. `losses` holds one a step, `valid` one an epoch (nats per token)."""

    def __init__(
        self,
        side: SideProcess,
        run: AnyRun,
        observe: Callable[[int], None],
        on_epoch: Callable[[Stepped], None],
    ) -> None:
        """`observe` is told of every step, `on_epoch` of every epoch of what is trained."""
        self.side, self.run, self.observe, self.on_epoch = side, run, observe, on_epoch
        self.losses: list[float] = []
        self.valid: list[float] = []
        self.error: str | None = None
        self._ended, self._lock = threading.Event(), threading.Lock()
        self._listeners: list[queue.SimpleQueue[Job]] = []

    @property
    def file(self) -> str:
        """What the run is described in, by which both ends of the channel name it."""
        return str((self.side.folder / f"{self.run.label}.json").resolve())

    @property
    def ended(self) -> bool:
        """Whether it has come to its end, well or not."""
        return self._ended.is_set()

    def wait(self) -> str | None:
        """Wait for the end; what went wrong, in words with the end of the log, or None."""
        self._ended.wait()
        return self.error

    def notify(self, ended: queue.SimpleQueue[Job]) -> None:
        """Put the job into `ended` when it has, or now if it has already."""
        with self._lock:
            if not self.ended:
                self._listeners.append(ended)
                return
        ended.put(self)

    def end(self, error: str | None) -> None:
        """The run has ended, well or with an error."""
        self.error = error
        with self._lock:
            self._ended.set()
        for ended in self._listeners:
            ended.put(self)


class _BrokenError(Exception):
    """A side that says what cannot be: nothing more is heard of it."""


class SideProcess:
    """A twin in a process of its own: it imports its framework once and is handed run after run.

    Runs and messages go over a channel (harness.side.serving); what it prints goes to a log.
    """

    def __init__(
        self,
        program: Program,
        python: str,
        label: str,
        folder: Path,
        failed: Callable[[str], None] = lambda text: None,
        threads: int = 1,
        again: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start the process; `failed` is told at once of a run that fails.

        `threads` is for NumPy, which takes no number of threads once it is imported. `again` goes
        on in the log of an earlier process. `environment` is added to that of this process; of a
        program that is not served it says which run to do.

        Raises HarnessError if the interpreter cannot be started.
        """
        self.program, self.python, self.label = program, python, label
        self.folder, self.log = folder, folder / f"{label}.log"
        self._failed, self._stopped, self._broken = failed, False, ""
        self._jobs: collections.deque[Job] = collections.deque()
        self._gone, self._lock = False, threading.Lock()
        own = {**DEFAULT_ENVIRONMENT, "OPENBLAS_NUM_THREADS": str(threads), **os.environ}
        self._channel, theirs = socket.socketpair()
        self._door = None if program.served else Door()
        with theirs, open(self.log, "ab" if again else "wb") as log:
            self._begun = log.tell()
            served = (CHANNEL, str(theirs.fileno())) if program.served else ()
            own |= {**(environment or {}), CHANNEL_VARIABLE: self._door.path} if self._door else {}
            try:
                self._process = subprocess.Popen(
                    [python, *program.arguments, *served],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=own,
                    pass_fds=[theirs.fileno()] if program.served else [],
                )
            except OSError as error:
                self._channel.close()
                if self._door:
                    self._door.close()
                raise HarnessError(
                    f"side {label}: cannot start {python!r}: {error}; "
                    f"give another interpreter with --python {label}=PATH"
                ) from None
        self._reader = threading.Thread(target=self._read, name=f"side {label}", daemon=True)
        self._reader.start()

    @property
    def gone(self) -> bool:
        """Whether the process has ended, or can be told nothing more."""
        return self._gone

    @property
    def _over(self) -> bool:
        """Whether all that it was to do is done."""
        return not self.program.served and not self._jobs

    def run(
        self,
        run: AnyRun,
        observe: Callable[[int], None] = lambda step: None,
        on_epoch: Callable[[Stepped], None] = lambda said: None,
    ) -> Job:
        """Hand over a run; it starts when those before it have ended."""
        job = Job(self, run, observe, on_epoch)
        save_run(run, Path(job.file))
        with self._lock:
            self._jobs.append(job)
            gone = self._gone
        if gone:
            self._end_all()
            return job
        # A process that is gone is noticed where its messages end.
        with suppress(OSError):
            self._channel.sendall(encode(job.file))
        return job

    def _read(self) -> None:
        """Hear the side out. Whatever goes wrong here ends its runs, and none waits for ever."""
        try:
            for line in self._lines():
                self._receive(line)
        except _BrokenError as error:
            self._broken = str(error)
        except Exception as error:  # of whoever is told of the run
            self._broken = f"what observes it failed: {type(error).__name__}: {said(error)}"
        with self._lock:
            self._gone = True
        self._finish()
        self._end_all()
        self._channel.close()

    def _lines(self) -> Iterator[bytes]:
        """What the side says, line by line, until it ends: its process, or the channel.

        Its own processes may hold the channel open when it is gone. Raises _BrokenError for a
        line that is too long.
        """
        if self._door:
            come = self._door.wait(lambda: self._process.poll() is not None)
            if come is None:
                return
            self._channel.close()
            self._channel = come
        self._channel.settimeout(BEAT)
        text, gone = b"", False
        while True:
            try:
                more = self._channel.recv(1 << 16)
            except TimeoutError:
                if gone:
                    return
                gone = self._process.poll() is not None  # and once more, for its last words
                continue
            except OSError:
                return
            if not more:
                return
            *lines, text = (text + more).split(b"\n")
            yield from lines
            if len(text) > LONGEST:
                raise _BrokenError(f"it said a line of over {LONGEST} bytes, which is no message")

    def _receive(self, line: bytes) -> None:
        """Take one message. Raises _BrokenError for what is none, or cannot be true now."""
        try:
            message = decode(line)
        except ValueError as error:
            raise _BrokenError(f"it said {quote(line)}, which is {said(error)}") from None
        if not self._jobs:
            raise _BrokenError(f"it said {quote(line)}, and has nothing to run")
        job = self._jobs[0]
        coming = job.run.start + len(job.losses)
        if isinstance(message, Stepped):
            if message.step != coming or coming > job.run.steps:
                raise _BrokenError(f"it said {quote(line)}, where step {coming} was to come")
            job.losses.append(message.loss)
            if message.valid is not None:
                job.valid.append(message.valid)
            if message.train is not None or message.test is not None:
                job.on_epoch(message)
            job.observe(message.step)
            return
        self._check_end(job, message, coming)
        self._jobs.popleft()
        self._end(job, message.failed)

    def _check_end(self, job: Job, message: Ended, coming: int) -> None:
        if message.ended != job.file:
            raise _BrokenError(f"it ended {quote(message.ended)}, and {job.file} was running")
        if message.failed is None and coming <= job.run.steps:
            raise _BrokenError(f"it ended well, and step {coming} of {job.run.steps} was to come")

    def _end(self, job: Job, error: str | None) -> None:
        if error is None or self._stopped:
            job.end(error and f"side {self.label} was stopped after step {_last(job)}")
            return
        failure = f"side {self.label} failed after step {_last(job)}"
        error = f"{failure}: {error}; log: {self.log}"
        job.end(error + "".join(f"\n    {line}" for line in self._tail()))
        self._failed(f"{failure}; log: {self.log}")

    def _end_all(self) -> None:
        """The process is gone: every run that it still had has failed."""
        while self._jobs:
            with suppress(Exception):  # whoever is told of it may be what failed
                job = self._jobs.popleft()
                self._end(job, self._broken or self._death(job, self._process.wait()))

    def _finish(self) -> None:
        """See to it that a process that says nothing more ends."""
        if self._broken:
            self._process.kill()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._broken = self._broken or "it closed its channel and went on"
            self._process.terminate()  # what started its ranks ends them, too
            self._end_process()

    def _end_process(self) -> None:
        """Wait for the process, which was told to end; kill it where it does not."""
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def ask_to_stop(self) -> None:
        """Tell the process to end at once, and do not wait for it.

        A script whose run has ended is about to: what started its ranks puts them away.
        """
        if self._over:
            return
        self._stopped = True
        with suppress(OSError):
            self._channel.shutdown(socket.SHUT_WR)
        if self._process.poll() is None:
            self._process.terminate()

    def stop(self) -> None:
        """End the process if it still runs; what it has traced stays."""
        self.ask_to_stop()
        if self._over:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(PATIENCE)
            self._process.terminate()
        self._end_process()
        self._reader.join(2 * PATIENCE)  # whoever observes a run may never come back

    def _tail(self) -> list[str]:
        with open(self.log, "rb") as log:
            log.seek(max(self._begun, log.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = [line for line in log.read().decode("utf-8", "replace").splitlines() if line]
        return [
            "".join(c if c.isprintable() else " " for c in line[:500]) for line in lines[-TAIL:]
        ]

    def _death(self, job: Job, code: int) -> str:
        """Why a process ended that should not have, in words."""
        if code == 0 and not self.program.served:
            return _too_soon(job)
        tail = "\n".join(self._tail())
        missing = re.search(r"No module named '([\w.]+)'", tail)
        if missing:
            return (
                f"{self.python} has no module {missing[1]!r} ({self.program.needs}): pip install "
                f"{self.program.extra} there, or name an interpreter that has it: --python "
                f"{self.label}=PATH"
            )
        if code < 0:
            name = signal.Signals(-code).name
            memory = " (out of memory, perhaps)" if -code == signal.SIGKILL else ""
            return f"killed by {name}{memory}"
        if "EADDRINUSE" in tail or "Address already in use" in tail:
            return (
                f"exit code {code}: a port that it names is in use, by the other side perhaps: run "
                "them one after the other (--sequential), or let the script take a free port"
            )
        return f"exit code {code}"


def _too_soon(job: Job) -> str:
    """What to do about a script that ended well and before its time."""
    if not job.losses:
        return (
            "it ended and recorded no step: put `with harness.record(model, optimizer) as rec:` "
            "around its training loop, and `with rec.step(x=x, y=y) as (x, y):` around each step"
        )
    done, asked = len(job.losses), job.run.steps - job.run.start + 1
    return (
        f"it ended after {done} of {asked} steps: run fewer (--trace {_last(job)}), or let it "
        "train longer"
    )


def _last(job: Job) -> int:
    """The last step that a run told of."""
    return job.run.start - 1 + len(job.losses)
