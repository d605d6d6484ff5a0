"""One thread that does jobs in order, behind a queue that holds a bounded number of bytes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class Background:
    """A thread that does what it is given, while at most `limit` bytes wait or are worked on.

    No lock is held in Python code, so an interrupt (KeyboardInterrupt) at any place in the calling
    thread leaves nothing locked: each count below is written by one thread alone, and the queues
    are atomic.
    """

    def __init__(self, limit: int, name: str) -> None:
        """Start the thread, as a daemon: an interpreter that has to end does not wait for it."""
        self.error: BaseException | None = None
        self._limit = limit
        self._given = self._done = 0  # bytes; the caller's count and the thread's
        self._jobs: queue.SimpleQueue[tuple[int, Callable[[], None]] | None] = queue.SimpleQueue()
        self._progress: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def put(self, size: int, job: Callable[[], None]) -> None:
        """Hand over a job that holds `size` bytes, once there is room for it."""
        self.wait(size)
        self._given += size
        self._jobs.put((size, job))

    def wait(self, size: int) -> None:
        """Return once there is room for `size` bytes.

        More than the limit are let through when nothing else is in hand.
        """
        while self._given > self._done and self._given - self._done + size > self._limit:
            try:
                self._progress.get(timeout=1)
            except queue.Empty:  # an interrupt may have taken a word of progress with it
                continue

    def close(self) -> None:
        """Wait until all jobs are done, and end the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            size, job = item
            if self.error is None:  # after an error nothing more is done
                try:
                    job()
                except BaseException as error:
                    self.error = error
            del item, job  # and the tensors with them, before there is said to be room
            self._done += size
            self._progress.put(None)
