"""The catalogue of faults: what each does, and what a harness must say of it."""

from __future__ import annotations

from harness.models.faults import backward, forward, layers, update
from harness.models.faults.fault import Fault

SINGLE = {
    fault.name: fault
    for fault in (*forward.FAULTS, *backward.FAULTS, *update.FAULTS, *layers.FAULTS)
}


def together(name: str, *parts: str) -> Fault:
    """Several faults at once, of which the first named must be told of first."""
    first, *others = (SINGLE[part] for part in parts)
    settings: dict[str, str] = {}
    for fault in (first, *others):
        settings |= fault.settings
    more = tuple(glob for fault in others for glob in (*fault.tensor, *fault.also))
    return first._replace(
        name=name,
        title=", and ".join(fault.title for fault in (first, *others)),
        settings=settings,
        tuned=tuple(name for fault in (first, *others) for name in fault.tuned),
        also=(*first.also, *more),
        parts=parts,
        blocks=first.blocks,
        layers=max(fault.layers for fault in (first, *others)),
    )


# Parts that lie far apart, so that the second is hidden by the first unless stages are followed.
PAIRS = (
    together("gates-and-epsilon", "gates-igfo", "adam-epsilon-uncorrected"),
    together("bias-and-clipping", "recurrent-bias-twice", "clip-elementwise"),
    together("dropout-and-decay", "dropout-unscaled", "decay-missing"),
    # In the short text no token occurs twice in the first window.
    together("norm-and-evaluation", "norm-duplicates", "evaluation-divisor")._replace(
        bites="step 2", settings={"init_scale": "1"}, tokens=100, steps=6
    ),
)

CATALOGUE: dict[str, Fault] = SINGLE | {fault.name: fault for fault in PAIRS}
