"""Learning rate, gradient norm, clipping and optimizers."""

import torch

from harness.models.table import SLOTS
from harness.trace import Rows


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


def elements(g):
    """The elements of a gradient that need not be zero: of Rows, those of its rows."""
    return g.values if isinstance(g, Rows) else g


def apply(change, g):
    """A gradient with change(elements) for its elements; `change` leaves zeros alone."""
    return g._replace(values=change(g.values)) if isinstance(g, Rows) else change(g)


def dense(g):
    """A gradient as a tensor of its parameter's shape."""
    if not isinstance(g, Rows):
        return g
    zeros = torch.zeros(g.shape, dtype=g.values.dtype, device=g.values.device)
    return torch.index_add(zeros, 0, g.rows, g.values)


def global_norm(grads):
    """The L2 norm of all gradients taken as one vector: a scalar.

    (Pascanu et al. 2013, arXiv 1211.5063, algorithm 1.)
    """
    return torch.sqrt(sum(torch.sum(g * g) for g in map(elements, grads.values())))


def clip(grads, norm, mode, limit):
    """Clip gradients.

    Args:
        grads: tensors, or Rows of them, by name.
        norm: their global norm, a scalar.
        mode: "global_norm" scales all by limit / max(norm, limit); "elementwise" clamps each
            element to +-limit; "none" leaves them.
        limit: the largest norm, or the largest absolute element.

    Returns:
        The clipped gradients by name.

    """
    limit = min(limit, torch.finfo(norm.dtype).max)  # one that the dtype cannot hold limits nothing
    if mode == "global_norm":
        # Not `limit / tensor`, a product with the reciprocal that is not always 1 under the limit.
        coefficient = torch.full_like(norm, limit) / torch.clamp(norm, min=limit)
        return {name: apply(lambda e: e * coefficient, g) for name, g in grads.items()}
    if mode == "elementwise":
        return {
            name: apply(lambda e: torch.clamp(e, -limit, limit), g) for name, g in grads.items()
        }
    return grads


def sgd(p, g, slots, lr, train, step, keep):
    """Plain gradient descent: p - lr g. Rows of a gradient change those rows alone.

    Args:
        p: a parameter.
        g: its gradient, of the same shape (for sgd also Rows of it).
        slots: what the optimizer kept for it, by slot; of p's shape.
        lr: the learning rate of this step.
        train: the TrainSpec.
        step: the step, from 1.
        keep: keep(slot, value) keeps a slot for the next step; returns what goes on.

    Returns:
        The new parameter.

    """
    if isinstance(g, Rows):
        # Padding stays zero, though the rate be infinite: a row moves once.
        filled = torch.any(g.values != 0, dim=1, keepdim=True)
        moved = torch.where(filled, lr * g.values, g.values)
        return torch.index_add(p, 0, g.rows, -moved)
    return torch.addcmul(p, g, lr, value=-1)


def momentum(p, g, slots, lr, train, step, keep):
    """Momentum with the learning rate outside the velocity: v = mu v + g, p - lr v.

    (Sutskever et al. 2013, section 2, has lr inside v; this is torch.optim.SGD's form.) Arguments
    as for `sgd`.
    """
    velocity = keep("velocity", train.momentum * slots["velocity"] + g)
    return p - lr * velocity


def adam(p, g, slots, lr, train, step, keep):
    """Adam: bias-corrected averages of g and g^2, epsilon added to the corrected root.

    (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1.) Arguments as for `sgd`.
    """
    m = keep("m", train.beta1 * slots["m"] + (1 - train.beta1) * g)
    v = keep("v", train.beta2 * slots["v"] + (1 - train.beta2) * (g * g))
    corrected_m = m / (1 - train.beta1**step)
    corrected_v = v / (1 - train.beta2**step)
    return p - lr * corrected_m / (torch.sqrt(corrected_v) + train.epsilon)


def rmsprop(p, g, slots, lr, train, step, keep):
    """RMSprop: the gradient over the root of an average of g^2, epsilon added to the root.

    (Tieleman and Hinton 2012, lecture 6.5; epsilon as in torch.optim.RMSprop.) Arguments as for
    `sgd`.
    """
    square = keep("square", train.rho * slots["square"] + (1 - train.rho) * (g * g))
    return p - lr * g / (torch.sqrt(square) + train.epsilon)


def adagrad(p, g, slots, lr, train, step, keep):
    """Adagrad: the gradient over the root of the sum of all g^2, which starts at 0.

    (Duchi et al. 2011, section 1.1; epsilon as in torch.optim.Adagrad.) Arguments as for `sgd`.
    """
    accumulator = keep("accumulator", slots["accumulator"] + g * g)
    return p - lr * g / (torch.sqrt(accumulator) + train.epsilon)


def zero_slots(params, train):
    """What the optimizer keeps before the first step: zeros, by name "layer0/w_i/velocity"."""
    return {
        f"{name}/{slot}": torch.zeros_like(p)
        for name, p in params.items()
        for slot in SLOTS[train.optimizer]
    }


def update(params, grads, slots, lr, train, step, points):
    """One step of the optimizer on every parameter.

    Weight decay is added to the gradient (L2), or taken off the weights beside the step where
    train.decoupled (Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2).

    Args:
        params: tensors by name.
        grads: their clipped gradients by name, tensors or Rows.
        slots: what the optimizer kept, by name and slot.
        lr: the learning rate of this step.
        train: the TrainSpec.
        step: the step, from 1.
        points: shown every slot.

    Returns:
        New parameters and new slots.

    """
    rules = {"sgd": sgd, "momentum": momentum, "adam": adam, "rmsprop": rmsprop, "adagrad": adagrad}
    rule, new_params, new_slots = rules[train.optimizer], {}, {}
    for name, p in params.items():

        def keep(slot, value, name=name):
            new_slots[f"{name}/{slot}"] = points.see(f"optimizer/{name}/{slot}", value)
            return new_slots[f"{name}/{slot}"]

        g, own = grads[name], {slot: slots[f"{name}/{slot}"] for slot in SLOTS[train.optimizer]}
        decays = train.weight_decay and not train.decoupled
        if decays or train.optimizer != "sgd":
            g = dense(g)  # what is zero moves its weights too
        if decays:
            g = g + train.weight_decay * p
        new_params[name] = rule(p, g, own, lr, train, step, keep)
        if train.weight_decay and train.decoupled:
            new_params[name] = new_params[name] - lr * train.weight_decay * p
    return new_params, new_slots
