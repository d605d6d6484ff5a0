"""One factor or one constant over a whole tensor, and which of the run's own numbers it is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from harness.compare.axes import GATES
from harness.explain.case import Array, Case, Cause, Side
from harness.explain.trial import (
    SIDES,
    eps_words,
    figure,
    label,
    number,
    numbers,
    own,
    wide,
)

KNOWN = (
    ("bptt", "the BPTT length T"),
    ("batch_size", "the batch size B"),
    ("hidden_size", "the hidden size H"),
    ("embed_size", "the embedding size E"),
    ("vocab_size", "the vocabulary size V"),
    ("num_layers", "the number of layers"),
    ("clip_limit", "the clip limit"),
    ("lr", "the learning rate"),
    ("lr_decay", "lr_decay"),
    ("momentum", "the momentum"),
)
COUNTS = ("bptt", "batch_size", "hidden_size", "embed_size", "vocab_size")
POWERS = 20  # powers of lr_decay that are named
LARGEST_COUNT = 100  # 1.001 is hardly ever meant as 1000 / 999


class Named(NamedTuple):
    """A number of the run and what it is."""

    value: float
    words: str


class Slope(NamedTuple):
    """a = factor b by least squares, and the standard error of the factor relative to it."""

    factor: float
    error: float


def known_numbers(case: Case) -> Iterator[Named]:
    """The run's own numbers, simplest first: single ones, then squares, products and quotients."""
    single = [Named(v, words) for key, words in KNOWN for v in numbers(case, key) if v > 0]
    for rate in numbers(case, "dropout"):
        if 0 < rate < 1:
            single.append(Named(1 - rate, "the keep probability"))
            single.append(Named(rate, "the dropout rate"))
    single += [Named(1 - v, "1 - momentum") for v in numbers(case, "momentum") if 0 < v < 1]
    yield from (Named(2.0, "2"), Named(4.0, "4"))
    yield from single
    yield Named(math.log(2), "the natural logarithm of 2")
    sizes = [Named(v, words) for key, words in KNOWN for v in numbers(case, key) if key in COUNTS]
    # A mean that is off by one; of quotients of two sizes many are, by chance, the same number.
    yield from (Named(v / (v - 1), f"{words} over one less") for v, words in sizes if v > 1)
    yield from (Named(v * v, f"the square of {words}") for v, words in single)
    yield from (Named(math.sqrt(v), f"the square root of {words}") for v, words in sizes)
    for place, x in enumerate(single):
        for y in single[place + 1 :]:
            yield Named(x.value * y.value, f"{x.words} times {y.words}")
            yield Named(x.value / y.value, f"{x.words} divided by {y.words}")
    if case.tensor.startswith(("update/", "params/")):
        for decay in numbers(case, "lr_decay"):
            for k in range(2, POWERS):
                yield Named(decay**k, f"lr_decay to the power {k}")


def name_of(case: Case, factor: float, error: float) -> Named | None:
    """The simplest of the run's numbers that `factor` >= 1 or its inverse is, within `error`."""
    words: list[str] = []
    value = 0.0
    for candidate in known_numbers(case):
        size = max(candidate.value, 1 / candidate.value) if candidate.value else 0.0
        if abs(size - factor) <= error * factor and (not words or size == value):
            value = size
            words.append(candidate.words if candidate.value >= 1 else f"1 / {candidate.words}")
    if not words:
        return _one_too_many(case, factor, error)
    simple = [w for w in words if not any(s in w for s in ("times", "divided", "square"))]
    return Named(value, " and ".join((simple or words)[:2]))


def _one_too_many(case: Case, factor: float, error: float) -> Named | None:
    """A factor (n + 1) / n: a count, as in a mean over tokens, that is off by one.

    Nearly every factor is near such a one for a large n: then n must be a number of whole windows.
    """
    if factor <= 1 + 1e-9:
        return None
    n = 1 / (factor - 1)
    if case.b.size == 1:
        error = 4 * case.eps  # one number, but of roundings that average out
    spread = error * n * (n + 1)
    window = int((number(case, "bptt") or 1) * (number(case, "batch_size") or 1))
    for step, words in ((1, ""), (window, f", a number of whole windows of {window} tokens")):
        count = step * round(n / step)
        known = 2 <= count <= LARGEST_COUNT or step > 1
        if known and count and spread < 0.02 * step and abs(n - count) <= spread:
            named = f"{count + 1} / {count}, as of a count that is one too large{words}"
            return Named(1 + 1 / count, named)
    return None


