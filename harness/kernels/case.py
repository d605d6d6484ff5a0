"""A small case on which compiled passes prove themselves before a process trusts them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.kernels.layout import CHUNK, RUN

SIZE = 3 * RUN + CHUNK + 7  # runs that differ, that are not finite, that are equal, and a short one


def known_pair(dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Two arrays [SIZE] of which every figure is another number, found at another place."""
    info, place = np.finfo(dtype), np.arange(SIZE)
    b = ((place * 37 % 101 - 50) / 8).astype(dtype)  # zeros among them
    a = b.copy()
    near = (place % 3 == 1) & ((place < 2 * RUN) | (place >= 3 * RUN))
    a[near] += (b * (place % 7) * info.eps).astype(dtype)[near]
    tiny, inf, nan = info.smallest_subnormal, np.inf, np.nan
    for at, x, y in (
        (0, 0.0, -0.0),  # the first bits that differ
        (5, 1.0 + info.eps, 1.0),
        (700, -2.0, 2.0),  # the most numbers between
        (900, 0.625, 0.125),  # the greatest part of its reference
        (1100, 1100.0, 1000.0),  # the greatest distance, and once more
        (1300, 1100.0, 1000.0),
        (RUN + 1, nan, nan),
        (RUN + 2, nan, nan),
        (RUN + 3, -inf, -inf),
        (RUN + 4, nan, 1.0),
        (RUN + 5, 1.0, inf),
        (RUN + 6, inf, -inf),
        (RUN + 7, 5 * tiny, 3 * tiny),
        (RUN + 9, -tiny, tiny),
        (3 * RUN + CHUNK + 2, 0.0, tiny),
    ):
        a[at], b[at] = x, y
    return a, b
