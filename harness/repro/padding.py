"""Numbers of a convolution's window, as frameworks without a word for them take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def each(value: Any, axes: int) -> tuple[int, ...]:
    """A number for each spatial axis."""
    return tuple(value) if isinstance(value, tuple | list) else (value,) * axes


def same_padding(
    shape: Sequence[int], size: Sequence[int], stride: Any, dilation: Any = 1
) -> list[tuple[int, int]]:
    """How many zeros TensorFlow's "same" puts before and after each spatial axis."""
    axes, found = len(shape), []
    for n, k, s, d in zip(shape, size, each(stride, axes), each(dilation, axes), strict=True):
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        found.append((total // 2, total - total // 2))
    return found


def pairs(
    shape: Sequence[int], size: Sequence[int], stride: Any, padding: Any, dilation: Any = 1
) -> list[tuple[int, int]]:
    """How many zeros any padding puts before and after each spatial axis."""
    axes = len(shape)
    if padding == "same":
        return same_padding(shape, size, stride, dilation)
    if padding == "valid":
        return [(0, 0)] * axes
    if padding == "even":
        reach = zip(size, each(dilation, axes), strict=True)
        return [((k - 1) * d // 2,) * 2 for k, d in reach]
    return [(p, p) for p in each(padding, axes)]
