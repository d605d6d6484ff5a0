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
    count,
    eps_words,
    figure,
    label,
    number,
    numbers,
    other,
    own,
    setting,
    wide,
)

SIZES = (
    ("bptt", "the BPTT length T"),
    ("batch_size", "the batch size B"),
    ("hidden_size", "the hidden size H"),
    ("embed_size", "the embedding size E"),
    ("vocab_size", "the vocabulary size V"),
)
SMALL = 8  # numbers up to which many things are by chance
UNNAMED = -30.0  # log10 of the chance from which a factor needs no name to be one
TIMES = {
    2.0: "twice",
    0.5: "half of",
    3.0: "three times",
    1 / 3: "a third of",
    0.25: "a quarter of",
}


class Named(NamedTuple):
    """A number of the run and what it is."""

    value: float
    words: str


class Slope(NamedTuple):
    """a = factor b by least squares, and the standard error of the factor relative to it."""

    factor: float
    error: float


def known_numbers(case: Case) -> Iterator[Named]:
    """The numbers that this run uses and that may act on the tensor, simplest first.

    Not their products and quotients: of those one is, by chance, near nearly every number.
    """
    yield from (Named(2.0, ""), Named(3.0, ""), Named(4.0, ""))
    if case.tensor == "update/learning_rate":
        return  # which no size of the model or the batch acts on
    sizes = [Named(v, words) for key, words in SIZES for v in numbers(case, key) if v > 1]
    yield from sizes
    T, B = (numbers(case, key) for key in ("bptt", "batch_size"))
    yield from (Named(t * b, "the tokens of a batch, T times B") for t in T for b in B)
    # A mean over one too few.
    yield from (Named(v / (v - 1), f"{words} over one less") for v, words in sizes[:4])
    for rate in numbers(case, "dropout"):
        if 0 < rate < 1:
            yield Named(1 - rate, "the keep probability")
            yield Named(rate, "the dropout rate")
            yield Named((1 - rate) ** 2, "the square of the keep probability")
    if setting(case, "optimizer") == "momentum":
        for mu in (v for v in numbers(case, "momentum") if 0 < v < 1):
            yield from (Named(mu, "the momentum"), Named(1 - mu, "1 - momentum"))
    if case.tensor.startswith(("params/", "optimizer/")):
        yield from (Named(v, "the learning rate") for v in numbers(case, "lr") if v > 0)
    if case.tensor.startswith("update/") and setting(case, "clip") not in (None, "none"):
        yield from (Named(v, "the clip limit") for v in numbers(case, "clip_limit") if v > 0)
    if case.tensor in ("forward/loss", "evaluate/loss", "backward/logits"):
        yield Named(math.log(2), "the natural logarithm of 2")


def name_of(case: Case, factor: float, error: float) -> Named | None:
    """The simplest of the run's numbers that `factor` >= 1 or its inverse is, within `error`."""
    words: list[str] = []
    value = 0.0
    candidates = [named for named in known_numbers(case) if named.value not in (0.0, 1.0)]
    count(case, len(candidates))
    for candidate in candidates:
        size = max(candidate.value, 1 / candidate.value)
        if abs(size - factor) <= error * factor and (not words or size == value):
            value = size
            inverse = candidate.words and f"1 / {candidate.words}"
            words.append(candidate.words if candidate.value >= 1 else inverse)
    if not words:
        return _one_too_many(case, factor, error)
    # 2 is twice, whatever else may be 2 in this run.
    return Named(value, "" if value == 2 else " and ".join([w for w in words if w][:2]))


def _one_too_many(case: Case, factor: float, error: float) -> Named | None:
    """A factor (n + 1) / n, n the tokens of whole windows: a mean that counts one too many.

    Nearly every factor is near such a one for a large n, so only of an evaluation is it believed.
    """
    if factor <= 1 + 1e-9 or case.tensor != "evaluate/loss":
        return None
    n = 1 / (factor - 1)
    spread = 4 * case.eps * n * (n + 1)  # one number, but of roundings that average out
    window = int((number(case, "bptt") or 1) * (number(case, "batch_size") or 1))
    tokens = window * round(n / window)
    if not tokens or spread >= 0.02 * window or abs(n - tokens) > spread:
        return None
    words = f"as of a count that is one too large: {tokens} tokens are {tokens // window} windows"
    return Named(1 + 1 / tokens, f"{tokens + 1} / {tokens}, {words}")


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
    subject: Side = "a" if case.off or fit.factor >= 1 else "b"
    size = fit.factor if subject == "a" else 1 / fit.factor
    return Cause(
        "factor",
        _factor_words(case, subject, _shown(size, error), named, left),
        left,
        "certain" if named or case.chance(1) <= UNNAMED else "likely",
        claim=f"{label(case, subject)} is {_claimed(size)} times {label(case, other(subject))}",
    )


