"""Causes at the seams of the model: dropout between its layers, and the loss at its end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from harness.explain.case import Array, Case, Cause, Side
from harness.explain.stage import (
    CELL,
    keep_probability,
    layers,
    previous,
    site_of,
    source,
    stage,
    token_losses,
)
from harness.explain.trial import Guess, once, setting, tell

SMOOTHINGS = (0.1, 0.05, 0.2, 0.01)  # shares of label smoothing that are in use
Change = Callable[[Array, float], Array]


class Way(NamedTuple):
    """What dropout does: its words, and what multiplies an activation, from mask and keep."""

    words: str
    change: Change


USUAL = Way("scales what dropout keeps by 1 / keep", lambda m, keep: m / keep)
WAYS: tuple[Way, ...] = (
    Way(
        "does not scale what dropout keeps (or takes keep times it once more)",
        lambda m, keep: 1.0 * m,
    ),
    Way("scales what dropout keeps twice", lambda m, keep: m / keep**2),
    Way("takes the keep probability for the drop probability", lambda m, keep: m / (1 - keep)),
    Way("multiplies what it keeps by keep where the other divides", lambda m, keep: m * keep),
    Way("drops what the mask keeps", lambda m, keep: ~m / keep),
    Way("drops what the mask keeps and scales by 1 / drop", lambda m, keep: ~m / (1 - keep)),
    Way("drops nothing", lambda m, keep: np.ones(m.shape)),
    Way("drops nothing and scales by 1 / keep", lambda m, keep: np.ones(m.shape) / keep),
    Way(
        "drops by the mask of timestep 0 at every timestep",
        lambda m, keep: np.broadcast_to(m[:, :1], m.shape) / keep,
    ),
    Way(
        "drops by the mask of batch row 0 in every row",
        lambda m, keep: np.broadcast_to(m[:1], m.shape) / keep,
    ),
    Way("drops by the mask of the timestep before", lambda m, keep: np.roll(m, 1, 1) / keep),
    Way("drops by the mask of the timestep after", lambda m, keep: np.roll(m, -1, 1) / keep),
)


def dropout(case: Case) -> Cause | None:
    """Dropout with another scale or mask, seen at the stage after the site."""
    if case.tensor == "evaluate/loss":
        return _evaluated(case)
    layer = _layer_after(case)
    keep = keep_probability(case)
    if layer is None or keep is None:
        return None
    site = site_of(layer)
    if case.get(f"inputs/mask/{site}") is None:
        return None
    guesses = [_masked(case, layer, way, site, keep) for way in (USUAL, *WAYS)]
    for other_site in ("embedding", *(f"layer{k}" for k in range(layers(case)))):
        if other_site != site:
            way = Way(f"drops by the mask of site {other_site}, not {site}", USUAL.change)
            guesses.append(_masked(case, layer, way, other_site, keep))
    way = Way("drops by the masks of the step before", USUAL.change)
    guesses.append(_masked(case, layer, way, site, keep, back=1))
    if case.tensor.endswith("/gates"):
        guesses.append(_recurrent(case, layer, keep))
    return tell(case, "dropout", guesses)


def _evaluated(case: Case) -> Cause | None:
    """A hint: evaluation alone differs, and dropout in it is what makes a loss larger."""
    if case.b.size != 1 or keep_probability(case) is None:
        return None
    gap = float((case.a - case.b).reshape(()))
    if not math.isfinite(gap) or not gap:
        return None
    larger = case.labels[0] if gap > 0 else case.labels[1]
    words = f"evaluate/loss: training agrees up to here and {larger} has the larger loss"
    sentence = f"{words}; does it drop in evaluation too? That cannot be recomputed from the trace"
    return Cause("dropout", sentence, case.gap(), "hint")


def _layer_after(case: Case) -> int | None:
    """The layer (the softmax counted after the last) before whose input dropout acts."""
    found = CELL.fullmatch(case.tensor)
    if case.tensor == "forward/logits":
        return layers(case)
    if case.tensor == "backward/embedding":
        return 0
    if found and (found[1], found[3]) == ("forward", "gates"):
        return int(found[2])
    if found and (found[1], found[3]) == ("backward", "h"):
        return int(found[2]) + 1
    return None


def _masked(case: Case, layer: int, way: Way, site: str, keep: float, back: int = 0) -> Guess:
    def value(side: Side, rows: slice) -> Array | None:
        made = stage(case, side)
        mask = case.get(f"inputs/mask/{site}", side, back)
        if made is None or mask is None:
            return None
        term = made.terms[0]
        shape = term.left.shape if term.scale is None else case.b.shape
        if mask.shape != shape:
            return None
        factor = np.asarray(way.change(mask, keep), np.float64)
        if term.scale is None:
            x = source(case, side, layer)
            if x is None:
                return None
            term = term._replace(left=np.asarray(x, np.float64) * factor)
        else:
            term = term._replace(scale=factor)
        return made._replace(terms=(term, *made.terms[1:])).value(rows)

    return Guess(way.words, value)


def _recurrent(case: Case, layer: int, keep: float) -> Guess:
    """Dropout on the recurrent connection too, by the mask of the layer's output."""

    def value(side: Side, rows: slice) -> Array | None:
        made, h = stage(case, side), previous(case, side, layer, "h")
        mask = case.get(f"inputs/mask/layer{layer}", side)
        if made is None or h is None or mask is None or mask.shape != h.shape:
            return None
        earlier = np.concatenate([np.full_like(mask[:, :1], True), mask[:, :-1]], axis=1)
        factor = np.where(earlier, 1 / keep, 0.0)
        factor[:, 0] = 1.0
        term = made.terms[1]._replace(left=np.asarray(h, np.float64) * factor)
        return made._replace(terms=(made.terms[0], term)).value(rows)

    return Guess("drops recurrent connections too", value)


