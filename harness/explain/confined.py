"""Where a difference lies, where nothing says why: rows, timesteps, blocks, tokens, NaN."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from harness.compare.axes import describe_index
from harness.explain.case import Array, Case, Cause, Side
from harness.explain.say import eps_words, figure, places_words
from harness.explain.trial import FAILURES, SIDES, Trial, largest, own
from harness.models.graph import TIME, Axis, Blocks, Node, below

MOST = 0.5  # a difference in more of the tensor than this is confined to nothing


def hints(trial: Trial) -> list[Cause]:
    """What can be said of the place of a difference."""
    found = nonfinite(trial) or rate(trial)
    return [found] if found else confined(trial)


def rate(trial: Trial) -> Cause | None:
    """A learning rate that a script sets, and no stage of a trace makes: what each side took."""
    case = trial.case
    stage = case.graph.value(case.tensor) if case.graph else None
    if not case.tensor.startswith("update/learning_rate") or {case.a.size, case.b.size} != {1}:
        return None
    x, y = (float(own(case, side).reshape(())) for side in SIDES)
    if (stage is not None and stage.op != "given") or not math.isfinite(x) or not y:
        return None
    words = f"{case.labels[0]} takes {figure(x)}, {figure(x / y)} times the {figure(y)} of "
    words += case.labels[1]
    mine, theirs = (case.lookup(side, case.step - 1, case.tensor) for side in SIDES)
    if (
        mine is not None
        and theirs is not None
        and theirs.size == 1
        and np.array_equal(mine, theirs)
    ):
        words += (
            f"; both took {figure(float(theirs.reshape(())))} at step {case.step - 1}: compare "
            "how the schedules change it there"
        )
    return Cause("learning-rate", f"{case.tensor}: {words}", case.gap(), "likely")


def nonfinite(trial: Trial) -> Cause | None:
    """NaN or infinity on one side: where, what the other side has, and from what it may come."""
    case = trial.case
    if case.b.dtype.kind != "f":
        return None
    bad = {side: ~np.isfinite(own(case, side)) for side in SIDES}
    alone = {"a": bad["a"] & ~bad["b"], "b": bad["b"] & ~bad["a"]}
    side: Side = "a" if alone["a"].sum() >= alone["b"].sum() else "b"
    count = int(alone[side].sum())
    if not count:
        return None
    mine, theirs = own(case, side), own(case, "b" if side == "a" else "a")
    label, other = case.labels if side == "a" else case.labels[::-1]
    index = tuple(int(i) for i in np.argwhere(alone[side])[0])
    where = describe_index(case.axes, case.b.shape, index)
    words = f"{label} has {figure(float(mine[index]))} at {where or 'the scalar'}"
    words += f" where {other} has {figure(float(theirs[index]))}"
    if count > 1:
        words += f" ({count} of {mine.size} elements)"
    left = case.distance(np.where(alone[side], theirs, mine), theirs)
    if left <= case.level and count < mine.size:
        words += f"; the rest agrees {eps_words(left)}"
    origin = _origin(trial, side, index)
    fits = left <= case.level
    return Cause(
        "nonfinite",
        f"{case.tensor}: {words}{origin}",
        left if fits else case.gap(),
        "likely" if origin else "hint",
    )


def _origin(trial: Trial, side: Side, index: tuple[int, ...]) -> str:
    """What the stage gives in float64 from the same inputs, where that is finite."""
    case = trial.case
    stage = case.graph.value(case.tensor) if case.graph else None
    if stage is not None and stage.op != "given":
        try:
            made = np.asarray(trial.values(side).value(stage))
        except FAILURES:
            made = np.zeros(())
        if made.shape == case.b.shape and np.isfinite(made[index]):
            words = f": in float64 the same inputs give {figure(float(made[index]))}, so what "
            if np.isnan(own(case, side)[index]):
                return words + "is no number arises on the way (as 0 / 0, or infinity - infinity)"
            words += f"leaves the range of {case.b.dtype} is a number on the way"
            return words + " (as exp of a large one)"
    finite = largest(own(case, "b" if side == "a" else "a"))
    if finite > float(np.finfo(np.float16).max):
        return f": the other side reaches {figure(finite)}, beyond float16"
    return ""


def confined(trial: Trial) -> list[Cause]:
    """The few rows, timesteps, blocks, units or tokens that a difference is confined to."""
    case = trial.case
    if case.b.size < 2:
        return []
    bad = _beyond(case)
    share = float(bad.mean())
    axes = trial.scene(Node("other", (), ())).axes
    late = _late(axes, bad)
    if not bad.any() or (share > MOST and not late):
        return []
    gap = case.gap()
    if bad.sum() == 1:
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        where = describe_index(case.axes, case.b.shape, index)
        place = f"element {list(index)}" + (f" ({where})" if where != str(list(index)) else "")
        values = ", ".join(
            f"{label} {own(case, s)[index]:.6g}"
            for s, label in zip(SIDES, case.labels, strict=True)
        )
        return [Cause("confined", f"{case.tensor}: only {place} differs: {values}", gap, "hint")]
    parts = [late] if late else [*_tokens(trial, bad, axes), *_slices(trial, bad, axes)]
    if not parts:
        return []
    count = f"differ: {int(bad.sum())} of {bad.size} elements"
    count += f", by up to {gap:.3g} eps" if math.isfinite(gap) else ""
    words = f"{case.tensor}: only {'; only '.join(parts)} ({count})"
    return [Cause("confined", words, gap, "hint")]


def _beyond(case: Case) -> Array:
    """Elements that differ by more than rounding."""
    with np.errstate(all="ignore"):
        a, b = np.asarray(case.a, np.float64), np.asarray(case.b, np.float64)
        allowed = case.level * case.eps * (np.abs(b) + max(largest(case.b), case.floor))
        same = (np.abs(a - b) <= allowed) | (a == b) | (np.isnan(a) & np.isnan(b))
    return np.asarray(~same)


def _late(axes: tuple[Axis, ...], bad: Array) -> str:
    """Words for a difference that begins after the first timestep; nothing where it does not."""
    if TIME not in axes:
        return ""
    axis = axes.index(TIME)
    rest = tuple(k for k in range(bad.ndim) if k != axis)
    hit = np.flatnonzero(bad.any(axis=rest))
    size = bad.shape[axis]
    if not hit.size or hit[0] == 0 or len(hit) != size - hit[0] or bad.mean() <= MOST:
        return ""
    return f"timesteps from {hit[0]} on"


def _slices(trial: Trial, bad: Array, axes: tuple[Axis, ...]) -> Iterator[str]:
    """The slices along each axis that hold every difference, where they are few."""
    said = tokens_of(trial) is not None
    for axis, word in enumerate(axes):
        size = bad.shape[axis]
        if isinstance(word, Blocks) and size % len(word.names) == 0:
            parts = len(word.names)
            split = bad.reshape(*bad.shape[:axis], parts, size // parts, *bad.shape[axis + 1 :])
            hit = split.any(axis=tuple(k for k in range(split.ndim) if k != axis))
            if hit.sum() * 2 <= parts:
                letters = ", ".join(word.names[k] for k in np.flatnonzero(hit))
                yield f"{word.word}{'s' * (int(hit.sum()) > 1)} {letters}"
            continue
        hit = bad.any(axis=tuple(k for k in range(bad.ndim) if k != axis))
        if size > 1 and hit.sum() <= max(1, size * MOST) and not (said and axis == 0):
            yield places_words(word, np.flatnonzero(hit), size)


def tokens_of(trial: Trial) -> Array | None:
    """The tokens that rows of a table are looked up by, where the tensor is one of such rows."""
    case = trial.case
    stage = case.graph.value(case.tensor) if case.graph else None
    look_up = [x for x in below(stage) if x.op in ("embed", "embed_backward")] if stage else []
    if not look_up:
        return None
    try:
        return np.asarray(trial.values("b").value(look_up[0].inputs[1]))
    except FAILURES:
        return None


def _tokens(trial: Trial, bad: Array, axes: tuple[Axis, ...]) -> Iterator[str]:
    """Rows of a table by what the batch has of their tokens; or the tokens that were looked up."""
    x = tokens_of(trial)
    if x is None:
        return
    if x.shape == bad.shape[:-1]:
        spots = np.argwhere(bad.any(axis=-1))
        tokens = np.unique(np.asarray(x, np.int64)[tuple(spots.T)])
        if len(tokens) * 2 <= len(np.unique(x)):
            yield f"where the token is {places_words('token', tokens, 1 << 30)[6:].strip()}"
        return
    hit = np.asarray(bad.any(axis=tuple(range(1, bad.ndim))))
    counts = np.bincount(np.asarray(x, np.int64).reshape(-1), minlength=len(hit))[: len(hit)]
    known = (
        ("tokens that occur more than once in the batch", counts > 1),
        ("tokens of the batch", counts > 0),
        ("tokens that are not in the batch", counts == 0),
    )
    places = np.flatnonzero(hit)
    if len(places) > 1:
        for words, rows in known:
            if not (hit & ~rows).any():
                whole = (hit == rows).all()
                yield words if whole else f"{words} ({len(places)} of {int(rows.sum())})"
                return
    if len(places) <= max(1, len(hit) * MOST):
        yield places_words(axes[0], places, len(hit))
