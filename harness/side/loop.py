"""The loop over steps: all that a side's process does with bytes, around what its twin computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.data import corpus, randomness, weights
from harness.errors import HarnessError
from harness.models.table import restart_names
from harness.side.backend import Backend
from harness.side.points import Points, to_array, to_trace
from harness.spec import CHECKPOINT, ModelSpec, RunSpec, TrainSpec, replace
from harness.trace import Intervention, TraceWriter, resumed

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


def train(run: RunSpec, report: Callable[..., None], backend: Backend, twin: Mathematics) -> None:
    """Run the steps of `run` from its weights on its tokens, tracing what it asks to trace.

    Args:
        run: the RunSpec.
        report: called after every step with step, epoch, lr and loss, and at the end of an epoch
            with the validation loss (None otherwise).
        backend: what the twin's framework does with bytes.
        twin: what it computes.

    """
    backend.prepare(run)
    _check(run)
    arrays = weights.load(run.weights, run.model, dtype=run.train.dtype)
    tokens = corpus.load_tokens(run.tokens)
    batches = corpus.Batches(tokens, run.train, run.eos)
    valid_batches = corpus.evaluation_batches(corpus.load_tokens(run.valid), run.train)
    intervention = Intervention.of(run)
    # The derivatives written out by hand are those of the step without faults.
    how = replace(run.train, autograd=run.train.autograd or bool(run.faults))
    whole = run.train.compile and run.capture.first <= run.steps  # see `compiled`
    graph = backend.compiles(run)
    with (
        np.errstate(all="ignore"),  # a run that explodes is not warned of
        TraceWriter.for_run(run, backend.versions(), arrays, tokens, backend.__package__) as trace,
    ):
        params, slots, state, losses = _begin(run, arrays, backend, twin)
        backend.flush_denormals()  # the weights that were read keep theirs
        for step in range(run.start, run.steps + 1):
            window = batches.window(step)
            within = intervention and intervention.within
            points = Points(backend, within, trace.wants_step(step) or whole)
            masks = randomness.dropout_masks(run.model, run.train, step)
            if intervention:
                intervention.begin(step)
                params, slots, state = _restart(run, intervention, (params, slots, state), backend)
            lr = twin.learning_rate(run.train, window.epoch, twin.plateaus(losses))
            state = twin.carry(state, window.first, run.model, run.train)
            x, y = twin.tokens_of(window)
            params, *given = _see_inputs(step, params, state, x, y, masks, points)
            params, slots, state, loss = _take_step(
                graph, backend, twin, (params, slots, *given, lr, step), run.model, how, points
            )
            valid = None
            if window.last and valid_batches:
                mean = twin.evaluate(params, valid_batches, run.model, run.train)
                mean = backend.scalar(mean, run.train.dtype)
                valid = float(points.see("evaluate/loss", mean))
                losses.append(valid)
            if trace.wants_step(step):
                wanted = {name: p for name, p in points.seen.items() if trace.wants(name)}
                trace.write(step, {name: to_trace(backend, p) for name, p in wanted.items()})
            report(step=step, epoch=window.epoch, lr=lr, loss=float(loss), valid=valid)
    weights.save({name: to_array(backend, p) for name, p in params.items()}, run.final)


def _check(run: RunSpec) -> None:
    stages = run.follow is not None and run.follow.level == "stage"
    if run.train.compile and (run.faults or run.disturb or stages or run.train.autograd):
        raise HarnessError(
            "compile=true: a compiled step is one piece, with no place in it for a planted fault, "
            "a disturbance, stages that follow another side, or autograd; leave compile out"
        )


def _groups(run: RunSpec) -> dict[str, list[str]]:
    """The names of what a step starts from: of parameters, of slots and of state."""
    names = restart_names(run.model, run.train)
    return {
        group.rstrip("/"): [name.removeprefix(group) for name in names if name.startswith(group)]
        for group in CHECKPOINT
    }


def _begin(
    run: RunSpec, arrays: Mapping[str, Array], backend: Backend, twin: Mathematics
) -> tuple[Tensors, Tensors, Tensors | None, list[float]]:
    """What the first step starts from: `arrays`, or what the trace to resume left of its last step.

    Returns parameters, slots, state (None before the first step), and the validation losses so far.
    """
    if run.resume is None:
        params = {name: backend.to_tensor(array) for name, array in arrays.items()}
        return params, twin.zero_slots(params, run.train), None, []
    found, losses = resumed(run, _groups(run))
    params, slots, state = (
        {name: backend.to_tensor(array) for name, array in group.items()}
        for group in found.values()
    )
    return params, slots, state, losses


def _restart(
    run: RunSpec,
    intervention: Intervention,
    own: tuple[Tensors, Tensors, Tensors | None],
    backend: Backend,
) -> list[Any]:
    """What a step starts from: what the side that is followed left of the step before it.

    Parameters, slots and state, as in `own`: this side's own at the first step, or where it follows
    nobody.
    """
    found: list[Any] = []
    for (group, names), tensors in zip(_groups(run).items(), own, strict=True):
        other = intervention.restart(group, names)
        if other is None:
            found.append(tensors)
        else:
            found.append({name: backend.to_tensor(array) for name, array in other.items()})
    return found


def _see_inputs(
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


def _take_step(
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
    run = compiled(backend, twin.train_step, model, train, points.watch)
    *tensors, lr, step = arguments
    lr, step = backend.scalar(lr, train.dtype), backend.scalar(step, "float64")
    *found, seen = run(*tensors, lr, step)
    points.seen.update(seen)
    return found
