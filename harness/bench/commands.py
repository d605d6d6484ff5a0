"""Commands that are timed from outside, and processes that compare arrays."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from harness.bench.paced import short
from harness.errors import HarnessError
from harness.runs.processes import BOOT, DEFAULT_ENVIRONMENT, ROOT

LAUNCH = Path(__file__).with_name("launch.py")
PATIENCE = 600.0  # seconds

# Ways to compare two arrays, the library whose process each runs in, and the module of that.
COPY, ALLCLOSE, COMPARE = "memory copy", "numpy.allclose", "harness compare"
TORCH, POLYGRAPHY = "torch.testing.assert_close", "Polygraphy CompareFunc.simple"
LIBRARIES = {
    "harness": (COPY, ALLCLOSE, COMPARE),
    "torch": (TORCH,),
    "polygraphy": (POLYGRAPHY,),
}
MODULES = {
    "harness": "harness.bench.arrays",
    "torch": "pt_impl.bench.arrays",
    "polygraphy": "harness.bench.arrays",
}
HARNESS = (sys.executable, "-P", "-c", BOOT, str(ROOT), "harness")


class Launched(NamedTuple):
    """Wall time in seconds of a command, its greatest memory in bytes, and what it printed.

    `last_line` is the last line of its standard error.
    """

    seconds: float
    peak: int
    output: str
    last_line: str


def launch(command: Sequence[str], folder: Path, allowed: Sequence[int] = (0,)) -> Launched:
    """Run a command to its end. HarnessError for an exit code that is not `allowed`."""
    output = folder / "output.txt"
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(LAUNCH), str(output), *command],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        figures = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise HarnessError(f"cannot be run: {error}") from None
    errors = output.with_name(f"{output.name}.err").read_text("utf-8", "replace")
    last_line = short((errors.strip().splitlines() or ["nothing was said"])[-1])
    if figures["code"] not in allowed:
        raise HarnessError(f"exit code {figures['code']}: {last_line}")
    printed = output.read_text("utf-8", "replace")
    return Launched(figures["seconds"], figures["peak"], printed, last_line)


class Worker:
    """A process that compares arrays (harness/bench/arrays.py); use as a context manager."""

    def __init__(self, library: str, dtype: str, elements: int) -> None:
        """Start the process; its arrays are made when it is first asked."""
        command = [sys.executable, "-P", "-c", BOOT, str(ROOT), MODULES[library]]
        self._process = subprocess.Popen(
            [*command, library, dtype, str(elements)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**DEFAULT_ENVIRONMENT, **os.environ},
        )
        self._replies: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def seconds(self, name: str) -> float:
        """How long a way of comparing took, once. Raises HarnessError."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{name}\n")
            self._process.stdin.flush()
            reply = json.loads(self._replies.get(timeout=PATIENCE))
        except (OSError, ValueError, queue.Empty):
            raise HarnessError("its process ended, or does not answer") from None
        if "failed" in reply:
            raise HarnessError(reply["failed"])
        return float(reply["seconds"])

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._replies.put(line)
        self._replies.put("")  # not JSON: the process is gone

    def __enter__(self) -> Worker:
        """Return the worker itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        self._reader.join()
