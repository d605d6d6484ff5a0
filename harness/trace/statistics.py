"""What the index says of a tensor beside its name: hash, statistics of its elements, sketch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from harness.kernels import PIECE, kernels_for
from harness.kernels.case import known_pair
from harness.kernels.floats import standard_floats
from harness.kernels.layout import CHUNK, RUN
from harness.spec import Level
from harness.trace.schema import TensorEntry
from harness.trace.sketch import SIZE, add_to_sketch, seed

SMALL = 1 << 14  # elements of an array that is described together with others
FIGURES = ("low", "high", "total", "squares", "nan", "inf", "zero")
BLOCK = 1 << 16  # elements a block in NumPy: small enough for the cache once widened to float64

Figures = tuple[float, float, float, float, int, int, int]  # as FIGURES names them


class Description:
    """What is known of the elements of one tensor, with NumPy: as harness.kernels.passes has it."""

    def __init__(self, flat: NDArray[Any], seed: np.uint64 | None) -> None:
        """Of none of `flat` so far; with a `seed` the sketch is made, too."""
        self._flat, self._seed, self._sums = flat, seed, np.zeros(SIZE)
        self._low, self._high, self._total, self._squares = np.inf, -np.inf, 0.0, 0.0
        self._nan = self._inf = self._zero = 0

    @property
    def figures(self) -> Figures:
        """Least, greatest, sum, sum of squares; counts of NaN, infinities and zeros."""
        sums = self._low, self._high, self._total, self._squares
        return (*sums, self._nan, self._inf, self._zero)

    @property
    def sketch(self) -> NDArray[np.float64]:
        """The sums [64]."""
        return self._sums

    def add(self, start: int, stop: int) -> None:
        """Add the elements from `start`, the first of a chunk, to `stop`."""
        with np.errstate(over="ignore", invalid="ignore"):  # sums of numbers near the largest
            for at in range(start, stop, BLOCK):
                self._add(self._flat[at : min(at + BLOCK, stop)], at)

    def _add(self, block: NDArray[Any], first: int) -> None:
        if self._seed is not None:
            add_to_sketch(block, first // CHUNK, self._seed, self._sums)
        self._zero += block.size - int(np.count_nonzero(block))
        wide = block.astype(np.float64)
        finite = np.isfinite(wide)
        if not finite.all():
            nans = int(np.count_nonzero(np.isnan(wide)))
            self._nan += nans
            self._inf += wide.size - int(np.count_nonzero(finite)) - nans
            wide = wide[finite]
            if not wide.size:
                return
        self._low = min(self._low, float(wide.min()))
        self._high = max(self._high, float(wide.max()))
        self._total += float(wide.sum())
        self._squares += sum_of_squares(wide)


def digest(array: NDArray[Any]) -> str:
    """XXH3-128 of an array's elements, little-endian, C order. Dtype and shape are not in it."""
    hasher = Digest()
    hasher.add(np.ascontiguousarray(array).reshape(-1))
    return hasher.text()


class Digest:
    """The digest of an array that is seen in pieces."""

    def __init__(self) -> None:
        """Of nothing so far."""
        self._hash = xxhash.xxh3_128()

    def add(self, piece: NDArray[Any]) -> None:
        """Add the next elements: contiguous, one axis."""
        data = piece.byteswap() if sys.byteorder == "big" else piece
        self._hash.update(data.view(np.uint8).data)

    def text(self) -> str:
        """The digest, as the index has it."""
        return self._hash.hexdigest()


