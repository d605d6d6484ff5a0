"""Golden traces: what a test's program computed once, kept beside the test as sketches."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import filelock
import msgspec
import platformdirs

from harness.compare import DiffResult, diff
from harness.errors import HarnessError
from harness.report.failure import failure
from harness.testing.close import Rule, words_of
from harness.testing.given import arrays, is_trace, opened, write
from harness.trace import Program, Trace, TraceError, open_trace, remove_trace
from harness.trace.schema import HEADER_FILE, INDEX_FILE
from harness.trace.sketched import write_sketched

LABEL = "golden"
FILES = {HEADER_FILE, INDEX_FILE}  # all that a golden trace consists of
WAIT = 60.0  # seconds for another test that writes the same one


class Golden(NamedTuple):
    """A golden trace and who asks for it: its folder, how messages name that, the test's file.

    `update` is the command that writes it.
    """

    path: Path
    shown: str
    test_file: str
    update: str


class Written(NamedTuple):
    """What became of a golden trace that was to be updated."""

    state: Literal["written", "replaced", "unchanged"]
    steps: int
    tensors: int
    size: int

    def words(self) -> str:
        """For a summary: "3 steps, 36 tensors, 31.2 KB"."""
        steps, tensors = (
            f"{count:,} {noun}{'s' * (count != 1)}"
            for count, noun in ((self.steps, "step"), (self.tensors, "tensor"))
        )
        return f"{steps}, {tensors}, {self.size / 1e3:,.1f} KB"


def trace_of(given: Any, folder: Path, label: str) -> Trace:
    """What a test holds against a golden trace: a trace, or arrays as one of a single step."""
    if is_trace(given):
        return opened(given)
    one, _ = arrays(given, given)
    number = sum(1 for _ in folder.glob("golden-*.trace")) + 1
    return opened(write(one, folder / f"golden-{number}.trace", label))


def why_not_golden(given: Trace, golden: Golden, rule: Rule) -> str | None:
    """Why a trace is not close to its golden one; None where it is.

    Raises HarnessError, with the command that makes it, for a golden trace that is missing or
    damaged.
    """
    rule = rule.checked()
    with _locked(golden.path):
        if not golden.path.exists():
            raise HarnessError(f"no golden trace {golden.shown}: make it with  {golden.update}")
        try:
            reference = open_trace(golden.path)
            reference = _readable(reference)
        except TraceError as error:
            raise HarnessError(
                f"the golden trace {golden.shown} is damaged ({error}): take it from version "
                f"control, or make it anew with  {golden.update}"
            ) from None
        result = _compared(given, golden.path, rule)
        if result.equivalent:
            return None
        commands = [
            ("next", f"harness explain {words_of((given.path, golden.path))}{rule.options()}"),
            ("if meant", golden.update),
        ]
        return failure(result, None, commands)


def _compared(given: Trace, golden: Path, rule: Rule) -> DiffResult:
    """The diff. A sketch goes by the name in the file, so behind roles sketches are compared."""
    if not given.header.roles:
        return diff(given.path, golden, **rule._asdict())
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "given.trace"
        write_sketched(given, made, given.header.label, Program("script", "", ""))
        return msgspec.structs.replace(diff(made, golden, **rule._asdict()), a=str(given.path))


def update(given: Trace, golden: Golden) -> Written:
    """Write the golden trace, or replace it unless it is the same. Raises HarnessError."""
    with _locked(golden.path):
        try:
            golden.path.parent.mkdir(parents=True, exist_ok=True)
            place = Path(tempfile.mkdtemp(prefix=f".{golden.path.name}-", dir=golden.path.parent))
        except OSError as error:
            raise HarnessError(f"{golden.shown} cannot be written: {error}") from None
        try:
            made = place / "made"
            write_sketched(given, made, LABEL, Program("script", golden.test_file, ""))
            state: Literal["written", "replaced", "unchanged"] = "written"
            if golden.path.exists() or golden.path.is_symlink():
                state = "unchanged" if _bytes(made) == _bytes(golden.path) else "replaced"
            if state != "unchanged":
                _put(made, golden, place / "old")
        except OSError as error:
            raise HarnessError(f"{golden.shown} cannot be written: {error}") from None
        finally:
            shutil.rmtree(place, ignore_errors=True)
        size = sum(map(len, _bytes(golden.path).values()))
    return Written(state, len(given.steps), _tensors(given), size)


def _put(made: Path, golden: Golden, old: Path) -> None:
    """Put a new golden trace in place of an old one, which may be damaged; nothing else goes."""
    if golden.path.exists() or golden.path.is_symlink():
        if golden.path.is_symlink() or not golden.path.is_dir():
            raise HarnessError(f"{golden.shown} is no folder, so no trace: it is not replaced")
        strange = sorted({file.name for file in golden.path.iterdir()} - FILES)
        if strange:
            try:
                remove_trace(golden.path)
            except TraceError:
                raise HarnessError(
                    f"{golden.shown} holds {strange[0]!r}, which is no part of a golden trace: it "
                    "is not replaced"
                ) from None
        else:
            golden.path.rename(old)
    made.rename(golden.path)


def _readable(golden: Trace) -> Trace:
    """The trace itself. Raises TraceError if any line of it is damaged, or if it is not whole."""
    for step in golden.steps:
        golden.entry(step)
    if not golden.header.complete:
        raise TraceError(f"{golden.path} is not complete")
    return golden


def _tensors(trace: Trace) -> int:
    return sum(len(trace.plain_entry(step).tensors) for step in trace.steps)


def _bytes(folder: Path) -> dict[str, bytes]:
    """The files of a golden trace; none of what is no folder."""
    if not folder.is_dir():
        return {}
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name in FILES}


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """No other process reads or writes this golden trace for as long as the block lasts.

    The lock lies in the user's folder for caches, and not beside the trace: that is under version
    control. Where there is none, or it never comes free, nothing is waited for any longer.
    """
    digest = hashlib.sha256(str(path.absolute()).encode("utf-8", "surrogateescape")).hexdigest()
    folder = Path(platformdirs.user_cache_dir("twin-harness", False)) / "golden"
    lock = filelock.FileLock(folder / digest[:32], timeout=WAIT)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        lock.release()