def loss_formula(case: Case) -> Cause | None:
    """Another formula for the loss, at its value or at its gradient by the logits."""
    if case.tensor == "backward/logits":
        return tell(case, "loss-formula", list(_gradients(case)))
    return tell(case, "loss-formula", list(_losses(case)))


def _norms(shape: tuple[int, ...], case: Case) -> list[tuple[str, float]]:
    """Ways to add up the losses of [B, T] tokens, with the divisor of the sum; the usual first."""
    B, T = shape
    usual: object = setting(case, "loss", "sum")
    ways = [
        ("summed over time and averaged over the batch", 1.0 * B),
        ("averaged over time and batch", 1.0 * B * T),
        ("summed over time and batch", 1.0),
        ("averaged over time and summed over the batch", 1.0 * T),
        ("averaged over time and batch, and over the batch again", 1.0 * B * B * T),
        ("summed over time, and averaged over the batch twice", 1.0 * B * B),
        ("divided over time by T - 1", 1.0 * B * max(T - 1, 1)),
    ]
    of = "has the gradient of a loss" if case.tensor == "backward/logits" else "has the loss"
    ways = [(f"{of} {words}", norm) for words, norm in ways]
    if usual == "mean":
        ways[0], ways[1] = ways[1], ways[0]
    return ways


def _targets(case: Case, side: Side, which: str) -> Array | None:
    """Targets of a side, or what a fault takes for them."""
    y, x = case.get("inputs/y", side), case.get("inputs/x", side)
    if y is None or (which == "inputs" and x is None):
        return None
    if which == "earlier":
        return np.roll(y, 1, axis=1)
    if which == "later":
        return np.roll(y, -1, axis=1)
    return x if which == "inputs" else y


def _losses(case: Case) -> Iterator[Guess]:
    """The value of the loss, from logits and targets."""
    logits = case.get("forward/logits")
    if logits is None or logits.ndim != 3 or case.get("inputs/y") is None:
        return
    per_token = {
        which: once(lambda side, which=which: _token_losses(case, side, which))  # type: ignore[misc]
        for which in ("targets", "inputs", "earlier", "later")
    }
    smooth = once(lambda side: _uniform_losses(case, side))
    ways = _norms(logits.shape[:2], case)

    def guess(
        words: str, formula: Callable[[Array, Side], Array | float], which: str = "targets"
    ) -> Guess:
        def value(side: Side, rows: slice) -> Array | None:
            losses = per_token[which](side)
            if losses is None:
                return None
            return np.asarray(formula(losses, side), np.float64).reshape(case.b.shape)

        return Guess(words, value)

    for words, norm in ways:
        yield guess(words, lambda n, side, norm=norm: n.sum() / norm)  # type: ignore[misc]
    for says, usual in ways[:2]:
        more = f"({says})"
        for words, n_of in _parts(case, usual):
            yield guess(f"{words} {more}", n_of)
        for which in ("inputs", "earlier", "later"):
            words = "the inputs" if which == "inputs" else f"targets one timestep {which}"
            yield guess(
                f"takes {words} for its targets {more}",
                lambda n, side, usual=usual: n.sum() / usual,  # type: ignore[misc]
                which,
            )
        for share in SMOOTHINGS:
            yield guess(
                f"smooths its labels by {share} {more}",
                lambda n, side, usual=usual, share=share: (
                    (  # type: ignore[misc]
                        (1 - share) * n.sum() + share * smooth(side)
                    )
                    / usual
                ),
            )


