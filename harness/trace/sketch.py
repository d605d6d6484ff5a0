"""The sketch of a tensor: 64 numbers that tell how far it is from another, without the elements.

It is a linear projection, the same for all tensors of one name and shape: element i = 64 k + j is
added, with a sign, to sum (j + r) mod 64, where r (0 to 63) and the 64 signs of chunk k come from
the generator splitmix64, started with the XXH3-64 hash of "name [shape]": its numbers 2k (bit j
set: minus) and 2k + 1 (r, the lowest 6 bits). What is not finite counts as 0. So a tensor of up to
64 elements is kept without loss, and sketch(a) - sketch(b) = sketch(a - b) up to rounding.

The squared norm of a sketch has the squared norm of the tensor as its mean: two elements of one
chunk never share a sum, and those of two chunks k, l do so with a chance of 1/64 and under
independent signs. Its variance is 4/64 sum over pairs k < l of |x_k|^2 |x_l|^2, x_k being the
elements of chunk k: at most 2/64 |x|^4 **whatever the tensor holds**. The norm has therefore a
relative standard deviation of at most about 1 / sqrt(2 * 64) = 8.8 %; over many chunks the squared
norm is distributed as chi-square with 64 degrees of freedom.

A floor: the 64 sums are rounded in float64, the more the larger the tensor (`ROUNDING`). The
distance of two float64 tensors that are less apart than that many eps of their norm is not seen.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from harness.kernels.layout import CHUNK, GOLDEN, MIX_1, MIX_2
from harness.trace.schema import OWN

SIZE = CHUNK  # sums
# The share by which an estimated distance may be wrong, in 97 of 100 and in 999 of 1,000 tensors:
# quantiles of chi-square with 64 degrees of freedom, which tests measure.
LIKELY_ERROR, GREATEST_ERROR = 0.2, 0.35
# Distances below this many eps of the norm (float64) drown in the rounding of the sums.
ROUNDING = 8.0

_WORD = np.uint64(2**64 - 1)


def distance(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """The estimate of the L2 norm of a - b from the sketches [64] of tensors a and b."""
    return math.hypot(*(x - y))  # hypot: squares of numbers near the largest double overflow


def seed(name: str, shape: tuple[int, ...]) -> np.uint64:
    """What the generator of a tensor's signs starts with.

    A rank's own tensor has the name by which that rank alone describes it.
    """
    found = OWN.fullmatch(name)
    name = f"{found['phase']}/{found['rest']}" if found else name
    return np.uint64(xxhash.xxh3_64_intdigest(f"{name} {list(shape)}".encode()))


def add_to_sketch(
    piece: NDArray[Any], first: int, start: np.uint64, sums: NDArray[np.float64]
) -> None:
    """Add elements, which begin with chunk `first` of their tensor, to `sums` [64]."""
    count = -(-piece.size // CHUNK)
    values = np.zeros(count * CHUNK)
    values[: piece.size] = piece
    values[~np.isfinite(values)] = 0.0
    numbers = 2 * np.arange(first, first + count, dtype=np.uint64)
    lanes = np.arange(CHUNK, dtype=np.uint64)
    minus = (_random(start, numbers)[:, None] >> lanes) & np.uint64(1) != 0
    turns = _random(start, numbers + np.uint64(1))[:, None]
    chunks = values.reshape(count, CHUNK)
    chunks = np.where(minus, -chunks, chunks)
    places = (lanes - turns) % np.uint64(CHUNK)
    sums += np.take_along_axis(chunks, places.astype(np.intp), axis=1).sum(axis=0)


def _random(start: np.uint64, numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """These numbers of the generator splitmix64."""
    with np.errstate(over="ignore"):  # modulo 2^64
        x = start + np.uint64(GOLDEN) * numbers
        x = (x ^ (x >> np.uint64(30))) * np.uint64(MIX_1)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(MIX_2)
        return x ^ (x >> np.uint64(31))
