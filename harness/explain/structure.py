"""Generic causes of order: a tensor that is the other's, permuted, shifted, stale or blanked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import permutations
from typing import NamedTuple

import numpy as np

from harness.compare.axes import AXES
from harness.explain.case import Array, Case, Cause, Side
from harness.explain.stage import stage, usual, weight
from harness.explain.trial import (
    ALL,
    SIDES,
    Guess,
    count,
    eps_words,
    label,
    other,
    own,
    parameter_names,
    tell,
    wide,
)

MOST_AXES = 4  # permutations of more axes are not tried


class Way(NamedTuple):
    """A way to make side a's tensor of side b's: in words, and made."""

    words: str
    value: Array


def axis_names(case: Case) -> tuple[str, ...]:
    """What the axes of the tensor count; plain "axis 0" where its name is not known."""
    names = next((axes for glob, axes in AXES if fnmatchcase(case.tensor, glob)), ())
    if len(names) == case.b.ndim:
        return names
    return tuple(f"axis {k}" for k in range(case.b.ndim))


def best_way(case: Case, name: str, ways: Iterator[Way]) -> Cause | None:
    """The way that leaves least between the sides."""
    best: Cause | None = None
    for words, value in ways:
        count(case, 1)
        left = case.settled(value, case.a)
        if left is not None and (best is None or left < best.residual_eps):
            sentence = f"{case.tensor}: {label(case, 'a')} is {label(case, 'b')} {words}"
            claim = f"{label(case, 'a')} is {label(case, 'b')} {words}"
            best = Cause(name, f"{sentence} {eps_words(left)}", left, claim=claim)
    return best


def transposed(case: Case) -> Cause | None:
    """Axes permuted on one side: transposed, or read in the order of other axes."""
    found = best_way(case, "transposed", _axis_orders(case))
    if found or not case.tensor.startswith("forward/"):
        return found
    return tell(case, "transposed", _transposed_products(case))


def _axis_orders(case: Case) -> Iterator[Way]:
    b = case.b
    if not 2 <= b.ndim <= MOST_AXES or sum(n > 1 for n in b.shape) < 2:
        return
    for order in permutations(range(b.ndim)):
        if order == tuple(range(b.ndim)):
            continue
        turned = b.transpose(order)
        axes = ", ".join(map(str, order))
        swap = ": batch-major numbers taken for time-major?" if order[:2] == (1, 0) else ""
        if turned.shape == b.shape:
            yield Way(f"with its axes permuted ({axes}){swap}", turned)
            continue
        read = f"permuted to axes ({axes}) and then read in the old shape"
        yield Way(read + swap, turned.reshape(b.shape))
        shape = tuple(b.shape[k] for k in order)
        read = f"read as {list(shape)} and then permuted to {list(b.shape)}"
        yield Way(read + swap, b.reshape(shape).transpose(np.argsort(order)))


def _transposed_products(case: Case) -> list[Guess]:
    """A product with its weights transposed, or read in the layout of the transposed ones."""

    def make(place: int, way: int) -> Guess:
        def value(side: Side, rows: slice) -> Array | None:
            made = stage(case, side)
            if made is None or place >= len(made.terms):
                return None
            if not way:
                return usual(case, side, rows)
            terms, w = list(made.terms), made.terms[place].right
            read = (w.T.reshape(w.shape), w.reshape(w.T.shape).T)[way - 1]
            terms[place] = terms[place]._replace(right=read)
            return made._replace(terms=tuple(terms)).value(rows)

        words = ("", "transposes", "reads in transposed layout")[way]
        which = ("input", "recurrent")[place] if case.tensor.endswith("/gates") else "output"
        return Guess(f"{words} the {which} weights" if way else "does not", value)

    return [make(0, 0), *(make(place, way) for place in (0, 1) for way in (1, 2))]


def shift(case: Case) -> Cause | None:
    """One side is the other moved by one along an axis, or took its neighbour's row."""
    found: Cause | None = None
    names = axis_names(case)
    for axis in range(case.b.ndim):
        for by in (1, -1):
            left = _shifted(case, axis, by)
            if left is not None and (found is None or left < found.residual_eps):
                where = names[axis] + (" (axis -1)" if names[axis] == "gate" else "")
                words = f"{label(case, 'a')} is {label(case, 'b')} moved by {by:+d} {where}"
                sentence = f"{case.tensor}: {words} {eps_words(left)}"
                found = Cause("shift", sentence, left, claim=words)
    if found is None and case.tensor == "inputs/y":
        found = _targets(case)
    if found is None and case.tensor == "forward/embedding":
        found = tell(case, "shift", _row_guesses(case))
    return found