def slope(case: Case, a: Array, b: Array) -> Slope | None:
    """The factor by least squares over the finite elements; None where there is nothing to fit."""
    x, y = np.asarray(a, np.float64).reshape(-1), np.asarray(b, np.float64).reshape(-1)
    finite = np.isfinite(x) & np.isfinite(y)
    if not finite.all():
        x, y = x[finite], y[finite]
    square = float(y @ y)
    if not square or not math.isfinite(square):
        return None
    factor = float(x @ y) / square
    if not factor or not math.isfinite(factor):
        return None
    rest = x - factor * y
    error = math.sqrt(float(rest @ rest) / square) / abs(factor)
    return Slope(factor, error / math.sqrt(max(x.size - 1, 1)))


def basis(case: Case, side: Side) -> Array | None:
    """What a factor is looked for in: the tensor, or how far a parameter moved."""
    x = own(case, side)
    if not case.tensor.startswith("params/"):
        return x
    before = case.before(case.tensor.removeprefix("params/"), side)
    if before is None or before.shape != x.shape:
        return None
    return np.asarray(x, np.float64) - before


def several(x: Array) -> bool:
    """Whether at least three different numbers, none of them zero, are among the elements."""
    flat = x.reshape(-1)[: 1 << 12]
    if np.unique(flat[(flat != 0) & np.isfinite(flat)]).size >= 3:
        return True
    return x.size > flat.size and np.unique(x[(x != 0) & np.isfinite(x)]).size >= 3


def _rough(a: Array, b: Array) -> bool:
    """Whether a few large elements have about one ratio: a cheap look before the real one."""
    if a.size < 1 << 14:
        return True
    x, y = a.reshape(-1)[:: a.size >> 12], b.reshape(-1)[:: a.size >> 12]
    top = np.argsort(np.abs(y))[-16:]
    ratios = np.asarray(x[top], np.float64) / np.asarray(y[top], np.float64)
    spread = float(np.ptp(ratios))
    return not math.isfinite(spread) or spread <= 0.1 * abs(float(ratios.mean()))


def factor(case: Case) -> Cause | None:
    """One constant factor over the whole tensor, named through the run's own numbers."""
    a, b = basis(case, "a"), basis(case, "b")
    if case.b.dtype.kind != "f" or a is None or b is None or not _rough(a, b):
        return None
    fit = slope(case, a, b)
    if fit is None or fit.factor < 0:
        return None
    free = several(b)
    size = max(fit.factor, 1 / fit.factor)
    error = 8 * fit.error + 4 * case.eps if free else case.level * case.eps
    named = name_of(case, size, error)
    if named is None and not free:
        return None
    exact = named.value if named else size
    exact = exact if fit.factor >= 1 else 1 / exact
    left = _left(case, a, b, exact)
    if left is None:
        named, left = None, _left(case, a, b, fit.factor) if free else None
    if left is None:
        return None
    return Cause(
        "factor",
        _factor_words(case, fit.factor, named, left),
        left,
        "certain" if named else "likely",
    )


def _left(case: Case, a: Array, b: Array, exact: float) -> float | None:
    """What remains once b, or the way a parameter moved on side b, is multiplied by `exact`."""
    scaled = np.asarray(b, np.float64) * exact
    if not case.tensor.startswith("params/"):
        return case.settled(scaled, case.a)
    before = np.asarray(case.a, np.float64) - a
    return case.settled(before + scaled, case.a)


def _factor_words(case: Case, factor: float, named: Named | None, left: float) -> str:
    """The sentence: the side that is larger, the factor, what it is, and what that suggests."""
    big: Side = "a" if factor >= 1 else "b"
    large, small = label(case, big), label(case, "b" if big == "a" else "a")
    size = max(factor, 1 / factor)
    what = "step of this parameter" if case.tensor.startswith("params/") else case.tensor
    words = f"{what}: {large} = {figure(size)} x {small} {eps_words(left)}"
    if named is None:
        return f"{words}: one factor over all elements, none of the run's own numbers"
    if named.words[:1].isdigit() and named.words == figure(size):
        return words
    words = f"{words}: {figure(size)} is {named.words}"
    if case.tensor.startswith(("forward/loss", "backward/", "grads/")):
        if "BPTT" in named.words:
            words += f"; {small} averages the loss over time and {large} does not"
        elif "batch" in named.words:
            words += f"; {small} averages the loss over the batch and {large} does not"
    if "keep probability" in named.words:
        words += "; look at how dropout scales what it keeps"
    return words


