"""Rows that stand in another order, found by what each row is."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from harness.explain.case import Array
from harness.explain.fitted import Value
from harness.explain.scene import Edit, Scene
from harness.models.graph import node


def reordered(scene: Scene, mine: Array, value: Value) -> Iterator[Edit]:
    """The rows along an axis in another order, found by what each row is."""
    base = value(scene.base)
    if base is None or base.shape != mine.shape:
        return
    for axis, word in enumerate(scene.axes):
        if mine.shape[axis] < 3:
            continue
        order = row_order(mine, base, axis)
        if order is not None:
            name = word if isinstance(word, str) else word.word
            some = ", ".join(map(str, order[:8])) + (", .." if len(order) > 8 else "")
            made = node("reordered", scene.base, axis=axis, order=order)
            bits = 10 + 0.5 * len(order)
            yield Edit("permuted-rows", f"has the {name}s in the order {some}", made, bits, 0)


def row_order(mine: Array, base: Array, axis: int) -> tuple[int, ...] | None:
    """The order in which rows of `base` sort like those of `mine`, if only one fits.

    Rows are told apart by their product with one random vector.
    """
    marks = []
    for x in (mine, base):
        flat = np.asarray(np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1), np.float64)
        weights = np.random.default_rng(0).standard_normal(flat.shape[1])
        with np.errstate(all="ignore"):
            marks.append(flat @ weights)
    if not all(np.isfinite(m).all() for m in marks):
        return None
    by_mine, by_base = np.argsort(marks[0]), np.argsort(marks[1])
    gaps = np.abs(marks[0][by_mine] - marks[1][by_base])
    if gaps.max() > 0.01 * max(float(np.abs(marks[1]).max()), math.ulp(1.0)):
        return None
    order = np.empty(len(by_mine), np.int64)
    order[by_mine] = by_base
    return None if np.array_equal(order, np.arange(len(order))) else tuple(map(int, order))
