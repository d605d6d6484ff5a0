"""One step of a twin, and what any loop over steps does around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

from msgspec.structs import replace
from numpy.typing import NDArray

from harness.errors import HarnessError
from harness.models.table import restart_names
from harness.side.backend import Backend
from harness.side.points import Points
from harness.spec import CHECKPOINT, ModelSpec, RunSpec, TrainSpec

# What of its training no step computes with: runs that differ in these share a compiled function.
NOT_OF_A_STEP: dict[str, Any] = {
    "lr": 1.0,  # which a step is handed
    "flat_epochs": 0,
    "lr_decay": 1.0,
    "schedule": "fixed",
    "shuffle": False,
    "seed": 1,
}

Array = NDArray[Any]
Tensors = dict[str, Any]


class Mathematics(NamedTuple):
    """What a twin computes, each a function of its own, documented there.

    Parameters, slots, state and masks are dictionaries of tensors: what is in them is between the
    twin and its model.
    """

    tokens_of: Callable[..., tuple[Any, Any]]  # of a window
    zero_slots: Callable[..., Tensors]
    carry: Callable[..., Tensors]
    plateaus: Callable[..., int]
    learning_rate: Callable[..., float]
    train_step: Callable[..., tuple[Tensors, Tensors, Tensors, Any]]
    evaluate: Callable[..., float]


def check(run: RunSpec) -> None:
    """Raise HarnessError for what a compiled step cannot do."""
    stages = run.follow is not None and run.follow.level == "stage"
    if run.train.compile and (run.faults or run.disturb or stages or run.train.autograd):
        raise HarnessError(
            "compile=true: a compiled step is one piece, with no place in it for a planted fault, "
            "a disturbance, stages that follow another side, or autograd; leave compile out"
        )


def groups(run: RunSpec) -> dict[str, list[str]]:
    """The names of what a step starts from: of parameters, of slots and of state."""
    names = restart_names(run.model, run.train)
    return {
        group.rstrip("/"): [name.removeprefix(group) for name in names if name.startswith(group)]
        for group in CHECKPOINT
    }


def see_inputs(
    step: int,
    params: Tensors,
    state: Tensors,
    x: Any,
    y: Any,
    masks: Mapping[str, Array],
    points: Points,
) -> tuple[Tensors, Tensors, Any, Any, Tensors]:
    """What a step is given, shown to `points` (the weights at the first step alone).

    Returns parameters, state, input tokens, target tokens and masks, as the step goes on with them.
    """
    x, y = points.see("inputs/x", x), points.see("inputs/y", y)
    tensors = {site: points.backend.to_tensor(mask) for site, mask in masks.items()}
    tensors = {site: points.see(f"inputs/mask/{site}", mask) for site, mask in tensors.items()}
    if step == 1:
        params = {name: points.see(f"inputs/params/{name}", p) for name, p in params.items()}
    state = {name: points.see(f"state/in/{name}", s) for name, s in state.items()}
    return params, state, x, y, tensors


@cache
def compiled(
    backend: Backend,
    train_step: Callable[..., Any],
    model: ModelSpec,
    train: TrainSpec,
    watch: bool,
) -> Callable[..., Any]:
    """A twin's `train_step` as one compiled function, which returns the trace points as well.

    `watch`: whether points are kept. What is kept is computed for its own sake, which can change
    what the compiler makes of the rest: a run that traces any step compiles this once.

    Returns a function of the first arguments of `train_step`, up to the step (a float64 scalar).
    """

    def step(*arguments: Any) -> tuple[Any, ...]:
        points = Points(backend, watch=watch)
        return *train_step(*arguments, model, train, points), points.seen

    return backend.compiled(step, train)


def take_step(
    graph: bool,
    backend: Backend,
    twin: Mathematics,
    arguments: tuple[Any, ...],
    model: ModelSpec,
    train: TrainSpec,
    points: Points,
) -> Any:
    """New parameters, slots and state, and the loss: `train_step` of `arguments`.

    `graph`: by the compiled function. It has no place for an intervention, which is Python.
    """
    if not graph or points.intervention:
        return twin.train_step(*arguments, model, train, points)
    run = compiled(backend, twin.train_step, model, replace(train, **NOT_OF_A_STEP), points.watch)
    *tensors, lr, step = arguments
    lr, step = backend.scalar(lr, train.dtype), backend.scalar(step, "float64")
    *found, seen = run(*tensors, lr, step)
    points.seen.update(seen)
    return found
