"""Reading a trace that may be unfinished, damaged or hostile."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from types import EllipsisType
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from harness.kernels.floats import standard_floats
from harness.models.entries import graph_from
from harness.models.graph import Graph
from harness.spec import Level
from harness.trace.entries import check_step, possible, same_place
from harness.trace.graph import graph_of_spec
from harness.trace.parts import Rows
from harness.trace.roles import parse, renamed
from harness.trace.schema import (
    FORMAT,
    HASH,
    HEADER_FILE,
    HEADER_LIMIT,
    INDEX_FILE,
    LINE_LIMIT,
    VERSIONS,
    Header,
    Place,
    StepEntry,
    StepNumber,
    TensorEntry,
    TraceError,
    quote,
    row_names,
    said,
    step_file,
)
from harness.trace.statistics import describe, digest
from harness.trace.tensor_file import TensorFile

R = TypeVar("R", bound=msgspec.Struct)

IMPOSSIBLE = "its statistics in the index are those of no tensor"
NESTING_LIMIT = 64  # of the header's spec, which its readers walk by recursion


class _StepOnly(msgspec.Struct):
    """The part of an index line that is read when a trace is opened."""

    step: StepNumber


class _Version(msgspec.Struct):
    """The part of a header that every version of the format has."""

    format: str
    version: int


class _Line(NamedTuple):
    """Where a step's line stands in the index."""

    offset: int
    length: int


class Trace:
    """A trace opened for reading: `header`, the finished `steps`, and their tensors.

    Opening reads the header and the step numbers; entries and tensors are read when asked for, one
    at a time. `cut` is true where the index ends in half a line: the process was killed while it
    wrote there.
    """

    def __init__(self, path: str | Path, roles: Sequence[str] = ()) -> None:
        """Open a trace; `roles` (harness.trace.roles) rename its tensors by what they are.

        Raises TraceError that names the file and what is wrong with it.
        """
        self.path, self.given_roles = Path(path), tuple(roles)
        if not self.path.is_dir():
            raise TraceError(f"{path}: no such trace: a trace is a folder with {HEADER_FILE} in it")
        if not os.path.lexists(self.path / HEADER_FILE):
            raise TraceError(
                f"{path}: is a folder without {HEADER_FILE}, so no trace: give the folder that "
                "TraceWriter or harness run wrote"
            )
        self.header = _read_header(self.path / HEADER_FILE)
        self._lines, self.cut = _read_index(self.path / INDEX_FILE)
        self.steps = tuple(self._lines)
        self._roles = parse(self.given_roles or self.header.roles)
        if self.header.complete and (self.cut or self.header.steps != len(self.steps)):
            raise TraceError(
                f"{self.path / INDEX_FILE}: holds {len(self.steps)} whole steps, and {HEADER_FILE} "
                f"says {quote(self.header.steps)}: the index was changed or cut after the run"
            )

    @cached_property
    def graph(self) -> Graph | None:
        """The stages of a step: of a model that the header's settings are of, or as entries say."""
        known = graph_of_spec(self.header.spec)
        if known is not None:
            return known
        for step in self.steps[:2]:  # what a script says of its first step may be less
            declared = graph_from(self.plain_entry(step).tensors, derive=True)
            if declared.stages:
                names = partial(renamed, roles=self._roles)
                return declared.renamed(names) if self._roles else declared
        return None

    @cached_property
    def sources(self) -> dict[str, str]:
        """The line of the program that makes each tensor, where the trace says so."""
        found: dict[str, str] = {}
        for step in reversed(self.steps[:2]):
            found |= {e.name: e.source for e in self.entry(step).tensors if e.source}
        return found

    def entry(self, step: int) -> StepEntry:
        """What the index says of `step`. Raises TraceError if it or the step's file is damaged."""
        plain = self.plain_entry(step)
        if not self._roles:
            return plain
        tensors = tuple(
            replace(
                entry,
                name=renamed(entry.name, self._roles),
                # What is read goes by the name in the file.
                same_as=entry.same_as or (Place(step, entry.name) if entry.stored else None),
            )
            for entry in plain.tensors
        )
        names = [entry.name for entry in tensors]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise TraceError(f"{self.path}: by their roles two tensors of step {step} are {twice}")
        return replace(plain, tensors=tensors)

    def plain_entry(self, step: int) -> StepEntry:
        """As `entry`, with the names that the trace has itself."""
        if step not in self._lines:
            have = f"{self.steps[0]} to {self.steps[-1]}" if self.steps else "none"
            raise TraceError(f"{self.path}: no step {step}; finished steps: {have}")
        line = self._lines[step]
        index = self.path / INDEX_FILE
        try:
            with open(index, "rb") as file:
                file.seek(line.offset)
                text = file.read(line.length)
        except OSError as error:
            raise TraceError(f"{index}: cannot be read: {error}") from None
        entry = _decode(text, StepEntry, f"{index}, step {step}")
        check_step(entry, step, self.header.level, self._lines, f"{index}, step {step}")
        if entry.bytes:
            file_path = step_file(self.path, step)
            try:
                size = file_path.stat().st_size
            except OSError as error:
                raise TraceError(f"{file_path}: the step's tensors are gone: {error}") from None
            if size != entry.bytes:
                raise TraceError(
                    f"{file_path}: {size} bytes, and the index says {entry.bytes}: cut or changed "
                    "after it was written"
                )
        return entry

    def step(self, step: int) -> Step:
        """One step's entries and tensors. Raises TraceError as `entry` does."""
        return Step(self, self.entry(step))

    def plain_step(self, step: int) -> Step:
        """As `step`, with the names that the trace has itself."""
        return Step(self, self.plain_entry(step))

    def check(self) -> Iterator[tuple[int, list[str]]]:
        """Read everything and yield each step with what is wrong with it (nothing: whole)."""
        for step in self.steps:
            faults = []
            try:
                opened = self.step(step)
                faults += opened.strangers()
                for entry in opened.entries:
                    faults += _check_tensor(opened, entry, self.header.level)
            except TraceError as error:
                faults.append(str(error))
            yield step, faults


