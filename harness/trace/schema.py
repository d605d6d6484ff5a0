"""The schema of a trace, version 4: file names, records, and what counts as a valid name."""

from __future__ import annotations

import re
import reprlib
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from harness.errors import HarnessError
from harness.spec import Capture, Level

FORMAT = "twin-harness-trace"
OWN = re.compile(r"(?P<phase>[^/]+)/rank(?P<rank>\d+)/(?P<rest>.+)")  # a name of one rank's alone
VERSION = 4
VERSIONS = (1, 2, 3, VERSION)  # those that are read
HASH = "xxh3_128"
HEADER_FILE = "trace.json"
INDEX_FILE = "index.jsonl"

# Upper bounds on what a reader takes into memory at once from a file it does not trust.
HEADER_LIMIT = 16 << 20
LINE_LIMIT = 64 << 20
TENSOR_HEADER_LIMIT = 16 << 20
NAME_LIMIT = 255
AXES_LIMIT = 64  # NumPy's
ROWS_LIMIT = 1 << 34  # bytes of a matrix that is stored as rows: a small file could claim any size
SKETCH_BYTES = 512

# Those that safetensors knows, and NumPy by itself or with ml_dtypes.
INTEGERS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
NARROW = {"bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
FLOATS = ("float16", "float32", "float64", *NARROW)
DTYPES = ("bool", *INTEGERS, *FLOATS)
# The names that safetensors has for them: BOOL, U8, I64, F32.
CODES = {n: n[0].upper() + n.lstrip("uintfloa") for n in DTYPES} | {"bool": "BOOL"} | NARROW

Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
StepNumber = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]

_QUOTE = reprlib.Repr()
_QUOTE.maxstring = _QUOTE.maxother = 100
_QUOTE.maxlist = _QUOTE.maxtuple = 8


class TraceError(HarnessError):
    """A trace that cannot be written or read as it should."""


class Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor of this trace, by its step and name."""

    step: StepNumber
    name: str


class TensorEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the index says of one tensor: identity, and statistics over its finite elements.

    `hash` is XXH3-128 (hexadecimal) of the elements as little-endian bytes in C order. `min`,
    `max` and `mean` are None where no element is finite, `l2` is then 0; a value too large for a
    double is None. `nan`, `inf` and `zero` count elements. In a trace of level "hash" all seven
    are None; `sketch` (harness.trace.sketch, as bytes) is there at level "stats" alone.

    `op`, `operands` ("from" on disk) and `args` say how the tensor is made, where that is known
    (harness.models.entries); `source` is the line of the program that made it: "net.py:31".

    `stored` says how the elements are kept: "whole", as "rows" (a matrix without its rows of
    zeros), or not at all (None). `same_as` is the place where they lie if not under this step and
    name: an earlier tensor with the same bits, that is kept at that very place.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    hash: str
    min: float | None = None
    max: float | None = None
    mean: float | None = None
    l2: float | None = None
    nan: int | None = None
    inf: int | None = None
    zero: int | None = None
    sketch: bytes | None = None
    stored: Literal["whole", "rows"] | None = "whole"
    same_as: Place | None = None
    op: str | None = None
    operands: tuple[Any, ...] = msgspec.field(default=(), name="from")
    args: dict[str, Any] = {}
    source: str | None = None

    @property
    def own(self) -> bool:
        """Whether the elements lie in the file of the entry's own step, under its own name."""
        return self.stored is not None and self.same_as is None

    @property
    def identity(self) -> tuple[str, str, tuple[int, ...]]:
        """What two tensors have in common if and only if they are equal bit for bit."""
        return self.hash, self.dtype, self.shape

    @property
    def size(self) -> int:
        """The number of elements."""
        count = 1
        for n in self.shape:
            count *= n
        return count


class StepEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line of the index: one finished step and its tensors in execution order.

    `bytes` is the size of the step's file; 0 where it has none, as it has no tensor of its own.
    """

    step: StepNumber
    bytes: Size
    tensors: tuple[TensorEntry, ...]


class Program(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What made a trace: the package of a twin, or a script by its file name.

    `digest` is that of its source (traces/README.md); "" where there is none to be read.
    """

    kind: Literal["twin", "script"]
    name: str
    digest: str


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """trace.json. `steps` is the number of traced steps, known once `complete` is true.

    `program` is None in versions 1 and 2 alone. `roles` say what tensors with names of their own
    are (harness.trace.roles).
    """

    format: str
    version: int
    complete: bool
    steps: int | None
    label: str
    dtype: str
    level: Level
    hash: str
    capture: Capture
    framework: dict[str, str]
    versions: dict[str, str]
    spec: dict[str, Any]
    digests: dict[str, str]
    argv: tuple[str, ...]
    roles: tuple[str, ...] = ()
    program: Program | None = None


def step_file(folder: Path, step: int) -> Path:
    """The file of one step's tensors."""
    return folder / f"step-{step:08d}.safetensors"


def row_names(name: str) -> tuple[str, str]:
    """Where a file keeps the row numbers and rows of a matrix: names that no tensor can have."""
    return f"{name}//rows", f"{name}//values"


def quote(value: object) -> str:
    """What a file that is not trusted says, for a message: printable, and short."""
    return _QUOTE.repr(value)


def said(error: BaseException) -> str:
    """The message of an error that may quote such a file: printable, and short."""
    text = str(error) or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text)[:300]


@lru_cache(1 << 16)
def check_name(name: str) -> str | None:
    """Why `name` cannot name a tensor, or None if it can.

    Names are parts joined by '/', printable (so no terminal escapes) and never a path upwards.
    """
    if len(name) > NAME_LIMIT:
        return f"has {len(name)} characters, and at most {NAME_LIMIT} are allowed"
    if not name.isprintable() or "\\" in name:
        return "holds a character that is not printable, or a backslash"
    if any(part in ("", ".", "..") for part in name.split("/")):
        return "has an empty part, '.' or '..' between its slashes"
    return None
