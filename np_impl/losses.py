"""Softmax cross-entropy over a window."""

import numpy as np


def log_sum_exp(logits):
    """log sum_j exp(z_j) along the last axis, the largest subtracted first: never overflows.

    log sum_j exp(z_j) = max + log sum_j exp(z_j - max)

    Args:
        logits: [..., V].

    Returns:
        [..., 1].

    """
    largest = np.max(logits, axis=-1, keepdims=True)  # [..., 1]
    return largest + np.log(np.sum(np.exp(logits - largest), axis=-1, keepdims=True))


def cross_entropy(logits, y, loss):
    """Negative log-likelihood of the targets, -log p = log sum_j exp(z_j) - z_y, averaged over B.

    Args:
        logits: [B, T, V].
        y: targets, integers [B, T].
        loss: "sum" or "mean" over time (Zaremba et al. 2014 sum; a mean shrinks lr by T).

    Returns:
        A scalar.

    """
    B, T = y.shape
    picked = np.take_along_axis(logits, y[:, :, None], axis=2) - log_sum_exp(logits)  # [B, T, 1]
    total = -np.sum(picked) / B
    return total if loss == "sum" else total / T


def cross_entropy_backward(logits, y, loss):
    """The derivative of `cross_entropy`: (p - onehot(y)) / B, p the softmax of the logits.

    Divided by T as well where the loss is a mean over time. (Bridle 1990, Probabilistic
    interpretation of feedforward classification network outputs.) The softmax and its logarithm are
    differentiated as one, so nothing is divided by a probability.

    Args:
        logits: [B, T, V].
        y: targets, integers [B, T].
        loss: "sum" or "mean" over time.

    Returns:
        Gradient of the logits [B, T, V].

    """
    B, T = y.shape
    count = B if loss == "sum" else B * T
    e = np.exp(logits - np.max(logits, axis=-1, keepdims=True))  # [B, T, V]
    p = e * (1 / (np.sum(e, axis=-1, keepdims=True) * count))  # [B, T, V]
    at_target = np.take_along_axis(p, y[:, :, None], axis=2) - p.dtype.type(1 / count)
    np.put_along_axis(p, y[:, :, None], at_target, axis=2)
    return p
