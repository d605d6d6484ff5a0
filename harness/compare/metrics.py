"""How far two arrays are apart: every figure that a diff reports, in one pass over blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.compare.tolerance import Allowance
from harness.trace.statistics import BLOCK, sum_of_squares


class Comparison(msgspec.Struct, frozen=True):
    """The figures of one pair of arrays of the same shape and dtype; b is the reference.

    Maxima are over pairs of finite numbers, relative ones also only where b is not zero (as in
    numpy.testing); None where there is no such pair, or where the maximum overflows. `index` is the
    first element, in C order, that is not close, `onset` the first that is not equal bit for bit;
    both None if there is none. `nan_equal` counts elements that are NaN on both sides (they count
    as close), `nonfinite_mismatches` those that are NaN or infinite on one side and not the same on
    the other. `least_rtol`, `least_atol` and `least_factor` are the smallest rtol (given this
    atol), atol (given this rtol), and K of the default rule that would let the pair pass; None
    where none would.
    """

    close: bool
    size: int
    mismatches: int
    index: tuple[int, ...] | None
    onset: tuple[int, ...] | None
    max_abs_diff: float | None
    max_abs_index: tuple[int, ...] | None
    max_rel_diff: float | None
    max_ulp_diff: int | None
    rel_l2: float | None
    rel_l2_eps: float | None
    nan_equal: int
    nonfinite_mismatches: int
    least_rtol: float | None
    least_atol: float | None
    least_factor: float | None


class _Sums:
    """What a pass over blocks adds up. A plain accumulator: turned into a Comparison at the end."""

    def __init__(self) -> None:
        self.mismatches = self.nan_equal = self.nonfinite = 0
        self.first_mismatch: int | None = None
        self.first_difference: int | None = None
        self.abs_diff, self.abs_index = -1.0, 0
        self.rel_diff, self.ulp_diff = -1.0, -1
        self.diff_squares = self.reference_squares = 0.0
        self.least_rtol = self.least_atol = self.least_factor = 0.0


def compare(a: NDArray[Any], b: NDArray[Any], allowed: Allowance) -> Comparison:
    """Compare `a` with the reference `b`, arrays of one shape and dtype, under `allowed`.

    Closeness is computed exactly as numpy.isclose(a, b, rtol, atol, equal_nan=True) computes it (a
    factor of 0 asks for equality, which that rule blurs for integers beyond 2^53). Distances are
    computed in float64; ULPs are exact for every dtype.
    Raises ValueError for arrays of different shape or dtype: that is for the caller to report.
    """
    if a.shape != b.shape or a.dtype != b.dtype:
        raise ValueError(f"cannot compare {a.dtype} {a.shape} with {b.dtype} {b.shape}")
    sums = _Sums()
    with np.errstate(all="ignore"):
        for number, (x, y) in enumerate(_blocks(a, b)):
            _add_closeness(sums, number * BLOCK, x, y, allowed)
            _add_distances(sums, number * BLOCK, x, y, allowed)
    return _finish(sums, a, allowed)


def _blocks(a: NDArray[Any], b: NDArray[Any]) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Both arrays in blocks that fit the cache, C order."""
    flat_a, flat_b = np.ascontiguousarray(a).reshape(-1), np.ascontiguousarray(b).reshape(-1)
    for start in range(0, flat_a.size, BLOCK):
        yield flat_a[start : start + BLOCK], flat_b[start : start + BLOCK]


class Scan(NamedTuple):
    """What every pair of a diff needs: the figures of `Comparison` that cost least.

    `used` is the greatest share of its allowance that an element uses: over 1 where one is not
    close, None where nothing is finite on both sides.
    """

    mismatches: int
    rel_l2_eps: float | None
    used: float | None


