"""The socket in the file system on which the process of a script says how far it is.

It is found by its path, so that a script may be started by another (torchrun), which hands on the
environment and no open file.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

from harness.side.serving import WELCOME

BEAT = 0.05  # seconds after which a process that says nothing yet is looked at


class Door:
    """Where one process is waited for: the first that comes, which the others then cannot."""

    def __init__(self) -> None:
        """In a folder of its own among the temporary ones: a path of a socket must be short."""
        self._folder = tempfile.mkdtemp(prefix="harness-")
        self.path = str(Path(self._folder) / "channel")
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(self.path)
        self._socket.listen(1)
        self._socket.settimeout(BEAT)

    def wait(self, gone: Callable[[], bool]) -> socket.socket | None:
        """The channel to whoever comes; None where it is `gone` before."""
        last = False
        try:
            while True:
                try:
                    channel = self._socket.accept()[0]
                    channel.sendall(WELCOME)
                    return channel
                except TimeoutError:
                    if last:
                        return None
                    last = gone()  # and once more: it may have come just now
        finally:
            self.close()

    def close(self) -> None:
        """Nobody is waited for any more."""
        self._socket.close()
        shutil.rmtree(self._folder, ignore_errors=True)
