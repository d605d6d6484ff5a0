"""Writing a trace so that a process killed at any instant leaves every finished step readable."""

from __future__ import annotations

import errno
import operator
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.errors import HarnessError
from harness.kernels.floats import standard_floats
from harness.models.entries import Declared, Made, declared
from harness.spec import STATE, Capture, RunSpec
from harness.trace.accept import Tensor, accept, owned
from harness.trace.background import Background
from harness.trace.folder import HEADER_PARTIAL, clear
from harness.trace.program import script, twin, versions
from harness.trace.roles import parse
from harness.trace.schema import (
    FLOATS,
    FORMAT,
    HASH,
    HEADER_FILE,
    INDEX_FILE,
    VERSION,
    Header,
    Place,
    Program,
    StepEntry,
    TensorEntry,
    TraceError,
    check_name,
    quote,
    step_file,
)
from harness.trace.statistics import describe, describe_all, digest
from harness.trace.tensor_file import save_file, stored

AT_ONCE = 1 << 16  # bytes of a tensor that is described at once rather than copied
LARGE, MANY = 1 << 20, 1 << 24  # bytes of a tensor, and of all, that are worth compiled passes
SMALL = 64  # bytes: to say where such a tensor lies takes more than to store it again


class WrittenEntry(TensorEntry, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An entry as it is written: without the keys that have their default."""


class _Kept(NamedTuple):
    """How and where the elements of a tensor are stored."""

    stored: Literal["whole", "rows"]
    place: Place


class TraceWriter:
    """Writes one trace folder; use it as a context manager.

    Leaving the `with` block normally marks the trace complete; leaving it by an exception does
    not, and everything written until then stays readable. An earlier trace at `path` is replaced;
    a folder that holds anything else is refused.

    With `queue`, a number of bytes, steps are written by a thread in the background: `write` hands
    over a step and returns, once the tensors of the steps in hand take no more than that (one step
    that is larger is taken when no other is in hand). What is handed over is copied, so that it may
    change afterwards. An error of the thread is raised by the next `write` or by `close`; nothing
    is written after it. `close` waits for what was handed over, also when the block is left by an
    exception.

    Example:
        with TraceWriter("mine.trace", label="mine", dtype="float32") as trace:
            for step in range(1, 11):
                ...
                trace.write(step, {"forward/loss": loss, "grads/w": grad})

    """

    def __init__(
        self,
        path: str | Path,
        *,
        label: str,
        dtype: str,
        framework: Mapping[str, str] | None = None,
        spec: Mapping[str, Any] | None = None,
        digests: Mapping[str, str] | None = None,
        capture: Capture | None = None,
        queue: int | None = None,
        threads: int = 1,
        program: Program | None = None,
        roles: Sequence[str] = (),
        keeps: Callable[[int, str], bool] | None = None,
    ) -> None:
        """Create the folder. `framework` names packages and versions; raises TraceError.

        `dtype` is the run's own floating-point dtype, which Python's numbers are given.
        `threads` describe tensors at once: hashes, statistics and sketches free the interpreter.
        `program` is what makes the trace: by default the script that this process runs.
        `roles` say what tensors with names of their own are: "GRAD/*=grads" (harness.trace.roles).
        `keeps`: whether a tensor of a step is stored (None: as `capture` says).
        """
        self.path = Path(path)
        parse(roles)
        if not isinstance(dtype, str) or dtype not in FLOATS:
            raise TraceError(
                f"{self.path}: dtype={dtype!r} is no floating-point dtype of a trace; there are: "
                f"{', '.join(FLOATS)}"
            )
        self.capture = capture or Capture()
        self._keeps = keeps or self.capture.keeps
        self.steps = self.steps_given = self._last = 0  # written, handed over, the last's number
        self._closed = self._raised = False
        self._given, self._large = 0, False  # bytes to be described; whether they are many
        self._owns = queue is None  # what is handed over, or else it is copied
        # Of this step and the traced one before it, what is stored where.
        self._kept: dict[Any, _Kept] = {}
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._header = Header(
            format=FORMAT,
            version=VERSION,
            complete=False,
            steps=None,
            label=label,
            dtype=dtype,
            level=self.capture.level,
            hash=HASH,
            capture=self.capture,
            framework={name: str(number) for name, number in (framework or {}).items()},
            versions=versions(),
            spec=dict(spec or {}),
            digests=dict(digests or {}),
            # Bytes that are no UTF-8 are surrogates in argv, and JSON has no way to write those.
            argv=tuple(a.encode("utf-8", "backslashreplace").decode() for a in sys.argv),
            program=program or script(),
            roles=tuple(roles),
        )
        self._start(queue)

    def _start(self, queue: int | None) -> None:
        """Make the folder with header and index, and the thread that writes to it."""
        try:
            clear(self.path)
            self._write_header()
            self._index = os.open(
                self.path / INDEX_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_EXCL, 0o644
            )
        except OSError as error:
            raise self._failure(error) from None
        self._background = (
            None if queue is None else Background(queue, f"trace {self._header.label}")
        )

    @classmethod
    def for_run(
        cls,
        run: RunSpec,
        framework: Mapping[str, str],
        weights: Mapping[str, NDArray[Any]],
        tokens: NDArray[Any],
        program: str | None = None,
    ) -> TraceWriter:
        """The writer of one side of a run: its spec, and digests of the bytes it was handed.

        `program` is the package of the twin that calls, which makes new tensors at every step: they
        are not copied.
        """
        digests = {"tokens": digest(tokens)}
        digests |= {f"weights/{name}": digest(array) for name, array in weights.items()}
        spec = {"model": msgspec.to_builtins(run.model), "train": msgspec.to_builtins(run.train)}
        trace = cls(
            run.trace,
            label=run.label,
            dtype=run.train.dtype,
            framework=framework,
            spec={**spec, "device": run.device, "threads": run.threads, "steps": run.steps},
            digests=digests,
            capture=run.capture,
            queue=run.queue,
            threads=run.threads,
            program=twin(program) if program else None,
            keeps=run.keeps,
        )
        trace.owns()
        return trace

    def owns(self) -> None:
        """From now on nothing that is written changes afterwards: it is not copied."""
        self._owns = True

    def wants_step(self, step: int) -> bool:
        """Whether anything of this step is to be traced: the others cost nothing.

        A checkpoint that the capture does not trace otherwise is traced as far as it is one.
        """
        every = self.capture.checkpoint_every
        return self.capture.wants_step(step) or (every is not None and step % every == 0)

    def wants(self, name: str) -> bool:
        """Whether a tensor of this name is to be traced."""
        return self.capture.wants(name)

    @standard_floats()
    def write(
        self,
        step: int,
        tensors: Mapping[str, Any],
        stages: Mapping[str, Made] | None = None,
        sources: Mapping[str, str] | None = None,
    ) -> None:
        """Write the tensors of one step, in execution order: all of them, or, on failure, none.

        `stages` say of tensors, by name, how they are made (`harness.stage`), so that each can be
        computed again from the trace alone; `sources` in what line of the program: "net.py:31".

        A tensor is an array of NumPy, PyTorch (on any device, of any layout, in the graph or not),
        TensorFlow or JAX, Timesteps, Rows, a list, or a number: Python's own are given the trace's
        dtype. Steps count from 1; what the capture leaves out is passed over.

        Raises TraceError for a step that does not come after the last one, for a name or a tensor
        that cannot be stored, for a stage of no tensor, or made from one that comes after it, and
        for a disk that is full.
        """
        if self._closed:
            raise TraceError(f"{self.path}: step {step} after the writer was closed")
        step = self._number(step)
        if not isinstance(tensors, Mapping) or not all(isinstance(name, str) for name in tensors):
            raise TraceError(
                f"{self.path}: step {step}: {type(tensors).__name__} of tensors: give a mapping of "
                "names (strings) to tensors"
            )
        if not self.wants_step(step):
            return
        self._raise_once()
        self.steps_given += 1
        try:
            made = declared(tensors, stages or {}, sources) if stages or sources else {}
        except HarnessError as error:
            raise TraceError(f"{self.path}: step {step}: {error}") from None
        whole = self.capture.wants_step(step)
        given = {
            name: self._accept(name, tensor)
            for name, tensor in tensors.items()
            if self.wants(name) and (whole or name.startswith(STATE))
        }
        compiled = self._compiled(given.values())
        if self._background is None:
            self._write(step, given, made, compiled)
            self._last = step
        else:
            size = sum(x.nbytes for x in given.values() if not isinstance(x, TensorEntry))
            self._background.wait(size)
            if not self._owns:  # once there is room for it, and before the caller goes on
                given = {
                    name: x if isinstance(x, TensorEntry) else owned(x) for name, x in given.items()
                }
            self._last = step
            self._background.put(size, partial(self._write, step, given, made, compiled))

    def close(self, complete: bool = True) -> None:
        """Close the index and, if `complete`, mark the trace as whole. Raises TraceError.

        What was handed to the background is written before. A writer that is closed already stays
        as it is.
        """
        if self._closed:
            return
        self._closed = True
        if self._background:
            self._background.close()
        if self._pool:
            self._pool.shutdown()
        os.close(self._index)
        if not self._raised:
            self._raise_once()
        if complete and not self._raised:
            self._header = msgspec.structs.replace(self._header, complete=True, steps=self.steps)
            try:
                self._write_header()
            except OSError as error:
                raise self._failure(error) from None

    def __enter__(self) -> TraceWriter:
        """Return the writer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close; complete only if the block ended without an exception."""
        try:
            self.close(complete=kind is None)
        except TraceError as failed:
            if error is None:
                raise
            error.add_note(str(failed))  # what ended the block comes first

    def _raise_once(self) -> None:
        """Raise what went wrong in the background; from the second time on, that it did."""
        error = self._background.error if self._background else None
        if error is None:
            return
        if self._raised:
            raise TraceError(f"{self.path}: nothing is written after a step that failed")
        self._raised = True
        raise error

    def _number(self, step: Any) -> int:
        """The number of a step as Python's own. Raises TraceError unless it can come now."""
        try:
            number = 0 if isinstance(step, bool) else operator.index(step)  # NumPy's too
        except TypeError:
            number = 0
        if not 1 <= number < 2**63:
            raise TraceError(f"{self.path}: step {step!r}: steps are integers and count from 1")
        if number <= self._last:
            raise TraceError(f"{self.path}: step {step} after step {self._last}: steps must grow")
        return number

    def described(self, step: int, name: str, tensor: Any) -> TensorEntry | None:
        """What the trace would say of a tensor now, to be given to `write` in its place.

        None where that needs the elements, or where the tensor is small: those are quicker
        described together. Raises TraceError as `write` does.
        """
        small = getattr(tensor, "nbytes", 0) < AT_ONCE
        if small or self._keeps(step, name) or not self.wants(name):
            return None
        found = self._accept(name, tensor)
        if not isinstance(found, np.ndarray):
            return None
        return describe(name, found, self.capture.level, self._compiled([found]))

    def _compiled(self, given: Iterable[Tensor | TensorEntry]) -> bool:
        """Whether the compiled passes are to describe: from the first large tensor on.

        Importing numba takes most of a second, so that it is not done for a few small tensors. It
        is decided here, by what has been given alone: threads that describe may run in any order,
        and the same command is to write the same bytes.
        """
        sizes = [x.nbytes for x in given if not isinstance(x, TensorEntry)]
        self._given += sum(sizes)
        self._large = self._large or self._given > MANY or max(sizes, default=0) >= LARGE
        return self._large

    def _accept(self, name: str, tensor: Any) -> Tensor | TensorEntry:
        """A tensor that can be stored, as it was given: nothing large is copied here."""
        if isinstance(tensor, TensorEntry) and tensor.name == name:
            return tensor
        wrong = check_name(name)
        if wrong:
            raise TraceError(f"{self.path}: {quote(name)} cannot name a tensor: it {wrong}")
        try:
            return accept(tensor, self._header.dtype)
        except ValueError as error:
            raise TraceError(f"{self.path}: {name}: {error}") from None

    @standard_floats()
    def _write(
        self,
        step: int,
        given: Mapping[str, Tensor | TensorEntry],
        stages: Mapping[str, Declared],
        compiled: bool,
    ) -> None:
        """Describe the tensors of a step and write file and line: both, or, on failure, none."""
        final = step_file(self.path, step)
        unfinished = final.with_suffix(".partial")
        own: dict[str, NDArray[Any]] = {}
        kept: dict[Any, _Kept] = {}
        known = self._describe(given, compiled)
        entries = tuple(
            self._entry(step, tensor, *known[name], stages.get(name), own, kept)
            for name, tensor in given.items()
        )
        try:
            size = 0
            if own:
                save_file(own, unfinished)
                size = unfinished.stat().st_size
            line = msgspec.json.encode(StepEntry(step, size, entries)) + b"\n"
            if own:
                os.replace(unfinished, final)
            self._append(line)
        except OSError as error:
            for file in (unfinished, final):
                with suppress(OSError):
                    file.unlink()
            raise self._failure(error) from None
        self._kept = kept
        self.steps += 1

    def _describe(
        self, given: Mapping[str, Tensor | TensorEntry], compiled: bool
    ) -> dict[str, tuple[NDArray[Any] | None, TensorEntry]]:
        """Each tensor as one array, and what is known of it; of what is described, that alone."""
        found: dict[str, tuple[NDArray[Any] | None, TensorEntry]] = {}
        arrays: list[tuple[str, NDArray[Any]]] = []
        for name, tensor in given.items():
            if isinstance(tensor, TensorEntry):
                found[name] = None, tensor
                continue
            array = tensor if isinstance(tensor, np.ndarray) else tensor.dense()
            # ascontiguousarray would turn a scalar into an array of one axis.
            arrays.append((name, array if array.flags.c_contiguous else array.copy(order="C")))
        entries = describe_all(
            arrays, self.capture.level, compiled, self._pool.map if self._pool else map
        )
        for (name, array), entry in zip(arrays, entries, strict=True):
            found[name] = array, entry
        return found

    def _entry(
        self,
        step: int,
        tensor: Tensor | TensorEntry,
        array: NDArray[Any] | None,
        entry: TensorEntry,
        stage: Declared | None,
        own: dict[str, NDArray[Any]],
        kept: dict[Any, _Kept],
    ) -> TensorEntry:
        """The line of one tensor; what the step's file is to hold of it is added to `own`.

        `kept` is told where its elements lie.
        """
        name, how, place = entry.name, None, None
        if array is not None and self._keeps(step, name):
            how = kept.get(entry.identity) or self._kept.get(entry.identity)
            if how:
                place = how.place
            else:
                assert not isinstance(tensor, TensorEntry)
                how = _Kept(stored(own, name, tensor, array), Place(step, name))
            if array.nbytes > SMALL:
                kept[entry.identity] = how
        where = dict(stored=how and how.stored, same_as=place)
        changed = msgspec.structs.replace(entry, **where, **(stage._asdict() if stage else {}))
        return WrittenEntry(*msgspec.structs.astuple(changed))

    def _append(self, line: bytes) -> None:
        """Add a line to the index, whole or not at all: later lines would follow half of one."""
        end = os.fstat(self._index).st_size
        try:
            if os.write(self._index, line) != len(line):
                raise OSError(errno.ENOSPC, f"{INDEX_FILE}: no room for the whole line")
        except OSError:
            os.ftruncate(self._index, end)
            raise

    def _write_header(self) -> None:
        text = (
            msgspec.json.format(msgspec.json.encode(self._header, enc_hook=repr), indent=2) + b"\n"
        )
        partial = self.path / HEADER_PARTIAL
        try:
            partial.write_bytes(text)
            os.replace(partial, self.path / HEADER_FILE)
        except OSError:
            with suppress(OSError):
                partial.unlink()
            raise

    def _failure(self, error: Exception) -> TraceError:
        return TraceError(
            f"{self.path}: cannot write the trace: {error}; {self.steps} finished steps stay "
            "readable. Free space, or trace less: fewer tensors, fewer steps, or a lower level"
        )