def _parts(case: Case, norm: float) -> list[tuple[str, Callable[[Array, Side], Array | float]]]:
    """Formulas that leave tokens out, or take another logarithm."""

    def counted(side: Side, n: Array) -> Array:
        y = case.get("inputs/y", side)
        return np.ones(n.shape) if y is None else (y != 0) * 1.0

    return [
        ("leaves the last timestep out", lambda n, side: n[:, :-1].sum() / norm),
        ("leaves the first timestep out", lambda n, side: n[:, 1:].sum() / norm),
        (
            "leaves the last timestep out, of the mean too",
            lambda n, side: n[:, :-1].sum() / norm * n.shape[1] / max(n.shape[1] - 1, 1),
        ),
        ("leaves the last batch row out", lambda n, side: n[:-1].sum() / norm),
        ("takes logarithms to base 2", lambda n, side: n.sum() / norm / math.log(2)),
        ("leaves token 0 out", lambda n, side: (n * counted(side, n)).sum() / norm),
        (
            "leaves token 0 out, of the mean too",
            lambda n, side: (
                (n * counted(side, n)).sum() / (norm * max(counted(side, n).mean(), 1 / n.size))
            ),
        ),
        ("takes the perplexity for the loss", lambda n, side: math.exp(min(n.mean(), 700.0))),
    ]


def _token_losses(case: Case, side: Side, which: str) -> Array | None:
    logits, y = case.get("forward/logits", side), _targets(case, side, which)
    return None if logits is None or y is None else token_losses(logits, y)


def _uniform_losses(case: Case, side: Side) -> float:
    """The sum over tokens of the mean over the vocabulary of -log p."""
    logits = case.get("forward/logits", side)
    zero = np.zeros(logits.shape[:2], np.int64) if logits is not None else None
    if logits is None or zero is None:
        return math.nan
    first = token_losses(logits, zero)
    shifts = np.mean(logits, axis=-1, dtype=np.float64) - logits[..., 0]
    return float((first - shifts).sum())


def _gradients(case: Case) -> Iterator[Guess]:
    """The gradient by the logits: (softmax - one-hot target) over what the loss is divided by."""

    def guess(
        words: str,
        norm: float,
        which: str = "targets",
        share: float = 0.0,
        kept: Callable[[Array], Array] | None = None,
    ) -> Guess:
        def value(side: Side, rows: slice) -> Array | None:
            z, y = case.get("forward/logits", side), _targets(case, side, which)
            if z is None or y is None:
                return None
            made = _softmax_gradient(z[rows], y[rows], share) / norm
            return made if kept is None else made * kept(y)[rows][..., None]

        return Guess(words, value)

    if case.b.ndim != 3:
        return
    ways = _norms(case.b.shape[:2], case)
    for words, norm in ways:
        yield guess(words, norm)
    usual = ways[0][1]
    for which in ("inputs", "earlier", "later"):
        words = "the inputs" if which == "inputs" else f"targets one timestep {which}"
        yield guess(f"takes {words} for its targets", usual, which)
    for share in SMOOTHINGS:
        yield guess(f"smooths its labels by {share}", usual, share=share)
    last = np.arange(case.b.shape[1]) < case.b.shape[1] - 1
    yield guess(
        "leaves the last timestep out", usual, kept=lambda y: np.broadcast_to(last, y.shape)
    )
    yield guess("leaves token 0 out", usual, kept=lambda y: y != 0)
    yield guess("takes logarithms to base 2", usual * math.log(2))


def _softmax_gradient(logits: Array, y: Array, share: float) -> Array:
    """softmax(logits) - target, the target being one-hot, or smoothed by `share`."""
    z = np.asarray(logits, np.float64)
    p = np.exp(z - z.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    p -= share / z.shape[-1]
    at = np.asarray(y, np.int64)[..., None]
    np.put_along_axis(p, at, np.take_along_axis(p, at, axis=-1) - (1 - share), axis=-1)
    return np.asarray(p)


def embedding_duplicates(case: Case) -> Cause | None:
    """Gradient rows of a token that occurs more than once, not added up."""

    def guess(words: str, add: Callable[[Array, Array, Array], None]) -> Guess:
        def value(side: Side, rows: slice) -> Array | None:
            x, dx = case.get("inputs/x", side), case.get("backward/embedding", side)
            if x is None or dx is None:
                return None
            made = np.zeros(case.b.shape)
            tokens = np.asarray(x, np.int64).reshape(-1)
            add(made, tokens, np.asarray(dx, np.float64).reshape(len(tokens), -1))
            return made[rows]

        return Guess(words, value)

    def mean(made: Array, x: Array, dx: Array) -> None:
        np.add.at(made, x, dx)
        made /= np.maximum(np.bincount(x, minlength=len(made)), 1)[:, None]

    return tell(
        case,
        "embedding-duplicates",
        [
            guess("adds up the gradients of a token that occurs more than once", np.add.at),
            guess("keeps only the last of its gradients", lambda m, x, dx: _put(m, x, dx)),
            guess(
                "keeps only the first of its gradients", lambda m, x, d: _put(m, x[::-1], d[::-1])
            ),
            guess("averages them", mean),
        ],
    )


def _put(made: Array, x: Array, dx: Array) -> None:
    made[x] = dx
