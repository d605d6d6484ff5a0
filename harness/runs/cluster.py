"""Runs of a sweep on the workers of a Dask scheduler (dask.distributed)."""

from __future__ import annotations

import atexit
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import xxhash
from msgspec.structs import replace

from harness.errors import HarnessError
from harness.observer import Observer
from harness.runs.session import Session, Side
from harness.runs.sweep import Done, Task, run_task
from harness.spec import RunSpec

Files = dict[str, bytes]  # by the field of a RunSpec


class Cluster:
    """The workers of a scheduler, which are handed the files of a run over the network.

    A worker that dies loses nothing: the scheduler gives what it had to another.
    """

    def __init__(self, address: str, watcher: Observer) -> None:
        """Connect. Raises HarnessError where that cannot be done."""
        try:
            import distributed
        except ModuleNotFoundError:
            raise HarnessError(
                "--scheduler needs dask.distributed: pip install 'twin-harness[dask]', or leave it "
                "out to use this machine"
            ) from None
        try:
            client: Any = distributed.Client
            self._client = client(address, timeout=10)
        except (OSError, TimeoutError, ValueError) as error:
            raise HarnessError(
                f"--scheduler {address}: no Dask scheduler answers there: {error}"
            ) from None
        watcher.note(f"{len(self._client.scheduler_info()['workers'])} workers at {address}")

    def run(self, tasks: Sequence[Task], done: Done) -> None:
        """As `harness.runs.sweep.Pool.run`."""
        import distributed

        completed: Any = distributed.as_completed
        with self._client:
            files = self._client.scatter(_files(tasks[0].run), broadcast=True)
            futures = {
                self._client.submit(
                    _run, task.side, msgspec.json.encode(task.run), files, pure=False
                ): task
                for task in tasks
            }
            # With their results, which a worker that dies later can no longer lose.
            for future, result in completed(list(futures), with_results=True, raise_errors=False):
                task = futures[future]
                if future.status == "error":
                    raise HarnessError(f"{task.side.label}: {future.exception()}")
                done(task, result)


def _files(run: RunSpec) -> Files:
    """What a run reads."""
    return {name: Path(getattr(run, name)).read_bytes() for name in ("weights", "tokens")}


_lock = threading.Lock()


@cache
def _session(side: Side) -> Session:
    """The process of a side, which serves all runs that this worker is given."""
    stack = ExitStack()
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="harness-"))
    atexit.register(stack.close)
    return stack.enter_context(Session([side], Path(folder), Observer()))


def _run(side: Side, run: bytes, files: Files) -> list[float]:
    """A task, in the process of a worker; the losses of its steps."""
    with _lock:  # a worker may have several threads, and a side's process has one run at a time
        side = Side(*side)
        session = _session(side)
        own: dict[str, Any] = {}
        for name, content in files.items():
            # A worker may serve one sweep after another, of other weights and texts.
            known = xxhash.xxh3_128_hexdigest(content)
            path = session.folder / f"{known}{'.npz' if name == 'weights' else '.npy'}"
            if not path.exists():
                path.write_bytes(content)
            own[name] = str(path)
        spec = replace(msgspec.json.decode(run, type=RunSpec), **own)
        return run_task(session, Task(side, (), spec), threading.Event())
