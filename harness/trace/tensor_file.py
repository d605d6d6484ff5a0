"""A safetensors file: written without a copy of its tensors, and mapped into memory to be read.

Our own, though the package has both: its reader copies every tensor, and its writer, before version
0.8, did. What is written here the package reads, and the other way round.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.trace.accept import Tensor
from harness.trace.parts import Rows, sparse
from harness.trace.schema import (
    AXES_LIMIT,
    CODES,
    ROWS_LIMIT,
    TENSOR_HEADER_LIMIT,
    Size,
    TraceError,
    quote,
    row_names,
    said,
)


class _Row(msgspec.Struct):
    """What the header of a safetensors file says of one tensor."""

    dtype: str
    shape: Annotated[tuple[Size, ...], msgspec.Meta(max_length=AXES_LIMIT)]
    data_offsets: tuple[Size, Size]


def save_file(arrays: Mapping[str, NDArray[Any]], path: Path) -> None:
    """Write C-contiguous arrays of DTYPES to `path`. Raises OSError."""
    header, end = {}, 0
    # The widest first, as the safetensors package does: every tensor is then aligned.
    order = sorted(arrays.items(), key=lambda item: -item[1].itemsize)
    for name, array in order:
        row = _Row(CODES[str(array.dtype)], array.shape, (end, end + array.nbytes))
        header[name], end = row, row.data_offsets[1]
    text = msgspec.json.encode(header)
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, array in order:
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            file.write(little.reshape(-1).view(np.uint8).data)  # straight from the array


class TensorFile:
    """A safetensors file that may be damaged or hostile, open for reading."""

    def __init__(self, path: Path) -> None:
        """Map the file. Raises TraceError if it is no safetensors file from end to end.

        The header is bounded before any of it is parsed.
        """
        self.path = path
        try:
            with open(path, "rb") as file:
                start, size = file.read(8), os.fstat(file.fileno()).st_size
                length = struct.unpack("<Q", start)[0] if len(start) == 8 else None
                if length is None or length > min(TENSOR_HEADER_LIMIT, size - 8):
                    raise self._unreadable(
                        f"a header of {length} bytes in a file of {size} (at most "
                        f"{TENSOR_HEADER_LIMIT} allowed)"
                    )
                self._rows = _rows(file.read(length), size - 8 - length)
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, MemoryError, ValueError, RecursionError, msgspec.MsgspecError) as error:
            raise self._unreadable(said(error)) from None
        self._start = 8 + length

    def names(self) -> set[str]:
        """The names of the tensors in it."""
        return set(self._rows)

    def view(self, name: str, dtype: str, shape: tuple[int | None, ...]) -> NDArray[Any]:
        """A tensor as a read-only array on the file itself; None in `shape` stands for any size.

        Raises TraceError if there is no tensor of that name, dtype and shape.
        """
        row = self._rows.get(name)
        if row is None:
            raise TraceError(f"{self.path}: {name} cannot be read: the file does not contain it")
        fits = len(row.shape) == len(shape) and all(
            wanted in (None, n) for n, wanted in zip(row.shape, shape, strict=True)
        )
        if row.dtype != CODES[dtype] or not fits:
            raise TraceError(
                f"{self.path}: {name} is {quote(row.dtype)} {quote(list(row.shape))}, and the "
                f"index says {dtype} {quote(list(shape))}: damaged or swapped"
            )
        start, end = row.data_offsets
        try:
            stored = np.dtype(dtype).newbyteorder("<")
            flat = np.frombuffer(
                self._data, stored, (end - start) // stored.itemsize, self._start + start
            )
            return flat.reshape(row.shape)
        except ValueError as error:  # an array that NumPy cannot have, such as [0, 2^62, 2^62]
            raise TraceError(f"{self.path}: {name} cannot be read: {said(error)}") from None

    def _unreadable(self, why: str) -> TraceError:
        return TraceError(f"{self.path}: not a readable safetensors file: {why}")


_SIZES = {code: np.dtype(name).itemsize for name, code in CODES.items()}


def _rows(text: bytes, size: int) -> dict[str, _Row]:
    """The rows of a header whose tensors fill `size` bytes of data, none of them twice."""
    tree = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    tree.pop("__metadata__", None)
    rows = {name: msgspec.json.decode(raw, type=_Row) for name, raw in tree.items()}
    end = 0
    for name, row in sorted(rows.items(), key=lambda item: item[1].data_offsets):
        if row.dtype not in _SIZES:
            raise ValueError(f"{name}: dtype {row.dtype}, which no trace has")
        start, end_before = row.data_offsets[0], end
        end = row.data_offsets[1]
        if start != end_before or end - start != math.prod(row.shape) * _SIZES[row.dtype]:
            raise ValueError(f"{name}: bytes {start} to {end} are not those of its shape")
    if end != size:
        raise ValueError(f"{end} bytes of tensors in a file with {size}")
    return rows


def stored(
    own: dict[str, NDArray[Any]],
    name: str,
    tensor: Tensor,
    array: NDArray[Any],
) -> Literal["whole", "rows"]:
    """Add to a step's `own` tensors what is to be stored of `tensor`, which is `array`; how."""
    rows = sparse(tensor if isinstance(tensor, Rows) else array)
    if rows is None or array.nbytes > ROWS_LIMIT:
        own[name] = array
        return "whole"
    numbers, values = row_names(name)
    own[numbers], own[values] = rows.rows, rows.values
    return "rows"