def scan(a: NDArray[Any], b: NDArray[Any], allowed: Allowance) -> Scan:
    """Compare as `compare` does, for three figures alone. Shapes and dtypes must be the same."""
    mismatches, pairs, used, diff_squares, reference_squares = 0, 0, 0.0, 0.0, 0.0
    with np.errstate(all="ignore"):
        for x, y in _blocks(a, b):
            mismatches += x.size - int(np.count_nonzero(_passes(x, y, allowed)))
            wide = y.astype(np.float64)
            diff = x - wide
            together = sum_of_squares(diff), sum_of_squares(wide)
            if not np.isfinite(together[0]):
                finite = np.isfinite(x) & np.isfinite(y)
                diff, wide = diff[finite], wide[finite]
                together = sum_of_squares(diff), sum_of_squares(wide)
            pairs += diff.size
            diff_squares += together[0]
            reference_squares += together[1]
            shares = np.abs(diff) / (allowed.atol + allowed.rtol * np.abs(wide))
            used = max(used, float(np.fmax.reduce(shares, initial=0.0)))  # fmax: 0 / 0 counts not
    if not pairs:
        return Scan(mismatches, None, None)
    rel_l2 = _ratio(diff_squares**0.5, reference_squares**0.5)
    return Scan(mismatches, _in_eps(rel_l2, a.dtype), used)


def is_close(a: NDArray[Any], b: NDArray[Any], rtol: float, atol: float) -> NDArray[np.bool_]:
    """numpy.isclose(a, b, rtol, atol, equal_nan=True), operation by operation in the same dtype.

    Written as the condition to pass, so that a NaN anywhere fails it.
    """
    wide = b.astype(np.result_type(b, 1.0), copy=False)
    within = (np.abs(a - wide) <= atol + rtol * np.abs(wide)) & np.isfinite(wide)
    close: NDArray[np.bool_] = within | (a == b)
    if a.dtype.kind == "f":
        close |= np.isnan(a) & np.isnan(b)
    return close


def ulps(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.uint64]:
    """Representable numbers from a to b, element by element, without overflow; -0 and 0 are one.

    For integers the difference itself, for booleans 0 or 1.
    """
    if a.dtype.kind == "f":
        a, b = _ordinal(a), _ordinal(b)
    else:
        # Moved to unsigned numbers in the same order, as _ordinal does for floats.
        shift = np.uint64(2**63) if a.dtype.kind == "i" else np.uint64(0)
        a, b = (x.astype(np.int64 if shift else np.uint64).view(np.uint64) + shift for x in (a, b))
    distance: NDArray[np.uint64] = np.maximum(a, b) - np.minimum(a, b)
    return distance


def _ordinal(x: NDArray[Any]) -> NDArray[np.uint64]:
    """Floats numbered along the number line: neighbours differ by 1, both zeros are 2^63."""
    bits = x.view(f"u{x.dtype.itemsize}").astype(np.uint64)
    sign = np.uint64(1) << np.uint64(8 * x.dtype.itemsize - 1)
    magnitude = bits & (sign - np.uint64(1))
    middle = np.uint64(2**63)
    ordered: NDArray[np.uint64] = np.where(bits & sign, middle - magnitude, middle + magnitude)
    return ordered


def _passes(a: NDArray[Any], b: NDArray[Any], allowed: Allowance) -> NDArray[np.bool_]:
    if allowed.factor == 0:
        equal: NDArray[np.bool_] = (a == b) | ((a != a) & (b != b))
        return equal
    return is_close(a, b, allowed.rtol, allowed.atol)


def _add_closeness(
    sums: _Sums, start: int, a: NDArray[Any], b: NDArray[Any], allowed: Allowance
) -> None:
    passed = _passes(a, b, allowed)
    wrong = passed.size - int(np.count_nonzero(passed))
    if wrong and sums.first_mismatch is None:
        sums.first_mismatch = start + int(np.argmin(passed))
    sums.mismatches += wrong
    if sums.first_difference is None:
        bits = f"u{a.dtype.itemsize}"
        unequal = a.view(bits) != b.view(bits)
        if unequal.any():
            sums.first_difference = start + int(np.argmax(unequal))