def _shifted(case: Case, axis: int, by: int) -> float | None:
    """What remains once side b is moved; the edge, which may hold anything, is left out."""
    size = case.b.shape[axis]
    if size < 2:
        return None
    to, source = [ALL] * case.b.ndim, [ALL] * case.b.ndim
    to[axis] = slice(1, None) if by > 0 else slice(None, -1)
    source[axis] = slice(None, -1) if by > 0 else slice(1, None)
    x, y = case.b[tuple(source)], case.a[tuple(to)]
    # Few or equal elements fit by chance: small integers and booleans above all.
    few = 2 if case.b.dtype.kind == "f" else 8
    sample = y.reshape(-1)[: 1 << 12]
    if y.size < few or (np.unique(sample).size < min(3, few) and case.b.dtype.kind != "b"):
        return None
    if case.b.dtype.kind == "b" and (y.size < 16 or y.all() or not y.any()):
        return None
    return case.settled(x, y)


def _targets(case: Case) -> Cause | None:
    """Targets that are the inputs themselves."""
    for side in SIDES:
        x = case.get("inputs/x", side)
        if x is not None and x.shape == case.b.shape and case.settled(x, own(case, side)) == 0:
            words = f"the targets of {label(case, side)} are its inputs, not the tokens after them"
            return Cause("shift", f"inputs/y: {words}", 0.0, claim=words)
    return None


def _row_guesses(case: Case) -> list[Guess]:
    """Embedding rows of each token, of the token before or of the token after."""

    def make(by: int) -> Guess:
        def value(side: Side, rows: slice) -> Array | None:
            table, x = weight(case, side, "embedding"), case.get("inputs/x", side)
            if table is None or x is None:
                return None
            return np.asarray(table[(x[rows].astype(np.int64) + by) % len(table)])

        return Guess(f"takes embedding row x{by:+d}" if by else "takes embedding row x", value)

    return [make(0), make(1), make(-1)]


def stale(case: Case) -> Cause | None:
    """One side still has the value of the step before, or computed with its weights."""
    sides: tuple[Side, ...] = ("a",) if case.off else SIDES
    for side in sides:
        found = _behind(case, side)
        if found:
            return found
    for side in sides:
        ahead = case.made(case.tensor, other(side), -1)
        left = (
            None
            if ahead is None or not _moves(case, side)
            else case.settled(ahead, own(case, side))
        )
        if left is not None:
            mine, theirs = label(case, side), label(case, other(side))
            words = f"{mine} already has what {theirs} has at the step after"
            sentence = f"{case.tensor}: {words} {eps_words(left)}"
            return Cause("stale", sentence, left, claim=words)
    if case.step > 1 and case.tensor.startswith("forward/") and stage(case, "b"):
        return tell(case, "stale", _old_weights(case))
    return None


def _behind(case: Case, side: Side) -> Cause | None:
    """A side that has what it, or the other, had at the step before."""
    mine, name = own(case, side), label(case, side)
    for of in (side, other(side)):
        old = _last(case, of)
        # A learning rate may well stay: it is stale only where it moves, a step behind.
        if case.tensor == "update/learning_rate" and (of == side or not _moves(case, side)):
            continue
        left = None if old is None or not old.any() else case.settled(old, mine)
        if left is None or not _moves(case, other(side)):
            continue
        words = f"{name} has the value of the step before"
        if case.tensor.startswith("params/") and of == side:
            words = f"{name} does not move it: it is as it was before the step"
            if all(_unmoved(case, side, one) for one in parameter_names(case)):
                words = f"{name} does not apply the step: no parameter moves"
        elif of != side:
            words = f"{name} has what {label(case, of)} had at the step before"
        sentence = f"{case.tensor}: {words} {eps_words(left)}"
        claim = words if case.tensor.startswith("params/") else f"{name} is a step behind"
        return Cause("stale", sentence, left, claim=claim)
    return None


def _unmoved(case: Case, side: Side, name: str) -> bool:
    """Whether a parameter is, to the bit, what it was before the step."""
    before, after = case.before(name, side), case.made(f"params/{name}", side, 0)
    return before is not None and after is not None and np.array_equal(before, after)


def still(case: Case) -> bool:
    """Whether a tensor does not move from step to step, so that being late cannot show."""
    return first_step(case) or not (_moves(case, "a") and _moves(case, "b"))


def first_step(case: Case) -> bool:
    """Whether nothing came before this step."""
    return case.made(case.tensor, "b", 1) is None


def _last(case: Case, side: Side) -> Array | None:
    """The tensor at the step before; of a parameter also before the first step."""
    if case.tensor.startswith("params/"):
        return case.before(case.tensor.removeprefix("params/"), side)
    return case.made(case.tensor, side, 1)


def _moves(case: Case, side: Side) -> bool:
    """Whether the tensor changed on this side since the step before, where that is traced."""
    old = _last(case, side)
    return old is None or case.distance(old, own(case, side)) > case.level


