"""The schema of a trace, version 1: file names, records, and what counts as a valid name."""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Annotated, Any

import msgspec

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
