"""What `harness run` asks of the script that this process is, over a channel of its own."""

from __future__ import annotations

import os
import socket
from typing import Any

from msgspec.structs import replace

from harness.capture.ranks import await_others
from harness.errors import HarnessError
from harness.side.serving import CHANNEL_VARIABLE, RUN_VARIABLE, WELCOME, encode
from harness.spec import ScriptSpec, load_script
from harness.trace.ranks import rank_folder


class Told:
    """What a script is asked for, and the channel on which it says how far it is.

    Of several ranks, rank 0 speaks for all; the others have no channel.
    """

    def __init__(self, run: ScriptSpec, path: str, channel: socket.socket | None) -> None:
        """The run of the file `path`."""
        self.run, self._path, self._channel = run, path, channel
        self._process = os.getpid()

    def report(self, **fields: Any) -> None:
        """Say that a step is done; a process that was forked off says nothing."""
        if self._channel and os.getpid() == self._process:
            self._channel.sendall(encode(fields))

    def end(self, ranks: int) -> None:
        """Say that all steps are, of all ranks; or which have stopped before."""
        short = await_others(self.run.trace, ranks) if self._channel else []
        said = f"{', '.join(f'rank {rank}' for rank in short)} stopped before its last step"
        self.report(ended=self._path, failed=said if short else None)


def told(rank: int, ranks: int) -> Told | None:
    """What this process is asked for; None where it was started by itself, or has been told.

    Raises HarnessError for a channel that is not open.
    """
    path, where = (os.environ.pop(name, None) for name in (RUN_VARIABLE, CHANNEL_VARIABLE))
    if path is None or where is None:
        return None
    run = load_script(path)
    if ranks > 1:
        run = replace(run, trace=str(rank_folder(run.trace, rank)))
    return Told(run, path, _connected(where) if rank == 0 else None)


def _connected(where: str) -> socket.socket:
    channel = socket.socket(socket.AF_UNIX)
    try:
        channel.connect(where)
        heard = channel.recv(len(WELCOME))
    except OSError:
        heard = b""
    if heard != WELCOME:
        channel.close()
        raise HarnessError(
            f"channel {where} is not open: another process of this script records for the same "
            "`harness run`, or that has ended; of several processes that train together each must "
            "know its rank: set up the process group, or RANK and WORLD_SIZE, before harness.record"
        )
    return channel
