"""Learning rate, gradient norm, clipping and SGD."""

import torch


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


def global_norm(grads):
    """The L2 norm of all gradients taken as one vector: a scalar.

    (Pascanu et al. 2013, arXiv 1211.5063, algorithm 1.)
    """
    return torch.sqrt(sum(torch.sum(g * g) for g in grads.values()))


def clip(grads, norm, mode, limit):
    """Clip gradients.

    Args:
        grads: tensors by name.
        norm: their global norm, a scalar.
        mode: "global_norm" scales all by limit / max(norm, limit); "elementwise" clamps each
            element to +-limit; "none" leaves them.
        limit: the largest norm, or the largest absolute element.

    Returns:
        The clipped gradients by name.

    """
    if mode == "global_norm":
        coefficient = limit / torch.clamp(norm, min=limit)
        return {name: g * coefficient for name, g in grads.items()}
    if mode == "elementwise":
        return {name: torch.clamp(g, -limit, limit) for name, g in grads.items()}
    return grads


def sgd(params, grads, lr):
    """Plain gradient descent: p - lr g, by name."""
    return {name: p - lr * grads[name] for name, p in params.items()}
