"""Edits that hold in one part of a tensor, where it differs in that part alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from harness.explain.case import Array, Side
from harness.explain.fitted import fitted_edits
from harness.explain.say import places_words
from harness.explain.scene import Edit, Scene
from harness.explain.trial import Trial, largest, own
from harness.models.graph import Node, below, node


def edits_of_parts(
    trial: Trial, side: Side, scene: Scene, plain: list[Edit]
) -> Iterator[list[Edit]]:
    """The edits of `plain`, and those with fitted numbers, in one part after another.

    A part is the places of some tokens, or a few places along one axis or two.
    """
    base, mine = scene.base, own(trial.case, side)
    usual = trial.value(side, base)
    if usual is None or mine.dtype.kind != "f":
        return
    case = trial.case
    with np.errstate(all="ignore"):
        scale = max(largest(usual), case.floor)
        bad = ~(np.abs(mine - usual) <= case.level * case.eps * (np.abs(usual) + scale))
    for part in (
        _token_part(trial, base, bad),
        _axis_part(trial, bad, 1),
        _axis_part(trial, bad, 2),
    ):
        if part is not None:
            only = np.where(part.at, mine, np.nan)
            fitted = fitted_edits(scene, only, partial(trial.value, side))
            yield [_within(part, base, edit) for edit in [*plain, *fitted]]


def _within(part: _Part, base: Node, edit: Edit) -> Edit:
    """An edit in one part of a tensor alone."""
    words = f"{edit.words.removesuffix(' in every element')}, {part.words} alone"
    return edit._replace(value=part.put(base, edit.value), words=words, bits=edit.bits + 6)


class _Part(NamedTuple):
    """A part of a tensor: put(stage, edit) has the edit there alone; `at` is where that is."""

    put: Callable[[Node, Node], Node]
    at: Array
    words: str


def _token_part(trial: Trial, base: Node, bad: Array) -> _Part | None:
    """The places of some tokens, where looked-up rows differ at all of them and nowhere else."""
    look_up = [x for x in below(base) if x.op == "embed"]
    tokens = trial.value_of("b", look_up[0].inputs[1]) if look_up else None
    if tokens is None or tokens.shape != bad.shape[:-1]:
        return None
    hit = np.asarray(bad.any(axis=-1))
    which = np.unique(tokens[hit])
    if not which.size or np.isin(tokens, which).sum() != hit.sum():
        return None
    named = tuple(map(int, which))
    return _Part(
        lambda x, y: node("where_token", x, y, look_up[0].inputs[1], which=named),
        np.broadcast_to(hit[..., None], bad.shape),
        f"at token{'s' * (len(named) > 1)} {', '.join(map(str, named[:6]))}",
    )


def _axis_part(trial: Trial, bad: Array, most: int) -> _Part | None:
    """The fewest places along one axis, or along two, that hold all of a difference."""
    hits = [np.flatnonzero(bad.any(axis=tuple({*range(bad.ndim)} - {k}))) for k in range(bad.ndim)]
    few = sorted((hit.size / bad.shape[k], k) for k, hit in enumerate(hits))
    axes = [axis for share, axis in few if 0 < share < 1][:most]
    if len(axes) < most:
        return None
    at, names = np.ones(bad.shape, bool), trial.scene(node("other")).axes
    for axis in axes:
        here = np.zeros(bad.shape[axis], bool)
        here[hits[axis]] = True
        at &= here.reshape([-1 if k == axis else 1 for k in range(bad.ndim)])

    def put(x: Node, y: Node) -> Node:
        for axis in axes:
            y = node("chosen", x, y, axis=axis, places=tuple(map(int, hits[axis])))
        return y

    words = [places_words(names[axis], hits[axis], bad.shape[axis]) for axis in sorted(axes)]
    return _Part(put, at, f"at {', '.join(words)}")
