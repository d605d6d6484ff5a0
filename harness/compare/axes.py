"""Where an element lies, in words: "timestep 3, gate f, unit 17"."""

from __future__ import annotations

from harness.models.graph import Axis, Blocks


def describe_index(axes: tuple[Axis, ...], shape: tuple[int, ...], index: tuple[int, ...]) -> str:
    """`index` in words by what the axes count; "" for a scalar, "[2, 3]" where that is unknown."""
    if not index:
        return ""
    if len(axes) != len(index):
        return str(list(index))
    words = []
    for axis, size, i in zip(axes, shape, index, strict=True):
        if isinstance(axis, Blocks):
            if size % len(axis.names):
                return str(list(index))
            place, unit = divmod(i, size // len(axis.names))
            words.append(f"{axis.word} {axis.names[place]}, {axis.of} {unit}")
        else:
            words.append(f"{axis} {i}")
    return ", ".join(words)
