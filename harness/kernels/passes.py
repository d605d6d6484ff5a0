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
    SKETCH,
    SQUARES,
    TOTAL,
    ZERO,
)

ROOM = 128  # numbers: more than any description has, whatever places machine code may be made of

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


class Description:
    """What is known of the elements of one tensor: figures of the finite ones, and a sketch."""

    def __init__(self, flat: NDArray[Any], seed: np.uint64 | None) -> None:
        """Of none of `flat` so far; with a `seed` the sketch is made, too."""
        self._flat = _fixed(flat)
        self._bits = self._flat.view(f"i{flat.itemsize}")
        self._kernel = _made[
            "describe_piece_float32" if flat.itemsize == 4 else "describe_piece_float64"
        ]
        self._seed, self._sketched = seed or np.uint64(0), seed is not None
        self._found = _nothing(1)[0]

    def add(self, start: int, stop: int) -> None:
        """Add the elements from `start`, the first of a chunk, to `stop`."""
        self._kernel(self._flat, self._bits, start, stop, self._seed, self._sketched, self._found)

    @property
    def figures(self) -> Figures:
        """Least, greatest, sum, sum of squares; counts of NaN, infinities and zeros."""
        return _figures(self._found)

    @property
    def sketch(self) -> NDArray[np.float64]:
        """The sums [64]."""
        sums: NDArray[np.float64] = self._found[SKETCH : SKETCH + CHUNK]
        return sums


def describe_many(
    flat: NDArray[Any], ends: NDArray[np.int64], seeds: NDArray[np.uint64], sketched: bool
) -> tuple[list[Figures], NDArray[np.float64]]:
    """The figures of n tensors that lie end to end, as of each alone; their sketches [n, 64]."""
    found = _nothing(ends.size)
    flat = _fixed(flat)
    kernel = _made[f"describe_pieces_{flat.dtype.name}"]
    kernel(flat, flat.view(f"i{flat.itemsize}"), ends, seeds, sketched, found)
    return [_figures(one) for one in found], found[:, SKETCH : SKETCH + CHUNK]


def _nothing(count: int) -> NDArray[np.float64]:
    """What is known of so many tensors of which nothing has been seen."""
    found = np.zeros((count, ROOM))
    found[:, LOW], found[:, HIGH] = np.inf, -np.inf
    return found


def _figures(found: NDArray[np.float64]) -> Figures:
    if found[DESCRIBED_BY] != MARK:
        raise RuntimeError("made of other constants")
    low, high, total, squares, nan, inf, zero = found[
        [LOW, HIGH, TOTAL, SQUARES, NAN, INF, ZERO]
    ].tolist()
    return low, high, total, squares, int(nan), int(inf), int(zero)


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