def _add_distances(
    sums: _Sums, start: int, a: NDArray[Any], b: NDArray[Any], allowed: Allowance
) -> None:
    x, y = a.astype(np.float64), b.astype(np.float64)
    both = np.isfinite(x) & np.isfinite(y)
    if not both.all():
        nans = int(np.count_nonzero(np.isnan(x) & np.isnan(y)))
        same = int(np.count_nonzero(~both & (x == y)))
        sums.nan_equal += nans
        sums.nonfinite += both.size - int(np.count_nonzero(both)) - nans - same
        places = np.flatnonzero(both)
        if not places.size:
            return
        a, b, x, y = a[both], b[both], x[both], y[both]
    else:
        places = None
    diff, size = np.abs(x - y), np.abs(y)
    at = int(np.argmax(diff))
    if diff[at] > sums.abs_diff:
        sums.abs_diff = float(diff[at])
        sums.abs_index = start + (at if places is None else int(places[at]))
    nonzero = size > 0
    over = np.maximum(diff - allowed.atol, 0)
    if nonzero.any():
        sums.rel_diff = max(sums.rel_diff, float(np.max(diff[nonzero] / size[nonzero])))
        sums.least_rtol = max(sums.least_rtol, float(np.max(over[nonzero] / size[nonzero])))
    if np.any(over[~nonzero] > 0):
        sums.least_rtol = np.inf
    # np.maximum keeps a NaN (what overflowed has no least tolerance), where max drops it.
    sums.least_atol = float(np.maximum(sums.least_atol, np.max(diff - allowed.rtol * size)))
    sums.ulp_diff = max(sums.ulp_diff, int(np.max(ulps(a, b))))
    if allowed.factor and diff[at] > 0:
        # Not finite where the reference holds zeros alone: nothing scales with them.
        factors = diff / (size + allowed.scale)
        sums.least_factor = float(np.maximum(sums.least_factor, np.max(factors)))
    sums.diff_squares += sum_of_squares(diff)
    sums.reference_squares += sum_of_squares(y)


def _finish(sums: _Sums, a: NDArray[Any], allowed: Allowance) -> Comparison:
    """The figures of a finished pass."""
    any_pair = sums.abs_diff >= 0
    rel_l2 = None
    if any_pair:
        rel_l2 = _ratio(sums.diff_squares**0.5, sums.reference_squares**0.5)
    passable = not sums.nonfinite

    def place(flat: int | None) -> tuple[int, ...] | None:
        return None if flat is None else tuple(int(i) for i in np.unravel_index(flat, a.shape))

    return Comparison(
        close=sums.mismatches == 0,
        size=a.size,
        mismatches=sums.mismatches,
        index=place(sums.first_mismatch),
        onset=place(sums.first_difference),
        max_abs_diff=_finite(sums.abs_diff) if any_pair else None,
        max_abs_index=place(sums.abs_index) if any_pair else None,
        max_rel_diff=_finite(sums.rel_diff) if sums.rel_diff >= 0 else None,
        max_ulp_diff=sums.ulp_diff if sums.ulp_diff >= 0 else None,
        rel_l2=rel_l2,
        rel_l2_eps=_in_eps(rel_l2, a.dtype),
        nan_equal=sums.nan_equal,
        nonfinite_mismatches=sums.nonfinite,
        least_rtol=_finite(sums.least_rtol) if passable else None,
        least_atol=_finite(sums.least_atol) if passable else None,
        least_factor=_in_eps(_finite(sums.least_factor), a.dtype)
        if passable and allowed.factor
        else None,
    )


def _in_eps(value: float | None, dtype: np.dtype[Any]) -> float | None:
    """`value` in units of the machine epsilon of `dtype`; None for dtypes that do not round."""
    return value / float(np.finfo(dtype).eps) if value is not None and dtype.kind == "f" else None


def _ratio(a: float, b: float) -> float | None:
    """a / b with 0 / 0 = 0; None where b alone is 0 or the result is not finite."""
    if a == 0:
        return 0.0
    return _finite(a / b) if b else None


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
