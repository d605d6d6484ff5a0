"""Faults of optimizers, weight decay, schedule and evaluation."""

import tensorflow as tf

from harness.spec import replace
from tf_impl.faults_tools import kept


def rate_per_sequence(original, params, grads, slots, lr, train, step, points):
    """The learning rate is divided by the batch size."""
    return original(params, grads, slots, lr / train.batch_size, train, step, points)


def parameter_frozen(original, params, grads, slots, lr, train, step, points):
    """The recurrent weights of the first layer are not trained."""
    new_params, new_slots = original(params, grads, slots, lr, train, step, points)
    return {**new_params, "layer0/w_h": params["layer0/w_h"]}, new_slots


def unclipped_remembered(original, grads, norm, mode, limit):
    """Remembers the gradients before clipping."""
    kept["grads"] = grads
    return original(grads, norm, mode, limit)


def unclipped_used(original, params, grads, slots, lr, train, step, points):
    """The optimizer is given the gradients before clipping."""
    return original(params, kept["grads"], slots, lr, train, step, points)


def epoch_remembered(original, state, first, model, train):
    """Remembers whether an epoch begins."""
    kept["first"] = first
    return original(state, first, model, train)


def slots_zeroed(original, params, grads, slots, lr, train, step, points):
    """The optimizer is made anew at the start of every epoch."""
    if kept["first"]:
        slots = {name: tf.zeros_like(s) for name, s in slots.items()}
    return original(params, grads, slots, lr, train, step, points)


def decay_coupled(original, params, grads, slots, lr, train, step, points):
    """Weight decay is added to the gradients."""
    return original(params, grads, slots, lr, replace(train, decoupled=False), step, points)


def decay_decoupled(original, params, grads, slots, lr, train, step, points):
    """Weight decay is taken off the weights beside the step."""
    return original(params, grads, slots, lr, replace(train, decoupled=True), step, points)


def decay_missing(original, params, grads, slots, lr, train, step, points):
    """There is no weight decay."""
    return original(params, grads, slots, lr, replace(train, weight_decay=0.0), step, points)


def decay_without_biases(original, params, grads, slots, lr, train, step, points):
    """Biases do not decay."""
    weights = {name: p for name, p in params.items() if len(p.shape) > 1}
    biases = {name: p for name, p in params.items() if name not in weights}
    new_params, new_slots = original(weights, grads, slots, lr, train, step, points)
    train = replace(train, weight_decay=0.0)
    new_biases, more_slots = original(biases, grads, slots, lr, train, step, points)
    new_params = {**new_params, **new_biases}
    return {name: new_params[name] for name in params}, {**new_slots, **more_slots}


def sgd_ascends(original, p, g, slots, lr, train, step, keep):
    """The gradient is added to the weights."""
    return original(p, -g, slots, lr, train, step, keep)


def momentum_rate_inside(original, p, g, slots, lr, train, step, keep):
    """The velocity holds the learning rate: v = mu v + lr g, p - v."""
    return original(p, lr * g, slots, 1.0, train, step, keep)


def momentum_dampened(original, p, g, slots, lr, train, step, keep):
    """The velocity takes 1 - mu of the gradient: v = mu v + (1 - mu) g."""
    return original(p, (1 - train.momentum) * g, slots, lr, train, step, keep)


def momentum_nesterov(original, p, g, slots, lr, train, step, keep):
    """The step looks ahead: p - lr (g + mu v)."""

    def ahead(slot, value):
        return g + train.momentum * keep(slot, value)

    return original(p, g, slots, lr, train, step, ahead)


def adam_epsilon(original, p, g, slots, lr, train, step, keep):
    """Adam's epsilon is ten times as large."""
    train = replace(train, epsilon=10 * train.epsilon)
    return original(p, g, slots, lr, train, step, keep)


def adam_epsilon_uncorrected(original, p, g, slots, lr, train, step, keep):
    """Adam's epsilon is added to the root before its bias is corrected."""
    train = replace(train, epsilon=train.epsilon / (1 - train.beta2**step) ** 0.5)
    return original(p, g, slots, lr, train, step, keep)


def adam_epsilon_missing(original, p, g, slots, lr, train, step, keep):
    """Adam has no epsilon: 0 / 0 where there never was a gradient."""
    return original(p, g, slots, lr, replace(train, epsilon=0.0), step, keep)


