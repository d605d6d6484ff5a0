"""How far two arrays are apart: every figure that a diff reports, in one pass over blocks."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.compare.tolerance import Allowance
from harness.kernels import PIECE, kernels_for
from harness.kernels.case import known_pair
from harness.kernels.floats import standard_floats
from harness.kernels.layout import (
    ABS,
    ABS_AT,
    DIFF_SQUARES,
    FIRST_DIFFERENCE,
    FIRST_MISMATCH,
    LEAST_ATOL,
    LEAST_FACTOR,
    LEAST_RTOL,
    MISMATCHES,
    NAN_EQUAL,
    NONFINITE,
    PAIRS,
    REFERENCE_SQUARES,
    REL,
    RUN,
    USED,
)
from harness.trace.dtypes import common, epsilon, is_float
from harness.trace.statistics import BLOCK, sum_of_squares

SUMS = ("diff_squares", "reference_squares")  # figures that depend on the order of adding


class Comparison(msgspec.Struct, frozen=True):
    """The figures of one pair of arrays of the same shape; b is the reference.

    Maxima and `rel_l2` are over pairs of finite numbers, relative ones also only where b is not
    zero (as in numpy.testing). All of them are None where there is no such pair, where the figure
    overflows, and where `nonfinite_mismatches` is not 0: no number tells how far NaN is from 1.
    `max_abs_diff` is an int, and exact, for integers and booleans, which have neither ULPs nor eps.
    ULPs are None too for floats of two dtypes, and eps that of the narrower.

    `index` is the first element, in C order, that is not close, `onset` the first that is not equal
    bit for bit (of two dtypes: once both are in the wider); both None if there is none. `nan_equal`
    counts elements that are NaN on both sides (they count as close), `nonfinite_mismatches` those
    that are NaN or infinite on one side and not the same on the other. `least_rtol`, `least_atol`
    and `least_factor` are the smallest rtol (given this atol), atol (given this rtol), and K of the
    default rule that would let the pair pass; None where none would. `used` is the greatest share
    of its allowance that an element uses: over 1 where one is not close; None where there are none.
    """

    close: bool
    size: int
    mismatches: int
    index: tuple[int, ...] | None
    onset: tuple[int, ...] | None
    max_abs_diff: float | int | None
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
    used: float | None


class _Sums(msgspec.Struct):
    """What a pass over blocks adds up: turned into a Comparison at the end."""

    pairs: int = 0
    mismatches: int = 0
    nan_equal: int = 0
    nonfinite: int = 0
    first_mismatch: int | None = None
    first_difference: int | None = None
    abs_diff: float | int = -1
    abs_index: int = 0
    rel_diff: float = -1.0
    ulp_diff: int = -1
    diff_squares: float = 0.0
    reference_squares: float = 0.0
    least_rtol: float = 0.0
    least_atol: float = 0.0
    least_factor: float = 0.0
    used: float = 0.0

    def join(self, later: _Sums) -> None:
        """Add what another pass found in the elements after those of this one."""
        if later.abs_diff > self.abs_diff:
            self.abs_diff, self.abs_index = later.abs_diff, later.abs_index
        if self.first_mismatch is None:
            self.first_mismatch = later.first_mismatch
        if self.first_difference is None:
            self.first_difference = later.first_difference
        for name in ("pairs", "mismatches", "nan_equal", "nonfinite"):
            setattr(self, name, getattr(self, name) + getattr(later, name))
        for name in ("diff_squares", "reference_squares"):
            setattr(self, name, getattr(self, name) + getattr(later, name))
        for name in ("rel_diff", "ulp_diff", "used"):
            setattr(self, name, max(getattr(self, name), getattr(later, name)))
        for name in ("least_rtol", "least_atol", "least_factor"):
            # Not max, which may drop a NaN: what overflowed has no least tolerance.
            setattr(self, name, float(np.maximum(getattr(self, name), getattr(later, name))))


@standard_floats()
def compare(
    a: NDArray[Any],
    b: NDArray[Any],
    allowed: Allowance,
    *,
    threads: int | None = None,
    seen: Callable[[NDArray[Any], NDArray[Any], int], None] | None = None,
    compiled: bool = True,
) -> Comparison:
    """Compare `a` with the reference `b`, arrays of one shape, under `allowed`.

    Closeness is computed exactly as numpy.isclose(a, b, rtol, atol, equal_nan=True) computes it (a
    factor of 0 asks for equality, which that rule blurs for integers beyond 2^53); floats of two
    dtypes, and those that NumPy has not, are widened first (harness.trace.dtypes.common). Distances
    are computed in float64, those of integers exactly; ULPs are exact. Large arrays are shared out
    to `threads` (None: one for every processor). `seen` is called with each piece of both before it
    is compared and the number of elements before it: for what else is to be done while it lies in
    the cache. It implies one thread. `compiled` may be False: NumPy alone does the work.
    Raises ValueError for arrays of different shape, and of dtypes that are different and not both
    floating-point: that is for the caller to report.
    """
    floats = is_float(a.dtype) and is_float(b.dtype)
    if a.shape != b.shape or (a.dtype != b.dtype and not floats):
        raise ValueError(f"cannot compare {a.dtype} {a.shape} with {b.dtype} {b.shape}")
    flat_a, flat_b = np.ascontiguousarray(a).reshape(-1), np.ascontiguousarray(b).reshape(-1)
    pieces = range(0, flat_a.size, PIECE)
    workers = 1 if seen else min(threads or os.cpu_count() or 1, len(pieces))
    alike = compiled and a.dtype == b.dtype and flat_a.flags.aligned and flat_b.flags.aligned
    kernels = kernels_for(flat_a, proof) if alike else None

    def run(starts: range) -> _Sums:
        return _pass(flat_a, flat_b, starts, allowed, seen, kernels)

    if workers <= 1:
        sums = run(pieces)
    else:
        share = -(-len(pieces) // workers)
        shares = [pieces[i : i + share] for i in range(0, len(pieces), share)]
        with ThreadPoolExecutor(len(shares)) as pool:  # its threads inherit the standard mode
            sums, *others = pool.map(run, shares)
        for other in others:
            sums.join(other)
    return _finish(sums, a, b, allowed)


def _pass(
    a: NDArray[Any],
    b: NDArray[Any],
    starts: range,
    allowed: Allowance,
    seen: Callable[[NDArray[Any], NDArray[Any], int], None] | None,
    kernels: ModuleType | None,
) -> _Sums:
    """The figures of the pieces that begin at `starts`."""
    compiled = kernels and kernels.Pass(allowed.rtol, allowed.atol, allowed.factor, allowed.scale)
    sums = _Sums()
    for start in starts:
        x, y = a[start : start + PIECE], b[start : start + PIECE]
        if seen:
            seen(x, y, start)
        if compiled:
            compiled.add(x, y, start)
        else:
            _add(sums, x, y, start, allowed)
    return _taken(compiled) if compiled else sums


def proof(kernels: ModuleType, dtype: np.dtype[Any]) -> str | None:
    """The first figure that the compiled pass gets wrong on a known case (None: all are right)."""
    a, b = known_pair(dtype)
    eps = float(np.finfo(dtype).eps)
    for rtol, atol, factor in ((1e-3, 1e-5, None), (64 * eps, 640 * eps, 64.0), (0.0, 0.0, 0.0)):
        for end in (RUN, a.size):  # finite throughout, and not
            allowed = Allowance(rtol, atol, factor, 10.0)
            made, plain = kernels.Pass(rtol, atol, factor, 10.0), _Sums()
            for part in (slice(0, RUN), slice(RUN, end)):
                made.add(a[part], b[part], part.start)
            _add(plain, a[:end], b[:end], 0, allowed)
            wrong = differs(plain, _taken(made))
            if wrong:
                return wrong
    return None


def differs(x: msgspec.Struct, y: msgspec.Struct) -> str | None:
    """The first figure in which two passes over one pair disagree, by more than adding's order."""
    for name in x.__struct_fields__:
        one, other = getattr(x, name), getattr(y, name)
        summed = name in SUMS or name.startswith("rel_l2")
        if summed and None not in (one, other):
            alike = math.isclose(one, other, rel_tol=1e-9)
        else:
            alike = one == other or (one != one and other != other)
        if not alike:
            return name
    return None


