"""The folder of a trace: emptied for a new one, and removed; nothing else is ever deleted."""

from __future__ import annotations

import os
import re
from pathlib import Path

from harness.trace.schema import FORMAT, HEADER_FILE, HEADER_LIMIT, TraceError

HEADER_PARTIAL = f"{HEADER_FILE}.partial"
OWN_FILE = re.compile(r"trace\.json(\.partial)?|index\.jsonl|step-\d{8,}\.(safetensors|partial)")
OWN_FOLDER = re.compile(r"rank-\d+\.trace")


def remove_trace(path: str | Path) -> None:
    """Delete the trace at `path`, if there is one, also of several ranks.

    Raises TraceError if it is anything else.
    """
    path = Path(path)
    if path.exists() or path.is_symlink():
        if path.is_dir() and not path.is_symlink():
            for rank in sorted(path.iterdir()):
                if OWN_FOLDER.fullmatch(rank.name):
                    remove_trace(rank)
        try:
            clear(path)
            path.rmdir()
        except OSError as error:
            raise TraceError(f"{path}: the earlier trace cannot be removed: {error}") from None


def clear(path: Path) -> None:
    """Make `path` an empty folder; only a former trace is ever deleted."""
    if path.is_symlink():
        raise TraceError(f"{path}: is a symbolic link; a trace is not written through one")
    if path.exists() and not path.is_dir():
        raise TraceError(f"{path}: is a file, and a trace is a folder; choose another folder")
    path.mkdir(parents=True, exist_ok=True)
    found = sorted(path.iterdir())
    strange = [p.name for p in found if not OWN_FILE.fullmatch(p.name) or not p.is_file()]
    if not strange and found and not _was_trace(path):
        strange = [found[0].name]  # the name is one of ours, the file somebody else's
    if strange:
        raise TraceError(
            f"{path}: holds {strange[0]!r}, which is no part of a trace; choose another folder"
        )
    header = path / HEADER_FILE
    if header in found:
        # Whoever is killed from here on leaves an unfinished trace, not one that lost its index.
        text = header.read_bytes().replace(b'"complete": true', b'"complete": false', 1)
        (path / HEADER_PARTIAL).write_bytes(text)
        os.replace(path / HEADER_PARTIAL, header)
    for file in found:  # sorted: the index goes first, the header last
        file.unlink(missing_ok=True)


def _was_trace(path: Path) -> bool:
    """Whether a writer of ours made this folder: its header names the format, or is half made."""
    try:
        with open(path / HEADER_FILE, "rb") as file:
            return FORMAT.encode() in file.read(HEADER_LIMIT)
    except FileNotFoundError:
        return [p.name for p in path.iterdir()] == [HEADER_PARTIAL]
