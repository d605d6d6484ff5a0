"""The points of a sweep: values of settings, on a grid or drawn from it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

import numpy as np

from harness.errors import HarnessError

Point = tuple[tuple[str, str], ...]  # settings and their values, as texts
MOST_VALUES = 1_000_000


def parse_axis(text: str) -> tuple[str, tuple[str, ...]]:
    """The setting and its values, of "lr=0.01:1.98:0.01" (both ends included) or "lr=0.1,1,10".

    Values are decimal numbers, so that 0.01:1.98:0.01 is what it says. Raises HarnessError.
    """
    name, equals, values = text.partition("=")
    if not equals or not name or not values:
        raise HarnessError(f"--grid {text}: give NAME=FIRST:LAST:STEP, or NAME=VALUE,VALUE")
    if ":" not in values:
        return name, tuple(value.strip() for value in values.split(","))
    try:
        first, last, step = (Decimal(part) for part in values.split(":"))
        count = int((last - first) / step) + 1
    except (InvalidOperation, ValueError, ZeroDivisionError, OverflowError):
        raise HarnessError(
            f"--grid {text}: {values!r} is no FIRST:LAST:STEP of numbers, such as 0.01:1.98:0.01"
        ) from None
    if not 1 <= count <= MOST_VALUES:
        raise HarnessError(f"--grid {text}: {count} values: LAST must come after FIRST, by STEPs")
    return name, tuple(_number(first + k * step) for k in range(count))


def _number(value: Decimal) -> str:
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def points(axes: Sequence[tuple[str, Sequence[str]]], drawn: int | None, seed: int) -> list[Point]:
    """Every point of the grid, the last setting changing first; or `drawn` of them by `seed`.

    Those that are drawn keep the order of the grid. Raises HarnessError for a setting given twice.
    """
    names = [name for name, _ in axes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise HarnessError(f"--grid {twice}=..: given twice")
    sizes = [len(values) for _, values in axes]
    total = int(np.prod(sizes, dtype=object))
    if drawn is None or drawn >= total:
        if total > MOST_VALUES:
            raise HarnessError(f"{total:,} points: draw some of them (--random N)")
        return [
            tuple(zip(names, row, strict=True)) for row in itertools.product(*dict(axes).values())
        ]
    if drawn < 1:
        raise HarnessError(f"--random {drawn}: give a number of points from 1 up")
    chosen: set[int] = set()
    draw = np.random.Generator(np.random.PCG64(seed))
    while len(chosen) < drawn:
        chosen.add(int(draw.integers(total)))
    found = []
    for place in sorted(chosen):
        at = np.unravel_index(place, sizes)
        found.append(tuple((n, v[int(k)]) for (n, v), k in zip(axes, at, strict=True)))
    return found