def _taken(found: Any) -> _Sums:
    """The figures of a compiled pass."""
    best, counts = found.best.tolist(), found.counts.tolist()
    return _Sums(
        pairs=counts[PAIRS],
        mismatches=counts[MISMATCHES],
        nan_equal=counts[NAN_EQUAL],
        nonfinite=counts[NONFINITE],
        first_mismatch=None if counts[FIRST_MISMATCH] < 0 else counts[FIRST_MISMATCH],
        first_difference=None if counts[FIRST_DIFFERENCE] < 0 else counts[FIRST_DIFFERENCE],
        abs_diff=best[ABS],
        abs_index=counts[ABS_AT],
        rel_diff=best[REL],
        ulp_diff=int(found.ulps[0]) if counts[PAIRS] else -1,
        diff_squares=best[DIFF_SQUARES],
        reference_squares=best[REFERENCE_SQUARES],
        least_rtol=best[LEAST_RTOL],
        least_atol=best[LEAST_ATOL],
        least_factor=best[LEAST_FACTOR],
        used=best[USED],
    )


def _add(sums: _Sums, a: NDArray[Any], b: NDArray[Any], first: int, allowed: Allowance) -> None:
    """Add a piece, which starts at element `first`, with NumPy."""
    with np.errstate(all="ignore"):
        for start in range(0, a.size, BLOCK):
            x, y = a[start : start + BLOCK], b[start : start + BLOCK]
            _add_ulps(sums, x, y)
            if is_float(a.dtype):
                wide = common(a.dtype, b.dtype)
                x, y = x.astype(wide, copy=False), y.astype(wide, copy=False)
            _add_closeness(sums, first + start, x, y, allowed)
            _add_distances(sums, first + start, x, y, allowed)


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
    if is_float(a.dtype):
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


