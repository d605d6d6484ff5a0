"""Where a difference lies: zeros, NaN, or a few rows of a tensor; and terms added to it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from harness.compare.axes import GATES, describe_index
from harness.explain.case import Array, Case, Cause, Side
from harness.explain.cells import no_flow
from harness.explain.stage import weight
from harness.explain.structure import axis_names
from harness.explain.trial import (
    SIDES,
    eps_words,
    figure,
    label,
    largest,
    other,
    own,
    wide,
)

SHOWN = 6  # numbers of a list in a sentence
MOST = 0.5  # a difference in more of the tensor than this is confined to nothing


def zero_gradient(case: Case) -> Cause | None:
    """A gradient that is zero on one side: all of it, rows of it, or its way through time."""
    for side in SIDES:
        mine, theirs = own(case, side), own(case, other(side))
        if mine.size == 0 or mine.all():
            continue
        if not mine.any():
            if case.gap() <= case.level:
                return None
            who = f"{label(case, other(side))} has up to {figure(largest(theirs))}"
            words = f"{label(case, side)} has no gradient at all where {who}: detached?"
            claim = f"{label(case, side)} has no gradient"
            sentence = f"{case.tensor}: {words}"
            return Cause("zero-gradient", sentence, 0.0, claim=claim, side=label(case, side))
        found = _zero_rows(case, side)
        if found:
            return found
    return no_flow(case) if case.tensor.startswith("backward/layer") else None


def zero(case: Case) -> Cause | None:
    """A tensor that is all zeros on one side, and no gradient (that is `zero_gradient`)."""
    for side in SIDES:
        theirs = own(case, other(side))
        if not own(case, side).any() and np.isfinite(theirs).all() and theirs.any():
            who = f"{label(case, other(side))} has up to {figure(largest(theirs))}"
            words = f"{case.tensor}: {label(case, side)} has nothing but zeros where {who}"
            name = label(case, side)
            return Cause("zero", words, 0.0, claim=f"{name} has zeros", side=name)
    return None


def _zero_rows(case: Case, side: Side) -> Cause | None:
    """Rows along an axis that are zero on one side and not on the other, the rest being equal."""
    mine, theirs = own(case, side), own(case, other(side))
    for axis, name in enumerate(axis_names(case)):
        rest = tuple(k for k in range(mine.ndim) if k != axis)
        blank = np.asarray(~np.any(mine, axis=rest) & np.any(theirs, axis=rest))
        if name == "token" and axis == 0:
            x = case.get("inputs/x", side)  # rows of other tokens have no gradient anyway
            blank &= True if x is None else np.isin(np.arange(len(blank)), x)
        if not blank.any() or mine.shape[axis] == 1 or mine.ndim < 2:
            continue
        shape = [1] * mine.ndim
        shape[axis] = -1
        left = case.settled(np.where(blank.reshape(shape), 0, theirs), mine)
        if left is None:
            continue
        where = _places(name, np.flatnonzero(blank), mine.shape[axis])
        words = f"{label(case, side)} has no gradient at {where}, the rest agrees {eps_words(left)}"
        if name == "token" and blank[0] and blank.sum() == 1:
            words += ": a padding row?"
        claim = f"{label(case, side)} has no gradient at some {name}s"
        return Cause("zero-gradient", f"{case.tensor}: {words}", left, claim=claim)
    return None


def of_tokens(case: Case) -> bool:
    """Whether a claim is of tokens, which other steps may not have read."""
    return case.asked.endswith("tokens")


def _places(name: str, places: Array, size: int) -> str:
    """Indices along an axis in words; a gate axis by gate and unit."""
    if name == "gate" and size % 4 == 0:
        width = size // 4
        gates, units = sorted({int(p) // width for p in places}), {int(p) % width for p in places}
        words = f"gate{'s' * (len(gates) > 1)} {', '.join(GATES[g] for g in gates)}"
        if len(units) <= min(SHOWN, width // 2):
            words += f", unit{'s' * (len(units) > 1)} {', '.join(map(str, sorted(units)))}"
        return words
    after = ""
    if name.startswith("axis "):  # what it counts is not known
        name, after = ("row", "") if name == "axis 0" else ("place", f" along {name}")
    if len(places) > 2 and int(places[-1]) - int(places[0]) == len(places) - 1:
        return f"{name}s {places[0]} to {places[-1]}{after}"
    some = [str(place) for place in places[:SHOWN]]
    if len(places) > SHOWN:
        words = f"{', '.join(some)} and {len(places) - SHOWN} more"
    else:
        words = " and ".join([", ".join(some[:-1]), some[-1]] if len(some) > 1 else some)
    return f"{name}{'s' * (len(places) > 1)} {words}{after}"


def missing_term(case: Case) -> Cause | None:
    """a - b is a multiple of a tensor that the trace knows."""
    if case.b.dtype.kind != "f" or case.b.size < 3:
        return None
    a, b = np.asarray(case.a, np.float64), np.asarray(case.b, np.float64)
    gap = a - b
    if not np.isfinite(gap).all():
        return None
    length = float(np.vdot(gap, gap))
    for words, term in _terms(case):
        square = float(np.vdot(term, term))
        along = float(np.vdot(gap, term))
        # What is left of the gap beside the term must be small before all of it is looked at.
        if not square or not math.isfinite(square) or along**2 < 0.9 * length * square:
            continue
        left = case.settled(b + along / square * term, case.a)
        if left is not None:
            share = along / square
            gap_words = f"{label(case, 'a')} - {label(case, 'b')} is"
            sentence = f"{case.tensor}: {gap_words} {figure(share)} {words} {eps_words(left)}"
            claim = f"{gap_words} {share:.3g} {words}"
            return Cause("missing-term", sentence, left, claim=claim)
    return None


def _terms(case: Case) -> Iterator[tuple[str, Array]]:
    """Tensors of the same shape that a formula may have one time too often or too rarely."""
    phase, _, rest = case.tensor.partition("/")
    rest = rest.removeprefix("clipped/")
    names = {
        "backward": (f"forward/{rest}",),
        "params": (f"grads/{rest}", f"update/clipped/{rest}"),
    }
    for name in names.get(phase, ()):
        found = wide(case.get(name))
        if found is not None and found.shape == case.b.shape:
            yield f"times {name}", found
    p = wide(case.before(rest))
    if p is None or p.shape != case.b.shape:
        return
    if phase == "params":
        yield "times the parameter before the step", p
    elif phase in ("grads", "update"):
        yield "times the sign of the parameter (L1 regularisation)", np.sign(p)


def nonfinite(case: Case) -> Cause | None:
    """NaN or infinity on one side: where, what the other side has, and from what it may come."""
    if case.b.dtype.kind != "f":
        return None
    bad = {side: ~np.isfinite(own(case, side)) for side in SIDES}
    alone = {side: bad[side] & ~bad[other(side)] for side in SIDES}
    side: Side = "a" if alone["a"].sum() >= alone["b"].sum() else "b"
    count = int(alone[side].sum())
    if not count:
        return None
    mine, theirs = own(case, side), own(case, other(side))
    index = tuple(int(i) for i in np.argwhere(alone[side])[0])
    where = describe_index(case.tensor, case.b.shape, index)
    words = f"{label(case, side)} has {figure(float(mine[index]))} at {where or 'the scalar'}"
    words += f" where {label(case, other(side))} has {figure(float(theirs[index]))}"
    if count > 1:
        words += f" ({count} of {mine.size} elements)"
    left = case.distance(np.where(alone[side], theirs, mine), theirs)
    if left <= case.level and count < mine.size:
        words += f"; the rest agrees {eps_words(left)}"
    origin = _origin(case, side)
    sentence = f"{case.tensor}: {words}{origin}"
    fits = left <= case.level
    return Cause(
        "nonfinite", sentence, left if fits else case.gap(), "likely" if origin else "hint"
    )


def _origin(case: Case, side: Side) -> str:
    """What made a number that is not finite, where a traced tensor tells; else nothing."""
    info = np.finfo(case.b.dtype)
    if case.tensor in ("forward/loss", "backward/logits"):
        logits = case.get("forward/logits", side)
        if logits is None or not logits.size or not np.isfinite(logits).all():
            return ""
        top, low = float(logits.max()), float((logits.max(axis=-1) - logits.min(axis=-1)).max())
        most = math.log(float(info.max))
        if top > most:
            return (
                f": the largest logit is {figure(top)}, and exp overflows beyond {figure(most)}; "
                "subtract the largest first"
            )
        if low > -math.log(float(info.smallest_subnormal)):
            return (
                f": logits are up to {figure(low)} apart, so a probability is 0, its log infinite"
            )
    finite = largest(own(case, other(side)))
    if finite > float(np.finfo(np.float16).max):
        return f": the other side reaches {figure(finite)}, beyond float16"
    return ""


def confined(case: Case) -> list[Cause]:
    """The few rows, timesteps, gates, units or tokens that a difference is confined to."""
    if case.b.size < 2:
        return []
    bad = _beyond(case)
    share = float(bad.mean())
    late = _late(case, bad)
    if not bad.any() or (share > MOST and not late):
        return []
    gap = case.gap()
    if bad.sum() == 1:
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        where = describe_index(case.tensor, case.b.shape, index)
        place = f"element {list(index)}" + (f" ({where})" if where != str(list(index)) else "")
        values = ", ".join(f"{label(case, s)} {own(case, s)[index]:.6g}" for s in SIDES)
        return [Cause("confined", f"{case.tensor}: only {place} differs: {values}", gap, "hint")]
    parts = [late] if late else [*_tokens(case, bad), *_slices(case, bad)]
    if not parts:
        return []
    count = f"differ: {int(bad.sum())} of {bad.size} elements"
    count += f", by up to {gap:.3g} eps" if math.isfinite(gap) else ""
    words = f"{case.tensor}: only {'; only '.join(parts)} ({count}){_looked_up(case, bad)}"
    return [Cause("confined", words, gap, "hint")]


def _looked_up(case: Case, bad: Array) -> str:
    """Which token was looked up where embedded tokens differ, and what stands there instead."""
    x = case.get("inputs/x")
    if case.tensor != "forward/embedding" or x is None or x.shape != bad.shape[:-1]:
        return ""
    spots = np.argwhere(bad.any(axis=-1))
    tokens = np.unique(np.asarray(x, np.int64)[tuple(spots.T)])
    at = tuple(spots[0])
    words = f"; there the token is {', '.join(map(str, tokens[:SHOWN]))}" + ", .." * (
        len(tokens) > SHOWN
    )
    for side in SIDES:
        table = weight(case, side, "embedding")
        if table is None or not 0 <= int(x[at]) < len(table):
            return words
        row, right = np.asarray(own(case, side)[at], np.float64), table[int(x[at])]
        if case.distance(row, np.asarray(right, np.float64)) > case.level:
            return f"{words}, and {label(case, side)} has {_instead(case, row, table, int(x[at]))}"
    return words


def _instead(case: Case, row: Array, table: Array, token: int) -> str:
    """What a row is that is not the token's own."""
    if not row.any():
        return "zeros"
    same = np.flatnonzero(np.abs(table - row).max(axis=1) <= case.level * case.eps * largest(table))
    if same.size:
        return f"the row of token {same[0]}"
    right = np.asarray(table[token], np.float64)
    times = float(row @ right) / float(right @ right) if right.any() else 0.0
    if case.distance(times * right, row) <= case.level:
        return f"{figure(times)} times its row"
    return "no token's row"


