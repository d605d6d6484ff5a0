"""The catalogue of faults: what each does, and what a harness must say of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from harness.data.corpus import Batches
from harness.errors import HarnessError
from harness.faults import backward, forward, update
from harness.faults.fault import Fault

# The tiny model that the faults are planted in, on the built-in corpus: no two sizes are equal, and
# the norm of the gradients first passes the limit at step 3.
BASE: Mapping[str, str] = {
    "embed_size": "7",
    "hidden_size": "11",
    "batch_size": "3",
    "bptt": "5",
    "lr": "2.0",
    "init_scale": "0.4",
    "clip_limit": "1.84",
}

SINGLE = {fault.name: fault for fault in (*forward.FAULTS, *backward.FAULTS, *update.FAULTS)}


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


def named(name: str) -> Fault:
    """The fault of that name. Raises HarnessError that lists those that there are."""
    if name not in CATALOGUE:
        raise HarnessError(f"no fault named {name!r}; there are: {', '.join(sorted(CATALOGUE))}")
    return CATALOGUE[name]


def planted_names(name: str) -> tuple[str, ...]:
    """What RunSpec.faults must be for the fault of that name."""
    return named(name).parts or (name,)


def first_step(fault: Fault, batches: Batches, norm: Callable[[int], float]) -> int:
    """The first of the fault's steps at which the sides part. Raises HarnessError if none does.

    `batches` are of the training text, cut to `fault.tokens`; norm(step) is the global norm in a
    run without the fault.
    """
    kind, *rest = fault.bites.split()
    limit = float({**BASE, **fault.settings}["clip_limit"])
    steps = range(1, fault.steps + 1)
    if kind == "norm":
        bitten = (s for s in steps if norm(s) > limit)
    elif kind == "token":
        bitten = (s for s in steps if (batches.window(s).x == int(rest[0])).any())
    elif kind == "epoch":
        epochs = int(rest[0]) - 1
        step = epochs * batches.steps_per_epoch + 1
        if rest[1:] == ["end"]:
            step += batches.steps_per_epoch - 1
        bitten = (s for s in steps if s == step)
    else:
        bitten = (s for s in steps if s == int(rest[0]))
    for step in bitten:
        return step
    raise HarnessError(f"{fault.name}: in none of the steps 1 to {fault.steps}: {fault.bites}")