class Step:
    """One finished step: `entries` in execution order, and the tensors, read when asked for.

    No file is opened before the first tensor is read.
    """

    def __init__(self, trace: Trace, entry: StepEntry) -> None:
        """The step of `trace` that the index describes by `entry`."""
        self.path = step_file(trace.path, entry.step)
        self.number = entry.step
        self.entries = entry.tensors
        self._trace = trace
        self._file: TensorFile | None = None
        self._others: dict[int, Step] = {}

    def holds(self, entry: TensorEntry) -> bool:
        """Whether the trace has the elements of this tensor, and not only what is known of them."""
        return entry.stored is not None

    def read(self, entry: TensorEntry) -> NDArray[Any]:
        """One tensor, checked against its index entry: dtype, shape and hash.

        Raises TraceError where the file says otherwise (it was damaged, or swapped), and for a
        tensor that the trace does not hold.
        """
        array, path = self._elements(entry)
        try:
            array = array if array.flags.writeable else array.copy()
        except MemoryError as error:
            raise TraceError(f"{path}: {entry.name} cannot be read: {said(error)}") from None
        if digest(array) != entry.hash:
            raise TraceError(
                f"{path}: {entry.name} does not match its hash in the index: damaged or swapped"
            )
        return array

    def view(self, entry: TensorEntry) -> NDArray[Any]:
        """One tensor, read-only: the file itself where it is stored whole, a copy where as rows.

        Its dtype and shape are those of the entry; its hash is not checked. It must not be used
        after the file was cut short. Raises TraceError for a file that is damaged, and for a
        tensor that the trace does not hold.
        """
        array, _ = self._elements(entry)
        array.flags.writeable = False
        return array

    def find(self, name: str) -> TensorEntry:
        """The entry of one tensor. Raises TraceError that lists names like it."""
        for entry in self.entries:
            if entry.name == name:
                return entry
        names = [entry.name for entry in self.entries]
        near = difflib.get_close_matches(name, names, 3, 0.4) or names[:3]
        raise TraceError(
            f"{self.path}: no tensor {name!r} in step {self.number}; there are {len(names)}, such "
            f"as {', '.join(near)}"
        )

    def tensors(self) -> Iterator[tuple[TensorEntry, NDArray[Any]]]:
        """All tensors in execution order, one at a time."""
        for entry in self.entries:
            yield entry, self.read(entry)

    def names(self) -> set[str]:
        """The names of the tensors whose elements the trace has."""
        return {entry.name for entry in self.entries if self.holds(entry)}

    def strangers(self) -> list[str]:
        """What is wrong with the file as a whole: tensors in it that are not in the index."""
        names: set[str] = set()
        for entry in self.entries:
            if entry.own:
                names.update(row_names(entry.name) if entry.stored == "rows" else [entry.name])
        extra = self._open().names() - names if names else set()
        return [f"{self.path}: not in the index: {quote(sorted(extra))}"] if extra else []

    def _elements(self, entry: TensorEntry) -> tuple[NDArray[Any], Path]:
        """A tensor, from wherever it lies, and the file: on the file itself, or a fresh array."""
        if entry.stored is None:
            raise TraceError(
                f"{self.path}: the elements of {entry.name} were not kept (the trace is of level "
                f'"{self._trace.header.level}"): trace at level full, or with checkpoints'
            )
        step = self._origin(entry)
        file, name = step._open(), entry.same_as.name if entry.same_as else entry.name
        if entry.stored == "whole":
            return file.view(name, entry.dtype, entry.shape), step.path
        height, width = entry.shape
        rows, values = row_names(name)
        try:
            numbers = file.view(rows, "int64", (None,))
            kept = file.view(values, entry.dtype, (numbers.size, width))
            found = Rows(numbers, kept, (height, width))
            found.check_order()
            return found.dense(), step.path
        except (ValueError, MemoryError) as error:
            raise TraceError(f"{step.path}: {name} cannot be read: {said(error)}") from None

    def _origin(self, entry: TensorEntry) -> Step:
        """The step in whose file the elements of `entry` lie."""
        place = entry.same_as
        if place is None or place.step == self.number:
            return self
        if place.step not in self._others:
            plain = self._trace.plain_entry(place.step)
            self._others[place.step] = Step(self._trace, plain)
        step = self._others[place.step]
        there = {found.name: found for found in step.entries}.get(place.name)
        if there is None or not same_place(there, entry):
            raise TraceError(
                f"{self.path}: {entry.name} of step {self.number} is said to be "
                f"{quote(place.name)} of step {place.step}, which is another tensor, or does not "
                "lie there"
            )
        return step

    def _open(self) -> TensorFile:
        if self._file is None:
            self._file = TensorFile(self.path)
        return self._file


