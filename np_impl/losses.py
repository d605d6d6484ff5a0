"""Softmax cross-entropy over a window."""

import numpy as np


def log_softmax(logits):
    """Log-probabilities along the last axis, the largest logit subtracted first: never overflows.

    log p_k = z_k - max - log sum_j exp(z_j - max)

    Args:
        logits: [..., V].

    Returns:
        Log-probabilities [..., V].

    """
    shifted = logits - np.max(logits, axis=-1, keepdims=True)  # [..., V]
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))  # [..., V]


def log_softmax_backward(logits, d_log):
    """The derivative of `log_softmax`: dz_k = d_k - p_k sum_j d_j.

    (From d log p_j / dz_k = [j = k] - p_k; Bridle 1990, Probabilistic interpretation of
    feedforward classification network outputs.) The maximum cancels out of the result.

    Args:
        logits: [..., V].
        d_log: gradient of the log-probabilities [..., V].

    Returns:
        Gradient of the logits [..., V].

    """
    return d_log - np.exp(log_softmax(logits)) * np.sum(d_log, axis=-1, keepdims=True)  # [..., V]


def cross_entropy(logits, y, loss):
    """Negative log-likelihood of the targets, averaged over the batch.

    Args:
        logits: [B, T, V].
        y: targets, integers [B, T].
        loss: "sum" or "mean" over time (Zaremba et al. 2014 sum; a mean shrinks lr by T).

    Returns:
        A scalar.

    """
    B, T = y.shape
    picked = np.take_along_axis(log_softmax(logits), y[:, :, None], axis=2)[:, :, 0]  # [B, T]
    total = -np.sum(picked) / B
    return total if loss == "sum" else total / T


def cross_entropy_backward(logits, y, loss):
    """The derivative of `cross_entropy`: -1/B at each target, 0 elsewhere, through `log_softmax`.

    In all dz = (p - onehot(y)) / B, divided by T as well where the loss is a mean over time.

    Args:
        logits: [B, T, V].
        y: targets, integers [B, T].
        loss: "sum" or "mean" over time.

    Returns:
        Gradient of the logits [B, T, V].

    """
    B, T = y.shape
    picked = np.full([B, T, 1], -1 / B if loss == "sum" else -1 / B / T, logits.dtype)
    d_log = np.zeros_like(logits)  # [B, T, V]
    np.put_along_axis(d_log, y[:, :, None], picked, axis=2)
    return log_softmax_backward(logits, d_log)