def adam_uncorrected(original, p, g, slots, lr, train, step, keep):
    """Adam's averages are not corrected for their start at zero."""
    return original(p, g, slots, lr, train, 10**9, keep)


def adam_step_ahead(original, p, g, slots, lr, train, step, keep):
    """Adam's averages are corrected for one step more."""
    return original(p, g, slots, lr, train, step + 1, keep)


def adam_square_fast(original, p, g, slots, lr, train, step, keep):
    """Adam's average of squares has beta 0.99."""
    return original(p, g, slots, lr, replace(train, beta2=0.99), step, keep)


def adam_lazy(original, p, g, slots, lr, train, step, keep):
    """Rows without a gradient keep their weights and slots."""
    if len(g.shape) < 2:
        return original(p, g, slots, lr, train, step, keep)
    active = tf.reduce_any(g != 0, axis=1, keepdims=True)

    def keep_active(slot, value):
        return keep(slot, tf.where(active, value, slots[slot]))

    return tf.where(active, original(p, g, slots, lr, train, step, keep_active), p)


def epsilon_inside(original, p, g, slots, lr, train, step, keep):
    """Epsilon is added under the root."""

    def raised(slot, value):
        return keep(slot, value) + train.epsilon

    return original(p, g, slots, lr, replace(train, epsilon=0.0), step, raised)


def rmsprop_rho_swapped(original, p, g, slots, lr, train, step, keep):
    """The average of squares takes rho of the new square and keeps 1 - rho."""
    return original(p, g, slots, lr, replace(train, rho=1 - train.rho), step, keep)


def adagrad_raised(original, params, train):
    """Adagrad's accumulator starts at 0.1."""
    return {name: slot + 0.1 for name, slot in original(params, train).items()}


def rate_decays_late(original, train, epoch, plateaus):
    """The learning rate falls one epoch late."""
    return original(train, epoch - 1, plateaus)


def rate_decays_early(original, train, epoch, plateaus):
    """The learning rate falls one epoch early."""
    return original(train, epoch + 1, plateaus)


def rate_compounds(original, train, epoch, plateaus):
    """Every epoch's decay is applied to the decayed learning rate of the last."""
    lr = train.lr
    for e in range(1, epoch + 1):
        lr *= original(train, e, plateaus) / train.lr
    return lr


def evaluation_divisor(original, params, batches, model, train):
    """Evaluation divides by one token too many."""
    count = batches.steps_per_epoch * train.batch_size * train.bptt
    return original(params, batches, model, train) * count / (count + 1)


FAULTS = {
    "rate-per-sequence": {"update": rate_per_sequence},
    "parameter-frozen": {"update": parameter_frozen},
    "unclipped-used": {"clip": unclipped_remembered, "update": unclipped_used},
    "optimizer-rebuilt": {"carry": epoch_remembered, "update": slots_zeroed},
    "decay-coupled": {"update": decay_coupled},
    "decay-decoupled": {"update": decay_decoupled},
    "decay-missing": {"update": decay_missing},
    "decay-without-biases": {"update": decay_without_biases},
    "sgd-ascends": {"sgd": sgd_ascends},
    "momentum-rate-inside": {"momentum": momentum_rate_inside},
    "momentum-dampened": {"momentum": momentum_dampened},
    "momentum-nesterov": {"momentum": momentum_nesterov},
    "adam-epsilon": {"adam": adam_epsilon},
    "adam-epsilon-uncorrected": {"adam": adam_epsilon_uncorrected},
    "adam-epsilon-missing": {"adam": adam_epsilon_missing},
    "adam-uncorrected": {"adam": adam_uncorrected},
    "adam-step-ahead": {"adam": adam_step_ahead},
    "adam-square-fast": {"adam": adam_square_fast},
    "adam-lazy": {"adam": adam_lazy},
    "rmsprop-epsilon-inside": {"rmsprop": epsilon_inside},
    "rmsprop-rho-swapped": {"rmsprop": rmsprop_rho_swapped},
    "adagrad-epsilon-inside": {"adagrad": epsilon_inside},
    "adagrad-raised": {"zero_slots": adagrad_raised},
    "rate-decays-late": {"learning_rate": rate_decays_late},
    "rate-decays-early": {"learning_rate": rate_decays_early},
    "rate-compounds": {"learning_rate": rate_compounds},
    "evaluation-divisor": {"evaluate": evaluation_divisor},
}
