"""The passes over float32 and float64 elements, compiled by numba; they run without the GIL.

Figures are those of the NumPy code (harness.trace.statistics, harness.trace.sketch,
harness.compare.metrics): counts, extremes and places to the last bit, sums up to the order of
adding. Each pass goes over short runs of elements that stay in the first cache.

Loops are split so that each becomes vector instructions: what it reduces are integers, which may be
added in any order (floats that are not negative are ordered as their bits are), or sums in `_sums`
and `_screen`, the two functions whose floats may be reordered. `describe_piece` and `compare_piece`
are what is called; harness.kernels.passes has them compiled.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from harness.kernels.layout import (
    ABS,
    ABS_AT,
    CHUNK,
    COMPARED_BY,
    DESCRIBED_BY,
    DIFF_SQUARES,
    FIRST_DIFFERENCE,
    FIRST_MISMATCH,
    FOLD,
    GOLDEN,
    HIGH,
    INF,
    LEAST_ATOL,
    LEAST_FACTOR,
    LEAST_RTOL,
    LOW,
    MARK,
    MISMATCHES,
    MIX_1,
    MIX_2,
    NAN,
    NAN_EQUAL,
    NONFINITE,
    PAIRS,
    REFERENCE_SQUARES,
    REL,
    RUN,
    SKETCH,
    SQUARES,
    TOTAL,
    USED,
    ZERO,
)

FLAGS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
SHY = 1 - 8 * 2.0**-52  # of a threshold: what rounding can take from a quotient, and more
SMALLEST, LARGEST = 2.0**-1074, 1.7976931348623157e308

_inner = numba.njit(**FLAGS)


@numba.njit(**FLAGS, fastmath={"reassoc", "nsz"})
def _sums(x):  # type: ignore[no-untyped-def]
    """Sum and sum of squares; not finite where an element is not."""
    total = squares = 0.0
    for i in range(x.size):
        value = np.float64(x[i])
        total += value
        squares += value * value
    return total, squares


@_inner
def _extremes(bits):  # type: ignore[no-untyped-def]
    """Least and greatest of finite floats, as places on the number line; how many are zero."""
    kind = bits.dtype.type
    top = kind(2 ** (8 * bits.itemsize - 1) - 1)
    low, high, zeros = top, kind(-top), kind(0)
    for i in range(bits.size):
        place = bits[i] if bits[i] >= kind(0) else kind(bits[i] ^ top)
        low = place if place < low else low
        high = place if place > high else high
        zeros = kind(zeros + kind(kind(bits[i] << kind(1)) == kind(0)))
    return low, high, zeros


@_inner
def _mix(x):  # type: ignore[no-untyped-def]
    """The finisher of splitmix64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(MIX_1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(MIX_2)
    return x ^ (x >> np.uint64(31))


@_inner
def _add_chunks(x, first, seed, wide):  # type: ignore[no-untyped-def]
    """Add whole chunks, of which the first is number `first`, to `wide` [4 * 128].

    A sum that is read soon after it was written from another place waits, so that four
    accumulators take turns.
    """
    golden = np.uint64(GOLDEN)
    for k in range(x.size // CHUNK):
        word = seed + golden * np.uint64(2 * (first + k))
        signs = _mix(word)
        turn = _mix(word + golden) & np.uint64(CHUNK - 1)
        at = np.uint64((k & 3) * 2 * CHUNK) + turn
        into, part = wide[at : at + np.uint64(CHUNK)], x[k * CHUNK : (k + 1) * CHUNK]
        for j in range(CHUNK):
            value = np.float64(part[j])
            into[j] += -value if (signs >> np.uint64(j)) & np.uint64(1) else value


@_inner
def _add_run(x, first, seed, wide):  # type: ignore[no-untyped-def]
    """Add a run whose first chunk is number `first`; the last is filled up with zeros."""
    _add_chunks(x, first, seed, wide)
    whole = x.size // CHUNK * CHUNK
    if whole < x.size:
        last = np.zeros(CHUNK, x.dtype)
        for j in range(x.size - whole):
            last[j] = x[whole + j]
        _add_chunks(last, first + whole // CHUNK, seed, wide)


@_inner
def _fold(wide, buckets):  # type: ignore[no-untyped-def]
    """Move the sums of `wide` to the buckets they belong to."""
    for i in range(0, wide.size, CHUNK):
        for j in range(CHUNK):
            buckets[j] += wide[i + j]
    wide[:] = 0.0


@_inner
def _finite_part(x, found, clean):  # type: ignore[no-untyped-def]
    """The run with 0 for what is not finite; that is counted, and the extremes of the rest."""
    for i in range(x.size):
        value = x[i]
        clean[i] = value if np.isfinite(value) else 0
        if np.isnan(value):
            found[NAN] += 1
        elif np.isinf(value):
            found[INF] += 1
    return clean[: x.size]


@_inner
def _add_extremes(bits, x, found):  # type: ignore[no-untyped-def]
    """Add those of a run whose elements are finite; `x` is any array of its dtype."""
    low, high, zeros = _extremes(bits)
    top = bits.dtype.type(2 ** (8 * bits.itemsize - 1) - 1)
    places = np.empty(2, bits.dtype)
    places[0] = low if low >= 0 else low ^ top
    places[1] = high if high >= 0 else high ^ top
    ends = places.view(x.dtype)
    found[LOW] = min(found[LOW], np.float64(ends[0]))
    found[HIGH] = max(found[HIGH], np.float64(ends[1]))
    found[ZERO] += zeros


@_inner
def _finite_extremes(x, bits, found):  # type: ignore[no-untyped-def]
    for i in range(x.size):
        if np.isfinite(x[i]):
            _add_extremes(bits[i : i + 1], x, found)


def describe_piece(x, bits, start, stop, seed, sketched, found):  # type: ignore[no-untyped-def]
    """Add the elements of x from `start`, the first of a chunk, to `stop` to what is `found`."""
    found[DESCRIBED_BY] = MARK
    wide = np.zeros(4 * 2 * CHUNK)
    clean = np.empty(RUN, x.dtype)
    for at in range(start, stop, RUN):
        end = min(at + RUN, stop)
        run = x[at:end]
        total, squares = _sums(run)
        if np.isfinite(squares):
            _add_extremes(bits[at:end], x, found)
        else:
            _finite_extremes(run, bits[at:end], found)
            run = _finite_part(run, found, clean)
            total, squares = _sums(run)
        found[TOTAL] += total
        found[SQUARES] += squares
        if sketched:
            _add_run(run, at // CHUNK, seed, wide)
            if ((at - start) // RUN) % FOLD == FOLD - 1 or end == stop:
                _fold(wide, found[SKETCH : SKETCH + CHUNK])


_describe = _inner(describe_piece)


def describe_pieces(x, bits, ends, seeds, sketched, found):  # type: ignore[no-untyped-def]
    """Describe tensors that lie end to end, each as if it lay alone."""
    start = 0
    for k in range(ends.size):
        stop = ends[k]
        size = stop - start
        _describe(x[start:stop], bits[start:stop], 0, size, seeds[k], sketched, found[k])
        start = stop


@_inner
def _bits(a, b):  # type: ignore[no-untyped-def]
    """What the bits of a run tell of two sides.

    Where they differ anywhere; the greatest magnitude; whether b has any; and the greatest distance
    on the number line, on which both zeros are one place.
    """
    kind = a.dtype.type
    top = kind(2 ** (8 * a.itemsize - 1) - 1)
    differ, most, any_b, ulps = kind(0), kind(0), kind(0), kind(0)
    for i in range(a.size):
        other = kind(a[i] ^ b[i])
        x, y = kind(a[i] & top), kind(b[i] & top)
        high, low = (x, y) if x > y else (y, x)
        apart = kind(high + low) if other > top else kind(high - low)
        differ, any_b = kind(differ | other), kind(any_b | y)
        most = high if high > most else most
        ulps = apart if apart > ulps else ulps
    return differ, most, any_b, ulps


@_inner
def _is_close(x, y, rtol, atol, equal):  # type: ignore[no-untyped-def]
    """numpy.isclose(x, y, rtol, atol, equal_nan=True), or equality; rounds as the dtype does."""
    within = (abs(x - y) <= atol + rtol * abs(y)) & np.isfinite(y)
    return (within & (not equal)) | (x == y) | (np.isnan(x) & np.isnan(y))


@_inner
def _wrong(a, b, rtol, atol, equal):  # type: ignore[no-untyped-def]
    """How many pairs of a run are not close; numbers and tolerances are finite."""
    close = np.int32(0)
    if equal:
        for i in range(a.size):
            close = np.int32(close + np.int32(a[i] == b[i]))
    else:
        for i in range(a.size):
            near = abs(a[i] - b[i]) <= atol + rtol * abs(b[i])
            close = np.int32(close + np.int32(near))
    return a.size - close


@numba.njit(**FLAGS, fastmath={"reassoc", "nsz", "contract"})
def _screen(a, b, limits):  # type: ignore[no-untyped-def]
    """The sums of squares of a run, and whether a pair of it may pass a greatest so far.

    Quotients are dear, so their products are asked: d / s > m leaves d >= m (1 - 8 eps) s, in
    whatever order and however small that is computed. A pair that is equal passes nothing.
    """
    rtol, atol = limits[0] * SHY, limits[1] * SHY
    greatest, rel, least_atol, least_rtol = limits[3], limits[4], limits[5], limits[6]
    flat, slope = limits[7], limits[8]
    hits = np.int64(0)
    diff_squares = squares = 0.0
    for i in range(a.size):
        y = np.float64(b[i])
        d, s = abs(np.float64(a[i]) - y), abs(y)
        diff_squares += d * d
        squares += y * y
        least = greatest
        bound = rel * s
        least = bound if bound < least else least
        bound = atol + least_rtol * s
        least = bound if bound < least else least
        bound = least_atol + rtol * s
        least = bound if bound < least else least
        bound = flat + slope * s
        least = bound if bound < least else least
        least = least if least > SMALLEST else SMALLEST
        hits += np.int64(d >= least)
    return diff_squares, squares, hits > 0


@_inner
def _thresholds(limits, best):  # type: ignore[no-untyped-def]
    """What `_screen` asks for, from the greatest so far."""
    rtol, atol, scale = limits[0], limits[1], limits[2]
    limits[3] = np.nextafter(best[ABS], np.inf)  # ties are common here
    limits[4] = min(best[REL], LARGEST) * SHY
    limits[5] = min(best[LEAST_ATOL], LARGEST) * SHY if rtol else limits[3]
    limits[6] = min(best[LEAST_RTOL], LARGEST) * SHY
    # The share of the allowance, and the factor, both rise with d / (s + something); what is
    # infinite already cannot be passed.
    limits[7] = limits[8] = LARGEST
    if best[USED] < np.inf:
        limits[7] = min(best[USED] * SHY * atol, LARGEST)
        limits[8] = min(best[USED] * SHY * rtol, LARGEST)
    if scale >= 0 and best[LEAST_FACTOR] < np.inf:  # below 0: no factor is asked for
        limits[7] = min(limits[7], best[LEAST_FACTOR] * SHY * scale)
        limits[8] = min(limits[8], best[LEAST_FACTOR] * SHY)


@_inner
def _greatest(values):  # type: ignore[no-untyped-def]
    """The greatest of numbers that are not negative; those that are count as 0."""
    bits = values.view(np.int64)
    most = np.zeros(1, np.int64)
    high = np.int64(0)
    for i in range(bits.size):
        high = bits[i] if bits[i] > high else high
    most[0] = high
    return most.view(np.float64)[0]


@_inner
def _quotients(a, b, limits, room):  # type: ignore[no-untyped-def]
    """The distances of a run of finite numbers, and what is made of them, into `room` [6, n]."""
    rtol, atol, scale = limits[0], limits[1], limits[2]
    diff, excess, rel = room[0], room[1], room[2]
    least_rtol, used, factor = room[3], room[4], room[5]
    for i in range(a.size):
        y = np.float64(b[i])
        d, s = abs(np.float64(a[i]) - y), abs(y)
        over = d - atol if d > atol else 0.0
        diff[i], excess[i] = d, d - rtol * s
        rel[i] = d / s if s > 0 else 0.0
        least_rtol[i] = over / s if over > 0 else 0.0
        share = d / (atol + rtol * s)
        used[i] = share if share == share else 0.0
        factor[i] = d / (s + scale) if d > 0 and scale >= 0 else 0.0


@_inner
def _records(a, b, start, limits, best, counts, room):  # type: ignore[no-untyped-def]
    """Take a run of finite numbers into the greatest so far."""
    _quotients(a, b, limits, room[:, : a.size])
    diff = room[0, : a.size]
    most = _greatest(diff)
    if most > best[ABS]:
        best[ABS] = most
        i = 0
        while diff[i] != most:
            i += 1
        counts[ABS_AT] = start + i
    if most == np.inf:  # of which less is left than is needed for a tolerance
        best[LEAST_ATOL] = best[LEAST_FACTOR] = np.inf
    best[LEAST_ATOL] = max(best[LEAST_ATOL], _greatest(room[1, : a.size]))
    if best[REL] >= 0:  # else b is zero throughout
        best[REL] = max(best[REL], _greatest(room[2, : a.size]))
    best[LEAST_RTOL] = max(best[LEAST_RTOL], _greatest(room[3, : a.size]))
    best[USED] = max(best[USED], _greatest(room[4, : a.size]))
    best[LEAST_FACTOR] = max(best[LEAST_FACTOR], _greatest(room[5, : a.size]))


@_inner
def _odd_run(a, b, counts, clean):  # type: ignore[no-untyped-def]
    """Count in a run in which something is not finite; put it in `clean` [2, n], those pairs as 0.

    A pair of zeros changes no other figure. Returns the place of the first finite pair, or -1.
    """
    first = -1
    for i in range(a.size):
        x, y = a[i], b[i]
        finite = np.isfinite(x) and np.isfinite(y)
        clean[0, i], clean[1, i] = (x, y) if finite else (0, 0)
        if finite:
            counts[PAIRS] += 1
            first = i if first < 0 else first
        elif np.isnan(x) and np.isnan(y):
            counts[NAN_EQUAL] += 1
        elif x != y:
            counts[NONFINITE] += 1
    return first


@_inner
def _add_wrong(a, b, start, rtol, atol, equal, finite, counts):  # type: ignore[no-untyped-def]
    """Count the pairs of a run that are not close."""
    if finite and np.isfinite(rtol) and np.isfinite(atol):
        wrong = _wrong(a, b, rtol, atol, equal)
    else:
        wrong = 0
        for i in range(a.size):
            wrong += not _is_close(a[i], b[i], rtol, atol, equal)
    if wrong and counts[FIRST_MISMATCH] < 0:
        i = 0
        while _is_close(a[i], b[i], rtol, atol, equal):
            i += 1
        counts[FIRST_MISMATCH] = start + i
    counts[MISMATCHES] += wrong


def compare_piece(a, b, a_bits, b_bits, start, rtol, atol, equal, limits, best, counts, ulps):  # type: ignore[no-untyped-def]
    """Add a piece of two tensors, which starts at element `start`, to what is known of them.

    `rtol` and `atol` are of the tensors' dtype; `limits` starts with rtol, atol and scale (-1: no
    factor is asked for) in float64, and has room for six more.
    """
    counts[COMPARED_BY] = MARK
    infinite = np.array([np.inf], a.dtype).view(a_bits.dtype)[0]
    room = np.empty((6, RUN))
    clean = np.empty((2, RUN), a.dtype)
    clean_bits = clean.view(a_bits.dtype)
    for low in range(0, a.size, RUN):
        x, y, at = a[low : low + RUN], b[low : low + RUN], start + low
        x_bits, y_bits = a_bits[low : low + RUN], b_bits[low : low + RUN]
        differ, most, any_b, far = _bits(x_bits, y_bits)
        finite = most < infinite
        if differ:
            if counts[FIRST_DIFFERENCE] < 0:
                i = 0
                while x_bits[i] == y_bits[i]:
                    i += 1
                counts[FIRST_DIFFERENCE] = at + i
            _add_wrong(x, y, at, rtol, atol, equal, finite, counts)
        first = 0
        if finite:
            counts[PAIRS] += x.size
        else:
            first = _odd_run(x, y, counts, clean)
            if first < 0:
                continue
            x, y = clean[0, : x.size], clean[1, : x.size]
            _, _, any_b, far = _bits(clean_bits[0, : x.size], clean_bits[1, : x.size])
        ulps[0] = max(ulps[0], np.uint64(far))
        if best[ABS] < 0:
            best[ABS] = 0.0
            counts[ABS_AT] = at + first
        if any_b:
            best[REL] = max(best[REL], 0.0)
        if not differ:
            best[REFERENCE_SQUARES] += _sums(y)[1]
            continue
        _thresholds(limits, best)
        apart, squares, record = _screen(x, y, limits)
        best[DIFF_SQUARES] += apart
        best[REFERENCE_SQUARES] += squares
        if record:
            _records(x, y, at, limits, best, counts, room)
