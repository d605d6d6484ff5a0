"""The loop over steps: all that a side's process does with bytes, around what its twin computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data import corpus, randomness, weights
from harness.side.backend import Backend
from harness.side.points import Points, to_array, to_trace
from harness.side.steps import Mathematics as Mathematics
from harness.side.steps import Tensors, check, groups, see_inputs, take_step
from harness.side.training import learn
from harness.spec import RunSpec, replace
from harness.trace import Intervention, TraceWriter, resumed

Array = NDArray[Any]


def train(run: RunSpec, report: Callable[..., None], backend: Backend, twin: Mathematics) -> None:
    """Run the steps of `run` from its weights on its tokens, tracing what it asks to trace.

    One that is to train to the end traces nothing, and keeps checkpoints (harness.side.training).

    Args:
        run: the RunSpec.
        report: called after every step with step, epoch, lr and loss, and at the end of an epoch
            with the validation loss (None otherwise).
        backend: what the twin's framework does with bytes.
        twin: what it computes.

    """
    if run.training:
        learn(run, run.training, report, backend, twin)
        return
    backend.prepare(run)
    check(run)
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
            params, *given = see_inputs(step, params, state, x, y, masks, points)
            params, slots, state, loss = take_step(
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


def _begin(
    run: RunSpec, arrays: Mapping[str, Array], backend: Backend, twin: Mathematics
) -> tuple[Tensors, Tensors, Tensors | None, list[float]]:
    """What the first step starts from: `arrays`, or what the trace to resume left of its last step.

    Returns parameters, slots, state (None before the first step), and the validation losses so far.
    """
    if run.resume is None:
        params = {name: backend.to_tensor(array) for name, array in arrays.items()}
        return params, twin.zero_slots(params, run.train), None, []
    found, losses = resumed(run, groups(run))
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
    for (group, names), tensors in zip(groups(run).items(), own, strict=True):
        other = intervention.restart(group, names)
        if other is None:
            found.append(tensors)
        else:
            found.append({name: backend.to_tensor(array) for name, array in other.items()})
    return found
