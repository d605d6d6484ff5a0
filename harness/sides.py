"""The twins that there are, and one side of a run as a process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

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
}

TAIL = 5  # lines of a failed side's log that the error shows


class SideProcess:
    """One side, started; its standard error goes to a log file, its losses are kept.

    `losses` holds one a step, `valid` one an epoch (validation, nats per token).
    """

    def __init__(
        self,
        twin: Twin,
        python: str,
        run: RunSpec,
        folder: Path,
        observe: Callable[[int], None],
        failed: Callable[[str], None],
    ) -> None:
        """Start the process; `observe` is told of every step, `failed` at once if it fails.

        Raises HarnessError if the interpreter cannot be started.
        """
        self.twin, self.python, self.label = twin, python, run.label
        self.log = folder / f"{run.label}.log"
        self.losses: list[float] = []
        self.valid: list[float] = []
        self._stopped = False
        spec = folder / f"{run.label}.json"
        save_run(run, spec)
        root = Path(__file__).resolve().parent.parent
        environment = {**DEFAULT_ENVIRONMENT, **os.environ}
        with open(self.log, "wb") as log:
            try:
                self._process = subprocess.Popen(
                    [python, "-P", "-c", BOOT, str(root), twin.module, str(spec)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=environment,
                )
            except OSError as error:
                raise HarnessError(
                    f"side {run.label}: cannot start {python!r}: {error}; "
                    f"give another interpreter with --python {run.label}=PATH"
                ) from None
        told = (observe, failed)
        self._reader = threading.Thread(target=self._read, args=told, daemon=True)
        self._reader.start()

    def _read(self, observe: Callable[[int], None], failed: Callable[[str], None]) -> None:
        assert self._process.stdout is not None
        with open(self.log, "ab") as log, self._process.stdout as lines:
            for line in lines:
                try:
                    # Not msgspec: a loss may be NaN or Infinity, which Python writes and reads.
                    said = json.loads(line)
                    step, loss = int(said["step"]), float(said["loss"])
                except (ValueError, TypeError, KeyError):
                    log.write(line)  # a framework's own chatter
                    log.flush()
                    continue
                self.losses.append(loss)
                if said.get("valid") is not None:
                    self.valid.append(float(said["valid"]))
                observe(step)
        if self._process.wait() and not self._stopped:
            failed(f"side {self.label} failed after step {len(self.losses)}; log: {self.log}")

    def wait(self) -> int:
        """Wait for the end; the exit code (negative: killed by that signal)."""
        self._reader.join()
        return self._process.wait()

    def stop(self) -> None:
        """End the process if it still runs; what it has traced stays."""
        self._stopped = True
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def failure(self, code: int) -> str:
        """What happened to a side that ended with `code`, in words, with the end of its log."""
        lines = [line for line in self.log.read_text("utf-8", "replace").splitlines() if line]
        tail = ["".join(c if c.isprintable() else " " for c in line) for line in lines[-TAIL:]]
        missing = re.search(r"No module named '([\w.]+)'", "\n".join(tail))
        if missing:
            what = (
                f"{self.python} has no module {missing[1]!r} ({self.twin.framework} is needed): "
                f"pip install 'twin-harness[{self.twin.extra}]' there, or name an interpreter that "
                f"has it: --python {self.label}=PATH"
            )
        elif code < 0:
            name = signal.Signals(-code).name
            memory = " (out of memory, perhaps)" if -code == signal.SIGKILL else ""
            what = f"killed by {name}{memory}"
        else:
            what = f"exit code {code}"
        shown = "".join(f"\n    {line}" for line in tail)
        done = len(self.losses)
        return f"side {self.label} failed after step {done}: {what}; log: {self.log}{shown}"
