"""What the index says of a tensor beside its name: its hash, and statistics of its elements."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from harness.trace.schema import TensorEntry

BLOCK = 1 << 16  # elements a block: small enough for the cache once widened to float64


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
