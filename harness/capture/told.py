"""What `harness run` asks of the script that this process is, over a channel of its own."""

from __future__ import annotations

import os
import socket
from typing import Any

from harness.errors import HarnessError
from harness.side.serving import CHANNEL_VARIABLE, RUN_VARIABLE, encode
from harness.spec import ScriptSpec, load_script


class Told:
    """What a script is asked for, and the channel on which it says how far it is."""

    def __init__(self, run: ScriptSpec, path: str, channel: socket.socket) -> None:
        """The run of the file `path`."""
        self.run, self._path, self._channel = run, path, channel
        self._process = os.getpid()

    def report(self, **fields: Any) -> None:
        """Say that a step is done; a process that was forked off says nothing."""
        if os.getpid() == self._process:
            self._channel.sendall(encode(fields))

    def end(self) -> None:
        """Say that all steps are."""
        self.report(ended=self._path, failed=None)


def told() -> Told | None:
    """What this process is asked for; None where it was started by itself, or has been told.

    Raises HarnessError for a channel that is not open.
    """
    path, number = (os.environ.pop(name, None) for name in (RUN_VARIABLE, CHANNEL_VARIABLE))
    if path is None or number is None:
        return None
    try:
        os.set_inheritable(int(number), False)  # programs that the script starts hold no end of it
        channel = socket.socket(fileno=int(number))
    except (OSError, ValueError):
        raise HarnessError(
            f"channel {number} is not open: what started this interpreter closed it; name the "
            "interpreter itself with --python LABEL=PATH"
        ) from None
    return Told(load_script(path), path, channel)
