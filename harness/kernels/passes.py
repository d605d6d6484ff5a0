"""The compiled passes as their callers see them: arrays in, figures out."""

from __future__ import annotations

import types
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.kernels import cache
from harness.kernels.compiled import FLAGS, compare_piece, describe_piece, describe_pieces
from harness.kernels.layout import (
    ABS,
    CHUNK,
    COMPARED_BY,
    DESCRIBED_BY,
    FIRST_DIFFERENCE,
    FIRST_MISMATCH,
    HIGH,
    INF,
    LOW,
    MARK,
    NAN,
    REL,
    SQUARES,
    TOTAL,
    ZERO,
)

Figures = tuple[float, float, float, float, int, int, int]

_folder: Path | None = None
_made: dict[str, Callable[..., Any]] = {}


def make(keep: bool) -> None:
    """Make the kernels anew, each to be compiled when first called, or read from the disk (`keep`).

    A kernel for each dtype, with a name of its own: two processes that compile one function for two
    dtypes at the same time may put the code for one under the other's key in numba's index.
    """
    global _folder
    if cache.disabled():
        raise ImportError("numba is told not to compile")
    _folder = cache.folder() if keep else None
    for function in (describe_piece, describe_pieces, compare_piece):
        for dtype in ("float32", "float64"):
            name = f"{function.__name__}_{dtype}"
            copy = types.FunctionType(function.__code__, function.__globals__, name)
            copy.__qualname__, copy.__module__ = name, function.__module__
            _made[name] = cache.compiled(copy, FLAGS, _folder)


def filling() -> AbstractContextManager[bool]:
    """For as long as kernels may be compiled: whether they can be kept on the disk."""
    return cache.locked(_folder)


def _fixed(array: NDArray[Any]) -> NDArray[Any]:
    """The array, read-only: of arrays that can be written numba would make kernels of their own."""
    view = array.view()
    view.flags.writeable = False
    return view


def describe(
    piece: NDArray[Any], first: int, seed: np.uint64 | None, sketch: NDArray[np.float64]
) -> Figures:
    """Least, greatest, sum, sum of squares; counts of NaN, infinities and zeros. Of finite ones.

    With a `seed` the piece, which begins with chunk `first` of its tensor, is added to `sketch`.
    """
    piece = _fixed(piece)
    bits = piece.view(f"i{piece.itemsize}")
    top = np.iinfo(bits.dtype).max
    counts, sums = np.zeros(6, np.int64), np.zeros(2)
    counts[LOW], counts[HIGH] = top, -top
    kernel = _made[f"describe_piece_{piece.dtype.name}"]
    kernel(piece, bits, first, np.uint64(seed or 0), seed is not None, counts, sums, sketch)
    if counts[DESCRIBED_BY] != MARK:
        raise RuntimeError("made of other constants")
    (figures,) = _figures(piece, counts[None], sums[None])
    return figures


def describe_many(
    flat: NDArray[Any], ends: NDArray[np.int64], seeds: NDArray[np.uint64], sketched: bool
) -> tuple[list[Figures], NDArray[np.float64]]:
    """The figures of n tensors that lie end to end, as `describe` gives them; sketches [n, 64]."""
    flat = _fixed(flat)
    bits = flat.view(f"i{flat.itemsize}")
    top = np.iinfo(bits.dtype).max
    counts, sums = np.zeros((ends.size, 6), np.int64), np.zeros((ends.size, 2))
    counts[:, LOW], counts[:, HIGH] = top, -top
    sketches = np.zeros((ends.size, CHUNK))
    kernel = _made[f"describe_pieces_{flat.dtype.name}"]
    kernel(flat, bits, ends, seeds, sketched, counts, sums, sketches)
    if not np.all(counts[:, DESCRIBED_BY] == MARK):
        raise RuntimeError("made of other constants")
    return _figures(flat, counts, sums), sketches


def _figures(
    array: NDArray[Any], counts: NDArray[np.int64], sums: NDArray[np.float64]
) -> list[Figures]:
    """What a kernel has counted [n, 6] and added up [n, 2] in arrays of this dtype."""
    top = np.iinfo(f"i{array.itemsize}").max
    none = counts[:, LOW] > counts[:, HIGH]
    ends = counts[:, [LOW, HIGH]]
    ends = np.where(ends >= 0, ends, ends ^ top).astype(f"i{array.itemsize}")
    low, high = ends.view(array.dtype).astype(np.float64).T
    low, high = np.where(none, np.inf, low), np.where(none, -np.inf, high)
    total, squares = sums[:, [TOTAL, SQUARES]].T
    nan, inf, zero = counts[:, [NAN, INF, ZERO]].T
    columns = (low, high, total, squares, nan, inf, zero)
    return list(zip(*(column.tolist() for column in columns), strict=True))


class Pass:
    """The figures of a pass over two arrays (names of the places: harness.kernels.layout)."""

    def __init__(self, rtol: float, atol: float, factor: float | None, scale: float) -> None:
        """Of nothing so far. A factor of 0 asks for equality."""
        self.equal = factor == 0
        self.rtol, self.atol = rtol, atol
        self.limits = np.array([rtol, atol, scale if factor else -1.0] + [0.0] * 6)
        self.best, self.counts = np.zeros(8), np.zeros(8, np.int64)
        self.best[[ABS, REL]] = self.counts[[FIRST_MISMATCH, FIRST_DIFFERENCE]] = -1
        self.ulps = np.zeros(1, np.uint64)

    def add(self, a: NDArray[Any], b: NDArray[Any], start: int) -> None:
        """Add pieces of both arrays, which start at element `start`; in the order of places."""
        a, b = _fixed(a), _fixed(b)
        bits, kind = f"u{a.itemsize}", a.dtype.type
        with np.errstate(over="ignore"):
            rtol, atol = kind(self.rtol), kind(self.atol)
        _made[f"compare_piece_{a.dtype.name}"](
            a, b, a.view(bits), b.view(bits), start, rtol, atol, self.equal,
            self.limits, self.best, self.counts, self.ulps,
        )  # fmt: skip
        if self.counts[COMPARED_BY] != MARK:
            raise RuntimeError("made of other constants")
