"""A side's half of its process: runs come down a channel, and what happens goes up it.

The channel is a socket of its own, so that standard output belongs to the program: whatever it, its
framework or its own processes print there is no message. A message is a line of JSON.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from harness.errors import HarnessError
from harness.spec import RunSpec, load_run

CHANNEL = "--channel"
# Of a script: where its channel is, and the file that says what to run.
CHANNEL_VARIABLE, RUN_VARIABLE = "HARNESS_CHANNEL", "HARNESS_RUN"
WELCOME = b"\n"  # what the one process that speaks for a script hears before all else
LONGEST = 1 << 20  # bytes of a message
LONGEST_REASON = 10_000  # characters of a failure; the log has all of it

Train = Callable[[RunSpec, Callable[..., None]], None]


class Stepped(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A step is done; `valid` is there at the end of an epoch.

    Where a side is trained, so is `train`, the mean loss of its steps in nats per token, and
    `seconds`, what they took; `test` is there at the end of all.
    """

    step: int
    loss: float
    epoch: int | None = None
    lr: float | None = None
    valid: float | None = None
    train: float | None = None
    seconds: float | None = None
    test: float | None = None


class Ended(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The run of the file `ended` has: well (None), or `failed` says what went wrong."""

    ended: str
    failed: str | None


def encode(said: Any) -> bytes:
    """A line of JSON; not by msgspec, which writes null for a loss that is NaN or infinite."""
    return json.dumps(said).encode() + b"\n"


def decode(line: bytes) -> Stepped | Ended:
    """What a side said. Raises ValueError for a line that is no message."""
    try:
        said = json.loads(line)
        if isinstance(said, dict) and "ended" in said:
            return msgspec.convert(said, Ended)
        return msgspec.convert(said, Stepped)
    except (ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise ValueError(f"no message: {error}") from None


def main(train: Train, argv: Sequence[str] | None = None) -> int:
    """Run train(RunSpec, report) for the file that `argv` names, or serve the channel it names.

    `report` takes the fields of `Stepped` by name. One run by hand has its steps on standard
    output, a line of JSON each. Returns the exit code: 2 where a run failed.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    if len(given) == 2 and given[0] == CHANNEL:
        return _serve(train, given[1])
    if len(given) != 1:
        print("error: give one run as JSON: harness run leaves LABEL.json", file=sys.stderr)
        return 2
    return 2 if _run(train, given[0], _print) else 0


def _print(**fields: Any) -> None:
    sys.stdout.write(encode(fields).decode())
    sys.stdout.flush()


def _run(train: Train, path: str, report: Callable[..., None]) -> str | None:
    """Run what a file describes; what was wrong with it, or None."""
    try:
        train(load_run(path), report)
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return str(error)
    return None


def _serve(train: Train, number: str) -> int:
    """Run one file after another, so that the framework is imported once; none ends the others."""
    try:
        os.set_inheritable(int(number), False)  # programs that the side starts hold no end of it
        channel = socket.socket(fileno=int(number))
    except (OSError, ValueError):
        print(
            f"error: channel {number} is not open: what started this interpreter closed it; name "
            "the interpreter itself with --python LABEL=PATH",
            file=sys.stderr,
        )
        return 2
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)  # a killed side's last words are in its log

    def report(**fields: Any) -> None:
        channel.sendall(encode(fields))

    with channel, channel.makefile("rb") as jobs, suppress(BrokenPipeError, ConnectionResetError):
        for line in jobs:
            path = json.loads(line)
            try:
                failed = _run(train, path, report)
            except (BrokenPipeError, ConnectionResetError):
                raise
            except Exception as error:
                traceback.print_exc()
                failed = f"{type(error).__name__}: {error}"
            sys.stdout.flush()
            sys.stderr.flush()
            report(ended=path, failed=failed and failed[:LONGEST_REASON])
    return 0