def sign(case: Case) -> Cause | None:
    """One side is the other with the sign turned round."""
    a, b = basis(case, "a"), basis(case, "b")
    if case.b.dtype.kind not in "fi" or a is None or b is None:
        return None
    left = _left(case, a, b, -1.0)
    if left is None:
        return None
    moved = "moves " if case.tensor.startswith("params/") else ""
    words = f"{case.tensor}: {label(case, 'a')} {moved}= - {label(case, 'b')} {eps_words(left)}"
    return Cause("sign", words, left)


def _starts(case: Case) -> bool:
    """Whether one side is zero all over: numbers that something starts from, not a result."""
    return case.b.size >= 3 and not (case.a.any() and case.b.any())


def constant(case: Case) -> Cause | None:
    """a - b is one number in all elements, or in those of one gate."""
    if case.b.dtype.kind != "f" or not (several(case.b) or _starts(case)):
        return None
    a, b = np.asarray(case.a, np.float64), np.asarray(case.b, np.float64)
    gap = a - b
    finite = gap[np.isfinite(gap)]
    if finite.size < 3:
        return None
    offset = float(np.median(finite))
    left = case.settled(b + offset, case.a) if offset else None
    if left is not None:
        words = f"{label(case, 'a')} - {label(case, 'b')} = {figure(offset)} in every element"
        return Cause("constant", f"{case.tensor}: {words} {eps_words(left)}", left)
    if not case.tensor.endswith(("/gates", "/w_i", "/w_h", "/b_i", "/b_h")) or a.shape[-1] % 4:
        return None
    width = a.shape[-1] // 4
    for k, gate in enumerate(GATES):
        block = gap[..., k * width : (k + 1) * width]
        moved = b.copy()
        offset = float(np.median(block)) if block.size > 2 else 0.0
        moved[..., k * width : (k + 1) * width] += offset
        left = case.settled(moved, case.a) if offset else None
        if left is not None:
            words = (
                f"{label(case, 'a')} - {label(case, 'b')} = {figure(offset)} in gate {gate} alone"
            )
            return Cause("constant", f"{case.tensor}: {words} {eps_words(left)}", left)
    return None


def learning_rate(case: Case) -> Cause | None:
    """Learning rates that are powers of the decay apart: a schedule that decays earlier or more."""
    if case.b.size != 1 or case.b.dtype.kind != "f":
        return None
    a, b = float(case.a.reshape(())), float(case.b.reshape(()))
    decay = number(case, "lr_decay")
    if not (a > 0 and b > 0 and math.isfinite(a / b)) or not decay or decay in (0.0, 1.0):
        return None
    power = round(math.log(a / b) / math.log(decay))
    left = case.settled(np.float64(b) * decay**power * np.ones(case.b.shape), case.a)
    if not power or left is None:
        return None
    # The side with the smaller rate has decayed more often, whichever way decay turns it.
    more = label(case, "b" if (power > 0) == (decay > 1) else "a")
    times = "once" if abs(power) == 1 else f"{abs(power)} times"
    hint = "its schedule starts an epoch earlier"
    if abs(power) > 1:
        hint = "its schedule starts earlier, or compounds (decays the decayed rate again)"
    elif _earlier(case, more):
        hint = "its schedule decays more often, or compounds (decays the decayed rate again)"
    words = f"{more} has divided the learning rate by lr_decay = {figure(decay)} {times} more"
    sides = f"{label(case, 'a')} {figure(a)}, {label(case, 'b')} {figure(b)}"
    return Cause("learning-rate", f"{words} ({sides}, {eps_words(left)}): {hint}", left)


def _earlier(case: Case, more: str) -> bool:
    """Whether the side that decays more had decayed before this step too."""
    side = SIDES[case.labels.index(more)]
    before = wide(case.get("update/learning_rate", side, back=1))
    first = number(case, "lr")
    return before is not None and first is not None and bool(np.all(before < first * 0.999))
