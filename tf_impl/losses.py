"""Softmax cross-entropy over a window."""

import tensorflow as tf


def log_sum_exp(logits):
    """log sum_j exp(z_j) along the last axis, the largest subtracted first: never overflows.

    log sum_j exp(z_j) = max + log sum_j exp(z_j - max)

    Args:
        logits: [..., V].

    Returns:
        [..., 1].

    """
    # The maximum cancels out of the result, so no gradient flows through it.
    largest = tf.stop_gradient(tf.reduce_max(logits, axis=-1, keepdims=True))  # [..., 1]
    return largest + tf.math.log(tf.reduce_sum(tf.exp(logits - largest), axis=-1, keepdims=True))


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
    picked = tf.gather(logits, y[:, :, None], axis=2, batch_dims=2) - log_sum_exp(
        logits
    )  # [B, T, 1]
    total = -tf.reduce_sum(picked) / B
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
    e = tf.exp(logits - tf.reduce_max(logits, axis=-1, keepdims=True))  # [B, T, V]
    p = e * (1 / (tf.reduce_sum(e, axis=-1, keepdims=True) * count))  # [B, T, V]
    return p - tf.one_hot(y, logits.shape[2], on_value=tf.constant(1 / count, p.dtype))
