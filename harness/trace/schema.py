"""The schema of a trace, version 1: file names, records, and what counts as a valid name."""

from __future__ import annotations

import reprlib
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from harness.errors import HarnessError
from harness.spec import Capture

FORMAT = "twin-harness-trace"
VERSION = 1
HASH = "xxh3_128"
HEADER_FILE = "trace.json"
INDEX_FILE = "index.jsonl"

# Upper bounds on what a reader takes into memory at once from a file it does not trust.
HEADER_LIMIT = 16 << 20
LINE_LIMIT = 64 << 20
TENSOR_HEADER_LIMIT = 16 << 20
NAME_LIMIT = 255

# Those that both NumPy and safetensors know.
INTEGERS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
DTYPES = ("bool", *INTEGERS, "float16", "float32", "float64")
# The names that safetensors has for them: BOOL, U8, I64, F32.
CODES = {"bool": "BOOL"} | {n: n[0].upper() + n.lstrip("uintfloa") for n in DTYPES[1:]}

Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
StepNumber = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]

_QUOTE = reprlib.Repr()
_QUOTE.maxstring = _QUOTE.maxother = 100
_QUOTE.maxlist = _QUOTE.maxtuple = 8

BLOCK = 1 << 16  # elements a block: small enough for the cache once widened to float64


class TraceError(HarnessError):
    """A trace that cannot be written or read as it should."""


class TensorEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the index says of one tensor: identity, and statistics over its finite elements.

    `hash` is XXH3-128 (hexadecimal) of the elements as little-endian bytes in C order. `min`,
    `max` and `mean` are None where no element is finite, `l2` is then 0; a value too large for a
    double is None. `nan`, `inf` and `zero` count elements.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    hash: str
    min: float | None
    max: float | None
    mean: float | None
    l2: float | None
    nan: int
    inf: int
    zero: int

    @property
    def size(self) -> int:
        """The number of elements."""
        count = 1
        for n in self.shape:
            count *= n
        return count


class StepEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line of the index: one finished step, its file's size, its tensors in execution order."""

    step: StepNumber
    bytes: Size
    tensors: tuple[TensorEntry, ...]


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """trace.json. `steps` is the number of traced steps, known once `complete` is true."""

    format: str
    version: int
    complete: bool
    steps: int | None
    label: str
    dtype: str
    level: str
    hash: str
    capture: Capture
    framework: dict[str, str]
    versions: dict[str, str]
    spec: dict[str, Any]
    digests: dict[str, str]
    argv: tuple[str, ...]


def step_file(folder: Path, step: int) -> Path:
    """The file of one step's tensors."""
    return folder / f"step-{step:08d}.safetensors"


def quote(value: object) -> str:
    """What a file that is not trusted says, for a message: printable, and short."""
    return _QUOTE.repr(value)


def said(error: BaseException) -> str:
    """The message of an error that may quote such a file: printable, and short."""
    text = str(error) or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text)[:300]


def check_name(name: str) -> str | None:
    """Why `name` cannot name a tensor, or None if it can.

    Names are parts joined by '/', printable (so no terminal escapes) and never a path upwards.
    """
    if len(name) > NAME_LIMIT:
        return f"longer than {NAME_LIMIT} characters"
    if not name.isprintable() or "\\" in name:
        return "holds a character that is not printable, or a backslash"
    if any(part in ("", ".", "..") for part in name.split("/")):
        return "has an empty part, '.' or '..' between its slashes"
    return None


def digest(array: NDArray[Any]) -> str:
    """XXH3-128 of an array's elements, little-endian, C order. Dtype and shape are not in it."""
    data = np.ascontiguousarray(array)
    if sys.byteorder == "big":
        data = data.byteswap()
    return xxhash.xxh3_128_hexdigest(data.reshape(-1).view(np.uint8).data)


def describe(name: str, array: NDArray[Any]) -> TensorEntry:
    """The index entry of `array`: one pass over it, in blocks, sums in float64."""
    flat = np.ascontiguousarray(array).reshape(-1)
    low, high, total, squares = np.inf, -np.inf, 0.0, 0.0
    nan = inf = zero = 0
    with np.errstate(over="ignore", invalid="ignore"):  # sums of numbers near the largest double
        for start in range(0, flat.size, BLOCK):
            block = flat[start : start + BLOCK]
            zero += block.size - int(np.count_nonzero(block))
            wide = block.astype(np.float64)
            finite = np.isfinite(wide)
            if not finite.all():
                nans = int(np.count_nonzero(np.isnan(wide)))
                nan += nans
                inf += wide.size - int(np.count_nonzero(finite)) - nans
                wide = wide[finite]
                if not wide.size:
                    continue
            low, high = min(low, float(wide.min())), max(high, float(wide.max()))
            total += float(wide.sum())
            squares += sum_of_squares(wide)
    count = flat.size - nan - inf
    return TensorEntry(
        name=name,
        dtype=str(array.dtype),
        shape=array.shape,
        hash=digest(array),
        min=low if count else None,
        max=high if count else None,
        mean=_storable(total / count) if count else None,
        l2=_storable(squares**0.5),
        nan=nan,
        inf=inf,
        zero=zero,
    )


def sum_of_squares(x: NDArray[np.float64]) -> float:
    """The sum of squares, added pairwise.

    Not numpy.dot: that starts a thread on every processor for a block that fits the cache, and a
    run has two sides that compute on those processors.
    """
    return float(np.add.reduce(np.square(x)))


def _storable(value: float) -> float | None:
    return value if np.isfinite(value) else None
