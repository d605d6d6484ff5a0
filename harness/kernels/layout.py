"""Where the kernels keep their figures, in plain arrays: names for the places."""

from __future__ import annotations

from zlib import crc32

RUN = 2048  # elements worked on at once: what is made of them stays in the first cache
CHUNK = 64  # elements and sums of a sketch
FOLD = 32  # runs whose sketch is added up by itself: shorter sums round less

# The constants of splitmix64.
GOLDEN, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB

# Of one tensor: figures, behind which its sketch stands. Counts are exact below 2^53.
LOW, HIGH, TOTAL, SQUARES, NAN, INF, ZERO = range(7)
SKETCH = 7
DESCRIBED_BY = SKETCH + CHUNK

# Of two: counts and places (-1: none), and the greatest and sums.
MISMATCHES, FIRST_MISMATCH, FIRST_DIFFERENCE, ABS_AT, NAN_EQUAL, NONFINITE, PAIRS = range(7)
COMPARED_BY = 7
ABS, REL, LEAST_RTOL, LEAST_ATOL, LEAST_FACTOR, USED, DIFF_SQUARES, REFERENCE_SQUARES = range(8)

# Constants are frozen into machine code, which may be older than this page: so the code says at the
# places DESCRIBED_BY and COMPARED_BY which constants it was made of.
MARK = crc32(repr([(name, value) for name, value in globals().items() if name.isupper()]).encode())