@standard_floats()
def describe(
    name: str, array: NDArray[Any], level: Level = "full", compiled: bool | None = None
) -> TensorEntry:
    """The index entry of `array`, made in one pass over it; sums are made in float64.

    `level` says how much is wanted: at "hash" no statistics, at "stats" a sketch too. `compiled`
    says by which pass, the compiled one or NumPy's; by default that is chosen by the size.
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    hasher = Digest()
    if level == "hash":
        hasher.add(flat)
        return TensorEntry(name, _name(array.dtype), array.shape, hasher.text())
    kernels = kernels_for(flat, proof, compiled) if flat.size else None
    kind = kernels.Description if kernels else Description
    found = kind(flat, seed(name, array.shape) if level == "stats" else None)
    for start in range(0, flat.size, PIECE):
        stop = min(start + PIECE, flat.size)
        hasher.add(flat[start:stop])  # which brings it into the cache
        found.add(start, stop)
    return _entry(name, array, hasher.text(), found.figures, found.sketch, level)


@standard_floats()
def describe_all(
    given: Sequence[tuple[str, NDArray[Any]]],
    level: Level,
    compiled: bool,
    each: Callable[..., Iterable[TensorEntry]] = map,
) -> list[TensorEntry]:
    """The index entries of many arrays, each as `describe` makes it.

    The small ones are described by one call of the compiled pass: a step has hundreds of them. The
    others are handed to `each`, which may describe several at once.
    """
    found: dict[int, TensorEntry] = {}
    if compiled and level != "hash":
        for dtype in (np.float32, np.float64):
            places = [
                k for k, (_, x) in enumerate(given) if x.dtype == dtype and 0 < x.size <= SMALL
            ]
            if len(places) > 1 and kernels_for(given[places[0]][1].reshape(-1), proof_many, True):
                found |= zip(places, _small([given[k] for k in places], level), strict=True)
    rest = [k for k in range(len(given)) if k not in found]
    found |= zip(rest, each(lambda k: describe(*given[k], level, compiled), rest), strict=True)
    return [found[k] for k in range(len(given))]


def _small(given: Sequence[tuple[str, NDArray[Any]]], level: Level) -> Iterator[TensorEntry]:
    """The entries of small arrays of one dtype, which are laid end to end and gone over at once."""
    from harness.kernels import passes

    flat = np.concatenate([np.ascontiguousarray(x).reshape(-1) for _, x in given])
    ends = np.cumsum([x.size for _, x in given])
    sketched = level == "stats"
    seeds = [seed(name, x.shape) for name, x in given] if sketched else [np.uint64(0)] * len(given)
    figures, sketches = passes.describe_many(flat, ends, np.array(seeds), sketched)
    start = 0
    for (name, x), end, one, sums in zip(given, ends.tolist(), figures, sketches, strict=True):
        hashed = Digest()
        hashed.add(flat[start:end])
        yield _entry(name, x, hashed.text(), one, sums, level)
        start = end


@cache
def _name(dtype: np.dtype[Any]) -> str:
    return str(dtype)  # which takes NumPy longer than a small tensor takes


def _entry(
    name: str,
    array: NDArray[Any],
    hashed: str,
    figures: Figures,
    sums: NDArray[np.float64],
    level: Level,
) -> TensorEntry:
    """An entry from what a pass over a tensor has added up."""
    low, high, total, squares, nan, inf, zero = figures
    count = array.size - nan - inf
    return TensorEntry(
        name,
        _name(array.dtype),
        array.shape,
        hashed,
        min=low + 0.0 if count else None,  # of zeros of both signs, the positive one
        max=high + 0.0 if count else None,
        mean=_storable(total / count) if count else None,
        l2=_storable(squares**0.5),
        nan=nan,
        inf=inf,
        zero=zero,
        sketch=sums.astype("<f8", copy=False).tobytes() if level == "stats" else None,
    )


def sketch(name: str, array: NDArray[Any]) -> NDArray[np.float64]:
    """The sketch [64] of a tensor."""
    return np.frombuffer(describe(name, array, "stats").sketch or b"", "<f8")


def proof(kernels: ModuleType, dtype: np.dtype[Any]) -> str | None:
    """The first figure of a tensor that the compiled pass gets wrong on a known case (None: none).

    The case is long enough for the sums of its sketch to be folded.
    """
    array = np.tile(known_pair(dtype)[0], 11)
    start = seed("proof", array.shape)
    made, plain = kernels.Description(array, start), Description(array, start)
    for at in ((0, 3 * RUN), (3 * RUN, array.size)):
        made.add(*at)
    plain.add(0, array.size)
    found, right = (dict(zip(FIGURES, one.figures, strict=True)) for one in (made, plain))
    for name in ("low", "high", "nan", "inf", "zero"):
        if found[name] != right[name]:
            return name
    for name in ("total", "squares"):  # sums, whose order is free
        if not abs(found[name] - right[name]) <= 1e-12 * right["squares"]:
            return name
    room = 1e-12 * right["squares"] ** 0.5
    return None if np.all(np.abs(made.sketch - plain.sketch) <= room) else "sketch"


def proof_many(kernels: ModuleType, dtype: np.dtype[Any]) -> str | None:
    """The first figure that differs where two tensors are described at once (None: none does).

    Each is held against what the pass over one tensor gives, which `proof` holds against NumPy.
    """
    array, start = known_pair(dtype)[0], seed("proof", (1,))
    wrong = proof(kernels, dtype)
    if wrong:
        return wrong
    alone = kernels.Description(array, start)
    alone.add(0, array.size)
    ends, seeds = np.array([array.size, 2 * array.size]), np.array([start, start])
    both, sketches = kernels.describe_many(np.tile(array, 2), ends, seeds, True)
    room = 1e-12 * alone.figures[3] ** 0.5
    for one, sums in zip(both, sketches, strict=True):
        if not np.allclose(one, alone.figures, rtol=1e-12, atol=0):
            return "figures"
        if not np.allclose(sums, alone.sketch, rtol=0, atol=room):
            return "sketch"
    return None


def sum_of_squares(x: NDArray[np.float64]) -> float:
    """The sum of squares, added pairwise.

    Not numpy.dot: that starts a thread on every processor for a block that fits the cache, and a
    run has two sides that compute on those processors.
    """
    return float(np.add.reduce(np.square(x)))


def _storable(value: float) -> float | None:
    return value if np.isfinite(value) else None
