"""Writing a trace so that a process killed at any instant leaves every finished step readable."""

from __future__ import annotations

import errno
import operator
import os
import platform
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from harness.spec import Capture, RunSpec
from harness.trace.schema import (
    DTYPES,
    FORMAT,
    HASH,
    HEADER_FILE,
    HEADER_LIMIT,
    INDEX_FILE,
    VERSION,
    Header,
    StepEntry,
    TraceError,
    check_name,
    step_file,
)
from harness.trace.statistics import describe, digest

HEADER_PARTIAL = f"{HEADER_FILE}.partial"
OWN_FILE = re.compile(r"trace\.json(\.partial)?|index\.jsonl|step-\d{8,}\.(safetensors|partial)")


class TraceWriter:
    """Writes one trace folder; use it as a context manager.

    Leaving the `with` block normally marks the trace complete; leaving it by an exception does
    not, and everything written until then stays readable. An earlier trace at `path` is replaced;
    a folder that holds anything else is refused.

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
    ) -> None:
        """Create the folder. `framework` names packages and versions; raises TraceError."""
        self.path = Path(path)
        self.capture = capture or Capture()
        self.steps = 0
        self._last = 0
        self._closed = False
        self._header = Header(
            format=FORMAT,
            version=VERSION,
            complete=False,
            steps=None,
            label=label,
            dtype=dtype,
            level="full",
            hash=HASH,
            capture=self.capture,
            framework={name: str(number) for name, number in (framework or {}).items()},
            versions=_versions(),
            spec=dict(spec or {}),
            digests=dict(digests or {}),
            # Bytes that are no UTF-8 are surrogates in argv, and JSON has no way to write those.
            argv=tuple(a.encode("utf-8", "backslashreplace").decode() for a in sys.argv),
        )
        try:
            _clear(self.path)
            self._write_header()
            self._index = os.open(
                self.path / INDEX_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_EXCL, 0o644
            )
        except OSError as error:
            raise self._failure(error) from None

    @classmethod
    def for_run(
        cls,
        run: RunSpec,
        framework: Mapping[str, str],
        weights: Mapping[str, NDArray[Any]],
        tokens: NDArray[Any],
    ) -> TraceWriter:
        """The writer of one side of a run: its spec, and digests of the bytes it was handed."""
        digests = {"tokens": digest(tokens)}
        digests |= {f"weights/{name}": digest(array) for name, array in weights.items()}
        spec = {"model": msgspec.to_builtins(run.model), "train": msgspec.to_builtins(run.train)}
        return cls(
            run.trace,
            label=run.label,
            dtype=run.train.dtype,
            framework=framework,
            spec={**spec, "device": run.device, "threads": run.threads, "steps": run.steps},
            digests=digests,
            capture=run.capture,
        )

    def wants_step(self, step: int) -> bool:
        """Whether this step is to be traced: the others cost nothing."""
        return self.capture.wants_step(step)

    def wants(self, name: str) -> bool:
        """Whether a tensor of this name is to be traced."""
        return self.capture.wants(name)

    def write(self, step: int, tensors: Mapping[str, ArrayLike]) -> None:
        """Write the tensors of one step, in execution order: all of them, or, on failure, none.

        Steps that the capture leaves out are passed over, tensors likewise. Raises TraceError for
        a step that does not come after the last one, for a name or a dtype that cannot be stored,
        and for a disk that is full.
        """
        if self._closed:
            raise TraceError(f"{self.path}: step {step} after the writer was closed")
        step = operator.index(step)  # NumPy's integers too
        if step <= self._last:
            raise TraceError(f"{self.path}: step {step} after step {self._last}: steps must grow")
        if not self.wants_step(step):
            return
        arrays = {name: self._array(name, t) for name, t in tensors.items() if self.wants(name)}
        final = step_file(self.path, step)
        partial = final.with_suffix(".partial")
        try:
            save_file(arrays, partial)
            size = partial.stat().st_size
            entries = tuple(describe(name, array) for name, array in arrays.items())
            line = msgspec.json.encode(StepEntry(step=step, bytes=size, tensors=entries)) + b"\n"
            os.replace(partial, final)
            self._append(line)
        except (OSError, SafetensorError) as error:
            for file in (partial, final):
                with suppress(OSError):
                    file.unlink()
            raise self._failure(error) from None
        self._last = step
        self.steps += 1

    def close(self, complete: bool = True) -> None:
        """Close the index and, if `complete`, mark the trace as whole. Raises TraceError.

        A writer that is closed already stays as it is.
        """
        if self._closed:
            return
        self._closed = True
        os.close(self._index)
        if complete:
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
        self.close(complete=kind is None)

    def _array(self, name: str, tensor: ArrayLike) -> NDArray[Any]:
        wrong = check_name(name)
        if wrong:
            raise TraceError(f"{self.path}: {name!r} cannot name a tensor: it {wrong}")
        array = np.asarray(tensor)
        if str(array.dtype) not in DTYPES:
            raise TraceError(
                f"{self.path}: {name}: dtype {array.dtype} cannot be stored; "
                f"there are: {', '.join(DTYPES)}"
            )
        # ascontiguousarray would turn a scalar into an array of one axis.
        return array if array.flags.c_contiguous else array.copy(order="C")

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
            "readable. Free space or trace less (--include, --every, --steps)"
        )


def remove_trace(path: str | Path) -> None:
    """Delete the trace at `path`, if there is one. Raises TraceError if it is anything else."""
    path = Path(path)
    if path.exists() or path.is_symlink():
        try:
            _clear(path)
            path.rmdir()
        except OSError as error:
            raise TraceError(f"{path}: the earlier trace cannot be removed: {error}") from None


def _clear(path: Path) -> None:
    """Make `path` an empty folder; only a former trace is ever deleted."""
    if path.is_symlink():
        raise TraceError(f"{path}: is a symbolic link; a trace is not written through one")
    if path.exists() and not path.is_dir():
        raise TraceError(f"{path}: is a file, and a trace is a folder; choose another --out")
    path.mkdir(parents=True, exist_ok=True)
    found = sorted(path.iterdir())
    strange = [p.name for p in found if not OWN_FILE.fullmatch(p.name) or not p.is_file()]
    if not strange and found and not _was_trace(path):
        strange = [found[0].name]  # the name is one of ours, the file somebody else's
    if strange:
        raise TraceError(
            f"{path}: holds {strange[0]!r}, which is no part of a trace; choose another --out"
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


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "numpy": np.__version__}
    try:
        found["twin-harness"] = version("twin-harness")
    except PackageNotFoundError:  # run from a checkout that is not installed
        found["twin-harness"] = "not installed"
    return found