def select(array: NDArray[Any], where: str | None, name: str) -> NDArray[Any]:
    """The elements of `array` that "0,:3,-1" names, as array[0, :3, -1] would.

    Raises TraceError for text that is no index, or one that `array` does not have.
    """
    if where is None:
        return array
    index: list[int | slice | EllipsisType] = []
    try:
        for part in where.split(","):
            if part.strip() == "...":
                index.append(...)
            elif ":" in part:
                index.append(slice(*(int(n) if n.strip() else None for n in part.split(":"))))
            else:
                index.append(int(part))
        return np.asarray(array[tuple(index)])
    except (ValueError, TypeError, IndexError) as error:
        raise TraceError(
            f"slice {where}: {error}; {name} has shape {list(array.shape)}: give an index such "
            "as 0,:3,-1"
        ) from None


class CheckResult(msgspec.Struct, frozen=True):
    """What a check of a whole trace found: `faults` is empty where it is sound."""

    path: str
    complete: bool
    steps: int
    faults: tuple[str, ...]


@standard_floats()
def check_trace(
    path: str | Path, progress: Callable[[int, int], None] | None = None
) -> CheckResult:
    """Read every byte of a trace and compare it with its index: hashes, statistics, steps in order.

    A run that was stopped leaves a trace that is sound and not complete. `progress` is called with
    steps done and steps in all. Raises TraceError where the trace cannot be opened at all.
    """
    from harness.trace.aligned import open_trace  # which rests on this module

    trace = open_trace(path)
    faults: list[str] = []
    for done, (_, found) in enumerate(trace.check(), start=1):
        faults += found
        if progress:
            progress(done, len(trace.steps))
    return CheckResult(str(path), trace.header.complete, len(trace.steps), tuple(faults))


def _read_header(path: Path) -> Header:
    text = _bounded(path, HEADER_LIMIT)
    basic = _decode(text, _Version, str(path))
    if basic.format != FORMAT:
        raise TraceError(f"{path}: format {quote(basic.format)}, not {FORMAT!r}: this is no trace")
    if basic.version not in VERSIONS:
        raise TraceError(
            f"{path}: version {quote(basic.version)} of the format; this harness reads versions "
            f"{VERSIONS[0]} to {VERSIONS[-1]}"
        )
    header = _decode(text, Header, str(path))
    if _deeper(header.spec, NESTING_LIMIT):
        raise TraceError(f"{path}: spec nests over {NESTING_LIMIT} deep: no part of a trace")
    if (header.program is None) != (header.version < 3):
        raise TraceError(
            f"{path}: version {header.version} of the format "
            f"{'has a' if header.version > 2 else 'has no'} program: damaged, or no trace"
        )
    header = msgspec.convert(_printable(msgspec.to_builtins(header)), Header)
    if header.hash != HASH:
        unknown = quote(header.hash)
        raise TraceError(f"{path}: hash {unknown} is unknown; the format has {HASH}")
    return header