def _old_weights(case: Case) -> list[Guess]:
    def make(back: int) -> Guess:
        def value(side: Side, rows: slice) -> Array | None:
            made = stage(case, side, back)
            if made is None or not back:
                return usual(case, side, rows)
            return made.value(rows)

        return Guess(("uses the new weights", "uses the weights of the step before")[back], value)

    return [make(0), make(1)]


def accumulated(case: Case) -> Cause | None:
    """A gradient to which that of the step before was added."""
    if case.b.dtype.kind != "f":
        return None
    for side in SIDES:
        for of in (side, other(side)):
            old = case.made(case.tensor, of, 1)
            if old is None or old.shape != case.b.shape or not old.any():
                continue
            mine, fresh = own(case, side), wide(own(case, other(side)))
            ways = {"plus": fresh + old, "averaged with": (fresh + old) / 2}
            for words, value in ways.items():
                left = case.settled(value, mine)
                if left is not None:
                    words = (
                        f"{label(case, side)} is {label(case, other(side))} {words} the value of"
                    )
                    sentence = f"{case.tensor}: {words} step {case.step - 1} {eps_words(left)}"
                    sentence += ": gradients not zeroed?"
                    return Cause("accumulated", sentence, left, claim=words)
    return None


def permuted_rows(case: Case) -> Cause | None:
    """One side's rows along an axis are the other's in another order."""
    for axis, name in enumerate(axis_names(case)):
        if case.b.shape[axis] < 3:
            continue
        if case.b.size == case.b.shape[axis] and case.b.dtype.kind != "f":
            continue
        order = _row_order(case, axis)
        if order is None:
            continue
        left = case.settled(np.take(case.b, order, axis=axis), case.a)
        if left is not None:
            some = ", ".join(map(str, order[:8])) + (", .." if order.size > 8 else "")
            words = (
                f"the {name}s of {label(case, 'a')} are those of {label(case, 'b')} in the order"
            )
            sentence = f"{case.tensor}: {words} {some} {eps_words(left)}"
            return Cause("permuted-rows", sentence, left, claim=words)
    return None


def _row_order(case: Case, axis: int) -> Array | None:
    """The order in which rows of b must be taken to sort like those of a, if only one fits.

    Rows are told apart by their product with one random vector.
    """
    marks = []
    for x in (case.a, case.b):
        flat = np.asarray(np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1), np.float64)
        weights = np.random.default_rng(0).standard_normal(flat.shape[1])
        marks.append(flat @ weights)
    if not all(np.isfinite(m).all() for m in marks):
        return None
    by_a, by_b = np.argsort(marks[0]), np.argsort(marks[1])
    sorted_a, sorted_b = marks[0][by_a], marks[1][by_b]
    size = max(float(np.abs(sorted_b).max()), math.ulp(1.0))
    if np.abs(sorted_a - sorted_b).max() > 0.01 * size:
        return None
    order = np.empty(len(by_a), np.int64)
    order[by_a] = by_b
    return None if np.array_equal(order, np.arange(len(order))) else order


def state_swapped(case: Case) -> Cause | None:
    """The state of another layer, or h in c's place."""
    kind = case.tensor.split("/")[1]
    for side in SIDES:
        for layer in range(8):
            for part in "hc":
                name = f"state/{kind}/layer{layer}/{part}"
                value = None if name == case.tensor else case.get(name, other(side))
                if value is None or not value.any() or value.shape != case.b.shape:
                    continue
                left = case.settled(value, own(case, side))
                if left is not None:
                    words = f"{label(case, side)} has what {label(case, other(side))} has in {name}"
                    sentence = f"{case.tensor}: {words} {eps_words(left)}"
                    return Cause("state-swapped", sentence, left, claim=words)
    return None


def state_not_carried(case: Case) -> Cause | None:
    """One side starts every window from zeros where the other carries its state."""
    return _state(case, "state-not-carried", reset=False)


def state_not_reset(case: Case) -> Cause | None:
    """One side carries its state where the other, which carried it before, starts from zeros."""
    return _state(case, "state-not-reset", reset=True)


def _state(case: Case, name: str, reset: bool) -> Cause | None:
    """Zeros against the state that the last step left; `reset`: zeros after a carried state."""
    for side in SIDES:
        empty, full = own(case, side), own(case, other(side))
        if empty.any() or not full.any():
            continue
        out = case.tensor.replace("state/in/", "state/out/", 1)
        mine, theirs = (case.get(out, s, back=1) for s in (side, other(side)))
        left = None if theirs is None else case.settled(theirs, full)
        before = case.made(case.tensor, side, 1)
        if mine is None or left is None or not mine.any():
            continue
        if reset != (before is not None and bool(before.any())):
            continue
        zero, carry = label(case, side), label(case, other(side))
        words = f"{carry} starts from the state that step {case.step - 1} ended with"
        words += f" {eps_words(left)}, {zero} from zero"
        words += ", though it carried its state before" if reset else ""
        return Cause(name, f"{case.tensor}: {words}", left, claim=f"{zero} starts from zero")
    return None
