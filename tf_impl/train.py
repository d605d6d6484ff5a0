"""Training: the mathematics of one step, with all that a trace sees."""

import tensorflow as tf

from harness.side import loop
from harness.side.points import Points
from tf_impl import backend
from tf_impl.faults import planted
from tf_impl.losses import cross_entropy, cross_entropy_backward
from tf_impl.model import carry, forward, forward_backward, penalty, zero_state
from tf_impl.optim import clip, global_norm, learning_rate, plateaus, update, zero_slots


def gradients(params, state, x, y, masks, model, train, points):
    """The loss over one window and its gradients, by back-propagation.

    Args:
        params: tensors by canonical name.
        state: h and c of each layer [B, H], by name; no gradient flows into it.
        x: input tokens [B, T].
        y: target tokens [B, T].
        masks: dropout masks by site.
        model: the ModelSpec.
        train: the TrainSpec.
        points: shown every stage, forwards and backwards.

    Returns:
        The loss, the new state, and the gradients of the parameters.

    """
    if train.autograd:
        return gradients_by_autograd(params, state, x, y, masks, model, train, points)
    logits, new_state = forward(params, x, state, masks, model, points)
    loss = cross_entropy(logits, y, train.loss) + penalty(x, masks, model, points)
    loss = points.see("forward/loss", loss)
    gradient = cross_entropy_backward(logits, y, train.loss)
    grads = forward_backward(params, x, state, masks, model, points, gradient)
    return loss, new_state, {name: points.see(f"grads/{name}", g) for name, g in grads.items()}


def gradients_by_autograd(params, state, x, y, masks, model, train, points):
    """As `gradients`, by the framework's own back-propagation: proves those written out by hand.

    It also differentiates a step that a fault has been planted in.
    """

    def computed(params):
        logits, new_state = forward(params, x, state, masks, model, points)
        loss = cross_entropy(logits, y, train.loss) + penalty(x, masks, model, points)
        return loss, new_state, points.gone_on

    points.differentiate()
    loss, new_state, grads, of_points = backend.differentiate(computed, params)
    loss = points.see("forward/loss", loss)
    points.see_gradients(of_points)
    return loss, new_state, {name: points.see(f"grads/{name}", g) for name, g in grads.items()}


def train_step(params, slots, state, x, y, masks, lr, step, model, train, points):
    """One optimizer step on one window.

    Args:
        params: tensors by canonical name.
        slots: what the optimizer kept, by parameter and slot.
        state: h and c of each layer [B, H], by name.
        x: input tokens [B, T].
        y: target tokens [B, T].
        masks: dropout masks by site.
        lr: the learning rate of this step, a scalar.
        step: the step, from 1.
        model: the ModelSpec.
        train: the TrainSpec.
        points: keeps the trace points; the new weights are the same bits if it keeps none.

    Returns:
        New parameters, new slots, new state, and the loss.

    """
    loss, new_state, grads = gradients(params, state, x, y, masks, model, train, points)
    norm = points.see("update/global_norm", global_norm(grads))
    clipped = clip(grads, norm, train.clip, train.clip_limit)
    clipped = {name: points.see(f"update/clipped/{name}", g) for name, g in clipped.items()}
    lr = points.see("update/learning_rate", tf.convert_to_tensor(lr, dtype=norm.dtype))
    new_params, new_slots = update(params, clipped, slots, lr, train, step, points)
    new_params = {name: points.see(f"params/{name}", p) for name, p in new_params.items()}
    new_state = {name: points.see(f"state/out/{name}", s) for name, s in new_state.items()}
    return new_params, new_slots, new_state, loss


def evaluate(params, batches, model, train):
    """The mean negative log-likelihood per token of a text, in nats.

    The state is carried from its first window to its last, and nothing is dropped.

    Args:
        params: tensors by canonical name.
        batches: the text (harness.data.corpus.Batches).
        model: the ModelSpec.
        train: the TrainSpec.

    Returns:
        A float; its exponential is the perplexity.

    """
    total, state = 0.0, zero_state(model, train.batch_size, params["embedding"].dtype)
    for step in range(1, batches.steps_per_epoch + 1):
        x, y = tokens_of(batches.window(step))
        logits, state = forward(params, x, state, {}, model, Points(backend, watch=False))
        total += float(cross_entropy(logits, y, "mean"))
    return total / batches.steps_per_epoch


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
