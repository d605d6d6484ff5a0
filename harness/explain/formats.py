"""Numbers in a narrower format than the run's: told by what only the format can do."""

from __future__ import annotations

import math

import numpy as np

from harness.explain.case import Array, Case, Cause, Side
from harness.explain.scene import Edit
from harness.explain.trial import SIDES, Trial, largest, other_side, own
from harness.models.ops.changes import FORMATS, rounded

NUDGE = 8.0  # eps by which a number may be off before it is rounded to a format
TELLING, SAMPLED = 4, 1 << 14  # different numbers that a format needs; those looked at
FEW = 0.5  # of the other side's numbers: more than that in a format say nothing of this side
ROUNDED_OFTEN = 8.0  # half units of a format, in norm: what several roundings on the way leave


def left_by(trial: Trial, side: Side, edit: Edit) -> float:
    """What an edit leaves; a number in the middle of two of a format may be rounded either way."""
    if edit.value.op != "rounded":
        return trial.left(side, edit.value)
    full, mine = trial.value(side, edit.value.inputs[0]), own(trial.part, side)
    how = dict(edit.value.args)
    if full is None or mine.dtype.kind != "f" or not telling(mine, full, **how):
        return math.inf
    nudge = NUDGE * trial.case.eps * (np.abs(full) + largest(full))
    low, high = (rounded(full + by, **how) for by in (-nudge, nudge))
    return trial.case.distance(np.clip(mine, low, high), mine)


def telling(mine: Array, full: Array, to: str, cut: bool = False) -> bool:
    """Whether enough numbers say that `mine` was rounded: those that `full` does not have exactly.

    A number that is exact in the narrower format says nothing, nor do the same numbers twice, and
    one number alone supports no claim about a format.
    """
    flat, exact = mine.reshape(-1), full.reshape(-1).astype(mine.dtype)
    if not np.array_equal(rounded(flat, to, cut), flat, equal_nan=True):
        return False
    moved = (rounded(exact, to, cut) != exact) & (flat != exact)
    # On a grid of one width, as fixed-point numbers are, every format of enough bits has them.
    top = np.frexp(largest(flat))[1] - 1
    with np.errstate(invalid="ignore"):
        moved &= flat % np.ldexp(1.0, int(top) - FORMATS[to]) != 0
    return bool(np.unique(flat[moved][:SAMPLED]).size >= TELLING)


def nothing_but(case: Case) -> Cause | None:
    """One side has numbers of a narrower format alone, the other has not, and is so far off.

    What made them may have rounded more often than once, so that they are not the other side's
    numbers rounded, and where it rounded nothing here can tell.
    """
    if case.b.dtype not in (np.float32, np.float64) or not np.isfinite([case.a, case.b]).all():
        return None
    for side in SIDES if case.off is None else (case.off,):
        mine, theirs = own(case, side), own(case, other_side(side))
        with np.errstate(over="ignore"):
            apart = float(np.linalg.norm(np.asarray(mine, np.float64) - theirs))
            size = float(np.linalg.norm(np.asarray(theirs, np.float64)))
        for to, bits in FORMATS.items():
            if to == "float32" or not apart <= ROUNDED_OFTEN * 2.0**-bits * size:
                continue
            if telling(mine, theirs, to) and np.mean(rounded(theirs, to) == theirs) < FEW:
                label, other = case.labels if side == "a" else case.labels[::-1]
                words = f"has numbers of {to} alone"
                return Cause(
                    "reduced-precision",
                    f"{case.tensor}: {label} {words}, {other} has not: computed in {to}?",
                    case.gap(),
                    "certain",
                    to,
                    f"{label} {words}",
                    label,
                )
    return None