def _deeper(tree: Any, limit: int) -> bool:
    """Whether lists and objects nest more than `limit` deep in `tree`."""
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return limit < 0 or any(_deeper(value, limit - 1) for value in inner)


def _printable(tree: Any) -> Any:
    """The same tree with "?" for what no terminal should be sent, in keys and in values."""
    if isinstance(tree, str):
        return "".join(c if c.isprintable() else "?" for c in tree)
    if isinstance(tree, dict):
        return {_printable(key): _printable(value) for key, value in tree.items()}
    return [_printable(value) for value in tree] if isinstance(tree, list | tuple) else tree


def _read_index(path: Path) -> tuple[dict[int, _Line], bool]:
    """Where each finished step's line is, and whether half a line follows the last."""
    lines: dict[int, _Line] = {}
    last, offset = 0, 0
    _no_pipe(path)
    try:
        with open(path, "rb") as file:
            while text := file.readline(LINE_LIMIT):
                if not text.endswith(b"\n"):
                    if len(text) == LINE_LIMIT:
                        raise TraceError(f"{path}: a line of over {LINE_LIMIT} bytes")
                    return lines, True
                step = _decode(text, _StepOnly, f"{path}, line {len(lines) + 1}").step
                if step <= last:
                    raise TraceError(
                        f"{path}, line {len(lines) + 1}: step {step} after step {last}: the lines "
                        "were reordered"
                    )
                lines[step] = _Line(offset, len(text))
                last, offset = step, offset + len(text)
    except FileNotFoundError:
        return lines, False  # killed before the index was made: no step was finished
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error}") from None
    return lines, False


@standard_floats()
def _check_tensor(step: Step, entry: TensorEntry, level: Level) -> list[str]:
    """What is wrong with one tensor, its statistics and sketch in the index included."""
    if not step.holds(entry):
        return [] if possible(entry) else [f"{step.path}: {entry.name}: {IMPOSSIBLE}"]
    try:
        array = step.read(entry)
    except TraceError as error:
        return [str(error)]
    found = describe(entry.name, array, level)
    if not _same_statistics(found, entry):
        return [f"{step.path}: {entry.name}: its statistics in the index are not its own"]
    if not _same_sketch(found, entry):
        return [f"{step.path}: {entry.name}: its sketch in the index is not its own"]
    return []


def _same_sketch(a: TensorEntry, b: TensorEntry) -> bool:
    """Whether two sketches agree up to the order in which a machine adds."""
    x, y = (np.frombuffer(entry.sketch or b"", "<f8") for entry in (a, b))
    if a.l2 is None or x.size != y.size:  # sums that no double holds have no order
        return x.size == y.size
    return bool(np.all(np.abs(x - y) <= 1e-9 * a.l2))


def _same_statistics(a: TensorEntry, b: TensorEntry) -> bool:
    """Counts and extremes to the bit; sums up to the order in which a machine adds."""
    for x, y in ((a.mean, b.mean), (a.l2, b.l2)):
        if (x is None) != (y is None):
            return False
    scale = abs(a.min or 0) + abs(a.max or 0)
    means = math.isclose(a.mean or 0, b.mean or 0, rel_tol=1e-9, abs_tol=1e-9 * scale)
    norms = math.isclose(a.l2 or 0, b.l2 or 0, rel_tol=1e-9)
    exact = ("min", "max", "nan", "inf", "zero")
    return means and norms and all(getattr(a, f) == getattr(b, f) for f in exact)


def _no_pipe(path: Path) -> None:
    """Refuse what is no regular file: a pipe in a trace would be waited for without end."""
    if path.exists() and not path.is_file():
        raise TraceError(f"{path}: no regular file, so no part of a trace")


def _bounded(path: Path, limit: int) -> bytes:
    _no_pipe(path)
    try:
        with open(path, "rb") as file:
            text = file.read(limit + 1)
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error}") from None
    if len(text) > limit:
        raise TraceError(f"{path}: over {limit} bytes, which no header needs")
    return text


def _decode(text: bytes, kind: type[R], where: str) -> R:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise TraceError(f"{where}: damaged, or no part of a trace: {said(error)}") from None