def _shown(size: float, error: float) -> float:
    """A factor in as many digits as it is known to."""
    digits = min(6, max(2, int(-math.log10(max(error, 1e-16)))))
    return 1 + float(f"{size - 1:.{digits}g}") if _near_one(size) else float(f"{size:.{digits}g}")


def _claimed(size: float) -> str:
    """A factor as it must be found again elsewhere."""
    return f"1 + {size - 1:.2g}" if _near_one(size) else f"{size:.4g}"


def _near_one(size: float) -> bool:
    return abs(size - 1) < 0.0037  # no round number, which rounding would put on either side


def _number(size: float) -> str:
    """A factor for a sentence; of one near 1, what it has beside that."""
    if not _near_one(size):
        return figure(size)
    return f"1 {'+' if size > 1 else '-'} {abs(size - 1):.3g}"


def _left(case: Case, a: Array, b: Array, exact: float) -> float | None:
    """What remains once b, or the way a parameter moved on side b, is multiplied by `exact`."""
    scaled = np.asarray(b, np.float64) * exact
    if not case.tensor.startswith("params/"):
        return case.settled(scaled, case.a)
    before = np.asarray(case.a, np.float64) - a
    return case.settled(before + scaled, case.a)


def _factor_words(case: Case, subject: Side, size: float, named: Named | None, left: float) -> str:
    """The sentence: the side that is off (or larger), the factor, and what that is in this run."""
    mine, theirs = label(case, subject), label(case, other(subject))
    what = "step of this parameter" if case.tensor.startswith("params/") else case.tensor
    plain = min(TIMES, key=lambda times: abs(times - size))
    times = TIMES[plain] if named and abs(size / plain - 1) < 1e-6 else f"{_number(size)} times"
    words = f"{what}: {mine} is {times} {theirs} {eps_words(left)}"
    if named is None:
        return f"{words}: one factor over all elements, none of the run's own numbers"
    if not named.words:
        return words
    number = figure(max(size, 1 / size))
    if named.value < SMALL and float(number).is_integer():
        return f"{words} ({named.words} is {number} in this run)"
    words = f"{words}: {number} is {named.words}"
    large, small = (mine, theirs) if size >= 1 else (theirs, mine)
    if case.tensor in ("forward/loss", "backward/logits") and " and " not in named.words:
        if "BPTT" in named.words:
            words += f", as where {small} averages the loss over time and {large} does not"
        elif "batch" in named.words:
            words += f", as where {small} averages the loss over the batch and {large} does not"
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
    return Cause("sign", words, left, claim="turned sign")


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
        sentence = f"{case.tensor}: {words} {eps_words(left)}"
        return Cause("constant", sentence, left, claim=f"a - b = {offset:.3g}")
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
            return Cause(
                "constant",
                f"{case.tensor}: {words} {eps_words(left)}",
                left,
                claim=f"{offset:.3g} in gate {gate}",
            )
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
    sentence = f"{words} ({sides}, {eps_words(left)}): {hint}"
    # A schedule that is off agrees until it begins; what is off from step 1 may be any number.
    agreed = any(_agreed(case, back) for back in range(1, case.step))
    return Cause("learning-rate", sentence, left, "certain" if agreed else "likely", claim=words)


def _agreed(case: Case, back: int) -> bool:
    """Whether both sides had one learning rate so many steps before."""
    a, b = (case.made("update/learning_rate", side, back) for side in SIDES)
    return a is not None and b is not None and case.distance(a, b) <= case.level


def _earlier(case: Case, more: str) -> bool:
    """Whether the side that decays more had decayed before this step too."""
    side = SIDES[case.labels.index(more)]
    before = wide(case.get("update/learning_rate", side, back=1))
    first = number(case, "lr")
    return before is not None and first is not None and bool(np.all(before < first * 0.999))
