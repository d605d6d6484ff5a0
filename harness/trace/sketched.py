"""A trace rewritten without the elements of its tensors: hashes, statistics and sketches alone."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec.structs import astuple, replace

from harness.trace.reader import Step, Trace
from harness.trace.schema import (
    HEADER_FILE,
    INDEX_FILE,
    VERSION,
    Program,
    StepEntry,
    TensorEntry,
    TraceError,
)
from harness.trace.statistics import describe
from harness.trace.writer import WrittenEntry


def write_sketched(source: Trace, folder: Path, label: str, program: Program) -> None:
    """Write what is known of the tensors of `source` as a trace of level "stats", to a new folder.

    What `source` says of its run is kept: versions, settings, roles, how its tensors are made. Its
    command line and the lines of its program are not, as they change where nothing computed does:
    the same numbers are the same bytes. Raises TraceError for a trace that is damaged, not
    complete, or of level "hash".
    """
    header = source.header
    if not header.complete:
        raise TraceError(
            f"{source.path} is not complete: its run stopped after {len(source.steps)} steps; give "
            "one that came to its end"
        )
    known = replace(
        header,
        version=VERSION,
        label=label,
        level="stats",
        capture=replace(header.capture, level="stats", checkpoint_every=None),
        argv=(),
        program=program,
    )
    lines = b"".join(
        msgspec.json.encode(StepEntry(step, 0, _sketched(source, step))) + b"\n"
        for step in source.steps
    )
    folder.mkdir(parents=True)
    (folder / INDEX_FILE).write_bytes(lines)
    text = msgspec.json.format(msgspec.json.encode(known), indent=2)
    (folder / HEADER_FILE).write_bytes(text + b"\n")


def _sketched(source: Trace, number: int) -> tuple[TensorEntry, ...]:
    """The entries of a step, as a trace that keeps no elements has them."""
    step = source.plain_step(number)
    return tuple(WrittenEntry(*astuple(_known(step, tensor))) for tensor in step.entries)


def _known(step: Step, entry: TensorEntry) -> TensorEntry:
    """What is known of one tensor, with its sketch."""
    plain = replace(entry, stored=None, same_as=None, source=None)
    if entry.sketch is not None:
        return plain
    if not step.holds(entry):
        raise TraceError(
            f"{step.path}: of {entry.name} the hash alone is known: trace at level full or stats"
        )
    return replace(plain, sketch=describe(entry.name, step.read(entry), "stats").sketch)