def _add_ulps(sums: _Sums, a: NDArray[Any], b: NDArray[Any]) -> None:
    """The numbers of one dtype between two floats."""
    if a.dtype != b.dtype or not is_float(a.dtype):
        return
    finite = np.isfinite(a) & np.isfinite(b)
    if not finite.all():
        a, b = a[finite], b[finite]
    sums.ulp_diff = max(sums.ulp_diff, int(np.max(ulps(a, b)))) if a.size else sums.ulp_diff


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
    blurred, size = np.abs(x - y), np.abs(y)  # of integers beyond 2^53, as NumPy's rule sees them
    exact = blurred if a.dtype.kind == "f" else ulps(a, b)
    diff = exact.astype(np.float64, copy=False)
    sums.pairs += diff.size
    at = int(np.argmax(exact))
    if exact[at].item() > sums.abs_diff:
        sums.abs_diff = exact[at].item()
        sums.abs_index = start + (at if places is None else int(places[at]))
    nonzero = size > 0
    ruled = diff if allowed.factor == 0 else blurred
    over = np.maximum(ruled - allowed.atol, 0)
    if nonzero.any():
        sums.rel_diff = max(sums.rel_diff, float(np.max(diff[nonzero] / size[nonzero])))
        sums.least_rtol = max(sums.least_rtol, float(np.max(over[nonzero] / size[nonzero])))
    if np.any(over[~nonzero] > 0):
        sums.least_rtol = np.inf
    # np.maximum keeps a NaN (what overflowed has no least tolerance), where max drops it.
    sums.least_atol = float(np.maximum(sums.least_atol, np.max(ruled - allowed.rtol * size)))
    shares = ruled / (allowed.atol + allowed.rtol * size)
    sums.used = max(sums.used, float(np.fmax.reduce(shares, initial=0.0)))  # 0 / 0 counts not
    if allowed.factor:
        # Not finite where the reference holds zeros alone: nothing scales with them.
        factors = np.where(diff > 0, diff / (size + allowed.scale), 0.0)
        sums.least_factor = float(np.maximum(sums.least_factor, np.max(factors)))
    sums.diff_squares += sum_of_squares(diff)
    sums.reference_squares += sum_of_squares(y)


def _finish(sums: _Sums, a: NDArray[Any], b: NDArray[Any], allowed: Allowance) -> Comparison:
    """The figures of a finished pass."""
    passable, any_pair = not sums.nonfinite, sums.abs_diff >= 0
    told = passable and any_pair
    # Squares may leave the range of a double at either end: then there is no such figure.
    summed = told and math.isfinite(sums.reference_squares)
    summed = summed and (sums.diff_squares > 0 or sums.abs_diff == 0)
    rel_l2 = ratio(sums.diff_squares**0.5, sums.reference_squares**0.5) if summed else None
    # Integers that have to be equal would not pass with any number.
    least = passable and not (allowed.factor == 0 and not is_float(a.dtype))
    used = sums.used if any_pair else None

    def place(flat: int | None) -> tuple[int, ...] | None:
        return None if flat is None else tuple(int(i) for i in np.unravel_index(flat, a.shape))

    return Comparison(
        close=sums.mismatches == 0,
        size=a.size,
        mismatches=sums.mismatches,
        index=place(sums.first_mismatch),
        onset=place(sums.first_difference),
        max_abs_diff=_finite(sums.abs_diff) if told else None,
        max_abs_index=place(sums.abs_index) if told else None,
        max_rel_diff=_finite(sums.rel_diff) if passable and sums.rel_diff >= 0 else None,
        max_ulp_diff=sums.ulp_diff if passable and sums.ulp_diff >= 0 else None,
        rel_l2=rel_l2,
        rel_l2_eps=in_eps(rel_l2, a.dtype, b.dtype),
        nan_equal=sums.nan_equal,
        nonfinite_mismatches=sums.nonfinite,
        least_rtol=_finite(sums.least_rtol) if least else None,
        least_atol=_finite(sums.least_atol) if least else None,
        least_factor=in_eps(_finite(sums.least_factor), a.dtype, b.dtype)
        if passable and allowed.factor
        else None,
        used=used if passable else math.inf,
    )


def in_eps(value: float | None, *dtypes: str | np.dtype[Any]) -> float | None:
    """`value` in machine epsilons of the narrowest of `dtypes`; None if one does not round."""
    eps = epsilon(*dtypes)
    return None if value is None or eps is None else value / eps


def ratio(a: float, b: float) -> float | None:
    """a / b with 0 / 0 = 0; None where b alone is 0 or the result is not finite."""
    if a == 0:
        return 0.0
    return _finite(a / b) if b else None


def _finite(value: float | int) -> float | int | None:
    return value if math.isfinite(value) else None
