"""Whether a map is right, against the truth of a disguise: names, and layouts on other numbers."""

from typing import NamedTuple

import numpy as np


class Judged(NamedTuple):
    """How many matches there are in truth, and what became of them."""

    count: int
    right: int
    certain: int
    wrong_certain: list
    wrong_likely: list
    missing: list


def judge(alignment, truths, swapped):
    """Compare a map with the truth; `swapped`: it goes from the disguised side to the plain one."""
    if swapped:
        alignment = alignment.turned
    by_names = {(t.section, frozenset(t.a), frozenset(t.b)): t for t in truths}
    right, certain, wrong, unsure = set(), 0, [], []
    for section, match in alignment.matches():
        key = (section, frozenset(match.a), frozenset(match.b))
        truth = by_names.get(key)
        certain += match.sure == "certain"
        if truth is not None and lies_right(match, truth):
            right.add(key)
        else:
            (wrong if match.sure == "certain" else unsure).append(match)
    missing = [t[:3] for key, t in by_names.items() if key not in right]
    return Judged(len(truths), len(right), certain, wrong, unsure, missing)


def lies_right(match, truth):
    """Whether the chain of a match does with any numbers what the disguise did."""
    draw = np.random.default_rng(11)
    arrays = {n: draw.normal(size=s) for n, s in zip(truth.a, truth.shapes, strict=True)}
    wanted = dict(zip(truth.b, truth.turn([arrays[n] for n in truth.a]), strict=True))
    made = match.chain.arrays([arrays[n] for n in match.a])
    if match.chain.unsummed:
        return False
    return all(
        x.shape == wanted[n].shape and np.allclose(x, wanted[n], rtol=0, atol=1e-12)
        for n, x in zip(match.b, made, strict=True)
    )