def _beyond(case: Case) -> Array:
    """Elements that differ by more than rounding."""
    with np.errstate(all="ignore"):
        a, b = np.asarray(case.a, np.float64), np.asarray(case.b, np.float64)
        allowed = case.level * case.eps * (np.abs(b) + max(largest(case.b), case.floor))
        same = (np.abs(a - b) <= allowed) | (a == b) | (np.isnan(a) & np.isnan(b))
    return np.asarray(~same)


def _late(case: Case, bad: Array) -> str:
    """Words for a difference that begins after the first timestep; nothing where it does not."""
    names = axis_names(case)
    if "timestep" not in names:
        return ""
    axis = names.index("timestep")
    rest = tuple(k for k in range(bad.ndim) if k != axis)
    hit = np.flatnonzero(bad.any(axis=rest))
    size = bad.shape[axis]
    if not hit.size or hit[0] == 0 or len(hit) != size - hit[0] or bad.mean() <= MOST:
        return ""
    return f"timesteps from {hit[0]} on"


def _slices(case: Case, bad: Array) -> Iterator[str]:
    """The slices along each axis that hold every difference, where they are few."""
    for axis, name in enumerate(axis_names(case)):
        size = bad.shape[axis]
        if name == "gate" and size % 4 == 0:
            split = bad.reshape(*bad.shape[:axis], 4, size // 4)
            gates = split.any(axis=tuple(k for k in range(split.ndim) if k != axis))
            if gates.sum() <= 2:
                letters = ", ".join(GATES[k] for k in np.flatnonzero(gates))
                yield f"gate{'s' * (int(gates.sum()) > 1)} {letters}"
            continue
        hit = bad.any(axis=tuple(k for k in range(bad.ndim) if k != axis))
        if size > 1 and hit.sum() <= max(1, size * MOST) and not _said(case, name):
            yield _places(name, np.flatnonzero(hit), size)


def _said(case: Case, name: str) -> bool:
    """Whether rows are tokens that `_tokens` speaks of."""
    return name == "token" and case.tensor.endswith("/embedding") and _some_tokens(case) is not None


def _some_tokens(case: Case) -> Array | None:
    return case.get("inputs/x") if case.b.ndim == 2 else None


def _tokens(case: Case, bad: Array) -> Iterator[str]:
    """Rows of the embedding by what the batch has of their tokens."""
    x = _some_tokens(case)
    if x is None or not case.tensor.endswith("/embedding"):
        return
    hit = np.asarray(bad.any(axis=1))
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
                yield (
                    words
                    if (hit == rows).all()
                    else f"{words} ({len(places)} of {int(rows.sum())})"
                )
                return
    if len(places) <= max(1, len(hit) * MOST):
        yield _places("token", places, len(hit))
