"""Training: a step is the graph of the model, run by the formulas of its ops."""

import numpy as np

from harness.models.graph import below, node, rebuilt
from harness.models.table import graph_of, model_of
from harness.models.update import RATE, SLOTS
from harness.side import loop
from np_impl import backend
from np_impl.execution import Execution
from np_impl.faults import planted


def learning_rate(train, epoch, plateaus):
    """The learning rate of an epoch: lr divided by lr_decay as often as the schedule says.

    (Zaremba et al. 2014, section 4.1: the first smaller rate is that of epoch flat_epochs + 1.)

    Args:
        train: the TrainSpec.
        epoch: the epoch, from 1.
        plateaus: how many earlier epochs did not better the validation loss.

    Returns:
        A float.

    """
    decays = plateaus if train.schedule == "plateau" else max(epoch - train.flat_epochs, 0)
    return train.lr / train.lr_decay**decays


def plateaus(losses):
    """How many of the validation losses, one an epoch, are not lower than all before them."""
    return sum(not loss < min([float("inf"), *losses[:k]]) for k, loss in enumerate(losses))


def zero_slots(params, train):
    """What the optimizer keeps before the first step: zeros, by name "layer0/w_i/velocity"."""
    return {
        f"{name}/{slot}": np.zeros_like(p)
        for name, p in params.items()
        for slot in SLOTS[train.optimizer]
    }


def zero_state(model, batch_size, dtype):
    """The state at the start of an epoch: zeros [B, H] for all that the layers carry, by name."""
    sizes = model_of(model).state
    return {name: np.zeros([batch_size, size], dtype) for name, size in sizes.items()}


def carry(state, first, model, train):
    """The state that a window starts from: the last one's, or zeros at the start of an epoch.

    Args:
        state: what each layer carries [B, H] after the last window; None before the first.
        first: whether an epoch begins.
        model: the ModelSpec.
        train: the TrainSpec.

    Returns:
        The state by name.

    """
    return zero_state(model, train.batch_size, train.dtype) if first else state


def train_step(params, slots, state, x, y, masks, lr, step, model, train, points):
    """One optimizer step on one window: every stage of the graph in its order.

    Args:
        params: arrays by canonical name.
        slots: what the optimizer kept, by parameter and slot.
        state: what each layer carries [B, H], by name.
        x: input tokens [B, T].
        y: target tokens [B, T].
        masks: dropout masks by site.
        lr: the learning rate of this step, a scalar.
        step: the step, from 1.
        model: the ModelSpec.
        train: the TrainSpec.
        points: keeps the trace points.

    Returns:
        New parameters, new slots, new state, and the loss.

    """
    graph = graph_of(model, train)
    given = {"inputs/x": x, "inputs/y": y, **_named("inputs/mask/", masks)}
    given |= _named("state/in/", state)
    before = {**_named("params/", params), **_named("optimizer/", slots)}
    run = Execution(graph, given, before, step)
    stages = [
        stage for stage in graph.stages.values() if stage.value.op not in ("given", "carried")
    ]
    moves = [s.out.name.startswith(("optimizer/", "params/")) for s in stages].index(True)
    run.run(stages[:moves], points.see)
    run.made[RATE] = points.see(RATE, np.asarray(lr, run.made["update/global_norm"].dtype))
    run.run(stages[moves:], points.see)
    new_params, new_slots, new_state = (
        {name: run.made[prefix + name] for name in names}
        for prefix, names in (("params/", params), ("optimizer/", slots), ("state/out/", state))
    )
    return new_params, new_slots, new_state, run.made["forward/loss"]


def evaluate(params, batches, model, train):
    """The mean negative log-likelihood per token of a text, in nats.

    The state is carried from its first window to its last, and nothing is dropped.

    Args:
        params: arrays by canonical name.
        batches: the text (harness.data.corpus.Batches).
        model: the ModelSpec.
        train: the TrainSpec.

    Returns:
        A float; its exponential is the perplexity.

    """
    graph, stages = graph_of(model, train), model_of(model).forward
    stages = [s._replace(value=rebuilt(s.value, _undropped)) for s in stages]
    loss = next(x for x in below(stages[-1].value) if x.op == "cross_entropy")
    mean = node("cross_entropy", *(rebuilt(i, _undropped) for i in loss.inputs), time="mean")
    total, state = 0.0, zero_state(model, train.batch_size, params["embedding"].dtype)
    for step in range(1, batches.steps_per_epoch + 1):
        x, y = tokens_of(batches.window(step))
        given = {"inputs/x": x, "inputs/y": y, **_named("state/in/", state)}
        run = Execution(graph, given, _named("params/", params), step)
        run.run(stages[:-1], lambda name, value, t: value)
        total += float(run.value(mean))
        state = {name: run.made[f"forward/{name}"][:, -1] for name in state}
    return total / batches.steps_per_epoch


def _undropped(x):
    """What dropout is without it."""
    return x.inputs[0] if x.op == "dropout" else None


def _named(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def tokens_of(window):
    """Input and target tokens of a window (harness.data.corpus.Window): integers [B, T] each."""
    return backend.to_tensor(window.x), backend.to_tensor(window.y)


def train(run, report):
    """Run the steps of `run` and report each (harness.side.loop), faults planted where it asks."""
    with planted(run.faults):
        twin = loop.Mathematics(
            tokens_of, zero_slots, carry, plateaus, learning_rate, train_step, evaluate
        )
        loop.train(run, report, backend, twin)
