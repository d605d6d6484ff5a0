"""What the optimizers of both sides keep: which slot is which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from harness.align.found import Found
from harness.align.units import slots_of
from harness.models.habits import slots_alike
from harness.trace import Match, Step, TensorEntry, Trace
from harness.trace.chain import MisfitError

CLOSE = 1e-3  # relative: norms of two slots that may be one
TURNED = -0.99  # a cosine under which two slots are one with the other sign


def paired_slots(
    found: Sequence[Found], a: Trace, b: Trace, steps: Sequence[int]
) -> tuple[tuple[Match, ...], tuple[str, ...]]:
    """Which slot of a is which of b, by their norms, else by their names; and what is to be said.

    Slots that programs keep with another sign (the velocity of a step down, or of a gradient) are
    no pair: nothing of them could be compared.
    """
    votes: Counter[tuple[str, str]] = Counter()
    turned: Counter[tuple[str, str]] = Counter()
    names: tuple[dict[str, None], dict[str, None]] = {}, {}
    for number in steps:
        first, second = a.step(number), b.step(number)
        for match in found:
            xs = slots_of(first, match.a[0].name)
            ys = slots_of(second, match.b[0].name)
            names[0].update(dict.fromkeys(xs))
            names[1].update(dict.fromkeys(ys))
            if len(match.a) != 1 or len(match.b) != 1:
                continue
            for x, entry in xs.items():
                for y, other in ys.items():
                    votes[x, y] += _equal_norms(entry, other)
                    if slots_alike(x, y) and not votes[x, y]:
                        turned[x, y] += _turned(match, first, entry, second, other)
    return _chosen(names, votes, turned)


def _chosen(
    names: tuple[dict[str, None], dict[str, None]],
    votes: Counter[tuple[str, str]],
    turned: Counter[tuple[str, str]],
) -> tuple[tuple[Match, ...], tuple[str, ...]]:
    pairs: list[Match] = []
    notes: list[str] = []
    ranked = sorted(
        ((x, y) for x in names[0] for y in names[1]),
        key=lambda pair: (-votes[pair], not slots_alike(*pair), pair[0] != pair[1]),
    )
    used: set[tuple[str, str]] = set()
    for x, y in ranked:
        by = ("values",) if votes[x, y] else ("name",) if slots_alike(x, y) else ()
        if not by or ("a", x) in used or ("b", y) in used:
            continue
        used |= {("a", x), ("b", y)}
        if turned[x, y] and not votes[x, y]:
            notes.append(
                f"the optimizer's {x} and {y} have opposite signs, as programs define them "
                "otherwise: not compared"
            )
            continue
        pairs.append(Match((x,), (y,), (), "certain" if votes[x, y] else "likely", by))
    return tuple(pairs), tuple(notes)


def _equal_norms(x: TensorEntry, y: TensorEntry) -> bool:
    """Whether two slots have one norm, which is not that of zeros."""
    if x.l2 is None or y.l2 is None or not x.l2 or x.size != y.size or x.size < 2:
        return False
    return abs(x.l2 - y.l2) <= CLOSE * max(x.l2, y.l2)


def _turned(match: Found, a: Step, x: TensorEntry, b: Step, y: TensorEntry) -> bool:
    """Whether a slot is a negative multiple of the other."""
    if not (a.holds(x) and b.holds(y)) or x.size < 2:
        return False
    try:
        if match.chain.shapes([x.shape]) != [y.shape]:
            return False
    except MisfitError:
        return False
    left = np.asarray(match.chain.arrays([a.view(x)])[0], np.float64).reshape(-1)
    right = np.asarray(b.view(y), np.float64).reshape(-1)
    with np.errstate(all="ignore"):
        cosine = left @ right / np.sqrt((left @ left) * (right @ right))
    return bool(cosine < TURNED)
