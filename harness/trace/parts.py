"""Tensors that a training step has in parts; the trace puts them together, off its path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Timesteps(NamedTuple):
    """One array [B, ...] for each of T timesteps: the tensor [B, T, ...]."""

    parts: Sequence[NDArray[Any]]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the first part; of none where there is no part."""
        return np.asarray(self.parts[0]).dtype if len(self.parts) else np.dtype("V")

    @property
    def nbytes(self) -> int:
        """The bytes of all parts."""
        return sum(part.nbytes for part in self.parts)

    def checked(self) -> Timesteps:
        """The same, as arrays. Raises ValueError unless all have one dtype and shape [B, ...]."""
        parts = [np.asarray(part) for part in self.parts]
        if not parts or not parts[0].ndim or len({(p.dtype, p.shape) for p in parts}) > 1:
            raise ValueError("timesteps without a batch axis, or of more than one dtype or shape")
        return Timesteps(parts)

    def dense(self) -> NDArray[Any]:
        """The array [B, T, ...]. Raises ValueError as `checked` does."""
        return np.stack(self.checked().parts, axis=1)


class Rows(NamedTuple):
    """A matrix [V, E] (`shape`): the sum of its rows `rows` (integers [k]), `values` [k, E].

    A row may occur more than once, and is then the sum of its occurrences; one that does not is
    zero. So padding may be any row with values of zeros, and stay padding when it turns NaN.
    """

    rows: NDArray[Any]
    values: NDArray[Any]
    shape: tuple[int, int]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the matrix."""
        return np.asarray(self.values).dtype

    @property
    def nbytes(self) -> int:
        """The bytes of the rows that are there, and their numbers."""
        return self.rows.nbytes + self.values.nbytes

    def checked(self) -> Rows:
        """The same matrix with its rows growing, each of them once, and none of +0.0 alone.

        What occurs once keeps its bits; the sums of what occurs more often are in the matrix's own
        dtype. Raises ValueError for rows and values that make no matrix of `shape`.
        """
        rows, values, shape = np.asarray(self.rows), np.asarray(self.values), tuple(self.shape)
        if len(shape) != 2 or rows.dtype.kind not in "iu" or rows.ndim != 1:
            raise ValueError(f"rows {rows.dtype} {list(rows.shape)} of a matrix {list(shape)}")
        if values.shape != (rows.size, shape[1]):
            raise ValueError(f"{rows.size} rows of {shape[1]} in values {list(values.shape)}")
        filled = np.flatnonzero(bits(values).any(axis=1))
        order = filled[np.argsort(rows[filled], kind="stable")]
        rows, values = rows[order].astype(np.int64), np.ascontiguousarray(values[order])
        once, starts = np.unique(rows, return_index=True)
        if once.size < rows.size:
            with np.errstate(all="ignore"):  # a run that explodes is not warned of
                values = np.add.reduceat(values, starts, axis=0, dtype=values.dtype)
        found = Rows(once, values, shape)
        found.check_order()
        return found

    def of(self, matrix: NDArray[Any]) -> Rows | NDArray[Any]:
        """Another matrix in these rows, the first occurrence of each having all of it.

        The matrix itself where one of its other rows is not zero.
        """
        rows = np.asarray(self.rows)
        others = np.ones(len(matrix), bool)
        others[rows] = False
        if matrix.shape != tuple(self.shape) or matrix[others].any():
            return matrix
        values = np.zeros((rows.size, matrix.shape[1]), matrix.dtype)
        first = np.unique(rows, return_index=True)[1]
        values[first] = matrix[rows[first]]
        return Rows(rows, values, self.shape)

    def check_order(self) -> None:
        """Raise ValueError unless the row numbers grow, from 0 or more to below V."""
        rows, height = self.rows, self.shape[0]
        if rows.size and (rows[0] < 0 or rows[-1] >= height or np.any(rows[1:] <= rows[:-1])):
            raise ValueError(f"a row occurs twice, or lies outside 0 to {height - 1}")

    def dense(self) -> NDArray[Any]:
        """The matrix [V, E]. Raises ValueError as `checked` does."""
        rows, values, shape = self.checked()
        matrix = np.zeros(shape, values.dtype)
        matrix[rows] = values
        return matrix


def sparse(matrix: NDArray[Any] | Rows) -> Rows | None:
    """A floating-point matrix without its rows of zeros, if those are most of its rows."""
    height, width = matrix.shape if len(matrix.shape) == 2 else (0, 0)
    if not height * width or matrix.dtype.kind != "f":
        return None
    if isinstance(matrix, Rows):
        return matrix if 2 * len(matrix.rows) < height else None
    words = bits(matrix)
    # Nearly every dense matrix is known by its first column, at a small part of the cost.
    if 2 * np.count_nonzero(words[:, 0]) >= height:
        return None
    rows = np.flatnonzero(words.any(axis=1))
    return Rows(rows, matrix[rows], (height, width)) if 2 * rows.size < height else None


def bits(array: NDArray[Any]) -> NDArray[Any]:
    """The elements as unsigned integers, so that -0.0 is not zero."""
    size = array.dtype.itemsize
    return array.view(f"u{size}" if size <= 8 else np.uint8)
