"""What the index says of a tensor beside its name: hash, statistics of its elements, sketch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any

import msgspec
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
BLOCK = 1 << 16  # elements a block in NumPy: small enough for the cache once widened to float64


class _Figures(msgspec.Struct):
    """What a pass over a tensor adds up; `seed` is None where no sketch is wanted."""

    seed: np.uint64 | None
    sketch: NDArray[np.float64]
    low: float = np.inf
    high: float = -np.inf
    total: float = 0.0
    squares: float = 0.0
    nan: int = 0
    inf: int = 0
    zero: int = 0


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
    kernels = None if level == "hash" else kernels_for(flat, proof, compiled)
    found = _Figures(seed(name, array.shape) if level == "stats" else None, np.zeros(SIZE))
    hasher = Digest()
    for start in range(0, flat.size, PIECE):
        piece = flat[start : start + PIECE]
        hasher.add(piece)  # which brings it into the cache
        if kernels:
            _add_compiled(found, piece, start, kernels)
        elif level != "hash":
            _add(found, piece, start)
    return _entry(name, array, hasher.text(), found, level)


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
        yield _entry(name, x, hashed.text(), _Figures(None, sums, *one), level)
        start = end


def _entry(
    name: str, array: NDArray[Any], hashed: str, found: _Figures, level: Level
) -> TensorEntry:
    """An entry from what a pass over a tensor has added up."""
    if level == "hash":
        return TensorEntry(name, str(array.dtype), array.shape, hashed)
    count = array.size - found.nan - found.inf
    return TensorEntry(
        name,
        str(array.dtype),
        array.shape,
        hashed,
        min=found.low + 0.0 if count else None,  # of zeros of both signs, the positive one
        max=found.high + 0.0 if count else None,
        mean=_storable(found.total / count) if count else None,
        l2=_storable(found.squares**0.5),
        nan=found.nan,
        inf=found.inf,
        zero=found.zero,
        sketch=found.sketch.astype("<f8").tobytes() if level == "stats" else None,
    )


def sketch(name: str, array: NDArray[Any]) -> NDArray[np.float64]:
    """The sketch [64] of a tensor."""
    return np.frombuffer(describe(name, array, "stats").sketch or b"", "<f8")


def _add_compiled(found: _Figures, piece: NDArray[Any], start: int, kernels: ModuleType) -> None:
    low, high, total, squares, nan, inf, zero = kernels.describe(
        piece, start // CHUNK, found.seed, found.sketch
    )
    found.low, found.high = min(found.low, low), max(found.high, high)
    found.total += total
    found.squares += squares
    found.nan += nan
    found.inf += inf
    found.zero += zero


def proof(kernels: ModuleType, dtype: np.dtype[Any]) -> str | None:
    """The first figure of a tensor that the compiled pass gets wrong on a known case (None: none).

    The case is long enough for the sums of its sketch to be folded.
    """
    array = np.tile(known_pair(dtype)[0], 11)
    made, plain = (_Figures(seed("proof", array.shape), np.zeros(SIZE)) for _ in range(2))
    for at in (slice(0, 3 * RUN), slice(3 * RUN, None)):
        _add_compiled(made, array[at], at.start, kernels)
    _add(plain, array, 0)
    for name in ("low", "high", "nan", "inf", "zero"):
        if getattr(made, name) != getattr(plain, name):
            return name
    for name in ("total", "squares", "sketch"):  # sums, whose order is free
        room = 1e-12 * (plain.squares**0.5 if name == "sketch" else plain.squares)
        if not np.all(np.abs(getattr(made, name) - getattr(plain, name)) <= room):
            return name
    return None


def proof_many(kernels: ModuleType, dtype: np.dtype[Any]) -> str | None:
    """The first figure that differs where two tensors are described at once (None: none does).

    Each is held against what the pass over one tensor gives, which `proof` holds against NumPy.
    """
    array, start = known_pair(dtype)[0], seed("proof", (1,))
    wrong = proof(kernels, dtype)
    if wrong:
        return wrong
    alone = np.zeros(SIZE)
    figures = kernels.describe(array, 0, start, alone)
    ends, seeds = np.array([array.size, 2 * array.size]), np.array([start, start])
    both, sketches = kernels.describe_many(np.tile(array, 2), ends, seeds, True)
    for one, sums in zip(both, sketches, strict=True):
        if not np.allclose(one, figures, rtol=1e-12, atol=0):
            return "figures"
        if not np.allclose(sums, alone, rtol=0, atol=1e-12 * figures[3] ** 0.5):
            return "sketch"
    return None


def _add(found: _Figures, piece: NDArray[Any], first: int) -> None:
    """Add a piece, which starts at element `first`, with NumPy."""
    with np.errstate(over="ignore", invalid="ignore"):  # sums of numbers near the largest double
        for start in range(0, piece.size, BLOCK):
            block = piece[start : start + BLOCK]
            if found.seed is not None:
                add_to_sketch(block, (first + start) // CHUNK, found.seed, found.sketch)
            found.zero += block.size - int(np.count_nonzero(block))
            wide = block.astype(np.float64)
            finite = np.isfinite(wide)
            if not finite.all():
                nans = int(np.count_nonzero(np.isnan(wide)))
                found.nan += nans
                found.inf += wide.size - int(np.count_nonzero(finite)) - nans
                wide = wide[finite]
                if not wide.size:
                    continue
            found.low = min(found.low, float(wide.min()))
            found.high = max(found.high, float(wide.max()))
            found.total += float(wide.sum())
            found.squares += sum_of_squares(wide)


def sum_of_squares(x: NDArray[np.float64]) -> float:
    """The sum of squares, added pairwise.

    Not numpy.dot: that starts a thread on every processor for a block that fits the cache, and a
    run has two sides that compute on those processors.
    """
    return float(np.add.reduce(np.square(x)))


def _storable(value: float) -> float | None:
    return value if np.isfinite(value) else None
